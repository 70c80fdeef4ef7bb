"""What flagd's schema has no form for, though evaluators take it: most of it never matches.

After https://flagd.dev/schema/v0/targeting.json; only what is surely not meant is told, not each liberty of JsonLogic.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.flags._rule import arguments
from mlkit.flags._version import OPERATORS as RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["lint"]

_VERSION = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_INJECTED = frozenset({"$flagd.flagKey", "$flagd.timestamp"})

Finding = tuple[str, str]


def lint(rule: Any, pointer: str) -> Iterator[Finding]:
    """Yield the place and the nature of what is surely not meant in a rule that can be used.

    Args:
        rule: The rule; an empty one is none.
        pointer: Where it is.
    """
    if rule:
        yield from _lint(rule, pointer)


def _lint(node: Any, pointer: str) -> Iterator[Finding]:
    if type(node) is list:
        for index, item in enumerate(node):
            yield from _lint(item, f"{pointer}/{index}")
        return
    if type(node) is not dict:
        return
    if not node:
        yield pointer, "an empty object is no rule, and equal to nothing"
        return
    name, given = arguments(node)
    place = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
    listed = type(node[name]) is list
    counts = _COUNTS.get(name)
    if name in _NOT_FLAGDS:
        yield place, f"flagd's schema has no {name!r}{_NOT_FLAGDS[name]}"
    elif counts is not None and not counts[0] <= len(given) <= counts[1]:
        yield place, f"{name!r} takes {_said(*counts)}, this has {len(given)}"
    elif not listed and name not in _UNLISTED:
        yield place, f"{name!r} takes a list of arguments, got {clip(node[name], 40)}"
    else:
        check = _CHECKS.get(name)
        if check is not None:
            yield from check(given, place if listed else "", place)
    yield from _lint(node[name], place)


def _said(least: int, most: int) -> str:
    if most == _ANY:
        return f"at least {least} argument{'s' if least > 1 else ''}"
    return f"{least} arguments" if least == most else f"{least} to {most} arguments"


def _rule(node: Any) -> bool:
    return type(node) is dict


def _at(inside: str, place: str, index: int) -> str:
    return f"{inside}/{index}" if inside else place


def _var(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    path = given[0] if given else None
    if type(path) is str and path.startswith("$flagd.") and path not in _INJECTED:
        message = (
            f"{clip(path, 40)!r} is never there; there are '$flagd.flagKey' and '$flagd.timestamp'"
        )
        yield _at(inside, place, 0), message


def _missing(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    for index, item in enumerate(given):
        if type(item) is not str:
            yield _at(inside, place, index), f"expected an attribute's name, got {clip(item, 40)}"


def _missing_some(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    least, names = given
    if type(least) not in {int, float}:
        yield _at(inside, place, 0), f"expected how many are needed, got {clip(least, 40)}"
    if type(names) is not list:
        yield _at(inside, place, 1), f"expected a list of names, got {clip(names, 40)}"
    else:
        yield from _missing(names, _at(inside, place, 1), "")


def _texts(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    for index, item in enumerate(given):
        if type(item) is not str and not _rule(item):
            yield _at(inside, place, index), f"expected a text or a rule, got {clip(item, 40)}"


def _versions(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    for index in (0, 2):
        item = given[index]
        if not _rule(item) and not (type(item) is str and _VERSION.fullmatch(_padded(item))):
            message = f"expected a version such as '1.2.3', got {clip(repr(item), 40)}"
            yield _at(inside, place, index), message
    if not _rule(given[1]) and (type(given[1]) is not str or given[1] not in RANGES):
        message = f"expected one of {', '.join(RANGES)}, got {clip(repr(given[1]), 40)}"
        yield _at(inside, place, 1), message


def _padded(version: str) -> str:
    """Return a version that evaluators complete, `"v1.2"`, as they do."""
    version = version[1:] if version[:1] in {"v", "V"} else version
    number = re.split(r"[-+]", version, maxsplit=1)[0]
    return number + ".0" * max(0, 2 - number.count(".")) + version[len(number) :]


def _fractional(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    if not given:
        yield place, "'fractional' takes pairs of an outcome and a weight"
        return
    first = 0 if type(given[0]) is list else 1
    if first and not _rule(given[0]):
        message = f"expected a rule to bucket by or a pair, got {clip(repr(given[0]), 40)}"
        yield _at(inside, place, 0), message
    total, known = 0, True
    for index, pair in enumerate(given[first:], first):
        if _rule(pair):
            known = False
        elif type(pair) is not list or not 1 <= len(pair) <= 2:
            known = False
            message = f"expected a pair of an outcome and a weight, got {clip(pair, 40)}"
            yield _at(inside, place, index), message
        elif len(pair) == 2 and not _rule(pair[1]):
            weight = pair[1]
            whole = type(weight) is int or (type(weight) is float and weight.is_integer())
            if not whole or weight < 0:
                known = False
                message = f"expected a whole number of at least 0, got {clip(repr(weight), 40)}"
                yield f"{_at(inside, place, index)}/1", message
            else:
                total += int(weight)
        else:
            known = known and len(pair) == 1
            total += 1
    if known and not 0 < total <= 2**31 - 1:
        yield place, f"the weights add up to {total}; nobody gets an outcome"


def _rollout(given: list[Any], inside: str, place: str) -> Iterator[Finding]:
    first = 1 if len(given) == 5 else 0
    if first and not _rule(given[0]):
        yield _at(inside, place, 0), f"expected a rule to bucket by, got {clip(repr(given[0]), 40)}"
    begin, end = given[first : first + 2]
    for index, moment in ((first, begin), (first + 1, end)):
        if type(moment) is not int:
            message = f"expected a time in whole seconds since 1970, got {clip(repr(moment), 40)}"
            yield _at(inside, place, index), message
    if type(begin) is int and type(end) is int and end <= begin:
        yield place, f"it ends at {end}, before it begins at {begin}"


_TWO = ("==", "===", "!=", "!==", ">", ">=", "map", "filter", "all", "none", "some", "in")
_ANY = 2**31
_COUNTS = {
    **dict.fromkeys((*_TWO, "/", "%", "missing_some"), (2, 2)),
    **dict.fromkeys(("and", "or", "if", "cat", "merge", "max", "min", "+", "-"), (1, _ANY)),
    "*": (2, _ANY),
    "<": (2, 3),
    "<=": (2, 3),
    "substr": (2, 3),
    "reduce": (3, 3),
    "starts_with": (2, 2),
    "ends_with": (2, 2),
    "sem_ver": (3, 3),
    "rollout": (3, 5),
}
# What flagd's evaluators know and its schema does not, and what to write instead.
_NOT_FLAGDS = {"?:": "; write 'if'", "log": ""}
# What takes one argument without brackets there, or says more of its own about it.
_UNLISTED = frozenset({"!", "!!", "var", "$ref", "fractional", "rollout"})
_CHECKS: dict[str, Callable[[list[Any], str, str], Iterator[Finding]]] = {
    "var": _var,
    "missing": _missing,
    "missing_some": _missing_some,
    "starts_with": _texts,
    "ends_with": _texts,
    "sem_ver": _versions,
    "fractional": _fractional,
    "rollout": _rollout,
}
