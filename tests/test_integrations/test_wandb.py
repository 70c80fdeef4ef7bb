"""W&B's own reader finds in the folders what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mlkit._digest import digest_bytes
from mlkit.errors import ConfigurationError, MissingDependencyError
from mlkit.integrations.wandb import WandbSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import RunInfo, start_run, sync

pytest.importorskip("wandb")

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@pytest.fixture(scope="module", autouse=True)
def _one_client():
    """Keep the client's process, whose start costs seconds, from one test to the next."""
    sink = WandbSink("unused", mode="offline")
    sink._run.call("mode")
    yield
    sink.close()


def folders_of(place: Path, run_id: str) -> list[Path]:
    return sorted((place / "wandb").glob(f"offline-run-*-{run_id}"))


def inspect(folder: Path) -> list[dict]:
    """Return the records of a run's folder, as W&B's own `wandb leet inspect --json` prints them."""
    import wandb

    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    (path,) = folder.glob("*.wandb")
    printed = subprocess.run(
        [core, "leet", "inspect", "-json", "-no-observability", "-run-file", path],
        capture_output=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in printed.stdout.decode().splitlines()]


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def stored_in(folder: Path) -> StoredRun:
    records = inspect(folder)
    metrics = []
    for row in of_kind(records, "history"):
        step = row["item"].pop("mlkit/step")
        for key, value in row["item"].items():
            if not key.startswith("_"):
                metrics.append((key, step, SPECIAL.get(value, value)))
    config: dict = {}
    for update in of_kind(records, "config"):
        config |= update["update"]
    own = config.pop("mlkit")
    artifacts = {
        str(path.relative_to(folder / "files/artifacts")): digest_bytes(path.read_bytes())
        for path in (folder / "files/artifacts").rglob("*")
        if path.is_file()
    }
    uploaded = {one["path"] for files in of_kind(records, "files") for one in files["files"]}
    assert {f"artifacts/{name}" for name in artifacts} <= uploaded
    assert artifacts == own["artifacts"]
    names = own["names"]
    params = {names.get(key, key): str(value) for key, value in config.items()}
    return StoredRun(metrics, params, own["tags"], artifacts, own["status"])


class TestWandb(SinkContract):
    def make_sink(self, place):
        return WandbSink(place / "w", mode="offline")

    def stored(self, place, run: RunInfo) -> StoredRun:
        (folder,) = folders_of(place / "w", run.id)
        return stored_in(folder)


