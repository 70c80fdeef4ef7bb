"""What a new flag file does to the units: which share of them gets another variant.

In a given context most rules come down to one outcome or to one split of the unit's hash, so that the share is a matter of
arithmetic over all 2**32 hashes. Where a rule looks into the unit, or the two hash different bytes, a sample of units is asked.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.flags._residual import residual
from mlkit.flags._text import attributes_of, variant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlkit.flags._definition import Definition
    from mlkit.flags._document import Snapshot
    from mlkit.flags._flags import Flags

    Flow = tuple[str | None, str | None]
    Context = tuple[str | None, dict[str, Any]]

__all__ = ["FlagDiff", "diff"]

_ALL = 2**32


class FlagDiff(NamedTuple):
    """What becomes of one flag.

    A variant of None means that callers get the default in their code: the flag is not there, disabled, cannot be read, or
    its rule fails.

    Attributes:
        key: The flag.
        change: `"added"`, `"removed"` or `"changed"`.
        moved: Share of the units whose variant changes, within [0, 1].
        revalued: Share of the units that keep their variant and get another value from it.
        least: The smallest that `moved` can be with the new shares of the variants. More moves where the order of a split, what it
            hashes or its bucketing generation changes.
        flows: Share of the units that go from one variant to another, or keep theirs, by `(before, after)`.
        exact: Whether the shares are of all units that could be, or else of a sample.
        n_units: How many units were asked, for each context; 0 if none had to be.
        notes: What else differs: `"defaultVariant: 'off' -> 'on'"`.
        unknown: Attributes that the rules read and no context has.
    """

    key: str
    change: str
    moved: float
    revalued: float
    least: float
    flows: Mapping[tuple[str | None, str | None], float]
    exact: bool
    n_units: int
    notes: tuple[str, ...]
    unknown: tuple[str, ...]


def diff(
    old: Flags,
    new: Flags,
    *,
    contexts: Iterable[Mapping[str, Any]] = (),
    units: int | Sequence[str] = 10_000,
) -> tuple[FlagDiff, ...]:
    """Return what becomes of each flag that differs, sorted by key; of equal flags nothing.

    Args:
        old: The flags before.
        new: The flags after.
        contexts: Attributes of the units; with several, shares are their mean. One with a `"targetingKey"` stands for that unit
            alone. If there is none, units without attributes.
        units: How many made-up units (`"unit-0"`, `"unit-1"`, ...) to ask where arithmetic does not tell; or the units
            themselves, which then are asked of every flag.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> from mlkit.flags import Flags
        >>> def ramp(weight):
        ...     return Flags.from_dict({"flags": {"ranker": {"state": "ENABLED", "variants": {"v1": 1, "v2": 2},
        ...         "defaultVariant": "v1", "targeting": {"fractional": [["v2", weight], ["v1", 100 - weight]]}}}})
        >>> [found] = diff(ramp(10), ramp(25))
        >>> found.key, round(found.moved, 6), found.exact
        ('ranker', 0.15, True)

    Note:
        Rules that ask the time see the same moment on both sides. Rollouts and overrides in memory count.
    """
    before, after = _snapshot("diff(old)", old), _snapshot("diff(new)", new)
    asked = _Asked(_contexts(contexts), units)
    keys = sorted({*before.definitions, *after.definitions, *before.broken, *after.broken})
    made = []
    for key in keys:
        one, two = before.definitions.get(key), after.definitions.get(key)
        if one is not None and two is not None and one.decides_as(two):
            continue
        if one is None and two is None and (key in before.broken) is (key in after.broken):
            continue
        made.append(_compare(key, (before, after), asked))
    return tuple(made)


def _snapshot(argument: str, flags: Any) -> Snapshot:
    from mlkit.flags._flags import Flags
    from mlkit.flags._scope import view

    if not isinstance(flags, Flags):
        raise ConfigurationError(argument, flags, "flags")
    store = flags._store  # noqa: SLF001 - of this block
    return view(store).snapshot or store.current


def _contexts(contexts: Any) -> list[Context]:
    from collections.abc import Mapping

    made: list[Context] = []
    given = [contexts] if isinstance(contexts, Mapping) else list(contexts)
    for context in given or [{}]:
        if not isinstance(context, Mapping):
            raise ConfigurationError("diff(contexts=...)", context, "mappings of attributes")
        attributes = dict(context)
        unit = attributes.pop("targetingKey", None)
        if unit is not None and not isinstance(unit, str):
            raise ConfigurationError("diff(contexts=...)", unit, "a text as the targetingKey")
        made.append((unit, attributes))
    return made


class _Asked:
    """Whom a question is about: contexts and units."""

    def __init__(self, contexts: list[Context], units: int | Sequence[str]) -> None:
        self.contexts = contexts
        self.given: list[str] | None = None
        self.n = 0
        if isinstance(units, int):
            self.n = whole("diff(units=...)", units, low=1)
        else:
            self.given = [] if isinstance(units, str) else list(units)
            if not self.given or not all(isinstance(unit, str) and unit for unit in self.given):
                raise ConfigurationError(
                    "diff(units=...)", type(units).__name__, "a number, or non-empty texts"
                )
        self.now = int(current().time())

    def units(self) -> list[str]:
        return [f"unit-{index}" for index in range(self.n)] if self.given is None else self.given

    def facts(self, key: str) -> dict[str, Any]:
        return {"$flagd": {"flagKey": key, "timestamp": self.now}}


def _compare(key: str, snapshots: tuple[Snapshot, Snapshot], asked: _Asked) -> FlagDiff:
    before, after = (snapshot.definitions.get(key) for snapshot in snapshots)
    flows: dict[Flow, float] = {}
    exact, n_units = asked.given is None, 0
    for unit, attributes in asked.contexts:
        data = {**attributes, **asked.facts(key)}
        found = None if unit or asked.given else _by_arithmetic(before, after, data)
        if found is None:
            units = [unit] if unit else asked.units()
            exact = exact and unit is not None
            n_units = max(n_units, len(units))
            found = _by_asking(before, after, data, units)
        for flow, share in found.items():
            flows[flow] = flows.get(flow, 0.0) + share / len(asked.contexts)
    known = {name for _, attributes in asked.contexts for name in attributes}
    return FlagDiff(
        key,
        _change(key, *snapshots),
        sum((share for (one, two), share in flows.items() if one != two), 0.0),
        sum((share for flow, share in flows.items() if _revalued(before, after, *flow)), 0.0),
        _least(flows),
        MappingProxyType(dict(sorted(flows.items(), key=_by_size))),
        exact,
        n_units,
        tuple(_notes(key, *snapshots)),
        tuple(sorted((_read_by(before) | _read_by(after)) - known)),
    )


def _change(key: str, before: Snapshot, after: Snapshot) -> str:
    was, is_ = (key in one.definitions or key in one.broken for one in (before, after))
    return "changed" if was and is_ else "added" if is_ else "removed"


def _by_size(item: tuple[Flow, float]) -> tuple[float, str]:
    return -round(item[1], 8), str(item[0])  # what differs by a few hashes is equal


def _revalued(
    before: Definition | None, after: Definition | None, one: str | None, two: str | None
) -> bool:
    if before is None or after is None or one is None or one != two:
        return False
    old, new = before.variants[one], after.variants[one]
    return type(old) is not type(new) or bool(old != new)


def _least(flows: Mapping[Flow, float]) -> float:
    """Return half the distance between the shares of the variants before and after: who surely has to move."""
    distance: dict[str | None, float] = {}
    for (one, two), share in flows.items():
        distance[one] = distance.get(one, 0.0) - share
        distance[two] = distance.get(two, 0.0) + share
    return sum(map(abs, distance.values())) / 2


# --- who gets what -----------------------------------------------------------------------------------------------


def _by_arithmetic(
    before: Definition | None, after: Definition | None, data: dict[str, Any]
) -> dict[Flow, float] | None:
    """Return the share of each flow among all hashes, None if they do not tell."""
    one, two = _ranges(before, data), _ranges(after, data)
    if one is None or two is None:
        return None
    (hashed, left), (also, right) = one, two
    if hashed is not None and also is not None and hashed != also:
        return None
    flows: dict[Flow, int] = {}
    begin, i, j = 0, 0, 0
    while begin < _ALL:
        end = min(left[i][0], right[j][0])
        flow = (left[i][1], right[j][1])
        if end > begin:
            flows[flow] = flows.get(flow, 0) + end - begin
        i += left[i][0] == end
        j += right[j][0] == end
        begin = end
    return {flow: n / _ALL for flow, n in flows.items()}


def _ranges(
    definition: Definition | None, data: dict[str, Any]
) -> tuple[tuple[bytes, bytes, bool] | None, list[tuple[int, str | None]]] | None:
    """Return which bytes are hashed, None if none, and for each range of hashes its end and variant."""
    if definition is None or not definition.enabled:
        return None, [(_ALL, None)]
    if definition.rule is None:
        return None, [(_ALL, definition.default_variant)]
    left = residual(definition.rule, data, definition.scope)
    if left is None:
        return None
    if left.split is None:
        return None, [(_ALL, variant_of(definition, left.outcome))]
    # A hash is below an edge if `hash * total >> 32` is.
    ranges = [
        (-(-edge * _ALL // left.split.total), variant_of(definition, outcome))
        for edge, outcome in zip(left.split.edges, left.split.outcomes, strict=True)
    ]
    return (left.before, left.inside, left.headed), ranges


def _by_asking(
    before: Definition | None,
    after: Definition | None,
    data: dict[str, Any],
    units: Sequence[str],
) -> dict[Flow, float]:
    one, two = _decider(before), _decider(after)
    flows: dict[Flow, int] = {}
    for unit in units:
        data["targetingKey"] = unit
        flow = (one(data), two(data))
        flows[flow] = flows.get(flow, 0) + 1
    return {flow: n / len(units) for flow, n in flows.items()}


def _decider(definition: Definition | None) -> Callable[[dict[str, Any]], str | None]:
    if definition is None or not definition.enabled:
        return lambda _: None
    if definition.rule is None:
        return lambda _: definition.default_variant
    decide = definition.decide

    def ask(data: dict[str, Any]) -> str | None:
        try:
            return variant_of(definition, decide(data))
        except Exception:  # noqa: BLE001 - whatever a rule does with a context: callers get their default
            return None

    return ask


# --- what else differs -------------------------------------------------------------------------------------------


def _read_by(definition: Definition | None) -> frozenset[str]:
    if definition is None or not definition.enabled:
        return frozenset()
    return attributes_of(definition.rule, definition.shared.evaluators) or frozenset()


def _notes(key: str, before: Snapshot, after: Snapshot) -> Iterator[str]:
    for side, snapshot in (("before", before), ("after", after)):
        if key in snapshot.broken and key not in snapshot.definitions:
            yield f"cannot be read {side}: {clip(snapshot.broken[key], 200)}"
    one, two = before.definitions.get(key), after.definitions.get(key)
    if one is None or two is None:
        return
    if one.enabled is not two.enabled:
        yield "disabled" if one.enabled else "enabled"
    if one.kind != two.kind:
        yield f"type of the variants: {one.kind} -> {two.kind}"
    if one.default_variant != two.default_variant:
        yield f"defaultVariant: {_shown(one.default_variant)} -> {_shown(two.default_variant)}"
    yield from _differing("variant", one.variants, two.variants)
    if one.rule != two.rule:
        yield "targeting differs"
    used = (one.facts.references | two.facts.references) & {*one.shared.evaluators}
    for name in sorted(used & {*two.shared.evaluators}):
        if one.shared.evaluators[name] != two.shared.evaluators[name]:
            yield f"evaluator {_shown(name)} differs"
    if one.generation != two.generation:
        yield f"bucketing: {one.generation} -> {two.generation}"
    yield from _differing("metadata", _own_metadata(one), _own_metadata(two))


def _own_metadata(definition: Definition) -> dict[str, Any]:
    """Return a flag's metadata, with the URIs of models that it has from its set."""
    uris = {f"model.{name}" for name in definition.variants}
    own = definition.body.metadata
    return {
        name: value for name, value in definition.metadata.items() if name in own or name in uris
    }


def _differing(what: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*one, *two}):
        if name not in two:
            yield f"{what} {_shown(name)} is gone"
        elif name not in one:
            yield f"{what} {_shown(name)} is new: {_shown(two[name])}"
        elif type(one[name]) is not type(two[name]) or one[name] != two[name]:
            yield f"{what} {_shown(name)}: {_shown(one[name])} -> {_shown(two[name])}"


def _shown(value: Any) -> str:
    return clip(repr(value) if isinstance(value, str) else value, 60)
