"""A model version brought to more and more units, and taken back when the evidence says so."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from mlkit import telemetry
from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags._chronicle import Chronicle, degraded
from mlkit.flags._evidence import Case
from mlkit.flags._guard import Mean
from mlkit.flags._plan import seed_of
from mlkit.flags._progress import (
    ACTIVE,
    Decision,
    State,
    as_bool,
    as_metrics,
    further,
    one_of,
)
from mlkit.flags._question import Trial
from mlkit.flags._ramp import WEIGHTS, Ramp, apply_ramp, marks, replace_flag
from mlkit.flags._requests import Requests
from mlkit.flags._served import Models, Served
from mlkit.flags._shadow import Shadow, ShadowReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from mlkit.flags._definition import Definition
    from mlkit.flags._document import Change
    from mlkit.flags._model import ModelFlag
    from mlkit.flags._plan import Plan
    from mlkit.flags._store import Store

__all__ = ["Rollout"]

_SYNC_EVERY = 1.0  # seconds between two looks at what other processes saw


@final
class Rollout:
    """A candidate's way from no units to all of them.

    `advance` goes to the next share; units that have the candidate keep it (the ramp is monotone). `serve`, or `observe`,
    takes in how a request went; when the guard has enough evidence, the candidate is taken from everybody at once, and
    stays away. What other rules of the flag decide is kept: the ramp takes the units that they leave to the default
    variant; a rollback also takes the candidate from units that a rule gave it to.

    The flags change in memory, for this process; `save` writes the flag to the file, for the others. A reload keeps the
    rollout, goes further with a file that is further (a greater share, an end), and a flag disabled there stays disabled.
    A file without one of the two variants is taken as it is, with the event `flags.rollout.unusable`; only a killed flag
    stays disabled then too. Of several rollouts of a flag one at a time is under way: the others' decisions are `"held"`,
    but for `kill`.

    With a *folder*, all processes that name the same one are one rollout: what one decides the others follow, at the latest
    a second later with the next request; the guard judges what all have seen; and a restart goes on where it was.

    Thread-safe. After a fork each process has its own state, or, with a folder, goes on as one more of its processes. It does
    not pickle. Made by `ModelFlag.rollout`.

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
        ...     with rollout.serve(user) as served:
        ...         answer = served.run(lambda model: 1 / (model != "models:/ranker/2"))
        >>> rollout.status, model.assign(range(100)).counts()
        ('rolled_back', {'v1': 100})
    """

    key: str
    candidate: str
    incumbent: str
    steps: tuple[float, ...]
    models: Models

    def __init__(
        self, flag: ModelFlag, store: Store, candidate: str, *, incumbent: str | None, plan: Plan
    ) -> None:
        key = flag.key
        definition = store.document.definitions.get(key)
        if definition is None:
            near = did_you_mean(key, store.document.definitions).removeprefix("; ")
            raise ConfigurationError("rollout of flag", key, "a flag that can be read", hint=near)
        variants = definition.variants
        one_of("rollout(candidate)", candidate, variants)
        ramp = marks(store.current.definitions.get(key, definition))
        # Whom a finished rollout brought in is who serves now, whatever the flag's default variant.
        finished = ramp.get("share") == 1.0 and ramp.get("candidate") != candidate
        serving = ramp.get("candidate") if finished else definition.default_variant
        incumbent = one_of(
            "rollout(incumbent=...)", serving if incumbent is None else incumbent, variants
        )
        if incumbent == candidate:
            raise ConfigurationError(
                "rollout(incumbent=...)", incumbent, "another variant than the candidate"
            )
        self.key, self.candidate, self.incumbent = key, candidate, incumbent
        self.steps, self._plan, self._flag, self._store = plan.steps, plan, flag, store
        self._variants = frozenset(variants)
        self._seed = seed_of(plan.seed, definition, candidate, incumbent)
        metrics = () if plan.guard is None else plan.guard.metrics
        self._bounds = {one.name: (one.low, one.high) for one in metrics if isinstance(one, Mean)}
        self._requests = Requests(store, key, self._variants)
        self.models = Models(plan.load, plan.unload)
        self._shadow = Shadow(key, plan.shadow, plan.compare)
        self._fell_back = telemetry.Counter("flags_fallbacks_total", flag=key)
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._synced, self._pause = current().monotonic(), _SYNC_EVERY
        self._decided: dict[int, Decision] = {}
        self._origin = os.urandom(6).hex()
        self._case = None if plan.guard is None else Case(plan.guard, self._origin)
        self._state = State("ready", -1, current().monotonic())
        self._state = self._told(definition) or self._state
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
        self._chronicle = Chronicle(key, candidate, plan)
        self._folder = self._chronicle.folder
        store.join(self)
        telemetry.register(self)
        _follow_changes(self, store)
        told = "it was saved in the file"
        if self._folder is not None and self._follow(self._folder.state(), quietly=True):
            told = "it was kept in the folder"
        if self._state.status != "ready":
            store.claim(self, force=True)
            self._apply("started", told, self._state)
        if self._folder is not None:
            self._folder.tidy()
        self.sync()

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
        """The guard's figures now; an `e_value` that reaches its `threshold` rolls back."""
        with self._lock:
            return MappingProxyType({} if self._case is None else self._case.figures())

    @property
    def history(self) -> tuple[Decision, ...]:
        """Every decision that changed something, oldest first."""
        with self._lock:
            return tuple(decision for _, decision in sorted(self._decided.items()))

    @property
    def shadowing(self) -> ShadowReport:
        """What the shadow runs of this process showed."""
        return self._shadow.report()

    # --- deciding ------------------------------------------------------------------------------------------------

    def advance(self) -> Decision:
        """Go to the next share, if the present one lasted long enough.

        Returns:
            What was decided: `"advanced"`, or `"held"` with the reason; held decisions are not in `history`.

        Raises:
            OSError: If the folder cannot be written; nothing has changed then.
        """
        with self._together():
            now = current().monotonic()
            with self._lock:
                state = self._state
                held = self._held(now - state.since) or self._claim()
            if not held:
                before, step = state, state.step + 1
                status = "full" if step == len(self.steps) - 1 else "ramping"
                state = State(status, step, now, state.turn + 1)
                if self._folder is not None:  # not under the lock: requests would wait for the disk
                    self._folder.keep_state(self._record(state, "advance was called"))
                with self._lock:
                    if self._state is before:
                        self._state = state
                    else:  # whoever ended it now waits to say so in the folder
                        held, state = "something else was decided meanwhile", self._state
        if held:
            return self._decision("held", held, state)
        return self._apply("advanced", "advance was called", state)

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

        Other flags and evaluators stay, and the file's mode; a flagd daemon that reads the file decides the same. Processes
        that save at once take turns, so that none undoes what another saved of another flag. An edit of this flag that was
        not loaded yet is overwritten. It is on the disk when this returns.

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

    def close(self) -> None:
        """Give up all models, each when nobody uses it any more, and wait for the shadow runs. Deciding goes on.

        Shadow runs of `Served.arun` are tasks of their loop; `aclose` waits for them, too.
        """
        self._shadow.wait()
        self.models.retire(())

    async def aclose(self) -> None:
        """As `close`, while other tasks go on, with the shadow runs of this event loop."""
        import asyncio

        await self._shadow.await_tasks()
        await asyncio.to_thread(self.close)

    # --- serving -------------------------------------------------------------------------------------------------

    def serve(self, unit: str | int, /, **attributes: object) -> Served:
        """Return a context manager, sync and async, for one request: which variant serves it, its model, how it went.

        Args:
            unit: Whom to serve.
            **attributes: What rules may ask.

        Examples:
            >>> from mlkit.flags import Flags
            >>> flags = Flags.from_dict({"flags": {"ranker": {
            ...     "state": "ENABLED", "variants": {"v1": "1", "v2": "2"}, "defaultVariant": "v1"}}})
            >>> rollout = flags.model("ranker", default="v1").rollout("v2", load=int)
            >>> with rollout.serve("user-7") as served:
            ...     served.variant, served.run(lambda model: model + 1)
            ('v1', 2)
        """
        share = self._weight(self._state)
        ramp = self._requests.by_ramp(unit, attributes)
        details = self._flag.details(unit, **attributes)
        return Served(self, unit, details, share, ramp=ramp)

    def observe(
        self,
        variant: str | None,
        *,
        ok: bool,
        latency: float | None = None,
        unit: str | int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Take in how one request went; may roll back.

        Args:
            variant: The variant that served it, `details(...).variant`, whatever it is. Only candidate and incumbent count.
            ok: Whether it went well.
            latency: Seconds it took, at least 0, or None.
            unit: Whom it was decided for. Without it, the request counts as a unit of its own: right only where units
                do not come back; the sample ratio leaves it out.
            metrics: Further figures by name, those that the guard's `Mean` metrics ask for.

        Raises:
            ConfigurationError: If an argument is wrong, *variant* too if no handle on the flag can give it.
        """
        if variant is not None and variant not in (self.candidate, self.incumbent):
            self._requests.check_variant(variant)
        due = self.ended(
            variant,
            ok=as_bool(ok),
            latency=None
            if latency is None
            else seconds("observe(latency=...)", latency, zero=True),
            unit=unit,
            metrics=metrics,
            share=None,
            ramp=self._requests.inner() is None,
        )
        if due:
            self.sync()

    def sync(self) -> None:
        """Tell the other processes of the folder what this one has seen, and take in what they have; may roll back.

        `observe` and `serve` do so by themselves, at most once a second, and at once where the evidence of this process would
        do; only what all have seen decides. Trouble with the folder is a `DegradedWarning`.
        """
        folder = self._folder
        if folder is None or not self._syncing.acquire(blocking=False):
            return
        try:
            self._synced = current().monotonic()
            self._follow(folder.state())
            if self._case is None:
                return
            with self._lock:
                state = self._case.state()
            # Written before the others' is read: of two that do so at once, one has seen all that the other has.
            if state["n"]:
                folder.keep_evidence(self._origin, state)
            for news in folder.news(self._origin):
                try:
                    self._take_in(news)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    degraded("cannot take in the evidence of another process", self.key, error)
            self._pause = max(_SYNC_EVERY, 20.0 * (current().monotonic() - self._synced))
        except (OSError, ValueError) as error:
            degraded("cannot share its evidence", self.key, error)
        finally:
            self._syncing.release()
        self._judge()

    def state(self) -> dict[str, Any]:
        """Return what this process has seen, as JSON data for `merge` elsewhere; empty without a guard.

        It holds 64 bits of a hash for each unit, not the units.
        """
        with self._lock:
            return {} if self._case is None else self._case.state()

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in the `state` of another process, or of one before a restart; may roll back.

        A later state of the same process replaces the earlier one, so that merging twice does no harm.

        Args:
            state: What `state` returned there, perhaps sent as JSON.

        Raises:
            ConfigurationError: If it is not such a state, or of another guard.
        """
        if state:
            try:
                self._take_in(state)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                text = f"{type(error).__name__}: {error}"
                raise ConfigurationError(
                    "Rollout.merge(state)",
                    type(state).__name__,
                    "the state of an equal guard",
                    hint=text,
                ) from error
        self._judge()

    def samples(self) -> list[telemetry.Sample]:
        """Return counters and the share, for `mlkit.telemetry`."""
        share = telemetry.Sample(
            "flags_rollout_share", (("candidate", self.candidate), ("flag", self.key)), self.share
        )
        return [share, *self._fell_back.samples(), *self._shadow.samples()]

    # --- for mlkit.flags itself ----------------------------------------------------------------------------------

    def ended(
        self,
        variant: str | None,
        *,
        ok: bool,
        latency: float | None,
        unit: str | int | None,
        metrics: Mapping[str, float] | None,
        share: float | None,
        ramp: bool,
    ) -> bool:
        """Take in how a request went, and return whether it is time for `sync`; for `mlkit.flags` itself."""
        figures = as_metrics(metrics, self._bounds)
        known = self._requests.unit(unit)
        if variant not in (self.candidate, self.incumbent) or self._case is None:
            return False
        with self._lock:
            state = self._state
            if state.status not in ACTIVE:
                return False
            share = self._weight(state) if share is None else share
            trial = Trial(variant == self.candidate, ok, latency, share, known, figures, ramp)
            found = self._case.add(trial)
            # With a folder, only what all have seen decides: several processes would have several chances to err.
            ended = self._guilty(found) if self._folder is None else None
            due = current().monotonic() - self._synced >= self._pause
        if ended is not None:
            self._close_case(found, ended)
            return False
        return self._folder is not None and (due or found is not None)

    def fell_back(self, error: str) -> None:
        """Count that the candidate failed and the incumbent answered; for `mlkit.flags` itself."""
        del error
        self._fell_back.add()

    def shadowed(self, call: Callable[[Any], Any], answer: Any) -> None:
        """Run the candidate on what the incumbent has answered, if it is due; for `mlkit.flags` itself."""
        if self._state.status not in ACTIVE or not self._shadow.due():
            return
        uri = self.uri(self.candidate)

        def run() -> Any:
            model = self.models.take(uri)
            try:
                return call(model)
            finally:
                self.models.give_back(uri)

        self._shadow.put(run, answer)

    def ashadowed(self, call: Callable[[Any], Awaitable[Any]], answer: Any) -> None:
        """As `shadowed`, for a coroutine function; for `mlkit.flags` itself."""
        if self._state.status not in ACTIVE or not self._shadow.due():
            return
        uri = self.uri(self.candidate)

        async def run() -> Any:
            model = await self.models.atake(uri)
            try:
                return await call(model)
            finally:
                self.models.give_back(uri)

        self._shadow.put_async(run, answer)

    def uri(self, variant: str) -> str:
        """Return the URI of a variant's model; for `mlkit.flags` itself."""
        bound = self._flag.bind(self._store.current)
        if bound.definition is None or variant not in bound.definition.variants:
            return variant
        return bound.answer(variant, "STATIC").value

    def after_fork(self) -> None:
        """Make a child's copy usable, whatever a thread of the parent was doing; for `mlkit.flags` itself."""
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self.models.after_fork()
        self._shadow.after_fork()
        if self._case is not None and self._plan.guard is not None and self._folder is not None:
            before, self._origin = self._case.state(), os.urandom(6).hex()
            self._case = Case(self._plan.guard, self._origin)
            self._case.merge(before)
            self._folder.forget()

    # --- inside --------------------------------------------------------------------------------------------------

    def _held(self, waited: float) -> str:
        state, least = self._state, self._plan.min_step
        if state.status not in ACTIVE:
            return f"the rollout is {state.status}"
        if state.status == "full":
            return "there is no further step"
        if state.status == "ramping" and waited < least:
            return f"the step has lasted {waited:.3g} s of {least:g} s"
        return ""

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

    def _guilty(self, found: str | None) -> State | None:
        """Roll back if the guard has found something, and return the state; the lock is held."""
        if found is None or self._state.status not in ACTIVE or self._claim():
            return None
        state = self._state = self._state._replace(status="rolled_back", turn=self._state.turn + 1)
        return state

    def _judge(self) -> None:
        with self._lock:
            found = None if self._case is None else self._case.enough()
            ended = self._guilty(found)
        if ended is not None:
            self._close_case(found, ended)

    def _close_case(self, found: str | None, state: State) -> None:
        threshold = self.evidence[f"{found}.threshold"]
        reason = f"{found} has an e-value of at least {threshold:g}; {self._plan.guard}"
        self._apply("rolled_back", reason, state)

    def _claim(self, *, force: bool = False) -> str:
        """Make this the rollout of its flag, or return why it cannot be."""
        other = self._store.claim(self, force=force)
        if other is None:
            return ""
        if self.status == "ready":
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
            self.models.retire({self.uri(name) for name in self._variants - {self.candidate}})
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
            self._follow(self._folder.state())
            yield

    def _follow(self, told: Mapping[str, Any] | None, *, quietly: bool = False) -> bool:
        """Go as far as another process or the file is, and return whether that was further."""
        if not told or told.get("candidate") != self.candidate:
            return False
        clock = current()
        began, now = told.get("since"), clock.time()
        lasted = max(0.0, now - began) if isinstance(began, (int, float)) else 0.0
        since = clock.monotonic() - lasted
        with self._lock:
            state = further(self._state, self.steps, told.get("status"), told.get("share"), since)
            if state is None or (not quietly and self._claim(force=state.status == "killed")):
                return False
            self._state = state
        if not quietly:
            reason = str(told.get("reason") or "it was saved in the file")
            self._apply("followed", f"decided elsewhere: {reason}", state)
        return True

    def _told(self, definition: Definition) -> State | None:
        saved = marks(definition)
        if (saved.get("candidate"), saved.get("incumbent")) != (self.candidate, self.incumbent):
            return None
        now = current().monotonic()
        return further(self._state, self.steps, saved.get("status"), saved.get("share"), now)

    def follow_file(self) -> None:
        """Go as far as the file is; for `mlkit.flags` itself."""
        definition = self._store.document.definitions.get(self.key)
        if definition is not None and self._told(definition) is not None:
            self._follow(marks(definition))

    def _take_in(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            if self._case is not None:
                self._case.merge(state)

    def _decision(self, action: str, reason: str, state: State) -> Decision:
        digest = self._store.current.digest
        return Decision(current().time(), action, self._share(state), reason, self.evidence, digest)

    def _share(self, state: State) -> float:
        return self.steps[state.step] if state.step >= 0 and state.status in ACTIVE else 0.0

    def _weight(self, state: State) -> float:
        """Return the share as it is served, in whole weights."""
        return round(self._share(state) * WEIGHTS) / WEIGHTS

    def _patch(self, definition: Definition) -> Definition:
        # The store's lock is held, and ours must not be taken under it; `follow_file` takes the state over afterwards.
        state = self._told(definition) or self._state
        ramp = Ramp(self.candidate, self.incumbent, self._share(state), state.status, self._seed)
        return apply_ramp(definition, ramp)

    def __repr__(self) -> str:
        return (
            f"<Rollout of {self.candidate!r} on {self.key!r}: {self.status}, share {self.share:g}>"
        )


def _follow_changes(rollout: Rollout, store: Store) -> None:
    """Have a rollout told of each change of its flags, for as long as it lives."""
    alive = weakref.ref(rollout)

    def follow(change: Change) -> None:
        del change
        one = alive()
        if one is None:
            stop()
        else:
            one.follow_file()

    stop = store.listen(follow)
