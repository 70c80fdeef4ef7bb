"""Where a missing name is defined: in a file that nobody imported. Nothing is imported here either."""

# ruff: noqa: PTH118, PTH120, PTH122, PTH123, PTH202, PTH206 - a Path for each of a thousand files takes far longer
from __future__ import annotations

import os
import re
import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.registry._registry import Registry

__all__ = ["File", "find_definition"]

_BUDGET = 0.05  # seconds: a miss is an error on its way to a person
_FRESH = 1.0  # seconds: a person takes longer to change a file and try again
_LARGEST = 1_000_000  # bytes: nobody wrote a larger module by hand
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class File(NamedTuple):
    """A source file that was not imported.

    Attributes:
        path: Where it is.
        root: The folder that its top-level package is in, for messages.
        module: What to import.
    """

    path: str
    root: str
    module: str

    @property
    def shown(self) -> str:
        """The path as a person writes it: `mypkg/heads.py`."""
        return os.path.relpath(self.path, self.root).replace(os.sep, "/")


class _Reading:
    """What was read for one registry: the files that may register something, and until when that is good."""

    __slots__ = ("expires", "likely", "n_modules", "registry")

    def __init__(self, registry: Registry[Any]) -> None:
        clock = current()
        now = clock.monotonic()
        self.registry, self.n_modules = weakref.ref(registry), len(sys.modules)
        self.expires = now + _FRESH
        self.likely: list[tuple[File, bytes]] = []
        for file in _files(registry):
            if clock.monotonic() > now + 0.8 * _BUDGET:
                break
            text = _text(file.path)
            if b".register" in text or b".lazy" in text:
                self.likely.append((file, text))

    def serves(self, registry: Registry[Any]) -> bool:
        return (
            self.registry() is registry
            and self.n_modules == len(sys.modules)
            and current().monotonic() < self.expires
        )


_reading: _Reading | None = None


def find_definition(registry: Registry[Any], name: str, version: int | None) -> tuple[str, str]:
    """Return where an unimported file registers *name* with *registry*, and what to do; two empty texts if none does.

    Read are the packages whose modules hold the registry, then the user's other imported packages, until the time is
    up. Only a file with the name and a call of `register` or `lazy` in its text is parsed. What was read serves other
    misses in the same second, so that many of them cost little.
    """
    global _reading  # noqa: PLW0603 - one assignment; of two threads that read at once, one is remembered
    clock = current()
    end = clock.monotonic() + _BUDGET
    reading = _reading
    if reading is None or not reading.serves(registry):
        reading = _reading = _Reading(registry)
    # In quotes, as a definition, or handed to register: anything else that reads the same is not worth parsing.
    plain = re.escape(name.encode())
    written = re.compile(rb"['\"]%b['\"]|\b(?:class|def)\s+%b\b|\(\s*%b\b" % (plain, plain, plain))
    for file, text in reading.likely:
        if name.encode() not in text or not written.search(text):
            continue
        from mlkit.registry._defined import registered_in  # what only a likely file needs

        found = registered_in(registry, file, text, name, version)
        if found is not None and os.path.realpath(file.path) not in _imported():
            return f"{file.shown}:{found.line}", _advice(registry, file, found.defined, name)
        if clock.monotonic() > end:
            break
    return "", ""


def _imported() -> set[str]:
    """Return the files of imported modules; a file may have been imported under another name."""
    files = [variables.get("__file__") for _, variables in _modules()]
    return {os.path.realpath(file) for file in files if isinstance(file, str)}


def _advice(registry: Registry[Any], file: File, defined: str, name: str) -> str:
    advice = f"import {file.module}"
    if not defined:
        return advice
    target = f"{file.module}:{defined}"
    group = registry._catalogue.group  # noqa: SLF001 - the two are one mechanism
    if group is None:
        return f"{advice}, or declare it with lazy({name!r}, {target!r})"
    return (
        f'{advice}, or declare the entry point [project.entry-points."{group}"] {name} = "{target}"'
    )


def _modules() -> list[tuple[str, dict[str, Any]]]:
    """Return the variables of every imported module, without waking one that loads itself on first use."""
    found = []
    for name, module in list(sys.modules.items()):
        try:
            found.append((name, object.__getattribute__(module, "__dict__")))
        except AttributeError:  # what a library puts in place of a module
            continue
    return found


def _files(registry: Registry[Any]) -> Iterator[File]:
    modules = _modules()
    own = dict.fromkeys(
        name.partition(".")[0]
        for name, variables in modules
        if id(registry) in map(id, list(variables.values()))  # no `==`, which is the user's
    )
    if not own:  # no module has it by name, so that none can import it from there
        return
    tops = {name: variables for name, variables in modules if "." not in name}
    seen: set[str] = set()
    for name in dict.fromkeys((*own, *tops)):
        if name in sys.stdlib_module_names or name not in tops:
            continue
        for folder, package in _folders(name, tops[name], lone=name in own):
            # Of what is installed only what holds the registry: the rest is large, and knows nothing of it.
            strange = name not in own and not _INSTALLED.isdisjoint(folder.split(os.sep))
            if not strange and folder not in seen:
                seen.add(folder)
                yield from _walk(folder, package)


def _folders(name: str, variables: dict[str, Any], *, lone: bool) -> list[tuple[str, str]]:
    """Return the folders of a top-level package; of a lone module or script, if wanted, the folder it is in."""
    path, file = variables.get("__path__"), variables.get("__file__")
    if path is not None:
        try:
            return [(os.path.realpath(folder), name) for folder in path]
        except Exception:  # noqa: BLE001 - a namespace of a broken importer
            return []
    return [(os.path.dirname(os.path.realpath(file)), "")] if lone and isinstance(file, str) else []


def _walk(folder: str, package: str) -> Iterator[File]:
    """Yield the files of a package, with those of its subpackages; of a plain folder only the modules in it."""
    root = os.path.dirname(folder) if package else folder
    for here, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if package and name.isidentifier())
        inner = [] if here == folder else os.path.relpath(here, folder).split(os.sep)
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix != ".py" or not stem.isidentifier() or stem == "__main__":
                continue
            parts = [package, *inner, "" if stem == "__init__" else stem]
            module = ".".join(filter(None, parts))
            if module not in sys.modules:
                yield File(os.path.join(here, file), root, module)


def _text(path: str) -> bytes:
    try:
        if os.path.getsize(path) > _LARGEST:
            return b""
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
