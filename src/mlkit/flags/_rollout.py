"""A model version brought to more and more units, and taken back when the evidence says so."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._arguments import fraction, seconds
from mlkit._clock import current
from mlkit._suggest import did_you_mean, listing
from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags._evidence import Case, Trial
from mlkit.flags._guard import Guard
from mlkit.flags._ramp import WEIGHTS, Ramp, apply_ramp, marks, replace_flag
from mlkit.flags._scope import view
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlkit.flags._definition import Definition
    from mlkit.flags._store import Store

__all__ = ["Decision", "Rollout"]

_ACTIVE = ("ready", "ramping", "full")


class Decision(NamedTuple):
    """One step of a rollout, for the record.

    Attributes:
        time: Unix time in seconds.
        action: `"started"`, `"advanced"`, `"held"`, `"rolled_back"` or `"killed"`.
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


class _State(NamedTuple):
    status: str
    step: int
    since: float
    turn: int = 0  # how many decisions changed something before


@final
class Rollout:
    """A candidate's way from no units to all of them.

    `advance` goes to the next share; units that have the candidate keep it (the ramp is monotone). `observe` takes in how
    a request went; when the guard has enough evidence, the candidate is taken from everybody at once, and stays away.
    What other rules of the flag decide is kept: the ramp takes the units that they leave to the default variant; a
    rollback also takes the candidate from units that a rule gave it to.

    The flags change in memory, for this process; `save` writes the flag to the file, for the others. A reload of the
    file keeps the rollout, and a flag disabled there stays disabled. A file without one of the two variants is taken as it
    is, with the event `flags.rollout.unusable`; only a killed flag stays disabled then too. Of several rollouts of a flag
    one at a time is under way: the others' decisions are `"held"`, but for `kill`.

    Thread-safe. After a fork each process has its own state. It does not pickle. Made by `ModelFlag.rollout`.

    Examples:
        >>> from mlkit.flags import ErrorRate, Flags, Guard
        >>> flags = Flags.from_dict({"flags": {"ranker": {
        ...     "state": "ENABLED", "variants": {"v1": "models:/ranker/1", "v2": "models:/ranker/2"},
        ...     "defaultVariant": "v1"}}})
        >>> model = flags.model("ranker", default="v1")
        >>> rollout = model.rollout("v2", steps=[0.5, 1.0], guard=Guard(ErrorRate(max_rate=0.05)))
        >>> rollout.advance().share
        0.5
        >>> for user in range(100):
        ...     details = model.details(user)
        ...     rollout.observe(details.variant, ok=details.variant == "v1")
        >>> rollout.status, model.assign(range(100)).counts()
        ('rolled_back', {'v1': 100})
    """

    key: str
    candidate: str
    incumbent: str
    steps: tuple[float, ...]

    def __init__(
        self,
        store: Store,
        key: str,
        candidate: str,
        *,
        steps: Sequence[float],
        min_step: float,
        guard: Guard | None,
        incumbent: str | None,
        seed: str | None,
    ) -> None:
        definition = store.document.definitions.get(key)
        if definition is None:
            near = did_you_mean(key, store.document.definitions).removeprefix("; ")
            raise ConfigurationError("rollout of flag", key, "a flag that can be read", hint=near)
        variants = definition.variants
        _one_of("rollout(candidate)", candidate, variants)
        ramp = marks(store.current.definitions.get(key, definition))
        # Whom a finished rollout brought in is who serves now, whatever the flag's default variant.
        finished = ramp.get("share") == 1.0 and ramp.get("candidate") != candidate
        serving = ramp.get("candidate") if finished else definition.default_variant
        incumbent = _one_of(
            "rollout(incumbent=...)", serving if incumbent is None else incumbent, variants
        )
        if incumbent == candidate:
            raise ConfigurationError(
                "rollout(incumbent=...)", incumbent, "another variant than the candidate"
            )
        min_step = seconds("rollout(min_step=...)", min_step, zero=True)
        if guard is not None and not isinstance(guard, Guard):
            raise ConfigurationError("rollout(guard=...)", guard, "a Guard")
        if seed is not None and (not isinstance(seed, str) or not seed):
            raise ConfigurationError("rollout(seed=...)", seed, "a non-empty text, or None")
        self.key, self.candidate, self.incumbent = key, candidate, incumbent
        self.steps = _steps(steps)
        self._store, self._min_step, self._guard, self._seed = store, min_step, guard, seed
        self._variants = frozenset(variants)
        self._case = None if guard is None else Case(guard)
        self._lock = threading.Lock()
        self._decided: dict[int, Decision] = {}
        self._state = self._saved(definition)
        owner = store.rollouts.get(key)
        ours = (ramp.get("candidate"), ramp.get("incumbent")) == (candidate, incumbent)
        if ramp.get("status") == "ramping" and (owner is not None or not ours):
            raise ConfigurationError(
                "rollout of flag",
                key,
                f"a flag without a rollout under way; that of {ramp['candidate']!r} is at "
                f"{ramp.get('share', 0):g}",
                hint="roll it back or bring it to 1.0 first",
            )
        store.join(self)
        if self._state.status != "ready":
            store.claim(self, force=True)
            self._apply("started", "it was saved in the file", self._state)

    @property
    def status(self) -> str:
        """`"ready"`, `"ramping"`, `"full"` (at the last step), `"rolled_back"` or `"killed"`; the last two are final."""
        return self._state.status

    @property
    def share(self) -> float:
        """The candidate's share of the units, within [0, 1]."""
        return self._share(self._state)

    @property
    def evidence(self) -> Mapping[str, float]:
        """The guard's figures now; an `e_value` that reaches `threshold` rolls back."""
        with self._lock:
            return MappingProxyType({} if self._case is None else self._case.figures())

    @property
    def history(self) -> tuple[Decision, ...]:
        """Every decision that changed something, oldest first."""
        with self._lock:
            return tuple(decision for _, decision in sorted(self._decided.items()))

    def advance(self) -> Decision:
        """Go to the next share, if the present one lasted long enough.

        Returns:
            What was decided: `"advanced"`, or `"held"` with the reason; held decisions are not in `history`.
        """
        now = current().monotonic()
        with self._lock:
            state = self._state
            waited = now - state.since
            if state.status not in _ACTIVE:
                held = f"the rollout is {state.status}"
            elif state.status == "full":
                held = "there is no further step"
            elif state.status == "ramping" and waited < self._min_step:
                held = f"the step has lasted {waited:.3g} s of {self._min_step:g} s"
            else:
                held = self._claim()
            if not held:
                step = state.step + 1
                status = "full" if step == len(self.steps) - 1 else "ramping"
                state = self._state = _State(status, step, now, state.turn + 1)
        if held:
            return self._decision("held", held, state)
        return self._apply("advanced", "advance was called", state)

    def observe(self, variant: str | None, *, ok: bool, latency: float | None = None) -> None:
        """Take in how one request went; may roll back.

        Args:
            variant: The variant that served it, `details(...).variant`, whatever it is. Only candidate and incumbent count.
            ok: Whether it went well.
            latency: Seconds it took, at least 0, or None.

        Raises:
            ConfigurationError: If an argument is wrong, *variant* too if no handle on the flag can give it.
        """
        ok = _as_bool(ok)
        if latency is not None:
            latency = seconds("observe(latency=...)", latency, zero=True)
        if variant is None:
            return
        if variant not in (self.candidate, self.incumbent):
            self._check_variant(variant)
            return
        if self._case is None or self._guard is None:
            return
        with self._lock:
            state = self._state
            if state.status not in _ACTIVE:
                return
            # The share as it is served, in whole weights.
            share = round(self._share(state) * WEIGHTS) / WEIGHTS
            enough = self._case.add(Trial(variant == self.candidate, ok, latency, share))
            if not enough or self._claim():
                return
            state = self._state = state._replace(status="rolled_back", turn=state.turn + 1)
        threshold = self._guard.threshold
        self._apply(
            "rolled_back",
            f"the guard {self._guard} has an e-value of at least {threshold:g}",
            state,
        )

    def rollback(self, reason: str) -> Decision:
        """Take the candidate from every unit, for good.

        Args:
            reason: Why, for the record.

        Returns:
            The decision; `"held"` if the rollout has already ended.
        """
        return self._end("rolled_back", "rollback", reason)

    def kill(self, reason: str) -> Decision:
        """Disable the whole flag: every caller gets the default of its handle, whatever the rules say.

        Args:
            reason: Why, for the record.

        Returns:
            The decision; `"held"` if it was killed before.
        """
        return self._end("killed", "kill", reason)

    def save(self) -> None:
        """Write the flag as it is now to the file it came from, replacing the file in one step.

        Other flags and evaluators stay, and the file's mode; a flagd daemon that reads the file decides the same. An edit
        of this flag that was not loaded yet is overwritten, and of two processes that save at once one may undo the other.

        Raises:
            FlagFileError: If there is no file, it no longer has the flag, or it cannot be read or written.
        """
        store = self._store
        if store.file is None:
            raise FlagFileError(
                store.source, "there is no file to save to; the flags were made from data"
            )
        definition = store.current.definitions.get(self.key)
        if definition is None:
            raise FlagFileError(store.source, f"flag {self.key!r} is no longer there to be saved")
        try:
            replace_flag(str(store.file.path), self.key, definition.document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FlagFileError(store.source, f"cannot be saved: {error}") from error

    def after_fork(self) -> None:
        """Make a child's copy usable, whatever a thread of the parent was doing; for `mlkit.flags` itself."""
        self._lock = threading.Lock()

    def _end(self, status: str, verb: str, reason: str) -> Decision:
        if not isinstance(reason, str) or not reason:
            raise ConfigurationError(f"{verb}(reason)", reason, "a non-empty text")
        with self._lock:
            state = self._state
            held = f"the rollout is {state.status}" if state.status in {"killed", status} else ""
            held = held or self._claim(force=status == "killed")
            if not held:
                state = self._state = state._replace(status=status, turn=state.turn + 1)
        if held:
            return self._decision("held", held, state)
        return self._apply(status, reason, state)

    def _claim(self, *, force: bool = False) -> str:
        """Make this the rollout of its flag, or return why it cannot be."""
        other = self._store.claim(self, force=force)
        if other is None:
            return ""
        if self.status == "ready":
            return f"the rollout of {other.candidate!r} is under way"
        return f"the rollout of {other.candidate!r} has taken its place"

    def _apply(self, action: str, reason: str, state: _State) -> Decision:
        change = self._store.patch(self.key, self._patch)
        decision = self._decision(action, reason, state)
        if change is not None:  # a listener may have changed the flags again
            decision = decision._replace(digest=change.after)
        with self._lock:
            self._decided[state.turn] = decision
        facts: dict[str, str | float | bool | None] = dict(decision.evidence)
        facts |= {"candidate": self.candidate, "share": decision.share, "reason": reason}
        emit(f"flags.rollout.{action}", self.key, digest=decision.digest, **facts)
        return decision

    def _decision(self, action: str, reason: str, state: _State) -> Decision:
        digest = self._store.current.digest
        return Decision(current().time(), action, self._share(state), reason, self.evidence, digest)

    def _check_variant(self, variant: str) -> None:
        """Refuse a name that no handle gives; in trouble a handle gives its default, which need not be a variant."""
        if isinstance(variant, str):
            declared = self._store.declared.get(self.key)
            if variant in self._variants or (declared is not None and variant in declared.defaults):
                return
            if view(self._store).values.get(self.key) == variant:
                return
        definition = self._store.document.definitions.get(self.key)
        _one_of(
            "observe(variant)",
            variant,
            definition.variants if definition is not None else self._variants,
        )

    def _share(self, state: _State) -> float:
        return self.steps[state.step] if state.step >= 0 and state.status in _ACTIVE else 0.0

    def _saved(self, definition: Definition) -> _State:
        saved = marks(definition)
        now = current().monotonic()
        if (saved.get("candidate"), saved.get("incumbent")) != (self.candidate, self.incumbent):
            return _State("ready", -1, now)
        share, status = saved.get("share"), str(saved.get("status"))
        if status in {"rolled_back", "killed"}:
            return _State(status, -1, now)
        # A share that is no step of this rollout counts as the one below it: nobody is taken away who need not be.
        step = (
            sum(1 for known in self.steps if isinstance(share, (int, float)) and known <= share) - 1
        )
        if step < 0:
            return _State("ready", -1, now)
        return _State("full" if step == len(self.steps) - 1 else "ramping", step, now)

    def _patch(self, definition: Definition) -> Definition:
        state = self._state
        ramp = Ramp(self.candidate, self.incumbent, self._share(state), state.status, self._seed)
        return apply_ramp(definition, ramp)

    def __repr__(self) -> str:
        return (
            f"<Rollout of {self.candidate!r} on {self.key!r}: {self.status}, share {self.share:g}>"
        )


def _steps(steps: Sequence[float]) -> tuple[float, ...]:
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


def _one_of(argument: str, name: object, variants: Any) -> str:
    if not isinstance(name, str) or name not in variants:
        near = did_you_mean(name, variants) if isinstance(name, str) else ""
        raise ConfigurationError(
            argument,
            name,
            "a variant of the flag",
            hint=near.removeprefix("; ") or f"there are {listing(variants)}",
        )
    return name


def _as_bool(value: object) -> bool:
    if isinstance(value, bool) or (
        type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}
    ):
        return bool(value)
    raise ConfigurationError("observe(ok=...)", value, "True or False")
