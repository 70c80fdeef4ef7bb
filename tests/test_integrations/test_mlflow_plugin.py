"""MLflow's own interface on an address of the plug-in: real servers, killed, hanging and refusing, and what they have afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mlkit.errors import ConfigurationError, SinkUnavailableError
from mlkit.integrations import mlflow_plugin
from mlkit.integrations.mlflow_plugin import _backend
from mlkit.tracking import Record, RunInfo, find_runs, read, status, sync

mlflow = pytest.importorskip("mlflow")
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def servers(mlflow_servers):
    return mlflow_servers


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    with contextlib.chdir(path.parent):  # where the default experiment keeps its artifacts for good
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    """Each test has runs of its own, and leaves nothing of MLflow's process-wide state."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLKIT_MLFLOW_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("MLKIT_MLFLOW_SHIPPER", "thread")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(_backend, "_ANSWER_WITHIN", 60.0)  # a busy machine is no outage
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # To find out what a model needs, MLflow imports everything in another process once more.
    monkeypatch.setattr("mlflow.models.infer_pip_requirements", lambda *args, **kwargs: [])
    before = dict(os.environ)
    yield
    while mlflow.active_run():
        mlflow.end_run()
    from mlkit.integrations.mlflow_plugin import _local

    for store in _local._stores:
        store.let_go()
    _local._stores.clear()
    from mlflow.tracking._tracking_service import utils

    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    utils._artifact_repos_cache.clear()
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]


@pytest.fixture
def database(template, tmp_path) -> Path:
    path = tmp_path / "mlflow.db"
    shutil.copy(template, path)
    return path


@pytest.fixture
def plain(database):
    """What looks at the database without the plug-in."""
    return mlflow.MlflowClient(f"sqlite:///{database}")


def use(database_or_proxy) -> str:
    if isinstance(database_or_proxy, Path):
        uri = f"mlkit+sqlite:///{database_or_proxy}"
    else:
        uri = f"mlkit+http://127.0.0.1:{database_or_proxy.server_port}"
    mlflow.set_tracking_uri(uri)
    return uri


def ask_again() -> None:
    """Forget that the server was away, which holds for five seconds."""
    from mlkit.integrations.mlflow_plugin import _local

    for store in _local._stores:
        store.backend._checked = -1e9


def delivered(timeout: float = 300):
    found = mlflow_plugin.flush(timeout)
    assert (found.pending, found.dead_lettered, found.lost) == (0, 0, 0), found
    return found


def stored(client, run_id: str):
    every = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(every, f"tags.`mlkit.run_id` = '{run_id}'")
    return found


def points(client, run, key: str):
    return [(one.step, one.timestamp, one.value) for one in client.get_metric_history(run.info.run_id, key)]  # fmt: skip


def test_a_script_of_mlflow_gives_the_run_that_it_would_have_given(database, plain, tmp_path):
    def script():
        mlflow.set_experiment("churn")
        with mlflow.start_run(run_name="a", tags={"team": "x"}, description="what") as run:
            mlflow.log_params({"lr": 0.1, "depth": 3})
            for step in range(5):
                mlflow.log_metrics({"loss": 1 / (step + 1), "acc": step / 5}, step=step)
            mlflow.log_metric("exact", 2.5, step=-3, timestamp=123456)
            mlflow.log_metric("nan", math.nan, step=2**40)
            mlflow.log_text("hello", "notes/a.txt")
            mlflow.log_dict({"a": 1}, "b.json")
            mlflow.log_table({"x": [1, 2]}, "t.json")
            mlflow.log_table({"x": [3]}, "t.json")  # it reads the first, and appends
            mlflow.set_tags({"colour": "red", "gone": "soon"})
            mlflow.delete_tag("gone")
            data = mlflow.data.from_dict({"x": [1]}) if hasattr(mlflow.data, "from_dict") else None
            if data is not None:
                mlflow.log_input(data, context="training")
            with mlflow.start_run(run_name="child", nested=True):
                mlflow.log_metric("c", 1.0)
        return run.info.run_id

    theirs_id = None
    native = tmp_path / "native.db"
    shutil.copy(database, native)
    mlflow.set_tracking_uri(f"sqlite:///{native}")
    theirs_id = script()
    from mlflow.tracking import fluent

    fluent._active_experiment_id = None
    use(database)
    run_id = script()
    delivered()
    client = mlflow.MlflowClient(f"sqlite:///{native}")
    theirs, ours = client.get_run(theirs_id), stored(plain, run_id)
    assert ours.data.params == theirs.data.params
    assert repr(ours.data.metrics) == repr(
        {key: theirs.data.metrics[key] for key in ours.data.metrics}
    )
    assert ours.data.metrics.keys() == theirs.data.metrics.keys()
    for key in theirs.data.metrics:
        got, expected = points(plain, ours, key), points(client, theirs, key)
        assert [(step, repr(value)) for step, _, value in got] == [
            (step, repr(value)) for step, _, value in expected
        ]
    assert points(plain, ours, "exact") == [(-3, 123456, 2.5)]
    own = {"mlkit.run_id": run_id}
    assert ours.data.tags == {**theirs.data.tags, **own}
    assert (ours.info.status, ours.info.run_name) == ("FINISHED", "a")
    assert ours.info.end_time >= ours.info.start_time
    for path in ("notes/a.txt", "b.json", "t.json"):
        copies = [
            Path(which.download_artifacts(run.info.run_id, path)).read_text()
            for which, run in ((client, theirs), (plain, ours))
        ]
        assert copies[0] == copies[1]
    (child,) = plain.search_runs([ours.info.experiment_id], "attributes.run_name = 'child'")
    assert child.data.tags["mlflow.parentRunId"] == ours.info.run_id
    assert len(plain.search_runs([ours.info.experiment_id])) == 2


