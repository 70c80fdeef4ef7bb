"""The flags of one source: the snapshot in force, and how it is replaced."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit import telemetry
from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit.errors import DegradedWarning, FlagFileError
from mlkit.flags._document import MAX_BYTES, Change, Document, Problem, Snapshot, changed, parse
from mlkit.flags._source import File, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.flags._definition import Definition
    from mlkit.flags._flag import Kind
    from mlkit.flags._rollout import Rollout

__all__ = ["Declared", "Store"]


class Declared(NamedTuple):
    """What is known of the handles on one flag."""

    kind: Kind[Any]
    evaluations: telemetry.Counter
    errors: telemetry.Counter
    defaults: frozenset[str] = frozenset()  # names that they give in trouble, variants or not


class _News(NamedTuple):
    """What is to be told once the lock is free: nobody else's code runs under it."""

    change: Change | None
    problems: tuple[Problem, ...]
    unusable: tuple[tuple[str, str], ...] = ()  # flags whose rollout cannot be applied, and why


@final
class Store:
    """The flags of one source. Writers lock, readers take `current` and never wait.

    Args:
        data: The first document.
        source: Where it comes from, for messages.
        file: The file it was read from, if it was.

    Raises:
        FlagFileError: If the document cannot be used.
    """

    source: str
    file: File | None
    data: bytes
    document: Document
    current: Snapshot

    def __init__(self, data: bytes, source: str, file: File | None = None) -> None:
        self.source, self.file, self.data = source, file, data
        self._content = digest_bytes(data)
        self._lock = threading.Lock()
        self._patches: dict[str, Callable[[Definition], Definition]] = {}
        self._listeners: tuple[list[Callable[[Change], object]], ...] = ()
        self._watcher: Watcher | None = None
        self.failure: Problem | None = None
        self.declared: dict[str, Declared] = {}
        self.rollouts: dict[str, Rollout] = {}
        self._members: weakref.WeakSet[Rollout] = weakref.WeakSet()
        self.document = parse(data, source, None)
        self._confirmed = current().monotonic()
        self.current = self._build(self.document)[0]
        telemetry.register(self)
        _stores.add(self)
        self._announce(_News(None, self.document.problems))

    @classmethod
    def open(cls, path: str, interval: float | None) -> Store:
        """Read a file, and watch it every *interval* seconds unless that is None."""
        file = File(path, MAX_BYTES)
        try:
            data = file.read()
        except OSError as error:
            raise FlagFileError(path, _os_reason(error)) from error
        store = cls(data, path, file)
        if interval is not None:
            store._watcher = Watcher(store, interval)
        return store

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
                telemetry.Counter("flags_evaluations_total", flag=key),
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
        """Read the file again."""
        if self.file is None:
            return None
        failed: FlagFileError | None = None
        fresh, news = False, _News(None, ())
        with self._lock:
            try:
                news = self._read(self.file)
            except FlagFileError as error:
                problem = Problem(None, "", str(error), kept=True)
                fresh, self.failure, failed = problem != self.failure, problem, error
        if failed is None:
            return self._announce(news)
        if fresh:
            telemetry.emit("flags.reload.failed", self.source, digest=self.current.digest)
        raise failed

    def replace(self, data: bytes) -> Change | None:
        """Take another document."""
        with self._lock:
            news = self._take(data, digest_bytes(data))
        return self._announce(news)

    def patch(self, key: str, patch: Callable[[Definition], Definition] | None) -> Change | None:
        """Change one definition in memory, now and after every reload; None undoes it."""
        with self._lock:
            patches = {other: kept for other, kept in self._patches.items() if other != key}
            if patch is not None:
                patches[key] = patch
            self._patches = patches
            news = self._swap(self.document)
        return self._announce(news)

    def poll(self) -> None:
        """Reload if the file may have changed; never raises. What the watcher calls."""
        if self.file is None:
            return
        if self.failure is None and self.file.unchanged():
            self._confirmed = current().monotonic()
            return
        with suppress(FlagFileError):  # it is in `failure`, and was emitted
            self.reload()

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
        self._lock = threading.Lock()
        for rollout in list(self._members):
            rollout.after_fork()
        if self._watcher is not None:
            self._watcher.restart()

    def _read(self, file: File) -> _News:
        try:
            data = file.read()
        except OSError as error:
            raise FlagFileError(self.source, _os_reason(error)) from error
        content = digest_bytes(data)
        if content != self._content:
            return self._take(data, content)
        self.failure = None
        self._confirmed = current().monotonic()
        return _News(None, ())

    def _take(self, data: bytes, content: str) -> _News:
        document = parse(data, self.source, self.document)
        fresh = tuple(
            problem for problem in document.problems if problem not in self.document.problems
        )
        news = self._swap(document)
        # Last, so that a fork in between leaves the child to do it again.
        self.failure, self._content, self.data = None, content, data
        self._confirmed = current().monotonic()
        return news._replace(problems=fresh)

    def _swap(self, document: Document) -> _News:
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
        return _News(changed(before, after, document.problems), (), unusable)

    def _build(self, document: Document) -> tuple[Snapshot, tuple[tuple[str, str], ...]]:
        from mlkit.flags._check import RuleError

        definitions, unusable = document.definitions, []
        for key, patch in self._patches.items():
            if key in definitions:
                try:
                    definitions = {**definitions, key: patch(definitions[key])}
                except RuleError as error:
                    unusable.append((key, error.reason))
        return Snapshot(definitions, document.broken, document.shared.metadata), tuple(unusable)

    def _announce(self, news: _News) -> Change | None:
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
        if self.file is None:
            return Store, (self.data, self.source)
        return Store.open, (str(self.file.path), self.watching)


def _os_reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or type(error).__name__}"


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
