"""MLflow holds what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit._digest import digest_bytes
from mlkit.errors import ConfigurationError, MissingDependencyError, SinkRejectedError
from mlkit.integrations.mlflow import MlflowSink, _files
from mlkit.integrations.mlflow._files import alone
from mlkit.integrations.mlflow._names import artifact_path
from mlkit.testing._sinks import SinkContract, StoredRun
from mlkit.tracking import RunInfo, start_run, sync

mlflow = pytest.importorskip("mlflow")

OWN_TAGS = re.compile(r"mlkit\.|mlflow\.")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A migrated database, which costs seconds to make and nothing to copy."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(template, tmp_path) -> Path:
    path = tmp_path / "mlflow.db"
    shutil.copy(template, path)
    return path


def client_of(database: Path):
    return mlflow.MlflowClient(f"sqlite:///{database}")


def run_of(client, run_id: str):
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(every, f"tags.`mlkit.run_id` = '{run_id}'")
    return found


def points_of(client, run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


class TestMlflow(SinkContract):
    @pytest.fixture(autouse=True)
    def _database(self, template, tmp_path):
        shutil.copy(template, tmp_path / "mlflow.db")

    def make_sink(self, place):
        return MlflowSink(f"sqlite:///{place}/mlflow.db")

    def stored(self, place, run: RunInfo) -> StoredRun:
        client = client_of(place / "mlflow.db")
        found = run_of(client, run.id)
        metrics = [
            (key, step, value)
            for key in found.data.metrics
            for step, value in points_of(client, found, key)
        ]
        for tag, value in found.data.tags.items():
            if match := re.fullmatch(r"mlkit\.nonfinite\.(.*)\.(-?\d+)\.\d+", tag):
                metrics.append((match[1], int(match[2]), float(value)))
        tags = {key: value for key, value in found.data.tags.items() if not OWN_TAGS.match(key)}
        artifacts = dict(self._artifacts(client, found.info.run_id, None))
        return StoredRun(metrics, found.data.params, tags, artifacts, found.info.status)

    def _artifacts(self, client, run_id, folder):
        for entry in client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from self._artifacts(client, run_id, entry.path)
            else:
                local = client.download_artifacts(run_id, entry.path)
                yield entry.path, digest_bytes(Path(local).read_bytes())


def test_a_killed_training_is_delivered_exactly_once(database, tmp_path):
    code = """
        import os, sys
        from mlkit.tracking import start_run
        run = start_run("killed", root=sys.argv[1], sinks=["mlflow:sqlite:///" + sys.argv[2]],
                        shipper="none")
        run.log_params({"lr": 0.1})
        run.log_artifact(b"weights", name="model/w.bin")
        print(run.dir, flush=True)
        for step in range(10**9):
            run.log_metrics({"loss": 0.5, "acc": step / 3}, step=step // 2)
            os.write(1, f"{step}\\n".encode())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "runs", database],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run_dir = Path(process.stdout.readline().strip())
    for _ in range(1500):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    acknowledged = 1500 + len(process.communicate()[0].split())

    delivery = sync(run_dir, timeout=100)
    assert delivery.complete
    next(run_dir.glob("sinks/*/cursor.json")).unlink()  # as if killed before it was written
    assert sync(run_dir, timeout=100) == delivery

    client = client_of(database)
    run = run_of(client, run_dir.name)
    losses = sorted(points_of(client, run, "loss"))
    assert len(losses) in (acknowledged, acknowledged + 1)
    assert losses == [(step // 2, 0.5) for step in range(len(losses))]  # equal points, too
    accuracies = sorted(points_of(client, run, "acc"))
    assert accuracies == [(step // 2, step / 3) for step in range(len(losses))]
    assert (run.info.status, run.data.params) == ("KILLED", {"lr": "0.1"})
    local = client.download_artifacts(run.info.run_id, "model/w.bin")
    assert Path(local).read_bytes() == b"weights"
    assert run.info.artifact_uri.startswith((database.parent / "mlartifacts").as_uri())


def test_a_run_arrives_through_the_shipper_process(database, tmp_path):
    code = """
        import sys
        from mlkit.tracking import start_run
        with start_run("digits", root=sys.argv[1], sinks=["mlflow:sqlite:///mlflow.db"],
                       name="first", tags={"seed": 3}) as run:
            run.log_params({"lr": 0.1, "net": {"depth": 3}})
            with run.child("fold") as child:
                child.log_metric("a", 1.5)
                child.close(timeout=100)
            for step in range(10):
                run.log_metrics({"loss": 1 / (step + 1)}, step=step)
            run.log_artifact(b"{}", name="report/summary.json")
            assert run.close(timeout=100).complete
        assert "mlflow" not in sys.modules
        print(run.id, child.id, child.flush(100).complete)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "runs"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    run_id, child_id, complete = process.stdout.split()
    assert complete == "True"
    client = client_of(database)
    run, child = run_of(client, run_id), run_of(client, child_id)
    assert run.data.params == {"lr": "0.1", "net.depth": "3"}
    assert points_of(client, run, "loss") == [(step, 1 / (step + 1)) for step in range(10)]
    assert (run.info.run_name, run.info.status, run.data.tags["seed"]) == ("first", "FINISHED", "3")
    assert client.list_artifacts(run.info.run_id, "report")[0].path == "report/summary.json"
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert child.data.metrics == {"a": 1.5}


def test_one_bad_record_takes_no_other_along(database, tmp_path):
    with start_run("poison", root=tmp_path / "runs") as run:
        run.log_params({"lr": 0.1})
        for step in range(300):
            run.log_metrics({"loss": step}, step=step)
    uri = f"mlflow:sqlite:///{database}"
    assert sync(run.dir, sinks=[uri]).complete
    client = client_of(database)
    mlflow_id = run_of(client, run.id).info.run_id
    client.log_param(mlflow_id, "depth", "another value")
    with start_run("poison", root=tmp_path / "runs", resume=run.id) as again:
        again.log_params({"depth": 3, "width": 8})
        for step in range(300, 600):
            again.log_metrics({"loss": step}, step=step)
    delivery = sync(run.dir, sinks=[uri])
    assert (delivery.pending, delivery.dead_lettered) == (0, 1)
    found = run_of(client, run.id)
    assert found.data.params == {"lr": "0.1", "depth": "another value", "width": "8"}
    assert points_of(client, found, "loss") == [(step, step) for step in range(600)]
    (dead,) = run.dir.glob("sinks/*/dead.jsonl")
    assert "depth" in dead.read_text()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_an_artifact_that_is_in_the_way_of_another_holds_nothing_up(database, tmp_path, names):
    with start_run("names", root=tmp_path / "runs") as run:
        for name in names:
            run.log_artifact(name.encode(), name=name)
        run.log_artifact(b"long", name="n" * 300)
        run.log_metric("loss", 0.5)
    delivery = sync(run.dir, sinks=[f"mlflow:sqlite:///{database}"])
    assert (delivery.pending, delivery.dead_lettered) == (0, 1)
    (dead,) = run.dir.glob("sinks/*/dead.jsonl")
    assert f"'{names[1]}' cannot be kept there" in dead.read_text()
    client = client_of(database)
    found = run_of(client, run.id)
    assert found.data.metrics == {"loss": 0.5}
    ((tag, name),) = [pair for pair in found.data.tags.items() if pair[0].startswith("mlkit.key.")]
    assert name == "n" * 300
    for path, content in ((names[0], names[0]), (tag.removeprefix("mlkit.key."), "long")):
        local = client.download_artifacts(found.info.run_id, path, str(tmp_path))
        assert Path(local).read_text() == content


@given(st.lists(st.text("aZ0#?;%: /.é\n", min_size=1), min_size=2, max_size=2, unique=True))
def test_different_artifacts_stay_different_on_the_way_to_a_server(names):
    paths = [artifact_path(name, in_url=True) for name in [*names, f"mlkit/artifacts/{names[0]}"]]
    assert len({*paths}) == 3
    for path in paths:
        assert not set(path) & set("#?;%:\n")
        assert artifact_path(path, in_url=True) != path or path in names


def test_a_new_database_is_opened_by_one_at_a_time(tmp_path, monkeypatch):
    uri, order = f"sqlite:///{tmp_path}/new.db", []

    def other():
        with alone(uri):
            order.append("other")

    with alone(uri):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "other"]
    monkeypatch.setattr(_files, "_PATIENCE", 0.1)  # one that is frozen stops nobody for good
    with alone(uri), alone(uri):
        pass
    with alone("sqlite:////no/such/folder/new.db"), alone("http://127.0.0.1:5000"):
        pass


def test_long_and_strange_texts_are_kept_whole(database, tmp_path):
    long = "é" * 3000 + "x" * 9000
    with start_run("texts", root=tmp_path / "runs") as run:
        run.log_params({"long": long, "fits": "y" * 6000, "surrogate": "\ud800", "empty": ""})
        run.set_tags({"note": long, "bad@key": "v", "k" * 400: "w"})
    assert sync(run.dir, sinks=[f"mlflow:sqlite:///{database}"]).complete
    client = client_of(database)
    found = run_of(client, run.id)
    params, tags = found.data.params, found.data.tags
    assert params["fits"] == "y" * 6000
    assert (params["surrogate"], params["empty"]) == ("\\ud800", "")
    for text, limit in ((params["long"], 6000), (tags["note"], 5000)):
        note = re.search(r"\[12000 characters, (sha256:\w+), whole in (.+)\]$", text)
        assert len(text) == limit
        whole = client.download_artifacts(found.info.run_id, note[2])
        assert Path(whole).read_text(encoding="utf-8") == long
        assert note[1] == digest_bytes(long.encode())
    originals = {value for key, value in tags.items() if key.startswith("mlkit.key.")}
    assert originals == {"bad@key", "k" * 400}


def test_data_that_the_run_read_is_a_dataset_of_mlflow(database, tmp_path):
    uri = f"mlflow:sqlite:///{database}"
    with start_run("data", root=tmp_path / "runs", sinks=[uri], shipper="none") as run:
        ref = run.log_input("train", b"rows", source="s3://bucket/train", context="training")
        run.log_input("train set/ü", fingerprint="tree:1")
        run.log_output("predictions", b"0")
        run.close(timeout=0)
    for _ in range(2):  # delivered twice, there once
        assert sync(run.dir).complete
        next(run.dir.glob("sinks/*/cursor.json")).unlink()
    (found,) = client_of(database).search_runs(
        [client_of(database).get_experiment_by_name("data").experiment_id]
    )
    inputs = {one.dataset.name: one for one in found.inputs.dataset_inputs}
    assert sorted(inputs) == ["train", "train set/ü"]
    assert len(found.inputs.dataset_inputs) == 2
    assert ref.fingerprint.removeprefix("sha256:").startswith(inputs["train"].dataset.digest)
    assert "s3://bucket/train" in inputs["train"].dataset.source
    assert [tag.value for tag in inputs["train"].tags] == ["training"]
    assert ref.fingerprint in found.data.tags["mlkit.input.train"]


def test_an_experiment_that_was_deleted_is_said_and_can_be_mended(database, tmp_path):
    client = client_of(database)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    with start_run("gone", root=tmp_path / "runs") as run:
        run.log_metric("loss", 1)
    uri = f"mlflow:sqlite:///{database}"
    delivery = sync(run.dir, sinks=[uri])
    assert (delivery.pending, delivery.dead_lettered) == (3, 0)
    assert "was deleted" in delivery.reason
    client.restore_experiment(experiment)
    assert sync(run.dir, sinks=[uri]).complete


def test_a_run_that_was_deleted_is_said_and_can_be_mended(database, tmp_path):
    """Somebody tidies up while the training goes on: nothing is set aside, point by point, for what can be undone."""
    uri = f"mlflow:sqlite:///{database}"
    with start_run("gone", root=tmp_path / "runs") as run:
        run.log_metric("loss", 1)
    assert sync(run.dir, sinks=[uri]).complete
    client = client_of(database)
    mlflow_id = run_of(client, run.id).info.run_id
    with start_run("gone", root=tmp_path / "runs", resume=run.id) as again:
        again.log_points({"loss": range(500)}, steps=range(500))
    sink = MlflowSink(f"sqlite:///{database}")
    opened = sink.open

    def open_and_lose(info):
        opened(info)
        client.delete_run(mlflow_id)

    sink.open = open_and_lose
    delivery = sync(run.dir, sinks=[sink], timeout=2)
    assert (delivery.pending, delivery.dead_lettered) == (502, 0)
    assert "restore it" in delivery.reason
    client.restore_run(mlflow_id)
    assert sync(run.dir, sinks=[uri], timeout=60).complete
    assert len(points_of(client, run_of(client, run.id), "loss")) == 501


def test_more_params_than_mlflow_takes_at_once_are_there(database, tmp_path):
    """MLflow takes a hundred at once, and reads all it has for each hundred."""
    params = {f"layer.{number}.width": number for number in range(1_050)}
    with start_run("wide", root=tmp_path / "runs") as run:
        run.log_params(params)
    assert sync(run.dir, sinks=[f"mlflow:sqlite:///{database}"]).complete
    found = run_of(client_of(database), run.id).data.params
    assert found == {key: str(value) for key, value in params.items()}


names = st.text(max_size=20).filter(bool) | st.text("ab/. @#%[]", min_size=1, max_size=8)


@given(names=st.lists(names | st.text("x", min_size=240, max_size=300), unique=True, max_size=8))
def test_different_names_stay_different_and_mlflow_takes_them(names):
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    from mlkit.integrations.mlflow._names import safe_key

    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names)
    everything = {*names, *keys}  # also when a user gives the very name that another was mapped to
    assert len({safe_key(name) for name in everything}) == len(everything)
    for key in keys:
        _validate_metric_name(key)
        _validate_tag_name(key)
        assert len(key) <= 250


@pytest.mark.parametrize("uri", ["", "sqlite", "file:///tmp/mlruns", 3, None])
def test_what_is_no_tracking_uri_is_refused(uri):
    with pytest.raises(ConfigurationError, match="MlflowSink"):
        MlflowSink(uri)


def test_a_missing_mlflow_is_said_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[mlflow\]"):
        start_run("x", root=tmp_path / "runs", sinks=["mlflow:sqlite:///a.db"])
    assert not (tmp_path / "runs").exists()


def test_two_values_of_one_param_in_a_batch_are_refused(database, tmp_path):
    from mlkit.tracking import Record

    sink = MlflowSink(f"sqlite:///{database}")
    sink.open(RunInfo("20260102-030405-00000000", "x", "x", None, 0.0))
    with pytest.raises(SinkRejectedError, match="two values"):
        sink.send([Record("1", "param", "a", "1"), Record("2", "param", "a", "2")])
    sink.send([Record("3", "metric", "m", -math.inf, step=4, time=1.5)])
    tags = client_of(database).get_run(sink.run_id).data.tags
    assert tags["mlkit.nonfinite.m.4.1500"] == "-inf"
    sink.close()