def test_what_was_written_is_read_at_once_and_later_too(database, plain):
    use(database)
    client = mlflow.MlflowClient()
    run = client.create_run("0", start_time=77, tags={"a": "1"}, run_name="r")
    run_id = run.info.run_id
    assert (run.info.start_time, run.info.run_name, run.info.status) == (77, "r", "RUNNING")
    client.log_batch(
        run_id,
        metrics=[Metric("m", step / 2, 1000 + step, step) for step in range(2000)],
        params=[Param(f"p{number}", str(number)) for number in range(250)],
        tags=[RunTag("b", "2")],
    )
    client.log_metric(run_id, "inf", math.inf, step=1)

    def check():
        found = client.get_run(run_id)
        assert found.info.run_id == run_id
        assert (found.info.start_time, found.data.metrics) == (77, {"m": 999.5, "inf": math.inf})
        assert found.data.params == {f"p{number}": str(number) for number in range(250)}
        assert (found.data.tags["a"], found.data.tags["b"]) == ("1", "2")
        history = client.get_metric_history(run_id, "m")
        assert [(one.step, one.timestamp, one.value) for one in history] == [
            (step, 1000 + step, step / 2) for step in range(2000)
        ]

    check()
    delivered()
    check()
    client.log_metric(run_id, "m", 5.0, step=5000)
    assert client.get_run(run_id).data.metrics["m"] == 5.0
    client.set_terminated(run_id, "FAILED", end_time=99)
    found = client.get_run(run_id).info
    assert (found.status, found.end_time) == ("FAILED", 99)
    client.log_metric(run_id, "late", 1.0)  # MLflow takes it, and the run stays as it ended
    client.set_tag(run_id, "b", "3")
    client.delete_tag(run_id, "a")
    assert client.get_run(run_id).data.metrics["late"] == 1.0
    delivered()
    theirs = stored(plain, run_id)
    assert (theirs.info.status, theirs.info.end_time, theirs.data.metrics["late"]) == (
        "FAILED",
        99,
        1.0,
    )
    assert theirs.data.tags["b"] == "3"
    assert "a" not in theirs.data.tags
    plain.set_tag(theirs.info.run_id, "b", "somebody else's")  # what is delivered may change
    assert client.get_run(run_id).data.tags["b"] == "somebody else's"


