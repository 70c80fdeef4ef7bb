"""A run that is recorded and done again: real commands in real processes, real files, real kills."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, FingerprintError, ManifestError
from mlkit.repro import Manifest, fingerprint
from mlkit.repro._results import compare_results, kept, shown

TRAIN = """
import os, sys
import numpy as np
from mlkit.repro import Manifest, Seeds

scale = np.float64(open("scale").read())
seeds = Seeds(3)
with Manifest.capture(seeds=seeds).recording("run.json") as run:
    weights = seeds.numpy().normal(size=5) * scale
    run.result("weights", {"w": weights, "b": np.zeros(5)})
    run.result("metrics", {"loss": 0.25, "threads": os.environ.get("OMP_NUM_THREADS", "")})
    if len(sys.argv) > 1:
        sys.exit(sys.argv[1])
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a script; the record of one run of it is in run.json."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "scale").write_text("1.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def train(*words):
    return subprocess.run([sys.executable, "train.py", *words], capture_output=True, check=False)


def test_a_run_is_written_down(project):
    train()
    record = Manifest.load("run.json")
    assert record.status == "completed"
    assert record.results["metrics.loss"] == 0.25
    assert record.results["weights.b"] == fingerprint(np.zeros(5))
    assert list(record.results) == ["weights.w", "weights.b", "metrics.loss", "metrics.threads"]
    assert json.loads((project / "run.json").read_text())["facts"]["command"][1] == "train.py"


def test_it_is_the_same_when_it_is_repeated(project):
    train()
    before = (project / "run.json").read_bytes()
    verdict = Manifest.load("run.json").rerun()
    assert (verdict.level, verdict.max_ulps, str(verdict)) == (
        "identical",
        0,
        "identical bits in 4 results",
    )
    assert (project / "run.json").read_bytes() == before  # the record is not the rerun's to replace
    assert verdict.manifest.status == "completed"


@pytest.mark.parametrize(
    ("scale", "max_ulps", "level", "said"),
    [
        (1 + 2**-52, 16, "within_ulps", "within"),
        (1 + 2**-52, 0, "metrics_equal", "metrics equal; weights.w differs"),
        (2.0, 16, "metrics_equal", "metrics equal; weights.w differs"),
    ],
)
def test_the_verdict_says_how_much_differs(project, scale, max_ulps, level, said):
    train()
    (project / "scale").write_text(repr(scale))
    verdict = Manifest.load("run.json").rerun(max_ulps=max_ulps)
    assert verdict.level == level
    assert str(verdict).startswith(said)
    assert [result.name for result in verdict.results] == ["weights.w"]


def test_a_difference_is_explained_by_what_changed(project):
    for command in (["init", "-q"], ["add", "train.py", "scale"]):
        subprocess.run(["git", *command], check=True)
    train()
    script = (project / "train.py").read_text()
    (project / "train.py").write_text(script.replace("0.25", "0.5"))
    verdict = Manifest.load("run.json").rerun()
    assert verdict.level == "differs"
    assert "metrics.loss: 0.25 became 0.5" in str(verdict)
    assert "because code tree changed" in str(verdict)


def test_variables_that_change_results_are_as_they_were(project, monkeypatch):
    train()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    verdict = Manifest.load("run.json").rerun()
    assert verdict.level == "identical"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Manifest.load("run.json").rerun().level == "identical"


def test_a_run_that_fails_or_is_killed_leaves_its_record(project):
    train("no data")
    record = Manifest.load("run.json")
    assert record.status == "failed"
    assert record.results["metrics.loss"] == 0.25
    with pytest.raises(ManifestError, match="SystemExit"):
        record.rerun()
    code = "import os, signal; from mlkit.repro import Manifest\nwith Manifest.capture().recording('run.json'): os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Manifest.load("run.json").status == "running"


def test_it_is_repeated_where_it_ran_whatever_folder_the_code_is_in(project):
    folder = project / "experiments"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN.replace("capture(", "capture(code='..', "))
    (folder / "scale").write_text("1.0")
    subprocess.run([sys.executable, "train.py", "--tokenizer=bpe"], cwd=folder, check=False)
    record = Manifest.load(folder / "run.json")
    assert record.to_dict()["facts"]["directory"] == str(folder)
    assert record.status == "failed"  # it ended with a message
    code = (folder / "train.py").read_text().replace("sys.argv[1])", "0)")
    (folder / "train.py").write_text(code)
    subprocess.run([sys.executable, "train.py", "--tokenizer=bpe"], cwd=folder, check=True)
    record = Manifest.load(folder / "run.json")
    assert record.status == "completed"  # sys.exit(0) is no failure
    assert record.rerun().level == "identical"


