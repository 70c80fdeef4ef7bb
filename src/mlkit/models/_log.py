"""The history of one model: an append-only file of chained lines, and the state that it adds up to.

A line is `{"sum":"<64 hex digits>","event":{...}}`; the sum is SHA-256 over the sum of the line before and the bytes of
the event, and the first line goes on from the model's name. So a changed, swapped or foreign line is found, and a lost
one unless nothing follows it; and any tool that reads JSON lines can read it. What a process that died left behind (a
last line without its end) was never acknowledged: readers ignore it and the next writer removes it.
"""

from __future__ import annotations

import os
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, final, get_args

from mlkit.errors import ConfigurationError, IntegrityError, ModelStoreError
from mlkit.models._folder import Folder, checked_digest, write_all
from mlkit.models._names import check_alias, is_name
from mlkit.models._plain import dump
from mlkit.models._version import FORMATS, Change, Facts, Kind
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Log", "State", "name_of"]

LOG_FORMAT = 1
MAX_LINE = 1 << 20
_MAX_LOG = 1 << 28
_KINDS = get_args(Kind)
_REPAIRS = Counter("models_log_repairs_total")
register(_REPAIRS)
_HEAD, _MIDDLE, _TAIL = b'{"sum":"', b'","event":', b"}"
_BODY = len(_HEAD) + 64 + len(_MIDDLE)


class State(NamedTuple):
    """What a log adds up to. Never changed after it was made; the next one is a copy."""

    end: int
    """Bytes of whole lines."""
    sum: str
    changes: tuple[Change, ...]
    versions: Mapping[int, Facts]
    """Those that are not deleted, by number, in order."""
    holders: Mapping[str, tuple[int, ...]]
    """Who held each alias, the present holder last."""
    last: int
    """The highest number ever given."""

    def aliases(self) -> dict[str, int]:
        """Return the number that each alias points at."""
        return {alias: held[-1] for alias, held in sorted(self.holders.items())}


@final
class Log:
    """The log file of one model.

    Args:
        folder: The store.
        name: The model, already checked.
    """

    __slots__ = ("_folder", "_name", "_seen", "relative")

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self.relative = log_path(name)
        # The file's signature and the state it had: one attribute, so that threads see both or neither.
        self._seen: tuple[tuple[int, ...], State] | None = None

    @property
    def path(self) -> str:
        """The file."""
        return self._folder.path(self.relative)

    def read(self) -> State:
        """Return the present state.

        Raises:
            IntegrityError: If the file is not what was written.
            ModelStoreError: If a newer mlkit wrote it.
        """
        try:
            return self.read_locked()
        except IntegrityError:
            # A writer may have been removing what a dead one left, between two parts of our read.
            try:
                with self._folder.lock():
                    return self.read_locked()
            # A store that we may only read has no other writer's lock for us.
            except (ConfigurationError, OSError):
                pass
            raise

    def append(self, state: State, event: dict[str, Any]) -> State:
        """Add an event durably and return the new state. The caller holds the lock and has just read *state*.

        Args:
            state: The present state.
            event: What happened, see `Change`.
        """
        body = dump({**event, "v": LOG_FORMAT, "seq": len(state.changes) + 1, "model": self._name})
        line = _HEAD + _chain(state.sum, body).encode("ascii") + _MIDDLE + body + _TAIL
        if len(line) > MAX_LINE:
            raise ConfigurationError(
                "metrics and tags", f"{len(line)} bytes of them", f"at most {MAX_LINE} bytes in all"
            )
        self._folder.make("models")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._folder.open(self.relative, flags)
        try:
            if state.end == 0:
                self._folder.sync(
                    "models"
                )  # first: a line that cannot be lost must be in a file that cannot be
            if os.fstat(descriptor).st_size != state.end:
                os.ftruncate(descriptor, state.end)  # what a dead writer left
                _REPAIRS.add()
            try:
                write_all(descriptor, line + b"\n")
                os.fsync(descriptor)
            except OSError:
                # The caller is told that nothing happened, so nothing may have happened.
                os.ftruncate(descriptor, state.end)
                raise
            signature = _signature(os.fstat(descriptor))
        finally:
            os.close(descriptor)
        # Not read back: it has happened, and nothing that fails now may say otherwise.
        state = self._fold(state, line + b"\n")
        self._seen = (signature, state)
        return state

    def read_locked(self) -> State:
        """Return the present state; the caller holds the lock, or can bear that a writer is at work."""
        try:
            descriptor = self._folder.open(self.relative)
        except FileNotFoundError:
            return self._empty()
        try:
            facts = os.fstat(descriptor)
            signature = _signature(facts)
            seen = self._seen
            if seen is not None and seen[0] == signature:
                return seen[1]
            # The lines that were read before are not read again: the chain goes on from their sum.
            grown = seen is not None and seen[0][:2] == signature[:2] and facts.st_size > seen[0][2]
            state = seen[1] if seen is not None and grown else self._empty()
            if facts.st_size > _MAX_LOG:
                raise IntegrityError(
                    self.path, expected=f"at most {_MAX_LOG} bytes", got=f"{facts.st_size} bytes"
                )
            data = os.pread(descriptor, facts.st_size - state.end, state.end)
        finally:
            os.close(descriptor)
        try:
            state = self._fold(state, data)
        except IntegrityError:
            if state.end == 0:
                raise
            # What we had read before may have been taken back since: its writer was told that it could not be kept.
            self._seen = None
            return self.read_locked()
        self._seen = (signature, state)
        return state

    def _empty(self) -> State:
        return State(0, _chain("", self._name.encode("ascii")), (), {}, {}, 0)

    def _fold(self, state: State, data: bytes) -> State:
        *lines, rest = data.split(b"\n")
        total, changes = state.sum, list(state.changes)
        versions, holders, last = dict(state.versions), dict(state.holders), state.last
        for line in lines:
            total, event = self._parse(total, line, len(changes) + 1)
            try:
                change = _change(event)
                if change.kind == "saved":
                    last += 1
                    if change.version != last:
                        raise ValueError("number")
                    versions[last] = _facts(event)
                elif change.version not in versions:
                    raise ValueError("no such version")
                elif change.kind == "deleted":
                    del versions[change.version]
                    holders = {
                        alias: _without(held, change.version) for alias, held in holders.items()
                    }
                elif change.kind != "refused":
                    alias = check_alias("alias", change.alias)
                    holders[alias] = _moved(holders.get(alias, ()), change)
            except (KeyError, TypeError, ValueError, OverflowError):
                raise self._damaged(len(changes) + 1, "an event that cannot be") from None
            changes.append(change)
        if _misses_only_its_end(total, rest):
            raise self._damaged(len(changes) + 1, "a whole line with a damaged end")
        end = state.end + len(data) - len(rest)
        return State(end, total, tuple(changes), versions, holders, last)

    def _parse(self, total: str, line: bytes, sequence: int) -> tuple[str, dict[str, Any]]:
        body = line[_BODY : -len(_TAIL)]
        expected = _chain(total, body)
        if (
            line != _HEAD + expected.encode("ascii") + _MIDDLE + body + _TAIL
            or len(line) > MAX_LINE
        ):
            raise self._damaged(sequence, "something else")
        import json

        try:
            event = json.loads(body.decode("ascii"))
            written_in = event["v"]
            if isinstance(written_in, int) and written_in > LOG_FORMAT:
                raise ModelStoreError(
                    f"{self.path} was written by a newer mlkit (log format {written_in}, this one reads up to "
                    f"{LOG_FORMAT}): upgrade mlkit-blocks"
                )
            if event["seq"] != sequence or event["model"] != self._name:
                raise ValueError("place")
        except (KeyError, TypeError, ValueError, RecursionError):
            raise self._damaged(sequence, "an event that cannot be") from None
        return expected, event

    def _damaged(self, sequence: int, got: str) -> IntegrityError:
        return IntegrityError(
            f"{self.path} line {sequence}",
            expected=f"line {sequence} of the history of {self._name!r} as it was written",
            got=got,
        )


