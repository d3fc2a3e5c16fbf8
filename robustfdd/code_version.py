"""A short hash of the code that a result depends on, found by following imports; blind to comments and layout.

What counts is the closure: the module that does the work, what it imports of this package, what that imports, and so
on, wherever in a file the import stands. It is computed and not listed, so that no dependency can be forgotten. Three
rules keep out what does no part of the work:

* An ``__init__`` gathers names and looks parts up by name; it is not counted. A name that is imported from a package is
  followed to the module that defines it. So a registry does not drag in everything that is registered: the dropout,
  the engine or the indicator that was used is named by the work itself (``modules`` and ``parts`` below).
* Imports under ``TYPE_CHECKING`` are not executed, and not followed.
* What talks to people, or gives what is in the key of a result anyway, is not counted (:data:`UNCOUNTED`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PACKAGE = "robustfdd"

#: Modules on which no result depends, although others import them. The first three talk to people. What the others give
#: is in the key of a result itself: the specification that was read, the version of the code, the part that was chosen.
UNCOUNTED = frozenset({"errors", "text", "progress", "catalogue", "code_version", "registry", "plugins"})
#: Imports that only some of the work of a module uses, which names what it uses: recipes without adversarial training
#: do not depend on it.
CHOSEN = frozenset({("training", "adversarial_training")})

#: What results name the version of.
_NAMED = frozenset({"torch", "torchvision", *sys.stdlib_module_names})

#: A class or a function that was chosen when the program ran.
Part = Callable[..., object]


def code_version(*modules: str, parts: Iterable[Part] = ()) -> str:
    """A hash of the syntax trees of all code that some work depends on, without docstrings and comments.

    Args:
        *modules: dotted names below ``robustfdd`` of the modules that do the work, e.g. ``"units"`` and
            ``"engines.art"``. Their order does not matter.
        parts: classes and functions that were chosen when the program ran, such as the class of a registered dropout.
            One that is defined outside this package counts with the file that defines it and with those beside it that
            this file imports; not where there is no such file, as for a class that was typed in. Classes and functions
            of torch do not count: results name its version.

    Returns:
        16 hexadecimal digits; the same for all versions of Python.

    Raises:
        ValueError: there is no such module.
    """
    return _package().version(*modules, parts=parts)


def source_version(source: str) -> str:
    """A hash of Python source, without its docstrings, its comments and its layout.

    Args:
        source: a module.

    Raises:
        SyntaxError: it is no Python.
    """
    return _tree_version(ast.parse(source))


class Package:
    """The modules of a package and what they import of each other.

    Args:
        root: its folder; it need not be the one that is running.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, tuple[ast.Module, str]] = {}
        self._edges: dict[str, frozenset[str]] = {}

    def version(self, *modules: str, parts: Iterable[Part] = ()) -> str:
        """See :func:`code_version`."""
        inside, files = set(modules), set()
        for part in parts:
            for name in _defining(part):
                package, _, rest = name.partition(".")
                if package == PACKAGE:
                    inside.add(rest)
                elif package not in _NAMED and (file := _file_of(name)) is not None:
                    files.add(file)
        outside: set[str] = set()
        for tree, version in _outside(files) if files else ():
            outside.add(version)
            inside |= self._targets(tree, package="")
        digest = hashlib.sha256()
        for name in sorted(self.closure(*inside)):
            digest.update(f"{name} {self._module(name)[1]}\n".encode())
        # By content alone: the same file may lie elsewhere on another machine, and be __main__ in one process only.
        for version in sorted(outside):
            digest.update(f"outside {version}\n".encode())
        return digest.hexdigest()[:16]

    def closure(self, *modules: str) -> frozenset[str]:
        """The modules that some modules depend on, with themselves, by their dotted names below the package.

        Raises:
            ValueError: there is no such module.
        """
        found: set[str] = set()
        left = list(modules)
        while left:
            name = left.pop()
            if name in found or name in UNCOUNTED or self._is_package(name):
                continue
            if name not in self._edges:
                tree = self._module(name)[0]
                edges = self._targets(tree, package=name.rpartition(".")[0])
                self._edges[name] = frozenset(target for target in edges if (name, target) not in CHOSEN)
            found.add(name)
            left += self._edges[name]
        return frozenset(found)

    def _targets(self, tree: ast.Module, package: str) -> set[str]:
        """The modules of this package that define what a module imports from it."""
        found: set[str] = set()
        for module, name, chain in _imports(tree, f"{PACKAGE}.{package}".rstrip(".")):
            top, _, rest = module.partition(".")
            if top == PACKAGE:
                found |= self._defined(rest, name) if name else self._along(rest, chain)
        return found

    def _along(self, module: str, chain: tuple[str, ...]) -> set[str]:
        """The modules that define what is reached from one by attributes, as in ``robustfdd.dropouts.register``."""
        while chain and self._is_package(module):
            inner = f"{module}.{chain[0]}".lstrip(".")
            if not self._exists(inner):
                return self._defined(module, chain[0])
            module, chain = inner, chain[1:]
        return self._defined(module, "*")

    def _defined(self, module: str, name: str) -> set[str]:
        """The module that defines a name which is imported from a module; of ``"*"``, all that it offers."""
        if self._exists(inner := f"{module}.{name}".lstrip(".")):
            return self._defined(inner, "*")
        if not self._is_package(module):
            return {module} if self._exists(module) else set()  # what is not there was not imported
        found: set[str] = set()
        for origin, given, bound in _bound(self._module(module)[0], f"{PACKAGE}.{module}".rstrip(".")):
            if name in (bound, "*"):
                found |= self._defined(origin.removeprefix(PACKAGE).lstrip("."), given)
        return found

    def _path(self, name: str) -> Path:
        return self._root.joinpath(*name.split(".")) if name else self._root

    def _is_package(self, name: str) -> bool:
        return (self._path(name) / "__init__.py").is_file()

    def _exists(self, name: str) -> bool:
        return self._is_package(name) or (bool(name) and self._path(name).with_suffix(".py").is_file())

    def _module(self, name: str) -> tuple[ast.Module, str]:
        """The syntax tree of a module and its hash."""
        if name not in self._read:
            if not self._exists(name):
                raise ValueError(f"{PACKAGE}.{name}: there is no such module")
            path = self._path(name)
            path = path / "__init__.py" if self._is_package(name) else path.with_suffix(".py")
            self._read[name] = _parsed(path.read_bytes())
        return self._read[name]


