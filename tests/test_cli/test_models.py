"""`python -m mlkit models`: what a person sees, and what a script can rely on."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mlkit.cli import main
from mlkit.models import ModelStore
from mlkit.testing import virtual_time

CHECKS = """
def fast(version): return True
def accurate(version): return f"accuracy {version.metrics['accuracy']} is below 0.9"
def broken(version): return version.metrics["accuracy"] > 0
both = [fast, broken]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cli_checks.py").write_text(textwrap.dedent(CHECKS))
    with virtual_time():
        store = ModelStore(tmp_path / "store", who="ada")
        store.save("digits", {"w": np.zeros(3)}, spec={"k": 1}, metrics={"accuracy": 0.8})
        store.save(
            "digits", {"w": np.ones(3)}, spec={"k": 2}, metrics={"accuracy": 0.85, "loss": np.nan},
            tags={"team": "vision"}, run="run-17", manifest={"seed": 7}, why="bigger",
        )  # fmt: skip
        store.promote("digits", 1, why="first")
    yield tmp_path
    sys.modules.pop("cli_checks", None)


def run(capsys, *words):
    status = main(["models", *map(str, words)])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


def test_list_says_what_there_is(place, capsys):
    status, out, _ = run(capsys, "list", "store")
    assert status == 0
    first, second = out.splitlines()
    assert first.split()[0] == "digits@1"
    assert first.endswith("champion")
    assert "2023-11-14 22:13:20Z  numpy" in second
    status, out, _ = run(capsys, "list", "store", "digits", "--json")
    assert [(one["ref"], one["aliases"]) for one in json.loads(out)] == [
        ("digits@1", ["champion"]),
        ("digits@2", []),
    ]
    (place / "empty").mkdir()
    assert run(capsys, "list", "empty")[0::2] == (0, "there are no models in empty\n")


def test_show_says_all_of_one(place, capsys):
    status, out, _ = run(capsys, "show", "store", "digits@2")
    assert status == 0
    for fact in (
        "accuracy=0.85, loss=nan",
        "team=vision",
        "run-17",
        '{"k": 2}',
        '{"seed": 7}',
        "sha256:",
    ):
        assert fact in out
    status, out, _ = run(capsys, "show", "store", "digits@2", "--json")
    shown = json.loads(out)
    assert (shown["metrics"], shown["spec"], shown["who"]) == (
        {"accuracy": 0.85, "loss": "nan"}, {"k": 2}, "ada",
    )  # fmt: skip
    status, out, _ = run(capsys, "show", "store", "digits@champion", "--card")
    assert (status, out.startswith("#")) == (0, True)


def test_promote_and_rollback_move_and_write_down(place, capsys):
    words = ("--why", "better", "--who", "bob", "--check", "cli_checks:both", "--expect", "1")
    status, out, _ = run(capsys, "promote", "store", "digits@2", *words)
    assert (status, out) == (0, "digits@champion points at version 2 (was 1)\n")
    status, out, _ = run(capsys, "rollback", "store", "digits", "--expect", "2", "--json")
    assert (status, json.loads(out)["version"]) == (0, 1)
    status, out, _ = run(capsys, "promote", "store", "digits@1", "--to", "blue", "--expect", "none")
    assert (status, out) == (0, "digits@blue points at version 1\n")
    status, out, _ = run(capsys, "history", "store", "digits")
    lines = out.splitlines()
    assert lines[1].endswith("saved 2 by ada: bigger")
    assert lines[2].endswith("promoted champion 1 by ada: first")
    assert lines[3].endswith("promoted champion 2 (was 1) by bob: better")
    assert lines[4:6] == ["       broken: passed", "       fast: passed"]
    changes = json.loads(run(capsys, "history", "store", "digits", "--json")[1])
    assert changes[3]["evidence"] == {"fast": "passed", "broken": "passed"}


