"""What JsonLogic's own tests expect of each operator.

Facts of https://jsonlogic.com/tests.json (read 2026-11), written anew by operator; flagd's dialect is this classic one.
"""

from __future__ import annotations

import pytest

from mlkit.flags import Flags

SIMPSONS = ["Bart", "Homer", "Lisa", "Marge", "Maggie"]
# By operator: its arguments, and what it gives.
PLAIN = {
    "==": [([1, 1], True), ([1, "1"], True), ([1, 2], False)],
    "===": [([1, 1], True), ([1, "1"], False), ([1, 2], False), ([0, "0"], False), ([0, {"+": "0"}], True)],
    "!=": [([1, 2], True), ([1, 1], False), ([1, "1"], False)],
    "!==": [([1, 2], True), ([1, 1], False), ([1, "1"], True)],
    ">": [([2, 1], True), ([1, 1], False), ([1, 2], False), (["2", 1], True)],
    ">=": [([2, 1], True), ([1, 1], True), ([1, 2], False), (["2", 1], True)],
    "<": [([2, 1], False), ([1, 1], False), ([1, 2], True), (["1", 2], True), ([1, 2, 3], True), ([1, 1, 3], False), ([1, 4, 3], False)],
    "<=": [([2, 1], False), ([1, 1], True), ([1, 2], True), (["1", 2], True), ([1, 2, 3], True), ([1, 4, 3], False)],
    "!": [([False], True), (False, True), ([True], False), (True, False), (0, True), (1, False), ([[]], True), ([0], True), ([""], True), (["0"], False)],
    "!!": [([[]], False), ([0], False), ([""], False), (["0"], True)],
    "or": [([True, True], True), ([False, True], True), ([True, False], True), ([False, False], False), ([False, False, True], True),
           ([False, False, False], False), ([False], False), ([True], True), ([1, 3], 1), ([3, False], 3), ([False, 3], 3),
           ([[], True], True), ([0, True], True), (["", True], True), (["0", True], "0")],
    "and": [([True, True], True), ([False, True], False), ([True, False], False), ([False, False], False), ([True, True, True], True),
            ([True, True, False], False), ([False], False), ([True], True), ([1, 3], 3), ([3, False], False), ([False, 3], False),
            ([[], True], []), ([0, True], 0), (["", True], ""), (["0", True], True),
            ([{">": [3, 1]}, True], True), ([{">": [3, 1]}, False], False), ([{">": [3, 1]}, {"!": True}], False), ([{">": [3, 1]}, {"<": [1, 3]}], True)],
    "?:": [([True, 1, 2], 1), ([False, 1, 2], 2), ([{">": [3, 1]}, "visible", "hidden"], "visible")],
    "in": [(["Bart", SIMPSONS], True), (["Milhouse", SIMPSONS], False), (["Spring", "Springfield"], True), (["i", "team"], False)],
    "cat": [("ice", "ice"), (["ice"], "ice"), (["ice", "cream"], "icecream"), ([1, 2], "12"), (["Robocop", 2], "Robocop2"), (["a ", "b", "c"], "a bc")],
    "%": [([1, 2], 1), ([2, 2], 0), ([3, 2], 1)],
    "max": [([1, 2, 3], 3), ([1, 3, 3], 3), ([3, 2, 1], 3), ([1], 1)],
    "min": [([1, 2, 3], 1), ([1, 1, 3], 1), ([3, 2, 1], 1), ([1], 1)],
    "+": [([1, 2], 3), ([2, 2, 2], 6), ([1], 1), (["1", 1], 2), ("0", 0), ("1", 1)],
    "*": [([3, 2], 6), ([2, 2, 2], 8), ([1], 1), (["1", 1], 1)],
    "-": [([2, 3], -1), ([3, 2], 1), ([3], -3), (["1", 1], 0)],
    "/": [([4, 2], 2), ([2, 4], 0.5), (["1", 1], 1)],
    "substr": [(["jsonlogic", 4], "logic"), (["jsonlogic", -5], "logic"), (["jsonlogic", 0, 1], "j"), (["jsonlogic", -1, 1], "c"),
               (["jsonlogic", 4, 5], "logic"), (["jsonlogic", -5, 5], "logic"), (["jsonlogic", -5, -2], "log"), (["jsonlogic", 1, -5], "son")],
    "merge": [([], []), ([[1]], [1]), ([[1], []], [1]), ([[1], [2]], [1, 2]), ([[1], [2], [3]], [1, 2, 3]), ([[1, 2], [3]], [1, 2, 3]),
              ([[1], [2, 3]], [1, 2, 3]), (1, [1]), ([1, 2], [1, 2]), ([1, [2]], [1, 2])],
    "if": [([], None), ([True], True), ([False], False), (["apple"], "apple"), ([True, "apple"], "apple"), ([False, "apple"], None),
           ([True, "a", "b"], "a"), ([False, "a", "b"], "b"), ([[], "a", "b"], "b"), ([[1], "a", "b"], "a"), ([[1, 2, 3, 4], "a", "b"], "a"),
           (["", "a", "b"], "b"), (["zucchini", "a", "b"], "a"), (["0", "a", "b"], "a"), ([{"+": "0"}, "a", "b"], "b"), ([{"+": "1"}, "a", "b"], "a"),
           ([0, "a", "b"], "b"), ([1, "a", "b"], "a"), ([3.1416, "a", "b"], "a"), ([-1, "a", "b"], "a"),
           ([{">": [2, 1]}, "a", "b"], "a"), ([{">": [1, 2]}, "a", "b"], "b"),
           ([True, {"cat": ["ap", "ple"]}, {"cat": ["ba", "na", "na"]}], "apple"), ([False, {"cat": ["ap", "ple"]}, {"cat": ["ba", "na", "na"]}], "banana"),
           ([True, "a", True, "b"], "a"), ([True, "a", False, "b"], "a"), ([False, "a", True, "b"], "b"), ([False, "a", False, "b"], None),
           *[([one, "a", two, "b", "c"], "a" if one else "b" if two else "c") for one in (True, False) for two in (True, False)],
           ([False, "a", False, "b", False, "c"], None),
           *[([one, "a", two, "b", three, "c", "d"], "a" if one else "b" if two else "c" if three else "d")
             for one in (True, False) for two in (True, False) for three in (True, False)]],
}  # fmt: skip
PIE = {"temp": 100, "pie": {"filling": "apple", "eta": "60s"}}
VIN = {"merge": ["vin", {"if": [{"var": "financing"}, ["apr"], []]}]}
NUMBERS = {"var": "integers"}
THREE, FOUR = {"integers": [1, 2, 3]}, {"integers": [1, 2, 3, 4]}
ITEMS = {"items": [{"qty": 1, "sku": "apple"}, {"qty": 2, "sku": "banana"}]}
DESSERTS = {"desserts": [{"qty": 1}, {"qty": 2}, {"qty": 3}]}
BOTH = {"+": [{"var": "current"}, {"var": "accumulator"}]}
TIMES = {"*": [{"var": "current"}, {"var": "accumulator"}]}
WITH_DATA = [
    ({"var": ["a"]}, {"a": 1}, 1), ({"var": ["b"]}, {"a": 1}, None), ({"var": "a"}, {}, None), ({"var": ["a", 1]}, {}, 1),
    ({"var": ["b", 2]}, {"a": 1}, 2), ({"var": "a.b"}, {"a": {"b": "c"}}, "c"), ({"var": "a.q"}, {"a": {"b": "c"}}, None),
    ({"var": ["a.q", 9]}, {"a": {"b": "c"}}, 9), ({"var": "a.b.c"}, {}, None), ({"var": "a.b.c"}, {"a": None}, None),
    ({"var": "a.b.c"}, {"a": {"b": None}}, None),
    ({"map": [[["apple", "banana"]], {"var": 1}]}, {}, ["banana"]), ({"map": [[["apple", "banana"]], {"var": "1"}]}, {}, ["banana"]),
    ({"map": [[["apple", ["banana", "beer"]]], {"var": "1.1"}]}, {}, ["beer"]),
    ({"map": [[1], {"var": ""}]}, {}, [1]), ({"map": [[1], {"var": None}]}, {}, [1]), ({"map": [[1], {"var": []}]}, {}, [1]),
    ({"and": [{"<": [{"var": "temp"}, 110]}, {"==": [{"var": "pie.filling"}, "apple"]}]}, PIE, True),
    ({"var": [{"?:": [{"<": [{"var": "temp"}, 110]}, "pie.filling", "pie.eta"]}]}, PIE, "apple"),
    ({"in": [{"var": "filling"}, ["apple", "cherry"]]}, {"filling": "apple"}, True),
    ({"merge": [[1, {"var": "x"}, 3]]}, {"x": 2}, [1, 2, 3]), ({"if": [{"var": "x"}, [{"var": "y"}], 99]}, {"x": True, "y": 42}, [42]),
    ({"missing": []}, {}, []), ({"missing": ["a"]}, {}, ["a"]), ({"missing": "a"}, {}, ["a"]), ({"missing": "a"}, {"a": "x"}, []),
    ({"missing": ["a", "b"]}, {"a": "x"}, ["b"]), ({"missing": ["a", "b"]}, {"b": "x"}, ["a"]), ({"missing": ["a", "b"]}, {"a": 1, "b": 2}, []),
    ({"missing": ["a", "b"]}, {}, ["a", "b"]), ({"missing": ["a.b"]}, {}, ["a.b"]), ({"missing": ["a.b"]}, {"a": "x"}, ["a.b"]),
    ({"missing": ["a.b"]}, {"a": {"c": 1}}, ["a.b"]), ({"missing": ["a.b"]}, {"a": {"b": 1}}, []), ({"missing": ["a.b", "a.c"]}, {"a": {"b": 1}}, ["a.c"]),
    ({"missing_some": [1, ["a", "b"]]}, {"a": 1}, []), ({"missing_some": [1, ["a", "b"]]}, {"b": 1}, []), ({"missing_some": [1, ["a", "b"]]}, {"c": 1}, ["a", "b"]),
    ({"missing_some": [2, ["a", "b", "c"]]}, {"a": 1, "c": 1}, []), ({"missing_some": [2, ["a", "b", "c"]]}, {"a": 1, "d": 1}, ["b", "c"]),
    ({"missing_some": [2, ["a", "b", "c"]]}, {"d": 1, "e": 1}, ["a", "b", "c"]),
    ({"if": [{"missing": "a"}, "missed", "found"]}, {"a": 1}, "found"), ({"if": [{"missing": "a"}, "missed", "found"]}, {"b": 1}, "missed"),
    ({"missing": VIN}, {"financing": True}, ["vin", "apr"]), ({"missing": VIN}, {"financing": False}, ["vin"]),
    ({"filter": [NUMBERS, True]}, THREE, [1, 2, 3]), ({"filter": [NUMBERS, False]}, THREE, []), ({"filter": [NUMBERS, {">=": [{"var": ""}, 2]}]}, THREE, [2, 3]),
    ({"filter": [NUMBERS, {"%": [{"var": ""}, 2]}]}, THREE, [1, 3]), ({"filter": [NUMBERS, True]}, {"integers": 123}, []),
    ({"map": [NUMBERS, {"*": [{"var": ""}, 2]}]}, THREE, [2, 4, 6]), ({"map": [NUMBERS, {"*": [{"var": ""}, 2]}]}, {}, []),
    ({"map": [{"var": "desserts"}, {"var": "qty"}]}, DESSERTS, [1, 2, 3]),
    ({"reduce": [NUMBERS, BOTH, 0]}, FOUR, 10), ({"reduce": [NUMBERS, BOTH, {"var": "start"}]}, {**FOUR, "start": 59}, 69), ({"reduce": [NUMBERS, BOTH, 0]}, {}, 0),
    ({"reduce": [NUMBERS, TIMES, 1]}, FOUR, 24), ({"reduce": [NUMBERS, TIMES, 0]}, FOUR, 0),
    ({"reduce": [{"var": "desserts"}, {"+": [{"var": "accumulator"}, {"var": "current.qty"}]}, 0]}, DESSERTS, 6),
    *[({name: [NUMBERS, {test: [{"var": ""}, 1]}]}, THREE, held) for name, expected in
      {"all": (True, False, False), "none": (False, False, True), "some": (True, True, False)}.items()
      for test, held in zip((">=", "==", "<"), expected, strict=True)],
    *[({name: [{"var": "items"}, {test: [{"var": "qty"}, 1]}]}, ITEMS, held) for name, expected in
      {"all": (True, False, False), "none": (False, False, True), "some": (True, True, False)}.items()
      for test, held in zip((">=", ">", "<"), expected, strict=True)],
    *[({name: [NUMBERS, {"<": [{"var": ""}, 1]}]}, {"integers": []}, held) for name, held in (("all", False), ("none", True), ("some", False))],
    ({"log": "apple"}, {}, "apple"),
]  # fmt: skip


