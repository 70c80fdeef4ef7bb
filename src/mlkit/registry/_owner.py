"""Whether two registrations are the same definition run again, or two things that want one name."""

from __future__ import annotations

from typing import Any

__all__ = ["same_definition", "target_of"]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_DEEPEST = 4  # of what a closure captures: a decorator around a decorator around a function


def target_of(factory: Any) -> str:
    """Return where *factory* is defined, `"module:qualname"`; for a lambda with its line, for any other object its type."""
    module = getattr(factory, "__module__", None)
    name = getattr(factory, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        kind = type(factory)
        return f"{kind.__module__}:{kind.__qualname__}"
    code = getattr(factory, "__code__", None)
    if name.endswith("<lambda>") and code is not None:
        return f"{module}:{name} at line {code.co_firstlineno}"
    return f"{module}:{name}"


def same_definition(first: Any, second: Any, *, depth: int = 0) -> bool:
    """Return whether *second* is *first* defined again: by a notebook cell, by a reload.

    A class or function at module level is the same if its module and qualified name are. One that another function
    made (a lambda, a closure) has no name of its own: it must come from the same lines and hold the same values. A
    `functools.partial` is the same if its function and arguments are; any other object is only itself.
    """
    if first is second:
        return True
    # A reload renews metaclasses too.
    classes = isinstance(first, type) and isinstance(second, type)
    if (type(first) is not type(second) and not classes) or depth > _DEEPEST:
        return False
    if type(first) in _ATOMS:
        return bool(first == second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(
            same_definition(one, other, depth=depth + 1)
            for one, other in zip(first, second, strict=True)
        )
    if hasattr(first, "func") and hasattr(first, "keywords"):  # a partial, without the import
        return all(
            same_definition(one, other, depth=depth + 1)
            for one, other in (
                (first.func, second.func),
                (first.args, second.args),
                (tuple(sorted(first.keywords.items())), tuple(sorted(second.keywords.items()))),
            )
        )
    name = getattr(first, "__qualname__", None)
    if not isinstance(name, str) or not callable(first):
        return False
    if target_of(first).partition(" ")[0] != target_of(second).partition(" ")[0]:
        return False
    return "<" not in name or _same_making(first, second, depth)


def _same_making(first: Any, second: Any, depth: int) -> bool:
    if not isinstance(first, type):
        return _same_function(first, second, (first, second), depth)
    ours, theirs = vars(first), vars(second)
    return ours.keys() == theirs.keys() and all(
        _same_function(_function(ours[key]), _function(theirs[key]), (first, second), depth)
        for key in ours
    )


def _function(attribute: Any) -> Any:
    return getattr(attribute, "__func__", None) or getattr(attribute, "fget", None) or attribute


def _same_function(first: Any, second: Any, makers: tuple[Any, Any], depth: int) -> bool:
    code = getattr(first, "__code__", None)
    if code is None:
        return True  # no function: a value in the body of a class is no part of what it is
    if code != getattr(second, "__code__", None):  # the text, and the line it begins in
        return False
    if code.co_filename != second.__code__.co_filename:
        return False
    return _same_values(first.__defaults__, second.__defaults__, makers, depth) and _same_values(
        _captured(first), _captured(second), makers, depth
    )


def _captured(function: Any) -> tuple[Any, ...]:
    values = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            values.append(None)
    return tuple(values)


def _same_values(first: Any, second: Any, makers: tuple[Any, Any], depth: int) -> bool:
    first, second = first or (), second or ()
    return len(first) == len(second) and all(
        # What holds itself (`__class__`, a recursive function) holds the same.
        (one is makers[0] and other is makers[1]) or same_definition(one, other, depth=depth + 1)
        for one, other in zip(first, second, strict=True)
    )
