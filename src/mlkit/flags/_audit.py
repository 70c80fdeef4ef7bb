"""Who changed what, when and why: a file that only grows, in which each line holds the digest of the one before."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._clock import current
from mlkit._digest import digest
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, DigestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlkit.flags._document import Change

__all__ = ["Audit", "AuditReport", "locked", "verify_audit"]

_START = "sha256:" + "0" * 64
_TAIL = 1 << 16


class AuditReport(NamedTuple):
    """What `verify_audit` found.

    Attributes:
        n_entries: How many whole entries there are.
        head: Digest of the last one. Kept elsewhere, it shows later whether the end was cut off.
        torn: Lines, from 1, that a crash left unfinished. The chain goes on over them.
        problems: What was changed, removed or put in, with its line; empty if nothing was.
    """

    n_entries: int
    head: str
    torn: tuple[int, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was tampered with, as far as the file can tell."""
        return not self.problems


@final
class Audit:
    """An append-only record of decisions, one JSON object a line, chained by digests.

    Each entry has `n`, `time` (Unix, seconds), `actor`, `process`, `action`, `flag`, `before` and `after` (digests of the
    flags), `keys`, `reason`, `evidence`, `previous` and its own `digest`. An entry is on the disk when `append` returns.
    Pass `record` to `Flags.on_change` to have every reload in it.

    Thread-safe, and safe between processes of one machine (`flock`) and over forks; each entry opens the file anew.
    Picklable. It makes no file before the first entry.

    Args:
        path: The file; its folder must exist.
        actor: Who decides; if None, the name of the user that the process runs as.

    Examples:
        >>> audit = Audit(tmp_path / "audit.jsonl", actor="ann")
        >>> _ = audit.append("killed", flag="ranker", reason="wrong language")
        >>> report = verify_audit(tmp_path / "audit.jsonl")
        >>> report.n_entries, report.ok
        (1, True)
    """

    __slots__ = ("actor", "path")
    path: str
    actor: str

    def __init__(self, path: str | os.PathLike[str], *, actor: str | None = None) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigurationError("Audit(path)", path, "the path of a file")
        if actor is not None and (not isinstance(actor, str) or not actor):
            raise ConfigurationError("Audit(actor=...)", actor, "a non-empty text, or None")
        self.path = os.fspath(path)
        self.actor = actor or _user()

    def append(
        self,
        action: str,
        *,
        flag: str | None = None,
        before: str | None = None,
        after: str | None = None,
        keys: tuple[str, ...] = (),
        reason: str = "",
        evidence: Mapping[str, float] | None = None,
    ) -> str:
        """Add an entry.

        Args:
            action: What was done.
            flag: To which flag, if to one.
            before: Digest of the flags before.
            after: Digest of the flags after.
            keys: The flags that it changed.
            reason: Why.
            evidence: The figures it rests on.

        Returns:
            The digest of the entry.

        Raises:
            ConfigurationError: If the entry is no plain data.
            OSError: If the file cannot be written.
        """
        entry: dict[str, Any] = {
            "time": current().time(),
            "actor": self.actor,
            "process": os.getpid(),
            "action": action,
            "flag": flag,
            "before": before,
            "after": after,
            "keys": list(keys),
            "reason": reason,
            "evidence": dict(evidence or {}),
        }
        try:
            digest(entry)
        except DigestError as error:
            raise ConfigurationError("Audit.append(...)", clip(entry, 80), str(error)) from None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o666)
        try:
            with locked(descriptor):
                made = _write(descriptor, entry)
        finally:
            os.close(descriptor)
        if entry["n"] == 0:
            _keep_name(self.path)
        return made

    def record(self, change: Change) -> None:
        """Add an entry for a change of the flags: what `Flags.on_change` calls.

        Args:
            change: The change.
        """
        problems = "; ".join(problem.message for problem in change.problems)
        self.append(
            "changed", before=change.before, after=change.after, keys=change.keys, reason=problems
        )

    def __repr__(self) -> str:
        return f"Audit({self.path!r}, actor={self.actor!r})"


def verify_audit(path: str | os.PathLike[str], *, head: str | None = None) -> AuditReport:
    """Return whether the entries of an audit file are those that were written, in their order.

    A line that was left unfinished by a crash is reported and does not break the chain. That entries were cut off at the
    end, or the file written anew as a whole, shows only against a *head* that was kept elsewhere; the telemetry events of a
    rollout carry it as `audit`.

    Args:
        path: The file.
        head: Digest of an entry that must be there.

    Raises:
        OSError: If it cannot be read.
    """
    torn: list[int] = []
    problems: list[str] = []
    previous, n, known = _START, 0, head is None
    with open(path, "rb") as file:  # noqa: PTH123 - a path of any kind
        for number, line in enumerate(file, start=1):
            entry = _entry(line)
            if entry is None:
                torn.append(number)
                continue
            wrong = _wrong(entry, n, previous)
            if wrong:
                problems.append(f"line {number}: {wrong}")
            found = entry.get("digest")
            n, previous = n + 1, found if isinstance(found, str) else _START
            known = known or previous == head
    if not known:
        problems.append(f"there is no entry {clip(head, 80)}: the end was cut off, or all replaced")
    return AuditReport(n, previous, tuple(torn), tuple(problems))


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Hold a file against all other processes and threads that do the same."""
    from fcntl import LOCK_EX, LOCK_UN, flock

    flock(descriptor, LOCK_EX)
    try:
        yield
    finally:
        # Closing is not enough: a child that was forked meanwhile holds a copy of the descriptor.
        flock(descriptor, LOCK_UN)


def _write(descriptor: int, entry: dict[str, Any]) -> str:
    last, whole = _last(descriptor)
    entry["n"] = 0 if last is None else last["n"] + 1
    entry["previous"] = _START if last is None else last["digest"]
    entry["digest"] = digest(entry)
    try:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a pair, as in the name of a file that an error quotes
        line = json.dumps(entry).encode() + b"\n"
    data = memoryview(line if whole else b"\n" + line)
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
    return str(entry["digest"])


def _last(descriptor: int) -> tuple[dict[str, Any] | None, bool]:
    """Return the last whole entry, and whether the file ends with a line."""
    size = os.fstat(descriptor).st_size
    whole = not size or os.pread(descriptor, 1, size - 1) == b"\n"
    span = _TAIL
    while True:
        begin = max(0, size - span)
        lines = os.pread(descriptor, size - begin, begin).split(b"\n")
        for line in reversed(lines if begin == 0 else lines[1:]):
            entry = _entry(line + b"\n")
            if entry is not None:
                return entry, whole
        if begin == 0:
            return None, whole
        span *= 8


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("n"), int) and "digest" in entry
    return entry if known else None


def _wrong(entry: dict[str, Any], n: int, previous: str) -> str:
    said = entry.get("digest")
    try:
        real = digest({key: value for key, value in entry.items() if key != "digest"})
    except DigestError:
        real = ""
    if real != said:
        return "the entry is not what was written"
    if entry.get("previous") != previous:
        return "it does not follow the entry before it"
    return "" if entry.get("n") == n else f"it is numbered {entry.get('n')}, not {n}"


def _keep_name(path: str) -> None:
    """Put the name of a new file on the disk too."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # noqa: PTH120 - as given
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _user() -> str:
    from getpass import getuser

    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # no entry for the user id, in a container
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
