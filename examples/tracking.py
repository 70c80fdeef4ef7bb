"""A training process is killed without warning; nothing it had logged is lost.

Run it with: python examples/tracking.py
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from mlkit.tracking import read, start_run, sync


def train(root: str, export: str) -> None:
    """Log for ever, as fast as possible. Nobody waits for the shipper, nobody closes the run."""
    run = start_run("doomed", root=root, sinks=[f"jsonl:{export}"], shipper="none")
    run.log_params({"lr": 0.1, "net": {"depth": 3}})
    sys.stdout.write(f"{run.dir}\n")
    step = 0
    while True:
        run.log_metrics({"loss": 1 / (step + 1), "accuracy": 0.5}, step=step)
        sys.stdout.write(f"{step}\n")  # only after the call has returned
        sys.stdout.flush()
        step += 1


def main() -> None:
    """Start the training, kill it, and look at what is left."""
    with tempfile.TemporaryDirectory() as place:
        export = Path(place) / "export"
        training = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, __file__, "train", f"{place}/runs", str(export)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert training.stdout is not None
        run_dir = training.stdout.readline().strip()
        for _ in range(3000):
            training.stdout.readline()
        training.send_signal(signal.SIGKILL)
        acknowledged = 3000 + len(training.communicate()[0].split())

        data = read(run_dir)
        print(f"run {data.name}: {data.status}, params {data.params}")
        print(f"log calls that had returned: {acknowledged}")
        print(f"points in the journal:       {len(data.metrics['loss'])}")

        delivery = sync(run_dir)
        print(f"records delivered by sync:   {delivery.delivered}, pending {delivery.pending}")
        lines = (export / f"{data.id}.jsonl").read_text().splitlines()
        statuses = [json.loads(line)["value"] for line in lines if '"status"' in line]
        print(f"lines in the export:         {len(lines)}, statuses {statuses}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(*sys.argv[2:])
    else:
        main()
