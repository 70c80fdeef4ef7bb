"""Lightning's trainer, both packages, logging into a run: real trainings, small and on the CPU."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from argparse import Namespace
from collections import UserDict, UserList
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch.utils.data import DataLoader, TensorDataset

from mlkit.errors import ConfigurationError, TrackingWarning
from mlkit.tracking import find_runs, read


@pytest.fixture(scope="module", autouse=True)
def _left_as_found():
    """What Lightning sets for the whole process goes when we do."""
    before = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning  # noqa: F401
        import pytorch_lightning  # noqa: F401
    yield
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]


pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning:lightning", "DeprecationWarning", "FutureWarning", "UserWarning:pytorch_lightning", "UserWarning:torch")
]  # fmt: skip


def loader() -> DataLoader:
    features, labels = load_iris(return_X_y=True)
    data = TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    return DataLoader(data, batch_size=50, shuffle=False)


def model_of(package, fail_at: int = -1, error: type[BaseException] = RuntimeError):
    class Classifier(package.LightningModule):
        def __init__(self, lr: float = 0.05, net: object = None):
            super().__init__()
            self.save_hyperparameters()
            self.linear = torch.nn.Linear(4, 3)

        def training_step(self, batch, index):
            if self.global_step == fail_at:
                raise error("stop here")
            loss = torch.nn.functional.cross_entropy(self.linear(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            hit = (self.linear(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("accuracy", hit)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.hparams.lr)

    return Classifier(net={"depth": 3})


def trainer_of(package, tmp_path, logger, **options):
    return package.Trainer(
        **{
            "max_epochs": 2, "logger": logger, "enable_progress_bar": False, "accelerator": "cpu",
            "enable_model_summary": False, "log_every_n_steps": 1, "default_root_dir": tmp_path, **options,
        }
    )  # fmt: skip


def package_and_logger(name: str):
    if name == "lightning":
        import lightning

        from mlkit.integrations.lightning import RunLogger
    else:
        import pytorch_lightning as lightning

        from mlkit.integrations.pytorch_lightning import RunLogger
    return lightning, RunLogger


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_a_training_is_a_run(name, tmp_path):
    package, RunLogger = package_and_logger(name)
    from importlib import import_module

    loggers = import_module(f"{name}.pytorch.loggers" if name == "lightning" else f"{name}.loggers")
    assert issubclass(RunLogger, loggers.Logger)
    logger = RunLogger("iris", root=tmp_path / "runs", checkpoints="kept", shipper="none")
    other = loggers.CSVLogger(tmp_path / "csv")
    trainer = trainer_of(package, tmp_path, [logger, other])
    trainer.fit(model_of(package), loader(), loader())

    data = read(logger.log_dir)
    assert (data.status, data.experiment, data.id) == ("FINISHED", "iris", logger.version)
    assert data.params == {"lr": 0.05, "net.depth": 3}
    assert [point.step for point in data.metrics["loss"]] == [0, 1, 2, 3, 4, 5]
    assert [point.step for point in data.metrics["accuracy"]] == [2, 5]
    assert {point.value for point in data.metrics["epoch"]} == {0.0, 1.0}
    # Lightning's own logger has seen the same numbers.
    lines = Path(other.log_dir, "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    theirs = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    losses = [float(line["loss"]) for line in theirs if line["loss"]]
    assert losses == [point.value for point in data.metrics["loss"]]

    best = Path(trainer.checkpoint_callback.best_model_path)
    assert best.is_relative_to(tmp_path / "runs" / "iris" / logger.version / "checkpoints")
    (kept,) = [entry for entry in data.artifacts if entry.startswith("checkpoints/")]
    assert data.artifact(kept).read_bytes() == best.read_bytes()

    trainer.validate(model_of(package), loader(), verbose=False)  # the run is gone on with
    again = read(logger.log_dir)
    assert again.status == "FINISHED"
    assert len(again.metrics["accuracy"]) == 3
    assert find_runs(tmp_path / "runs") == [Path(logger.log_dir)]


@pytest.mark.parametrize(
    ("error", "status", "raised"),
    [(RuntimeError, "FAILED", RuntimeError), (KeyboardInterrupt, "KILLED", SystemExit)],
)
def test_how_it_ended_is_said(error, status, raised, tmp_path):
    import signal

    package, RunLogger = package_and_logger("lightning")
    logger = RunLogger("iris", root=tmp_path / "runs")
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            trainer_of(package, tmp_path, logger).fit(model_of(package, 2, error), loader())
    finally:
        signal.signal(signal.SIGINT, handler)
    data = read(logger.log_dir)
    assert data.status == status
    assert [point.step for point in data.metrics["loss"]] == [0, 1]


def test_steps_go_on_after_a_resume_and_the_run_is_one(tmp_path):
    package, RunLogger = package_and_logger("lightning")
    first = RunLogger("iris", root=tmp_path / "runs")
    trainer = trainer_of(package, tmp_path, first, max_epochs=1)
    trainer.fit(model_of(package), loader())
    place = trainer.checkpoint_callback.best_model_path
    second = RunLogger("iris", root=tmp_path / "runs", run_id=first.version)
    trainer_of(package, tmp_path, second).fit(model_of(package), loader(), ckpt_path=place)
    data = read(first.log_dir)
    assert [point.step for point in data.metrics["loss"]] == [0, 1, 2, 3, 4, 5]
    third = RunLogger("iris", root=tmp_path / "runs", run_id=first.version)
    third.log_metrics({"late": 1.0})  # nobody said a step: it is not 0 again
    third.finalize("success")
    assert read(first.log_dir).metrics["late"][0].step == 6


def test_a_tracker_that_is_away_stops_nothing(tmp_path):
    package, RunLogger = package_and_logger("lightning")
    logger = RunLogger(
        "iris", root=tmp_path / "runs", sinks=["mlflow:http://127.0.0.1:9"], shipper="none", timeout=0
    )  # fmt: skip
    trainer_of(package, tmp_path, logger).fit(model_of(package), loader())
    assert read(logger.log_dir).status == "FINISHED"


def test_what_cannot_be_logged_is_a_warning_and_no_end(tmp_path):
    _, RunLogger = package_and_logger("lightning")
    logger = RunLogger("iris", root=tmp_path / "runs")
    logger.log_hyperparams({"lr": 0.1})
    with pytest.warns(TrackingWarning, match="'lr' is 0.1 and cannot become 0.2"):
        logger.log_hyperparams({"lr": 0.2, "depth": 3})
    with pytest.warns(TrackingWarning, match="'image' is left out"):
        logger.log_metrics({"loss": torch.tensor(0.5), "image": torch.zeros(2, 2), "note": "x"}, 4)
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.save()
    logger.finalize("success")
    data = read(logger.log_dir)
    assert data.params == {"lr": 0.1, "depth": 3}
    assert [(point.step, point.value) for point in data.metrics["loss"]] == [(4, 0.5)]
    assert (list(data.metrics), data.tags) == (["loss"], {"note": "x"})


@dataclass
class Optimiser:
    name: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.99)


class Lazy(UserDict):
    """As OmegaConf's: a mapping of which one interpolation may fail."""

    def __getitem__(self, key):
        if key == "to":
            raise ValueError("interpolation to missing key")
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Namespace(a=Namespace(b=1), c=[1, 2]), {"a.b": 1, "c": [1, 2]}),
        ({"opt": Optimiser(), 3: "three"}, {"opt.name": "sgd", "opt.betas": [0.9, 0.99], "3": "three"}),
        (SimpleNamespace(path=Path("a/b"), empty={}), {"path": "a/b", "empty": {}}),
        ({"loss": torch.nn.functional.relu, "cls": torch.nn.Linear}, {"loss": "torch.nn.functional.relu", "cls": "torch.nn.modules.linear.Linear"}),
        ({"w": torch.zeros(2, 3), "x": np.float32(0.5), "z": torch.tensor(7)}, {"w": "torch.Tensor (2, 3) torch.float32", "x": 0.5, "z": 7}),
        ({"o": object(), "f": [object()]}, {"o": "builtins.object", "f": ["builtins.object"]}),
        ({"big": 1 << 5000, "dtype": torch.float16}, {"big": hex(1 << 5000), "dtype": "torch.float16"}),
        (Lazy(lr=0.1, to=None, of=UserList([1, Lazy(to=2)])), {"lr": 0.1, "to": "(ValueError)", "of": [1, {"to": "(ValueError)"}]}),
        ({"b": np.bool_(1), "i": np.longlong(5), "c": np.cdouble(9 + 4j), "r": range(3)}, {"b": True, "i": 5, "c": "(9+4j)", "r": "range(0, 3)"}),
    ],
)  # fmt: skip
def test_hyperparameters_of_every_form(given, expected, tmp_path):
    _, RunLogger = package_and_logger("lightning")
    logger = RunLogger("iris", root=tmp_path / "runs")
    logger.log_hyperparams(given)
    logger.finalize("success")
    assert read(logger.log_dir).params == expected


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_only_rank_zero_logs_unless_all_shall(name, tmp_path, monkeypatch):
    from lightning_utilities.core.rank_zero import rank_zero_only

    _, RunLogger = package_and_logger(name)
    dummy = sys.modules[RunLogger.__mro__[2].__module__].DummyExperiment
    zero = RunLogger("iris", root=tmp_path / "runs")
    every = RunLogger("iris", root=tmp_path / "runs", ranks="all", run_id="job-7")
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
        for logger in (pickle.loads(pickle.dumps(zero)), pickle.loads(pickle.dumps(every))):
            logger.log_hyperparams({"lr": 0.1})
            logger.log_metrics({"loss": rank}, 3)
            silent = rank == 1 and logger.version == zero.version
            assert isinstance(logger.experiment, dummy) == silent
            if silent:  # user code may call whatever it would on the run
                assert logger.experiment.set_tags({"a": "b"}) is None
            logger.finalize("success")
    assert {key: len(points) for key, points in read(zero.log_dir).metrics.items()} == {"loss": 1}
    data = read(every.log_dir)
    assert {key: points[0].value for key, points in data.metrics.items()} == {
        "loss": 0,
        "rank-1/loss": 1,
    }
    with pytest.raises(ConfigurationError, match="ranks='all'"):
        RunLogger("iris", ranks="all")


