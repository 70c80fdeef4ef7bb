"""What the processes of one rollout tell each other, through a folder: how far it is, and what each has seen."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._digest import digest, short
from mlkit.errors import FlagFileError
from mlkit.flags._audit import locked
from mlkit.flags._evidence import together

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Folder", "lock_replaced", "put"]

_GONE = "evidence-gone.json"
_GONE_AFTER = 3600.0  # seconds


@final
class Folder:
    """The folder of a rollout: `state.json`, one `evidence-<process>.json` for each process, and `audit.jsonl` of all.

    What processes saw that have not written for an hour is in `evidence-gone.json`, all together: it counts as before, and
    restarts do not fill the folder. Every file but the audit is replaced in one step, so that nobody reads half of one.

    Args:
        path: The folder; made if it is not there.
        key: The flag.
        candidate: The variant that is brought in.
    """

    def __init__(self, path: str | os.PathLike[str], key: str, candidate: str) -> None:
        self.root = Path(path)
        clean = "".join(letter if letter.isalnum() else "-" for letter in f"{key}-{candidate}")
        self.own = self.root / f"{clean[:60]}-{short(digest([key, candidate]))}"
        self.own.mkdir(parents=True, exist_ok=True)
        self._seen: dict[str, tuple[int, int, int]] = {}

    @property
    def audit(self) -> Path:
        """The record of all rollouts of the folder."""
        return self.root / "audit.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the rollout's state against other processes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.own / "lock", flags, 0o666)
        try:
            with locked(descriptor):
                yield
        finally:
            os.close(descriptor)

    def state(self) -> dict[str, Any] | None:
        """Return how far the rollout is, None if it never began.

        Raises:
            FlagFileError: If the file says nothing: it might have said that the candidate was rolled back.
        """
        path = self.own / "state.json"
        try:
            made = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            made = None
        if not isinstance(made, dict):
            reason = "it does not say how far the rollout is; remove it to begin anew"
            raise FlagFileError(str(path), reason)
        return made

    def keep_state(self, state: dict[str, Any]) -> None:
        """Write how far the rollout is, durably."""
        put(self.own / "state.json", json.dumps(state, indent=1).encode(), sync=True)

    def keep_evidence(self, origin: str, state: dict[str, Any]) -> None:
        """Write what this process has seen."""
        put(self.own / _name(origin), json.dumps(state).encode(), sync=False)

    def news(self, origin: str) -> Iterator[dict[str, Any]]:
        """Yield what other processes have seen, of those that wrote since the last time."""
        own = _name(origin)
        paths = sorted(path for path in self.own.glob("evidence-*.json") if path.name != own)
        written = {path.name for path in paths}
        for path in paths:
            with suppress(OSError, ValueError):
                found = path.stat()
                signature = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._seen.get(path.name) != signature:
                    states = _states(path)
                    self._seen[path.name] = signature
                    if path.name == _GONE:
                        # Who was taken for gone and writes again has newer evidence of its own.
                        known = {*written, own}
                        states = [one for one in states if _name(one.get("origin")) not in known]
                    yield from states

    def tidy(self) -> None:
        """Put the evidence of processes that have not written for an hour into one file.

        Raises:
            OSError: If the folder cannot be written.
        """
        with self.lock():
            old = current().time() - _GONE_AFTER
            paths = [path for path in self.own.glob("evidence-*.json") if path.name != _GONE]
            gone = [path for path in paths if path.stat().st_mtime < old]
            if not gone:
                return
            kept: dict[str, dict[str, Any]] = {}
            moved: list[Path] = []
            for path in [self.own / _GONE, *gone]:  # of two states of one process the later stays
                with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    kept |= {state["origin"]: state for state in _states(path)}
                    moved.append(path)
            try:
                states = together(list(kept.values()))
            except (KeyError, TypeError, AttributeError, ValueError):
                # It is no evidence: whoever reads it says so.
                return
            # Written before the others go: who reads in between finds the same twice, which does no harm.
            put(self.own / _GONE, json.dumps(states).encode(), sync=True)
            for path in moved:
                if path.name != _GONE and path.stat().st_mtime < old:
                    path.unlink()

    def forget(self) -> None:
        """Read all evidence again the next time."""
        self._seen.clear()


def _name(origin: object) -> str:
    return f"evidence-{origin}.json"


def _states(path: Path) -> list[dict[str, Any]]:
    made = json.loads(path.read_bytes())
    many = made if isinstance(made, list) else [made]
    return [state for state in many if isinstance(state, dict)]


@contextmanager
def lock_replaced(path: Path) -> Iterator[None]:
    """Hold a file that is replaced as a whole against other processes and threads.

    Raises:
        OSError: If it is not there or cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with locked(descriptor):
                now, held = path.stat(), os.fstat(descriptor)
                # Who waited holds the file that was replaced meanwhile.
                if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                    yield
                    return
        finally:
            os.close(descriptor)


def put(path: Path, data: bytes, *, sync: bool, mode: int | None = None) -> None:
    """Replace a file in one step; with *sync* it is on the disk when this returns.

    Raises:
        OSError: If it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if mode is not None:
            beside.chmod(mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if sync:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
