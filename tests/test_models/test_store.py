"""What a user does with a store, on real files."""

import copy
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from mlkit.errors import (
    AliasConflictError,
    ChecksFailedError,
    ConfigurationError,
    IntegrityError,
    UntrustedFormatError,
    VersionInUseError,
    VersionNotFoundError,
)
from mlkit.models import ModelStore, ModelVersion
from mlkit.telemetry import collect
from mlkit.testing import record_events, virtual_time


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", who="ada@lab")


def test_a_constructor_touches_nothing(tmp_path):
    store = ModelStore(tmp_path / "a" / "b")
    assert store.names() == []
    with pytest.raises(VersionNotFoundError):
        store.get("churn@1")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_itself_is_as_durable_as_what_is_in_it(tmp_path, monkeypatch):
    real, synced = os.fsync, []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor)), real(descriptor))
    )
    ModelStore(tmp_path / "a" / "b").save("m", b"x")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        assert any(os.path.samestat(folder.stat(), facts) for facts in synced), folder


def test_a_store_where_a_file_is(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"x")
    for path in (tmp_path / "model.pt", tmp_path / "model.pt" / "below"):
        store = ModelStore(path)
        expected = r"ModelStore\(path\): expected a folder that can be "
        for change in (lambda: store.save("m", b"x"), lambda: store.save("m", {"a": np.ones(2)})):
            with pytest.raises(ConfigurationError, match=f"{expected}written, got .*model.pt"):
                change()
        for read in (store.names, lambda: store.load("m@1"), lambda: store.promote("m", 1)):
            with pytest.raises(ConfigurationError, match=f"{expected}read.*; Not a directory"):
                read()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes nothing")
def test_a_store_that_cannot_be_made():
    with pytest.raises(ConfigurationError, match="written, got '/proc/x'; No such file") as caught:
        ModelStore("/proc/x").save("m", b"x")
    assert isinstance(caught.value.__cause__, OSError)


def test_another_file_that_is_missing_is_not_blamed_on_the_store(store, tmp_path):
    class Model:
        def state_dict(self):
            return (tmp_path / "weights").read_bytes()

        def load_state_dict(self, state):
            """Not called."""

    with pytest.raises(FileNotFoundError, match="weights"):
        store.save("m", Model(), spec={})


def test_a_store_without_the_model_says_where_it_is(store):
    with pytest.raises(VersionNotFoundError) as caught:
        store.load("m@1")
    assert str(caught.value) == f"no model version 'm'; there are no models in {store.path}"
    store.save("churn", b"x")
    with pytest.raises(
        VersionNotFoundError, match=f"; the store is {store.path}; did you mean 'churn'"
    ):
        store.load("chrun@1")


def test_names_that_the_file_system_takes_for_one_are_told_from_damage(store, tmp_path):
    store.save("digits", b"one")
    models = next(tmp_path.rglob("digits.jsonl")).parent
    # As a file system that ignores case has it: one file under both names.
    (models / "Digits.jsonl").hardlink_to(models / "digits.jsonl")
    for ask in (lambda: store.versions("Digits"), lambda: store.save("Digits", b"two")):
        with pytest.raises(ConfigurationError, match=r"'digits', or a name that differs"):
            ask()
    assert [version.ref for version in store.versions("digits")] == ["digits@1"]
    (models / "DIGITS.jsonl").write_bytes((models / "digits.jsonl").read_bytes())
    with pytest.raises(IntegrityError):
        store.versions("DIGITS")


def test_a_version_says_what_it_is(store):
    spec = {"type": "centroids", "widths": [1, 2.5, None], "deep": {"a": True}}
    version = store.save(
        "digits",
        {"centroids": np.eye(3)},
        spec=spec,
        run="run-1",
        metrics={"accuracy": 0.9, "loss": float("nan"), "gap": np.float32(0.5), "n": 3},
        manifest={"code": "tree:abc", "seeds": [1, 2]},
        signature={"inputs": {"x": ["float64", [None, 3]]}},
        tags={"team": "vision"},
    )
    for seen in (version, store.get("digits@1"), store.versions("digits")[0]):
        assert (seen.name, seen.number, seen.ref, seen.run) == ("digits", 1, "digits@1", "run-1")
        assert seen.spec == spec
        assert seen.manifest == {"code": "tree:abc", "seeds": [1, 2]}
        assert seen.signature == {"inputs": {"x": ["float64", [None, 3]]}}
        assert seen.metrics["accuracy"] == 0.9
        assert np.isnan(seen.metrics["loss"])
        assert seen.metrics["gap"] == 0.5
        assert seen.tags == {"team": "vision"}
        assert seen.who == "ada@lab"
        assert seen.format == "numpy"
        assert seen == version
        assert hash(seen) == hash(version)
    assert "digits@1" in repr(version)
    assert "run-1" in repr(version)


