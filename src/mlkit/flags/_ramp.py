"""A rollout as flag data: what any flagd evaluator reads, and how to take it out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.flags._check import RuleError

if TYPE_CHECKING:
    from mlkit.flags._definition import Definition

__all__ = ["WEIGHTS", "Ramp", "apply_ramp", "before_ramp", "marks", "replace_flag"]

WEIGHTS = 100_000  # the finest share is 1 / 100,000
MARK = "rollout."


class Ramp(NamedTuple):
    """Where a rollout stands.

    Attributes:
        candidate: The variant that is brought in.
        incumbent: The variant of everybody else.
        share: The candidate's share of the units, within [0, 1].
        status: As `Rollout.status`.
        seed: What is hashed with the unit, None for the flag's key.
    """

    candidate: str
    incumbent: str
    share: float
    status: str
    seed: str | None


def marks(definition: Definition) -> dict[str, Any]:
    """Return what a definition says of the rollout in it: candidate, incumbent, share and status; empty if it has none."""
    return {
        name.removeprefix(MARK): value
        for name, value in definition.metadata.items()
        if name.startswith(MARK)
    }


def apply_ramp(definition: Definition, ramp: Ramp) -> Definition:
    """Return *definition* with the ramp in place of one that it may hold, or without the candidate.

    Raises:
        RuleError: If it lacks one of the two variants, which a killed flag may.
    """
    for name in (ramp.candidate, ramp.incumbent):
        if name not in definition.variants and ramp.status != "killed":
            raise RuleError("/variants", f"the rollout needs variant {name!r}")
    document = _without_ramp(definition.document)
    # Both go to the end, so that a flag that was saved and read again is the same, in its order too.
    metadata = document.pop("metadata", {})
    rule = document.pop("targeting", None) or None
    if ramp.status == "killed":
        document["state"] = "DISABLED"
    elif ramp.status == "rolled_back":
        if rule is not None:
            rule = {"if": [{"==": [rule, ramp.candidate]}, ramp.incumbent, rule]}
    else:
        rule = _split(ramp) if rule is None else {"or": [rule, _split(ramp)]}
    if rule is not None:
        document["targeting"] = rule
    if ramp.incumbent in definition.variants:
        document["defaultVariant"] = ramp.incumbent
    document["metadata"] = {
        **metadata,
        f"{MARK}candidate": ramp.candidate,
        f"{MARK}incumbent": ramp.incumbent,
        f"{MARK}share": ramp.share,
        f"{MARK}status": ramp.status,
    }
    if ramp.seed is not None:
        document["metadata"][f"{MARK}seed"] = ramp.seed
    return definition.with_document(document)


def _split(ramp: Ramp) -> dict[str, Any]:
    weight = round(ramp.share * WEIGHTS)
    # The total never changes, so a larger share moves one edge and takes nobody away.
    pairs = [[ramp.candidate, weight], [ramp.incumbent, WEIGHTS - weight]]
    if ramp.seed is None:
        return {"fractional": pairs}
    by = {"cat": [ramp.seed, {"var": "targetingKey"}]}
    # Without the condition all requests without a unit would be one unit.
    return {"if": [{"var": "targetingKey"}, {"fractional": [by, *pairs]}, ramp.incumbent]}


def _without_ramp(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a flag as it was before a rollout was saved into it."""
    made = dict(document)
    metadata = dict(made.get("metadata") or {})
    status = metadata.get(f"{MARK}status")
    if status is None:
        return made
    made["metadata"] = {
        name: value for name, value in metadata.items() if not name.startswith(MARK)
    }
    if status == "killed":
        made["state"] = "ENABLED"
    sides = metadata.get(f"{MARK}candidate"), metadata.get(f"{MARK}incumbent")
    before = _rule_before(made.pop("targeting", None), *sides)
    if before:
        made["targeting"] = before
    return made


def _rule_before(rule: Any, candidate: object, incumbent: object) -> Any:
    """Return what *rule* was before the ramp; all of it if it has no ramp: somebody has rewritten it since."""
    match rule:
        case {"if": [{"==": [before, taken]}, given, other]}:
            if (taken, given, other) == (candidate, incumbent, before):
                return before
        case {"or": [before, split]} if _is_split(split, candidate, incumbent):
            return before
    return None if _is_split(rule, candidate, incumbent) else rule


def _is_split(rule: Any, candidate: object, incumbent: object) -> bool:
    """Whether *rule* is what `_split` returns, of whatever share and seed."""
    match rule:
        case {"if": [{"var": "targetingKey"}, split, other]} if other == incumbent:
            rule = split
    match rule:
        case {"fractional": [*_, [one, int(share)], [two, int(rest)]]}:
            return (one, two, share + rest) == (candidate, incumbent, WEIGHTS)
    return False


def replace_flag(path: str, key: str, document: dict[str, Any]) -> None:
    """Write one flag into a file, replacing the file in one step; processes that do so at once take turns.

    Raises:
        OSError: If it cannot be read or written.
        ValueError: If it does not hold flags.
    """
    import json
    import stat
    from pathlib import Path

    from mlkit.flags._shared import lock_replaced, put

    target = Path(path).resolve()  # of a symbolic link, the file it leads to
    with lock_replaced(target):
        whole = json.loads(target.read_bytes())
        whole["flags"][key] = document
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        put(target, text.encode(), sync=True, mode=stat.S_IMODE(target.stat().st_mode))


def before_ramp(definition: Definition) -> Definition:
    """Return a flag as it is without a rollout in it."""
    return definition.with_document(_without_ramp(definition.document))
