"""What `neptune-exporter` saved comes over as it was: once, with everything that cannot be said by place."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from mlkit.errors import ConfigurationError
from mlkit.integrations.neptune import import_neptune
from mlkit.tracking import find_runs, read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TIME = pa.timestamp("ms", tz="UTC")
SCHEMA = pa.schema(  # neptune_exporter/model.py
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_path", pa.string()),
        ("attribute_type", pa.string()),
        ("step", pa.decimal128(18, 6)),
        ("timestamp", TIME),
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", TIME),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", pa.struct([("path", pa.string())])),
        (
            "histogram_value",
            pa.struct(
                [
                    ("type", pa.string()),
                    ("edges", pa.list_(pa.float64())),
                    ("values", pa.list_(pa.float64())),
                ]
            ),
        ),
    ]
)
CREATED = datetime(2025, 11, 3, 9, 0, tzinfo=UTC)
PROJECT, RUN = "team/digits", "DIG-1"


def at(second: int) -> datetime:
    return CREATED.replace(second=second)


def row(path, kind, step=None, time=None, *, project=PROJECT, run=RUN, **value):
    step = None if step is None else Decimal(step)
    return {
        "project_id": project, "run_id": run, "attribute_path": path, "attribute_type": kind, "step": step,
        "timestamp": time, **value,
    }  # fmt: skip


def system(name="baseline", *, failed=False, **which):
    return [
        row("sys/creation_time", "datetime", datetime_value=CREATED, **which),
        row("sys/name", "string", string_value=name, **which),
        row("sys/failed", "bool", bool_value=failed, **which),
        row("sys/tags", "string_set", string_set_value=["b", "a"], **which),
    ]


def write(folder, rows, *, name="DIG-1-0123456789abcdef", part=0, schema=SCHEMA):
    place = folder / "data" / "team_digits-fedcba9876543210"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name}_part_{part}.parquet"
    columns = {field.name: [one.get(field.name) for one in rows] for field in schema}
    pq.write_table(pa.table(columns, schema=schema), path, compression="snappy")
    return path


def test_a_run_comes_over_with_all_that_it_has(tmp_path):
    files = tmp_path / "export" / "files" / "team_digits" / "DIG-1"
    (files / "set" / "deep").mkdir(parents=True)
    (files / "weights.bin").write_bytes(b"weights")
    (files / "set" / "deep" / "a.txt").write_bytes(b"a")
    (files / "image.png").write_bytes(b"png")
    place = "team_digits/DIG-1"
    rows = [
        *system(failed=True),
        row("config/lr", "float", float_value=0.1),
        row("config/depth", "int", int_value=2**62),
        row("config/cuda", "bool", bool_value=True),
        row("config/net", "string", string_value="ré\nsnet"),
        row("config/when", "datetime", datetime_value=at(1)),
        row("config/parts", "string_set", string_set_value=["x", "w"]),
        row("config/bound", "float", float_value=math.inf),
        row("loss", "float_series", "0", at(1), float_value=0.5),
        row("loss", "float_series", "1", at(2), float_value=-math.inf),
        row("loss", "float_series", "2", at(3), float_value=None),  # how pandas hands NaN to Arrow
        row("acc", "float_series", "-3", at(4), float_value=5e-324),
        row("log", "string_series", "0", at(5), string_value="hello"),
        row("log", "string_series", "1", at(6), string_value="wörld"),
        row("weights", "histogram_series", "1", at(7), histogram_value={"type": "COUNTING", "edges": [0.0, 1.0], "values": [3.0]}),
        row("model/weights", "file", file_value={"path": f"{place}/weights.bin"}),
        row("set", "file_set", file_value={"path": f"{place}/set"}),
        row("images", "file_series", "4", at(8), file_value={"path": f"{place}/image.png"}),
    ]  # fmt: skip
    write(tmp_path / "export", rows[:12])
    write(tmp_path / "export", rows[12:], part=1)

    result = import_neptune(tmp_path / "export", into=tmp_path / "runs")
    (run,) = result.runs
    assert (run.project, run.run, run.state, result.problems) == (PROJECT, RUN, "imported", ())
    data = read(run.dir)
    assert (data.experiment, data.name, data.status) == (PROJECT, "baseline", "FAILED")
    assert data.start_time == CREATED.timestamp()
    assert data.params == {
        "config/lr": 0.1, "config/depth": 2**62, "config/cuda": True, "config/net": "ré\nsnet",
        "config/when": "2025-11-03T09:00:01+00:00", "config/parts": ["w", "x"], "config/bound": math.inf,
    }  # fmt: skip
    points = {key: [(p.step, p.value, p.time) for p in some] for key, some in data.metrics.items()}
    assert points["acc"] == [(-3, 5e-324, at(4).timestamp())]
    assert points["loss"][:2] == [(0, 0.5, at(1).timestamp()), (1, -math.inf, at(2).timestamp())]
    step, value, time = points["loss"][2]
    assert (step, math.isnan(value), time) == (2, True, at(3).timestamp())
    assert data.artifact("model/weights").read_bytes() == b"weights"
    assert data.artifact("set/deep/a.txt").read_bytes() == b"a"
    assert data.artifact("images/step-4.png").read_bytes() == b"png"
    lines = data.artifact("log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["value"] for line in lines] == ["hello", "wörld"]
    histogram = json.loads(data.artifact("weights.jsonl").read_text())
    assert histogram == {
        "step": 1, "time": at(7).timestamp(), "value": {"type": "COUNTING", "edges": [0.0, 1.0], "values": [3.0]},
    }  # fmt: skip
    assert data.tags["sys/tags"] == '["a", "b"]'
    assert (data.tags["neptune.project"], data.tags["neptune.run"]) == (PROJECT, RUN)


def test_it_may_be_done_again_and_a_broken_import_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path, [*system(), row("loss", "float_series", "0", at(1), float_value=0.5)])
    from mlkit.integrations import neptune

    real = neptune.Writer.end
    monkeypatch.setattr(neptune.Writer, "end", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    broken = import_neptune(tmp_path, into=tmp_path / "runs")
    assert [run.state for run in broken.runs] == ["refused"]
    assert "killed" in broken.problems[0].message
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setattr(neptune.Writer, "end", real)
    states = [import_neptune(tmp_path, into=tmp_path / "runs").runs[0].state for _ in range(2)]
    assert states == ["imported", "present"]
    (only,) = find_runs(tmp_path / "runs")
    assert len(read(only).metrics["loss"]) == 1


def test_runs_and_projects_whose_names_look_alike_stay_apart(tmp_path):
    which = [("a/b", "c"), ("a", "b/c"), ("a_b", "c"), ("a", "b_c")]
    rows = [
        one
        for index, (project, run) in enumerate(which)
        for one in [row("n", "int", int_value=index, project=project, run=run)]
    ]
    write(
        tmp_path, rows, name=""
    )  # as the first versions of the exporter: several runs in one file
    result = import_neptune(tmp_path, into=tmp_path / "runs")
    assert [(run.project, run.run) for run in result.runs] == which
    assert [read(run.dir).params["n"] for run in result.runs] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("steps", "multiplier", "wanted"),
    [
        (["0.5", "1", "1.25"], None, [50, 100, 125]),
        (["0.000001", "999999999999"], None, [1, 999999999999000000]),
        (["10", "20"], None, [10, 20]),
        (["0.5", "1"], 10, [5, 10]),
    ],
)
def test_decimal_steps_become_integers_by_one_factor(tmp_path, steps, multiplier, wanted):
    write(tmp_path, [row("loss", "float_series", step, at(1), float_value=1.0) for step in steps])
    result = import_neptune(tmp_path, into=tmp_path / "runs", step_multiplier=multiplier)
    data = read(result.runs[0].dir)
    assert [point.step for point in data.metrics["loss"]] == wanted
    assert int(data.tags["neptune.step_multiplier"]) == wanted[-1] / Decimal(steps[-1])


def test_what_cannot_be_taken_over_is_said_by_place_and_harms_nothing_else(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_text("secret")
    path = write(
        tmp_path,
        [
            row("good", "int", int_value=1),
            row("good", "int", int_value=2),
            row("none", "string"),
            row("odd", "hologram"),
            row("gone", "file", file_value={"path": "nowhere.bin"}),
            row("escape", "file", file_value={"path": "../secret"}),
            row(None, "int", int_value=1),
            row("loss", "float_series", None, at(1), float_value=1.0),
            row("loss", "float_series", "0.5", at(1), float_value=2.0),
            row("loss", "float_series", "1", None, float_value=3.0),
        ],
    )  # fmt: skip
    result = import_neptune(tmp_path, into=tmp_path / "runs", step_multiplier=1)
    place = path.relative_to(tmp_path / "data")
    said = {
        problem.place.removeprefix(f"{place} row "): problem.message for problem in result.problems
    }
    places = [
        "2: good",
        "3: none",
        "4: odd",
        "5: gone",
        "6: escape",
        "7: None",
        "8: loss",
        "9: loss",
    ]
    assert sorted(said) == places
    assert "leads out" in said["6: escape"]
    assert "not whole" in said["9: loss"]
    data = read(result.runs[0].dir)
    assert data.params == {"good": 1}
    assert [(point.step, point.value) for point in data.metrics["loss"]] == [(1, 3.0)]
    assert "hologram" in data.artifact("mlkit/import-problems.jsonl").read_text()


def test_files_that_are_not_whole_are_said_and_the_others_come_over(tmp_path):
    write(tmp_path, [row("n", "int", int_value=1)])
    write(tmp_path, [row("n", "int", int_value=1, run="DIG-2")], name="DIG-2", part=1)  # no part 0
    torn = write(tmp_path, [row("n", "int", int_value=1, run="DIG-3")], name="DIG-3")
    torn.write_bytes(torn.read_bytes()[:-20])
    write(tmp_path, [{"run_id": "x"}], name="other", schema=pa.schema([("run_id", pa.string())]))
    result = import_neptune(tmp_path, into=tmp_path / "runs")
    assert [run.run for run in result.runs] == ["DIG-1"]
    reasons = sorted(problem.message.partition(":")[0] for problem in result.problems)
    assert reasons[:2] == ["cannot be read", "cannot be read"]
    assert reasons[2].startswith("the part 0")


def test_imported_runs_go_to_sinks_too(tmp_path):
    for number in range(2):
        rows = [row("loss", "float_series", "0", at(1), float_value=0.5, run=f"DIG-{number}")]
        write(tmp_path, rows, name=f"DIG-{number}")
    sinks = [f"jsonl:{tmp_path / 'lines'}", f"tensorboard:{tmp_path / 'logs'}"]
    result = import_neptune(tmp_path, into=tmp_path / "runs", sinks=sinks)
    assert all(run.delivery is not None and run.delivery.complete for run in result.runs)
    assert len(list((tmp_path / "lines").glob("*.jsonl"))) == 2
    again = import_neptune(tmp_path, into=tmp_path / "runs", sinks=sinks)
    assert [run.delivery for run in again.runs] == [run.delivery for run in result.runs]


def test_a_wrong_call_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigurationError, match="folder"):
        import_neptune(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"part_<n>\.parquet"):
        import_neptune(tmp_path)
    with pytest.raises(ConfigurationError, match="step_multiplier"):
        import_neptune(tmp_path, step_multiplier=0)