def logged(stored: StoredRun, key: str) -> list[tuple[int, float]]:
    return [(step, value) for name, step, value in stored.metrics if name == key]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    try:
        inner = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [one for child in map(int, inner) for one in (child, *descendants(child))]


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started, as the end of a job does."""
    for pid in (*descendants(process.pid), process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


@pytest.mark.parametrize("moment", ["being written", "written"])
def test_a_shipper_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path, moment):
    with start_run("killed", root=tmp_path / "runs", shipper="none") as run:
        run.log_params({"lr": 0.1})
        for step in range(600):
            run.log_metrics({"loss": 0.5, "acc": step / 3}, step=step // 2)
    uri = f"wandb:{tmp_path / 'w'}?mode=offline"
    code = "import sys; from mlkit.tracking import sync; sync(sys.argv[1], sinks=[sys.argv[2]])"
    shipper = subprocess.Popen([sys.executable, "-c", code, run.dir, uri])
    signs = {
        "being written": "mlkit/*/*.part/wandb/*/*.wandb",
        "written": "wandb/off*",
    }
    deadline = time.monotonic() + 60
    while not list((tmp_path / "w").glob(signs[moment])) and time.monotonic() < deadline:
        time.sleep(0.01)
    kill_all(shipper)
    delivery = sync(run.dir, sinks=[uri], timeout=100)
    assert delivery.complete
    for cursor in run.dir.glob("sinks/*/cursor.json"):
        cursor.unlink()  # as if killed before it was written
    assert sync(run.dir, sinks=[uri], timeout=100) == delivery

    (folder,) = folders_of(tmp_path / "w", run.id)
    stored = stored_in(folder)
    assert logged(stored, "loss") == [(step // 2, 0.5) for step in range(600)]
    assert logged(stored, "acc") == [(step // 2, step / 3) for step in range(600)]
    assert (stored.status, stored.params) == ("FINISHED", {"lr": "0.1"})
    assert [path for path in (tmp_path / "w" / "mlkit").rglob("*") if path.suffix == ".part"] == []


def test_a_run_arrives_through_the_shipper_process_and_nothing_of_wandb_is_in_ours(tmp_path):
    code = """
        import os, sys
        from mlkit.tracking import start_run
        before = dict(os.environ)
        with start_run("digits", root="runs", sinks=["wandb:w?mode=offline", "jsonl:lines"],
                       name="first", tags={"seed": 3}) as run:
            run.log_params({"lr": 0.1, "net": {"depth": 3}, "name": "3.10"})
            with run.child("fold") as child:
                child.log_metric("a", 1.5)
            for step in [5, 3, 4, 3]:
                run.log_metrics({"loss": step / 10, "acc": 1 - step / 10}, step=step)
            run.log_artifact(b"{}", name="report/config.yaml")
            run.log_metric("_hidden", 1)
            delivery = run.close("FAILED", timeout=100)
        assert delivery.complete, delivery
        assert not {"wandb", "google.protobuf"} & set(sys.modules)
        assert dict(os.environ) == before
        print(run.id, child.id)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    run_id, child_id = process.stdout.split()
    (folder,), (inner,) = folders_of(tmp_path / "w", run_id), folders_of(tmp_path / "w", child_id)
    records = inspect(folder)
    begun = of_kind(records, "run")[-1]
    assert (begun["run_id"], begun["display_name"], begun["project"]) == (run_id, "first", "digits")
    assert begun["tags"] == ["seed:3"]
    rows = [record["item"] for record in of_kind(records, "history")]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]  # W&B's own, which must grow
    assert [row["mlkit/step"] for row in rows[:4]] == [5, 3, 4, 3]
    assert {"glob_name": "*", "step_metric": "mlkit/step"}.items() <= of_kind(records, "metric")[
        -1
    ].items()
    assert of_kind(records, "exit")[-1]["exit_code"] == 1
    (update,) = of_kind(records, "config")
    config = update["update"]
    assert (config["lr"], config["net.depth"], config["name"]) == (0.1, 3, "3.10")
    (hidden,) = config["mlkit"]["names"]
    assert (config["mlkit"]["names"][hidden], rows[4][hidden]) == ("_hidden", 1)
    assert (folder / "files/artifacts/report/config.yaml").read_bytes() == b"{}"
    nested = of_kind(inspect(inner), "run")[-1]
    assert (nested["run_group"], nested["job_type"]) == (run_id, "nested")


def test_a_run_that_goes_on_is_still_one_folder(tmp_path):
    uri = f"wandb:{tmp_path / 'w'}?mode=offline"
    with start_run("digits", root=tmp_path / "runs", shipper="none") as run:
        run.log_metric("loss", 0.5, step=1)
    assert sync(run.dir, sinks=[uri]).complete
    (first,) = folders_of(tmp_path / "w", run.id)
    before = first.stat().st_mtime_ns
    with start_run("digits", root=tmp_path / "runs", resume=run.id, shipper="none") as again:
        again.log_metric("loss", 0.25, step=2)
        again.set_tag("stage", "done")
    assert sync(run.dir, sinks=[uri]).complete
    (second,) = folders_of(tmp_path / "w", run.id)
    assert second.stat().st_mtime_ns > before
    stored = stored_in(second)
    assert logged(stored, "loss") == [(1, 0.5), (2, 0.25)]
    assert (stored.tags["stage"], stored.status) == ("done", "FINISHED")


