"""Typed handles, overrides, snapshots, and what they say on trouble."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import difflib
import enum
import pickle
import subprocess
import sys
import threading
from datetime import datetime

import pytest

from mlkit import telemetry
from mlkit.errors import ConfigurationError, FlagFileError, FlagTypeError
from mlkit.flags import ErrorRate, Flags, Guard, Latency
from mlkit.testing import record_events, virtual_time


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


def document(**flags):
    return {"flags": {key: {"state": "ENABLED", **flag} for key, flag in flags.items()}}


def test_each_type_and_its_trouble():
    flags = Flags.in_memory(
        {"b": True, "i": 7, "w": 7.0, "f": 0.5, "s": "x", "j": {"k": [1]}, "e": "l", "big": 100}
    )
    assert flags.bool("b", default=False)() is True
    assert flags.int("i", default=1)() == 7
    assert flags.int("w", default=1)() == 7
    assert type(flags.int("w", default=1)()) is int
    assert flags.float("f", default=0.0)() == 0.5
    assert type(flags.float("i", default=0.0)()) is float
    assert flags.str("s", default="")() == "x"
    assert flags.json("j", default={})()["k"] == (1,)
    assert flags.enum("e", default=Size.SMALL)() is Size.LARGE
    for wrong in (
        lambda: flags.bool("i", default=False),
        lambda: flags.int("b", default=1),
        lambda: flags.int("f", default=1),
        lambda: flags.int("big", default=1, le=64),
        lambda: flags.float("b", default=1.0),
        lambda: flags.str("i", default=""),
        lambda: flags.json("s", default={}),
        lambda: flags.enum("s", default=Size.SMALL),
    ):
        with pytest.raises(FlagTypeError) as caught:
            wrong()
        assert pickle.loads(pickle.dumps(caught.value)).key == caught.value.key


def test_a_missing_flag_names_itself_and_the_nearest(monkeypatch):
    flags = Flags.in_memory({"new-tokeniser": True, "ranker": "v1"})
    flag = flags.bool("new-tokenizer", default=False)
    looked = []
    real = difflib.SequenceMatcher
    monkeypatch.setattr(
        difflib, "SequenceMatcher", lambda *args, **kw: looked.append(1) or real(*args, **kw)
    )
    for _ in range(5):
        details = flag.details()
        assert details[:4] == (False, None, "ERROR", "FLAG_NOT_FOUND")
        assert details.message == (
            "there is no flag 'new-tokenizer'; did you mean 'new-tokeniser'?"
        )
    assert len(looked) == 1
    assert flags.bool("zzz", default=False).details().message == "there is no flag 'zzz'"
    broken = Flags.from_dict({"flags": {"ranker": None}})
    assert broken.str("rankr", default="").details().message.endswith("did you mean 'ranker'?")


def test_a_handle_may_be_made_before_its_flag():
    flags = Flags.in_memory({})
    flag = flags.int("later", default=1, le=9)
    assert flag() == 1
    flags.replace(document(later={"variants": {"v": 5}, "defaultVariant": "v"}))
    assert flag() == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda flags: flags.bool("a", default="False"),
            "Flags.bool(default=...): expected a bool, got 'False'",
        ),
        (
            lambda flags: flags.int("a", default="3", ge=1),
            "Flags.int(default=...): expected a finite int >= 1, got '3'",
        ),
        (
            lambda flags: flags.float("a", default=2.0, ge=0.0, le=1.0),
            "Flags.float(default=...): expected a finite float >= 0.0 and <= 1.0, got 2.0",
        ),
        (
            lambda flags: flags.model("a", default=""),
            "Flags.model(default=...): expected the URI of a model, got ''",
        ),
        (
            lambda flags: flags.json("a", default="{}"),
            "Flags.json(default=...): expected an object or a list, got '{}'",
        ),
    ],
)
def test_a_wrong_default_is_said_once(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make(Flags.in_memory({}))
    assert str(caught.value) == message


def test_texts_are_quoted_in_messages():
    with pytest.raises(FlagTypeError, match="expected a bool, got 'False'"):
        Flags.in_memory({"a": "False"}).bool("a", default=False)


def test_a_type_that_changes_later_is_trouble_not_an_error():
    flags = Flags.in_memory({"f": 1})
    handle = flags.int("f", default=9)
    flags.replace(
        {"flags": {"f": {"state": "ENABLED", "variants": {"on": "text"}, "defaultVariant": "on"}}}
    )
    details = handle.details("u")
    assert (details.value, details.variant, details.reason, details.error) == (
        9,
        None,
        "ERROR",
        "TYPE_MISMATCH",
    )


WRONG = [
    lambda f: f.bool("", default=True),
    lambda f: f.bool(3, default=True),
    lambda f: f.bool("k", default=1),
    lambda f: f.int("k", default=True),
    lambda f: f.int("k", default=1.5),
    lambda f: f.int("k", default=5, le=3),
    lambda f: f.int("k", default=5, ge=9, le=3),
    lambda f: f.int("k", default=5, ge=True),
    lambda f: f.float("k", default=float("nan")),
    lambda f: f.float("k", default=1.0, ge=float("nan")),
    lambda f: f.str("k", default=None),
    lambda f: f.json("k", default="text"),
    lambda f: f.enum("k", default="s"),
    lambda f: f.model("k", default=""),
    lambda f: f.override({"absent": 1}),
    lambda f: f.override([("known", 1)]),
    lambda f: f.explain("absent"),
    lambda f: f.explain(3),
    lambda f: f.on_change(None),
    lambda f: f.replace([1]),
    lambda f: f.bool("known", default=False).assign("user"),
    lambda f: f.bool("known", default=False).assign(3),
    lambda f: f.bool("known", default=False).assign(["a"], plan=["x", "y"]),
    lambda f: f.bool("known", default=False).assign(["a"], plan="x"),
    lambda f: Flags.from_file(3),
    lambda f: Flags.from_file("x", watch=True, interval=0),
    lambda f: Flags.from_file("x", interval=float("nan")),
    lambda f: Flags.from_dict([]),
    lambda f: Flags.in_memory([]),
    lambda f: Guard(),
    lambda f: Guard(0.05),
    lambda f: Guard(ErrorRate(max_rate=0.1), alpha=0),
    lambda f: Guard(ErrorRate(max_rate=0.1), alpha=float("nan")),
    lambda f: ErrorRate(),
    lambda f: ErrorRate(max_rate=0.1, max_ratio=2),
    lambda f: ErrorRate(max_rate=0),
    lambda f: ErrorRate(max_rate=True),
    lambda f: ErrorRate(max_ratio=0.5),
    lambda f: Latency(max_seconds=-1),
    lambda f: Latency(max_seconds=1, q=1),
]


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_wrong_calls_are_refused_early(index):
    with pytest.raises(ConfigurationError) as caught:
        WRONG[index](Flags.in_memory({"known": True}))
    assert caught.value.argument
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_reasons_and_codes():
    flags = Flags.from_dict(
        document(
            static={"variants": {"a": "A"}, "defaultVariant": "a"},
            rule={
                "variants": {"a": "A", "b": "B"},
                "defaultVariant": "b",
                "targeting": {"if": [{"var": "yes"}, "a"]},
            },
            none={"variants": {"a": "A"}},
            off={"state": "DISABLED", "variants": {"a": "A"}, "defaultVariant": "a"},
            broken={"variants": {"a": "A"}, "targeting": {"iff": []}},
            ghost={
                "variants": {"a": "A"},
                "defaultVariant": "a",
                "targeting": {"cat": ["gho", "st"]},
            },
            listed={"variants": {"a": "A"}, "targeting": {"merge": ["a"]}},
            true={"variants": {"true": "T", "1": "1"}, "targeting": {"var": "x"}},
        )
    )

    def said(key, *unit, **attributes):
        details = flags.str(key, default="D").details(*unit, **attributes)
        assert details.digest == flags.digest
        assert bool(details.message) == bool(details.error)
        return details.value, details.variant, details.reason, details.error

    assert said("static") == ("A", "a", "STATIC", None)
    assert said("rule", yes=1) == ("A", "a", "TARGETING_MATCH", None)
    assert said("rule") == ("B", "b", "DEFAULT", None)
    assert said("none") == ("D", None, "DEFAULT", None)
    assert said("off") == ("D", None, "DISABLED", None)
    assert said("broken") == ("D", None, "ERROR", "PARSE_ERROR")
    assert said("absent") == ("D", None, "ERROR", "FLAG_NOT_FOUND")
    assert said("ghost") == ("D", None, "ERROR", "GENERAL")
    assert said("listed") == ("D", None, "ERROR", "GENERAL")
    assert said("true", x=True) == ("T", "true", "TARGETING_MATCH", None)
    assert said("true", x=1) == ("1", "1", "TARGETING_MATCH", None)
    assert said("rule", 3.5) == ("D", None, "ERROR", "INVALID_CONTEXT")
    assert said("true", x=object()) == ("D", None, "ERROR", "INVALID_CONTEXT")


def test_trouble_is_counted_and_said_once_without_the_context():
    flags = Flags.from_dict(document(f={"variants": {"a": True}, "targeting": {"var": "x"}}))
    flag = flags.bool("f", default=False)
    with record_events("flags.") as events:
        for i in range(20):
            flag(x=f"secret-{i}")
    assert [event.kind for event in events] == ["flags.evaluation.failed"]
    assert "secret" not in repr(events)
    assert "secret" not in repr(flag.details(x="secret"))
    counted = {
        sample.name: sample.value
        for sample in telemetry.collect()
        if ("flag", "f") in sample.labels
    }
    assert counted["flags_evaluations_total"] >= 21
    assert counted["flags_errors_total"] >= 21


def test_every_evaluation_of_every_thread_is_counted():
    flags = Flags.in_memory({"asked-by-many": 1})
    handles = [flags.int("asked-by-many", default=0) for _ in range(2)]
    barrier, interval = threading.Barrier(4), sys.getswitchinterval()

    def work():
        barrier.wait()
        for _ in range(2_000):
            for handle in handles:
                handle()
        handles[0].assign(["ann", "bob", "cem"])
        with flags.override({"asked-by-many": 2}):
            handles[1]()

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    name = ("flags_evaluations_total", (("flag", "asked-by-many"),))
    for _ in range(2):  # reading it counts nothing
        assert {sample[:2]: sample.value for sample in telemetry.collect()}[name] == 4 * 4_004


def test_the_timestamp_is_the_clock_of_mlkit():
    rule = {"if": [{">=": [{"var": "$flagd.timestamp"}, 1_700_000_100]}, "on", "off"]}
    flags = Flags.from_dict(document(f={"variants": {"on": True, "off": False}, "targeting": rule}))
    with virtual_time() as clock:
        assert flags.bool("f", default=True)() is False
        clock.advance(100)
        assert flags.bool("f", default=False)() is True
        assert flags.bool("f", default=False).assign(["a"] * 20).values == [True] * 20


def test_shared_rules_see_the_flag_that_uses_them():
    flag = {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "targeting": {"if": [{"$ref": "mine"}, "on", "off"]},
    }
    flags = Flags.from_dict(
        {
            "flags": {"f": flag, "g": flag},
            "$evaluators": {"mine": {"==": [{"var": "$flagd.flagKey"}, "g"]}},
        }
    )
    assert (flags.bool("f", default=True)(), flags.bool("g", default=False)()) == (False, True)


def test_override_nests_and_is_local():
    flags = Flags.in_memory({"f": False, "s": "x"})
    flag, text = flags.bool("f", default=False), flags.str("s", default="")
    seen = []
    with flags.override({"f": True}):
        with flags.override({"s": "y"}):
            assert (flag(), text()) == (True, "y")
            assert flag.details().reason == "OVERRIDE"
            assert flag.assign(["a", "b"]).values == [True, True]
            with contextlib.suppress(ZeroDivisionError), flags.override({"f": False}):
                assert flag() is False
                1 / 0
            thread = threading.Thread(target=lambda: seen.append(flag()))
            thread.start()
            thread.join()
        assert (flag(), text()) == (True, "x")
    assert (flag(), seen) == (False, [False])
    with pytest.raises(ConfigurationError, match="did you mean 'f'"):
        flags.override({"F": True})
    with pytest.raises(ConfigurationError, match="a variant or a bool, got 'maybe'"):
        flags.override({"f": "maybe"})


def test_an_override_that_is_left_in_another_context_changes_nothing_there():
    flags = Flags.in_memory({"f": "file"})
    flag = flags.str("f", default="")

    def held():
        with flags.override({"f": "held"}):
            yield

    generator = held()
    contextvars.copy_context().run(next, generator)
    with flags.override({"f": "here"}):
        generator.close()
        assert flag() == "here"
    assert flag() == "file"


def test_override_by_variant_wins_over_a_disabled_flag():
    flags = Flags.from_dict(
        document(
            m={
                "state": "DISABLED",
                "variants": {"v1": "m:/1", "v2": "m:/2"},
                "defaultVariant": "v1",
            }
        )
    )
    model = flags.model("m", default="v1")
    assert model.details()[:3] == ("m:/1", "v1", "DISABLED")
    with flags.override({"m": "v2"}):
        assert model.details()[:3] == ("m:/2", "v2", "OVERRIDE")


def test_tasks_have_their_own_overrides():
    flags = Flags.in_memory({"f": 0})
    flag = flags.int("f", default=-1)

    async def one(value):
        with flags.override({"f": value}):
            await asyncio.sleep(0)
            return flag()

    async def main():
        return await asyncio.gather(*map(one, range(1, 9))), flag()

    assert asyncio.run(main()) == (list(range(1, 9)), 0)


def test_a_snapshot_is_one_moment():
    flags = Flags.in_memory({"f": 1})
    flag = flags.int("f", default=0)
    with flags.snapshot() as snapshot:
        change = flags.replace(
            {"flags": {"f": {"state": "ENABLED", "variants": {"b": 2}, "defaultVariant": "b"}}}
        )
        assert change.keys == change.changed == ("f",)
        assert (flag(), flag.details().digest) == (1, snapshot.digest)
        with flags.snapshot() as inner:
            assert inner is snapshot
        assert "f" in snapshot
        assert list(snapshot) == ["f"]
    assert (flag(), flags.digest) == (2, change.after)
    assert change.before == snapshot.digest != change.after


def test_readers_see_all_of_a_change_or_nothing():
    def both(n):
        return document(
            **{key: {"variants": {"v": n}, "defaultVariant": "v"} for key in ("a", "b")}
        )

    flags = Flags.from_dict(both(0))
    one, two = flags.int("a", default=-1), flags.int("b", default=-1)
    torn, stop, barrier = [], threading.Event(), threading.Barrier(4)

    def read():
        barrier.wait()
        while not stop.is_set():
            with flags.snapshot():
                if one() != two():
                    torn.append(1)
            if len({one.details().digest, flags.digest}) > 2:
                torn.append(2)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for n in range(1, 60):
            flags.replace(both(n))
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert torn == []


def test_listeners_hear_of_changes_and_break_nothing():
    flags = Flags.in_memory({"f": 1})
    heard = []
    stop = flags.on_change(heard.append)
    broken = flags.on_change(lambda change: 1 / 0)
    # A listener may use the flags again: no lock is held.
    flags.on_change(lambda change: flags.replace({"flags": {}}) if change.changed else None)
    with (
        pytest.warns(UserWarning, match="ZeroDivisionError"),
        record_events("flags.changed") as events,
    ):
        flags.replace(
            {"flags": {"f": {"state": "ENABLED", "variants": {"b": 2}, "defaultVariant": "b"}}}
        )
    assert [change.keys for change in heard] == [("f",), ("f",)]
    assert heard[1].removed == ("f",)
    assert len(events) == 2
    broken()
    stop()
    stop()
    flags.replace(document(g={"variants": {"a": 1}}))
    assert len(heard) == 2


def test_digests_name_decisions():
    one = document(f={"variants": {"a": True, "b": False}, "targeting": {"$ref": "r"}})
    flags = Flags.from_dict({**one, "$evaluators": {"r": {"if": [True, "a", "b"]}}})
    same = Flags.from_dict(
        {"$evaluators": {"unused": {"!": []}, "r": {"if": [True, "a", "b"]}}, **copy.deepcopy(one)}
    )
    other = Flags.from_dict({**one, "$evaluators": {"r": {"if": [False, "a", "b"]}}})
    older = Flags.from_dict(
        {**one, "$evaluators": {"r": {"if": [True, "a", "b"]}}, "metadata": {"bucketing": "v2"}}
    )
    assert flags.digest == same.digest
    assert len({flags.digest, other.digest, older.digest}) == 3


def test_pickled_flags_answer_alike():
    flags = Flags.from_dict(
        document(
            f={
                "variants": {"a": True, "b": False},
                "targeting": {"fractional": [["a", 1], ["b", 1]]},
            }
        )
    )
    flag = flags.bool("f", default=False)
    code = "import pickle,sys; print([pickle.load(sys.stdin.buffer)(u) for u in ['x']] )"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(flag), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str([flag("x")])
    assert pickle.loads(pickle.dumps(flags)).digest == flags.digest


def test_explain_says_when_a_units_turn_is():
    rule = {"rollout": [1_699_999_900, 1_700_000_100, "a", "b"]}
    flags = Flags.from_dict({"flags": {"f": {
        "state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "a", "targeting": rule}}})  # fmt: skip
    flag = flags.int("f", default=0)
    for unit in range(20):
        with virtual_time() as clock:  # 1,700,000,000, half the way
            note = str(flags.explain("f", unit))
            assert "50 % of the way" in note
            turn = datetime.fromisoformat(
                note.split("its turn is at ")[1].split(",", maxsplit=1)[0]
            )
            if turn.timestamp() > clock.time():
                clock.advance(turn.timestamp() - 1 - clock.time())
                assert flag(unit) == 1
                clock.advance(1)
            assert flag(unit) == 2
    assert "cannot be placed in time" in str(flags.explain("f"))


def test_explain_shows_the_way():
    flags = Flags.from_dict(
        {
            **document(
                f={
                    "variants": {"a": 1, "b": 2},
                    "targeting": {
                        "if": [{"$ref": "pro"}, {"fractional": [["a", 1], ["b", 3]]}, "b"]
                    },
                }
            ),
            "$evaluators": {"pro": {"in": [{"var": "plan"}, ["pro", "team"]]}},
        }
    )
    text = str(flags.explain("f", "u1", plan="pro"))
    assert "var plan -> pro" in text.replace("'", "")
    assert "v3 hash 0x" in text
    assert "of 4: a [0, 1), b [1, 4)" in text
    assert "fractional" not in str(flags.explain("f", "u1", plan="free"))
    assert flags.explain("f", "u1", plan="free").details.variant == "b"
    assert "INVALID_CONTEXT" in str(flags.explain("f", "u1", plan=object()))


def test_model_uris():
    flags = Flags.from_dict(
        document(
            m={
                "variants": {"v1": "a", "v2": "b"},
                "defaultVariant": "v2",
                "metadata": {"model.v1": "models:/m/1"},
            },
            bad={"variants": {"v1": 1}, "defaultVariant": "v1"},
        )
    )
    assert flags.model("m", default="v1")() == "b"
    with flags.override({"m": "v1"}):
        assert flags.model("m", default="v1")() == "models:/m/1"
    gone = flags.model("gone", default="models:/m/0").details("u")
    assert (gone.value, gone.variant, gone.error) == (
        "models:/m/0",
        "models:/m/0",
        "FLAG_NOT_FOUND",
    )
    with pytest.raises(FlagTypeError, match="URI"):
        flags.model("bad", default="v1")


def test_errors_of_whole_documents():
    for wrong in (
        {},
        {"flags": []},
        {"flags": {"": {}}},
        {"flags": {}, "metadata": {"a": []}},
        {"flags": {}, "$evaluators": 3},
        {"flags": {}, "metadata": {"bucketing": "v9"}},
    ):
        with pytest.raises(FlagFileError) as caught:
            Flags.from_dict(wrong)
        assert pickle.loads(pickle.dumps(caught.value)).source == caught.value.source