def test_ids_of_both_kinds_name_one_run(database, plain):
    use(database)
    with mlflow.start_run() as run:
        mlflow.log_metric("a", 1.0)
    delivered()
    theirs = stored(plain, run.info.run_id)
    client = mlflow.MlflowClient()
    for run_id in (run.info.run_id, theirs.info.run_id):
        assert client.get_run(run_id).info.run_id == run.info.run_id
        client.log_metric(run_id, "a", 2.0, step=1)
    assert mlflow.search_runs().run_id.tolist() == [run.info.run_id]
    made = plain.create_run("0", run_name="elsewhere")  # not by us
    client.log_metric(made.info.run_id, "b", 3.0)
    client.log_text(made.info.run_id, "x", "x.txt")
    assert client.get_run(made.info.run_id).data.metrics == {"b": 3.0}
    with mlflow.start_run(run_id=made.info.run_id):
        mlflow.log_param("p", 1)
    delivered()
    again = plain.get_run(made.info.run_id)
    assert (again.data.metrics, again.data.params, again.info.status) == (
        {"b": 3.0},
        {"p": "1"},
        "FINISHED",
    )
    assert [one.path for one in plain.list_artifacts(made.info.run_id)] == ["x.txt"]
    assert len(plain.search_runs(["0"])) == 2
    with pytest.raises(MlflowException, match="not found"):
        client.get_run("0" * 32)
    with pytest.raises(MlflowException, match="not found"):
        client.log_metric("20200101-000000-abcdef01", "a", 1.0)


def test_an_exception_ends_the_run_as_failed(database, plain):
    use(database)
    with pytest.raises(RuntimeError, match="stop here"), mlflow.start_run() as run:
        raise RuntimeError("stop here")
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"
    delivered()
    assert stored(plain, run.info.run_id).info.status == "FAILED"


def test_a_name_is_changed_and_a_status(database, plain):
    use(database)
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", run_name="first").info.run_id
    client.update_run(run_id, name="second")
    assert client.get_run(run_id).info.run_name == "second"
    client.set_tag(run_id, "mlflow.runName", "third")
    assert client.get_run(run_id).info.run_name == "third"
    client.update_run(run_id, status="SCHEDULED")
    assert client.get_run(run_id).info.status == "SCHEDULED"
    client.set_terminated(run_id, "KILLED")
    delivered()
    theirs = stored(plain, run_id)
    assert (theirs.info.status, theirs.info.run_name) == ("KILLED", "third")
    assert theirs.data.tags["mlflow.runName"] == "third"


def test_a_run_is_gone_on_with_by_its_id(database, plain):
    use(database)
    with mlflow.start_run() as run:
        mlflow.log_metric("a", 1.0, step=0)
    with mlflow.start_run(run_id=run.info.run_id):
        assert mlflow.active_run().info.status == "RUNNING"
        mlflow.log_metric("a", 2.0, step=1)
    delivered()
    theirs = stored(plain, run.info.run_id)
    assert theirs.info.status == "FINISHED"
    assert [value for *_, value in points(plain, theirs, "a")] == [1.0, 2.0]


def test_what_mlflow_refuses_is_refused_at_the_call(database):
    use(database)
    with mlflow.start_run():
        mlflow.log_param("lr", 1)
        mlflow.log_param("lr", 1)
        with pytest.raises(
            MlflowException, match=r"Changing param values is not allowed.*'lr'.*'1'.*'2'"
        ):
            mlflow.log_param("lr", 2)
        for call in (
            lambda: mlflow.log_metric("a//b", 1.0),
            lambda: mlflow.set_tag("../x", "y"),
            lambda: mlflow.log_metric("a", "text"),
            lambda: mlflow.log_batch("no such run!", [], [], [RunTag("a", "b")])
            if hasattr(mlflow, "log_batch") else mlflow.log_param("a[b]", 1),
        ):  # fmt: skip
            with pytest.raises(MlflowException):
                call()
        future = mlflow.log_metric("b", 1.0, synchronous=False)
        future.wait()
    delivered()


def test_artifacts_are_there_before_and_after_delivery(database, tmp_path):
    use(database)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "one.txt").write_text("1")
    (tmp_path / "data" / "deep" / "two words.txt").write_text("2")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path / "data"), "folder")
        mlflow.log_artifact(str(tmp_path / "data" / "one.txt"))
    client = mlflow.MlflowClient()
    for _ in range(2):
        top = [(one.path, one.is_dir) for one in client.list_artifacts(run.info.run_id)]
        assert top == [("folder", True), ("one.txt", False)]
        assert [one.path for one in client.list_artifacts(run.info.run_id, "folder")] == [
            "folder/deep", "folder/one.txt",
        ]  # fmt: skip
        place = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/folder"))
        assert (place / "deep" / "two words.txt").read_text() == "2"
        whole = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
        assert (whole / "one.txt").read_text() == "1"
        delivered()
    shutil.rmtree(tmp_path / "runs" / run.info.run_id / "artifacts")  # then MLflow has them still
    (tmp_path / "runs" / run.info.run_id / "artifacts").mkdir()
    shutil.rmtree(tmp_path / "runs" / run.info.run_id / "journal")
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/folder/one.txt") == "1"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The requests of this thread, answered or not; those of the shipper's threads are nobody's wait."""
    begun: list[str] = []
    put, me = http.client.HTTPConnection.putrequest, threading.get_ident()

    def noted(self, method, url, *args, **kwargs):
        if threading.get_ident() == me:
            begun.append(f"{method} {url}")
        return put(self, method, url, *args, **kwargs)

    monkeypatch.setattr(http.client.HTTPConnection, "putrequest", noted)
    return begun


