"""The trackers, one class each, and what is measured of one: run as `python -m benchmarks.tracking_peers NAME MODE N PLACE [SERVER]`.

Every tracker runs in a process of its own, so that none pays for another's threads, and in the first interpreter that
has it: this one, then those that `MLKIT_BENCH_PYTHONS` lists, separated by colons. A class has `open`, which returns
what logs the five metrics of a step and what ends the run, and `count`, which returns of how many calls something can
be read back from what is on disk.
"""

# ruff: noqa: ARG002, ARG005, PLR0917, TID251 - one signature for all; it runs where mlkit is not installed, too

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METRICS = {"loss": 0.5, "accuracy": 0.25, "lr": 1e-3, "grad_norm": 3.5, "examples": 64.0}
ROOT = Path(__file__).parents[1]


class Nothing:
    """The loop alone: what measuring costs."""

    module = "json"

    def open(self, place: Path, server: str):
        return lambda step: None, lambda: None

    def count(self, place: Path, server: str) -> int:
        return 0


class Mlkit:
    module = "mlkit"
    durability = "process"

    def open(self, place: Path, server: str):
        from mlkit.tracking import start_run

        sinks = [f"mlflow:{server}"] if server else []
        run = start_run("bench", root=place / "runs", sinks=sinks, durability=self.durability)
        return lambda step: run.log_metrics(METRICS, step=step), lambda: run.close(timeout=0)

    def count(self, place: Path, server: str) -> int:
        from mlkit.tracking import read

        (run_dir,) = (place / "runs").iterdir()
        return len(read(run_dir).metrics["loss"])


class MlkitRecord(Mlkit):
    durability = "record"


class MlkitToMlflow(Mlkit):
    """Ours with its shipper at work: another process, which takes its share of the machine."""


class MlflowSqlite:
    module = "mlflow"
    synchronous = True

    def open(self, place: Path, server: str):
        import mlflow

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        mlflow.set_tracking_uri(self.uri(place, server))
        mlflow.set_experiment("bench")
        run = mlflow.start_run(run_name=place.name)

        def log(step: int) -> None:
            mlflow.log_metrics(METRICS, step=step, synchronous=self.synchronous)

        def close() -> None:
            if not self.synchronous:
                mlflow.flush_async_logging()
            mlflow.end_run()

        (place / "run_id").write_text(run.info.run_id)
        return log, close

    def uri(self, place: Path, server: str) -> str:
        return f"sqlite:///{place}/mlflow.db"

    def count(self, place: Path, server: str) -> int:
        from mlflow import MlflowClient

        run_id = (place / "run_id").read_text()
        return len(MlflowClient(self.uri(place, server)).get_metric_history(run_id, "loss"))


class MlflowHttp(MlflowSqlite):
    def uri(self, place: Path, server: str) -> str:
        return server


class MlflowAsync(MlflowHttp):
    synchronous = False


class Wandb:
    module = "wandb"

    def open(self, place: Path, server: str):
        import wandb

        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
        run = wandb.init(project="bench", dir=place)
        return lambda step: run.log(METRICS, step=step), run.finish

    def count(self, place: Path, server: str) -> int:
        from wandb.proto.wandb_internal_pb2 import Record

        (path,) = place.glob("wandb/offline-run-*/*.wandb")
        found = 0
        for data in _leveldb_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            found += record.WhichOneof("record_type") == "history"
        return found


class TorchBoard:
    module = "torch.utils.tensorboard"

    def open(self, place: Path, server: str):
        from importlib import import_module

        board = import_module(self.module).SummaryWriter(str(place / "board"))

        def log(step: int) -> None:
            for key, value in METRICS.items():
                board.add_scalar(key, value, step)

        return log, board.close

    def count(self, place: Path, server: str) -> int:
        found = 0
        for path in (place / "board").iterdir():
            data, at = path.read_bytes(), 0
            while at + 12 <= len(data):
                at += int.from_bytes(data[at : at + 8], "little") + 16
                found += at <= len(data)
        return (found - 1) // len(METRICS)  # the first says the version


