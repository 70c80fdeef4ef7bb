"""How a rollout goes on: its decisions, one after the other, in the flags of this process and with the other processes."""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from mlkit import telemetry
from mlkit._clock import current
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError
from mlkit.flags._plan import seed_of
from mlkit.flags._progress import ACTIVE, Decision, State, further, one_of
from mlkit.flags._ramp import WEIGHTS, Ramp, apply_ramp, marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlkit.flags._chronicle import Chronicle
    from mlkit.flags._definition import Definition
    from mlkit.flags._document import Change
    from mlkit.flags._plan import Plan
    from mlkit.flags._rollout import Rollout
    from mlkit.flags._store import Store
    from mlkit.flags._witness import Witness

__all__ = ["Course", "Sides"]


@final
class Sides:
    """Which variants a rollout is about, checked against the flag.

    Raises:
        ConfigurationError: If there is no such flag or variant, or another rollout of the flag is under way.
    """

    def __init__(self, store: Store, key: str, candidate: str, incumbent: str | None) -> None:
        definition = store.document.definitions.get(key)
        if definition is None:
            near = did_you_mean(key, store.document.definitions).removeprefix("; ")
            raise ConfigurationError("rollout of flag", key, "a flag that can be read", hint=near)
        self.key, self.definition = key, definition
        self.variants = frozenset(definition.variants)
        self.candidate = one_of("rollout(candidate)", candidate, definition.variants)
        self._ramp = marks(store.current.definitions.get(key, definition))
        # Whom a finished rollout brought in is who serves now, whatever the flag's default variant.
        ramp = self._ramp
        finished = ramp.get("share") == 1.0 and ramp.get("candidate") != candidate
        serving = ramp.get("candidate") if finished else definition.default_variant
        self.incumbent = one_of(
            "rollout(incumbent=...)",
            serving if incumbent is None else incumbent,
            definition.variants,
        )
        if self.incumbent == candidate:
            raise ConfigurationError(
                "rollout(incumbent=...)", self.incumbent, "another variant than the candidate"
            )

    def check_free(self, store: Store) -> None:
        """Refuse a flag that another rollout is bringing a variant to."""
        ramp = self._ramp
        ours = (ramp.get("candidate"), ramp.get("incumbent")) == (self.candidate, self.incumbent)
        taken = self.key in store.rollouts or not ours
        if ramp.get("status") == "ramping" and taken:
            raise ConfigurationError(
                "rollout of flag",
                self.key,
                f"a flag without a rollout under way; that of {ramp['candidate']!r} is at "
                f"{ramp.get('share', 0):g}",
                hint="roll it back or bring it to 1.0 first",
            )


