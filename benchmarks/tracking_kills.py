"""100,000 points while trainer and shipper are killed at random moments: `python -m benchmarks.tracking_kills [--quick]`.

The training logs in calls of five points, with tags and artifacts between them, and goes on where its journal ends
whenever it was killed. It ships to JSON lines, TensorBoard, an MLflow database and a real MLflow server at once. In the
end each of the four is compared with what an undisturbed run leaves there: points (as many times as they were logged),
params, last tags, artifacts and status. Writes `benchmarks/results/tracking_kills.json`.
"""

# ruff: noqa: TID251 - real processes take real time

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import closing
from pathlib import Path

from benchmarks.tracking_peers import ROOT
from benchmarks.tracking_server import MlflowServer
from mlkit.tracking import read, sync

RESULTS = ROOT / "benchmarks" / "results" / "tracking_kills.json"
TRAINING = """
    import os, sys
    from mlkit.tracking import read, start_run
    root, calls, *sinks = sys.argv[1:]
    run = start_run("kills", root=root, run_id="job", sinks=sinks)
    run.log_params({"lr": 0.1, "net": {"depth": 3}})
    done = len(read(run.dir).metrics.get("m0", ()))
    for step in range(done, int(calls)):
        if step % 250 == 0:
            run.set_tag("at", step)
            run.log_artifact(str(step).encode(), name=f"part/{step % 1000}.txt")
            os.write(1, b".")
            os.read(0, 1)
        run.log_metrics({f"m{k}": (step + 1) / (k + 3) for k in range(5)}, step=step // 2)
    run.close(timeout=0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking_kills")
    parser.add_argument("--quick", action="store_true", help="few points, and nothing is written")
    options = parser.parse_args()
    calls = 1_000 if options.quick else 20_000
    chance = random.Random(8)
    stores, kills = {}, {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as top:
        for name, often in (("undisturbed", 0.0), ("disturbed", 0.5)):
            place = Path(top) / name
            place.mkdir()
            with MlflowServer(place) as server:
                sinks = [
                    f"jsonl:{place}/lines", f"tensorboard:{place}/board",
                    f"mlflow:sqlite:///{place}/mlflow.db", f"mlflow:{server.uri}",
                ]  # fmt: skip
                kills[name] = disturb(place / "runs", sinks, calls, often, chance)
                run_dir = place / "runs" / "job"
                kill_shippers(run_dir)
                delivery = sync(run_dir, timeout=600)
                assert delivery.complete, delivery
            stores[name] = {
                "JSON lines": lines(place / "lines" / "job.jsonl"),
                "TensorBoard": events(place / "board" / "job"),
                "MLflow, database": database(place / "mlflow.db", place / "mlartifacts"),
                "MLflow, server": database(server.database, place / "artifacts"),
                "journal": journal(run_dir),
            }
    rows = []
    for store, expected in stores["undisturbed"].items():
        found = stores["disturbed"][store]
        row = {"store": store, "points": len(found["points"]), "equal": found == expected}
        rows.append({**row, **kills["disturbed"]})
        print(json.dumps(rows[-1]), flush=True)
        assert len(expected["points"]) == 5 * calls
        assert found == expected, store
    if not options.quick:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def disturb(
    root: Path, sinks: list[str], calls: int, often: float, chance: random.Random
) -> dict[str, int]:
    """Train to the end, and kill on the way; return how often."""
    kills = {"trainers killed": 0, "shippers killed": 0}
    while True:
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TRAINING), root, str(calls), *sinks],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
        ) as process:  # fmt: skip
            while process.stdout.read(1):
                hit, victim = chance.random() < often, chance.choice(("trainer", "both", "shipper"))
                if hit and victim != "trainer":
                    time.sleep(chance.uniform(0, 6))  # an import of mlflow, and some work
                process.stdin.write(b".")
                if not hit:
                    continue
                time.sleep(chance.uniform(0, 0.003))
                if victim != "trainer":
                    kills["shippers killed"] += kill_shippers(root / "job")
                if victim != "shipper":
                    os.killpg(process.pid, signal.SIGKILL)
                    kills["trainers killed"] += 1
                    break
            if process.wait() == 0:
                return kills


def kill_shippers(run_dir: Path) -> int:
    killed = 0
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlkit.tracking._ship" in words and os.fsencode(run_dir) in words:
            os.kill(int(place.parent.name), signal.SIGKILL)
            killed += 1
    return killed


def journal(run_dir: Path) -> dict:
    data = read(run_dir)
    points = [(key, one.step, one.value) for key, some in data.metrics.items() for one in some]
    return {
        "points": sorted(points), "params": data.params, "tags": data.tags,
        "artifacts": data.artifacts, "status": data.status, "torn": data.torn_bytes,
    }  # fmt: skip


def lines(path: Path) -> dict:
    points, rest = [], {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        if line["kind"] == "metric":
            points.append((line["key"], line["step"], line["value"]))
        else:
            rest[line["kind"], line["key"]] = line["value"]
    return {"points": sorted(points), "rest": rest}


def events(folder: Path) -> dict:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    held = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    points, rest = [], {}
    for tag in held.Tags()["tensors"]:
        values = [(one.step, make_ndarray(one.tensor_proto).item()) for one in held.Tensors(tag)]
        if tag.startswith("mlkit/"):
            rest[tag] = values[-1][1]
        else:
            points += [(tag, *value) for value in values]
    return {"points": sorted(points), "rest": rest}


def database(path: Path, files: Path) -> dict:
    """What MLflow's tables and folder hold of the one run that is there."""
    with closing(sqlite3.connect(path)) as db:
        ((run_id, status),) = db.execute("select run_uuid, status from runs").fetchall()
        own = "key not like 'mlflow.%' and key not like 'mlkit.%'"
        return {
            "points": sorted(db.execute("select key, step, value from metrics").fetchall()),
            "params": dict(db.execute("select key, value from params").fetchall()),
            "tags": dict(db.execute(f"select key, value from tags where {own}").fetchall()),
            "status": status,
            "artifacts": {
                place.relative_to(folder).as_posix(): place.read_text()
                for folder in files.glob(f"**/{run_id}/artifacts")
                for place in folder.rglob("*")
                if place.is_file()
            },
        }


if __name__ == "__main__":
    main()
