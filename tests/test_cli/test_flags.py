"""`python -m mlkit flags`: what a person reads, and what a script or a workflow can rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlkit.cli import main

OLD = """{
  "flags": {
    "new-tokeniser": {
      "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
      "targeting": {"if": [{"==": [{"var": "plan"}, "pro"]}, {"fractional": [["on", 10], ["off", 90]]}]},
      "metadata": {"owner": "ann", "expires": "2026-01-01"}
    },
    "max-batch": {"state": "ENABLED", "variants": {"big": 64}, "defaultVariant": "big"}
  }
}
"""
PRO = '{"plan": "pro"}'


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "old.json": OLD,
        "new.json": OLD.replace('"on", 10', '"on", 25').replace('"off", 90', '"off", 75'),
        "bad.json": OLD.replace('"=="', '"=~"'),
        "odd.json": OLD.replace('"on", 10', '"on", 10.5'),
        "cut.json": OLD[:120],
        "list.json": '{"metadata": {"a": []}, "flags": {}}',
        "ids.txt": "ann\nbob\r\n\ncem\n",
        "contexts.json": '[{"plan": "pro"}, {"plan": "free"}]',
        "app.py": 'F = flags.bool("new-tokenizer", default=False)\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(capsys, *words):
    status = main(["flags", *words])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


# --- check -------------------------------------------------------------------------------------------------------


def test_check_names_the_place(here, capsys):
    status, out, err = run(capsys, "check", "old.json", "bad.json", "odd.json")
    assert (status, err) == (1, "")
    error, warning, total = out.splitlines()
    assert error == (
        "bad.json:5:29: error: /flags/new-tokeniser/targeting/if/0/=~0: unknown operator '=~'"
    )
    assert warning.startswith(
        "odd.json:5:85: warning: /flags/new-tokeniser/targeting/if/1/fractional/0/1: "
    )
    assert total == "1 error, 1 warning"
    row = OLD.replace('"=="', '"=~"').splitlines()[4]
    assert row[28:].startswith('"=~"')


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["old.json"], 0),
        (["odd.json"], 0),
        (["odd.json", "--strict"], 1),
        (["old.json", "--strict"], 0),
        (["bad.json"], 1),
        (["cut.json"], 1),
        (["absent.json"], 1),
        (["old.json", "absent.json"], 1),
    ],
)
@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_check_exit_status(here, capsys, words, expected, form):
    status, out, _ = run(capsys, "check", *words, "--format", form)
    assert status == expected
    if form == "json":
        found = json.loads(out)
        assert bool(found) is (words[0] != "old.json" or len(words) > 1 + ("--strict" in words))


def test_check_of_files_that_cannot_be_used(here, capsys):
    _, out, _ = run(capsys, "check", "cut.json", "list.json", "absent.json", "--format", "json")
    cut, listed, absent = json.loads(out)
    assert (cut["line"], cut["column"] > 0) == (4, True)
    assert cut["message"].startswith("not JSON")
    assert listed["pointer"] == "/metadata/a"
    assert (absent["line"], absent["severity"]) == (0, "error")
    assert "No such file" in absent["message"]


def test_check_annotates_pull_requests(here, capsys):
    text = OLD.replace('"max-batch": {"state": "ENABLED"', '"a,b%:\\n": {"state": "ON"')
    (here / "odd, name.json").write_text(text)
    _, out, _ = run(capsys, "check", "odd, name.json", "--format", "github")
    (line,) = out.splitlines()
    assert line.startswith(
        "::error file=odd%2C name.json,line=8,col=17,title=/flags/a%2Cb%25%3A%0A/state::expected "
    )


def test_check_moves_no_cursor(here, capsys):
    (here / "trick.json").write_text('{"flags": {"\\u001b[2J\\nok": {"state": "ON"}}}')
    _, out, _ = run(capsys, "check", "trick.json")
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2


# --- diff --------------------------------------------------------------------------------------------------------


def test_diff_says_who_moves(here, capsys):
    status, out, err = run(capsys, "diff", "old.json", "new.json", "--context", PRO)
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "new-tokeniser: changed, 15 % of units change variant (exactly)",
        "  off -> on: 15 %",
        "  targeting differs",
    ]
    status, out, _ = run(capsys, "diff", "old.json", "new.json")
    assert "  rules also read plan: tell with --context" in out.splitlines()
    assert "0 % of units" in out
    _, out, _ = run(capsys, "diff", "old.json", "new.json", "--context", "@contexts.json")
    assert "7.5 % of units" in out


def test_diff_of_a_split_in_another_order(here, capsys):
    (here / "turned.json").write_text(OLD.replace('["on", 10], ["off", 90]', '["off", 90], ["on", 10]'))  # fmt: skip
    _, out, _ = run(capsys, "diff", "old.json", "turned.json", "--context", PRO)
    assert out.splitlines() == [
        "new-tokeniser: changed, 20 % of units change variant (exactly)",
        "  off -> on: 10 %",
        "  on -> off: 10 %",
        "  0 % would do for the same shares: keep the order of the split",
        "  targeting differs",
    ]


def test_diff_exit_status(here, capsys):
    assert run(capsys, "diff", "old.json", "old.json") == (0, "", "")
    for words in (
        ["absent.json", "old.json"],
        ["old.json", "cut.json"],
        ["old.json", "new.json", "--context", "[1]"],
        ["old.json", "new.json", "--context", "{"],
        ["old.json", "new.json", "--context", "@absent"],
        ["old.json", "new.json", "--units", "0"],
        ["old.json", "new.json", "--ids", "absent"],
    ):
        status, out, err = run(capsys, "diff", *words)
        assert (status, out) == (2, "")
        assert err.startswith("mlkit flags diff: ")
    status, out, err = run(capsys, "diff", "old.json", "bad.json", "--context", PRO)
    assert status == 1
    assert "unknown operator" in err
    assert "100 % of units" in out


def test_diff_of_real_units(here, capsys):
    _, out, _ = run(
        capsys, "diff", "old.json", "new.json", "--context", PRO, "--ids", "ids.txt", "--format", "json"
    )  # fmt: skip
    (one,) = json.loads(out)
    assert (one["n_units"], one["exact"]) == (3, False)
    assert sum(flow["share"] for flow in one["flows"]) == pytest.approx(1.0)
    assert {"key", "change", "moved", "revalued", "least", "notes", "unknown"} <= one.keys()


# --- explain -----------------------------------------------------------------------------------------------------


def test_explain(here, capsys):
    words = ["explain", "old.json", "new-tokeniser", "--key", "u", "--context", PRO]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert out.splitlines()[0] == "new-tokeniser -> off = False (TARGETING_MATCH)"
    assert "bucket 58 of 100: on [0, 10), off [10, 100)" in out
    _, out, _ = run(capsys, *words, "--format", "json")
    told = json.loads(out)
    assert (told["variant"], told["reason"], told["error"]) == ("off", "TARGETING_MATCH", None)
    assert any("v3 hash" in line for line in told["lines"])
    context = '{"plan": "pro", "targetingKey": "u"}'
    assert run(capsys, *words[:3], "--context", context)[1].splitlines()[1:] == [
        f"{line}" for line in run(capsys, *words)[1].splitlines()[1:]
    ]


def test_explain_of_nothing(here, capsys):
    status, out, err = run(capsys, "explain", "old.json", "new-tokenizer")
    assert (status, out) == (1, "")
    assert "did you mean 'new-tokeniser'?" in err


# --- stale -------------------------------------------------------------------------------------------------------


def test_stale(here, capsys):
    status, out, _ = run(
        capsys, "stale", "old.json", "--code", "app.py", "--today", "2026-01-11"
    )  # fmt: skip
    assert status == 1
    assert out.splitlines() == [
        "old.json:8: max-batch: constant: every unit has variant 'big'",
        "old.json:8: max-batch: unreferenced: no code that was looked at names it",
        "old.json:6: new-tokeniser: expired: expired 2026-01-01, 10 days ago (owner: ann)",
        "old.json:3: new-tokeniser: unreferenced: no code that was looked at names it (owner: ann)",
        "app.py:1: new-tokenizer: missing: code asks for it, and it is not in the file; "
        "did you mean 'new-tokeniser'?",
        "5 findings",
    ]
    _, out, _ = run(
        capsys, "stale", "old.json", "--code", ".", "--today", "2026-01-01", "--format", "json"
    )
    assert [one["kind"] for one in json.loads(out)] == [
        "constant", "unreferenced", "unreferenced", "missing",
    ]  # fmt: skip
    _, out, _ = run(capsys, "stale", "old.json", "--code", "app.py", "--format", "github")
    assert "::warning file=app.py,line=1,title=missing::new-tokenizer: missing: " in out


def test_stale_exit_status(here, capsys):
    (here / "fine.json").write_text(OLD.replace('{"big": 64}', '{"big": 64, "small": 8}').replace(
        '"defaultVariant": "big"', '"defaultVariant": "big", "metadata": {"permanent": true}'))  # fmt: skip
    words = ["stale", "fine.json", "--today", "2025-12-31"]
    assert run(capsys, *words) == (0, "0 findings\n", "")
    for wrong in (["--today", "soon"], ["--code", "absent"]):
        status, _, err = run(capsys, *words[:2], *wrong)
        assert status == 1
        assert err.startswith("mlkit flags: ")


# --- as a process ------------------------------------------------------------------------------------------------


def process(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "mlkit", "flags", *words],
        capture_output=True,
        timeout=300,
        check=False,
        **more,
    )


def test_a_shell_sees_the_status_and_pipes_work(here):
    done = process("diff", "-", "new.json", "--context", PRO, input=OLD.encode())
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.startswith(b"new-tokeniser: changed, 15 %")
    command = f"{sys.executable} -m mlkit flags check <(cat bad.json)"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b":5:29: error: /flags/new-tokeniser/targeting" in done.stdout
    done = process("check", "odd.json", "--strict")
    assert done.returncode == 1
    assert process("nonsense").returncode == 2


def test_who_reads_only_the_beginning_disturbs_nothing(here):
    flags = ",".join(f'"flag-{i}": {{"state": "ENABLED", "variants": {{"a": 1}}}}' for i in range(4_000))  # fmt: skip
    (here / "many.json").write_text(f'{{"flags": {{{flags}}}}}')
    (here / "none.json").write_text('{"flags": {}}')
    command = [sys.executable, "-m", "mlkit", "flags", "diff", "none.json", "many.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith(b"flag-0: added")
        running.stdout.close()
        said = running.stderr.read()
        assert running.wait(300) == 141
    assert said == b""


def test_a_terminal_that_knows_only_ascii(here):
    (here / "ü.json").write_text('{"flags": {"größe": {"state": "ON"}}}', encoding="utf-8")
    done = process(
        "check", "ü.json", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )
    assert done.returncode == 1
    assert b"gr\\xf6\\xdfe" in done.stdout