def train(steps: int, asked: list[str] | None = None, meanwhile=lambda step: None) -> str:
    """A training as MLflow's users write it; returns its run, and notes in `asked` what a log call asked."""
    with mlflow.start_run() as run:
        mlflow.log_params({"lr": 0.1, "depth": 3})
        for step in range(steps):
            meanwhile(step)
            before = list(asked or ())
            mlflow.log_metrics({"loss": 1 / (step + 1), "step": step}, step=step)
            assert before == list(asked or ()), "a call that logs asks nobody"
        mlflow.set_tag("done", "yes")
        mlflow.log_text("bye", "last.txt")
    return run.info.run_id


@pytest.mark.parametrize("mode", ["refuse", "hang", "500", "429", "page"])
def test_a_server_that_is_away_from_the_start_costs_nothing_and_gets_all(
    servers, mode, asked, monkeypatch
):
    monkeypatch.setattr(_backend, "_DOWN_FOR", 3600.0)  # however long this takes
    monkeypatch.setattr(_backend, "_ANSWER_WITHIN", 2.0)
    proxy = servers.proxy("away", mode)
    use(proxy)
    mlflow.set_experiment(f"offline {mode}")
    run_id = train(50, asked)
    assert len(asked) == 1  # about its health, where MLflow asks for minutes
    found = mlflow.get_run(run_id)
    assert (found.info.status, found.data.metrics["step"], found.data.params["lr"]) == (
        "FINISHED",
        49.0,
        "0.1",
    )
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/last.txt") == "bye"
    assert mlflow_plugin.flush(0).pending > 0
    proxy.heal()
    delivered()
    there = servers.stored("away", run_id)
    assert (there.status, there.params) == ("FINISHED", {"lr": "0.1", "depth": "3"})
    assert [point for point in there.points if point[0] == "loss"] == [
        ("loss", step, 1 / (step + 1)) for step in range(50)
    ]
    assert there.files == {"last.txt": b"bye"}
    assert there.tags["done"] == "yes"
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    experiment = client.get_experiment_by_name(f"offline {mode}")
    assert client.get_run(there.id).info.experiment_id == experiment.experiment_id


def test_a_server_that_is_killed_in_the_middle_is_not_noticed(servers, asked):
    proxy = servers.proxy("killed")
    use(proxy)
    mlflow.set_experiment("steady")

    def meanwhile(step):
        if step == 100:
            servers.kill("killed")
        if step == 300:
            servers.start("killed")

    run_id = train(400, asked, meanwhile)
    delivered()
    there = servers.stored("killed", run_id)
    assert there.points == sorted(
        [("loss", step, 1 / (step + 1)) for step in range(400)]
        + [("step", step, float(step)) for step in range(400)]
    )
    assert there.status == "FINISHED"


def test_a_server_that_dies_just_after_it_was_asked_stops_nothing(servers):
    proxy = servers.proxy("dies")
    use(proxy)
    mlflow.set_experiment("before")
    servers.kill("dies")
    mlflow.set_experiment("after")
    with mlflow.start_run() as run:
        mlflow.log_metric("a", 1.0)
    servers.start("dies")
    delivered()
    there = servers.stored("dies", run.info.run_id)
    assert there.points == [("a", 0, 1.0)]
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    assert (
        client.get_run(there.id).info.experiment_id
        == client.get_experiment_by_name("after").experiment_id
    )


