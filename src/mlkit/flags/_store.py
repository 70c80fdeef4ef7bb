"""The flags of one source: the snapshot in force, and how it is replaced."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit import telemetry
from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit.errors import DegradedWarning, FlagFileError
from mlkit.flags._document import Change, Document, Problem, Snapshot, changed, parse, snapshot_of
from mlkit.flags._source import File
from mlkit.flags._tally import Tally
from mlkit.flags._watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.flags._definition import Definition
    from mlkit.flags._exposures import Exposures
    from mlkit.flags._flag import Kind
    from mlkit.flags._kept import Kept
    from mlkit.flags._rollout import Rollout
    from mlkit.flags._source import Reading, Source

__all__ = ["Declared", "Store"]


class Declared(NamedTuple):
    """What is known of the handles on one flag."""

    kind: Kind[Any]
    evaluations: Tally
    errors: telemetry.Counter
    defaults: frozenset[str] = frozenset()  # names that they give in trouble, variants or not


class _News(NamedTuple):
    """What is to be told once the lock is free: nobody else's code runs under it."""

    change: Change | None
    problems: tuple[Problem, ...]
    unusable: tuple[tuple[str, str], ...] = ()  # flags whose rollout cannot be applied, and why
    recovered: bool = False  # whether the source can be used again


class _Refused(NamedTuple):
    """The bytes read last, if they cannot be used."""

    digest: str
    error: FlagFileError

    def has(self, data: bytes) -> bool:
        """Return whether *data* are those bytes."""
        return self.digest == digest_bytes(data)