@pytest.mark.slow
def test_two_spawned_processes_train_into_one_run(tmp_path, monkeypatch):
    package, RunLogger = package_and_logger("lightning")
    code = """
        import lightning, torch

        class Model(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(4, 1)
            def training_step(self, batch, index):
                loss = self.linear(batch[0]).square().mean()
                self.log("loss", loss)
                return loss
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)
    """
    (tmp_path / "spawned_model.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    from importlib import import_module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    logger = RunLogger("spawn", root=tmp_path / "runs")
    trainer = trainer_of(package, tmp_path, logger, max_steps=3, devices=2, strategy="ddp_spawn")
    data = DataLoader(TensorDataset(torch.ones(32, 4)), batch_size=4)
    trainer.fit(import_module("spawned_model").Model(), data)
    logger.log_metrics({"after": 1.0}, 3)
    logger.finalize("success")
    (folder,) = find_runs(tmp_path / "runs")
    data = read(folder)
    assert (data.id, data.status) == (logger.version, "FINISHED")
    assert [point.step for point in data.metrics["loss"]] == [0, 1, 2]  # once, not once a rank
    assert len(data.metrics["after"]) == 1


def test_metrics_of_hyperparameters_have_a_step(tmp_path):
    _, RunLogger = package_and_logger("lightning")
    logger = RunLogger("iris", root=tmp_path / "runs")
    logger.log_hyperparams({"lr": 0.1}, {"hp_metric": 0.5}, 3)
    logger.log_hyperparams(params={"depth": 2}, metrics={"score": 0.5})
    logger.finalize("success")
    data = read(logger.log_dir)
    assert data.params == {"lr": 0.1, "depth": 2}
    assert {key: points[0].step for key, points in data.metrics.items()} == {
        "hp_metric": 3,
        "score": 0,
    }


def test_importing_the_module_imports_no_lightning():
    code = (
        "import sys, mlkit.integrations.lightning, mlkit.integrations.pytorch_lightning\n"
        "assert not {'torch', 'lightning', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.modules['lightning'] = None\n"
        "try:\n    from mlkit.integrations.lightning import RunLogger\n"
        "except ImportError as error:\n    print(error)\n"
        "try:\n    mlkit.integrations.lightning.RunLoger\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mlkit-blocks[lightning]" in done.stdout
    assert "RunLoger" in done.stdout