def test_a_version_cannot_be_changed(store):
    version = store.save("m", b"x", spec={"a": [1]}, metrics={"x": 1})
    for name in ("number", "digest", "spec", "anything"):
        with pytest.raises(AttributeError):
            setattr(version, name, 1)
    with pytest.raises(TypeError):
        version.metrics["x"] = 2
    version.spec["a"].append(2)
    assert version.spec == {"a": [1]}


def test_the_digest_covers_content_and_nothing_else(store):
    base = dict(spec={"a": 1}, manifest={"b": 1}, signature={"c": 1})
    first = store.save("m", b"x", **base, run="r1", metrics={"a": 1}, tags={"t": "u"}, why="first")
    assert store.save("m", b"x", **base).digest == first.digest
    assert store.save("other", b"x", **base).digest == first.digest
    others = [
        store.save("m", b"y", **base),
        store.save("m", b"x", **base | {"spec": {"a": 1.0}}),
        store.save("m", b"x", **base | {"manifest": {"b": True}}),
        store.save("m", b"x", **base | {"signature": None}),
        store.save("m", {"x": np.zeros(1)}, **base),
    ]
    assert len({version.digest for version in (first, *others)}) == 6


def test_every_kind_of_reference(store):
    one, two = store.save("a/b.c", b"1"), store.save("a/b.c", b"2")
    again = store.save("a/b.c", b"1")
    store.promote("a/b.c", 2, to="champion")
    assert store.get("a/b.c@champion") == store.get("a/b.c@2") == two
    assert store.get(f"a/b.c@{two.digest}") == store.get(f"a/b.c@{two.digest[:15]}") == two
    assert store.get(f"a/b.c@{one.digest}") == again, "of equal versions the newest"
    assert store.get(one) == one
    assert store.load(two) == b"2"
    assert store.names() == ["a/b.c"]


@pytest.mark.parametrize(
    "ref",
    ["", "m", "@1", "m@", "m@1@2", "m@0", "m@01", "m@-1", "m@+1", "m@1.0", "m@Champion", "m@latest",
     "m@sha256:", "m@sha256:abc", "m@sha256:ABCD", "m@sha256:" + "a" * 65, "m@md5:abcd", "m@²", "m@\u0661",
     "../m@1", "m/../n@1", "/m@1", "m/@1", "m//n@1", ".m@1", "m\x00@1", "m\n@1", "m @1", "é@1",
     "a" * 81 + "@1", 7, None, b"m@1"],
)  # fmt: skip
def test_references_that_are_none(store, ref):
    store.save("m", b"x")
    with pytest.raises(ConfigurationError):
        store.get(ref)


def test_an_ambiguous_prefix_is_refused(store):
    seen = {}
    for number in range(1000):  # of 65,536 prefixes of 4 digits two are soon the same
        version = store.save("m", str(number).encode())
        prefix = version.digest[:11]
        if prefix in seen:
            with pytest.raises(ConfigurationError, match="more digits"):
                store.get(f"m@{prefix}")
            assert store.get(f"m@{version.digest}") == version
            assert store.get(f"m@{seen[prefix].digest}") == seen[prefix]
            return
        seen[prefix] = version
    pytest.fail("no two digests began alike")


def test_what_is_near_is_named(store):
    store.save("churn", b"x")
    store.promote("churn", 1)
    with pytest.raises(VersionNotFoundError, match="did you mean 'churn'"):
        store.get("chrun@1")
    with pytest.raises(VersionNotFoundError, match="did you mean 'churn@champion'"):
        store.load("churn@champoin")
    with pytest.raises(VersionNotFoundError, match="churn@1") as caught:
        store.get("churn@2")
    assert caught.value.ref == "churn@2"
    assert pickle.loads(pickle.dumps(caught.value)).ref == "churn@2"
    for call in (store.versions, store.aliases, store.history, store.rollback):
        with pytest.raises(VersionNotFoundError, match="churn"):
            call("chrun")
    with pytest.raises(VersionNotFoundError):
        store.promote("chrun", 1)
    with pytest.raises(VersionNotFoundError):
        store.delete("churn", 9)


