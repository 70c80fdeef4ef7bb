"""A model version brought to more and more units, and taken back when the evidence says so."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._clock import current
from mlkit._suggest import did_you_mean, listing
from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags._flag import Flag
from mlkit.flags._guard import Guard, Trial
from mlkit.flags._ramp import MARK, WEIGHTS, Ramp, apply_ramp, replace_flag
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlkit.flags._definition import Definition
    from mlkit.flags._store import Store

__all__ = ["Decision", "ModelFlag", "Rollout"]

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


@final
class ModelFlag(Flag[str]):
    """A handle on the version of a model: it gives a URI, and `details` the variant's name.

    On any trouble it gives its default variant, so that `details(...).variant` is always a name. As safe to share as
    `Flag`. Made by `Flags.model`.
    """

    __slots__ = ()

    def rollout(
        self,
        candidate: str,
        *,
        steps: Sequence[float] = (0.01, 0.05, 0.25, 1.0),
        min_step: float = 0.0,
        guard: Guard | None = None,
        incumbent: str | None = None,
        seed: str | None = None,
    ) -> Rollout:
        """Return a rollout of one variant, which does nothing until it is advanced.

        A rollout that was saved in the file goes on where it was.

        Args:
            candidate: The variant to bring in.
            steps: Its shares of the units, growing, within (0, 1].
            min_step: Seconds that a step lasts at least.
            guard: What must not happen; None to roll back by hand only.
            incumbent: The variant that serves the others; the flag's default variant if None.
            seed: Text that is hashed with the unit in place of the flag's key, so that flags of equal seed take in the
                same units first.

        Raises:
            ConfigurationError: If an argument is wrong, the flag or a variant does not exist, or another rollout of the
                flag is under way.
        """
        return Rollout(
            self._store,
            self.key,
            candidate,
            steps=steps,
            min_step=min_step,
            guard=guard,
            incumbent=incumbent,
            seed=seed,
        )


@final
class Rollout:
    """A candidate's way from no units to all of them.

    `advance` goes to the next share; units that have the candidate keep it (the ramp is monotone). `observe` takes in how
    a request went; when the guard has enough evidence, the candidate is taken from everybody at once, and stays away.
    What other rules of the flag decide is kept: the ramp takes the units that they leave to the default variant; a
    rollback also takes the candidate from units that a rule gave it to.

    The flags change in memory, for this process; `save` writes the flag to the file, for the others. A reload of the
    file keeps the rollout, and a flag disabled there stays disabled.

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
        incumbent = _one_of(
            "rollout(incumbent=...)", incumbent or definition.default_variant, variants
        )
        if incumbent == candidate:
            raise ConfigurationError(
                "rollout(incumbent=...)", incumbent, "another variant than the candidate"
            )
        if (
            isinstance(min_step, bool)
            or not isinstance(min_step, (int, float))
            or not 0 <= min_step < math.inf
        ):
            raise ConfigurationError("rollout(min_step=...)", min_step, "a number of seconds >= 0")
        if guard is not None and not isinstance(guard, Guard):
            raise ConfigurationError("rollout(guard=...)", guard, "a Guard")
        if seed is not None and (not isinstance(seed, str) or not seed):
            raise ConfigurationError("rollout(seed=...)", seed, "a non-empty text, or None")
        self.key, self.candidate, self.incumbent = key, candidate, incumbent
        self.steps = _steps(steps)
        self._store, self._min_step, self._guard, self._seed = store, min_step, guard, seed
        self._evidence = [metric.start() for metric in guard.metrics] if guard is not None else []
        self._lock = threading.Lock()
        self._history: tuple[Decision, ...] = ()
        self._state = self._saved(definition)
        other = store.rollouts.get(key)
        if other is not None and other.status == "ramping":
            raise ConfigurationError(
                "rollout of flag",
                key,
                f"a flag without a rollout under way; that of {other.candidate!r} is at "
                f"{other.share:g}",
                hint="roll it back or bring it to 1.0 first",
            )
        store.rollouts[key] = self
        if self._state.status != "ready":
            self._apply("started", "it was saved in the file")

    @property
    def status(self) -> str:
        """`"ready"`, `"ramping"`, `"full"`, `"rolled_back"` or `"killed"`; the last two are final."""
        return self._state.status

    @property
    def share(self) -> float:
        """The candidate's share of the units, within [0, 1]."""
        return self._share(self._state)

    @property
    def evidence(self) -> Mapping[str, float]:
        """The guard's figures now; an `e_value` that reaches `threshold` rolls back."""
        with self._lock:
            return self._figures()

    @property
    def history(self) -> tuple[Decision, ...]:
        """Every decision that changed something, oldest first."""
        return self._history

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
                held = "the candidate serves every unit"
            elif state.status == "ramping" and waited < self._min_step:
                held = f"the step has lasted {waited:.3g} s of {self._min_step:g} s"
            else:
                held = ""
                step = state.step + 1
                self._state = _State(
                    "full" if self.steps[step] == 1.0 or step == len(self.steps) - 1 else "ramping",
                    step,
                    now,
                )
        if held:
            return self._decision("held", held)
        return self._apply("advanced", "advance was called")

    def observe(self, variant: str | None, *, ok: bool, latency: float | None = None) -> None:
        """Take in how one request went; may roll back.

        Args:
            variant: The variant that served it, `details(...).variant`. Others than candidate and incumbent do not count.
            ok: Whether it went well.
            latency: Seconds it took, at least 0, or None.

        Raises:
            ConfigurationError: If an argument is wrong.
        """
        ok = _as_bool(ok)
        if latency is not None and not (
            isinstance(latency, (int, float)) and 0 <= latency < math.inf
        ):
            raise ConfigurationError(
                "observe(latency=...)", latency, "a number of seconds >= 0, or None"
            )
        if variant not in {self.candidate, self.incumbent}:
            if variant is not None:
                base = self._store.document.definitions.get(self.key)
                _one_of(
                    "observe(variant)", variant, base.variants if base is not None else {variant}
                )
            return
        guard = self._guard
        if guard is None:
            return
        with self._lock:
            state = self._state
            if state.status not in _ACTIVE:
                return
            trial = Trial(variant == self.candidate, ok, latency, self._share(state))
            worst = -math.inf
            for evidence in self._evidence:
                evidence.add(trial)
                worst = max(worst, evidence.log_e())
            if worst < math.log(guard.threshold):
                return
            self._state = state._replace(status="rolled_back")
        self._apply(
            "rolled_back", f"the guard {guard} has an e-value of at least {guard.threshold:g}"
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

        Other flags and evaluators stay; a flagd daemon that reads the file decides the same.

        Raises:
            FlagFileError: If there is no file, or it cannot be read or written.
        """
        store = self._store
        if store.file is None:
            raise FlagFileError(
                store.source, "there is no file to save to; the flags were made from data"
            )
        definition = store.current.definitions[self.key]
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
            over = state.status in {"killed", status}
            if not over:
                self._state = state._replace(status=status)
        return (
            self._decision("held", f"the rollout is {state.status}")
            if over
            else self._apply(status, reason)
        )

    def _apply(self, action: str, reason: str) -> Decision:
        self._store.patch(self.key, self._patch)
        decision = self._decision(action, reason)
        with self._lock:
            self._history = (*self._history, decision)
        facts: dict[str, str | float | bool | None] = dict(decision.evidence)
        facts |= {"candidate": self.candidate, "share": decision.share, "reason": reason}
        emit(f"flags.rollout.{action}", self.key, digest=decision.digest, **facts)
        return decision

    def _decision(self, action: str, reason: str) -> Decision:
        return Decision(
            current().time(), action, self.share, reason, self.evidence, self._store.current.digest
        )

    def _figures(self) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        if self._guard is not None:
            for index, (metric, evidence) in enumerate(
                zip(self._guard.metrics, self._evidence, strict=True)
            ):
                before = [other.name for other in self._guard.metrics[:index]].count(metric.name)
                name = f"{metric.name}_{before + 1}" if before else metric.name
                log_e = evidence.log_e()
                figures[f"{name}.e_value"] = math.exp(min(log_e, 700.0))
                figures[f"{name}.threshold"] = self._guard.threshold
                figures |= {f"{name}.{key}": value for key, value in evidence.numbers().items()}
        return MappingProxyType(figures)

    def _share(self, state: _State) -> float:
        return self.steps[state.step] if state.step >= 0 and state.status in _ACTIVE else 0.0

    def _saved(self, definition: Definition) -> _State:
        marks = {
            name.removeprefix(MARK): value
            for name, value in definition.metadata.items()
            if name.startswith(MARK)
        }
        now = current().monotonic()
        if marks.get("candidate") != self.candidate or marks.get("incumbent") != self.incumbent:
            return _State("ready", -1, now)
        share, status = marks.get("share"), str(marks.get("status"))
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
    for share in made:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigurationError("rollout(steps=...)", share, "shares within (0, 1]")
    weights = [0, *(round(share * WEIGHTS) for share in made)]
    if len(weights) == 1 or any(one >= two for one, two in pairwise(weights)):
        raise ConfigurationError(
            "rollout(steps=...)", made, f"growing shares, at least 1 / {WEIGHTS} apart"
        )
    return tuple(map(float, made))


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
