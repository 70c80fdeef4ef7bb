"""What flagd's own test bed expects of an evaluator.

Facts of https://github.com/open-feature/flagd-testbed (evaluator/gherkin, flags; read 2026-11, Apache-2.0), written anew as
tables: which flag gives which value for which context. Its generations `@fractional-v2` and `@fractional-v3` are ours.
"""

from __future__ import annotations

import pytest

from mlkit.flags import Flags


def texts(*names, **more):
    return {name: name for name in names} | more


def flag(variants, default=None, rule=None, **more):
    made = {"state": "ENABLED", "variants": variants, **more}
    if default is not None:
        made["defaultVariant"] = default
    if rule is not None:
        made["targeting"] = rule
    return made


def chain(*pairs, otherwise):
    rule = otherwise
    for condition, outcome in reversed(pairs):
        rule = {"if": [condition, outcome, rule]}
    return rule


def sem_ver(operator, version):
    return {"sem_ver": [{"var": "version"}, operator, version]}


SUITS = ("clubs", "diamonds", "hearts", "spades")
QUARTERS = [[suit, 25] for suit in SUITS]
SEEDED = {"fractional": [{"cat": ["shared-seed", {"var": "user.name"}]}, *QUARTERS]}
KEY = {"var": "targetingKey"}
PREMIUM = {"==": [{"var": "tier"}, "premium"]}
BALLMER = {"$ref": "is_ballmer"}
ORANGE = {"==": ["jobs@orange.com", {"var": ["email"]}]}
ON_OFF = {"on": True, "off": False}
OBJECT = {"showImages": True, "title": "Check out these pics!", "imagesPerPage": 100}
TRUTHS = texts("true", "false", "fallback")
FLAGS = {  # the names of two of them are hashed
    "boolean": flag(ON_OFF, "on"),
    "string": flag({"greeting": "hi", "parting": "bye"}, "greeting"),
    "integer": flag({"one": 1, "ten": 10}, "ten"),
    "float": flag({"tenth": 0.1, "half": 0.5}, "half"),
    "object": flag({"empty": {}, "template": OBJECT}, "template"),
    "large": flag({"large": 2147483647}, "large"),
    "huge": flag({"huge": 9007199254740991}, "huge"),
    "whole-float": flag({"ten": 10.0}, "ten"),
    "zero-boolean": flag({"zero": False, "non-zero": True}, "zero", {"if": [BALLMER, "zero"]}),
    "zero-string": flag({"zero": "", "non-zero": "str"}, "zero", {"if": [BALLMER, "zero"]}),
    "zero-integer": flag({"zero": 0, "non-zero": 1}, "zero", {"if": [BALLMER, "zero"]}),
    "zero-float": flag({"zero": 0.0, "non-zero": 1.0}, "zero", {"if": [BALLMER, "zero"]}),
    "null-default": {**flag(ON_OFF), "defaultVariant": None},
    "no-default": flag({"small": 10, "big": 1000}),
    "null-outcome": flag({"normal": "CFO", "special": "CEO"}, None, {"if": [ORANGE, "special", None]}),
    "no-outcome": flag({"normal": "CFO", "special": "CEO"}, None, {"if": [ORANGE, "special"]}),
    "off-boolean": flag(ON_OFF, "on", state="DISABLED"),
    "off-object": flag({"a": {"x": 1}}, "a", state="DISABLED"),
    "ref": flag(texts("hi", "bye", "none"), "none", {"if": [BALLMER, "hi", "bye"]}),
    "ref-to-nothing": flag(texts("hit", "miss"), "miss", {"if": [{"$ref": "gone"}, "hit", "miss"]}),
    "key": flag(texts("miss", "hit"), "miss", {"if": [{"==": [KEY, "5c3d8535-f81a-4478-a6d3-afaa4d51199e"]}, "hit", None]}),
    "fractional-flag": flag(texts(*SUITS, "wild"), "wild", {"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]}, *QUARTERS]}),
    "fractional-flag-shorthand": flag(texts("heads", "tails", "draw"), "draw", {"fractional": [["heads"], ["tails", 1]]}),
    "seeded": flag(texts(*SUITS, "wild"), "wild", SEEDED),
    "edges": flag(texts("lower", "upper"), "lower", {"fractional": [KEY, ["lower", 50], ["upper", 50]]}),
    "inner-if": flag(texts("premium", "standard", "fallback"), "fallback", {"fractional": [KEY, [{"if": [PREMIUM, "premium", "standard"]}, 50], ["standard", 50]]}),
    "inner-var": flag(texts("red", "green", "blue", "fallback"), "fallback", {"fractional": [KEY, [{"var": "color"}, 50], ["blue", 50]]}),
    "inner-weight": flag(texts("red", "blue", "fallback"), "fallback", {"fractional": [KEY, ["red", {"if": [PREMIUM, 100, 0]}], ["blue", 10]]}),
    "as-condition": flag({"big": "hundreds", "small": "ones"}, "small", {"if": [{"fractional": [[False, 0], [True, 100]]}, "big", "small"]}),
    "as-no-condition": flag({"big": "hundreds", "small": "ones"}, "big", {"if": [{"fractional": [[False, 100], [True, 0]]}, "big", "small"]}),
    "single": flag(texts("single", "fallback"), "fallback", {"fractional": [["single", 1]]}),
    "no-key": flag(texts("one", "two", "fallback"), "fallback", {"fractional": [{"var": "gone"}, ["one", 50], ["two", 50]]}),
    "no-weight": flag(texts("one", "two", "fallback"), "fallback", {"fractional": [KEY, ["one", 0], ["two", 0]]}),
    "negative": flag(texts("one", "two", "fallback"), "fallback", {"fractional": [KEY, ["one", -50], ["two", 100]]}),
    "ends": flag(texts("prefix", "postfix", "none"), "none", chain(({"starts_with": [{"var": "id"}, "abc"]}, "prefix"), ({"ends_with": [{"var": "id"}, "xyz"]}, "postfix"), otherwise="none")),
    "starts-number": flag(TRUTHS, "fallback", {"starts_with": [{"var": "num"}, "abc"]}),
    "ends-number": flag(TRUTHS, "fallback", {"ends_with": [{"var": "num"}, "xyz"]}),
    "starts-alone": flag(TRUTHS, "fallback", {"starts_with": ["abc"]}),
    "ends-alone": flag(TRUTHS, "fallback", {"ends_with": ["xyz"]}),
    "compare": flag(texts("equal", "greater", "lesser", "none"), "none", chain((sem_ver("=", "2.0.0"), "equal"), (sem_ver(">", "2.0.0"), "greater"), (sem_ver("<", "2.0.0"), "lesser"), otherwise="none")),
    "range": flag(texts("minor", "major", "none"), "none", chain((sem_ver("~", "3.0.0"), "minor"), (sem_ver("^", "3.0.0"), "major"), otherwise="none")),
    "v-prefix": flag(texts("match", "no"), "no", {"if": [sem_ver("=", "v1.0.0"), "match", "no"]}),
    "partial": flag(texts("match", "no"), "no", {"if": [sem_ver("^", "1"), "match", "no"]}),
    "build": flag(texts("match", "no"), "no", {"if": [sem_ver("=", "1.0.0+build"), "match", "no"]}),
    "no-version": flag(TRUTHS, "fallback", sem_ver("=", "1.0.0")),
    "no-operator": flag(TRUTHS, "fallback", sem_ver("===", "1.0.0")),
    "two-arguments": flag(TRUTHS, "fallback", {"sem_ver": [{"var": "version"}, "="]}),
    "outcome-null": flag({"one": 1, "two": 2}, "two", {"if": [True, None, "one"]}),
    "unknown-operator": flag({"one": 1, "two": 2}, "two", {"invalid": ["this is not valid targeting"]}),
    "outcome-nowhere": flag({"one": 1, "two": 2}, "two", {"if": [True, "three", "one"]}),
    "outcome-boolean": flag({"false": 1, "true": 2}, "false", {"if": [True, True, False]}),
    "empty-rule": flag({"false": 1, "true": 2}, "false", {}),
    "time": flag({"past": -1, "future": 1, "never": 0}, "never", {"if": [{">": [{"var": "$flagd.timestamp"}, {"var": "time"}]}, "past", {"<": [{"var": "$flagd.timestamp"}, {"var": "time"}]}, "future", "never"]}),
    "any-input": flag(texts(*(f"bucket{n}" for n in range(1, 26)), "fallback"), "fallback", {"fractional": [{"var": "hashing_input"}, *([f"bucket{n}", 4] for n in range(1, 26))]}),
}  # fmt: skip
EVALUATORS = {"is_ballmer": {"==": ["ballmer@macrosoft.com", {"var": ["email"]}]}}


def ask(kind, key, default, unit=None, /, generation="v3", **context):
    document = {
        "$evaluators": EVALUATORS,
        "metadata": {"bucketing": generation},
        "flags": {"other": FLAGS["boolean"]},
    }
    flags = Flags.from_dict(document)
    handle = getattr(flags, kind)(
        key, default=default
    )  # before the flag is there: no type is checked then
    flags.replace({**document, "flags": {key: FLAGS[key]} if key in FLAGS else {}})
    return handle.details(unit, **context)


@pytest.mark.parametrize(
    ("kind", "key", "default", "value", "reason"),
    [
        ("bool", "boolean", False, True, "STATIC"),
        ("str", "string", "bye", "hi", "STATIC"),
        ("int", "integer", 1, 10, "STATIC"),
        ("float", "float", 0.1, 0.5, "STATIC"),
        ("json", "object", {}, OBJECT, "STATIC"),
        ("int", "large", 1, 2147483647, "STATIC"),
        ("int", "huge", 1, 9007199254740991, "STATIC"),
        ("float", "whole-float", 0.1, 10.0, "STATIC"),
        ("bool", "zero-boolean", True, False, "DEFAULT"),
        ("str", "zero-string", "hi", "", "DEFAULT"),
        ("int", "zero-integer", 1, 0, "DEFAULT"),
        ("float", "zero-float", 0.1, 0.0, "DEFAULT"),
        ("bool", "null-default", True, True, "DEFAULT"),
        ("bool", "null-default", False, False, "DEFAULT"),
        ("int", "no-default", 100, 100, "DEFAULT"),
        ("bool", "off-boolean", False, False, "DISABLED"),
        ("json", "off-object", {}, {}, "DISABLED"),
        ("int", "empty-rule", 3, 1, None),
        ("int", "outcome-null", 3, 2, "DEFAULT"),
        ("int", "outcome-boolean", 3, 2, "TARGETING_MATCH"),
    ],
)
def test_values(kind, key, default, value, reason):
    details = ask(kind, key, default)
    assert (details.value, details.error) == (value, None)
    assert type(details.value) is type(value) or kind == "json"
    assert reason in {None, details.reason}


@pytest.mark.parametrize(
    ("key", "value", "reason", "email"),
    [
        ("zero-boolean", False, "TARGETING_MATCH", "ballmer@macrosoft.com"),
        ("ref", "hi", "TARGETING_MATCH", "ballmer@macrosoft.com"),
        ("ref", "bye", "TARGETING_MATCH", "user@example.com"),
        ("null-outcome", "Inventor", "DEFAULT", "wozniak@orange.com"),
        ("null-outcome", "CEO", "TARGETING_MATCH", "jobs@orange.com"),
        ("no-outcome", "Inventor", "DEFAULT", "wozniak@orange.com"),
        ("no-outcome", "CEO", "TARGETING_MATCH", "jobs@orange.com"),
    ],
)
def test_rules_by_email(key, value, reason, email):
    kind, default = ("bool", True) if value is False else ("str", "Inventor")
    details = ask(kind, key, default, email=email)
    assert (details.value, details.reason) == (value, reason)


@pytest.mark.parametrize(
    ("kind", "key", "default", "error"),
    [
        ("str", "missing", "uh-oh", "FLAG_NOT_FOUND"),
        ("str", "boolean", "fallback", "TYPE_MISMATCH"),
        ("int", "boolean", 1, "TYPE_MISMATCH"),
        ("float", "boolean", 0.1, "TYPE_MISMATCH"),
        ("bool", "string", False, "TYPE_MISMATCH"),
        ("int", "string", 13, "TYPE_MISMATCH"),
        ("float", "string", 0.1, "TYPE_MISMATCH"),
        ("bool", "integer", False, "TYPE_MISMATCH"),
        ("str", "integer", "fallback", "TYPE_MISMATCH"),
        ("bool", "float", False, "TYPE_MISMATCH"),
        ("str", "float", "fallback", "TYPE_MISMATCH"),
        ("str", "ref-to-nothing", "fallback", "PARSE_ERROR"),
        ("int", "unknown-operator", 3, "PARSE_ERROR"),
        ("int", "outcome-nowhere", 3, "GENERAL"),
    ],
)
def test_errors_give_the_default_and_their_code(kind, key, default, error):
    details = ask(kind, key, default)
    assert (details.value, details.reason, details.error) == (default, "ERROR", error)


@pytest.mark.parametrize(
    ("key", "attribute", "rows"),
    [
        ("ends", "id", {"abcdef": "prefix", "uvwxyz": "postfix", "abcxyz": "prefix", "lmnopq": "none", "3": "none"}),
        ("compare", "version", {"2.0.0": "equal", "2.1.0": "greater", "1.9.0": "lesser", "2.0.0-alpha": "lesser", "2.0.0.0": "none"}),
        ("range", "version", {"3.0.1": "minor", "3.1.0": "major", "4.0.0": "none"}),
        ("v-prefix", "version", {"1.0.0": "match", "v1.0.0": "match", "V1.0.0": "match", "2.0.0": "no"}),
        ("partial", "version", {"1.5.0": "match", "1.0.0": "match", "1.0": "match", "1": "match", 1: "match", "2.0.0": "no"}),
        ("build", "version", {"1.0.0": "match", "1.0.0+other": "match", "2.0.0": "no"}),
        ("no-version", "version", {"not-a-version": "fallback"}),
        ("no-operator", "version", {"1.0.0": "fallback"}),
        ("two-arguments", "version", {"1.0.0": "fallback"}),
        ("starts-number", "num", {123: "fallback"}),
        ("ends-number", "num", {123: "fallback"}),
        ("starts-alone", "num", {123: "fallback"}),
        ("ends-alone", "num", {123: "fallback"}),
    ],
)  # fmt: skip
def test_operators_of_flagd(key, attribute, rows):
    for value, expected in rows.items():
        assert ask("str", key, "wrong", **{attribute: value}).value == expected, value


@pytest.mark.parametrize(("time", "value"), [(1, -1), (4133980802, 1)])
def test_the_time_is_there(time, value):
    assert ask("int", "time", 0, time=time).value == value


@pytest.mark.parametrize(
    ("key", "unit", "context", "value"),
    [
        ("key", "5c3d8535-f81a-4478-a6d3-afaa4d51199e", {}, "hit"),
        ("key", "f20bd32d-703b-48b6-bc8e-79d53c85134a", {}, "miss"),
        ("as-condition", "some-targeting-key", {}, "hundreds"),
        ("as-no-condition", "some-targeting-key", {}, "ones"),
        ("single", "some-targeting-key", {}, "single"),
        ("no-key", None, {}, "fallback"),
        ("no-weight", "any-user", {}, "fallback"),
        ("negative", "any-user", {}, "two"),
        ("fractional-flag-shorthand", None, {"irrelevant": "none"}, "draw"),
        (
            "fractional-flag-shorthand",
            12345,
            {},
            "heads",
        ),  # an int is its text here: there no key is one
    ],
)
@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_splits_that_need_no_hash(generation, key, unit, context, value):
    if unit == 12345:
        value = ask("str", key, "wrong", "12345", generation=generation).value
    assert ask("str", key, "wrong", unit, generation=generation, **context).value == value


V2 = [
    ("fractional-flag", {"user": "jack"}, "hearts"), ("fractional-flag", {"user": "queen"}, "spades"),
    ("fractional-flag", {"user": "ten"}, "clubs"), ("fractional-flag", {"user": "nine"}, "diamonds"), ("fractional-flag", {"user": "3"}, "clubs"),
    ("fractional-flag-shorthand", {"key": "jon@company.com"}, "heads"), ("fractional-flag-shorthand", {"key": "jane@company.com"}, "tails"),
    ("seeded", {"user": "seven"}, "hearts"), ("seeded", {"user": "eight"}, "diamonds"),
    ("seeded", {"user": "nine"}, "clubs"), ("seeded", {"user": "two"}, "spades"),
    # Keys whose hashes are 0, 1, 2**31 - 1, 2**31 and 2**32 - 1.
    ("edges", {"key": "ejOoVL"}, "lower"), ("edges", {"key": "bY9fO-"}, "lower"), ("edges", {"key": "SI7p-"}, "lower"),
    ("edges", {"key": "6LvT0"}, "upper"), ("edges", {"key": "ceQdGm"}, "upper"),
]  # fmt: skip
V3 = [
    ("fractional-flag", {"user": "jack"}, "diamonds"), ("fractional-flag", {"user": "queen"}, "diamonds"),
    ("fractional-flag", {"user": "ten"}, "clubs"), ("fractional-flag", {"user": "nine"}, "clubs"), ("fractional-flag", {"user": "3"}, "spades"),
    ("fractional-flag-shorthand", {"key": "jon@company.com"}, "tails"), ("fractional-flag-shorthand", {"key": "jane@company.com"}, "tails"),
    ("fractional-flag-shorthand", {"key": "user-1"}, "heads"), ("fractional-flag-shorthand", {"key": "user-2"}, "tails"), ("fractional-flag-shorthand", {"key": "user-3"}, "heads"),
    ("seeded", {"user": "seven"}, "hearts"), ("seeded", {"user": "eight"}, "hearts"),
    ("seeded", {"user": "nine"}, "diamonds"), ("seeded", {"user": "two"}, "diamonds"),
]  # fmt: skip
INNER = [
    ("inner-if", {"key": "jon@company.com", "tier": "premium"}, "premium"), ("inner-if", {"key": "jon@company.com", "tier": "basic"}, "standard"),
    ("inner-if", {"key": "user1", "tier": "premium"}, "standard"), ("inner-if", {"key": "user1", "tier": "basic"}, "standard"),
    ("inner-var", {"key": "jon@company.com", "color": "red"}, "red"), ("inner-var", {"key": "jon@company.com", "color": "green"}, "green"),
    ("inner-var", {"key": "user1", "color": "red"}, "blue"), ("inner-var", {"key": "jon@company.com", "color": "yellow"}, "fallback"),
    ("inner-var", {"key": "jon@company.com"}, "fallback"),
    ("inner-weight", {"key": "jon@company.com", "tier": "premium"}, "red"), ("inner-weight", {"key": "jon@company.com", "tier": "basic"}, "blue"),
    ("inner-weight", {"key": "user1", "tier": "premium"}, "red"), ("inner-weight", {"key": "user1", "tier": "basic"}, "blue"),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "rows"), [("v2", V2 + INNER), ("v3", V3)])
def test_splits(generation, rows):
    for key, given, value in rows:
        context = {name: text for name, text in given.items() if name not in {"key", "user"}}
        if "user" in given:
            context["user"] = {"name": given["user"]}
        details = ask("str", key, "fallback", given.get("key"), generation=generation, **context)
        assert details.value == value, (key, given)


# By the value of an attribute, the number of the bucket of 25 that it falls into.
ANY_INPUT = [
    (True, 5), (False, 1), ("user1", 22), ("user2", 16), (123, 20), (456, 12), (1.23, 14), (4.56, 18), ("123", 22),
    ("true", 24), ("false", 1), ("null", 8), ("1.23", 4), (0, 8), (1.0, 23), (1, 23), (1.0000000000000001, 23), (-2.0, 12),
    (-2, 12), (9007199254740992.0, 10), (0.0, 8), (-0.0, 8), (2147483647, 10), (-2147483648, 8), (23, 21), (24, 11),
    (255, 13), (256, 13), (65535, 4), (65536, 11), (-24, 4), (-25, 16), (1e20, 19), (-1e20, 25), (65504.0, 16), (-65504.0, 9),
    (0.00006103515625, 22), (0.000000059604644775390625, 23), (65505.0, 17), (-65505.0, 17), (3.4028234663852886e38, 10),
    (-3.4028234663852886e38, 3), (1.1754943508222875e-38, 24), (3.5e38, 1), (-3.5e38, 6), (1.7976931348623157e308, 17),
    (-1.7976931348623157e308, 9), (2.2250738585072014e-308, 11), (4.9406564584124654e-324, 2),
    ({"a": 1, "b": 2}, 23), ({"b": 2, "a": 1}, 23), ({"c": 3, "a": 1, "b": 2}, 18), ({"z": 1, "aa": 2}, 21), ({"aa": 2, "z": 1}, 21),
    ({"b": 2, "a": {"b": 1}}, 9), ({"c": "text", "bbb": 1, "a": True, "dddd": 2.5}, 25), ({"aaa": 1, "ÿ": 2}, 12),
    ({"": 2, "abc": 1}, 25), ({"key": -0.0}, 10), ({"key": 0}, 10), ({"b": -0.0, "a": {"b": 1}, "c": 0.0}, 8),
    ({"café": "façade", "b": {"résumé": {"ÿ": True}}}, 22), ({}, 3), ({"a": {}}, 20), ({"b": 2, "a": {}}, 20),
    ({"a": {}, "b": {}}, 21), ({"a": {}, "b": []}, 7), ({"c": 0.0, "a": []}, 18), ({"c": 0.0, "b": -0.0, "a": {"b": []}}, 9),
    ({"a": []}, 12), ({"a": [1, [], 3], "b": None}, 3), ({"a": ["a", "b", {}], "b": [1, None, 2]}, 23),
    ({"a": [1, "two", True, [], None]}, 23), ({"a": [False, 2.5, ""], "b": [], "c": None}, 15),
    ({"x": [{"a": 1}, {"b": 2}, {"b": None}]}, 3), ({"x": [{"a": {"b": []}}]}, 16), ({"x": [{"a": {"b": None}}]}, 6),
    ({"x": [{"a": {"b": {}}}]}, 2), ({"": None}, 25), ({"": {"": {"": ""}}}, 11), ({"a": [[[[[]]]]]}, 15), ({"a": [[[[None]]]]}, 7),
    ({"a": {"b": {"c": {"d": {}}}}}, 21), ({"a": {"b": {"c": {"d": None}}}}, 19), ("", 4), ("a", 6), ("12345678901234567890123", 4),
    ("123456789012345678901234", 14), ("a" * 255, 18), ("a" * 256, 7), ("あいうえおかき", 17), ("あいうえおかきく", 16), ("é" * 11, 16),
    ("é" * 12, 19), ("café façade résumé café", 9), (r"A\u0000B", 15), (r"e\u0301", 7), (r"\uD83D\uDE00", 23),
]  # fmt: skip


@pytest.mark.parametrize(("value", "bucket"), ANY_INPUT, ids=range(len(ANY_INPUT)))
def test_anything_may_be_hashed(value, bucket):
    assert ask("str", "any-input", "wrong", hashing_input=value).value == f"bucket{bucket}"


# Facts of what is proposed for flagd, core/pkg/evaluator/rollout_test.go (read 2026-11).
@pytest.mark.parametrize(
    ("first", "value"),
    [([], "new"), ([{"var": "email"}], "new"), ([None], "new"), (["constant"], "default"), ([True], "default")],
)  # fmt: skip
def test_what_a_rollout_may_bucket_by(first, value):
    rule = {"rollout": [*first, 1_704_067_200, 1_706_745_600, "old", "new"]}
    document = {"flags": {"f": flag(texts("old", "new", "default"), "default", rule)}}
    assert Flags.from_dict(document).str("f", default="D")("u", email="e") == value
