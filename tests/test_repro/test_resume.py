"""A training run that is killed at any step, and gone on with in a new process, ends in the very same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from mlkit.repro import Seeds

PROGRAM = Path(__file__).with_name("resumable_training.py")
STEPS = 12
PLACES = ["before the step", "inside the save", "after the save"]
CELLS = list(product([False, True], [0, 2]))  # augmentation, workers


def job(folder, workers, augment, *, method="keyed", kill_at=0, place=""):
    return {
        "folder": str(folder),
        "workers": workers,
        "augment": augment,
        "method": method,
        "kill_at": kill_at,
        "place": place,
    }


def run(folder, jobs, *, hash_seed="random"):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "jobs.json")],
        env={"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def outcome(folder):
    """Return the weights, and what each step saw and lost; a step done twice must have seen the same."""
    steps = {}
    for line in (folder / "log.txt").read_text().splitlines():
        number, *seen = line.split()
        assert steps.setdefault(number, seen) == seen, (
            f"step {number} was another one the second time"
        )
    return (folder / "weights").read_text(), steps


def killed_jobs(folder):
    """Return each cell killed twice, by SIGKILL, and gone on with by other numbers of workers."""
    draw = (Seeds(7) / "kills").numpy()
    jobs = []
    for augment, workers in CELLS:
        first, second = sorted(int(n) for n in draw.choice(range(4, STEPS), 2, replace=False))
        for kill_at, count in ((first, workers), (second, workers), (0, 2 - workers)):
            place = PLACES[draw.integers(3)] if kill_at else ""
            here = folder / f"{augment}-{workers}"
            jobs.append(job(here, count, augment, kill_at=kill_at, place=place))
    assert {each["place"] for each in jobs} >= set(PLACES)
    return jobs


# The states of the generators and the batches done are saved; they are restored, and those batches skipped. And a
# loader without a generator of its own draws from the global one whenever a pass begins.
NAIVE = [*product(["naive"], CELLS), ("no generator", (True, 0))]


def naive_jobs(folder):
    return [
        job(
            folder / f"{number}-{name}",
            workers,
            augment,
            method=method,
            kill_at=kill,
            place=PLACES[2],
        )
        for number, (method, (augment, workers)) in enumerate(NAIVE)
        for name, kills in (("whole", [0]), ("killed", [7, 0]))
        for kill in kills
    ]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run everything but what needs a second interpreter: importing torch takes longer than all of it."""
    folder = tmp_path_factory.mktemp("resume")
    undisturbed = [job(folder / f"whole-{augment}", 0, augment) for augment in (False, True)]
    stopped = job(folder / "stopped", 2, True, kill_at=7, place="inside the save")
    run(folder, [*undisturbed, *killed_jobs(folder), stopped, *naive_jobs(folder)], hash_seed="1")
    return folder


def test_killed_anywhere_it_ends_in_the_same_bits(ended):
    wholes = {augment: outcome(ended / f"whole-{augment}") for augment in (False, True)}
    assert wholes[False] != wholes[True]
    assert all(len(steps) == STEPS for _, steps in wholes.values())
    for augment, workers in CELLS:
        assert outcome(ended / f"{augment}-{workers}") == wholes[augment], (augment, workers)


def test_a_new_interpreter_goes_on_too(ended):
    run(ended, [job(ended / "stopped", 0, True)], hash_seed="2")
    assert outcome(ended / "stopped") == outcome(ended / "whole-True")


def test_what_is_usually_done_does_not(ended):
    for number, cell in enumerate(NAIVE):
        whole, killed = (ended / f"{number}-{name}" / "weights" for name in ("whole", "killed"))
        assert whole.read_text() != killed.read_text(), cell