# What its tests do not say, and json-logic-js and flagd-core for Python both do: a list without items is 0 beside a number.
EMPTY = {"var": "tags"}
WITH_DATA += [
    ({name: [EMPTY, other]}, {"tags": tags}, held)
    for name, other, tags, held in [
        ("==", 0, [], True), ("==", False, [], True), ("!=", 0, [], False), ("==", 0, [None], True), ("==", 0, [""], True),
        ("==", 1, [], False), ("==", "", [], True), ("<", 1, [], True), (">=", 0, [], True), ("<=", 0, [[]], True),
        ("<", 1, [0], True), ("<", 1, ["a"], False), ("max", -1, [], 0), ("min", 1, [], 0),
    ]
]  # fmt: skip


def holds(rule, data, expected):
    """Return whether a rule gives a value, as far as another rule can tell."""
    if type(expected) is list:  # in one text, as lists are equal to nothing in JsonLogic
        rule, expected = {"cat": {"merge": [rule, "."]}}, "".join(map(str, expected)) + "."
    targeting = {"if": [{"===": [rule, expected]}, "yes", "no"]}
    variants = {"yes": True, "no": False}
    flags = Flags.from_dict(
        {"flags": {"f": {"state": "ENABLED", "variants": variants, "targeting": targeting}}}
    )
    assert flags.problems == () or all(each.severity == "warning" for each in flags.problems)
    return flags.bool("f", default=False)(**data)


