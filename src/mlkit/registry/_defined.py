"""Whether the source of a module registers a name with one certain registry, told from its syntax tree alone."""

from __future__ import annotations

import ast
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.registry._registry import Registry
    from mlkit.registry._unimported import File

__all__ = ["Found", "registered_in"]

_UNKNOWN: Any = object()


class Found(NamedTuple):
    """A line that registers what was asked for, and the class or function of the module that it registers, if any."""

    line: int
    defined: str


class _Call(NamedTuple):
    receiver: ast.expr
    call: ast.Call | None  # None for a bare `@models.register`
    default: str  # the name that is registered if none is written
    defined: str
    line: int


def registered_in(
    registry: Registry[Any], file: File, text: bytes, name: str, version: int | None
) -> Found | None:
    """Return what would register *name* with *registry* if the module in *text* was imported."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    scope = _Scope(file)
    for statement in _statements(tree.body):
        for one in _calls(statement):
            if _says(one, name, version) and scope.value(one.receiver) is registry:
                return Found(one.line, one.defined)
        scope.learn(statement)
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield what runs when the module is imported, whatever branch of an `if` or `try` it is in."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, part, []):
                    yield from _statements(inner.body if part == "handlers" else [inner])


def _calls(statement: ast.stmt) -> Iterator[_Call]:
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        for decorator in statement.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            receiver = _method(call.func if call else decorator, "register")
            if receiver is not None:
                yield _Call(receiver, call, statement.name, statement.name, statement.lineno)
        return
    value = getattr(statement, "value", None)
    if not isinstance(value, ast.Call):
        return
    lazy = _method(value.func, "lazy")
    if lazy is not None:
        yield _Call(lazy, value, "", "", statement.lineno)
    # register(Thing), or register("name", ...)(Thing)
    inner = value.func if isinstance(value.func, ast.Call) else None
    receiver = _method(inner.func if inner else value.func, "register")
    if receiver is not None and value.args:
        thing = value.args[0].id if isinstance(value.args[0], ast.Name) else ""
        yield _Call(receiver, inner or value, thing, thing, statement.lineno)


def _method(function: ast.expr, name: str) -> ast.expr | None:
    is_it = isinstance(function, ast.Attribute) and function.attr == name
    return function.value if is_it and isinstance(function, ast.Attribute) else None


def _says(one: _Call, name: str, version: int | None) -> bool:
    """Return whether a call registers *name*, as far as it is written out."""
    said = {word.arg: word.value for word in one.call.keywords} if one.call else {}
    first = one.call.args[0] if one.call and one.call.args else said.get("name")
    names = {_literal(first)} if isinstance(first, ast.Constant) else set()
    if first is None or isinstance(first, ast.Name) or names == {None}:
        # A name held by a variable is not known; the thing itself, passed directly, is registered under its own.
        names = {one.default} if first is None or _is_thing(first, one) else set()
    aliases = said.get("aliases")
    if isinstance(aliases, (ast.List, ast.Tuple, ast.Set)):
        names |= {_literal(alias) for alias in aliases.elts}
    written = said.get("version")
    number = 1 if written is None else _literal(written)
    return name in names and (version is None or version == number)


def _is_thing(first: ast.expr, one: _Call) -> bool:
    return isinstance(first, ast.Name) and bool(one.default) and first.id == one.default


def _literal(node: ast.expr | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


class _Scope:
    """What the top-level names of a module would mean, as far as its imports say and those modules are imported."""

    def __init__(self, file: File) -> None:
        parts = file.module.split(".")
        self._package = parts if file.path.endswith("__init__.py") else parts[:-1]
        self._names: dict[str, Any] = {}

    def learn(self, statement: ast.stmt) -> None:
        """Follow an import; forget a name that is bound to something else."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                self._names[alias.asname or bound] = sys.modules.get(bound, _UNKNOWN)
        elif isinstance(statement, ast.ImportFrom):
            module = sys.modules.get(self._absolute(statement), _UNKNOWN)
            for alias in statement.names:
                if alias.name == "*":
                    self._names |= vars(module) if isinstance(module, ModuleType) else {}
                else:
                    self._names[alias.asname or alias.name] = _member(module, alias.name)
        elif isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            self._names.pop(statement.name, None)
        elif not isinstance(statement, (ast.If, ast.Try)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                    self._names.pop(node.id, None)

    def value(self, expression: ast.expr) -> Any:
        """Return what a dotted expression means."""
        if isinstance(expression, ast.Name):
            return self._names.get(expression.id, _UNKNOWN)
        if isinstance(expression, ast.Attribute):
            return _member(self.value(expression.value), expression.attr)
        return _UNKNOWN

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        kept = self._package[: len(self._package) - statement.level + 1]
        return ".".join([*kept, *filter(None, [statement.module])])


def _member(owner: Any, name: str) -> Any:
    """Return an attribute of a module or class from its own dictionary: nothing that computes one runs."""
    if isinstance(owner, ModuleType):
        variables = object.__getattribute__(owner, "__dict__")
        if name in variables:
            return variables[name]
        return sys.modules.get(f"{variables.get('__name__')}.{name}", _UNKNOWN)
    return vars(owner).get(name, _UNKNOWN) if isinstance(owner, type) else _UNKNOWN
