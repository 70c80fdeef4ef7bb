"""A timeout for a `def` that does not come back: it runs in a worker thread, which is left behind when its time is over."""

from __future__ import annotations

import os
import threading
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from mlkit._arguments import seconds, whole
from mlkit._clock import current
from mlkit.errors import BulkheadFullError, DeadlineExceededError
from mlkit.resilience._ambient import AMBIENT, Ambient, inherited
from mlkit.resilience._settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._plan import Plan

__all__ = ["Threaded", "in_worker"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_IDLE = 10.0  # seconds after which a worker without work ends


@final
class Threaded(Frozen):
    """A timeout for a `def` that cannot be asked to stop: each attempt runs in a thread of its own. Frozen.

    When its time is over, the caller gets a `DeadlineExceededError` and the thread is left behind: Python cannot end a
    thread. It goes on using what it uses until the function returns; then it serves again. As soon as *max_abandoned* of
    a policy are left behind, further calls are rejected with a `BulkheadFullError`, so that a function that always hangs
    costs so many threads and no more. `resilience_abandoned_threads{policy}` says how many there are.

    The threads are daemons, shared by all policies and reused; a call costs about 20 us more. The function sees a copy of
    the caller's context (`remaining()` falls to 0 for one left behind), and cannot change the caller's. A forked child
    starts with none.

    Args:
        limit: Seconds an attempt may take.
        max_abandoned: How many threads of a policy may be left behind at a time, at least 1.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> from mlkit.resilience import Policy
        >>> Policy(timeout=Threaded(5.0)).call(max, 1, 2)
        2
    """

    __slots__ = ("limit", "max_abandoned")

    limit: float
    max_abandoned: int

    def __init__(self, limit: float, *, max_abandoned: int = 16) -> None:
        self._set(
            limit=seconds("Threaded(limit)", limit),
            max_abandoned=whole("Threaded(max_abandoned=...)", max_abandoned, low=1),
        )


def in_worker(plan: Plan, how: Threaded, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return *fn* run by a worker, within the time that the attempt around it has left."""
    limits = plan.policy._limits  # noqa: SLF001 - one room

    def threaded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if limits.abandoned >= how.max_abandoned:
            limits.count("rejections", plan.name)
            raise BulkheadFullError(plan.name, f"{limits.abandoned} threads were left behind")
        job = _Job(partial(fn, *args, **kwargs))
        _submit(job)
        when = inherited(AMBIENT.get())[0]
        if not job.wait(when):
            limits.abandon(plan.name, job)
            raise DeadlineExceededError(plan.name, how.limit)
        try:
            answer: _R = job.result()
            return answer
        finally:
            del job  # or its error, whose frames lead back here, would keep it

    return threaded


@final
class _Job:
    """One call on its way to a worker and back."""

    __slots__ = ("_answer", "_call", "_context", "_done", "_error", "_left", "_link", "_over")

    def __init__(self, call: Callable[[], Any]) -> None:
        head = AMBIENT.get()
        self._call: Callable[[], Any] | None = call
        self._context: Context | None = copy_context()
        # A link of its own: for one that is left behind, the time is over, not the limit gone.
        self._link = link = Ambient()
        link.when, link.allowed, link.retrying = inherited(head)
        link.around = head
        self._context.run(AMBIENT.set, link)
        self._done = threading.Condition()
        self._over = False
        self._answer: Any = None
        self._error: BaseException | None = None
        self._left: Callable[[], None] | None = None

    def run(self) -> None:
        call, context = self._call, self._context
        self._call = self._context = None
        assert call is not None  # noqa: S101 - for the type checker: run once
        assert context is not None  # noqa: S101
        answer, error = None, None
        try:
            answer = context.run(call)
        except BaseException as raised:  # noqa: BLE001 - it is the caller's, and is raised there
            error = raised
        self._link.over = True
        del call, context
        with self._done:
            self._over = True
            left = self._left
            if left is None:
                self._answer, self._error = answer, error
            self._done.notify_all()
        answer = error = None  # the traceback of the error leads to this frame
        if left is not None:
            left()

    def wait(self, until: float) -> bool:
        """Wait for the end until that moment; return whether it came."""
        clock = current()
        with self._done:
            while not self._over:
                if until == inf:
                    clock.wait(self._done, None)
                    continue
                left = until - clock.monotonic()
                if left <= 0:
                    return False
                clock.wait(self._done, left)
            return True

    def leave(self, then: Callable[[], None]) -> bool:
        """Nobody waits any more: call *then* when it ends. Return False if it has ended by now."""
        with self._done:
            if self._over:
                return False
            self._left = then
            return True

    def result(self) -> Any:
        answer, error = self._answer, self._error
        self._answer = self._error = None
        if error is None:
            return answer
        try:
            raise error
        finally:
            del error, answer


_lock = threading.Lock()
_idle: list[_Worker] = []


def _submit(job: _Job) -> None:
    with _lock:
        worker = _idle.pop() if _idle else None
    if worker is None or not worker.take(job):
        _Worker(job)


@final
class _Worker:
    """A daemon thread that runs one job after the other."""

    def __init__(self, job: _Job) -> None:
        self._wake = threading.Condition()
        self._job: _Job | None = job
        self._ended = False
        threading.Thread(target=self._serve, name="mlkit-attempt", daemon=True).start()

    def take(self, job: _Job) -> bool:
        """Run *job* next; False if the thread has ended meanwhile."""
        with self._wake:
            if self._ended:
                return False
            self._job = job
            self._wake.notify()
            return True

    def _serve(self) -> None:
        while True:
            with self._wake:
                if self._job is None:
                    self._wake.wait(_IDLE)  # real time: idle threads are nobody's test
                job, self._job = self._job, None
                if job is None:
                    self._ended = True
            if job is None:
                with _lock:
                    if self in _idle:
                        _idle.remove(self)
                return
            job.run()
            del job
            with _lock:
                _idle.append(self)


def _forked() -> None:
    global _lock  # noqa: PLW0603 - the threads of the parent, and what they held, are not here
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
