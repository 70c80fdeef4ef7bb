"""Weights & Biases as a place where tracked runs go: live, or as folders for `wandb sync`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import installed
from mlkit.errors import ConfigurationError, MissingDependencyError
from mlkit.integrations._deferred import Deferred
from mlkit.integrations._names import address_of, folder_and_options, plain_text, safe_name, typed
from mlkit.integrations._spool import Follower

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlkit.tracking import Record, RunInfo

__all__ = ["WandbSink"]

_MODES = ("online", "offline", "disabled")
_STEP = "mlkit/step"
_OURS = "mlkit"
_START = "%Y%m%d_%H%M%S"
_EXIT = {"RUNNING": 0, "FINISHED": 0, "KILLED": 137}
_MAX_NAME, _MAX_TAG = 128, 64
# What would make our client a part of a run that the training process has begun by itself.
_NOT_OURS = (
    "WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RUN_GROUP",
    "WANDB_JOB_TYPE", "WANDB_SWEEP_ID", "WANDB_FORK_FROM", "WANDB_RESUME_FROM",
)  # fmt: skip


@final
class WandbSink:
    """Writes a run with the client of Weights & Biases, live or as a folder that `wandb sync` uploads.

    The client works in a process of its own, which ends with the sink: nothing of it is in yours, and a run of W&B
    that you have begun yourself is another one. What the client cannot be relied on to keep when it is
    killed, the sink keeps itself, in `FOLDER/mlkit`. In the client's mode

    - `offline` the run's folder `FOLDER/wandb/offline-run-<start>-<run>` is written when the run ends, or when the
      shipper does, and replaced as a whole when there is more. It is complete before `send` returns.
    - `online` rows are handed on as they come; after a kill W&B says how many it has, and the rest follows.

    W&B wants steps that grow. So its own step is the number of the call, and yours is the column `mlkit/step`, which
    all charts have as their x axis: steps may come in any order, and many calls have one. Infinities and NaN
    are kept as W&B keeps them, the texts `Infinity`, `-Infinity` and `NaN`. Params are the config, as numbers
    where that has the same text; tags, digests of artifacts and the status are under `mlkit` in the config, tags also
    labels `name:value` where W&B takes them (64 characters); artifacts are the run's files `artifacts/<name>`. A nested
    run has its parent's id as group. A name that begins with `_` or `mlkit`, is longer than 128 characters or not
    printable gets another one with a digest, and `mlkit.names` in the config says which.

    Not thread-safe; picklable before `open`. Its address is `wandb:FOLDER` or `wandb:FOLDER?project=...&mode=offline`.

    Args:
        folder: Where the client writes, as `WANDB_DIR` says elsewhere; made when needed. A text may have options
            behind a `?`, as the address does.
        entity: W&B's user or team; by default the client's own setting.
        project: W&B's project; by default the run's experiment.
        mode: `"online"`, `"offline"` or `"disabled"`; by default the client's own setting, which is online
            unless `WANDB_MODE` or `wandb offline` says otherwise.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If wandb is not installed.

    Examples:
        >>> WandbSink("scratch", mode="offline").uri.endswith("/scratch?mode=offline")
        True
    """

    folder: Path

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        entity: str | None = None,
        project: str | None = None,
        mode: str | None = None,
    ) -> None:
        options = {"entity": entity, "project": project, "mode": mode}
        self.folder, self._options = folder_and_options("WandbSink", folder, options)
        """Where the client writes."""
        if self._options.get("mode", "online") not in _MODES:
            raise ConfigurationError(
                "WandbSink(mode=...)", self._options["mode"], "'online', 'offline' or 'disabled'"
            )
        if not installed("wandb"):
            raise MissingDependencyError(feature="WandbSink", module="wandb", extra="wandb")
        environment: dict[str, str | None] = dict.fromkeys(_NOT_OURS)
        environment |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
        environment["WANDB_ERROR_REPORTING"] = os.environ.get("WANDB_ERROR_REPORTING", "false")
        if "mode" in self._options:
            environment["WANDB_MODE"] = self._options["mode"]
        self._run = Deferred(self.folder, f"{__name__}:_Writer", environment, self._options)

    @property
    def uri(self) -> str:
        """`"wandb:"`, the absolute path of the folder, and what was passed as options."""
        return address_of("wandb", self.folder, self._options)

    @property
    def max_records(self) -> int:
        """5000."""
        return 5000

    def open(self, run: RunInfo) -> None:
        """Find what is kept of the run, and the client's mode.

        Args:
            run: The run.

        Raises:
            SinkUnavailableError: If the client cannot be started.
        """
        self.close()
        self._run.open(run)
        mode = self._options.get("mode") or os.environ.get("WANDB_MODE", "")
        mode = mode if mode in _MODES else str(self._run.call("mode"))
        self._run.method = {"offline": "write", "disabled": ""}.get(mode, "push")
        self._run.eager = self._run.method == "push"

    def send(self, batch: Sequence[Record]) -> None:
        """Keep what is new, and hand it on: now if W&B is online or the run has ended, else later.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If the client fails, hangs or dies.
            SinkRejectedError: If a param changes its value.
        """
        self._run.send(batch)

    def close(self) -> None:
        """Have the client write what it has not, and end it.

        Raises:
            SinkUnavailableError: If the client fails, hangs or dies. What was sent is kept.
        """
        self._run.close()

    def __repr__(self) -> str:
        return f"WandbSink({str(self.folder)!r})"


@final
class _Writer:
    """What works in the client's process."""

    def __init__(self) -> None:
        self._live: dict[str, _Live] = {}

    def mode(self) -> str:
        """Return what the client's settings say."""
        import wandb

        return str(wandb.setup().settings.mode)

    def write(self, spool: str, folder: str, options: dict[str, str], _: bool) -> None:  # noqa: FBT001 - called over a pipe
        """Write a run as a folder of its own, and put it in the place of the one before."""
        import wandb

        path = Path(spool)
        story = Follower(path)
        beside = path.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        place = Path(folder) / "wandb"
        place.mkdir(exist_ok=True)
        ours, stale, first = path.with_suffix(".folders"), [], 0
        names = ours.read_text("utf-8").splitlines() if ours.exists() else []
        for old in [place / name for name in names if (place / name).exists()]:
            synced = list(old.glob("*.wandb.synced"))
            # `wandb sync` appends to what W&B has of a run: what was uploaded must not come again.
            first += sum(_rows_in(marker.with_suffix(""))[0] for marker in synced)
            stale += [] if synced else [old]
        live = _Live(story, beside, {**options, "mode": "offline"}, first)
        live.bring()
        live.run.finish(exit_code=_EXIT.get(story.status, 1))
        wandb.teardown()  # only then is the file whole
        (made,) = (beside / "wandb").glob("offline-run-*")
        found, whole = _rows_in(next(made.glob("*.wandb")))
        if found != story.rows - first or not whole:
            raise OSError(f"{made} has {found} of {story.rows - first} rows, or no end")
        for old in stale:
            old.rename(beside / f"old-{old.name}")
        name = _free_name(place, made.name)
        with ours.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        made.rename(place / name)
        shutil.rmtree(beside, ignore_errors=True)

    def push(self, spool: str, folder: str, options: dict[str, str], ended: bool) -> None:  # noqa: FBT001 - as above
        """Hand on what W&B does not have, and wait for all to be there if the run has ended."""
        import wandb

        live = self._live.pop(spool, None)
        try:
            live = live or _Live(Follower(Path(spool)), Path(folder), options)
            live.bring()
            if ended:
                live.run.finish(exit_code=_EXIT.get(live.story.status, 1))
        except Exception:
            self._live.clear()
            wandb.teardown()  # what is on its way arrives before W&B is asked again what it has
            raise
        if not ended:
            self._live[spool] = live