def test_nested_runs_and_experiments_made_during_an_outage_find_each_other(servers):
    proxy = servers.proxy("nested", "refuse")
    use(proxy)
    first = mlflow.set_experiment("made offline")
    again = mlflow.set_experiment("made offline")
    assert first.experiment_id == again.experiment_id
    with mlflow.start_run(run_name="parent") as parent:
        children = []
        for fold in range(2):
            with mlflow.start_run(run_name=f"fold {fold}", nested=True) as child:
                mlflow.log_metric("score", fold)
                children.append(child.info.run_id)
    other = mlflow.create_experiment("tagged offline", tags={"team": "x"})
    with mlflow.start_run(experiment_id=other):
        pass
    proxy.heal()
    delivered()
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    there = servers.stored("nested", parent.info.run_id)
    for child in children:
        assert servers.stored("nested", child).tags["mlflow.parentRunId"] == there.id
    assert client.get_experiment_by_name("tagged offline").tags["team"] == "x"
    ask_again()
    found = mlflow.search_runs(
        experiment_ids=[first.experiment_id],
        filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
    )
    assert set(found.run_id) == set(children)
    assert mlflow.get_experiment(first.experiment_id).name == "made offline"
    with mlflow.start_run(
        run_id=parent.info.run_id
    ):  # the active experiment is still the one made offline
        mlflow.log_metric("more", 1.0)
    delivered()


def test_what_needs_the_server_says_so_at_once(servers, asked):
    proxy = servers.proxy("asked", "refuse")
    use(proxy)
    client = mlflow.MlflowClient()
    for call in (
        lambda: client.search_experiments(),
        lambda: mlflow.search_runs(["0"]),
        lambda: client.delete_experiment("0"),
        lambda: client.create_registered_model("m"),
        lambda: client.search_logged_models(["0"]),
        lambda: client.get_run("0" * 32),
    ):
        n_asked = len(asked)
        with pytest.raises(MlflowException, match=r"does not answer .* cannot be done without it"):
            call()
        assert len(asked) - n_asked <= 2  # where MLflow asks for minutes
    proxy.heal()


def test_deliveries_that_are_repeated_leave_one_of_each(servers, tmp_path):
    proxy = servers.proxy("twice")
    use(proxy)
    run_id = train(20)
    mlflow.MlflowClient().log_inputs(
        run_id,
        datasets=[
            mlflow.entities.DatasetInput(
                mlflow.entities.Dataset("d", "abc", "local", "{}"),
                [mlflow.entities.InputTag("mlflow.data.context", "training")],
            )
        ],
    )
    delivered()
    once = servers.stored("twice", run_id)
    folder = tmp_path / "runs" / run_id
    for _ in range(2):
        next(folder.glob("sinks/*/cursor.json")).unlink()
        assert sync(folder, timeout=60).complete
    twice = servers.stored("twice", run_id)
    assert (once.points, once.params, once.files, once.status) == (
        twice.points, twice.params, twice.files, twice.status,
    )  # fmt: skip
    found = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}").get_run(once.id)
    assert len(found.inputs.dataset_inputs) == 1


SCRIPT = """
    import os, sys, time
    import mlflow
    mlflow.set_tracking_uri(sys.argv[1])
    with mlflow.start_run() as run:
        mlflow.log_param("a", 1)
        print(run.info.run_id, flush=True)
        for step in range(10**9):
            mlflow.log_metric("loss", step / 3, step=step)
            os.write(1, f"{step}\\n".encode())
            if sys.argv[2] == "end" and step == 50:
                break
"""


def start_script(servers_or_uri: str, how: str):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), servers_or_uri, how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(done, timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "kill"])
def test_a_process_of_its_own_delivers_what_is_left(servers, tmp_path, monkeypatch, how):
    monkeypatch.setenv("MLKIT_MLFLOW_SHIPPER", "process")
    proxy = servers.proxy("process", "refuse")
    script = start_script(f"mlkit+http://127.0.0.1:{proxy.server_port}", how)
    run_id = script.stdout.readline().strip()
    if how == "kill":
        for _ in range(100):
            script.stdout.readline()
        os.killpg(script.pid, signal.SIGKILL)
    with script:  # not communicate(), which forgets what readline() has read ahead
        told = script.stdout.read().split()
    n_steps = len(told) + (100 if how == "kill" else 0)
    (folder,) = find_runs(tmp_path / "runs")
    assert read(folder).id == run_id
    assert status(folder)[0].delivery.pending
    proxy.heal()
    wait_until(lambda: not status(folder)[0].delivery.pending and not status(folder)[0].shipping)
    there = servers.stored("process", run_id)
    assert there.status == {"end": "FINISHED", "kill": "KILLED"}[how]
    assert len(there.points) in (n_steps, n_steps + 1)
    assert there.points == [("loss", step, step / 3) for step in range(len(there.points))]