@pytest.mark.parametrize("name", PLAIN)
def test_operators(name):
    for given, expected in PLAIN[name]:
        assert holds({name: given}, {}, expected), given


@pytest.mark.parametrize(("rule", "data", "expected"), WITH_DATA, ids=range(len(WITH_DATA)))
def test_rules_that_read_data(rule, data, expected):
    assert holds(rule, data, expected)


@pytest.mark.parametrize("value", [True, False, 17, 3.14, "apple", None, ["a", "b"]])
def test_what_is_no_rule_is_itself(value):
    assert holds({"if": [True, value]}, {}, value)


# Operators of other engines. flagd-core 2.0 takes none of them either: it has a parse error at each evaluation.
@pytest.mark.parametrize(
    "name", ["val", "try", "throw", "preserve", "exists", "??", "length", "xor", "method", "fubar"]
)
def test_what_is_no_operator_is_refused_with_its_place(name):
    rule = {"if": [{name: ["x"]}, "a", "b"]}
    flags = Flags.from_dict(
        {"flags": {"f": {"state": "ENABLED", "variants": {"a": 1, "b": 2}, "targeting": rule}}}
    )
    assert [each.pointer for each in flags.problems] == [f"/flags/f/targeting/if/0/{name}"]
    assert flags.int("f", default=3).details().error == "PARSE_ERROR"
