"""One request served under a rollout, and the models that serve it."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

from mlkit._clock import current
from mlkit.errors import DegradedWarning

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from types import TracebackType

    from mlkit.flags._flag import Details
    from mlkit.flags._rollout import Rollout

__all__ = ["Models", "Served"]

R = TypeVar("R")
_COROUTINE = 0x80  # `inspect.CO_COROUTINE`


@final
class _Loaded:
    __slots__ = ("error", "model", "ready", "retired", "there", "users")

    def __init__(self) -> None:
        self.ready = threading.Event()  # loading has ended
        self.there = False  # and well
        self.model: Any = None
        self.error: Exception | None = None
        self.users = 0
        self.retired = False


@final
class Models:
    """Models by URI: loaded once when first needed, given up when no longer wanted and no longer in use.

    Args:
        load: Returns the model of a URI.
        unload: Is called with a model that is given up, or None.
    """

    def __init__(self, load: Callable[[str], Any], unload: Callable[[Any], object] | None) -> None:
        self._load, self._unload = load, unload
        self._lock = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}

    def take(self, uri: str) -> Any:
        """Return a model, which stays loaded until it is given back as often as it was taken.

        Raises:
            Exception: What the loader raises. The next call tries again.
        """
        with self._lock:
            entry = self._loaded.get(uri)
            first = entry is None
            if entry is None:
                entry = self._loaded[uri] = _Loaded()
            entry.users += 1
            entry.retired = False
        if first:
            self._fill(entry, uri)
        else:
            entry.ready.wait()
            if entry.error is not None:
                raise entry.error
            if not entry.there:  # who was loading it was interrupted
                return self.take(uri)
        return entry.model

    def _fill(self, entry: _Loaded, uri: str) -> None:
        try:
            entry.model = self._load(uri)
            entry.there = True
        except Exception as error:
            entry.error = error
            raise
        finally:
            if not entry.there:
                with self._lock:
                    self._loaded.pop(uri, None)
            entry.ready.set()

    def take_loaded(self, uri: str) -> tuple[bool, Any]:
        """Return whether a model is loaded, and if so the model, taken as by `take`; never waits."""
        with self._lock:
            entry = self._loaded.get(uri)
            if entry is None or not entry.there:
                return False, None
            entry.users += 1
            entry.retired = False
            return True, entry.model

    async def atake(self, uri: str) -> Any:
        """As `take`, while other tasks go on: a model is loaded in a thread.

        Raises:
            Exception: What the loader raises.
        """
        import asyncio
        from contextvars import copy_context

        loaded, model = self.take_loaded(uri)
        if loaded:
            return model
        loop = asyncio.get_running_loop()
        taking = loop.run_in_executor(None, copy_context().run, self.take, uri)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # nobody will use it, so nobody would give it back

            def give_back(done: asyncio.Future[Any]) -> None:
                if not done.cancelled() and done.exception() is None:
                    self.give_back(uri)

            taking.add_done_callback(give_back)
            raise

    def give_back(self, uri: str) -> None:
        """End one use."""
        with self._lock:
            entry = self._loaded.get(uri)
            if entry is None:
                return
            entry.users -= 1
        self._drain()

    def retire(self, wanted: Collection[str]) -> None:
        """Give up all but *wanted*, each when nobody uses it any more."""
        with self._lock:
            for uri, entry in self._loaded.items():
                entry.retired = uri not in wanted
        self._drain()

    def after_fork(self) -> None:
        """Make a child's copy usable: who was loading or using a model in another thread is gone."""
        self._lock = threading.Lock()
        self._loaded = {uri: one for uri, one in self._loaded.items() if one.there}

    def _drain(self) -> None:
        with self._lock:
            gone = [uri for uri, one in self._loaded.items() if one.retired and one.users <= 0]
            models = [self._loaded.pop(uri).model for uri in gone]
        if self._unload is None:
            return
        for model in models:
            try:
                self._unload(model)
            except Exception as error:  # noqa: BLE001 - a request that was answered stays so
                message = f"a model could not be unloaded: {type(error).__name__}: {error}"
                warnings.warn(message, DegradedWarning, stacklevel=3)


