"""The store after any number of SIGKILLs, of the training, of its shipper and of both, is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest

from mlkit.tracking import read, sync

CALLS = 2500
TRAINER = """
    import os, sys
    from mlkit.tracking import read, start_run
    root, calls, *sinks = sys.argv[1:]
    run = start_run("kills", root=root, run_id="job", sinks=sinks)
    run.log_params({"lr": 0.1, "net": {"depth": 3}})
    done = len(read(run.dir).metrics.get("m0", ()))
    for step in range(done, int(calls)):
        if step % 50 == 0:       # before the points: who comes after a kill may do it once more
            run.set_tag("at", step)
            run.log_artifact(str(step).encode(), name=f"part/{step % 400}.txt")
            os.write(1, b".")
            os.read(0, 1)        # nobody is killed long after the end
        run.log_metrics({f"m{k}": (step + 1) / (k + 3) for k in range(5)}, step=step // 2)
    run.close(timeout=0)
"""


def train(root: Path, sinks: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINER), root, str(CALLS), *sinks],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
    )  # fmt: skip


def shippers_of(run_dir: Path) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlkit.tracking._ship" in words and os.fsencode(run_dir) in words:
            found.append(int(place.parent.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it may just have ended by itself
            os.kill(pid, signal.SIGKILL)


def disturb(root: Path, sinks: list[str], often: float, chance: random.Random) -> int:
    """Train until it is done, with kills on the way; return how often something was killed.

    *often* is how likely one is in the next 50 calls.
    """
    kills = 0
    while True:
        with train(root, sinks) as process:
            while process.stdout.read(1):
                hit = chance.random() < often
                victims = chance.choice(("training", "both", "shipper"))
                process.stdin.write(b".")
                if not hit:
                    continue
                kills += 1
                Event().wait(chance.uniform(0, 0.001))
                if victims != "training":
                    kill(shippers_of(root / "job"))
                if victims != "shipper":
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            if process.wait() == 0:
                return kills


def lines_of(place: Path) -> dict[str, object]:
    """What a file of JSON lines says in the end: points once each, the last of everything else."""
    points, rest = [], {}
    for text in (place / "job.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["kind"] == "metric":
            points.append((line["key"], line["step"], line["value"]))
        else:
            rest[line["kind"], line["key"]] = line["value"]
    return {"points": sorted(points), **rest}


def events_of(place: Path) -> dict[str, object]:
    """The same of TensorBoard's files, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    util = pytest.importorskip("tensorboard.util.tensor_util")
    read_back = accumulator.EventAccumulator(str(place / "job"), {"tensors": 0}).Reload()
    points, rest = [], {}
    for tag in read_back.Tags()["tensors"]:
        found = read_back.Tensors(tag)
        if tag.startswith("mlkit/"):
            rest[tag] = util.make_ndarray(found[-1].tensor_proto).item()
        else:
            points += [(tag, one.step, util.make_ndarray(one.tensor_proto).item()) for one in found]
    return {"points": sorted(points), **rest}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds shippers in /proc")
def test_after_random_kills_the_store_is_that_of_an_undisturbed_run(tmp_path):
    chance = random.Random(8)
    stores = []
    for name, often in (("undisturbed", 0.0), ("disturbed", 0.3)):
        place = tmp_path / name
        sinks = [f"jsonl:{place}/lines", f"tensorboard:{place}/board"]
        kills = disturb(place / "runs", sinks, often, chance)
        assert kills > 5 if often else not kills
        run_dir = place / "runs" / "job"
        kill(shippers_of(run_dir))
        delivery = sync(run_dir, timeout=300)
        assert delivery.complete
        data = read(run_dir)
        assert data.torn_bytes == 0
        journal = {key: [(p.step, p.value) for p in points] for key, points in data.metrics.items()}
        stores.append((journal, data.params, data.tags, data.artifacts, data.status))
        stores[-1] += (lines_of(place / "lines"), events_of(place / "board"))
    undisturbed, disturbed = stores
    assert len(undisturbed[5]["points"]) == 5 * CALLS
    assert undisturbed == disturbed
