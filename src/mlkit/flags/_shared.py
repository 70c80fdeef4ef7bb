"""What the processes of one rollout tell each other, through a folder: how far it is, and what each has seen."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest, short
from mlkit.flags._audit import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Folder", "lock_replaced", "put"]


@final
class Folder:
    """The folder of a rollout: `state.json`, one `evidence-<process>.json` for each process, and `audit.jsonl` of all.

    Every file but the audit is replaced in one step, so that nobody reads half of one.

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
        """Return how far the rollout is, None if it never began."""
        try:
            made = json.loads((self.own / "state.json").read_bytes())
        except FileNotFoundError:
            return None
        return made if isinstance(made, dict) else None

    def keep_state(self, state: dict[str, Any]) -> None:
        """Write how far the rollout is, durably."""
        put(self.own / "state.json", json.dumps(state, indent=1).encode(), sync=True)

    def keep_evidence(self, origin: str, state: dict[str, Any]) -> None:
        """Write what this process has seen."""
        put(self.own / f"evidence-{origin}.json", json.dumps(state).encode(), sync=False)

    def news(self, origin: str) -> Iterator[dict[str, Any]]:
        """Yield what other processes have seen, of those that wrote since the last time."""
        for path in sorted(self.own.glob("evidence-*.json")):
            if path.name == f"evidence-{origin}.json":
                continue
            with suppress(OSError, ValueError):
                found = path.stat()
                signature = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._seen.get(path.name) != signature:
                    state = json.loads(path.read_bytes())
                    self._seen[path.name] = signature
                    if isinstance(state, dict):
                        yield state

    def forget(self) -> None:
        """Read all evidence again the next time."""
        self._seen.clear()


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
