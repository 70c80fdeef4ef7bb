"""`python -m mlkit repro`: what a person sees, and what a script can rely on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlkit.cli import main
from mlkit.repro import Manifest


def run(capsys, *words):
    status = main(["repro", *map(str, words)])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("1,2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_capture_diff_and_verify(folder, capsys):
    rows = f"rows={folder / 'rows.csv'}"
    assert run(capsys, "capture", "--seed", 7, "--data", rows, "-o", "one.json")[0] == 0
    assert run(capsys, "diff", "one.json", "one.json") == (0, "", "")
    assert run(capsys, "verify", "one.json") == (0, "", "")
    (folder / "rows.csv").write_text("1,3\n")
    status, out, _ = run(capsys, "verify", "one.json")
    assert (status, out.partition(" changed")[0]) == (1, "data rows")
    assert run(capsys, "capture", "--seed", 8, "--data", rows, "-o", "two.json")[0] == 0
    status, out, _ = run(capsys, "diff", "one.json", "two.json", "--json")
    assert status == 1
    assert [change["section"] for change in json.loads(out)] == ["data", "seeds"]


def test_capture_prints(folder, capsys):
    status, out, err = run(capsys, "capture")
    assert status == 0
    assert Manifest.from_dict(json.loads(out)).status == "captured"
    assert "no-git" in err
    assert "numpy==" in run(capsys, "capture", "--lock", "requirements")[1]
    assert run(capsys, "capture", "--lock", "conda", "-o", "environment.yml") == (0, "", err)
    assert "- pip:" in (folder / "environment.yml").read_text()


def test_rerun(folder, capsys):
    (folder / "train.py").write_text(
        "from mlkit.repro import Manifest\n"
        "with Manifest.capture().recording('run.json') as run: run.result('loss', float(open('loss').read()))\n"
    )
    (folder / "loss").write_text("0.5")
    subprocess.run([sys.executable, "train.py"], check=True)
    assert run(capsys, "rerun", "run.json") == (0, "identical bits in 1 result\n", "")
    (folder / "loss").write_text("0.75")
    status, out, _ = run(capsys, "rerun", "run.json")
    assert status == 1
    assert out.startswith("differs: loss: 0.5 became 0.75")
    status, out, _ = run(capsys, "rerun", "run.json", "--json")
    assert (status, json.loads(out)["level"]) == (1, "differs")


def test_audit(capsys):
    status, out, _ = run(capsys, "audit", "--json")
    assert status == int(bool(json.loads(out)))
    assert run(capsys, "audit", "--import", "no_such_module")[0] == 1


def test_what_is_no_manifest_is_said_in_one_line(folder, capsys):
    expected = {"diff": 2, "verify": 1, "rerun": 1}
    for words in (["diff", "rows.csv", "rows.csv"], ["verify", "none.json"], ["rerun", "rows.csv"]):
        status, out, err = run(capsys, *words)
        assert (status, out, err.count("\n")) == (expected[words[0]], "", 1)
    for words in ([], ["--lock", "requirements"]):
        status, out, err = run(capsys, "capture", *words, "-o", "none/run.json")
        assert (status, out) == (1, "")
        assert "--output" in err.splitlines()[-1]
    with pytest.raises(SystemExit) as ended:
        run(capsys, "capture", "--data", "rows")
    assert ended.value.code == 2