def test_promotion_compares_and_swaps(store):
    for content in (b"1", b"2", b"3"):
        store.save("m", content)
    store.promote("m", 1, expect=None)
    with pytest.raises(AliasConflictError) as caught:
        store.promote("m", 2, expect=None)
    assert (caught.value.alias, caught.value.expected, caught.value.got) == ("m@champion", None, 1)
    with pytest.raises(AliasConflictError):
        store.promote("m", 2, expect=3)
    change = store.promote(
        "m", store.get("m@2"), expect=store.get("m@1"), why="better on Tuesday's data"
    )
    assert (change.kind, change.version, change.previous, change.who) == (
        "promoted",
        2,
        1,
        "ada@lab",
    )
    assert change.why == "better on Tuesday's data"
    assert store.promote("m", 2) == change, "already there: nothing to do"
    assert len(store.history("m")) == 5
    assert store.aliases("m") == {"champion": 2}


def test_rollback_goes_back_step_by_step(store):
    for content in (b"1", b"2", b"3", b"4"):
        store.save("m", content)
    for number in (1, 2, 3):
        store.promote("m", number)
    assert store.rollback("m", "champion", expect=3, why="errors").version == 2
    with pytest.raises(AliasConflictError):  # the second guard that saw the same trouble
        store.rollback("m", "champion", expect=3)
    store.promote("m", 4)
    assert store.rollback("m").previous == 4
    assert store.rollback("m").version == 1
    with pytest.raises(VersionNotFoundError) as caught:
        store.rollback("m")
    assert str(caught.value) == (
        "m@champion cannot be rolled back: no version that still exists held it before version 1; "
        "promote the version that it should point at"
    )
    assert pickle.loads(pickle.dumps(caught.value)).ref == "m@champion"
    with pytest.raises(VersionNotFoundError, match="challenger"):
        store.rollback("m", "challenger")
    assert store.aliases("m") == {"champion": 1}


def test_rollback_passes_over_deleted_versions(store):
    for content in (b"1", b"2", b"3"):
        store.save("m", content)
    for number in (1, 2, 1, 2, 3):
        store.promote("m", number)
    store.delete("m", 2)
    assert store.rollback("m").version == 1
    with pytest.raises(VersionNotFoundError):
        store.rollback("m")


def test_checks_gate_and_are_written_down(store):
    store.save("m", b"1", metrics={"accuracy": 0.8})
    store.save("m", b"2", metrics={"accuracy": 0.7})

    def good_enough(version: ModelVersion):
        return (
            version.metrics["accuracy"] >= 0.75 or f"accuracy {version.metrics['accuracy']} < 0.75"
        )

    def numpy_says(version):
        return np.float64(version.number) < 2

    assert store.promote("m", 1, checks=[good_enough, numpy_says, lambda v: None]).evidence == {
        "good_enough": "passed",
        "numpy_says": "passed",
        "<lambda>": "passed",
    }
    with pytest.raises(ChecksFailedError) as caught:
        store.promote("m", 2, checks=[good_enough, numpy_says, good_enough])
    assert caught.value.failures == {
        "good_enough": "accuracy 0.7 < 0.75",
        "numpy_says": "returned False",
        "good_enough (2)": "accuracy 0.7 < 0.75",
    }
    assert store.aliases("m") == {"champion": 1}
    last = store.history("m")[-1]
    assert (last.kind, last.version, last.alias, last.previous) == ("refused", 2, "champion", 1)
    assert last.evidence == caught.value.failures


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (lambda v: False, "returned False"),
        (lambda v: "", "refused without a reason"),
        (lambda v: 1, "returned an int"),
        (lambda v: {"ok": True}, "returned a dict"),
        (lambda v: np.array([True, False]), "returned a ndarray"),
        (lambda v: v.metrics["absent"], "raised KeyError"),
    ],
)
def test_a_check_that_cannot_say_yes_says_no(store, says, reason):
    store.save("m", b"1")
    with pytest.raises(ChecksFailedError, match=reason):
        store.promote("m", 1, checks=[says])
    assert store.aliases("m") == {}


def test_an_alias_that_moves_while_checks_judge_is_a_conflict(store):
    for content in (b"1", b"2", b"3"):
        store.save("m", content)
    store.promote("m", 1)

    def slow(version):  # a check may use the store: no lock is held
        store.promote("m", 3)

    with pytest.raises(AliasConflictError):
        store.promote("m", 2, checks=[slow])
    assert store.aliases("m") == {"champion": 3}


