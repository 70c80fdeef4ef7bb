"""The doctor says what is there, what is missing, and when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlkit.cli import main


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlkit", "doctor", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_sound_environment_has_no_trouble() -> None:
    done = doctor("--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["ok"]
    topics = {check["topic"] for check in report["checks"]}
    assert topics >= {
        "mlkit",
        "python",
        "name",
        "core",
        "extra",
        "device",
        "threads",
        "determinism",
    }
    core = {check["name"] for check in report["checks"] if check["topic"] == "core"}
    assert core == {
        "mmh3", "msgspec", "numpy", "pydantic", "pyyaml", "safetensors", "tenacity",
    }  # fmt: skip


def test_a_person_can_read_it() -> None:
    done = doctor()
    assert done.returncode == 0
    assert "no trouble found" in done.stdout
    assert "numpy" in done.stdout


def test_the_other_distribution_of_that_name_is_trouble(tmp_path: Path) -> None:
    info = tmp_path / "mlkit-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlkit\nVersion: 0.1\n")
    (info / "top_level.txt").write_text("mlkit\n")
    (info / "RECORD").write_text("mlkit/linear_model.py,,\n")
    done = doctor("--json", PYTHONPATH=str(tmp_path))
    (found,) = [check for check in json.loads(done.stdout)["checks"] if check["topic"] == "name"]
    assert done.returncode == 1
    assert found["status"] == "trouble"
    assert "shared with another distribution: mlkit" in found["detail"]
    assert "mlkit-blocks" in found["fix"]


def test_more_threads_than_cores_is_a_warning() -> None:
    report = json.loads(doctor("--json", OMP_NUM_THREADS="4096").stdout)
    (found,) = [check for check in report["checks"] if check["name"] == "OMP_NUM_THREADS"]
    assert found["status"] == "warning"
    assert "at most" in found["fix"]


def test_what_is_missing_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in {"numpy", "mlflow"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor", "--json"]) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["numpy"]["status"] == "trouble"
    assert found["mlflow: mlflow"]["status"] == "note"
    assert found["mlflow: mlflow"]["fix"] == "pip install 'mlkit-blocks[mlflow]'"


def test_what_is_older_than_declared_is_not_ok(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.metadata

    real = importlib.metadata.version
    told = {"numpy": "1.9.3", "pydantic": "2.10", "mlflow": "2.22.0rc1", "torch": "2.40.0+cpu"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: told.get(name) or real(name))
    assert main(["doctor", "--json"]) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["numpy"]["status"] == "trouble"
    assert found["numpy"]["detail"].startswith("1.9.3, which is older than 1.")
    assert found["mlflow: mlflow"]["status"] == "warning"
    assert found["mlflow: mlflow"]["fix"] == "pip install 'mlkit-blocks[mlflow]'"
    assert found["pydantic"]["status"] == found["torch: torch"]["status"] == "ok"


def test_a_look_that_fails_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlkit import repro

    def broken() -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr(repro, "audit", broken)
    assert main(["doctor", "--json"]) == 0
    found = [
        check
        for check in json.loads(capsys.readouterr().out)["checks"]
        if check["status"] == "warning"
    ]
    assert any("no /proc here" in check["detail"] for check in found)


def test_a_seed_is_checked_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--seed", "-1"])
    assert "--seed: '-1' is not a whole number >= 0" in capsys.readouterr().err


def test_the_version_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert "mlkit 0." in capsys.readouterr().out


def test_unknown_words_are_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["docter"])
    assert caught.value.code == 2
    assert "doctor" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["flags", "check"], ["flags", "check", "--format", "json"]])
def test_output_that_cannot_be_written_is_one_readable_line(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "flags.json").write_text('{"flags": {}}')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mlkit", *words, "flags.json"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "mlkit flags: [Errno 28] No space left on device\n",
    )


def test_a_closed_output_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "flags.json").write_text('{"flags": {}}')
    line = f"{sys.executable} -m mlkit flags check flags.json >&-"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
