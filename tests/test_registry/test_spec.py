"""Specs as values and as text: round trips, digests, and what text is refused."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, SpecError
from mlkit.registry import Spec
from mlkit.testing.strategies import json_values

awkward_text = st.sampled_from(
    ["no", "on", "1e-3", "0o17", "0x1F", "1_000", "12:30", "~", "null", "", " ", "<<", "=", "2026-01-02", ".inf", "-", "#",
     "a: b", "'", '"', "\n", "\t", "\x85", "\u2028", "\ufeff", "é", "🙂", "!!python/object:os.system", "&a", "*a", "true"]
)  # fmt: skip
plain = st.recursive(
    json_values(max_leaves=8) | awkward_text | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward_text, inner, max_size=3),
    max_leaves=6,
)
specs = st.builds(
    lambda name, rest: Spec({**rest, "type": name}),
    st.from_regex(r"[a-z]{1,5}(@[1-9])?", fullmatch=True),
    st.dictionaries(st.text(max_size=5) | awkward_text, plain, max_size=4),
)


@given(specs)
def test_round_trips(spec):
    for form in ("yaml", "json"):
        again = Spec.load(spec.dump(form) if "\n" in spec.dump(form) else spec.dump(form) + "\n")
        assert again == spec
        assert hash(again) == hash(spec)
        assert again.digest == spec.digest
        assert again.dump(form) == spec.dump(form)
    assert Spec(spec.to_dict()) == pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


@given(specs)
def test_yaml_of_ours_reads_the_same_by_the_rules_of_yaml_1_1(spec):
    import yaml

    same = Spec(yaml.safe_load(spec.dump()))
    assert same == spec


@given(specs, st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_keys(spec, random):
    def shuffled(value):
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert Spec(shuffled(spec.to_dict())).digest == spec.digest


def test_the_digest_does_not_depend_on_the_process():
    code = "from mlkit.registry import Spec; print(Spec({'type': 'a', 'x': {'b': 1, 'a': [1.5, None, 'é']}}).digest)"
    here = Spec({"x": {"a": [1.5, None, "é"], "b": 1}, "type": "a"}).digest
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == here
    assert here.startswith("sha256:")


def test_equal_means_the_same_data():
    assert Spec({"type": "a", "n": 1}) != Spec({"type": "a", "n": 1.0})
    assert Spec({"type": "a", "n": 1}) != Spec({"type": "a", "n": True})
    assert Spec({"type": "a", "n": (1, 2)}) == Spec({"type": "a", "n": [1, 2]})
    assert Spec({"type": "a"}) != {"type": "a"}
    assert len({Spec({"type": "a"}), Spec({"type": "a"})}) == 1
    assert Spec({"type": "a", "inner": Spec({"type": "b"})}).to_dict()["inner"] == {"type": "b"}


def test_a_spec_cannot_be_changed():
    data = {"type": "a", "x": [1]}
    spec = Spec(data)
    data["x"].append(2)
    spec.to_dict()["x"].append(3)
    assert spec.to_dict() == {"type": "a", "x": [1]}
    with pytest.raises(AttributeError, match="immutable"):
        spec.digest = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del spec._plain_data  # type: ignore[attr-defined]


def test_numbers_and_words_are_read_as_json_would_say_them():
    text = """
    type: a
    rate: 1e-3
    rates: [1E5, .5, 1., -2.5e+3, 0x1F, 0o17, 010]
    words: [no, yes, on, off, y, 12:30, 1_000, 2026-01-02, "64", 'true']
    truth: [true, False, TRUE]
    nothing: [~, null, ]
    empty:
    limits: [.inf, -.INF]
    base: &base {x: 1}
    merged: {<<: *base, y: 2}
    """
    data = Spec.load(text).to_dict()
    assert data["rate"] == 0.001
    assert data["rates"] == [1e5, 0.5, 1.0, -2500.0, 31, 15, 10]
    assert data["words"] == [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "12:30",
        "1_000",
        "2026-01-02",
        "64",
        "true",
    ]
    assert data["truth"] == [True, False, True]
    assert data["nothing"] == [None, None]
    assert data["empty"] is None
    assert data["limits"] == [math.inf, -math.inf]
    assert data["merged"] == {"x": 1, "y": 2}


def test_load_takes_paths_and_text(tmp_path):
    for name, text in {
        "a.yaml": "type: mlp\nn: 1\n",
        "a.json": '\ufeff{"type": "mlp", "n": 1}',
    }.items():
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        assert Spec.load(file) == Spec.load(str(file)) == Spec({"type": "mlp", "n": 1})
        assert Spec.load(file).source == str(file)
    assert Spec.load("type: mlp").source == "<text>"
    assert Spec({"type": "mlp"}).source is None
    assert Spec.load('{"a": {"b": {"type": "x"}}}', at="a.b").type == "x"
    assert Spec.load("a:\n- type: x\n- {b: {type: y}}\n", at="a[1].b").type == "y"
    for wrong in (tmp_path / "none.yaml", str(tmp_path), "none.yaml", 3, None, "a\0b"):
        with pytest.raises(ConfigurationError, match=r"Spec\.load"):
            Spec.load(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError) as empty:
        Spec.load("")
    assert str(empty.value) == (
        "Spec.load(path_or_text): expected a file that exists, or YAML or JSON text, got ''; it is empty"
    )
    with pytest.raises(ConfigurationError):
        Spec.load("type: a", at=3)  # type: ignore[arg-type]
    (tmp_path / "latin.yaml").write_bytes("type: é".encode("latin-1"))
    with pytest.raises(SpecError, match="UTF-8"):
        Spec.load(tmp_path / "latin.yaml")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
@pytest.mark.parametrize("depth", [3_000, 300_000])
def test_a_deep_text_does_not_end_the_process(opening, depth):
    with pytest.raises(SpecError, match="nested too deeply"):
        Spec.load("type: a\nx:\n " + opening * depth)


YAML_TEXT = """\
type: mlp
version: 1e-3
switch: no
day: 2026-01-02
octal: [0o17, 0x1F, -.inf, 1_000]
same: &s {a: 1, "b": ~}
again: {<<: *s, c: 2}
text: |
  kept
   as it is