def test_a_version_deleted_while_checks_judge_is_gone(store):
    store.save("m", b"1")
    with pytest.raises(VersionNotFoundError, match="deleted"):
        store.promote("m", 1, checks=[lambda v: store.delete("m", 1) and None])


def test_deleting(store, tmp_path):
    shared = store.save("m", b"shared", spec={"a": 1})
    store.save("m", b"alone")
    store.save("other", b"shared", spec={"a": 1})
    store.promote("m", 1, to="champion")
    store.promote("m", 1, to="shadow")
    with pytest.raises(VersionInUseError) as caught:
        store.delete("m", 1)
    assert caught.value.aliases == ("champion", "shadow")
    store.promote("m", 2, to="champion")
    store.promote("m", 2, to="shadow")
    assert store.delete("m", shared, why="superseded").why == "superseded"
    assert [version.number for version in store.versions("m")] == [2]
    with pytest.raises(VersionNotFoundError, match="it was deleted"):
        store.load("m@1")
    assert store.load("other@1") == b"shared", "another version has the same content"
    assert store.save("m", b"new").number == 3, "a number is never given again"
    blobs = lambda: sum(path.is_file() for path in (tmp_path / "models" / "blobs").rglob("*"))
    before = blobs()
    store.delete("m", 3)
    store.delete("other", 1)
    assert blobs() == before - 4
    assert store.names() == ["m", "other"], "what happened to a model stays known"
    assert store.versions("other") == []


def test_deleting_what_is_only_in_an_old_holder_list(store):
    store.save("m", b"1")
    store.delete("m", 1)
    with pytest.raises(VersionNotFoundError):
        store.delete("m", 1)


def test_deleting_beside_a_damaged_history_keeps_what_it_may_use(store):
    store.save("m", b"shared")
    store.save("other", b"shared")
    log = Path(store.path) / "models" / "other.jsonl"
    content = log.read_bytes()
    log.write_bytes(b"damaged" + content)
    with record_events("models.") as events:
        store.delete("m", 1)
    assert events[0].fields["files_kept"] == 2
    log.write_bytes(content)
    assert ModelStore(store.path).load("other@1") == b"shared"


def test_a_version_that_was_deleted_meanwhile_says_so(store):
    store.save("m", b"1", spec={"a": 1})
    (listed,) = store.versions("m")
    store.delete("m", 1)
    assert listed.number == 1
    with pytest.raises(VersionNotFoundError, match="deleted"):
        _ = listed.spec


def test_what_a_caller_does_to_a_change_stays_with_the_caller(store):
    store.save("m", b"1")
    store.promote("m", 1, checks=[lambda v: True]).evidence.clear()
    store.history("m")[-1].evidence.clear()
    assert store.history("m")[-1].evidence == {"<lambda>": "passed"}


def test_history_has_who_when_why(tmp_path):
    with virtual_time() as time:
        store = ModelStore(tmp_path)
        store.save("m", b"1", why="nightly")
        time.advance(60)
        store.promote("m", 1, why="first")
    saved, promoted = store.history("m")
    assert promoted.time - saved.time == pytest.approx(60)
    assert (saved.sequence, saved.kind, saved.why) == (1, "saved", "nightly")
    assert "@" in saved.who


def test_stores_and_versions_pickle_and_copy(store):
    version = store.save("m", b"1", spec={"a": 1}, metrics={"x": 1})
    for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert twin.load("m@1") == b"1"
        assert twin.save("n", b"2").who == "ada@lab"
    twin = pickle.loads(pickle.dumps(version))
    assert twin == version
    assert (twin.spec, dict(twin.metrics)) == ({"a": 1}, {"x": 1})


def test_two_stores_on_one_folder_see_each_other(tmp_path):
    one, two = ModelStore(tmp_path), ModelStore(tmp_path)
    for number in range(1, 5):
        one.save("m", b"x")
        assert len(two.versions("m")) == number
        two.promote("m", number)
        assert one.aliases("m") == {"champion": number}