def test_a_run_that_its_client_lets_go_of_is_not_dead(database, plain):
    use(database)
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "a", 1.0)
    from mlkit.integrations.mlflow_plugin import _local

    _local.let_go_all()  # what the end of the interpreter does
    assert stored(plain, run.info.run_id).info.status == "RUNNING"
    with mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_metric("a", 2.0, step=1)
    delivered()
    assert stored(plain, run.info.run_id).info.status == "FINISHED"


def test_autologging_of_sklearn_is_the_same_as_without(servers, tmp_path):
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    proxy = servers.proxy("autolog")
    runs = {}
    for uri in (
        f"http://127.0.0.1:{proxy.server_port}",
        f"mlkit+http://127.0.0.1:{proxy.server_port}",
    ):
        mlflow.set_tracking_uri(uri)
        mlflow.sklearn.autolog(log_input_examples=True, silent=True)
        try:
            with mlflow.start_run() as run:
                model = LogisticRegression(max_iter=200).fit(features, labels)
                model.score(features, labels)
        finally:
            mlflow.sklearn.autolog(disable=True)
        if uri.startswith("mlkit"):
            delivered()
            back = mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/model")
            assert (back.predict(features) == model.predict(features)).all()
            version = mlflow.register_model(f"runs:/{run.info.run_id}/model", "iris")
            loaded = mlflow.sklearn.load_model(f"models:/iris/{version.version}")
            assert (loaded.predict(features) == model.predict(features)).all()
            assert version.run_id == run.info.run_id
            assert servers.stored("autolog", run.info.run_id).id
            here = mlflow.get_run(run.info.run_id)
            assert len(here.outputs.model_outputs) == 1
        runs[uri] = run.info.run_id
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    theirs_id, ours_id = runs.values()
    theirs = client.get_run(theirs_id)
    ours = client.get_run(servers.stored("autolog", ours_id).id)
    assert ours.data.params == theirs.data.params
    assert ours.data.metrics == theirs.data.metrics
    different = {"mlkit.run_id", "mlflow.log-model.history", "mlflow.runName"}
    assert {key for key in ours.data.tags if key not in different} == {
        key for key in theirs.data.tags if key not in different
    }
    assert [one.dataset.digest for one in ours.inputs.dataset_inputs] == [
        one.dataset.digest for one in theirs.inputs.dataset_inputs
    ]
    assert len(ours.outputs.model_outputs) == len(theirs.outputs.model_outputs) == 1
    (model_of,) = ours.outputs.model_outputs
    linked = client.get_logged_model(model_of.model_id)
    assert {one.key for one in linked.metrics} == {
        one.key for one in client.get_logged_model(theirs.outputs.model_outputs[0].model_id).metrics
    }
    names = {one.path for one in client.list_artifacts(theirs.info.run_id)}
    assert {one.path for one in client.list_artifacts(ours.info.run_id)} == names


