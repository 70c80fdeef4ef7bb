"""Equality with the official evaluators, on answers of theirs that are frozen in vectors.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlkit.flags import Flags

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())


@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_decisions_are_those_of_flagd(generation):
    for case in VECTORS[generation]:
        flags = Flags.from_dict(
            {"metadata": {"bucketing": generation}, "flags": {case["key"]: case["flag"]}}
        )
        details = flags.str(case["key"], default="DEFAULT").details(case["unit"], **case["context"])
        assert [details.value, details.variant, details.reason] == case["expected"], case


@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_assigning_many_is_deciding_each(generation):
    for case in VECTORS[generation]:
        flags = Flags.from_dict(
            {"metadata": {"bucketing": generation}, "flags": {case["key"]: case["flag"]}}
        )
        units = [case["unit"], *(f"u{i}" for i in range(30))]
        columns = {name: [value] * 31 for name, value in case["context"].items()}
        flag = flags.str(case["key"], default="DEFAULT")
        assignment = flag.assign(units, **columns)
        assert list(assignment) == [flag.details(unit, **case["context"]) for unit in units], case
        assert assignment[0].value == case["expected"][0]


def test_rules_are_those_of_json_logic():
    for case in VECTORS["logic"]:
        rule = {"if": [{"===": [case["rule"], case["result"]]}, "same", "different"]}
        flags = Flags.from_dict(
            {
                "flags": {
                    "f": {
                        "state": "ENABLED",
                        "variants": {"same": True, "different": False},
                        "targeting": rule,
                    }
                }
            }
        )
        assert all(each.severity == "warning" for each in flags.problems)
        details = flags.bool("f", default=False).details(**case["data"])
        assert details.variant == "same", case


@pytest.mark.parametrize(
    ("rule", "data", "holds"),
    [
        # Where evaluators differ: JsonLogic's own tests, then flagd-core for Python, then ECMAScript.
        ({"==": [{"var": "absent"}, 0]}, {}, True),
        ({"==": [{"var": "absent"}, False]}, {}, True),
        ({"==": [{"var": "absent"}, ""]}, {}, False),
        ({"==": [{"var": "absent"}, None]}, {}, True),
        ({"==": [{"var": "text"}, 0]}, {"text": ""}, False),
        ({"==": [{"cat": ["a", {"var": "absent"}]}, "anull"]}, {}, True),
        ({"!!": [{"var": "o"}]}, {"o": {}}, False),
        ({"==": [3, 3, 3]}, {}, True),
        ({"==": [3, 3, 2]}, {}, False),
        ({"!==": [1, 2, 2]}, {}, False),
        ({"<": [1, 2, 3, 3]}, {}, False),
        ({"==": [{"-": [10, 3, 2]}, 5]}, {}, True),
        ({"==": [{"-": []}, 0]}, {}, False),
        ({"==": [{"/": [8, 2, 2]}, 2]}, {}, True),
        ({"==": [{"/": 4}, 0.25]}, {}, True),
        ({"==": [{"%": [17, 10, 4]}, 3]}, {}, True),
        ({"==": [{"+": ["1", "", None, True]}, 2]}, {}, True),
        ({"==": [{"max": {"var": "scores"}}, 7]}, {"scores": [3, 7, 5]}, True),
        ({"==": [{"cat": {"merge": ["a", ["b"]]}}, "ab"]}, {}, True),
        ({"in": [1, [True]]}, {}, False),
        ({"===": [1, True]}, {}, False),
        ({"===": [1, 1.0]}, {}, True),
        ({"==": ["1", 1]}, {}, True),
        ({"<": [{"/": [1, 0]}, 1]}, {}, False),
        ({"<": [{"%": [1, 0]}, 1]}, {}, False),
        ({"==": [{"%": [-7, 3]}, -1]}, {}, True),
        ({"!!": [[]]}, {}, False),
        ({"!!": ["0"]}, {}, True),
        ({"!": [{"var": "n"}]}, {"n": float("nan")}, True),
        ({"==": [{"reduce": [[1, 2], {"+": [{"var": "current"}, {"var": "accumulator"}]}, {"var": "n"}]}, 13]}, {"n": 10}, True),
        ({"==": [{"cat": [1.0, "|", 0.1, "|", 1e21, "|", 1e-7, "|", True]}, "1|0.1|1e+21|1e-7|true"]}, {}, True),
        ({"==": [{"var": "$flagd.flagKey"}, "f"]}, {}, True),
        ({"==": [{"var": "list.length"}, 2]}, {"list": [5, 6]}, True),
    ],
)  # fmt: skip
def test_traps(rule, data, holds):
    flags = Flags.from_dict(
        {
            "flags": {
                "f": {
                    "state": "ENABLED",
                    "variants": {"on": True, "off": False},
                    "targeting": {"if": [rule, "on", "off"]},
                }
            }
        }
    )
    assert flags.bool("f", default=not holds)(**data) is holds