def test_two_sinks_of_one_folder_do_not_touch_each_others_runs(tmp_path):
    uris = [
        f"wandb:{tmp_path / 'w'}?mode=offline",
        f"wandb:{tmp_path / 'w'}?mode=offline&project=other",
    ]
    run_id = None
    for steps in (3, 2):
        with start_run("digits", root=tmp_path / "runs", resume=run_id, shipper="none") as run:
            for step in range(steps):
                run.log_metric("loss", step / 4, step=step)
        run_id = run.id
        assert sync(run.dir, sinks=uris, timeout=100).complete
    found = [inspect(folder) for folder in folders_of(tmp_path / "w", run.id)]
    assert sorted(of_kind(records, "run")[-1]["project"] for records in found) == [
        "digits",
        "other",
    ]
    assert [len(of_kind(records, "history")) for records in found] == [5, 5]


def test_a_thread_ships_without_a_trace_in_this_process(tmp_path):
    modules, variables = set(sys.modules), dict(os.environ)
    threads, inner = set(threading.enumerate()), set(descendants(os.getpid()))
    sink = WandbSink(tmp_path / "w", mode="offline", project="named")
    with start_run("digits", root=tmp_path / "runs", sinks=[sink], shipper="thread") as run:
        run.log_metric("loss", 0.5)
        assert run.close(timeout=100).complete
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {name for name in set(sys.modules) - modules if "wandb" in name} == set()
    assert dict(os.environ) == variables
    assert set(threading.enumerate()) <= threads
    assert set(descendants(os.getpid())) <= inner
    (folder,) = folders_of(tmp_path / "w", run.id)
    assert of_kind(inspect(folder), "run")[-1]["project"] == "named"


def test_a_failing_client_harms_no_other_sink_and_back_fills_later(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where a developer's own key would be
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with start_run("digits", root=tmp_path / "runs", shipper="none") as run:
        run.log_metric("loss", 0.5)
    online, lines = f"wandb:{tmp_path / 'w'}?mode=online", f"jsonl:{tmp_path / 'lines'}"
    for patience in (3, 6, 12, 24, 48):  # its client may take seconds to begin
        delivery = sync(run.dir, sinks=[online, lines], timeout=patience)
        if delivery.reason:
            break
    assert delivery.sinks[lines].complete
    assert (delivery.sinks[online].pending, delivery.sinks[online].dead_lettered) == (3, 0)
    assert "wandb login" in delivery.reason
    assert sync(run.dir, sinks=[f"wandb:{tmp_path / 'w'}?mode=offline"], timeout=60).complete
    (folder,) = folders_of(tmp_path / "w", run.id)
    assert logged(stored_in(folder), "loss") == [(0, 0.5)]


def test_disabled_keeps_the_run_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with start_run("digits", root=tmp_path / "runs", shipper="none") as run:
        run.log_metric("loss", 0.5)
    assert sync(run.dir, sinks=[f"wandb:{tmp_path / 'w'}"], timeout=60).complete
    assert not (tmp_path / "w" / "wandb").exists()


def test_the_address_says_all_and_a_wrong_call_says_what_is_wrong(tmp_path, monkeypatch):
    sink = WandbSink(tmp_path / "a?b%c", entity="team", project="x y/z", mode="offline")
    again = WandbSink(sink.uri.partition(":")[2])
    assert (again.uri, again.folder) == (sink.uri, sink.folder)
    assert pickle.loads(pickle.dumps(sink)).uri == sink.uri
    with pytest.raises(ConfigurationError, match="did you mean 'project'"):
        WandbSink("w?projct=x")
    with pytest.raises(ConfigurationError, match="'online', 'offline'"):
        WandbSink("w", mode="of")
    with pytest.raises(ConfigurationError, match="folder"):
        WandbSink("")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[wandb\]"):
        WandbSink("w")
