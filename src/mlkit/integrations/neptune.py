"""Runs of Neptune, whose service has ended, from what `neptune-exporter` saved of them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from mlkit._arguments import whole
from mlkit._clock import SYSTEM as CLOCK
from mlkit._clock import replaced
from mlkit._digest import digest_bytes, short
from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, MlkitError
from mlkit.integrations._neptune_export import runs_in
from mlkit.integrations._neptune_writer import Writer
from mlkit.tracking import start_run, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Condition

    from mlkit.integrations._neptune_export import ExportedRun
    from mlkit.tracking import Delivery, Sink

__all__ = ["NeptuneImport", "NeptuneProblem", "NeptuneRun", "import_neptune"]

_PART = re.compile(r"(.*?)_?part_(\d+)\.parquet")
_MAX_KEY = 1000
_PROBLEMS = "mlkit/import-problems.jsonl"


class NeptuneProblem(NamedTuple):
    """Something in an export that could not be taken over.

    Attributes:
        place: The file, and where there is one the row, counted from 1, and the attribute.
        message: What is wrong with it.
    """

    place: str
    message: str


class NeptuneRun(NamedTuple):
    """What became of one run of an export.

    Attributes:
        project: Neptune's project, such as `"team/digits"`.
        run: Neptune's id of the run.
        state: `"imported"`; `"present"` if it was imported before; `"refused"` if nothing of it was taken over,
            for the reason that is among the problems.
        dir: The folder of our run.
        delivery: What the sinks have; None without sinks.
    """

    project: str
    run: str
    state: Literal["imported", "present", "refused"]
    dir: Path
    delivery: Delivery | None


class NeptuneImport(NamedTuple):
    """What `import_neptune` did.

    Attributes:
        runs: Every run of the export.
        problems: Everything that was not taken over.
    """

    runs: Sequence[NeptuneRun]
    problems: Sequence[NeptuneProblem]


def import_neptune(
    export: str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] = "runs",
    sinks: Sequence[str | Sink] = (),
    files: str | os.PathLike[str] | None = None,
    step_multiplier: int | None = None,
    timeout: float = 60.0,
) -> NeptuneImport:
    """Make runs of what `neptune-exporter` saved of Neptune 2 or 3.

    Neptune's service ended on 5 March 2026, and what was not exported by then is gone. A run of the export becomes one
    of ours, with the time at which it was created and those of its points:

    | Neptune | here |
    | --- | --- |
    | project, `sys/name` | experiment, name |
    | float, int, string, bool, datetime, string set | a param of that name; under `sys/` a tag |
    | float series | a metric, with steps and times |
    | file, artifact | an artifact of that name |
    | file set, file series | artifacts `<name>/...`, `<name>/step-<step>` and the file's ending |
    | string series, histogram series | an artifact `<name>.jsonl`, a line for each point |
    | `sys/failed` | the status |

    Neptune's steps may have decimals, ours are integers: all steps of a run are multiplied by the smallest power of
    ten that makes them whole, which the tag `neptune.step_multiplier` says. A float that is missing is NaN, for that is
    how the exporter writes it. A run that is there already is left alone, so the same call may be made
    again; it appears as a whole or not at all.

    Args:
        export: The exporter's folder with `data` and `files` in it, or the folder of its Parquet files.
        into: Folder of run folders; made when needed.
        sinks: Where the runs go besides, as for `sync`; addresses, if there is more than one run.
        files: The folder of the exporter's files; by default `files` in *export* or beside it.
        step_multiplier: By what all steps are multiplied instead, at least 1. A point whose step it does not make
            whole is a problem.
        timeout: Seconds that the sinks may take for each run.

    Returns:
        What became of each run, and of what could not be taken over the place and the reason.

    Raises:
        ConfigurationError: If an argument is wrong, or there is no Parquet file.
        MissingDependencyError: If pyarrow is not installed.

    Note:
        One pass for the steps and one for the rest, in batches. The format is the one of neptune-exporter's
        README and its `model.py`, https://github.com/neptune-ai/neptune-exporter; the end of the service,
        https://docs.neptune.ai/transition_hub/neptune_exporter. Models and model versions are not read.
    """
    require("pyarrow", extra="arrow", feature="import_neptune")
    data, held = _folders(export, files)
    if step_multiplier is not None:
        whole("import_neptune(step_multiplier=...)", step_multiplier)
        if step_multiplier < 1:
            raise ConfigurationError(
                "import_neptune(step_multiplier=...)", step_multiplier, "an integer of at least 1"
            )
    found = sorted(path for path in data.rglob("*.parquet") if _PART.fullmatch(path.name))
    if not found:
        raise ConfigurationError(
            "import_neptune(export)", str(export), "a folder with files *_part_<n>.parquet in it"
        )
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in found:
        if match := _PART.fullmatch(path.name):
            groups.setdefault((path.parent, match[1]), {})[int(match[2])] = path
    problems: list[NeptuneProblem] = []
    runs: list[NeptuneRun] = []

    def tell(place: str, message: str) -> None:
        problems.append(NeptuneProblem(place, clip(message, 300)))

    for parts in groups.values():
        paths = [parts[number] for number in sorted(parts)]
        for source in runs_in(paths, data, tell, complete=0 in parts):
            target = Path(into).absolute() / _run_id(source.project, source.run)
            state = _import(source, target, held, step_multiplier, tell)
            ships = sinks and state != "refused"
            delivery = sync(target, sinks=sinks, timeout=timeout) if ships else None
            runs.append(NeptuneRun(source.project, source.run, state, target, delivery))
    return NeptuneImport(tuple(runs), tuple(problems))


def _folders(export: object, files: object) -> tuple[Path, Path]:
    """Return the folder of the Parquet files, and that of the files."""
    if not isinstance(export, (str, os.PathLike)) or not Path(export).is_dir():
        raise ConfigurationError("import_neptune(export)", export, "the path of a folder")
    if files is not None and (
        not isinstance(files, (str, os.PathLike)) or not Path(files).is_dir()
    ):
        raise ConfigurationError("import_neptune(files=...)", files, "the path of a folder")
    top = Path(export)
    data = top / "data" if (top / "data").is_dir() else top
    if files is not None:
        return data, Path(files)
    return data, top / "files" if (top / "files").is_dir() else data.parent / "files"


def _run_id(project: str, run: str) -> str:
    """Return an id that no other run has: two of `a/b` and `c`, and of `a` and `b/c`, differ, too."""
    name = re.sub(r"[^A-Za-z0-9_\-]", "_", f"{project}-{run}")[:150]
    return f"neptune-{name}-{short(digest_bytes(json.dumps([project, run]).encode()))}"


def _import(
    source: ExportedRun,
    target: Path,
    files: Path,
    multiplier: int | None,
    tell: Callable[[str, str], None],
) -> Literal["imported", "present", "refused"]:
    """Make a run beside its place, and put it there when it is whole."""
    if (target / "run.json").exists():
        return "present"
    beside = target.parent / f".neptune-{os.urandom(4).hex()}"
    problems: list[tuple[str, str]] = []
    try:
        system = {row.path: row.value for row in source.rows(only_system=True)}
        created = system.get("sys/creation_time")
        then = _Then(created / 1e6 if isinstance(created, int) else CLOCK.time())
        with replaced(then):
            run = start_run(
                source.project,
                name=_name(system, source.run),
                root=beside,
                run_id=target.name,
                shipper="none",
            )
            try:
                writer = Writer(run, files, multiplier or source.multiplier(), problems)
                writer.write(source.rows())
                writer.end(source)
                then.at = max(then.at, writer.last)
            finally:
                run.close("FAILED" if system.get("sys/failed") else "FINISHED", timeout=0)
        if run.flush(timeout=0).lost:
            raise OSError("the disk did not take all")
        run.dir.rename(target)
    except (OSError, ValueError, MlkitError) as error:
        tell(
            f"{source.project} {source.run}",
            f"nothing was imported: {type(error).__name__}: {error}",
        )
        return "refused"
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for problem in problems:
        tell(*problem)
    return "imported"


def _name(system: dict[str, Any], run: str) -> str:
    for path in ("sys/name", "sys/custom_run_id"):
        if isinstance(system.get(path), str) and 0 < len(system[path]) <= _MAX_KEY:
            return str(system[path])
    return run[:_MAX_KEY]


@final
class _Then:
    """A clock that stands still, for what is written down later than it was."""

    def __init__(self, at: float) -> None:
        self.at = at

    def time(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return CLOCK.monotonic()

    def sleep(self, seconds: float) -> None:
        CLOCK.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        await CLOCK.asleep(seconds)

    def wait(self, condition: Condition, timeout: float | None) -> bool:
        return CLOCK.wait(condition, timeout)
