"""The demo, for real: trained, tracked, served, rolled back, traced, and the same again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the demo needs the extra 'demo'")
pytest.importorskip("sklearn", reason="the demo reads scikit-learn's data file")


def demo(out: Path | str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it as a person whose shell points MLflow at servers of their own."""
    command = [sys.executable, "-m", "mlkit", "demo", "--out", str(out), *words]
    elsewhere = dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), "http://127.0.0.1:9")
    return subprocess.run(
        command, cwd=cwd, env=os.environ | elsewhere, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = demo(out, "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return out, json.loads(done.stdout)


@pytest.mark.timeout(1200)
def test_every_request_is_answered_and_the_rollout_is_taken_back(told) -> None:
    out, report = told
    assert report["requests"] == 1_000
    assert report["failed"] == 0
    assert report["degraded"] > 0
    assert report["mean_batch_size"] > 4
    assert (
        report["accuracy"]["v2 (neural network)"]
        > report["accuracy"]["v1 (nearest centroid)"]
        > 0.85
    )
    actions = [step["action"] for step in report["rollout"]]
    assert actions[-1] == "rolled_back"
    assert actions.count("advanced") == 2
    served = [json.loads(line) for line in _artifact(out, "served.jsonl").splitlines()]
    assert [one["request"] for one in served] == list(range(1_000))
    assert all(one["variant"] == "v1" for one in served[:200])
    assert 5 <= sum(one["variant"] == "v2" for one in served[200:400]) <= 50
    assert all(one["variant"] == "v2" for one in served[400:500])
    assert all(one["tier"] == "v1" for one in served[500:])
    assert served[-1]["variant"] == "v1"


def _artifact(out: Path, name: str) -> str:
    from mlkit.tracking import read

    (folder,) = [
        path for path in (out / "runs").rglob("children/*") if name in read(path).artifacts
    ]
    return read(folder).artifact(name).read_text()


def test_a_prediction_is_traced_back(told) -> None:
    trace = told[1]["trace"]
    assert trace["variant"] == "v2"
    assert len(trace["checks"]) == 5
    assert all(trace["checks"].values())


def test_mlflow_has_the_run_with_params_metrics_and_model(told, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    out, _ = told
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = {
        run.data.tags["mlflow.runName"]: run
        for run in client.search_runs([experiment.experiment_id])
    }
    assert set(runs) == {"demo", "train-centroid", "train-mlp", "serve"}
    run = runs["train-mlp"]
    assert run.data.params["spec.hidden"] == "64"
    assert run.data.tags["model.ref"] == "digits@2"
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "loss")]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 10
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    files = {file.path: file.file_size for file in client.list_artifacts(run.info.run_id, "model")}
    assert set(files) == {"model/spec.json", "model/weights.safetensors"}
    assert files["model/weights.safetensors"] > 10_000


def test_mlflows_own_client_opens_the_versions(told, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    from mlkit.integrations.mlflow_models import MlflowModelStore
    from mlkit.models import ModelStore

    out, report = told
    # MLflow keeps connections to a file by its path, also when a later demo has replaced it.
    shutil.copy(out / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    ours = ModelStore(out / "models")
    assert ours.aliases("digits") == {"challenger": 2, "champion": 1}
    for alias, number in ours.aliases("digits").items():
        seen = client.get_model_version_by_alias("digits", alias)
        assert int(seen.version) == number
        assert seen.tags["mlkit.digest"] == ours.get(f"digits@{alias}").digest
        run = client.get_run(seen.run_id)  # the one that trained it
        assert run.data.tags["model.ref"] == f"digits@{number}"
        assert report["mlflow"]["registry"][f"digits@{alias}"] == f"version {number}"
    registry = MlflowModelStore(uri, cache=tmp_path / "fetched")
    assert registry.verify() == (2, 4, ())
    whys = [change.why for change in registry.history("digits") if change.kind == "promoted"]
    assert whys == ["the first version", "more accurate on requests it has not seen"]


def test_there_is_a_picture(told) -> None:
    picture = (told[0] / "rollout.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5_000


@pytest.mark.timeout(1200)
def test_it_reruns_to_the_identical_fingerprint(told) -> None:
    out, report = told
    done = demo(out)
    assert done.returncode == 0, done.stderr
    assert f"{report['fingerprint']}  (identical to the previous run)" in done.stdout


def test_another_seed_is_another_story(told, tmp_path: Path) -> None:
    from mlkit.demo.digits import load_digits
    from mlkit.repro import Seeds

    first, second = load_digits(Seeds(1)), load_digits(Seeds(2))
    assert sorted(first.train_y.tolist() + first.request_y.tolist()) == sorted(
        second.train_y.tolist() + second.request_y.tolist()
    )
    assert (first.train_y != second.train_y).any()


@pytest.mark.parametrize("where", ["/proc/nothing/here", "{tmp}/file/below"])
def test_a_folder_that_cannot_be_written_is_one_clear_error(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = demo(where.format(tmp=tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "mlkit demo: --out: expected a folder that can be written" in done.stderr
    assert "--out DIR" in done.stderr


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = demo(tmp_path)
    assert done.returncode == 1
    assert "holds something else" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