class TensorboardX(TorchBoard):
    module = "tensorboardX"


class Trackio:
    module = "trackio"

    def open(self, place: Path, server: str):
        os.environ["TRACKIO_DIR"] = str(place)
        import trackio

        trackio.init(project="bench", name="run")
        return lambda step: trackio.log(METRICS, step=step), trackio.finish

    def count(self, place: Path, server: str) -> int:
        import sqlite3

        found = 0
        for path in place.glob("*.db"):
            with sqlite3.connect(path) as db:
                found += db.execute("select count(*) from metrics").fetchone()[0]
        return found


class Comet:
    module = "comet_ml"

    def open(self, place: Path, server: str):
        os.environ["TMPDIR"] = str(place)  # where it is until the run ends well
        os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"
        import comet_ml

        off = dict.fromkeys(
            ["log_code", "log_graph", "parse_args", "log_env_details", "log_git_metadata"], False
        )
        run = comet_ml.OfflineExperiment(
            project_name="bench", offline_directory=str(place), display_summary_level=0, **off
        )
        return lambda step: run.log_metrics(METRICS, step=step), run.end

    def count(self, place: Path, server: str) -> int:
        found = 0
        for path in place.glob("tmp*/messages.json"):
            for line in path.read_text(errors="replace").splitlines():
                found += '"metric"' in line and '"loss"' in line
        return found


class Aim:
    module = "aim"

    def open(self, place: Path, server: str):
        import aim

        run = aim.Run(repo=str(place), system_tracking_interval=None, capture_terminal_logs=False)
        (place / "run_id").write_text(run.hash)

        def log(step: int) -> None:
            for key, value in METRICS.items():
                run.track(value, name=key, step=step)

        return log, run.close

    def count(self, place: Path, server: str) -> int:
        import aim

        # A reader sees nothing of a run that was never indexed; who goes on with it sees all.
        run_hash = (place / "run_id").read_text()
        run = aim.Run(
            run_hash=run_hash, repo=str(place), force_resume=True,
            system_tracking_interval=None, capture_terminal_logs=False,
        )  # fmt: skip
        kept = [one for one in run.metrics() if one.name == "loss"]
        return len(kept[0].values.sparse_list()[0]) if kept else 0


class Dvclive:
    module = "dvclive"

    def open(self, place: Path, server: str):
        from dvclive import Live

        live = Live(dir=str(place / "live"), save_dvc_exp=False, dvcyaml=None, report=None)

        def log(step: int) -> None:
            live.step = step
            for key, value in METRICS.items():
                live.log_metric(key, value)
            live.make_summary()

        return log, live.end

    def count(self, place: Path, server: str) -> int:
        lines = (place / "live" / "plots" / "metrics" / "loss.tsv").read_text().splitlines()
        return len(lines) - 1


PEERS: dict[str, Any] = {
    "nothing": Nothing,
    "mlkit": Mlkit,
    "mlkit, durability='record'": MlkitRecord,
    "mlkit, delivering to mlflow http": MlkitToMlflow,
    "trackio": Trackio,
    "Comet offline": Comet,
    "W&B offline": Wandb,
    "mlflow http, async": MlflowAsync,
    "TensorBoard, torch's SummaryWriter": TorchBoard,
    "tensorboardX": TensorboardX,
    "Aim": Aim,
    "DVCLive": Dvclive,
    "mlflow sqlite": MlflowSqlite,
    "mlflow http": MlflowHttp,
}
NEEDS_SERVER = {"mlflow http", "mlflow http, async", "mlkit, delivering to mlflow http"}
SLOW = {"Aim", "DVCLive", "mlflow sqlite", "mlflow http"}  # milliseconds a call