folded: >-
  a
  b
"é": 'it''s'
"""


def test_a_build_of_yaml_without_libyaml_reads_the_same(monkeypatch):
    import yaml

    from mlkit.registry import _text

    bad = {"type: a\nx: [1, 2\n": "3:1", "type: a\nx: *gone\n": "2:4", "a: 1\na: 2": "2:1"}
    seen = []
    for has in (yaml.__with_libyaml__, False):
        monkeypatch.setattr(yaml, "__with_libyaml__", has)
        _text._loader.cache_clear()
        seen.append(Spec.load(YAML_TEXT).to_dict())
        for text, place in bad.items():
            with pytest.raises(SpecError) as caught:
                Spec.load(text)
            assert caught.value.problems[0].source == f"<text>:{place}"
    _text._loader.cache_clear()
    assert seen[0] == seen[1]
    assert seen[0]["octal"] == [15, 31, float("-inf"), "1_000"]
    assert (seen[0]["switch"], seen[0]["version"], seen[0]["folded"]) == ("no", 0.001, "a b")


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("type: a\nn: 1\nn: 2\n", "<text>:3:1", "'n' is there twice"),
        ('{"type": "a", "type": "b"}', "<text>:1:15", "there twice"),
        ("type: a\nx: [1, 2\n", "<text>:3:1", "expected"),
        ("type: a\n  b: 1\n", "<text>:2:4", "mapping values"),
        ("- a\n- b\n", "<text>:1:1", "expected a mapping"),
        ("a:\n  type: b\n", "<text>:1:1", "at='a'"),
        ("type: a\nx: !!bool perhaps\n", "<text>:2:4", "true or false"),
        ("type: a\nx: !!int many\n", "<text>:2:4", "many"),
        ("type: a\nx: [1, !!timestamp never]\n", "<text>:2:8", "timestamp"),
        ("type: a\nx: !!binary aGk=\n", "<text>:2:4", "binary"),
        ("type: 3\n", "<text>:1:7", "expected a name"),
        ("type: a@b\n", "<text>:1:7", "name@version"),
        ("type: a\n3: x\n", "<text>:1:1", "expected text as a key"),
        ("type: a\nx: {3: 4}\n", "<text>:2:4", "expected text as a key, got 3"),
        ("type: a\n? [1, 2]\n: 3\n", "<text>:2:3", "expected text as a key"),
        ("type: a\nx: !!python/object/apply:os.system [id]\n", "<text>:2:4", "could not determine a constructor"),
        ("type: a\nx: !custom 3\n", "<text>:2:4", "could not determine a constructor"),
        ("type: a\nx: *nowhere\n", "<text>:2:4", "undefined alias"),
        ("type: a\n---\ntype: b\n", "<text>:2:1", "expected a single document"),
        ("type: a\nx: @b\n", "<text>:2:4", "cannot start any token"),
        ("type: a\nx: " + "9" * 5000 + "\n", "<text>:2:4", "4300"),
        ("type: a\nx: " + "9" * 2000 + "\n", "<text>:2:4", "4096 bits"),
        ("type: a\nx: " + "[" * 150 + "]" * 150, "<text>:2", "100 levels"),
        ("type: a\nx: " + "[" * 600 + "]" * 600, "<text>:1:1", "nested too deeply"),
        ('{"x": ' + "[" * 600, "<text>:1", ""),
        ("\n", "<text>", "expected a mapping"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_its_place(text, place, says):
    with pytest.raises(SpecError) as caught:
        Spec.load(text)
    assert str(caught.value).startswith(place)
    assert says in str(caught.value)
    assert len(str(caught.value)) <= 600


def test_a_bomb_of_aliases_is_refused():
    lines = ["type: a", "l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(SpecError, match="at most 100,000 values"):
        Spec.load("\n".join(lines))


def test_a_json_file_is_json_and_nothing_else(tmp_path):
    file = tmp_path / "spec.json"
    file.write_text("{type: a}")
    with pytest.raises(SpecError, match=r"spec\.json:1:2"):
        Spec.load(file)
    assert Spec.load("{type: a}").type == "a"  # text may be YAML


@pytest.mark.parametrize(
    "data",
    [{}, {"type": None}, {"type": ""}, {"type": "a@0"}, {"type": "a", "x": object()}, {"type": "a", 1: 2},
     {"type": "a", "x": {None: 1}}, {"type": "a", "x": {1, 2}}, {"type": "a", "x": b"x"}, {"type": "a", "x": 1j}],
)  # fmt: skip
def test_bad_data_is_refused(data):
    with pytest.raises(SpecError):
        Spec(data)


def test_every_problem_of_the_data_is_reported():
    with pytest.raises(SpecError) as caught:
        Spec({"type": "a", "x": object(), "y": [1, {2: 3}, {"z": b""}]})
    assert [problem.path for problem in caught.value.problems] == ["x", "y[1]", "y[2].z"]


def test_wrong_arguments():
    for wrong in ("type: a", None, 3, ["a"]):
        with pytest.raises(ConfigurationError):
            Spec(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'yaml' or 'json'"):
        Spec({"type": "a"}).dump("ymal")
    with pytest.raises(SpecError, match="did you mean 'model'"):
        Spec.load("model: {type: a}", at="modle")
    with pytest.raises(SpecError, match=r"<text>:2:1 a: there is no item 1 in "):
        Spec.load("a:\n- type: x\n", at="a[1]")
    for no_path in ("a[", "a..b", ".a", "[x]"):
        with pytest.raises(ConfigurationError, match="expected a path"):
            Spec.load("a:\n- type: x\n", at=no_path)
    loop: dict = {"type": "a"}
    loop["loop"] = loop
    with pytest.raises(SpecError, match="levels"):
        Spec(loop)


def test_json_dump_is_json():
    assert json.loads(Spec({"type": "a", "x": [1, None]}).dump("json")) == {
        "type": "a",
        "x": [1, None],
    }


@pytest.mark.parametrize("wrong", ["models", None])
def test_only_a_registry_can_resolve(wrong):
    with pytest.raises(ConfigurationError, match=r"Spec\.resolved\(registry\)"):
        Spec({"type": "a"}).resolved(wrong)


def test_values_are_changed_by_the_path_that_problems_name():
    spec = Spec(
        {"type": "net", "encoder": {"type": "conv", "widths": [1, 2]}, "parts": [{"type": "a"}]}
    )
    changed = spec.with_(
        {"encoder.widths[1]": 5, "parts[0].n": 3, "encoder.type": "conv@2"}, depth=4
    )
    assert changed.to_dict() == {
        "type": "net",
        "encoder": {"type": "conv@2", "widths": [1, 5]},
        "parts": [{"type": "a", "n": 3}],
        "depth": 4,
    }
    assert spec.to_dict()["encoder"]["widths"] == [1, 2]
    assert spec.with_() == spec.with_({}) == spec
    assert spec.with_({"encoder": Spec({"type": "x"})}).to_dict()["encoder"] == {"type": "x"}
    assert Spec.load("type: a").with_(n=1).source is None


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"encodr.width": 3}, "encodr", "there is no 'encodr'; did you mean 'encoder'?"),
        ({"encoder.sub.width": 3}, "encoder.sub", "there is no 'sub'"),
        ({"bare.width": 3}, "bare", "expected a mapping to change 'width' in, got 'conv'; give {'type': 'conv', ...} first"),
        ({"many[2]": 3}, "many[2]", "there is no item 2, but 2 items"),
        ({"n[0]": 3}, "n[0]", "there is no item 0, but 1"),
        ({"n": object()}, "n", "expected plain data"),
        ({"type": 3}, "type", "expected a name"),
    ],
)  # fmt: skip
def test_changes_that_lead_nowhere_are_refused(changes, path, says):
    spec = Spec(
        {"type": "net", "encoder": {"type": "conv"}, "bare": "conv", "many": [1, 2], "n": 1}
    )
    with pytest.raises(SpecError) as caught:
        spec.with_(changes)
    (found,) = caught.value.problems
    assert found.path == path
    assert says in found.message


def test_every_change_that_leads_nowhere_is_reported():
    with pytest.raises(SpecError) as caught:
        Spec({"type": "net"}).with_({"a.b": 1, "c.d": 2})
    assert [problem.path for problem in caught.value.problems] == ["a", "c"]


@pytest.mark.parametrize(
    "wrong", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[", "a[0", "a]b", 3, None]
)
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="a path like"):
        Spec({"type": "net"}).with_({wrong: 1})
    with pytest.raises(ConfigurationError, match="a mapping of dotted paths"):
        Spec({"type": "net"}).with_(wrong)


def test_a_json_file_is_refused_with_its_line(tmp_path):
    file = tmp_path / "spec.json"
    file.write_text('{\n  "type": "a",\n  "part": {"n": 1,\n    "n": 2}\n}')
    with pytest.raises(SpecError) as caught:
        Spec.load(file)
    assert str(caught.value) == f"{file}:4:5: the key 'n' is there twice"
    file.write_text('{"type": "a", "n": [1, }')
    with pytest.raises(SpecError, match=r"spec\.json:1:24"):
        Spec.load(file)
    file.write_text('{"type": "a",\r\n\t"b": {"c": 1, "b": {}},\r\n "b": 3}')
    with pytest.raises(SpecError, match=r"spec\.json:3:2: the key 'b' is there twice"):
        Spec.load(file)


def test_a_document_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text("type: a\nx: [" + "1, " * 4_000_000 + "]\n")
    with pytest.raises(SpecError, match="at most"):
        Spec.load(file)


def test_a_bomb_of_merged_mappings_is_refused():
    lines = ["type: a", "l0: &l0 {" + ", ".join(f"k{n}: x" for n in range(9)) + "}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    with pytest.raises(SpecError, match="at most 100,000 keys"):
        Spec.load("\n".join(lines))