@final
class _Live:
    """A run of the client."""

    def __init__(
        self, story: Follower, folder: Path, options: dict[str, str], first: int | None = None
    ) -> None:
        import wandb

        self.story = story
        settings: dict[str, Any] = {
            name: options[name] for name in ("mode", "entity") if name in options
        }
        if first is None:
            settings["resume"] = "allow"
        if story.run["parent"] is not None:
            settings |= {"run_group": plain_text(story.run["parent"]), "run_job_type": "nested"}
        self.run: Any = wandb.init(
            settings=wandb.Settings(
                root_dir=str(folder), run_id=_run_id(story), run_name=plain_text(story.run["name"]),
                project=safe_name(options.get("project") or story.run["experiment"], _is_project, _MAX_NAME),
                reinit="create_new",
                console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
                x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
                x_save_requirements=False, **settings,
            )
        )  # fmt: skip
        self.run.define_metric(_STEP, hidden=True)
        self.run.define_metric("*", step_metric=_STEP)
        # W&B's step is the number of the row, so it says how many it has.
        self._rows = int(self.run.starting_step) if first is None else first
        self._files: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._config: dict[str, object] = {}

    def bring(self) -> None:
        """Log the rows and files that are new, and say the rest again if it has changed."""
        story = self.story
        for row in story.read():
            columns: dict[str, object] = {_STEP: row.step, "_timestamp": row.time}
            columns |= {self._name(key): value for key, value in row.values.items()}
            if row.number >= self._rows:
                self.run.log(columns, step=row.number)
        for name, kept in story.artifacts.items():
            if self._files.get(name) != kept[0]:
                self._save(name, kept[1])
                self._files[name] = kept[0]
        tags = {_encodable(key): plain_text(value) for key, value in story.tags.items()}
        config: dict[str, object] = {
            self._name(key): typed(value) for key, value in story.params.items()
        }
        config[_OURS] = {
            "run": story.run["id"],
            "experiment": plain_text(story.run["experiment"]),
            "status": story.status,
            "tags": tags,
            "artifacts": {_encodable(name): digest for name, digest in self._files.items()},
            "names": dict(self._names),
        }
        if config != self._config:
            self._config = config
            self.run.config.update(config, allow_val_change=True)
        labels = [f"{key}:{value}" for key, value in tags.items() if not key.startswith("mlkit.")]
        fitting = tuple(label for label in labels if len(label) <= _MAX_TAG)
        if fitting != self.run.tags:
            self.run.tags = fitting

    def _name(self, key: str) -> str:
        name = safe_name(key, _is_key, _MAX_NAME)
        if name != key:
            self._names[name] = plain_text(key)
        return name

    def _save(self, name: str, source: Path) -> None:
        """Copy a file to the run's own, so that its folder is whole."""
        from glob import escape

        files = Path(self.run.dir)
        place = files / "artifacts" / _encodable(name)
        if not place.resolve().is_relative_to(files.resolve()):
            raise ValueError(f"artifact {name!r} would leave the run")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        self.run.save(escape(str(place)), base_path=str(files), policy="now")


