"""A model version brought to more and more units, and taken back when the evidence says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit import telemetry
from mlkit._arguments import seconds
from mlkit.errors import FlagFileError
from mlkit.flags._chronicle import Chronicle
from mlkit.flags._course import Course, Sides
from mlkit.flags._guard import Mean
from mlkit.flags._progress import Decision, as_bool, as_metrics
from mlkit.flags._question import Trial
from mlkit.flags._ramp import replace_flag
from mlkit.flags._requests import Requests
from mlkit.flags._served import Models, Served
from mlkit.flags._shadow import Shadow, ShadowReport
from mlkit.flags._witness import Witness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mlkit.flags._model import ModelFlag
    from mlkit.flags._plan import Plan
    from mlkit.flags._store import Store

__all__ = ["Rollout"]


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
        sides = Sides(store, flag.key, candidate, incumbent)
        sides.check_free(store)
        self.key, self.candidate, self.incumbent = sides.key, sides.candidate, sides.incumbent
        self.steps, self._flag, self._store = plan.steps, flag, store
        chronicle = Chronicle(self.key, candidate, plan)
        self._shares_evidence = chronicle.folder is not None
        self._witness = Witness(self.key, plan.guard, chronicle.folder)
        metrics = () if plan.guard is None else plan.guard.metrics
        self._bounds = {one.name: (one.low, one.high) for one in metrics if isinstance(one, Mean)}
        self._guarded = plan.guard is not None
        self._requests = Requests(store, self.key, sides.variants)
        self.models = models = Models(plan.load, plan.unload)
        self._shadow = Shadow(self.key, plan.shadow, plan.compare)
        self._fell_back = telemetry.Counter("flags_fallbacks_total", flag=self.key)

        def retire() -> None:
            others = sides.variants - {candidate}
            models.retire({_uri(flag, store, name) for name in others})

        self._course = Course(self, store, sides, plan, self._witness, chronicle, retire)
        store.join(self)
        telemetry.register(self)
        self._course.begin()
        self.sync()

    @property
    def status(self) -> str:
        """`"ready"`, `"ramping"`, `"full"` (at the last step), `"rolled_back"` or `"killed"`; the last two are final."""
        return self._course.state.status

    @property
    def share(self) -> float:
        """The candidate's share of the units, within [0, 1]."""
        return self._course.share

    @property
    def evidence(self) -> Mapping[str, float]:
        """The guard's figures now; an `e_value` that reaches its `threshold` rolls back."""
        return self._witness.figures()

    @property
    def history(self) -> tuple[Decision, ...]:
        """Every decision that changed something, oldest first."""
        return self._course.history()

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
            FlagFileError: If what the folder says of the rollout cannot be read; likewise.
        """
        return self._course.advance()

    def rollback(self, reason: str) -> Decision:
        """Take the candidate from every unit, for good.

        Args:
            reason: Why, for the record.

        Returns:
            The decision; `"held"` if the rollout has already ended.
        """
        return self._course.end("rolled_back", "rollback", reason)

    def kill(self, reason: str) -> Decision:
        """Disable the whole flag: every caller gets the default of its handle, whatever the rules say.

        Args:
            reason: Why, for the record.

        Returns:
            The decision; `"held"` if it was killed before.
        """
        return self._course.end("killed", "kill", reason)

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
        share = self._course.weight
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
        if self._witness.share(self._course.follow):
            self._judge()

    def state(self) -> dict[str, Any]:
        """Return what this process has seen, as JSON data for `merge` elsewhere; empty without a guard.

        It holds 64 bits of a hash for each unit, not the units.
        """
        return self._witness.state()

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in the `state` of another process, or of one before a restart; may roll back.

        A later state of the same process replaces the earlier one, so that merging twice does no harm.

        Args:
            state: What `state` returned there, perhaps sent as JSON.

        Raises:
            ConfigurationError: If it is not such a state, or of another guard.
        """
        self._witness.merge(state)
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
        course = self._course
        if (
            variant not in (self.candidate, self.incumbent)
            or not self._guarded
            or not course.active
        ):
            return False
        share = course.weight if share is None else share
        trial = Trial(variant == self.candidate, ok, latency, share, known, figures, ramp)
        found = self._witness.add(trial)
        if self._shares_evidence:
            # Only what all have seen decides: several processes would have several chances to err.
            return found is not None or self._witness.due()
        if found is not None:
            course.convict(found)
        return False

    def fell_back(self, error: str) -> None:
        """Count that the candidate failed and the incumbent answered; for `mlkit.flags` itself."""
        del error
        self._fell_back.add()

    def shadowed(self, call: Callable[[Any], Any], answer: Any) -> None:
        """Run the candidate on what the incumbent has answered, if it is due; for `mlkit.flags` itself."""
        if not self._course.active or not self._shadow.due():
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
        if not self._course.active or not self._shadow.due():
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
        return _uri(self._flag, self._store, variant)

    def after_fork(self) -> None:
        """Make a child's copy usable, whatever a thread of the parent was doing; for `mlkit.flags` itself."""
        self._course.after_fork()
        self._witness.after_fork()
        self.models.after_fork()
        self._shadow.after_fork()

    def _judge(self) -> None:
        found = self._witness.enough()
        if found is not None:
            self._course.convict(found)

    def __repr__(self) -> str:
        return (
            f"<Rollout of {self.candidate!r} on {self.key!r}: {self.status}, share {self.share:g}>"
        )


def _uri(flag: ModelFlag, store: Store, variant: str) -> str:
    bound = flag.bind(store.current)
    if bound.definition is None or variant not in bound.definition.variants:
        return variant
    return bound.answer(variant, "STATIC").value
