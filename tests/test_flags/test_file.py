"""The file: what flagd's schema and testbed ask of it, and what is said of a bad one."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from itertools import pairwise

import pytest
from benchmarks.flags_differential import compare
from benchmarks.flags_hostile import KINDS
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import FlagFileError
from mlkit.flags import Flags
from mlkit.flags._body import Body, Reader
from mlkit.flags._check import RuleError, check_rule
from mlkit.flags._parts import split
from mlkit.testing import virtual_time
from mlkit.testing.strategies import json_values

FLAG = {"state": "ENABLED", "variants": {"a": "A", "b": "B"}, "defaultVariant": "a"}


def of_rule(rule, **more):
    return Flags.from_dict({"flags": {"f": {**FLAG, "targeting": rule}}, **more})


@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_random_decisions_are_those_of_flagd(generation):
    found = compare(generation, 2_000, seed=3)
    if isinstance(found, str):
        pytest.skip(found)
    assert found["first"] == []
    assert found["triples"] == 2_000


# Facts of https://github.com/open-feature/flagd-schemas, json/test: what is refused there and how we say so.
@pytest.mark.parametrize(
    ("rule", "pointer", "severity"),
    [
        ({"not-an-operator": [1, 2]}, "/not-an-operator", "error"),
        ({"fractional": ["text", ["a", 1], ["b", 1]]}, "/fractional/0", "warning"),
        ({"fractional": [["a", 25], ["b", "25"]]}, "/fractional/1/1", "warning"),
        ({"fractional": [["a", 25.5], ["b", 25]]}, "/fractional/0/1", "warning"),
        ({"fractional": [["a", 25], ["b", -25]]}, "/fractional/1/1", "warning"),
        ({"if": [{"ends_with": [{"var": "id"}, 0]}, "a", "b"]}, "/if/0/ends_with/1", "warning"),
        ({"if": [{"starts_with": [{"var": "id"}, 0]}, "a", "b"]}, "/if/0/starts_with/1", "warning"),
        ({"==": [{"var": "$flagd.other"}, 1]}, "/==/0/var", "warning"),
        ({"sem_ver": [{"var": "v"}, "*", "2.0.0"]}, "/sem_ver/1", "warning"),
        ({"sem_ver": [{"var": "v"}, "=", "2.0.0.0"]}, "/sem_ver/2", "warning"),
        ({"rollout": [1, 2, "a", "b", "c", "d"]}, "/rollout", "warning"),
        ({"rollout": [1, 2]}, "/rollout", "warning"),
        ({"rollout": ["2024-01-01", "2024-01-31", "a"]}, "/rollout/0", "warning"),
        ({"==": [1]}, "/==", "warning"),
        ({"fractional": [["a", 0], ["b", 0]]}, "/fractional", "warning"),
        ({"fractional": []}, "/fractional", "warning"),
        # What its validator in flagd-core for JavaScript 4.0 refuses, beside its examples.
        ({"if": [{}, "a", "b"]}, "/if/0", "warning"),
        ({"and": []}, "/and", "warning"),
        ({"or": {"var": "id"}}, "/or", "warning"),
        ({"max": {"var": "scores"}}, "/max", "warning"),
        ({"/": [1]}, "/~1", "warning"),
        ({"*": [1]}, "/*", "warning"),
        ({"?:": [True, "a", "b"]}, "/?:", "warning"),
        ({"log": ["a"]}, "/log", "warning"),
        ({"missing": "id"}, "/missing", "warning"),
        ({"missing": ["id", 1]}, "/missing/1", "warning"),
        ({"missing_some": [1]}, "/missing_some", "warning"),
        ({"missing_some": ["1", ["id"]]}, "/missing_some/0", "warning"),
        ({"missing_some": [1, "id"]}, "/missing_some/1", "warning"),
        ({"missing_some": [1, ["id", 2]]}, "/missing_some/1/1", "warning"),
    ],
)
def test_what_the_schema_refuses_is_reported(rule, pointer, severity):
    flags = of_rule(rule)
    first = flags.problems[0]
    assert (first.pointer, first.severity) == (f"/flags/f/targeting{pointer}", severity)
    assert (first.line, first.column > 1, first.flag) == (1, True, "f")
    in_force = flags.str("f", default="D").details("u").error != "PARSE_ERROR"
    assert in_force is (severity == "warning")


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"if": [True]},
        {"if": [False, "a", False, "b", True, "a"]},
        {"!": True},
        {"<": [1, {"var": "n"}, 3]},
        {"max": [1, 2, 3]},
        {"+": ["3.14"]},
        {"reduce": [{"var": "n"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]},
        {"substr": ["jsonlogic", 1, 3]},
        {"var": ["n", "a"]},
        {"missing": ["a", "b"]},
        {"fractional": [["a"]]},
        {"fractional": [["a", 1], [True, 1], [1, 1], [{"fractional": [["a", 1], ["b", 1]]}, 1]]},
        {"fractional": [["a", {"-": [{"var": "$flagd.timestamp"}, 1]}], ["b", 100]]},
        {"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "n"}]}, ["a", 1], ["b", 1]]},
        {"sem_ver": [{"var": "v"}, "~", "v1.2"]},
        {"starts_with": [{"cat": ["a", "b"]}, "a"]},
        {"rollout": [1704067200, 1706745600, "b"]},
        {"rollout": [{"var": "n"}, 1704067200, 1706745600, "a", {"fractional": [["a", 1], ["b", 1]]}]},
    ],
)  # fmt: skip
def test_what_the_schema_takes_is_no_problem(rule):
    assert of_rule(rule).problems == ()


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"$evaluators": {"alone": {"nope": [1]}}}, "/$evaluators/alone/nope"),
        ({"$evaluators": {"alone": {"if": [{"$ref": "gone"}, 1, 2]}}}, "/$evaluators/alone/if/0/$ref"),
        ({"$evaluators": {"alone": True}}, "/$evaluators/alone"),
        ({"$evaluators": {"": {"var": "id"}}}, "/$evaluators/"),
        ({"metadata": {"flagSetId": 7}}, "/metadata/flagSetId"),
        ({"metadata": {"version": 2.0}}, "/metadata/version"),
        ({"flags": {"f": {**FLAG, "targeting": None}}}, "/flags/f/targeting"),
        ({"flags": {"f": {**FLAG, "metadata": None}}}, "/flags/f/metadata"),
        ({"flags": {"f": {"state": "ENABLED", "variants": {"a": [1]}}}}, "/flags/f/variants/a"),
        ({"flags": {"f": {**FLAG, "variants": {"true": 1}, "defaultVariant": True}}}, "/flags/f/defaultVariant"),
    ],
)  # fmt: skip
def test_what_the_schema_refuses_around_a_rule_is_reported(change, pointer):
    flags = Flags.from_dict({"flags": {"f": FLAG}, **change})
    assert [(each.pointer, each.severity) for each in flags.problems] == [(pointer, "warning")]
    assert flags.problems[0].line == 1


def test_metadata_may_have_any_key():
    flags = Flags.from_dict({"flags": {"f": {**FLAG, "metadata": {"": 1}}}, "metadata": {"": "x"}})
    assert flags.problems == ()
    assert dict(flags.str("f", default="D").details("u").metadata) == {"": 1}


def test_a_list_of_flags_is_for_import_alone():
    listed = [{"key": "f", **FLAG}, {"key": "g", **FLAG, "defaultVariant": "b"}]
    with pytest.raises(FlagFileError, match="object of flags"):
        Flags.from_dict({"flags": listed})
    schema = "https://flagd.dev/schema/v0/flags.json#flagdImport"
    flags = Flags.from_dict({"$schema": schema, "flags": listed})
    assert (flags.str("g", default="")(), flags.problems) == ("B", ())
    with pytest.raises(FlagFileError, match="/flags/1"):
        Flags.from_dict({"$schema": schema, "flags": [listed[0], FLAG]})


def test_the_rollout_operator_goes_from_one_to_the_other_in_time():
    flags = of_rule({"rollout": [1_700_000_000, 1_700_001_000, "a", "b"]})
    flag, units = flags.str("f", default="D"), [f"u{i}" for i in range(400)]
    seen = []
    with virtual_time() as clock:
        for _ in range(5):
            seen.append({unit for unit in units if flag(unit) == "B"})
            assert flag.assign(units).counts().get("b", 0) == len(seen[-1])
            clock.advance(250)
    shares = [len(taken) / len(units) for taken in seen]
    assert shares[0] == 0.0
    assert shares[4] == 1.0
    assert all(abs(share - index / 4) < 0.08 for index, share in enumerate(shares))
    assert all(before <= after for before, after in pairwise(seen))
    # As `fractional` places them: the same hash, another number of buckets.
    half = of_rule({"fractional": [["b", 500], ["a", 500]]}).str("f", default="D")
    assert seen[2] == {unit for unit in units if half(unit) == "B"}
    assert flag.details(None).reason == "DEFAULT"
    assert of_rule({"rollout": [5, 5, "b"]}).str("f", default="D").details("u").reason == "DEFAULT"


def test_problems_have_lines_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(
        """{
  "flags": {
    "good": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"},
    "é/~": {
      "state": "ENABLED",
      "variants": {"on": true, "on": false},
      "targeting": {"if": [{"iff": []}, "on"]}
    },
    "late": {"state": "ON", "variants": {"x": 1}},
    "good": {"state": "ENABLED", "variants": {"on": false}, "defaultVariant": "on"}
  }
}""",
        encoding="utf-8",
    )
    flags = Flags.from_file(path)
    said = [(each.line, each.column, each.severity, each.pointer) for each in flags.problems]
    assert said == [
        (6, 32, "warning", "/flags/é~1~0/variants/on"),
        (7, 29, "error", "/flags/é~1~0/targeting/if/0/iff"),
        (9, 14, "error", "/flags/late/state"),
        (10, 5, "warning", "/flags/good"),
    ]
    assert str(flags.problems[2]).startswith("line 9, column 14: /flags/late/state: expected")
    assert flags.bool("good", default=True)() is False  # the last one, as with every parser of JSON
    assert flags.problems is not None
    assert flags.problems[3].flag == "good"


def test_evaluators_are_looked_at_too():
    flags = of_rule({"var": "x"}, **{"$evaluators": {"r": {"sem_ver": ["1.0.0", "?", "1.0.0"]}}})
    assert [each.pointer for each in flags.problems] == ["/$evaluators/r/sem_ver/1"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'\xef\xbb\xbf{"flags":{}}', "line 1, column 1: begins with a byte order mark"),
        (b'{\n "flags": {"f": "\xff"}}', "line 2, column 18: not UTF-8"),
        (b'{\n "flags": {"f": NaN}}', "line 2, column 17: not JSON"),
        (b'{"flags": {"f": Infinity}}', "line 1, column 17: not JSON"),
        (b'{"flags": {"f": "\\ud800"}}', "not JSON that can be read"),
        (b'{"flags": {"f": [', "line 1, column 18: not JSON"),
        (b'{"flags":' + b"[" * 100_000, "not JSON that can be read"),
        (b"[" * 100_000, "an object of flags by key is expected"),
        (b'{"flags":' + b'{"a":' * 20_000, "not JSON that can be read"),
        (b'{"flags": 3}', "an object of flags by key is expected"),
        (b"3", "an object of flags by key is expected"),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path, data, said):
    path = tmp_path / "flags.json"
    path.write_bytes(data)
    with pytest.raises(FlagFileError) as caught:
        Flags.from_file(path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "body",
    [
        b'{"state":"ENABLED","variants":{"a":1e999}}',
        b'{"state":"ENABLED","variants":{"a":' + b"9" * 5_000 + b"}}",
        b'{"state":"ENABLED","variants":{"a":1},"targeting":{"==":[1e999,1]}}',
        b'{"state":"ENABLED","variants":{"a":1},"targeting":{"==":[' + b"9" * 5_000 + b",1]}}",
        b'{"state":"ENABLED","variants":{"a":1},"targeting":{"if":' + b"[" * 200 + b"]" * 200 + b"}}",
        b'{"state":"ENABLED","variants":{"a":"' + b"x" * 300_000 + b'"}}',
        b'{"state":"ENABLED","variants":{"a":1},"targeting":{"if":[1],"or":[1]}}',
        b'{"state":"ENABLED","variants":{"a":1,"b":"x"}}',
        b'{"state":"ENABLED","variants":{"a":9007199254740992}}',
        b'{"state":"ENABLED","variants":{"a":1},"metadata":{"bucketing":"v9"}}',
        b'{"state":"ENABLED","variants":{"a":1},"targeting":{"$ref":"gone"}}',
    ],
)  # fmt: skip
def test_a_hostile_flag_is_set_aside_and_costs_little(tmp_path, body):
    path = tmp_path / "flags.json"
    good = json.dumps(FLAG).encode()
    path.write_bytes(b'{"flags":{"good":' + good + b',"bad":' + body + b"}}")
    Flags.from_file(path)  # what is imported once
    tracemalloc.start()
    try:
        flags = Flags.from_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2**20
    assert [(each.flag, each.severity) for each in flags.problems] == [("bad", "error")]
    assert flags.str("good", default="")() == "A"
    assert flags.int("bad", default=7).details().error == "PARSE_ERROR"


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_costs_little_and_is_reported(tmp_path, kind):
    path = tmp_path / "flags.json"
    data = KINDS[kind]()
    path.write_bytes(data)
    own = len(data) if len(data) <= 6 * 2**20 else 0
    Flags.from_dict({"flags": {"bad": {"state": "ON"}}})  # what is imported once
    calls = [0]

    def count(frame, event, what):
        calls[0] += event in {"call", "c_call"}

    tracemalloc.start()
    sys.setprofile(count)
    try:
        flags = Flags.from_file(path)
        good = flags.bool("good", default=False).details().reason
    except FlagFileError as error:
        flags, good = None, "refused"
        assert len(str(error)) < 600
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert calls[0] < 200_000  # 0.04 s at most; counted, as a clock would count other processes too
    assert peak - own < 5 * 2**20
    if flags is not None:
        assert good == "STATIC"
        assert flags.problems or kind == "5.9 MiB of spaces"


def test_too_many_bad_flags_change_nothing(tmp_path):
    path = tmp_path / "flags.json"
    good = {"flags": {f"f{i}": FLAG for i in range(4_000)}}
    path.write_text(json.dumps(good))
    flags = Flags.from_file(path)
    before = flags.digest
    bad = {key: {**FLAG, "state": "ON"} for key in good["flags"]}
    path.write_text(json.dumps({"flags": bad}))
    with pytest.raises(
        FlagFileError, match="of its flags cannot be used; the first is /flags/f0/state"
    ):
        flags.reload()
    assert flags.digest == before
    # Fewer are set aside one by one: the first hundreds told with their places, and all of them keep what they were.
    path.write_text(json.dumps({"flags": {**good["flags"], **dict(list(bad.items())[:1_500])}}))
    assert flags.reload() is None
    assert flags.digest == before
    told = {each.flag for each in flags.problems}
    assert None in told
    assert {f"f{i}" for i in range(100)} < told
    # An unread one is like any bad flag for those who ask for it the first time.
    fresh = Flags.from_file(path)
    assert fresh.str("f1499", default="x").details().error == "PARSE_ERROR"
    assert fresh.str("f1500", default="x").details().value == "A"
    assert any(each.message.endswith("were not looked at for these") for each in fresh.problems)


operators = st.sampled_from(["if", "==", "var", "and", "fractional", "in", "iff", "$ref", "", 'a"b', "{", ":", "rollout"])  # fmt: skip
rules = st.recursive(
    json_values(max_leaves=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(operators, inner, max_size=2),
    max_leaves=15,
)


@given(rule=rules)
def test_what_is_found_good_at_a_glance_is_good(rule):
    flag = {**FLAG, "targeting": rule}
    try:
        text = split(json.dumps({"flags": {"f": flag}}, ensure_ascii=False).encode(), "x").flags[
            "f"
        ]
        body = Reader().read(bytes(text))
    except (RuleError, FlagFileError, UnicodeEncodeError):
        return
    assert type(body) is Body
    assert dict(body.variants) == FLAG["variants"]
    if body.plain and body.rule:
        assert check_rule(body.document["targeting"], {}, {}).nodes > 0


def test_equal_files_have_equal_digests_in_every_process(tmp_path):
    document = {
        "flags": {
            f"f{i}": {**FLAG, "targeting": {"if": [{"$ref": "r"}, "a", {"var": f"n{i}"}]}}
            for i in range(700)
        },
        "$evaluators": {"r": {"==": [{"var": "x"}, 1]}, "unused": {"var": "y"}},
        "metadata": {"owner": "é"},
    }
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(document, indent=3))
    code = f"from mlkit.flags import Flags; print(Flags.from_file({str(path)!r}).digest)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert said == {Flags.from_dict(document).digest}
    flags = Flags.from_dict(document)
    document["flags"]["f699"]["defaultVariant"] = "b"
    change = flags.replace(document)
    assert (change.changed, flags.digest == change.after) == (("f699",), True)
    assert Flags.from_dict(document).digest == flags.digest
    document["$evaluators"]["unused"] = {"var": "z"}
    assert flags.replace(document) is None
    document["$evaluators"]["r"] = {"==": [{"var": "x"}, 2]}
    assert len(flags.replace(document).changed) == 700
