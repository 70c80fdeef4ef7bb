"""flagd's `fractional` and `rollout`: outcomes weighted by numbers or by the time, chosen by a hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.flags._bucket import (
    MAX_WEIGHT,
    cbor,
    hash_bytes,
    parse_split,
    text_head,
    unit_payload,
    unit_prefix,
)
from mlkit.flags._rule import literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.flags._bucket import Split
    from mlkit.flags._rule import Scope

    Code = Callable[[Any], Any]

__all__ = ["compile_fractional", "compile_rollout", "hash_key", "rollout_now"]

_UNIT = "targetingKey"
_TABLE = 1_000  # percent and permille; a larger total is looked up by its edges


def hash_key(key: Any, data: Any, scope: Scope) -> int | None:
    """Return the hash that places *key*, None if it cannot be hashed.

    Args:
        key: What the rule gives to bucket by; a list is not one, then the flag and the unit in *data* are.
        data: The data of the rule.
        scope: Where the rule stands.
    """
    try:
        if type(key) is list or (scope.generation == "v2" and type(key) is not str):
            unit = data.get(_UNIT) if type(data) is dict else None
            if type(unit) is not str or not unit:
                return None
            flag = scope.flag_key if not scope.inner else _inner_key(data)
            return hash_bytes(
                unit_payload(unit, unit_prefix(flag, scope.generation), scope.generation)
            )
        if key is None or (key == "" and scope.generation == "v2"):
            return None
        return hash_bytes(key.encode() if scope.generation == "v2" else cbor(key))
    except UnicodeEncodeError:
        return None


def compile_fractional(given: list[Any], codes: Sequence[Code], scope: Scope) -> Code:
    """Return a function of the data that chooses an outcome.

    Args:
        given: The arguments as they are written.
        codes: The arguments, compiled.
        scope: Where the rule stands.
    """
    if not given:
        return _nothing
    first = given[0]
    whole = given if type(first) is list else given[1:]
    if not all(map(literal, whole)):
        return _dynamic(codes, scope)
    split = parse_split(whole)
    if type(first) is list:
        if split is None:
            return _nothing
        return _inner_split(split, scope) if scope.inner else _unit_split(split, scope)
    key = codes[0]

    def run(data: Any) -> Any:
        by = key(data)
        if split is None or type(by) is list or (scope.generation == "v2" and type(by) is not str):
            return _split_by(by, whole, data, scope)
        hashed = hash_key(by, data, scope)
        return None if hashed is None else split.choose(hashed)

    return run


def compile_rollout(given: list[Any], codes: Sequence[Code], scope: Scope) -> Code:
    """Return a function of the data that goes from one outcome to another in the course of time.

    The arguments are `[by?, begin, end, from?, to]`, times in seconds since 1970; without *from* it goes from the default
    variant. After https://flagd.dev, architecture decision "Rollout Operator": `(hash * (end - begin)) >> 32` below the
    seconds gone by gives *to*.

    Args:
        given: The arguments as they are written.
        codes: The arguments, compiled.
        scope: Where the rule stands.
    """
    keyed = bool(given) and type(given[0]) not in {int, float}
    by, rest = (codes[0], codes[1:]) if keyed else (_default_key, codes)
    if not 3 <= len(rest) <= 4 or (keyed and type(given[0]) not in {dict, type(None)}):
        return _nothing  # as for flagd, a constant is nothing to bucket by
    before, after = (rest[2], rest[3]) if len(rest) == 4 else (_nothing, rest[2])

    def run(data: Any) -> Any:
        begin, end, key = rest[0](data), rest[1](data), by(data)
        now = rollout_now(data)
        if now is None or type(begin) not in {int, float} or type(end) not in {int, float}:
            return None
        gone, length = now - int(begin), int(end) - int(begin)
        hashed = hash_key([] if key is None else key, data, scope)
        if hashed is None or not 0 < length <= MAX_WEIGHT:
            return None
        return after(data) if (hashed * length) >> 32 < gone else before(data)

    return run


def _default_key(_: Any) -> list[Any]:
    return []


def rollout_now(data: Any) -> int | None:
    """Return the time that the rule sees, in seconds since 1970."""
    facts = data.get("$flagd") if type(data) is dict else None
    now = facts.get("timestamp") if type(facts) is dict else None
    return now if type(now) is int else None


def _unit_split(split: Split, scope: Scope) -> Code:
    """Return the common case: fixed weights, by the flag and the unit."""
    from mmh3 import mmh3_32_uintdigest as hashed

    total, headed = split.total, scope.generation == "v3"
    try:
        prefix = unit_prefix(scope.flag_key, scope.generation)
    except UnicodeEncodeError:
        return _nothing
    # What goes before a unit of each length that ids have.
    before = [prefix + text_head(length) if headed else prefix for length in range(64)]
    table = split.table() if total <= _TABLE else None

    def run(data: Any) -> Any:
        unit = data.get(_UNIT)
        if type(unit) is not str or not unit:
            return None
        try:
            body = unit.encode()
        except UnicodeEncodeError:
            return None
        length = len(body)
        head = before[length] if length < 64 else prefix + (text_head(length) if headed else b"")
        number = hashed(head + body)
        return split.choose(number) if table is None else table[(number * total) >> 32]

    return run


def _inner_split(split: Split, scope: Scope) -> Code:
    def run(data: Any) -> Any:
        hashed = hash_key([], data, scope)
        return None if hashed is None else split.choose(hashed)

    return run


def _dynamic(codes: Sequence[Code], scope: Scope) -> Code:
    def run(data: Any) -> Any:
        first, *rest = [code(data) for code in codes]
        return _split_by(first, rest, data, scope)

    return run


def _split_by(first: Any, rest: Sequence[Any], data: Any, scope: Scope) -> Any:
    """Return the outcome for evaluated arguments; what is no key to bucket by is the first pair."""
    shorthand = type(first) is list or (scope.generation == "v2" and type(first) is not str)
    split = parse_split([first, *rest] if shorthand else rest)
    hashed = hash_key(first, data, scope)
    return None if split is None or hashed is None else split.choose(hashed)


def _inner_key(data: dict[str, Any]) -> str:
    facts = data.get("$flagd")
    key = facts.get("flagKey") if type(facts) is dict else None
    return key if type(key) is str else ""


def _nothing(_: Any) -> None:
    return None
