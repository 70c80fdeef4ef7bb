"""Where Python code names flags: the calls that make a handle or ask OpenFeature, and every text beside them."""

from __future__ import annotations

import ast
import os
import re
import warnings
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple, final

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Reference", "References"]

_HANDLES = frozenset({"bool", "int", "float", "str", "json", "enum", "model"})
_OPENFEATURE = re.compile(r"get_(boolean|string|integer|float|object)_(value|details)(_async)?")
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"})
_MAX_BYTES = 2**22


class Reference(NamedTuple):
    """A place in code that asks for a flag by its key."""

    key: str
    path: str
    line: int


@final
class References:
    """What some Python files say of flags.

    Args:
        places: Files, and folders whose `*.py` are read, those of hidden folders and environments left out.

    Raises:
        ConfigurationError: If a place is not there.
    """

    calls: list[Reference]
    unread: list[str]

    def __init__(self, places: Iterable[str | os.PathLike[str]]) -> None:
        self.calls = []
        self.unread = []  # files that are no Python
        self.texts: set[str] = set()
        self._patterns: set[str] = set()
        for place in places:
            root = Path(place)
            if not root.exists():
                raise ConfigurationError("code", str(place), "a file or folder that is there")
            for path in [root] if root.is_file() else sorted(_files(root)):
                self._read(path)
        self._made = re.compile("|".join(sorted(self._patterns)) or r"(?!)", re.DOTALL)

    def mention(self, key: str) -> bool:
        """Return whether a text is the key, or a text that is put together may be."""
        return key in self.texts or self._made.fullmatch(key) is not None

    def _read(self, path: Path) -> None:
        try:
            found = path.stat()
            # A pipe would be waited for.
            if not S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
                self.unread.append(str(path))
                return
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a wrong escape is not ours to tell
                tree = ast.parse(path.read_bytes(), str(path))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            self.unread.append(str(path))
            return
        constants = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and type(node.value) is str:
                self.texts.add(node.value)
            elif isinstance(node, ast.Call):
                self._call(node, str(path), constants)

    def _call(self, node: ast.Call, path: str, constants: dict[str, str]) -> None:
        asked = _asked(node)
        if isinstance(asked, ast.Name) and asked.id in constants:
            self.calls.append(Reference(constants[asked.id], path, node.lineno))
        elif isinstance(asked, ast.Constant) and type(asked.value) is str:
            self.calls.append(Reference(asked.value, path, node.lineno))
        elif isinstance(asked, ast.JoinedStr):
            parts = [
                re.escape(part.value)
                if isinstance(part, ast.Constant) and type(part.value) is str
                else ".*"
                for part in asked.values
            ]
            if set(parts) != {".*"}:  # else it may be any key, which tells nothing
                self._patterns.add("".join(parts))


def _asked(node: ast.Call) -> ast.expr | None:
    """Return the key of a call that asks for a flag: of a handle, which has a `default=`, or of OpenFeature's client."""
    if not isinstance(node.func, ast.Attribute):
        return None
    named = {word.arg: word.value for word in node.keywords}
    if node.func.attr in _HANDLES and "default" in named:
        return node.args[0] if node.args else named.get("key")
    if _OPENFEATURE.fullmatch(node.func.attr):
        return node.args[0] if node.args else named.get("flag_key")
    return None


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives a name to."""
    made: dict[str, str] = {}
    for node in tree.body:
        target = value = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign):
            target, value = node.target, node.value
        if (
            isinstance(target, ast.Name)
            and isinstance(value, ast.Constant)
            and type(value.value) is str
        ):
            made[target.id] = value.value
    return made


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _SKIPPED and not name.startswith(".")]
        if "pyvenv.cfg" in files:
            names.clear()
            continue
        yield from (Path(folder, name) for name in files if name.endswith(".py"))
