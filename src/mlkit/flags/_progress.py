"""How far a rollout is, and the arguments that say where it goes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import fraction, number
from mlkit._suggest import did_you_mean, listing
from mlkit.errors import ConfigurationError
from mlkit.flags._ramp import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ACTIVE",
    "Decision",
    "State",
    "as_bool",
    "as_metrics",
    "as_steps",
    "further",
    "one_of",
]

ACTIVE = ("ready", "ramping", "full")
_RANKS = {"rolled_back": 1, "killed": 2}


class Decision(NamedTuple):
    """One step of a rollout, for the record.

    Attributes:
        time: Unix time in seconds.
        action: `"started"`, `"advanced"`, `"held"`, `"rolled_back"`, `"killed"`, or `"followed"` for what another process
            decided.
        share: The candidate's share of the units after it.
        reason: Why.
        evidence: The guard's figures at that time: `"error_rate.e_value"`, `"error_rate.candidate_n"`, ...
        digest: Digest of the flags after it.
    """

    time: float
    action: str
    share: float
    reason: str
    evidence: Mapping[str, float]
    digest: str


class State(NamedTuple):
    """How far a rollout is.

    Attributes:
        status: As `Rollout.status`.
        step: Index of the present step, -1 before the first.
        since: Monotonic time at which it began.
        turn: How many decisions changed something before.
    """

    status: str
    step: int
    since: float
    turn: int = 0


def further(
    state: State, steps: Sequence[float], status: object, share: object, since: float
) -> State | None:
    """Return the state that a file or another process tells of, None if it is not further than *state*.

    An end is further than any share, and a greater share than a smaller one: nobody who has the candidate loses it but by
    an end. A share that is no step of this rollout counts as the one below it.
    """
    rank = _RANKS.get(str(status), 0)
    mine = _RANKS.get(state.status, 0)
    if rank > mine:
        return State(str(status), -1, since, state.turn + 1)
    if mine or not isinstance(share, (int, float)) or status not in {"ramping", "full"}:
        return None
    step = len([one for one in steps if one <= share]) - 1
    if step <= state.step:
        return None
    name = "full" if step == len(steps) - 1 else "ramping"
    return State(name, step, since, state.turn + 1)


def as_steps(steps: Sequence[float]) -> tuple[float, ...]:
    """Return the shares of a rollout, checked."""
    try:
        made = tuple(steps)
    except TypeError:
        raise ConfigurationError("rollout(steps=...)", steps, "a sequence of shares") from None
    made = tuple(fraction("rollout(steps=...)", share) for share in made)
    weights = [0, *(round(share * WEIGHTS) for share in made)]
    if len(weights) == 1 or any(one >= two for one, two in pairwise(weights)):
        raise ConfigurationError(
            "rollout(steps=...)", made, f"growing shares, at least 1 / {WEIGHTS} apart"
        )
    return made


def one_of(argument: str, name: object, variants: Any) -> str:
    """Return the name of a variant, checked."""
    if not isinstance(name, str) or name not in variants:
        near = did_you_mean(name, variants) if isinstance(name, str) else ""
        raise ConfigurationError(
            argument,
            name,
            "a variant of the flag",
            hint=near.removeprefix("; ") or f"there are {listing(variants)}",
        )
    return name


def as_bool(value: object) -> bool:
    """Return what was observed, checked."""
    if isinstance(value, bool) or (
        type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}
    ):
        return bool(value)
    raise ConfigurationError("observe(ok=...)", value, "True or False")


def as_metrics(
    metrics: Mapping[str, float] | None, bounds: Mapping[str, tuple[float, float]]
) -> Mapping[str, float]:
    """Return the figures of a request that a guard asks for, checked against their bounds."""
    if not metrics:
        return {}
    if unknown := [name for name in metrics if name not in bounds]:
        near = did_you_mean(str(unknown[0]), bounds).removeprefix("; ")
        raise ConfigurationError(
            "observe(metrics=...)", unknown[0], "the metric of a Mean of the guard", hint=near
        )
    return {
        name: number(
            f"observe(metrics={{{name!r}: ...}})",
            value,
            f"a number from {bounds[name][0]:g} to {bounds[name][1]:g}",
            low=bounds[name][0],
            high=bounds[name][1],
        )
        for name, value in metrics.items()
    }
