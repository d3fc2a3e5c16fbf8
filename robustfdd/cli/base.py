"""What all commands share: the application, its two consoles, common options, and how a command ends.

Nothing here or in the modules of the commands imports torch, pandas or matplotlib before a command is run, so that
help, mistakes in the arguments and completion come at once.
"""

from __future__ import annotations

import functools
import importlib
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from robustfdd import __version__, ending, plugins
from robustfdd.errors import ConfigurationError, RobustFDDError, Terminated, UnitError, is_out_of_memory
from robustfdd.text import on_one_screen, printable, reason, shortened

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train image classifiers with feature density dropout and its alternatives, attack them through ART and "
    "Foolbox, and report their robustness.",
)
#: Columns of tables that are not written to a terminal: enough for a dozen methods.
PIPED_WIDTH = 160
#: Tables and paths go to standard output, everything about how it goes to standard error.
out_console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, emoji=False)
err_console = Console(stderr=True, emoji=False)

P = ParamSpec("P")
R = TypeVar("R")

DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="ROBUSTFDD_DATA",
        help="Where data sets lie, or are downloaded to. By default robustfdd/data in the user's cache folder.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Pass models through torch.compile: minutes at first, faster where much follows."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Images attacked at once; no result depends on it. By default what fits, halved if it does not."
    ),
]


def command(name: str, *needs: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a command, in which a mistake is one message and an interruption a hint how to go on.

    Args:
        name: of the command.
        *needs: modules of this package that it uses and that take long to import. They are imported when it is run,
            before a signal is turned into an exception: one that comes in the middle of an import cannot be handled in
            order, and ends the process at once.
    """

    def registered(function: Callable[P, R]) -> Callable[P, R]:
        app.command(name)(_reporting_errors(function, needs))
        return function

    return registered


def _reporting_errors(function: Callable[P, R], needs: tuple[str, ...]) -> Callable[P, R]:
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for module in needs:
            importlib.import_module(f"robustfdd.{module}")
        try:
            with ending.in_order(Terminated):
                return function(*args, **kwargs)
        except RobustFDDError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except UnitError as error:
            _complain(f"failed: {error}")
            raise typer.Exit(1) from None
        except MemoryError as error:  # of a data set of images, whose size is as large as it is
            _complain(f"error: not enough memory ({str(error) or 'it ran out'})")
            raise typer.Exit(2) from None
        except OSError as error:  # a disk that is full, a place that cannot be written to
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _complain(f"failed: out of memory ({reason(error)})")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            say_plainly(err_console, ending.INTERRUPTED)
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            raise typer.Exit(ending.exit_code(number)) from None

    return wrapped


def _complain(message: str) -> None:
    err_console.print(on_one_screen(message), style="bold red", markup=False, highlight=False, soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        out_console.print(f"robustfdd {__version__}", highlight=False)
        raise typer.Exit


def _plugins(files: list[Path] | None) -> None:
    try:
        plugins.use(files or ())
    except ConfigurationError as error:
        _complain(f"error: {error}")
        raise typer.Exit(2) from None


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            callback=_plugins,
            help="A Python file that registers a dropout, a data set or another part of your own. Repeatable; stands "
            "before the command.",
        ),
    ] = None,
) -> None:
    pass


def say_plainly(console: Console, text: str) -> None:
    """Print a text as it stands, whatever console markup it looks like."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def cell(text: str) -> Text:
    """Text in a table as it stands, whatever console markup it looks like."""
    return Text(shortened(printable(text), 200))


def main() -> None:
    """The command, once its arguments can be read; :mod:`robustfdd.__main__` is where it is entered."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the encoding of a terminal or a pipe lacks is no error
            stream.reconfigure(errors="backslashreplace")
    app()
