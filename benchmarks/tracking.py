"""One log call of five metrics: what the training loop pays, against the bare `write` and against peers."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlkit.tracking import read, start_run, sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("mlflow", "tensorboardX")

METRICS = {"loss": 0.5, "accuracy": 0.25, "lr": 1e-3, "grad_norm": 3.5, "examples": 64.0}
WORK = "log 5 metrics"


def run(bench: Bench) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as place:
        _log_calls(bench, Path(place))
        _slow_log_calls(bench, Path(place))
        _read_and_deliver(bench, Path(place))
    bench.note(
        "Every contender has what was logged outside the process's own memory when the call "
        "returns, but for tensorboardX, which queues; mlkit's shipper is off, for it is another "
        "process. A `write` is the least that survives a SIGKILL."
    )


def _bare_write(path: Path) -> Callable[[int], None]:
    """The same bytes, packed and checked, and nothing else."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pack = struct.Struct("<IBIqq5d").pack

    def log(step: int) -> None:
        data = pack(61, 2, 1, step, 0, *METRICS.values())
        os.write(file, data + zlib.crc32(data).to_bytes(4, "little"))

    return log


def _log_calls(bench: Bench, place: Path) -> None:
    calls = 500 if bench.quick else 5000
    write = _bare_write(place / "bare")
    plain = start_run("bench", root=place / "runs", shipper="none")
    loggers: dict[str, Callable[[int], None]] = {
        "bare os.write of the frame": write,
        "mlkit": lambda step: plain.log_metrics(METRICS, step=step),
    }
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        bench.skipped(WORK, "tensorboardX", str(error))
    else:
        board = SummaryWriter(str(place / "board"))

        def scalars(step: int) -> None:
            for key, value in METRICS.items():
                board.add_scalar(key, value, step)

        loggers["tensorboardX"] = scalars
    bench.compare(
        WORK,
        {name: _repeat(log, calls) for name, log in loggers.items()},
        baseline="bare os.write of the frame",
        calls=calls,
    )
    plain.close()


def _slow_log_calls(bench: Bench, place: Path) -> None:
    """Against what takes milliseconds; fewer calls, so that it ends."""
    calls = 10 if bench.quick else 50
    work = f"{WORK}, {calls} calls"
    synced = start_run("bench", root=place / "runs", shipper="none", durability="record")
    plain = start_run("bench", root=place / "runs", shipper="none")
    loggers: dict[str, Callable[[int], None]] = {
        "mlkit": lambda step: plain.log_metrics(METRICS, step=step),
        "mlkit, durability='record'": lambda step: synced.log_metrics(METRICS, step=step),
    }
    try:
        import mlflow
        from mlflow.entities import Metric
    except ImportError as error:
        bench.skipped(work, "mlflow log_batch, sqlite", str(error))
    else:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
        run_id = client.create_run(client.create_experiment("bench")).info.run_id
        ticks = iter(range(10**12))

        def batch(step: int) -> None:
            now = next(ticks)
            client.log_batch(run_id, [Metric(k, v, now, step) for k, v in METRICS.items()])

        loggers["mlflow log_batch, sqlite"] = batch
    bench.compare(
        work,
        {name: _repeat(log, calls) for name, log in loggers.items()},
        baseline="mlkit",
        calls=calls,
        rounds=3 if bench.quick else 9,
    )
    synced.close()
    plain.close()


def _read_and_deliver(bench: Bench, place: Path) -> None:
    points = 5_000 if bench.quick else 50_000
    with start_run("bench", root=place / "back", shipper="none") as recorded:
        for step in range(points // 5):
            recorded.log_metrics(METRICS, step=step)
    (journal,) = (recorded.dir / "journal").iterdir()
    numbers = iter(range(10**9))

    def read_back() -> int:
        return sum(len(points) for points in read(recorded.dir).metrics.values())

    def deliver() -> int:
        uri = f"jsonl:{place / 'export' / str(next(numbers))}"
        return sync(recorded.dir, sinks=[uri]).delivered - 2

    bench.compare(
        f"bring back {points} points",
        {
            "read the bytes": lambda: points if journal.read_bytes() else 0,
            "mlkit read": read_back,
            "mlkit sync to JSON lines": deliver,
        },
        baseline="mlkit read",
        calls=points,
        rounds=3,
    )
    bench.note(f"{journal.stat().st_size / points:.1f} bytes a point in calls of five.")


def _repeat(log: Callable[[int], None], calls: int) -> Callable[[], int]:
    def work() -> int:
        for step in range(calls):
            log(step)
        return calls

    return work