@final
class Store:
    """The flags of one source. Writers lock, readers take `current` and never wait.

    Args:
        data: The first document.
        source: What to call its origin in messages.
        origin: Where it can be read again, if it can.
        mark: What the origin said of the reading.
        age: How many seconds ago *data* was known to equal the origin.

    Raises:
        FlagFileError: If the document cannot be used.
    """

    source: str
    origin: Source | None
    data: bytes
    document: Document
    current: Snapshot
    failure: Problem | None

    def __init__(
        self,
        data: bytes,
        source: str,
        origin: Source | None = None,
        *,
        mark: Any = None,
        age: float = 0.0,
    ) -> None:
        self.source, self.origin, self.data = source, origin, data
        self._content, self._mark = data, mark  # what the source had, whatever took its place
        self._refused: _Refused | None = None
        self._replaced = False
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # one look at a time; never taken while `_lock` is held
        self._patches: dict[str, Callable[[Definition], Definition]] = {}
        self._listeners: tuple[list[Callable[[Change], object]], ...] = ()
        self._observers: tuple[list[Callable[[Problem | None], object]], ...] = ()
        self._watcher: Watcher | None = None
        self._kept: Kept | None = None
        self.failure = None
        self.declared: dict[str, Declared] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.exposures: Exposures | None = None
        self._members: weakref.WeakSet[Rollout] = weakref.WeakSet()
        self.document = parse(data, source, None)
        self._reported: tuple[Document | None, tuple[Problem, ...]] = (None, ())
        self._confirmed = current().monotonic() - age
        self.current = self._build(self.document)[0]
        telemetry.register(self)
        _stores.add(self)
        self._announce(_News(None, self.document.problems))

    @classmethod
    def open(cls, origin: Source, interval: float | None, kept: Kept | None = None) -> Store:
        """Read a source, and look at it every *interval* seconds unless that is None.

        Args:
            origin: The source.
            interval: Seconds between two looks.
            kept: Where the last good document outlives the process; it stands in if the source cannot be read now.

        Raises:
            FlagFileError: If there is no document that can be used.
        """
        store = None if kept is None else kept.restore(cls, origin)
        if store is None:
            reading = origin.prepare()(None)
            store = cls(reading.data or b"", origin.name, origin, mark=reading.mark)
        else:
            with suppress(FlagFileError):  # it is in `failure`, and was emitted
                store.reload()
        store._kept = kept
        store._keep()
        if interval is not None:
            store._watcher = Watcher(store, interval, origin.spread)
        return store

    @property
    def file(self) -> File | None:
        """The file that the flags come from, if they come from one."""
        return self.origin if isinstance(self.origin, File) else None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong now: with the source, with keeping its last good document, with single flags."""
        kept = None if self._kept is None else self._kept.problem
        whole = tuple(problem for problem in (self.failure, kept) if problem is not None)
        document, found = self._reported
        if document is not self.document:
            from mlkit.flags._report import report

            document = self.document
            found = report(document, self.data)
            self._reported = (document, found)
        return (*whole, *found)

    @property
    def age(self) -> float:
        """Seconds since the flags were last known to equal their source."""
        return max(0.0, current().monotonic() - self._confirmed)

    def facts(self, key: str) -> dict[str, Any]:
        """Return what rules see as `$flagd`."""
        return {"flagKey": key, "timestamp": math.floor(current().time())}

    def declare(self, key: str, kind: Kind[Any], default: Any) -> Declared:
        """Return the counters that all handles on *key* share."""
        with self._lock:
            known = self.declared.get(key) or Declared(
                kind,
                Tally("flags_evaluations_total", flag=key),
                telemetry.Counter("flags_errors_total", flag=key),
            )
            names = known.defaults | {default} if kind.names_default else known.defaults
            known = self.declared[key] = known._replace(kind=kind, defaults=names)
        return known

    def join(self, rollout: Rollout) -> None:
        """Take note of a rollout, so that a forked child can use it."""
        with self._lock:
            self._members.add(rollout)

    def claim(self, rollout: Rollout, *, force: bool) -> Rollout | None:
        """Make *rollout* the one of its flag; or return the one that is under way, or that took its place."""
        with self._lock:
            owner = self.rollouts.get(rollout.key)
            # An owner that is still ready is about to start.
            over = owner is None or owner.status not in {"ready", "ramping"}
            if force or owner is rollout or (over and (owner is None or rollout.status == "ready")):
                self.rollouts[rollout.key] = rollout
                return None
        return owner

    def reload(self) -> Change | None:
        """Look at the source, and take over what changed."""
        return self._look(asked=True)

    def _look(self, *, asked: bool) -> Change | None:
        if self.origin is None:
            return None
        try:
            read = self.origin.prepare()
            with self._reading:
                # Slow, maybe: `_lock` is free meanwhile, so that a rollback need not wait for a server.
                reading = read(None if asked and self._replaced else self._mark)
                news = self._take_over(reading, asked=asked)
                self._keep()
        except FlagFileError as error:
            self._fail(str(error))
            raise
        change = self._announce(news)
        self._notify()
        return change

    def _take_over(self, reading: Reading, *, asked: bool) -> _News:
        with self._lock:
            refused, self._mark = self._refused, reading.mark
            content = reading.data
            if refused is not None and (content is None or refused.has(content)):
                raise copy(refused.error)
            if content is None or (content == self._content and not (asked and self._replaced)):
                return self._confirm()
            try:
                news = self._take(content)
            except FlagFileError as error:
                self._refused = _Refused(digest_bytes(content), error)  # the bytes may be many
                raise
            # Last, so that a fork in between leaves the child to do it again.
            self._content, self._replaced = content, False
            return news._replace(recovered=self._confirm().recovered)

    def _confirm(self) -> _News:
        """Note that what is in force is what the source has."""
        recovered, self.failure, self._refused = self.failure is not None, None, None
        self._confirmed = current().monotonic()
        return _News(None, (), recovered=recovered)

    def _fail(self, reason: str) -> None:
        """Note that the source cannot be used, and say so once."""
        with self._lock:
            problem = Problem(None, "", reason, kept=True)
            fresh, self.failure = problem != self.failure, problem
        if fresh:
            telemetry.emit("flags.reload.failed", self.source, digest=self.current.digest)
        self._notify()

    def _keep(self) -> None:
        with self._lock:
            document, data, mark = self.document, self.data, self._mark
            usable = self.failure is None and not self._replaced
        if self._kept is not None and usable:
            self._kept.save(document, data, mark)

    def replace(self, data: bytes) -> Change | None:
        """Take another document."""
        with self._lock:
            news = self._take(data)
            self._replaced, self._confirmed = True, current().monotonic()
        return self._announce(news)

    def patch(self, key: str, patch: Callable[[Definition], Definition] | None) -> Change | None:
        """Change one definition in memory, now and after every reload; None undoes it."""
        with self._lock:
            patches = {other: kept for other, kept in self._patches.items() if other != key}
            if patch is not None:
                patches[key] = patch
            # Every patch is made anew, and a rollout may have gone on meanwhile.
            patched = {*self._patches, *patches}
            self._patches = patches
            news = self._swap(self.document, patched)
        return self._announce(news)

    def poll(self) -> None:
        """Look, unless the source is surely as it was; never raises. What the watcher calls."""
        if self.origin is None:
            return
        failure, refused = self.failure, self._refused
        stands = failure is None or (refused is not None and failure.message == str(refused.error))
        if stands and self.origin.unchanged(self._mark):
            if failure is None:
                self._confirmed = current().monotonic()
            self._notify()
            return
        try:
            self._look(asked=False)
        except FlagFileError:
            pass  # it is in `failure`, and was emitted
        except Exception as error:  # noqa: BLE001 - else the thread would end, and the flags freeze in silence
            self._fail(f"{self.source}: cannot be read: {type(error).__name__}")

    def observe(self, observer: Callable[[Problem | None], object]) -> Callable[[], None]:
        """Call *observer* after every look, with what is wrong with the source, until the returned function is called."""
        entry = [observer]
        with self._lock:
            self._observers = (*self._observers, entry)

        def stop() -> None:
            with self._lock:
                self._observers = tuple(other for other in self._observers if other is not entry)

        return stop

    def _notify(self) -> None:
        for (observer,) in self._observers:
            try:
                observer(self.failure)
            except Exception as error:  # noqa: BLE001 - an observer must not stop a reload
                message = f"flags observer {observer!r} failed: {type(error).__name__}: {error}"
                warnings.warn(message, DegradedWarning, stacklevel=2)

    def listen(self, listener: Callable[[Change], object]) -> Callable[[], None]:
        """Call *listener* after every change until the returned function is called."""
        entry = [listener]
        with self._lock:
            self._listeners = (*self._listeners, entry)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not entry)

        return stop

    @property
    def watching(self) -> float | None:
        """Seconds between two looks at the file, None if nobody looks."""
        return None if self._watcher is None else self._watcher.interval

    def close(self) -> None:
        """End watching."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def samples(self) -> list[telemetry.Sample]:
        """Return counters and gauges, for `mlkit.telemetry`."""
        made = [
            telemetry.Sample("flags_snapshot_age_seconds", (("source", self.source),), self.age)
        ]
        for known in list(self.declared.values()):
            made += [*known.evaluations.samples(), *known.errors.samples()]
        return made

    def after_fork(self) -> None:
        """Make a child's copy usable: a lock that a thread held stays locked, and threads are gone."""
        self._lock, self._reading = threading.Lock(), threading.Lock()
        for rollout in list(self._members):
            rollout.after_fork()
        if self._watcher is not None:
            self._watcher.restart()

    def _take(self, data: bytes) -> _News:
        document = parse(data, self.source, self.document)
        before = {*self.document.problems}
        fresh = tuple(problem for problem in document.problems if problem not in before)
        news = self._swap(document)
        self.data = data
        return news._replace(problems=fresh)

    def _swap(self, document: Document, patched: Iterable[str] | None = None) -> _News:
        before = self.current
        after, unusable = self._build(document)
        self.document = document
        if (after.digest, after.broken, after.metadata) == (
            before.digest,
            before.broken,
            before.metadata,
        ):
            return _News(None, (), unusable)
        self.current = after
        return _News(changed(before, after, document.problems, patched), (), unusable)

    def _build(self, document: Document) -> tuple[Snapshot, tuple[tuple[str, str], ...]]:
        from mlkit.flags._check import RuleError

        patched, unusable = {}, []
        for key, patch in self._patches.items():
            if key in document.definitions:
                try:
                    patched[key] = patch(document.definitions[key])
                except RuleError as error:
                    unusable.append((key, error.reason))
        return snapshot_of(document, patched), tuple(unusable)

    def _announce(self, news: _News) -> Change | None:
        if news.recovered:
            telemetry.emit("flags.reload.recovered", self.source, digest=self.current.digest)
        for problem in news.problems:
            telemetry.emit(
                "flags.flag.quarantined",
                problem.flag or self.source,
                pointer=problem.pointer,
                reason=problem.message,
                kept=problem.kept,
            )
        for key, reason in news.unusable:
            telemetry.emit("flags.rollout.unusable", key, reason=reason)
        change = news.change
        if change is None:
            return None
        telemetry.emit(
            "flags.changed",
            self.source,
            n_keys=len(change.keys),
            before=change.before,
            after=change.after,
        )
        for (listener,) in self._listeners:
            try:
                listener(change)
            except Exception as error:  # noqa: BLE001 - a listener must not stop a reload
                message = f"flags listener {listener!r} failed: {type(error).__name__}: {error}"
                warnings.warn(message, DegradedWarning, stacklevel=2)
        return change

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is None:
            return Store, (self.data, self.source)
        return Store.open, (self.origin, self.watching, self._kept)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