def test_telemetry_counts_success_and_tells_of_moves(store):
    def counted():
        return {s.name: s.value for s in collect() if s.name.startswith("models_")}

    before = counted()
    with record_events("models.") as events:
        store.save("m", b"1")
        store.save("m", b"2")
        store.load("m@1")
        store.promote("m", 1)
        store.promote("m", 2)
        store.rollback("m")
        with pytest.raises(ChecksFailedError):
            store.promote("m", 2, checks=[lambda v: False])
        store.delete("m", 2)
    after = counted()
    assert after["models_saves_total"] - before["models_saves_total"] == 2
    assert after["models_loads_total"] - before["models_loads_total"] == 1
    assert [(event.kind, event.fields["version"]) for event in events] == [
        ("models.alias.moved", 1),
        ("models.alias.moved", 2),
        ("models.alias.moved", 1),
        ("models.promotion.refused", 2),
        ("models.version.deleted", 2),
    ]


def test_a_listener_may_use_the_store(store):
    from mlkit.telemetry import listen

    store.save("m", b"1")
    seen = []
    with listen(lambda event: seen.append(store.save("log", event.kind.encode())), scope="context"):
        store.promote("m", 1)
    assert seen[0].ref == "log@1"


def test_threads_share_one_store(store):
    barrier, failed = threading.Barrier(6), []

    def work(index):
        barrier.wait()
        try:
            for turn in range(5):
                version = store.save("m", f"{index}-{turn}".encode())
                store.promote("m", version)
                assert store.load(version) == f"{index}-{turn}".encode()
                store.versions("m"), store.aliases("m")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [version.number for version in store.versions("m")] == list(range(1, 31))
    moves = [change for change in store.history("m") if change.kind == "promoted"]
    assert [move.previous for move in moves] == [None, *(move.version for move in moves[:-1])]


@pytest.mark.parametrize(
    "arguments",
    [
        dict(name="m@1"), dict(name=""), dict(name=".."), dict(name=3), dict(name=None),
        dict(spec=[1]), dict(spec="x"), dict(spec={1: 2}), dict(spec={"a": {1}}), dict(spec={"a": object()}),
        dict(spec={"a": np.zeros(2)}), dict(spec={"a": b"x"}), dict(spec={"a": 1 << 5000}),
        dict(manifest=7), dict(signature=[]),
        dict(metrics=[1]), dict(metrics={"a": "0.9"}), dict(metrics={"a": b"1"}), dict(metrics={1: 1.0}),
        dict(metrics={"": 1.0}), dict(metrics={"a": None}), dict(metrics={"a": np.zeros(3)}),
        dict(metrics={"a": 1j}), dict(metrics={"a": 10**400}),
        dict(tags={"a": 1}), dict(tags={1: "a"}), dict(tags=["a"]), dict(tags={"": "a"}),
        dict(run=7), dict(run="x" * 1001), dict(why=None), dict(trust=True), dict(trust="yes"), dict(trust=["pickle"]),
        dict(model=lambda x: x, trust="pickle"), dict(model=threading.Lock(), trust="pickle"),
        dict(model="model.pt"), dict(model=Path("/no/such/file")), dict(model=Path("/")),
        dict(model={}), dict(model={"": np.zeros(1)}), dict(model={1: np.zeros(1)}),
        dict(model={"__metadata__": np.zeros(1)}), dict(model={"\ud800": np.zeros(1)}),
        dict(model={"a": np.ma.array([1], mask=[True])}),
        dict(manifest={"x": "a" * (17 << 20)}), dict(tags={"x": "a" * (2 << 20)}),
    ],
    ids=lambda arguments: next(f"{key}={value!r:.20}" for key, value in arguments.items()),
)  # fmt: skip
def test_save_refuses(store, arguments):
    store.save("m", b"1")
    with pytest.raises(ConfigurationError):
        store.save(**{"name": "m", "model": b"x"} | arguments)
    assert len(store.history("m")) == 1
    assert list((Path(store.path) / "tmp").iterdir()) == []


def test_a_bool_is_a_metric_of_1_or_0_as_in_a_run(store):
    metrics = {"a": True, "b": False, "c": np.True_, "d": np.False_}
    version = store.save("m", b"x", metrics=metrics)
    again = ModelStore(store.path).get("m@1")
    for found in (version.metrics, again.metrics):
        assert found == {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}
        assert {type(value) for value in found.values()} == {float}


def test_a_spec_object_is_pointed_to_its_plain_form(store):
    class Spec:
        def to_dict(self):
            return {}

    with pytest.raises(ConfigurationError, match="to_dict"):
        store.save("m", b"x", spec=Spec())