@final
class Course:
    """How far a rollout is. Thread-safe.

    Args:
        owner: The rollout, for whom the flag is claimed.
        store: The flags.
        sides: The variants.
        plan: The arguments of the rollout.
        witness: The evidence, for the record.
        chronicle: Where decisions are put down.
        retire: Is called after an end, to give up the candidate's model.
    """

    state: State

    def __init__(  # noqa: PLR0917 - what a rollout consists of
        self,
        owner: Rollout,
        store: Store,
        sides: Sides,
        plan: Plan,
        witness: Witness,
        chronicle: Chronicle,
        retire: Callable[[], None],
    ) -> None:
        self.key, self.candidate, self.incumbent = sides.key, sides.candidate, sides.incumbent
        # Weakly: who gives up a rollout need not wait for the garbage collector.
        self._owner, self._store = weakref.ref(owner), store
        self._steps, self._min_step = plan.steps, plan.min_step
        self._seed = seed_of(plan.seed, sides.definition, self.candidate, self.incumbent)
        self._witness, self._chronicle, self._retire = witness, chronicle, retire
        self._folder = chronicle.folder
        self._lock = threading.Lock()
        self._decided: dict[int, Decision] = {}
        self.state = State("ready", -1, current().monotonic())
        self.state = self._told(sides.definition) or self.state

    def begin(self) -> None:
        """Follow the file, and go on where the file or the folder say that the rollout is."""
        _follow_changes(self, self._store)
        told = "it was saved in the file"
        if self._folder is not None and self.follow(self._folder.state(), quietly=True):
            told = "it was kept in the folder"
        if self.state.status != "ready":
            self._claim(force=True)
            self._apply("started", told, self.state)
        if self._folder is not None:
            self._folder.tidy()

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state.status in ACTIVE

    @property
    def share(self) -> float:
        """The candidate's share of the units."""
        return self._share(self.state)

    @property
    def weight(self) -> float:
        """The share as it is served, in whole weights."""
        return round(self.share * WEIGHTS) / WEIGHTS

    def history(self) -> tuple[Decision, ...]:
        """Return every decision that changed something."""
        with self._lock:
            return tuple(decision for _, decision in sorted(self._decided.items()))

    # --- deciding ------------------------------------------------------------------------------------------------

    def advance(self) -> Decision:
        """Go to the next share; see `Rollout.advance`."""
        with self._together():
            now = current().monotonic()
            with self._lock:
                state = self.state
                held = self._held(now - state.since) or self._claim()
            if not held:
                before, step = state, state.step + 1
                status = "full" if step == len(self._steps) - 1 else "ramping"
                state = State(status, step, now, state.turn + 1)
                if self._folder is not None:  # not under the lock: requests would wait for the disk
                    self._folder.keep_state(self._record(state, "advance was called"))
                with self._lock:
                    if self.state is before:
                        self.state = state
                    else:  # whoever ended it now waits to say so in the folder
                        held, state = "something else was decided meanwhile", self.state
        if held:
            return self._decision("held", held, state)
        return self._apply("advanced", "advance was called", state)

    def end(self, status: str, verb: str, reason: str) -> Decision:
        """Roll back or kill; see `Rollout.rollback`."""
        if not isinstance(reason, str) or not reason:
            raise ConfigurationError(f"{verb}(reason)", reason, "a non-empty text")
        with self._lock:
            state = self.state
            held = f"the rollout is {state.status}" if state.status in {"killed", status} else ""
            held = held or self._claim(force=status == "killed")
            if not held:
                state = self.state = state._replace(status=status, turn=state.turn + 1)
        if held:
            return self._decision("held", held, state)
        return self._apply(status, reason, state)

    def convict(self, found: str) -> None:
        """Roll back for a metric that has seen enough."""
        with self._lock:
            if not self.active or self._claim():
                return
            state = self.state._replace(status="rolled_back", turn=self.state.turn + 1)
            self.state = state
        self._apply("rolled_back", self._witness.reason(found), state)

    def follow(self, told: Mapping[str, Any] | None, *, quietly: bool = False) -> bool:
        """Go as far as another process or the file is, and return whether that was further."""
        if not told or told.get("candidate") != self.candidate:
            return False
        clock = current()
        began, now = told.get("since"), clock.time()
        lasted = max(0.0, now - began) if isinstance(began, (int, float)) else 0.0
        since = clock.monotonic() - lasted
        with self._lock:
            state = further(self.state, self._steps, told.get("status"), told.get("share"), since)
            if state is None or (not quietly and self._claim(force=state.status == "killed")):
                return False
            self.state = state
        if not quietly:
            reason = str(told.get("reason") or "it was saved in the file")
            self._apply("followed", f"decided elsewhere: {reason}", state)
        return True

    def follow_file(self) -> None:
        """Go as far as the file is."""
        definition = self._store.document.definitions.get(self.key)
        if definition is not None and self._told(definition) is not None:
            self.follow(marks(definition))

    def after_fork(self) -> None:
        """Make a child's copy usable, whatever a thread of the parent was doing."""
        self._lock = threading.Lock()

    # --- inside --------------------------------------------------------------------------------------------------

    def _held(self, waited: float) -> str:
        state, least = self.state, self._min_step
        if state.status not in ACTIVE:
            return f"the rollout is {state.status}"
        if state.status == "full":
            return "there is no further step"
        if state.status == "ramping" and waited < least:
            return f"the step has lasted {waited:.3g} s of {least:g} s"
        return ""

    def _claim(self, *, force: bool = False) -> str:
        """Make this the rollout of its flag, or return why it cannot be."""
        owner = self._owner()
        other = None if owner is None else self._store.claim(owner, force=force)
        if other is None:
            return ""
        if self.state.status == "ready":
            return f"the rollout of {other.candidate!r} is under way"
        return f"the rollout of {other.candidate!r} has taken its place"

    def _apply(self, action: str, reason: str, state: State) -> Decision:
        before = self._store.current.digest
        change = self._store.patch(self.key, self._patch)
        decision = self._decision(action, reason, state)
        if change is not None:  # a listener may have changed the flags again
            decision = decision._replace(digest=change.after)
        with self._lock:
            self._decided[state.turn] = decision
        if state.status not in ACTIVE:
            self._retire()
            self._chronicle.end(self._record(state, reason))
        facts: dict[str, str | float | bool | None] = dict(decision.evidence)
        facts |= {"candidate": self.candidate, "share": decision.share, "reason": reason}
        facts["audit"] = self._chronicle.write(decision, before)
        telemetry.emit(f"flags.rollout.{action}", self.key, digest=decision.digest, **facts)
        return decision

    def _record(self, state: State, reason: str) -> dict[str, Any]:
        clock = current()
        return {
            "candidate": self.candidate,
            "incumbent": self.incumbent,
            "status": state.status,
            "share": self._share(state),
            "since": clock.time() - (clock.monotonic() - state.since),
            "reason": reason,
        }

    @contextmanager
    def _together(self) -> Iterator[None]:
        """No other process decides meanwhile, and what they decided is followed."""
        if self._folder is None:
            yield
            return
        with self._folder.lock():
            self.follow(self._folder.state())
            yield

    def _told(self, definition: Definition) -> State | None:
        saved = marks(definition)
        if (saved.get("candidate"), saved.get("incumbent")) != (self.candidate, self.incumbent):
            return None
        now = current().monotonic()
        return further(self.state, self._steps, saved.get("status"), saved.get("share"), now)

    def _decision(self, action: str, reason: str, state: State) -> Decision:
        digest, evidence = self._store.current.digest, self._witness.figures()
        return Decision(current().time(), action, self._share(state), reason, evidence, digest)

    def _share(self, state: State) -> float:
        return self._steps[state.step] if state.step >= 0 and state.status in ACTIVE else 0.0

    def _patch(self, definition: Definition) -> Definition:
        # The store's lock is held, and ours must not be taken under it; `follow_file` takes the state over afterwards.
        state = self._told(definition) or self.state
        ramp = Ramp(self.candidate, self.incumbent, self._share(state), state.status, self._seed)
        return apply_ramp(definition, ramp)


def _follow_changes(course: Course, store: Store) -> None:
    """Have a course told of each change of its flags, for as long as it lives."""
    alive = weakref.ref(course)

    def follow(change: Change) -> None:
        del change
        one = alive()
        if one is None:
            stop()
        else:
            one.follow_file()

    stop = store.listen(follow)
