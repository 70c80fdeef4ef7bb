"""`python -m mlkit registry`: what a person sees, and what a script can rely on."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from mlkit.cli import main

HUB = """
from typing import Annotated
from mlkit.registry import Registry
models = Registry("models")
parts = Registry("parts")
calls = []

@parts.register("part")
class Part:
    def __init__(self, n: int = 1) -> None: calls.append("part")

@models.register("net", version=2, aliases=["n"], tags=["vision"], requires=["timm"], meta={"paper": "x"})
def net(part: Annotated[Part, parts], width: int = 8) -> object:
    '''Make a net.

    With parts.
    '''
    calls.append("net")
    return object()

@models.register("net", version=1, replacement="net@2", migrate=lambda old: {"width": old["size"]})
def old(size: int) -> object: ...

models.lazy("net10", "json:JSONDecoder", tags=["vision"])
models.lazy("gone", "no_such_module_there:X")

class Space:
    inner = models
other = 3
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cli_hub.py").write_text(textwrap.dedent(HUB))
    (tmp_path / "cli_broken.py").write_text("raise RuntimeError('no device')\n")
    (tmp_path / "cli_needy.py").write_text("import not_there_either\n")
    yield tmp_path
    for name in ("cli_hub", "cli_broken", "cli_needy"):
        sys.modules.pop(name, None)


def run(capsys, *words):
    status = main(["registry", *words])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


def test_list(hub, capsys):
    assert run(capsys, "list", "cli_hub:models") == (0, "gone\nnet\nnet10\n", "")
    assert run(capsys, "list", "cli_hub:models", "n*", "--tag", "vision")[1] == "net\nnet10\n"
    assert run(capsys, "list", "cli_hub:models", "net", "--versions", "--deprecated")[1] == (
        "net@1\nnet@2\n"
    )
    assert run(capsys, "list", "cli_hub:Space.inner", "net10")[1] == "net10\n"
    status, out, err = run(capsys, "list", "cli_hub:models", "z*")
    assert (status, out) == (0, "")
    assert "nothing of 'models' fits" in err
    status, out, _ = run(capsys, "list", "cli_hub:models", "net", "--json")
    (entry,) = json.loads(out)
    assert (entry["ref"], entry["tags"], entry["aliases"]) == ("net@2", ["vision"], ["n"])
    status, out, _ = run(capsys, "list", "cli_hub:models", "net", "--versions", "--deprecated", "--json")  # fmt: skip
    assert [(one["ref"], one["replacement"]) for one in json.loads(out)] == [
        ("net@1", "net@2"),
        ("net@2", None),
    ]


def test_show(hub, capsys):
    status, out, _ = run(capsys, "show", "cli_hub:models", "n")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("net@2(part: ")
    assert "cli_hub.Part" in lines[0]
    assert "width: int = 8" in lines[0]
    for word in (
        "cli_hub:net",
        "cli_hub:",
        "vision",
        "timm",
        "paper",
        "Make a net.",
        "With parts.",
    ):
        assert word in out
    assert sys.modules["cli_hub"].calls == []
    status, out, _ = run(capsys, "show", "cli_hub:models", "net@1")
    assert status == 0
    assert "use net@2" in out
    assert "(size: int)" in out
    status, out, _ = run(capsys, "show", "cli_hub:models", "gone")
    assert status == 1
    assert "there is no module 'no_such_module_there'" in out
    status, out, _ = run(capsys, "show", "cli_hub:models", "net", "--json")
    assert json.loads(out)["doc"].startswith("Make a net.")
    assert json.loads(out)["problem"] is None
    status, out, err = run(capsys, "show", "cli_hub:models", "nett")
    assert status == 1
    assert "did you mean 'net'" in err


def test_schema(hub, capsys):
    import jsonschema

    status, out, _ = run(capsys, "schema", "cli_hub:models", "net")
    assert status == 0
    schema = json.loads(out)
    jsonschema.validate({"type": "net", "part": {"type": "part", "n": 3}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"type": "net", "part": {"type": "part", "n": "3"}}, schema)


def test_check_prints_every_problem_with_its_place_and_builds_nothing(hub, capsys):
    (hub / "good.yaml").write_text("type: net\npart: part\n")
    (hub / "bad.json").write_text(
        '{"type": "net",\n "part": {"type": "part", "n": "x"},\n "widht": 3}'
    )
    (hub / "train.yaml").write_text("seed: 1\nmodel:\n  type: nett\n")
    (hub / "broken.yaml").write_text("type: [\n")
    assert run(capsys, "check", "cli_hub:models", "good.yaml") == (0, "good.yaml: ok, net@2\n", "")
    status, out, _ = run(capsys, "check", "cli_hub:models", "good.yaml", "bad.json", "broken.yaml")
    assert status == 1
    assert "good.yaml: ok" in out
    assert "bad.json:2:32 part.n: expected int, got 'x'" in out
    assert "bad.json:3:2 widht: net@2 has no argument 'widht'; did you mean 'width'?" in out
    assert "broken.yaml:" in out
    status, out, _ = run(capsys, "check", "cli_hub:models", "train.yaml", "--at", "model")
    assert status == 1
    assert "train.yaml:3:9 model.type: unknown name 'nett'" in out
    status, out, _ = run(capsys, "check", "cli_hub:models", "bad.json", "--json")
    assert status == 1
    assert [(one["path"], one["kind"], one["source"]) for one in json.loads(out)] == [
        ("part.n", "value", "bad.json:2:32"),
        ("widht", "unknown_argument", "bad.json:3:2"),
    ]
    assert run(capsys, "check", "cli_hub:models", "good.yaml", "--json")[:2] == (0, "[]\n")
    status, out, err = run(capsys, "check", "cli_hub:models", "absent.yaml", "good.yaml")
    assert (status, out) == (1, "good.yaml: ok, net@2\n")
    assert err == (
        "mlkit registry: absent.yaml: the file cannot be read: No such file or directory\n"
    )
    status, out, _ = run(capsys, "check", "cli_hub:models", "absent.yaml", "--json")
    assert (status, json.loads(out)[0]["kind"]) == (1, "file")
    status, _, err = run(capsys, "check", "cli_hub:models", "good.yaml", "--at", "a[")
    assert status == 1
    assert "expected a path" in err
    assert sys.modules["cli_hub"].calls == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cli_hub", "cli_hub has cli_hub:models, cli_hub:parts"),
        ("cli_hub:modles", "did you mean 'models'"),
        ("cli_hub:other", "cli_hub has cli_hub:models"),
        ("cli_hub:", "cli_hub has cli_hub:models"),
        ("cli_huub:models", "there is no module 'cli_huub' here"),
        ("no_pkg.sub:models", "there is no module 'no_pkg' here"),
        ("cli_broken:models", "importing cli_broken failed: RuntimeError: no device"),
        ("cli_needy:models", "importing cli_needy failed: ModuleNotFoundError: No module named 'not_there_either'"),
        ("cli_hub.models", "a variable of a module is written cli_hub:models"),
        ("cli_hub.py", "there is no module 'cli_hub.py' here"),
        ("../cli_hub:models", "for example mypkg.registry:models"),
        ("json:models", "json has no registry"),
        (":models", "for example mypkg.registry:models"),
    ],
)  # fmt: skip
def test_a_wrong_target_is_explained(hub, capsys, target, said):
    status, out, err = run(capsys, "list", target)
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_words_that_are_not_understood_are_a_2(hub, capsys):
    for words in ([], ["lits", "cli_hub:models"], ["show", "cli_hub:models"]):
        with pytest.raises(SystemExit) as left:
            main(["registry", *words])
        assert left.value.code == 2
