"""A run on disk: who may touch what, and who is still alive.

```text
runs/20261123-063012-1f2e3d4c/
├── run.json                    what is known from the start: id, experiment, name, parent, sinks
├── journal/<time>-<pid>-<nonce>.mkj    files of each writing process, which holds a lock on its last
├── artifacts/<sha256>          contents, each once
├── sinks/<sink>/cursor.json    how far each sink has come, and dead.jsonl with what it refused, a lock,
│                               and given_up while nobody works on it
├── children/<id>/              nested runs, in the same form
└── shipper.log                 what the shipper process had to say
```
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.errors import ConfigurationError, JournalError, RunNotFoundError
from mlkit.tracking._records import RunInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "FORMAT",
    "Folder",
    "check_run_id",
    "find_run",
    "folder_of",
    "is_locked",
    "named_folder",
    "new_folder",
    "replace_text",
    "sync_path",
    "unwritable",
]

FORMAT = 1


@final
class Folder:
    """The paths of one run.

    Args:
        path: Its folder.
    """

    __slots__ = ("artifacts", "children", "journal", "path", "sinks")
    path: Path
    journal: Path
    artifacts: Path
    sinks: Path
    children: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.artifacts = path / "artifacts"
        self.sinks = path / "sinks"
        self.children = path / "children"

    def create(self, info: RunInfo, sinks: Sequence[str], *, sync: bool) -> None:
        """Make the folder of a new run; with *sync* a power cut does not take it away.

        Raises:
            FileExistsError: If it is there.
            OSError: If it cannot be made.
        """
        self.path.mkdir(parents=True)
        for folder in (self.journal, self.artifacts):
            folder.mkdir()
        self.describe(info, sinks, sync=sync)
        if sync:
            for folder in (self.path, self.path.parent, self.path.parent.parent):
                sync_path(folder)

    def describe(self, info: RunInfo, sinks: Sequence[str], *, sync: bool) -> None:
        """Write `run.json`. Only its owner may read it, for a sink's address may hold a password."""
        import json

        content = {"format": FORMAT, **info._asdict(), "sinks": list(sinks)}
        text = json.dumps(content, indent=1) + "\n"
        replace_text(self.path / "run.json", text, mode=0o600, sync=sync)

    def load(self) -> tuple[RunInfo, list[str]]:
        """Return what `run.json` says: the run and the addresses of its sinks.

        Raises:
            RunNotFoundError: If there is none.
            JournalError: If it is not of this format.
        """
        import json

        path = self.path / "run.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise JournalError(
                    str(path),
                    f"format {content['format']} is not one this version of mlkit reads ({FORMAT})",
                )
            return RunInfo(*(content[field] for field in RunInfo._fields)), list(content["sinks"])
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFoundError(str(self.path), _runs_in(self.path)) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, JournalError):
                raise
            raise JournalError(str(path), f"{type(error).__name__}: {error}") from error

    def writers(self) -> list[Path]:
        """Return the journal files, those started first first."""
        try:
            return sorted(path for path in self.journal.iterdir() if path.suffix == ".mkj")
        except FileNotFoundError:
            return []

    def alive(self) -> bool:
        """Return whether a process still writes to the journal."""
        seen: list[Path] = []
        # A writer that goes on in a new file has opened it before it lets go of the old one.
        while (files := self.writers()) != seen:
            if any(is_locked(path) for path in files):
                return True
            seen = files
        return False

    def family(self) -> Iterator[Folder]:
        """Yield this run and all nested in it."""
        yield self
        try:
            inner = sorted(self.children.iterdir())
        except FileNotFoundError:
            return
        for path in inner:
            if (path / "run.json").exists():
                yield from Folder(path).family()


def folder_of(where: str, run: object) -> Folder:
    """Return the folder that a user names.

    Raises:
        ConfigurationError: If that is no path.
    """
    from pathlib import Path

    if not isinstance(run, (str, os.PathLike)):
        raise ConfigurationError(where, run, "the path of a run's folder", hint="pass run.dir")
    return Folder(Path(run).absolute())


def find_run(root: Path, run: str) -> Folder:
    """Return the folder of a run that is given by its id, or by its path.

    Raises:
        RunNotFoundError: If there is none.
    """
    from pathlib import Path

    for path in (root / run, Path(run)):
        if _is_run(path):
            return Folder(path.absolute())
    raise RunNotFoundError(run, _runs_in(root))


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.json").exists()
    except OSError:  # a name that is too long, say
        return False


def _runs_in(root: Path) -> list[str]:
    try:
        return [path.name for path in root.iterdir() if (path / "run.json").exists()]
    except OSError:
        return []


def new_folder(
    root: Path,
    experiment: str,
    name: str | None,
    parent: str | None,
    sinks: Sequence[str],
    *,
    sync: bool,
) -> tuple[RunInfo, Folder]:
    """Make the folder of a new run.

    Raises:
        ConfigurationError: If it cannot be made.
    """
    for _ in range(10):
        microseconds = int(current().time() * 1e6)
        run_id = _new_id(microseconds)
        info = RunInfo(run_id, experiment, name or run_id, parent, microseconds / 1e6)
        folder = Folder(root / run_id)
        try:
            folder.create(info, sinks, sync=sync)
        except FileExistsError:
            if not folder.path.is_dir():
                break  # a file is where a folder should be
            continue
        except OSError as error:
            raise unwritable(root, error) from error
        else:
            return info, folder
    raise ConfigurationError("start_run(root=...)", str(root), "a folder, not a file")


def check_run_id(where: str, run_id: object) -> None:
    """Raise unless *run_id* can be the name of a folder everywhere."""
    import re

    if not isinstance(run_id, str) or not re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}", run_id
    ):
        raise ConfigurationError(
            where,
            run_id,
            "1 to 200 of the characters A-Z a-z 0-9 _ . - that do not begin with . or -",
        )


def named_folder(
    root: Path,
    run_id: str,
    experiment: str,
    name: str | None,
    sinks: Sequence[str],
    *,
    sync: bool,
) -> Folder:
    """Return the folder of the run of that id, made by whoever is first.

    Raises:
        ConfigurationError: If it cannot be made.
    """
    import shutil

    folder = Folder(root / run_id)
    if (folder.path / "run.json").exists():
        return folder
    info = RunInfo(run_id, experiment, name or run_id, None, int(current().time() * 1e6) / 1e6)
    fresh = Folder(root / f".{run_id}.{os.urandom(4).hex()}")
    try:
        fresh.create(info, sinks, sync=sync)
        # Whole or not at all: who comes second finds a folder that is not empty.
        fresh.path.rename(folder.path)
        if sync:
            sync_path(root)
    except OSError as error:
        shutil.rmtree(fresh.path, ignore_errors=True)
        if not (folder.path / "run.json").exists():
            raise unwritable(folder.path, error) from error
    return folder


def unwritable(place: Path, error: OSError) -> ConfigurationError:
    """Return the error of a run that cannot begin because its folder cannot be written to."""
    return ConfigurationError(
        "start_run(root=...)",
        str(place),
        "a folder that can be written to",
        hint=f"{type(error).__name__}: {error.strerror}",
    )


def _new_id(microseconds: int) -> str:
    """Return a new run id: sorted by time, unique by chance."""
    from time import gmtime, strftime

    return f"{strftime('%Y%m%d-%H%M%S', gmtime(microseconds / 1e6))}-{os.urandom(4).hex()}"


def is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock on a file.

    The kernel drops the lock when its holder is gone, however it died; a process id could be
    another's by now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_path(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder.

    Raises:
        OSError: If that cannot be done.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, *, mode: int = 0o644, sync: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
