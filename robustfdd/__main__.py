"""``python -m robustfdd`` is the ``robustfdd`` command, and this its entry point.

It is left light: what takes long to import is imported once a signal ends the command in order.
"""

from __future__ import annotations

from robustfdd import ending


def main() -> None:
    """Entry point of the ``robustfdd`` command."""
    ending.take_over()
    from robustfdd.cli import main as command  # noqa: PLC0415 - takes seconds

    try:
        command()
    finally:
        ending.end_at_once()


if __name__ == "__main__":
    main()
