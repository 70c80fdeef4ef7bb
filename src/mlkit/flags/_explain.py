"""Why a flag answers as it does: the rule as a tree, each node with its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip, did_you_mean, listing
from mlkit.errors import ConfigurationError
from mlkit.flags._bucket import MAX_WEIGHT, parse_split
from mlkit.flags._coerce import truthy
from mlkit.flags._flag import Details, Flag, as_unit
from mlkit.flags._fractional import hash_key, rollout_now
from mlkit.flags._logic import compile_rule
from mlkit.flags._operators import limited
from mlkit.flags._rule import Scope, arguments
from mlkit.flags._scope import view
from mlkit.flags._store import Declared
from mlkit.flags._tally import Tally
from mlkit.telemetry import Counter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.flags._store import Store

__all__ = ["Explanation", "explain"]

_MAX_LINES = 400


class Explanation(NamedTuple):
    """Why a flag answers as it does; `print` it.

    Attributes:
        key: The flag.
        details: The answer; its value is the variant's, whatever type a handle would want.
        lines: The rule, one node a line, indented by depth. It shows attributes that the rule reads.
    """

    key: str
    details: Details[Any]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        details = self.details
        trouble = f", {details.error}: {details.message}" if details.error else ""
        head = f"{self.key} -> {details.variant} = {clip(details.value, 60)} ({details.reason}{trouble})"
        return "\n".join([head, *self.lines])


class _AnyKind:
    """Whatever a variant holds."""

    name = wanted = "any"
    names_default = False

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> Any:
        del variant, metadata
        return value


def explain(
    store: Store, key: str, unit: str | int | None, attributes: dict[str, Any]
) -> Explanation:
    """Return why flag *key* answers as it does; see `Flags.explain`."""
    snapshot = view(store).snapshot or store.current
    definition = snapshot.definitions.get(key) if isinstance(key, str) else None
    if definition is None:
        known = snapshot.definitions
        near = did_you_mean(key, known) if isinstance(key, str) else ""
        broken = snapshot.broken.get(key) if isinstance(key, str) else None
        raise ConfigurationError(
            "Flags.explain(key)",
            key,
            "a flag that can be read",
            hint=broken or near.removeprefix("; ") or f"there are {listing(known)}",
        )
    kind = _AnyKind()
    uncounted = Declared(kind, Tally("explained", flag=key), Counter("failed", flag=key))
    handle: Flag[Any] = Flag(store, key, None, kind, uncounted)
    details = handle.details(unit, **attributes)
    lines: list[str] = []
    if details.reason not in {"OVERRIDE", "STATIC", "DISABLED"} and definition.rule is not None:
        try:
            data = {**attributes, "targetingKey": as_unit(unit), "$flagd": store.facts(key)}
            _tell(definition.rule, data, definition.scope, 1, lines)
        except Exception as error:  # noqa: BLE001 - the answer already says what is wrong
            lines.append(f"  stopped: {type(error).__name__}: {clip(str(error), 120)}")
    return Explanation(key, details, tuple(lines[:_MAX_LINES]))


def _tell(node: Any, data: Any, scope: Scope, depth: int, lines: list[str]) -> Any:
    """Write one line for a node and those below it that were looked at, and return its value."""
    if len(lines) >= _MAX_LINES:
        return None
    value = limited(compile_rule(node, scope))(data)
    if type(node) is not dict or not node:
        return value
    name, given = arguments(node)
    shown = (
        clip(given[0] if type(given[0]) is str else repr(given[0]), 60)
        if name in {"var", "$ref"} and given
        else ""
    )
    place = len(lines)
    lines.append("")
    note = ""
    if name == "$ref":
        _tell(scope.evaluators[given[0]], data, scope, depth + 1, lines)
    elif name in {"if", "?:"}:
        _tell_if(given, data, scope, depth, lines)
    elif name in {"and", "or"}:
        for item in given:
            if truthy(_tell(item, data, scope, depth + 1, lines)) is (name == "or"):
                break
    elif name in {"map", "filter", "all", "some", "none", "reduce"}:
        _tell(given[0] if given else None, data, scope, depth + 1, lines)
    else:
        values = [_tell(item, data, scope, depth + 1, lines) for item in given]
        if name == "fractional" and values:
            note = _split_note(values, data, scope)
        elif name == "rollout":
            note = _rollout_note(given, values, data, scope)
    result = clip(repr(value) if type(value) is str else value, 60)
    lines[place] = f"{'  ' * depth}{name} {shown}{shown and ' '}-> {result}{note}"
    return value


def _tell_if(given: list[Any], data: Any, scope: Scope, depth: int, lines: list[str]) -> None:
    for position in range(0, len(given) - 1, 2):
        if truthy(_tell(given[position], data, scope, depth + 1, lines)):
            _tell(given[position + 1], data, scope, depth + 1, lines)
            return
    if len(given) % 2:
        _tell(given[-1], data, scope, depth + 1, lines)


def _split_note(values: list[Any], data: Any, scope: Scope) -> str:
    whole = type(values[0]) is list or (scope.generation == "v2" and type(values[0]) is not str)
    split = parse_split(values if whole else values[1:])
    hashed = hash_key(values[0], data, scope)
    if split is None or hashed is None:
        return "  [cannot be bucketed]"
    edges, begin = [], 0
    for edge, outcome in zip(split.edges, split.outcomes, strict=True):
        edges.append(f"{clip(outcome, 20)} [{begin}, {edge})")
        begin = edge
    return f"  [{scope.generation} hash 0x{hashed:08x}, bucket {split.bucket(hashed)} of {split.total}: {', '.join(edges[:8])}]"


def _rollout_note(given: list[Any], values: list[Any], data: Any, scope: Scope) -> str:
    keyed = bool(given) and type(given[0]) not in {int, float}
    times = values[1:3] if keyed else values[:2]
    by = values[0] if keyed else None
    hashed = hash_key([] if by is None else by, data, scope)
    now = rollout_now(data)
    numbers = len(times) == 2 and all(type(one) in {int, float} for one in times)
    if hashed is None or now is None or not numbers:
        return "  [cannot be placed in time]"
    begin, length = int(times[0]), int(times[1]) - int(times[0])
    if not 0 < length <= MAX_WEIGHT:
        return "  [it has no time to go by]"
    # Its turn has come once more than this has gone by.
    turn = begin + ((hashed * length) >> 32) + 1
    done = min(max((now - begin) / length, 0.0), 1.0)
    return (
        f"  [{scope.generation} hash 0x{hashed:08x}, its turn is at {_moment(turn)}, "
        f"now is {_moment(now)}: {100 * done:.4g} % of the way]"
    )


def _moment(seconds: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return str(seconds)