def test_a_cycle_in_a_spec_is_refused(store):
    spec = {}
    spec["self"] = spec
    with pytest.raises(ConfigurationError, match="cycles"):
        store.save("m", b"x", spec=spec)


CALLS = [
        lambda s: s.promote("m", True), lambda s: s.promote("m", 0), lambda s: s.promote("m", "1"),
        lambda s: s.promote("m", 1.0), lambda s: s.promote("m", None), lambda s: s.promote("n@1", 1),
        lambda s: s.promote("m", 1, to="latest"), lambda s: s.promote("m", 1, to="7"),
        lambda s: s.promote("m", 1, to="Champion"), lambda s: s.promote("m", 1, to=""),
        lambda s: s.promote("m", 1, to=None), lambda s: s.promote("m", 1, to="a" * 41),
        lambda s: s.promote("m", 1, expect=True), lambda s: s.promote("m", 1, expect="1"),
        lambda s: s.promote("m", 1, checks=len), lambda s: s.promote("m", 1, checks=[1]),
        lambda s: s.promote("m", 1, checks="check"), lambda s: s.promote("m", 1, why=3),
        lambda s: s.promote("m", s.save("n", b"x")), lambda s: s.rollback("m", 3),
        lambda s: s.rollback("m", "champion", expect=None), lambda s: s.delete("m", True),
        lambda s: s.delete("m", "m@1"), lambda s: s.load("m@1", build=3), lambda s: s.load("m@1", trust=1),
        lambda s: s.load("m@1", trust=["pickle"]), lambda s: ModelStore("s3://bucket/models"),
        lambda s: ModelStore(Path("s3://bucket/models")), lambda s: ModelStore("file:///models"),
        lambda s: ModelStore("a\0b"),
        lambda s: s.load("m@1", build=dict), lambda s: ModelStore(""), lambda s: ModelStore(3),
        lambda s: ModelStore(b"/tmp"), lambda s: ModelStore("x", who=3), lambda s: s.versions("../m"),
        lambda s: s.history(None), lambda s: s.aliases("m@champion"),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_calls_refuse(store, call):
    store.save("m", b"x")
    with pytest.raises(ConfigurationError):
        call(store)
    assert len(store.history("m")) == 1


def test_a_version_of_another_store_is_not_taken_for_ours(tmp_path):
    ours, theirs = ModelStore(tmp_path / "a"), ModelStore(tmp_path / "b")
    ours.save("m", b"ours")
    with pytest.raises(ConfigurationError, match="of this store"):
        ours.load(theirs.save("m", b"theirs"))


def test_a_version_of_another_store_moves_and_deletes_nothing(tmp_path):
    ours, theirs = ModelStore(tmp_path / "a"), ModelStore(tmp_path / "b")
    for content in (b"1", b"2", b"3"):
        ours.save("m", content)
        theirs.save("m", content + b"!")
    ours.promote("m", 2)
    ours.promote("m", 3)
    before = ours.history("m")
    for call in (
        lambda: ours.promote("m", theirs.get("m@1")),
        lambda: ours.promote("m", 1, expect=theirs.get("m@3")),
        lambda: ours.rollback("m", expect=theirs.get("m@3")),
        lambda: ours.delete("m", theirs.get("m@1")),
    ):
        with pytest.raises(ConfigurationError, match="of this store"):
            call()
    assert ours.history("m") == before
    theirs.delete("m", 1)
    twin = theirs.save("m", b"4")
    with pytest.raises(VersionNotFoundError):
        ours.promote("m", twin)


def test_pickle_needs_two_decisions(store):
    class_free = {"threshold": 0.5}
    with pytest.raises(UntrustedFormatError, match=r"'threshold', of type float, .*trust='pickle'"):
        store.save("m", class_free)
    assert store.names() == []
    version = store.save("m", class_free, trust="pickle")
    assert version.format == "pickle"
    with pytest.raises(UntrustedFormatError):
        store.load("m@1")
    assert store.load("m@1", trust="pickle") == class_free


def test_trust_does_not_force_pickle(store):
    assert store.save("m", {"a": np.zeros(1)}, trust="pickle").format == "numpy"
    assert store.save("m", b"x", trust="pickle").format == "bytes"


def test_what_was_probably_meant_is_said(store):
    class Run:
        id = "run-1"

    with pytest.raises(ConfigurationError, match="pass its id"):
        store.save("m", b"x", run=Run())
    with pytest.raises(ConfigurationError, match="MlflowModelStore"):
        store.load("models:/m/1")
