"""An `Accelerator` that logs into a run: a real training, and what it may pass."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from mlkit.errors import TrackingWarning
from mlkit.tracking import find_runs, read


@pytest.fixture(autouse=True)
def _left_as_found():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    before = dict(os.environ)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]


def test_a_training_is_a_run(tmp_path):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from mlkit.integrations.accelerate import RunTracker

    assert issubclass(RunTracker, GeneralTracker)
    tracker = RunTracker("regress", root=tmp_path / "runs", tags={"who": "me"})
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("ignored", config={"lr": 0.1, "net": {"depth": 2}})
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for step in range(4):
        loss = (model(torch.ones(8, 3)) - 1).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        accelerator.log({"loss": loss, "train": {"lr": 0.1}, "phase": "warm"}, step=step)
    assert accelerator.get_tracker("mlkit") is tracker
    run = accelerator.get_tracker("mlkit", unwrap=True)
    accelerator.end_training()
    accelerator.end_training()
    data = read(run.dir)
    assert (data.status, data.experiment) == ("FINISHED", "regress")
    assert data.params == {"lr": 0.1, "net.depth": 2}
    assert [(point.step, point.value) for point in data.metrics["loss"]] == list(enumerate(losses))
    assert [point.step for point in data.metrics["train/lr"]] == [0, 1, 2, 3]
    assert data.tags == {"who": "me", "phase": "warm"}
    assert tracker.tracker.dir == run.dir


def test_steps_are_counted_and_go_on_after_a_resume(tmp_path):
    from mlkit.integrations.accelerate import RunTracker

    first = RunTracker("steps", root=tmp_path)
    for _ in range(3):
        first.log({"loss": 1.0})
    first.log({"loss": 1.0}, step=10)
    first.log({"loss": 1.0})
    first.finish()
    again = RunTracker("steps", root=tmp_path, run_id=first.tracker.id)
    again.log({"loss": 1.0})
    pickle.loads(pickle.dumps(again)).log({"loss": 1.0})
    again.finish()
    data = read(first.tracker.dir)
    assert [point.step for point in data.metrics["loss"]] == [0, 1, 2, 10, 11, 12, 13]


def test_images_and_tables_are_artifacts(tmp_path):
    pandas = pytest.importorskip("pandas")
    image = pytest.importorskip("PIL.Image")
    from mlkit.integrations.accelerate import RunTracker

    tracker = RunTracker("media", root=tmp_path)
    floats = np.zeros((2, 3, 4, 5))
    floats[1, 0] = 1.0
    tracker.log_images({"../a b": floats, "one": [image.new("RGB", (2, 2))]}, step=3)
    tracker.log_images({"gray": torch.zeros(4, 5), "hwc": np.zeros((4, 5, 3), np.uint8)})
    tracker.log_table("t", columns=["a", "b"], data=[[1, 2], [3, 4]], step=1)
    tracker.log_table("u", data=[["A"], [7, None, "x"]])
    tracker.log_table("f", dataframe=pandas.DataFrame({"x": [0.5]}))
    tracker.finish()
    data = read(tracker.tracker.dir)
    assert sorted(data.artifacts) == [
        "images/_a_b/3-0.png", "images/_a_b/3-1.png", "images/gray/0-0.png", "images/hwc/0-0.png",
        "images/one/3-0.png", "tables/f/0.json", "tables/t/1.json",
        "tables/u/0.json",
    ]  # fmt: skip
    second = image.open(data.artifact("images/_a_b/3-1.png"))
    assert (second.size, second.getpixel((0, 0))) == ((5, 4), (255, 0, 0))
    assert "[[1, 2], [3, 4]]" in data.artifact("tables/t/1.json").read_text()
    uneven = json.loads(data.artifact("tables/u/0.json").read_text())
    assert uneven["columns"] == ["0", "1", "2"]
    assert uneven["data"] == [["A", None, None], [7, None, "x"]]


def test_making_a_tracker_sets_nothing_up_and_accelerate_finds_it(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import PartialState

    from mlkit.integrations.accelerate import RunTracker

    PartialState._reset_state()
    tracker = RunTracker("late", root=tmp_path)
    assert PartialState._shared_state == {}  # a process group may be configured still
    accelerator = Accelerator(log_with=tracker)
    assert list(tmp_path.iterdir()) == []
    accelerator.init_trackers("any", {"lr": 0.1})
    assert accelerator.get_tracker("mlkit") is tracker
    assert accelerator.get_tracker("mlkit", unwrap=True) is tracker.tracker
    accelerator.end_training()
    assert read(tracker.tracker.dir).status == "FINISHED"


def test_what_is_no_number_is_a_warning_and_a_server_that_is_away_is_nothing(tmp_path):
    from mlkit.integrations.accelerate import RunTracker

    tracker = RunTracker(
        "bad", root=tmp_path, sinks=["mlflow:http://127.0.0.1:9"], shipper="none", timeout=0
    )
    tracker.store_init_configuration({"lr": 0.1, "model": torch.nn.Linear})
    with pytest.warns(TrackingWarning, match="'weights' is left out"):
        tracker.log({"loss": 0.5, "weights": torch.zeros(2)}, step=0)
    with pytest.warns(TrackingWarning, match="'lr' is 0.1"):
        tracker.store_init_configuration({"lr": 0.2})
    tracker.finish()
    assert list(read(tracker.tracker.dir).metrics) == ["loss"]


def test_only_the_main_process_logs(tmp_path):
    from accelerate import PartialState

    from mlkit.integrations.accelerate import RunTracker

    tracker = RunTracker("ranks", root=tmp_path / "runs")
    state = PartialState(cpu=True)
    state.process_index = 1
    tracker.start()
    tracker.store_init_configuration({"lr": 0.1})
    tracker.log({"loss": 0.5})
    tracker.finish()
    assert tracker.tracker is None
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("end", "status"),
    [("", "FINISHED"), ("raise ValueError", "FAILED"), ("raise KeyboardInterrupt", "KILLED")],
)
def test_a_script_without_end_training_says_how_it_ended(end, status, tmp_path):
    code = f"""
        import sys
        from mlkit.integrations._recording import Recording
        recording = Recording("Test", "script", None, 0, {{"root": sys.argv[1]}})
        recording.metrics({{"loss": 0.5}}, 0)
        {end}
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, check=False
    )
    (folder,) = find_runs(tmp_path)
    assert read(folder).status == status