def test_the_exit_status_tells_refused_from_moved_from_wrong(place, capsys):
    status, _, err = run(capsys, "promote", "store", "digits@2", "--check", "cli_checks:accurate")
    assert status == 3
    assert "accuracy 0.85 is below 0.9" in err
    status, _, err = run(capsys, "promote", "store", "digits@2", "--expect", "2")
    assert status == 4
    assert "points at version 1, not at version 2" in err
    assert run(capsys, "rollback", "store", "digits", "--expect", "2")[0] == 4
    for words, said in (
        (("rollback", "store", "digits"), "cannot be rolled back"),
        (("rollback", "store", "digits", "--expect", "none"), "there is one to roll back"),
        (("promote", "store", "digits@9"), "digits@9"),
        (("show", "store", "digit@1"), "digits"),
        (("list", "stor"), "a folder that exists"),
        (("promote", "store", "digits@2", "--check", "cli_checks:none"), "no attribute"),
        (("promote", "store", "digits@2", "--check", "none:none"), "No module named"),
        (("promote", "store", "digits@2", "--check", "x"), "MODULE:NAME"),
        (("export", "store", "digits@1", "store"), "store"),
        (("export", "store", "digits@1", "/proc/none/x"), "/proc/none"),
    ):
        status, out, err = run(capsys, *words)
        assert (status, out) == (1, ""), words
        assert said in err
        assert "Traceback" not in err
    assert ModelStore("store").aliases("digits") == {"champion": 1}
    for words in (("promote", "store", "digits@2", "--expect", "x"), ("list",), ("fly", "store")):
        with pytest.raises(SystemExit) as caught:
            main(["models", *words])
        assert caught.value.code == 2


def test_verify_names_what_is_broken(place, capsys):
    status, out, _ = run(capsys, "verify", "store")
    assert (status, out) == (0, "2 versions, 4 files: all is what was saved\n")
    (path,) = (
        p for p in Path("store/blobs").rglob("*") if p.is_file() and b"\x3f" in p.read_bytes()[-8:]
    )
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    status, out, err = run(capsys, "verify", "store", "digits")
    assert status == 1
    assert out.startswith(f"digits@2: {path.absolute()}: expected sha256:")
    assert err == "2 versions, 4 files: 1 not what was saved\n"
    status, out, _ = run(capsys, "verify", "store", "--json")
    assert status == 1
    assert [one["file"] for one in json.loads(out)["broken"]] == [str(path.absolute())]


def test_verify_asks_for_signatures(place, capsys):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    Path("team.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    ModelStore("store").sign("digits@1", key)
    status, out, _ = run(capsys, "verify", "store", "--signed-by", "team.pem")
    assert status == 1
    assert out.startswith("digits@2: signatures: ")


def test_compare_and_export(place, capsys):
    status, out, _ = run(capsys, "compare", "store", "digits@champion", "digits@2")
    assert status == 0
    assert "  spec.k: 1 -> 2 (+1)\n" in out
    assert "  weights.w: F64 (3,), changed by up to 1\n" in out
    different = json.loads(run(capsys, "compare", "store", "digits@1", "digits@2", "--json")[1])
    assert not different["same_content"]
    status, out, _ = run(capsys, "export", "store", "digits@2", "two.tar", "--json")
    assert (status, json.loads(out)["ref"]) == (0, "digits@2")
    assert ModelStore("other").import_("two.tar").ref == "digits@2"


def test_an_expectation_that_is_no_number_is_said_in_words_of_the_command(place, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["models", "promote", str(place), "churn@1", "--expect", "x"])
    assert stopped.value.code == 2
    assert "expected a version's number or none, got 'x'" in capsys.readouterr().err


def test_a_misspelt_database_is_not_created(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "list", "sqlite:///mlfow.db")
    assert (status, out, list(tmp_path.iterdir())) == (1, "", [])
    assert "a database that exists, got 'sqlite:///mlfow.db'" in err
