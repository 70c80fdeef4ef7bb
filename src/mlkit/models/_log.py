"""The history of one model: an append-only file of chained lines.

A line is `{"sum":"<64 hex digits>","event":{...}}`; the sum is SHA-256 over the sum of the line before and the bytes of
the event, and the first line goes on from the model's name. So a changed, swapped or foreign line is found, and a lost
one unless nothing follows it; and any tool that reads JSON lines can read it. What a process that died left behind (a
last line without its end) was never acknowledged: readers ignore it and the next writer removes it.

Now and then a writer adds a mark, `{"mark":"<64 hex digits>","state":{...}}`: what the lines before it add up to, and
SHA-256 over all their bytes and it. Who opens a long history checks those bytes in one go and goes on from there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, final

from mlkit.errors import ConfigurationError, IntegrityError, ModelStoreError
from mlkit.models._folder import Folder, write_all
from mlkit.models._marks import marked, read_mark
from mlkit.models._names import is_name
from mlkit.models._plain import dump
from mlkit.models._state import HEAD, MARK, MIDDLE, TAIL, Folding, State, body_of
from mlkit.telemetry import Counter, register

__all__ = ["Log", "State", "name_of"]

LOG_FORMAT = 1
MAX_LINE = 1 << 20
_MAX_LOG = 1 << 28
# Between two marks: a reader goes over few lines, and all marks together stay small beside the lines.
_MARK_AFTER, _MARK_SHARE = 16, 64
_REPAIRS = Counter("models_log_repairs_total")
register(_REPAIRS)


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
            ConfigurationError: If it is that of a name that the file system takes for this one.
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

    def append(self, state: State, *events: dict[str, Any]) -> State:
        """Add events durably, all or none, and return the new state.

        The caller holds the lock and has just read *state*.

        Args:
            state: The present state.
            events: What happened, see `Change`.
        """
        after = state
        for event in events:
            after = self._next(after, event)
        lines = after.data[state.end :]
        if after.n_changes - state.marked_at >= max(_MARK_AFTER, after.n_changes // _MARK_SHARE):
            after = after.marked(marked(after.data, after) + b"\n", MAX_LINE)
            lines = after.data[state.end :]
        if after.end > _MAX_LOG:
            raise ModelStoreError(
                f"the history of {self._name!r} is full: {self.path} would have {after.end} bytes, and no more than "
                f"{_MAX_LOG} are read; go on under another name"
            )
        self._folder.make("models")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._folder.open(self.relative, flags)
        try:
            if state.end == 0:
                # First: a line that cannot be lost must be in a file that cannot be.
                self._folder.sync("models")
            if os.fstat(descriptor).st_size != state.end:
                os.ftruncate(descriptor, state.end)  # what a dead writer left
                _REPAIRS.add()
            try:
                write_all(descriptor, lines)
                os.fsync(descriptor)
            except OSError:
                # The caller is told that nothing happened, so nothing may have happened.
                os.ftruncate(descriptor, state.end)
                raise
            # Not read back: it has happened, and nothing that fails now may say otherwise.
            self._seen = None
            with suppress(OSError):
                self._seen = (_signature(os.fstat(descriptor)), after)
        finally:
            with suppress(OSError):  # as a network file system may; what was written is on the disk
                os.close(descriptor)
        return after

    def _next(self, state: State, event: dict[str, Any]) -> State:
        body = dump({**event, "v": LOG_FORMAT, "seq": state.n_changes + 1, "model": self._name})
        total = _chain(state.sum, body)
        line = HEAD + total.encode("ascii") + MIDDLE + body + TAIL
        if len(line) > MAX_LINE:
            raise ConfigurationError(
                "metrics and tags", f"{len(line)} bytes of them", f"at most {MAX_LINE} bytes in all"
            )
        return state.after(line + b"\n", total, event | {"seq": state.n_changes + 1})

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
                self._refuse_other_case(data)
                raise
            # What we had read before may have been taken back since: its writer was told that it could not be kept.
            self._seen = None
            return self.read_locked()
        self._seen = (signature, state)
        return state

    def _refuse_other_case(self, data: bytes) -> None:
        """Raise if the file is the history of a name that only some file systems tell from this one."""
        import json

        try:
            other = json.loads(body_of(data.partition(b"\n")[0]))["model"]
            is_other = (
                other != self._name
                and other.lower() == self._name.lower()
                and is_name(other)
                and os.path.samefile(self._folder.path(log_path(other)), self.path)  # noqa: PTH121 - paths are text here
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
            return
        if is_other:
            raise ConfigurationError(
                "the name of a model",
                self._name,
                f"{other!r}, or a name that differs from it in more than case",
                hint="the file system of this store takes the two for one",
            )

    def _empty(self) -> State:
        return State(b"", 0, _chain("", self._name.encode("ascii")))

    def _fold(self, state: State, data: bytes) -> State:
        """Return the state after more bytes of the file, of which those without a line end do not count."""
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        whole = state.data[: state.end] + data[:end] if state.end else data[:end]
        if not state.end:
            state = _from_last_mark(whole) or state
        total, begin, folding = state.sum, state.end, Folding(state)
        marked_at = state.marked_at
        for line in whole[begin:].split(b"\n")[:-1]:
            if line.startswith(MARK):
                said = read_mark(whole, begin, begin + len(line))
                if said is None or said.to_mark() != folding.done(b"", total).to_mark():
                    raise self._damaged(whole, begin, "a mark of something else")
                marked_at = said.n_changes
            else:
                total = self._add(folding, total, line, whole, begin)
            begin += len(line) + 1
        if _misses_only_its_end(total, rest):
            raise self._damaged(whole, begin, "a whole line with a damaged end")
        after = folding.done(whole, total)
        after.marked_at = marked_at
        return after

    def _add(self, folding: Folding, total: str, line: bytes, whole: bytes, begin: int) -> str:
        """Add the event of a line and return its sum."""
        body = body_of(line)
        expected = _chain(total, body)
        if line != HEAD + expected.encode("ascii") + MIDDLE + body + TAIL or len(line) > MAX_LINE:
            raise self._damaged(whole, begin, "something else")
        import json

        try:
            event = json.loads(body.decode("ascii"))
            written_in = event["v"]
            if isinstance(written_in, int) and written_in > LOG_FORMAT:
                raise ModelStoreError(
                    f"{self.path} was written by a newer mlkit (log format {written_in}, this one reads up to "
                    f"{LOG_FORMAT}): upgrade mlkit-blocks"
                )
            if event["seq"] != folding.n_changes + 1 or event["model"] != self._name:
                raise ValueError("place")
            folding.add(begin, event)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise self._damaged(whole, begin, "an event that cannot be") from None
        return expected

    def _damaged(self, data: bytes, begin: int, got: str) -> IntegrityError:
        number = data.count(b"\n", 0, begin) + 1
        return IntegrityError(
            f"{self.path} line {number}",
            expected=f"line {number} of the history of {self._name!r} as it was written",
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


def _from_last_mark(data: bytes) -> State | None:
    """Return the state after the last mark, or None if there is none that holds: then every line is looked at."""
    begin = data.rfind(b"\n" + MARK) + 1
    return read_mark(data, begin, data.index(b"\n", begin)) if begin else None


def _misses_only_its_end(total: str, rest: bytes) -> bool:
    # A torn line is a beginning of one. A whole line followed by one byte that is no newline is a damaged newline.
    line = rest[:-1]
    body = body_of(line)
    return line.startswith(HEAD) and line == (
        HEAD + _chain(total, body).encode("ascii") + MIDDLE + body + TAIL
    )