@final
class Served:
    """One request under a rollout: which variant serves it, its model, and how it went. A context manager.

    At the end the rollout is told how it went: an exception that leaves the block, or a candidate that failed in `run`, is a
    failure; the time counts without loading the model. In coroutines `async with` and `arun` do the same and let other
    tasks go on meanwhile. Made by `Rollout.serve`; for one thread or task.

    Attributes:
        details: The answer of the flag.
        metrics: Figures of this request for the guard's `Mean` metrics; put them in.
    """

    __slots__ = (
        "_begin",
        "_loading",
        "_ok",
        "_ramp",
        "_rollout",
        "_shadow",
        "_share",
        "_taken",
        "_unit",
        "details",
        "metrics",
    )
    details: Details[str]
    metrics: dict[str, float]

    def __init__(
        self, rollout: Rollout, unit: Any, details: Details[str], share: float, *, ramp: bool
    ) -> None:
        self._rollout, self._unit, self.details = rollout, unit, details
        self._share, self._ramp = share, ramp
        self.metrics = {}
        self._ok, self._begin, self._loading = True, 0.0, 0.0
        self._taken: dict[str, Any] = {}
        self._shadow: Callable[[], None] | None = None

    @property
    def variant(self) -> str | None:
        """The variant that the flag chose."""
        return self.details.variant

    @property
    def model(self) -> Any:
        """Its model, loaded on first use; without a loader the URI.

        Raises:
            Exception: What the loader raises.
        """
        return self._take(self.details.value)

    def run(self, call: Callable[[Any], R]) -> R:
        """Return what *call* makes of the model; if the candidate fails, what it makes of the incumbent's, once.

        With a shadow share, *call* may run again later with the candidate's model, in another thread.

        Args:
            call: A function of the model; it must be fit to be called twice.

        Raises:
            Exception: What it raises with the incumbent's model.
            TypeError: If it is a coroutine function; that is for `arun`.
        """
        if _is_async(call):
            raise TypeError("Served.run calls functions; await Served.arun(call) for a coroutine")
        rollout = self._rollout
        if self.variant == rollout.candidate:
            try:
                return call(self.model)
            except Exception as error:  # noqa: BLE001 - the incumbent is there for any failure
                self._fall_back(error)
            return call(self._take(rollout.uri(rollout.incumbent)))
        try:
            answer = call(self.model)
        except Exception:
            self._ok = False
            raise
        if self.variant == rollout.incumbent:
            self._shadow = partial(rollout.shadowed, call, answer)
        return answer

    async def arun(self, call: Callable[[Any], Awaitable[R]]) -> R:
        """Return what the coroutine function *call* makes of the model, as `run` does.

        A model is loaded in a thread, so that other tasks of the loop go on. A cancelled request says nothing about the
        model: there is no second attempt, and nothing is observed. With a shadow share, *call* may run again later with
        the candidate's model, as a task of the same loop.

        Args:
            call: A coroutine function of the model; it must be fit to be called twice.

        Raises:
            Exception: What it raises with the incumbent's model.
        """
        rollout = self._rollout
        if self.variant == rollout.candidate:
            try:
                return await call(await self._atake(self.details.value))
            except Exception as error:  # noqa: BLE001 - as in `run`
                self._fall_back(error)
            return await call(await self._atake(rollout.uri(rollout.incumbent)))
        try:
            answer = await call(await self._atake(self.details.value))
        except Exception:
            self._ok = False
            raise
        if self.variant == rollout.incumbent:
            self._shadow = partial(rollout.ashadowed, call, answer)
        return answer

    def _fall_back(self, error: Exception) -> None:
        self._ok = False
        self._rollout.fell_back(type(error).__name__)

    def _take(self, uri: str) -> Any:
        if uri not in self._taken:
            clock = current()
            begin = clock.monotonic()
            try:
                self._taken[uri] = self._rollout.models.take(uri)
            finally:
                self._loading += clock.monotonic() - begin
        return self._taken[uri]

    async def _atake(self, uri: str) -> Any:
        if uri not in self._taken:
            clock = current()
            begin = clock.monotonic()
            try:
                self._taken[uri] = await self._rollout.models.atake(uri)
            finally:
                self._loading += clock.monotonic() - begin
        return self._taken[uri]

    def __enter__(self) -> Served:
        self._begin = current().monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._end(error):
            self._rollout.sync()

    async def __aenter__(self) -> Served:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._end(error):
            import asyncio

            await asyncio.to_thread(self._rollout.sync)  # it reads and writes files

    def _end(self, error: BaseException | None) -> bool:
        """Tell the rollout how it went, and return whether it is time to tell the other processes."""
        latency = max(0.0, current().monotonic() - self._begin - self._loading)
        rollout, due = self._rollout, False
        for uri in self._taken:
            rollout.models.give_back(uri)
        # Who is cancelled or interrupted says nothing about the model.
        if error is None or isinstance(error, Exception):
            ok = self._ok and error is None
            due = rollout.ended(
                self.variant,
                ok=ok,
                latency=latency,
                unit=self._unit,
                metrics=self.metrics,
                share=self._share,
                ramp=self._ramp,
            )
        if error is None and self._shadow is not None:
            self._shadow()
        return due


def _is_async(call: object) -> bool:
    # `inspect` costs 8 ms at import; this is what it looks at first, and a callable object is rare here.
    code = getattr(call, "__code__", None)
    return code is not None and bool(code.co_flags & _COROUTINE)