def _free_name(place: Path, name: str) -> str:
    """Return *name*, or that of a later second if another sink has begun a run of this id in the same one."""
    from datetime import datetime, timedelta

    kind, start, rest = name.removeprefix("offline-").split("-", 2)
    moment = datetime.strptime(start, _START)  # noqa: DTZ007 - a part of a name
    while (place / name).exists():
        moment += timedelta(seconds=1)
        name = f"offline-{kind}-{moment.strftime(_START)}-{rest}"
    return name


def _run_id(story: Follower) -> str:
    return safe_name(story.run["id"], _is_id, _MAX_TAG)


def _is_id(name: str) -> bool:
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()


def _is_project(name: str) -> bool:
    return name.isprintable() and not set(name) & set("/\\#?%:")


def _is_key(name: str) -> bool:
    return name.isprintable() and bool(name) and not name.startswith(("_", _OURS))


def _encodable(name: str) -> str:
    return safe_name(name, str.isprintable, 1000)


# --- reading back what the client wrote -----------------------------------------------------------

# A .wandb file is a log of LevelDB, in blocks of 32 KiB, behind a head of 7 bytes. A piece of a record is
# `crc:u32 length:u16 kind:u8 data`; what is left of a block that is too short for that is nothing.
_BLOCK, _HEAD, _PIECE = 32768, 7, Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


def _rows_in(path: Path) -> tuple[int, bool]:
    """Return how many rows of metrics a .wandb file has, and whether it has an end."""
    from wandb.proto import wandb_internal_pb2

    record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined, unused-ignore]
    rows, ended = 0, False
    for data in _records(path.read_bytes()):
        kind = record.FromString(data).WhichOneof("record_type")
        rows += kind == "history"
        ended |= kind == "exit"
    return rows, ended


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file up to the first that is not whole."""
    start, parts = _HEAD, b""
    while start + _PIECE.size <= len(content):
        left = _BLOCK - start % _BLOCK
        if left < _PIECE.size:
            start += left
            continue
        _, length, kind = _PIECE.unpack_from(content, start)
        start += _PIECE.size
        data = content[start : start + length]
        if len(data) < length or not kind:
            return
        start += length
        parts = data if kind in {_WHOLE, _FIRST} else parts + data
        if kind in {_WHOLE, _LAST}:
            yield parts