@functools.cache
def _package() -> Package:
    """This package, whose files do not change while it runs."""
    return Package(Path(__file__).resolve().parent)


@functools.lru_cache(maxsize=256)
def _parsed(source: bytes) -> tuple[ast.Module, str]:
    """The syntax tree of a source and its hash."""
    tree = ast.parse(source)
    return tree, _tree_version(tree)


# --- imports ---------------------------------------------------------------------------------------------------------


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and _named(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from (other, *_executed(other))
        else:
            yield from _executed(child)


def _named(node: ast.AST) -> str:
    """The last name of ``a`` or ``a.b.c``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _origin(node: ast.ImportFrom, package: str) -> str:
    """The module that an import statement names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What a module imports, wherever in the file: the module, and the name that is taken from it.

    Where a module is imported as a whole the name is empty. In its place comes what is asked of it, as a chain of
    attributes, if it is of this package.

    Args:
        tree: the module.
        package: that it is in, for relative imports.
    """
    nodes = list(_executed(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield from ((_origin(node, package), alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module, bound = alias.name, alias.asname or alias.name.partition(".")[0]
                start = module if alias.asname else bound
                chains = set(_chains(nodes, bound)) if module.partition(".")[0] == PACKAGE else set()
                yield from ((start, "", chain) for chain in chains)
                if not chains or start != module:
                    yield module, "", ()


def _chains(nodes: list[ast.AST], bound: str) -> Iterator[tuple[str, ...]]:
    """The attributes that are asked of a name: ``("b", "c")`` of ``a`` in ``a.b.c``."""
    within = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if id(node) in within:
            continue
        chain: list[str] = []
        start = node
        while isinstance(start, ast.Attribute):
            chain.insert(0, start.attr)
            start = start.value
        if chain and isinstance(start, ast.Name) and start.id == bound:
            yield tuple(chain)


def _bound(tree: ast.Module, package: str) -> Iterator[tuple[str, str, str]]:
    """The names that an ``__init__`` takes from modules of its package: module, name there, name here.

    Those that it tells a type checker of are among them: it imports them when they are first asked for.
    """
    told = [node.body for node in tree.body if isinstance(node, ast.If) and _named(node.test) == "TYPE_CHECKING"]
    for node in itertools.chain(tree.body, *told):
        if isinstance(node, ast.ImportFrom):
            origin = _origin(node, package)
            if origin.partition(".")[0] == PACKAGE:
                yield from ((origin, alias.name, alias.asname or alias.name) for alias in node.names)


# --- code outside this package ---------------------------------------------------------------------------------------


def _defining(part: Part) -> set[str]:
    """The names of the modules that define a function, or a class and those that it is derived from."""
    while isinstance(part, functools.partial):
        part = part.func
    if isinstance(part, type):
        return {cls.__module__ for cls in part.__mro__}
    return {str(getattr(part, "__module__", None) or type(part).__module__)}


def _loaded() -> dict[Path, object]:
    """The sources of the modules that are loaded, each with what is another object once it is loaded again."""
    found = {}
    for module in list(sys.modules.values()):
        content = getattr(module, "__dict__", {})
        file = content.get("__file__")
        if isinstance(file, str) and file.endswith(".py"):
            found[Path(file).absolute()] = content.get("__spec__")
    return found


def _file_of(module: str) -> Path | None:
    """The source of a module that is loaded."""
    file = getattr(sys.modules.get(module), "__file__", None)
    path = Path(file).absolute() if file else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _is_installed(path: Path) -> bool:
    """Whether a file came with Python or a package manager."""
    folders = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(path.is_relative_to(folder) for folder in folders)


#: Files outside this package as they were when they were first asked for since they were loaded: what runs is that, and
#: not what somebody makes of the file meanwhile.
_first_seen: dict[Path, tuple[object, tuple[ast.Module, str]]] = {}


def _outside(files: Iterable[Path]) -> list[tuple[ast.Module, str]]:
    """The syntax trees and hashes of files, and of those that they import out of the folder or package they are in.

    Of what is installed only the file itself counts.
    """
    loaded = _loaded()
    found: dict[Path, tuple[ast.Module, str]] = {}
    left = list(files)
    while left:
        path = left.pop()
        if path in found:
            continue
        spec = loaded.get(path)
        if path not in _first_seen or _first_seen[path][0] is not spec:
            try:
                _first_seen[path] = (spec, _parsed(path.read_bytes()))
            except (SyntaxError, ValueError):  # no Python of this version, so it was not run
                continue
        found[path] = _first_seen[path][1]
        if not _is_installed(path):
            left += _neighbours(path, found[path][0])
    return list(found.values())


def _neighbours(path: Path, tree: ast.Module) -> Iterator[Path]:
    """The files that one imports out of the folder or the package that it is in."""
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    for module, name, _ in _imports(tree, ".".join(path.parent.relative_to(top).parts)):
        steps = [step for step in (*module.split("."), name) if step]
        for end in range(1, len(steps) + 1 if steps[0] != PACKAGE else 0):
            place = top.joinpath(*steps[:end])
            yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())


# --- the hash of one file --------------------------------------------------------------------------------------------


def _tree_version(tree: ast.Module) -> str:
    return hashlib.sha256("\n".join(_described(tree)).encode()).hexdigest()


def _described(node: object) -> Iterable[str]:
    """A syntax tree as text; ``ast.dump`` writes what is empty in some versions of Python, and not in others."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is None and isinstance(node, ast.Constant):
                yield "None"
            elif value is not None and value != []:
                yield name
                yield from _described(value)
        yield ")"
    elif isinstance(node, list):
        for entry in node:
            if not _is_text(entry):
                yield from _described(entry)
        yield ","
    else:
        yield repr(node)


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