def test_autologging_does_not_stop_a_fit_while_the_server_is_away(servers, asked):
    from sklearn.linear_model import LinearRegression

    proxy = servers.proxy("autolog-away", "refuse")
    use(proxy)
    mlflow.set_experiment("autolog")  # the default one keeps artifacts where the template was made
    mlflow.sklearn.autolog(silent=True)
    try:
        with mlflow.start_run() as run:
            LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
        assert len(asked) < 100  # where MLflow asks for minutes
    finally:
        mlflow.sklearn.autolog(disable=True)
    proxy.heal()
    delivered()
    there = servers.stored("autolog-away", run.info.run_id)
    assert there.params["fit_intercept"] == "True"
    assert "training_score" in {key for key, *_ in there.points}
    # MLflow has made a model of its own of what stood in for one, and both ids name it.
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    (output,) = client.get_run(there.id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("model", "READY", there.id)
    assert model.params["fit_intercept"] == "True"
    assert {one.key for one in model.metrics} >= {"training_score"}
    stood_in = model.tags["mlkit.model_id"]
    assert stood_in != model.model_id
    ask_again()
    assert mlflow.get_logged_model(stood_in).model_id == model.model_id
    for uri in (use(proxy), f"http://127.0.0.1:{proxy.server_port}"):
        mlflow.set_tracking_uri(uri)
        run_id = run.info.run_id if uri.startswith("mlkit") else there.id
        for name in (f"runs:/{run_id}/model", f"models:/{model.model_id}"):
            back = mlflow.sklearn.load_model(name)
            assert round(float(back.predict([[2.0]])[0])) == 2


def test_a_journal_that_is_read_before_it_says_how_to_make_the_run(database, plain):
    sink = mlflow_plugin.sink(f"sqlite:///{database}")
    sink.open(RunInfo("20260102-030405-00000000", "x", "x", None, 0.0))
    begun = Record("1", "status", "status", "RUNNING")
    sink.send([begun])  # nothing to do yet, and nothing to wait for
    with pytest.raises(SinkUnavailableError, match="not in MLflow any more"):
        sink.send([begun, Record("2", "metric", "loss", 0.5)])
    about = {"experiment_id": "0", "name": "Default"}
    call = {"call": "create", "experiment_id": "0", "experiment": about, "tags": {"a": "b"}}
    call |= {"run_name": "r", "user_id": "u", "start_time": 7}
    create = Record("3", "tag", "mlflow-call.00000000000000001.000000000", json.dumps(call))
    sink.send([create, Record("4", "metric", "loss", 0.5)])
    sink.close()
    found = stored(plain, "20260102-030405-00000000")
    assert (found.info.start_time, found.data.metrics) == (7, {"loss": 0.5})


def test_a_new_database_is_ready_before_anybody_else_opens_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLKIT_MLFLOW_SHIPPER", "none")
    use(tmp_path / "new.db")
    with mlflow.start_run(experiment_id="0"):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert {"runs", "registered_models"} <= names


def test_an_artifact_that_is_in_the_way_of_another_holds_nothing_up(database, plain):
    use(database)
    with mlflow.start_run() as run:
        mlflow.log_text("one", "a")
        mlflow.log_text("two", "a/b")
        mlflow.log_metric("loss", 0.5)
    found = mlflow_plugin.flush(300)
    assert (found.pending, found.dead_lettered) == (0, 1)
    assert stored(plain, run.info.run_id).data.metrics == {"loss": 0.5}


def test_what_is_no_address_is_refused():
    for uri in ("mlkit+http", "http://host"):
        with pytest.raises(ConfigurationError, match=r"mlkit\+http://host:5000"):
            mlflow_plugin.tracking_store(uri)


def test_the_plug_in_costs_an_import_of_mlflow_nothing():
    code = (
        "import sys, mlkit.integrations.mlflow_plugin\n"
        "assert not {'mlflow', 'numpy', 'mlkit.tracking', 'asyncio'} & set(sys.modules)\n"
        "import pickle; print(len(pickle.dumps(mlkit.integrations.mlflow_plugin.sink)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    sink = mlflow_plugin.sink("http://127.0.0.1:1")
    assert pickle.loads(pickle.dumps(sink)).uri == sink.uri == "mlflow-store:http://127.0.0.1:1"


def test_threads_and_forked_children_log_into_one_run(database, plain, monkeypatch):
    monkeypatch.setenv("MLKIT_MLFLOW_SHIPPER", "none")
    use(database)
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id

    def log(name: str) -> None:
        for step in range(50):
            client.log_metric(run_id, name, float(step), timestamp=step, step=step)

    threads = [threading.Thread(target=log, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if not child:
        log("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    log("parent")
    client.set_terminated(run_id)
    assert sync(find_runs(os.environ["MLKIT_MLFLOW_ROOT"])[0], timeout=60).complete
    theirs = stored(plain, run_id)
    assert len(theirs.data.metrics) == 6
    for key in theirs.data.metrics:
        assert points(plain, theirs, key) == [(step, step, float(step)) for step in range(50)]


def test_autologging_of_lightning_goes_through_the_journal(database, plain, tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
    import torch

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            loss = self.linear(batch[0]).square().mean()
            self.log("loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    use(database)
    rows = torch.utils.data.TensorDataset(torch.ones(8, 2))
    mlflow.pytorch.autolog(log_models=False, checkpoint=False, silent=True)
    try:
        with mlflow.start_run() as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=3, logger=False, enable_progress_bar=False, accelerator="cpu",
                enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
            )  # fmt: skip
            trainer.fit(Model(), torch.utils.data.DataLoader(rows, batch_size=4))
    finally:
        mlflow.pytorch.autolog(disable=True)
    delivered()
    theirs = stored(plain, run.info.run_id)
    assert (theirs.data.params["optimizer_name"], theirs.info.status) == ("SGD", "FINISHED")
    assert [step for step, *_ in points(plain, theirs, "loss")] == [0, 1, 2]
