"""What `neptune-exporter` saves of Neptune's runs: Parquet files, a row for each point or value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._optional import require
from mlkit._suggest import clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["SYSTEM", "ExportedRow", "ExportedRun", "runs_in"]

SYSTEM = "sys/"
"""What the names of Neptune's own attributes begin with."""

_COLUMNS = (
    "project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp", "int_value", "float_value",
    "string_value", "bool_value", "datetime_value", "string_set_value", "file_value", "histogram_value",
)  # fmt: skip
_VALUES = {  # where the value of a type is
    "int": "int_value", "float": "float_value", "string": "string_value", "bool": "bool_value",
    "datetime": "datetime_value", "string_set": "string_set_value", "float_series": "float_value",
    "string_series": "string_value", "histogram_series": "histogram_value", "file": "file_value",
    "file_series": "file_value", "file_set": "file_value", "artifact": "file_value",
}  # fmt: skip


class ExportedRow(NamedTuple):
    """A value, or a point of a series.

    Attributes:
        place: The file, the row counted from 1, and the attribute.
        path: The attribute's name.
        kind: Its type.
        step: Of a point, a decimal number.
        time: Of a point, Unix time in seconds.
        value: As the type has it; times in microseconds.
    """

    place: str
    path: str
    kind: str
    step: Any
    time: float | None
    value: Any


def _pyarrow(module: str = "pyarrow") -> Any:
    return require(module, extra="arrow", feature="import_neptune")


def runs_in(
    paths: list[Path], top: Path, tell: Callable[[str, str], None], *, complete: bool
) -> list[ExportedRun]:
    """Return the runs in files that belong together, none if the files cannot be read or are not all there.

    Args:
        paths: The parts of one run, or in exports of the first versions of several.
        top: The folder under which they are, for places.
        tell: Takes the place and the reason of what is wrong.
        complete: Whether part 0 is among them.
    """
    if not complete:
        reason = "the part 0, which the exporter writes last, is missing: this run's export did not finish"
        tell(str(paths[0].relative_to(top)), reason)
        return []
    parquet = _pyarrow("pyarrow.parquet")
    found: dict[tuple[str, str], None] = {}
    for path in paths:
        place = str(path.relative_to(top))
        try:
            missing = [name for name in _COLUMNS if name not in parquet.read_schema(path).names]
            if missing:
                raise ValueError(f"has no column {missing[0]!r}")
            table = parquet.read_table(path, columns=["project_id", "run_id"])
        except (OSError, ValueError, _pyarrow().ArrowException) as error:
            tell(place, f"cannot be read: {type(error).__name__}: {error}")
            return []
        for one in table.group_by(["project_id", "run_id"]).aggregate([]).to_pylist():
            if one["project_id"] is None or one["run_id"] is None:
                tell(place, "there are rows without a project or a run")
            else:
                found[one["project_id"], one["run_id"]] = None
    return [ExportedRun(project, run, paths, top, tell) for project, run in found]


@final
class ExportedRun:
    """The rows of one run.

    Args:
        project: Neptune's project.
        run: Its id of the run.
        paths: The files that have the rows, perhaps among others.
        top: The folder under which they are, for places.
        tell: Takes the place and the reason of what is wrong.
    """

    project: str
    run: str

    def __init__(
        self, project: str, run: str, paths: list[Path], top: Path, tell: Callable[[str, str], None]
    ) -> None:
        self.project, self.run = project, run
        self._paths, self._top, self._tell = paths, top, tell

    def rows(self, *, only_system: bool = False) -> Iterator[ExportedRow]:
        """Yield the rows of the run; with *only_system* those of Neptune's own attributes, and tell nothing."""
        parquet = _pyarrow("pyarrow.parquet")
        for path in self._paths:
            place, before = path.relative_to(self._top), 0
            for batch in parquet.ParquetFile(path).iter_batches(20_000, columns=list(_COLUMNS)):
                columns = {name: _listed(batch.column(name)) for name in _COLUMNS}
                for index in range(batch.num_rows):
                    if (
                        columns["project_id"][index] != self.project
                        or columns["run_id"][index] != self.run
                    ):
                        continue
                    name, kind = (
                        columns["attribute_path"][index],
                        str(columns["attribute_type"][index]),
                    )
                    where = f"{place} row {before + index + 1}: {clip(str(name), 100)}"
                    if only_system and not str(name).startswith(SYSTEM):
                        continue
                    if not name:
                        self._tell(where, "no attribute is named")
                        continue
                    time = columns["timestamp"][index]
                    yield ExportedRow(
                        where, name, kind, columns["step"][index], None if time is None else time / 1e6,
                        columns[_VALUES[kind]][index] if kind in _VALUES else None,
                    )  # fmt: skip
                before += batch.num_rows

    def multiplier(self) -> int:
        """Return the smallest power of ten that makes all steps of the run whole."""
        compute, parquet = _pyarrow("pyarrow.compute"), _pyarrow("pyarrow.parquet")
        decimals = 0
        for path in self._paths:
            table = parquet.read_table(path, columns=["project_id", "run_id", "step"])
            mine = compute.and_(
                compute.equal(table["project_id"], self.project),
                compute.equal(table["run_id"], self.run),
            )
            for step in compute.unique(table.filter(mine)["step"]).to_pylist():
                if step is not None:
                    decimals = max(decimals, -step.normalize().as_tuple().exponent)
        return int(10**decimals)


def _listed(column: Any) -> list[Any]:
    """Return a column's values, times as microseconds."""
    if column.null_count == len(column):  # most columns are of other types
        return [None] * len(column)
    pyarrow = _pyarrow()
    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", tz="UTC")).cast(pyarrow.int64())
    values: list[Any] = column.to_pylist()
    return values
