"""What the training loop pays for a call of five metrics, what it pays a step, and how fast all of it is delivered.

The losses and the outage have commands of their own: `python -m benchmarks.tracking_losses` and
`python -m benchmarks.tracking_outage`.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Row
from benchmarks.tracking_peers import METRICS, NEEDS_SERVER, PEERS, SLOW, measure, python_for
from benchmarks.tracking_server import MlflowServer
from mlkit.tracking import read, start_run, sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

WORK = "log 5 metrics"


def run(bench: Bench) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        _log_calls(bench, Path(place))
        try:
            server = MlflowServer(Path(place))
            server.start()
        except (RuntimeError, OSError) as error:
            bench.skipped(WORK, "everything that needs an MLflow server", str(error))
        else:
            try:
                _peers(bench, server)
                _delivery_rate(bench, server, Path(place))
            finally:
                server.kill()
        _read_and_deliver(bench, Path(place))
        _imports(bench)
    bench.note(
        "A `write` is the least that survives a SIGKILL. What of each tracker's points does is in "
        "[the loss table](concepts/tracking.md#what-a-sigkill-costs). Each tracker runs in a process "
        "of its own; p50 and p99 are over the calls of one process, and the columns over several."
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
    bench.compare(
        WORK,
        {name: _repeat(log, calls) for name, log in loggers.items()},
        baseline="bare os.write of the frame",
        calls=calls,
    )
    plain.close()


def _peers(bench: Bench, server: MlflowServer) -> None:
    """Each tracker in a process of its own, several times by turns."""
    calls, rounds = (100, 1) if bench.quick else (5000, 3)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PEERS}
    for _ in range(rounds):
        for name, figures in found.items():  # "nothing" is the noise of the paced loop
            uri = server.uri if name in NEEDS_SERVER else ""
            some = min(calls, 300) if name in SLOW else calls
            for mode, count in (("tight", some), ("paced", min(some, 1000))):
                try:
                    said = measure(name, mode, count, uri)
                except RuntimeError as error:
                    bench.skipped(f"{WORK}, {mode}", name, str(error))
                    continue
                for key, value in said.items():
                    figures.setdefault(f"{mode} {key}", []).append(value)
    for work, key, unit, scale in (
        (f"{WORK}, p50", "tight p50", "us", 1),
        (f"{WORK}, p99", "tight p99", "us", 1),
        ("start a run", "tight open", "ms", 1e3),
        ("a call in each step of 1.5 ms: what the step gets longer", "paced tax", "%", 100),
    ):
        some = found if key == "paced tax" else {k: v for k, v in found.items() if k != "nothing"}
        _add(bench, work, unit, {name: [scale * v for v in one.get(key, ())] for name, one in some.items()})  # fmt: skip


def _add(bench: Bench, work: str, unit: str, found: dict[str, list[float]]) -> None:
    """Keep a row for each who has figures, in relation to ours."""
    ours = statistics.median(found["mlkit"])
    for name, values in found.items():
        if values:
            middle = statistics.median(values)
            bench.rows.append(
                Row(work, name, unit, min(values), middle, max(values), "mlkit", middle / ours)
            )


def _delivery_rate(bench: Bench, server: MlflowServer, place: Path) -> None:
    """Points into an MLflow server: batched by hand, and from our journal whatever the calls were."""
    import mlflow
    from mlflow.entities import Metric

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    points, rounds = (2_000, 1) if bench.quick else (20_000, 3)
    client = mlflow.MlflowClient(server.uri)
    experiment = client.create_experiment("rate")

    def by_hand(keys: int) -> int:
        run_id = client.create_run(experiment).info.run_id
        for start in range(0, points // keys, 1000 // keys):
            steps = range(start, start + 1000 // keys)
            batch = [Metric(f"m{k}", step / 3, 1, step) for step in steps for k in range(keys)]
            client.log_batch(run_id, batch)
        client.set_terminated(run_id)
        return points

    def record(how: str) -> Path:
        with start_run("rate", root=place / "rate", shipper="none") as run:
            if how == "one by one":
                for step in range(points):
                    run.log_metric("m", step / 3, step=step)
            elif how == "fifty keys a call":
                for step in range(points // 50):
                    run.log_metrics({f"m{k}": step / 3 for k in range(50)}, step=step)
            else:
                run.log_points({"m": [step / 3 for step in range(points)]}, steps=range(points))
        return run.dir

    ways = ("one by one", "arrays", "fifty keys a call")
    recorded = {how: iter([record(how) for _ in range(rounds + 1)]) for how in ways}

    def deliver(how: str) -> int:
        delivery = sync(next(recorded[how]), sinks=[f"mlflow:{server.uri}"], timeout=300)
        return delivery.delivered - 2  # the run begins and ends

    for keys, some in ((1, ways[:2]), (50, ways[2:])):
        bench.compare(
            f"{points} points of {keys} metrics into an MLflow server",
            {
                "log_batch of 1000 by hand": lambda keys=keys: by_hand(keys),
                **{f"mlkit sync, logged {how}": (lambda how=how: deliver(how)) for how in some},
            },
            baseline="log_batch of 1000 by hand",
            calls=points,
            rounds=rounds,
        )


def _imports(bench: Bench) -> None:
    """CPU of an import above that of the interpreter, least of several; of ours, with what starts a run."""
    modules = {
        "numpy": "numpy", "mlkit": "mlkit.tracking._start", "trackio": "trackio", "W&B": "wandb",
        "Comet": "comet_ml", "Aim": "aim", "DVCLive": "dvclive", "mlflow": "mlflow",
        "torch's SummaryWriter": "torch.utils.tensorboard",
    }  # fmt: skip
    rounds = 1 if bench.quick else 5
    found: dict[str, list[float]] = {}
    for name, module in modules.items():
        python = python_for(module)
        if python is None:
            bench.skipped("import", name, f"{module} is not installed")
            continue
        bare = min(_cpu(python, "pass") for _ in range(rounds))
        found[name] = [1e3 * (_cpu(python, f"import {module}") - bare) for _ in range(rounds)]
    _add(bench, "import, CPU above the interpreter's", "ms", found)


def _cpu(python: str, code: str) -> float:
    """Return the CPU seconds of a program; the bytecode is written by the first and used by the others."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, "-c", code], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