def _leveldb_records(data: bytes) -> list[bytes]:
    """Return the records of a log in LevelDB's format, whose blocks of 32 KiB begin after W&B's head of 7 bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind not in {1, 2, 3, 4} or at + 7 + length > len(data):
            break
        part = (b"" if kind in {1, 2} else part) + data[at + 7 : at + 7 + length]
        if kind in {1, 4}:
            found.append(part)
        at += 7 + length
    return found


def python_for(module: str) -> str | None:
    """Return the first interpreter that has a module."""
    ask = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
    others = os.environ.get("MLKIT_BENCH_PYTHONS", "").split(":")
    for python in [sys.executable, *filter(None, others)]:
        top = module.partition(".")[0]
        done = subprocess.run([python, "-c", ask, top], capture_output=True, check=False)
        if not done.returncode:
            return python
    return None


def measure(name: str, mode: str, calls: int, server: str = "", timeout: float = 180) -> dict:
    """Run one tracker in a process and a folder of its own, and return what it says.

    Raises:
        RuntimeError: If it cannot; the last line of what it said is the reason.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        return measure_in(place, name, mode, calls, server, timeout)


def measure_in(
    place: str, name: str, mode: str, calls: int, server: str = "", timeout: float = 180
) -> dict:
    """As `measure`, in a given folder."""
    python = python_for(PEERS[name].module)
    if python is None:
        raise RuntimeError(f"{PEERS[name].module} is not installed")
    command = [python, "-m", "benchmarks.tracking_peers", name, mode, str(calls), place, server]
    with subprocess.Popen(
        command, cwd=place, env=clean(place), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"not done after {timeout:.0f} s") from None
    said = [line for line in out.splitlines() if line.startswith("{")]
    if not said:
        raise RuntimeError((err.strip() or "it said nothing").splitlines()[-1][:200])
    return json.loads(said[-1])


def clean(place: str) -> dict[str, str]:
    """Return an environment in which a tracker in *place* finds nothing of its owner, and phones nobody."""
    kept = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
    return {
        **kept, "PYTHONPATH": str(ROOT), "HOME": place, "DO_NOT_TRACK": "1", "WANDB_ERROR_REPORTING": "false",
        "COMET_LOGGING_CONSOLE": "error", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1", "AIM_TRACKING_DISABLED": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _tight(log: Any, calls: int) -> dict[str, float]:
    times = []
    for step in range(calls):
        start = time.perf_counter_ns()
        log(step)
        times.append(time.perf_counter_ns() - start)
    times.sort()
    return {
        "p50": times[calls // 2] / 1e3,
        "p99": times[calls * 99 // 100] / 1e3,
        "max": times[-1] / 1e3,
    }


def _paced(log: Any, calls: int) -> dict[str, float]:
    """Steps of about 1.5 ms of Python, in blocks with and without a call, by turns."""
    loops = 1000
    while min(_work(loops) for _ in range(20)) < 0.0015:
        loops += 500
    times: dict[bool, list[float]] = {True: [], False: []}
    for step in range(2 * calls):
        logs = bool(step // 5 % 2)
        start = time.perf_counter()
        _work(loops)
        if logs:
            log(step)
        times[logs].append(time.perf_counter() - start)
    with_it, without = (sorted(times[logs])[len(times[logs]) // 4] for logs in (True, False))
    return {"tax": with_it / without - 1, "step": without}


def _work(loops: int) -> float:
    start = time.perf_counter()
    total = 0
    for number in range(loops):
        total += number * number
    return time.perf_counter() - start


def main() -> None:
    name, mode, calls, place, server = [*sys.argv[1:], ""][:5]
    peer, folder, n = PEERS[name](), Path(place), int(calls)
    if mode == "count":
        print(json.dumps({"count": peer.count(folder, server)}), flush=True)
        os._exit(0)
    start = time.perf_counter()
    log, close = peer.open(folder, server)
    opened = time.perf_counter() - start
    if mode in {"kill", "kill paced"}:
        os.write(1, b"!")
        for step in range(n):
            log(step)
            os.write(1, b".")
            if mode == "kill paced":
                time.sleep(0.01)
        time.sleep(60)
    log(0)
    found = _tight(log, n) if mode == "tight" else _paced(log, n)
    start = time.perf_counter()
    if mode == "tight":
        close()
    found |= {"open": opened, "close": time.perf_counter() - start}
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