def test_a_command_that_does_not_record_or_end_is_an_error(project):
    train()
    record = Manifest.load("run.json")
    with pytest.raises(ManifestError, match="made no record"):
        record.rerun(command=[sys.executable, "-c", "pass"])
    with pytest.raises(ManifestError, match="exited with 3"):
        record.rerun(command=[sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(ManifestError, match="no_such_program"):
        record.rerun(command=["no_such_program"])
    sleeper = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, file=open('pid', 'w')); sys.stdin.read()"
    command = [sys.executable, "-c", f"{sleeper}\nimport time; time.sleep(600)"]
    for timeout in (1, 4, 16, 64):
        with pytest.raises(ManifestError, match=rf"longer than {timeout}\.0 s"):
            record.rerun(command=command, timeout=timeout)
        started = project / "pid"
        if started.exists() and started.read_text().strip():  # else it was too busy to get so far
            break
    pid = started.read_text().strip()
    assert not_running(pid)  # what the command started is gone, too


def not_running(pid):
    for _ in range(60_000):  # the kernel takes a moment
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.001)
    return False


def test_what_cannot_be_repeated_is_refused_early(project):
    with pytest.raises(ConfigurationError, match="recording"):
        Manifest.capture().rerun()
    code = textwrap.dedent(
        """
        from mlkit.repro import Manifest
        with Manifest.capture().recording("run.json") as run:
            run.result("loss", 1.0)
        """
    )
    subprocess.run([sys.executable, "-c", code, "--api-key=abc"], check=True)
    with pytest.raises(ConfigurationError, match=r"rerun\(command=\.\.\.\)"):
        Manifest.load("run.json").rerun()
    assert (
        Manifest.load("run.json").rerun(command=[sys.executable, "-c", code]).level == "identical"
    )
    with pytest.raises(OSError, match="none"), Manifest.capture().recording("none/run.json"):
        pytest.fail("the block must not run when its record cannot be written")


@pytest.mark.parametrize(("name", "value"), [("", 1), (3, 1), ("x", {}), ("x", {"a": {}})])
def test_wrong_results_are_refused(tmp_path, name, value):
    with Manifest.capture().recording(tmp_path / "run.json") as run:
        with pytest.raises(ConfigurationError, match="result"):
            run.result(name, value)
        with pytest.raises(FingerprintError):
            run.result("x", object())


VALUES = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.floats(width=32), max_size=3).map(lambda row: np.array(row, dtype="f4")),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.lists(st.integers(-3, 3), max_size=3),
)


@given(VALUES, VALUES)
@settings(max_examples=150)
def test_results_differ_if_and_only_if_their_fingerprints_do(one, other):
    before, after = (json.loads(json.dumps(kept("x", value))) for value in (one, other))
    assert compare_results(before, before) == ()
    assert bool(compare_results(before, after)) is (fingerprint(one) != fingerprint(other))


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 9))
def test_a_number_comes_back_exactly_and_its_distance_is_counted(number, steps):
    assert shown(kept("x", number)) == {"x": number}
    moved = number
    for _ in range(steps):
        moved = math.nextafter(moved, math.inf)
    if math.isfinite(moved) and moved * number > 0:
        (difference,) = compare_results(kept("x", number), kept("x", moved))
        assert difference.max_ulps == steps


def test_a_second_result_takes_the_place_of_the_whole_first(tmp_path):
    with Manifest.capture().recording(tmp_path / "run.json") as run:
        run.result("metrics", {"loss": 0.5, "accuracy": 0.1})
        run.result("metrics_late", 1)
        run.result("metrics", {"loss": 0.25})
    results = Manifest.load(tmp_path / "run.json").results
    assert results == {"metrics_late": 1, "metrics.loss": 0.25}


def test_new_gone_and_retyped_results_differ():
    changes = compare_results(kept("a", 1) | kept("b", 1), kept("b", 1.0) | kept("c", 2))
    assert [str(change) for change in changes] == [
        "a: it is gone",
        "b: int became float",
        "c: it is new",
    ]


def test_packages_as_files_that_installers_read(tmp_path):
    record = Manifest.capture()
    lines = record.lock().splitlines()
    assert f"numpy=={np.__version__}" in lines
    assert f"      - numpy=={np.__version__}" in record.lock("conda").splitlines()
    with pytest.raises(ConfigurationError, match="requirements"):
        record.lock("poetry")


def wheel(folder, name, version):
    """Write the smallest wheel there is."""
    import zipfile

    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_a_pylock_file_is_made_by_uv(tmp_path, monkeypatch):
    import tomllib

    from mlkit.repro._lock import lock

    wheel(tmp_path, "one", "1.0")
    options = ["--no-index", "--find-links", str(tmp_path)]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    made = tomllib.loads(lock({"one": "1.0"}, "3.11.7", "pylock", options))
    (package,) = made["packages"]
    assert (package["name"], package["version"]) == ("one", "1.0")
    assert made["lock-version"] == "1.0"
    with pytest.raises(ManifestError, match="two"):
        lock({"two": "1.0"}, "3.11.7", "pylock", options)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ManifestError, match="install uv"):
        lock({"one": "1.0"}, "3.11.7", "pylock", options)