def log_path(name: str) -> str:
    """Return where the log of a model lies, relative to the store.

    Args:
        name: A checked name.
    """
    return f"models/{name.replace('/', '%2F')}.jsonl"


def name_of(file: str) -> str | None:
    """Return the model whose log a file of `models/` is, or None if it is none.

    Args:
        file: Its name.
    """
    name = file.removesuffix(".jsonl").replace("%2F", "/")
    return name if is_name(name) and log_path(name) == f"models/{file}" else None


def _signature(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _chain(total: str, body: bytes) -> str:
    from hashlib import sha256

    return sha256(total.encode("ascii") + body).hexdigest()


def _misses_only_its_end(total: str, rest: bytes) -> bool:
    # A torn line is a beginning of one. A whole line followed by one byte that is no newline is a damaged newline.
    line = rest[:-1]
    body = line[_BODY : -len(_TAIL)]
    return line.startswith(_HEAD) and line == (
        _HEAD + _chain(total, body).encode("ascii") + _MIDDLE + body + _TAIL
    )


def _change(event: dict[str, Any]) -> Change:
    change = Change(
        event["seq"],
        event["kind"],
        event["version"],
        event.get("alias"),
        event.get("previous"),
        event["who"],
        float(event["time"]),
        event["why"],
        dict(event.get("evidence", {})),
    )
    if change.kind not in _KINDS or type(change.version) is not int:
        raise ValueError("kind")
    return change


def _facts(event: dict[str, Any]) -> Facts:
    if event["format"] not in FORMATS or not isinstance(event["run"], (str, NoneType)):
        raise ValueError("format or run")
    return Facts(
        float(event["time"]),
        str(event["who"]),
        checked_digest(event["digest"]),
        checked_digest(event["payload"]),
        event["format"],
        int(event["n_bytes"]),
        event["run"],
        {str(key): float(value) for key, value in dict(event["metrics"]).items()},
        {str(key): str(value) for key, value in dict(event["tags"]).items()},
    )


def _moved(held: tuple[int, ...], change: Change) -> tuple[int, ...]:
    """Return the holders of an alias after a change: a promotion pushes, a rollback pops."""
    if change.kind == "promoted":
        return (*held, change.version)
    while held and held[-1] != change.version:
        held = held[:-1]
    if not held:
        raise ValueError("rolled back to a version that never held the alias")
    return held


def _without(held: tuple[int, ...], gone: int) -> tuple[int, ...]:
    """Return the holders of an alias without a deleted version, and without a version following itself."""
    kept: list[int] = []
    for number in held:
        if number != gone and kept[-1:] != [number]:
            kept.append(number)
    return tuple(kept)
