"""Files that change under the reader: every way they are replaced, broken and mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlkit.errors import DegradedWarning, FlagFileError
from mlkit.flags import Flags
from mlkit.testing import record_events, virtual_time

MANY = list(range(1, 101))


def text(**values):
    flags = {
        key: {"state": "ENABLED", "variants": {"v": value}, "defaultVariant": "v"}
        for key, value in values.items()
    }
    return json.dumps({"flags": flags})


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "flags.json"
    made.write_text(text(f=1))
    return made


def replace(path, content):
    beside = path.with_suffix(".new")
    beside.write_text(content)
    beside.replace(path)


def test_a_changed_file_is_one_change(path):
    flags = Flags.from_file(path)
    assert flags.reload() is None
    path.write_text(text(f=2, g=1))
    with record_events("flags.") as events:
        change = flags.reload()
    assert (change.added, change.removed, change.changed) == (("g",), (), ("f",))
    assert [event.kind for event in events] == ["flags.changed"]
    path.write_text(text(f=2, g=1) + " \n")
    assert flags.reload() is None  # other bytes, same flags
    assert Flags.in_memory({"f": 1}).reload() is None


@pytest.mark.parametrize("watch", [False, True])
def test_a_missing_file_is_an_error_at_first(tmp_path, watch):
    with pytest.raises(FlagFileError, match="cannot be read"):
        Flags.from_file(tmp_path / "absent.json", watch=watch)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"flags": {"f": NaN}}',
        b"null",
        b'{"flags": []}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_broken_file_changes_nothing_until_it_is_mended(path, content):
    flags = Flags.from_file(path)
    flag, digest = flags.int("f", default=0), flags.digest
    path.write_bytes(content)
    with record_events("flags.") as events:
        for _ in range(2):
            with pytest.raises(FlagFileError):
                flags.reload()
    assert [event.kind for event in events] == ["flags.reload.failed"]
    assert (flag(), flags.digest) == (1, digest)
    (problem,) = flags.problems
    assert (problem.flag, problem.kept) == (None, True)
    path.unlink()
    with pytest.raises(FlagFileError, match="No such file"):
        flags.reload()
    path.write_text(text(f=1))
    assert flags.reload() is None
    assert flags.problems == ()


def test_a_bad_flag_keeps_its_last_good_definition(path):
    flags = Flags.from_file(path)
    f, g = flags.int("f", default=0), flags.int("g", default=0)
    bad = json.loads(text(f=2, g=3))
    bad["flags"]["f"]["targeting"] = {"if": [{"starts_wiht": ["a", "b"]}, "v"]}
    path.write_text(json.dumps(bad))
    with record_events("flags.flag.quarantined") as events:
        flags.reload()
        bad["flags"]["g"]["variants"]["v"] = 4
        path.write_text(json.dumps(bad))
        flags.reload()
    assert (f(), g()) == (1, 4)
    (problem,) = flags.problems
    assert problem.pointer == "/flags/f/targeting/if/0/starts_wiht"
    assert "did you mean 'starts_with'" in problem.message
    assert problem.kept
    assert len(events) == 1
    path.write_text(text(f=5, g=4))
    flags.reload()
    assert (f(), flags.problems) == (5, ())


@pytest.mark.parametrize(
    ("flag", "pointer"),
    [
        (None, ""),
        ({}, "/state"),
        ({"state": ["ENABLED"], "variants": {"a": 1}}, "/state"),
        ({"state": "ENABLED", "variants": {"": 1}}, "/variants/"),
        ({"state": "on", "variants": {"a": 1}}, "/state"),
        ({"state": "ENABLED"}, "/variants"),
        ({"state": "ENABLED", "variants": {}}, "/variants"),
        ({"state": "ENABLED", "variants": {"a": None}}, "/variants/a"),
        ({"state": "ENABLED", "variants": {"a": 1, "b": "x"}}, "/variants"),
        ({"state": "ENABLED", "variants": {"a": 2**53}}, "/variants/a"),
        ({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "b"}, "/defaultVariant"),
        ({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": 3}, "/defaultVariant"),
        ({"state": "ENABLED", "variants": {"a": 1}, "metadata": {"k": []}}, "/metadata/k"),
        ({"state": "ENABLED", "variants": {"a": 1}, "metadata": {"bucketing": "v4"}}, "/metadata/bucketing"),
        ({"state": "ENABLED", "variants": {"a": 1}, "targeting": []}, "/targeting"),
        ({"state": "ENABLED", "variants": {"a": 1}, "targeting": {"$ref": "gone"}}, "/targeting/$ref"),
        ({"state": "ENABLED", "variants": {"a": 1}, "targeting": {"if": [1], "or": [2]}}, "/targeting"),
        ({"state": "ENABLED", "variants": {"a": 1}, "targeting": {"or": [{"a/b~": 1}]}}, "/targeting/or/0/a~1b~0"),
    ],
)  # fmt: skip
def test_problems_are_located(flag, pointer):
    flags = Flags.from_dict({"flags": {"x": flag}})
    (problem,) = flags.problems
    assert (problem.flag, problem.pointer, problem.kept) == ("x", f"/flags/x{pointer}", False)
    assert flags.int("x", default=3).details()[:4] == (3, None, "ERROR", "PARSE_ERROR")


def test_a_misspelt_state_is_a_problem_with_the_nearest():
    flags = Flags.from_dict(
        {"flags": {"x": {"state": "ENABLD", "variants": {"a": 1}, "defaultVariant": "a"}}}
    )
    assert [(problem.flag, problem.pointer, problem.message) for problem in flags.problems] == [
        (
            "x",
            "/flags/x/state",
            "expected 'ENABLED' or 'DISABLED', got 'ENABLD'; did you mean 'ENABLED'?",
        )
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "expected an object with a key 'flags'"),
        (
            {"flag": {}, "metadata": {}},
            "expected an object with a key 'flags'; it has flag, metadata",
        ),
    ],
)
def test_a_file_without_flags_says_what_it_lacks(document, message, path):
    path.write_text(json.dumps(document))
    with pytest.raises(FlagFileError) as caught:
        Flags.from_file(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("depth", [50, 150, 300, 600, 900])
def test_deep_values_are_a_value_or_a_problem(depth, path):
    good = '{"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a"}'
    deep = good.replace("1", "[" * depth + "]" * depth)
    path.write_text(f'{{"flags": {{"f": {good}, "deep": {deep}}}}}')
    flags = Flags.from_file(path)
    assert flags.int("f", default=0)() == 1
    deep = flags.json("deep", default={}).details()
    refused = any(each.severity == "error" for each in flags.problems)
    assert (deep.error == "PARSE_ERROR") is refused
    assert refused or deep.variant == "a"


def test_references():
    rule = {
        "state": "ENABLED",
        "variants": {"a": {"$ref": "is_pro"}, "b": {}},
        "targeting": {"if": [{"$ref": "is_pro"}, "a", "b"]},
    }
    evaluators = {
        "is_pro": {"or": [{"$ref": "is_é\\\n"}, False]},
        "is_é\\\n": {"==": [{"var": "plan"}, "pro"]},
    }
    flags = Flags.from_dict({"flags": {"f": rule}, "$evaluators": evaluators})
    assert flags.json("f", default=[])(plan="pro") == {
        "$ref": "is_pro"
    }  # only rules are referred to
    loop = {"a": {"!": {"$ref": "b"}}, "b": {"!": {"$ref": "a"}}}
    flags = Flags.from_dict(
        {"flags": {"f": {**rule, "targeting": {"$ref": "a"}}}, "$evaluators": loop}
    )
    assert "circle" in flags.problems[0].message


def test_hostile_files_are_bounded(tmp_path):
    bomb = {
        "e0": {"and": [True, True]},
        **{f"e{n}": {"and": [{"$ref": f"e{n - 1}"}] * 10} for n in range(1, 30)},
    }
    deep = 0
    for _ in range(300):
        deep = {"!": deep}
    flag = {"state": "ENABLED", "variants": {"a": True}}
    flags = Flags.from_dict(
        {
            "$evaluators": bomb,
            "flags": {
                "bomb": {**flag, "targeting": {"$ref": "e29"}},
                "deep": {**flag, "targeting": deep},
                "wide": {**flag, "targeting": {"or": [{"!": 1}] * 25_000}},
                "good": {**flag, "defaultVariant": "a"},
            },
        }
    )
    assert {problem.flag for problem in flags.problems} == {"bomb", "deep", "wide"}
    assert flags.bool("good", default=False)() is True
    path = tmp_path / "deep.json"
    path.write_text('{"flags": {"f": ' + "[" * 100_000 + "]" * 100_000 + "}}")
    with pytest.raises(FlagFileError, match="not JSON"):
        Flags.from_file(path)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"all": [MANY, {"all": [MANY, {"all": [MANY, {"all": [MANY, True]}]}]}]}, "LimitError"),
        ({"reduce": [{"var": "y"}, {"cat": [{"var": "accumulator"}, {"var": "accumulator"}]}, "xx"]}, "LimitError"),
        ({"reduce": [{"var": "y"}, {"merge": [{"var": "accumulator"}, {"var": "accumulator"}]}, [1]]}, "too large"),
        ({"reduce": [{"var": "y"}, {"*": [{"var": "accumulator"}, {"var": "accumulator"}]}, 1e10]}, "no variant"),
        ({"fractional": [{"var": "s"}, ["a", 1]]}, "LimitError"),
        ({"cat": [{"reduce": [{"var": "y"}, [{"var": "accumulator"}, {"var": "accumulator"}], 1]}]}, "too large"),
    ],
)  # fmt: skip
def test_rules_that_explode_stop(rule, why):
    flags = Flags.from_dict(
        {"flags": {"f": {"state": "ENABLED", "variants": {"a": True}, "targeting": rule}}}
    )
    assert flags.problems == ()
    details = flags.bool("f", default=False).details("u", y=MANY * 10, s="x" * 10**6)
    assert (details.value, details.reason) == (False, "ERROR")
    assert why in details.message


# --- watching ----------------------------------------------------------------------------------------------------


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def in_place(path, content):
    path.write_text(content)


def same_time_and_size(path, content):
    status = path.stat()
    path.write_text(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def older(path, content):
    replace(path, content)
    os.utime(path, (1, 1))


def gone_and_back(path, content):
    path.unlink()
    time.sleep(0.03)
    path.write_text(content)


def partial_first(path, content):
    path.write_text(content[: len(content) // 2])
    time.sleep(0.03)
    path.write_text(content)


@pytest.mark.parametrize(
    "how", [in_place, replace, same_time_and_size, older, gone_and_back, partial_first]
)
def test_the_watcher_sees_it(path, how):
    with Flags.from_file(path, watch=True, interval=0.01) as flags:
        flag = flags.int("f", default=0)
        assert flag() == 1
        how(path, text(f=2))
        until(lambda: flag() == 2)
        how(path, text(f=3))
        until(lambda: flag() == 3)
        until(lambda: flags.problems == ())


def test_the_watcher_sees_two_changes_within_one_tick(path):
    with Flags.from_file(path, watch=True, interval=0.005) as flags:
        flag = flags.int("f", default=0)
        for n in range(2, 9):
            path.write_text(text(f=1))
            flags.reload()
            path.write_text(text(f=n))  # as large, and for many file systems as old
            until(lambda n=n: flag() == n)


def test_the_watcher_sees_a_kubernetes_symlink_swap(tmp_path):
    for n in (1, 2):
        folder = tmp_path / f"..2026_0{n}"
        folder.mkdir()
        (folder / "flags.json").write_text(text(f=n))
        os.utime(folder / "flags.json", (1, 1))
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "flags.json").symlink_to("..data/flags.json")
    with Flags.from_file(tmp_path / "flags.json", watch=True, interval=0.01) as flags:
        flag = flags.int("f", default=0)
        assert flag() == 1
        (tmp_path / "..data_tmp").symlink_to("..2026_02")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        until(lambda: flag() == 2)


def test_the_watcher_lives_in_virtual_time_and_ends(path):
    with virtual_time(autojump=False) as clock:
        flags = Flags.from_file(path, watch=True, interval=60)
        path.write_text(text(f=2))
        flag = flags.int("f", default=0)
        assert flag() == 1
        assert flags.age == 0
        clock.advance(59)
        assert flags.age == 59
        clock.advance(1)
        until(lambda: flag() == 2)
        assert flags.age == 0
        flags.close()
        flags.close()
        clock.advance(100)
        assert flags.age == 100
        assert flag() == 2


def test_watching_keeps_no_flags_alive(path):
    import gc
    import threading
    import weakref

    flags = Flags.from_file(path, watch=True, interval=0.01)
    flag = flags.int("f", default=0)
    gone = weakref.ref(flag)
    del flags, flag
    gc.collect()
    assert gone() is None
    until(lambda: not any(thread.name == "mlkit-flags" for thread in threading.enumerate()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_on_watching(path):
    code = """
        import os, sys, time
        from mlkit.flags import Flags
        flags = Flags.from_file(sys.argv[1], watch=True, interval=0.01)
        flag = flags.int("f", default=0)
        if os.fork() == 0:
            print("child", flag(), flush=True)
            for _ in range(12_000):
                if flag() == 2:
                    os._exit(0)
                time.sleep(0.005)
            os._exit(1)
        print("status", os.wait()[1], flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "child 1\n"
    replace(path, text(f=2))
    assert process.stdout.readline() == "status 0\n"
    assert process.wait(300) == 0
    process.stdout.close()


# --- the ways in which a file is replaced, with and without a watcher ------------------------------------------------

OLD, NEW = text(f=1), text(f=2)


def older_time(path):
    path.write_text(NEW)
    os.utime(path, (1, 1))


def equal_time_and_size(path):
    status = path.stat()
    path.write_text(NEW)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def in_one_step(path):
    replace(path, NEW)


def in_one_step_with_equal_time_and_size(path):
    status = path.stat()
    beside = path.with_suffix(".new")
    beside.write_text(NEW)
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.replace(path)


def in_place(path):
    path.write_text(NEW)


def by_hard_link(path):
    beside = path.with_suffix(".new")
    beside.write_text(NEW)
    path.unlink()
    os.link(beside, path)


def by_symbolic_link(path):
    beside = path.with_suffix(".new")
    beside.write_text(NEW)
    path.unlink()
    path.symlink_to(beside.name)


def by_renamed_folder(path):
    folder = path.parent
    beside = folder.with_name("beside")
    beside.mkdir()
    (beside / path.name).write_text(NEW)
    folder.rename(folder.with_name("gone"))
    beside.rename(folder)


REPLACED = [
    older_time,
    equal_time_and_size,
    in_one_step,
    in_one_step_with_equal_time_and_size,
    in_place,
    by_hard_link,
    by_symbolic_link,
    by_renamed_folder,
]


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("how", REPLACED)
def test_every_replacement_is_seen(tmp_path, how, settled):
    folder = tmp_path / "flags"
    folder.mkdir()
    path = folder / "flags.json"
    path.write_text(OLD)
    with virtual_time(autojump=False) as clock:
        if settled:  # long after the last change: a look costs one `stat`
            clock.advance(max(0.0, time.time() - clock.time()) + 100)
        flags = Flags.from_file(path, watch=True, interval=1)
        f = flags.int("f", default=0)
        how(path)
        clock.advance(1)
        until(lambda: f() == 2)
        assert flags.problems == ()
        flags.close()


def test_a_file_that_is_as_it_was_is_not_read_again(path, monkeypatch):
    with virtual_time(autojump=False) as clock:
        clock.advance(max(0.0, time.time() - clock.time()) + 100)
        flags = Flags.from_file(path, watch=True, interval=1)
        clock.advance(5)
        until(lambda: flags.age == 0)
        opened = []
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda *args, **kw: opened.append(args) or real(*args, **kw)
        )
        for _ in range(5):
            clock.advance(1)
            until(lambda: flags.age == 0)
        assert not opened
        flags.close()


def as_somebody(act):
    """Do something with no more rights than anybody has."""
    if os.geteuid() != 0:
        act()
        return
    os.seteuid(65534)
    try:
        act()
    finally:
        os.seteuid(0)


def test_a_permission_that_is_lost_and_given_back():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "flags.json"
        path.write_text(text(f=1))
        path.chmod(0o644)
        flags = Flags.from_file(path)
        f = flags.int("f", default=0)

        def refused():
            with pytest.raises(FlagFileError, match="Permission denied"):
                flags.reload()

        path.chmod(0)
        as_somebody(refused)
        assert f() == 1
        assert "Permission denied" in flags.problems[0].message
        path.chmod(0o644)
        as_somebody(flags.reload)
        assert flags.problems == ()


@pytest.mark.parametrize("what", ["folder", "pipe", "loop", "nothing"])
def test_something_else_in_place_of_the_file(path, what):
    flags = Flags.from_file(path)
    f = flags.int("f", default=0)
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)  # a plain open would wait for a writer
    elif what == "loop":
        path.symlink_to(path.name)
    with pytest.raises(FlagFileError, match="cannot be read"):
        flags.reload()
    with pytest.raises(FlagFileError, match="cannot be read"):
        Flags.from_file(path)
    assert f() == 1
    path.rmdir() if what == "folder" else path.unlink(missing_ok=True)
    path.write_text(text(f=2))
    flags.reload()
    assert (f(), flags.problems) == (2, ())


def test_the_watcher_lives_through_everything(path):
    with Flags.from_file(path, watch=True, interval=0.003) as flags:
        f = flags.int("f", default=0)
        path.write_text(text(f=2)[:30])  # half written
        until(lambda: flags.problems)
        assert f() == 1
        path.write_text(text(f=2))
        until(lambda: f() == 2)
        assert flags.problems == ()
        path.unlink()
        until(lambda: flags.problems)
        path.mkdir()
        time.sleep(0.02)
        path.rmdir()
        assert f() == 2
        path.write_text(text(f=3))
        until(lambda: f() == 3)
        bad = json.loads(text(f=4, g=4))
        bad["flags"]["f"]["variants"] = {}
        path.write_text(json.dumps(bad))
        until(lambda: flags.int("g", default=0)() == 4)
        assert f() == 3
        path.write_text(text(f=4, g=4))
        until(lambda: f() == 4)
        assert flags.problems == ()


def test_bytes_that_were_refused_are_not_parsed_again(path, monkeypatch):
    from mlkit.flags import _store

    flags = Flags.from_file(path)
    path.write_text("{")
    parsed = []
    real = _store.parse
    monkeypatch.setattr(_store, "parse", lambda *args: parsed.append(1) or real(*args))
    said = set()
    for _ in range(5):
        with pytest.raises(FlagFileError) as caught:
            flags.reload()
        said.add(str(caught.value))
    assert len(parsed) == 1
    assert len(said) == 1


def test_a_file_that_is_written_while_it_is_read_is_read_again(path, monkeypatch):
    """The signature that is trusted later is of the bytes that were read."""
    with virtual_time(autojump=False) as clock:
        clock.advance(max(0.0, time.time() - clock.time()) + 100)
        flags = Flags.from_file(path, watch=True, interval=1)
        f = flags.int("f", default=0)
        real, calls = os.fstat, []

        def written_after_the_first_look(descriptor):
            status = real(descriptor)
            calls.append(1)
            if len(calls) == 2:
                path.write_text(text(f=3))
            return real(descriptor) if len(calls) == 2 else status

        path.write_text(text(f=2))
        monkeypatch.setattr(os, "fstat", written_after_the_first_look)
        clock.advance(1)
        until(lambda: f() == 2)
        monkeypatch.undo()
        clock.advance(1)
        until(lambda: f() == 3)
        flags.close()


# --- who is told -----------------------------------------------------------------------------------------------------


def test_listeners_are_told_outside_every_lock(path):
    import threading

    flags = Flags.from_file(path)
    seen = []

    def listener(change):
        # Were a lock held, another thread could not do any of this.
        done = []

        def work():
            flags.reload()
            flags.int("late", default=0)
            flags.on_change(lambda _: None)()
            done.append(1)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(60)
        seen.append((change.keys, flags.digest == change.after, done))

    flags.on_change(listener)
    path.write_text(text(f=2))
    flags.reload()
    assert seen == [(("f",), True, [1])]


def test_a_listener_that_fails_disturbs_nobody(path):
    flags = Flags.from_file(path)
    f, seen = flags.int("f", default=0), []
    flags.on_change(lambda _: 1 / 0)
    stop = flags.on_change(seen.append)
    path.write_text(text(f=2))
    with pytest.warns(DegradedWarning, match="ZeroDivisionError"):
        change = flags.reload()
    assert (f(), seen) == (2, [change])
    stop()
    stop()
    path.write_text(text(f=3))
    with pytest.warns(DegradedWarning, match="ZeroDivisionError"):
        flags.reload()
    assert (f(), len(seen)) == (3, 1)


# --- many readers, many processes ------------------------------------------------------------------------------------


def test_readers_see_a_reload_entirely_or_not_at_all(path):
    import threading

    def document(n):
        return json.dumps(
            {"metadata": {"n": n}, **json.loads(text(**dict.fromkeys(("f", "g", "h", "i"), n)))}
        )

    path.write_text(document(0))
    wrong, done, n_seen = [], threading.Event(), set()
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Flags.from_file(path, watch=True, interval=0.001) as flags:
            handles = [flags.int(key, default=-1) for key in "fghi"]

            def read():
                while not done.is_set():
                    with flags.snapshot():
                        seen = [handle.details() for handle in handles]
                    values = {one.value for one in seen} | {seen[0].metadata["n"]}
                    n_seen.update(values)
                    if len(values) != 1 or len({one.digest for one in seen}) != 1:
                        wrong.append(seen)

            threads = [threading.Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for n in range(1, 30):
                replace(path, document(n))
                time.sleep(0.004)
                if n % 4 == 0:  # a busy machine might skip any of them, and all but the last
                    until(lambda n=n: n in n_seen)
            until(lambda: 29 in n_seen)
            done.set()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong
    assert len(n_seen) > 5


SPLIT = {
    "flags": {
        "ranker": {
            "state": "ENABLED",
            "variants": {"v1": "v1", "v2": "v2"},
            "defaultVariant": "v1",
            "targeting": {"fractional": [["v1", 70], ["v2", 30]]},
        }
    }
}


def decisions(flags):
    ranker = flags.str("ranker", default="none")
    return flags.digest, "".join(ranker(unit)[1] for unit in range(300))


def spawned(path, results):
    """What a process started anew decides, before and after a change of the file."""
    with Flags.from_file(path, watch=True, interval=0.01) as flags:
        first = decisions(flags)
        results.send(first)
        # The digest that was told, not the one now: the file may have been changed since.
        until(lambda: flags.digest != first[0], seconds=60.0)
        results.send(decisions(flags))


def test_spawned_processes_decide_alike(path):
    import multiprocessing

    path.write_text(json.dumps(SPLIT))
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=spawned, args=(str(path), said)) for _, said in pipes]
    for worker, (_, said) in zip(workers, pipes, strict=True):
        worker.start()
        said.close()  # so that a worker that dies is the end of its pipe

    def heard():
        return {pipe.recv() for pipe, _ in pipes}

    first = heard()
    assert first == {decisions(Flags.from_file(path))}
    changed = json.loads(json.dumps(SPLIT))
    changed["flags"]["ranker"]["targeting"]["fractional"] = [["v1", 10], ["v2", 90]]
    replace(path, json.dumps(changed))
    second = heard()
    assert second == {decisions(Flags.from_file(path))}
    assert first != second
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_server_that_forks_its_workers_beforehand(path, busy):
    """As gunicorn does with `preload_app`: every worker follows the file, and all decide alike."""
    code = """
        import json, os, sys, threading, time
        from mlkit.flags import Flags
        path, busy = sys.argv[1], sys.argv[2] == "True"
        flags = Flags.from_file(path, watch=True, interval=0.001 if busy else 0.01)
        ranker = flags.str("ranker", default="none")

        def decide():
            return flags.digest, "".join(ranker(unit)[1] for unit in range(300))

        before = flags.digest
        if busy:  # fork while locks are taken all the time
            def churn():
                while True:
                    flags.reload()
                    flags.int(f"late-{time.monotonic_ns() % 50}", default=0)
            for _ in range(2):
                threading.Thread(target=churn, daemon=True).start()
            time.sleep(0.02)
        children, (heard, said) = [], os.pipe()
        for _ in range(4):
            child = os.fork()
            if child == 0:
                lines = [decide()]
                os.write(said, b".")
                end = time.monotonic() + 60
                while flags.digest == before and time.monotonic() < end:
                    time.sleep(0.002)
                lines.append(decide())
                flags.reload()
                flags.int("after", default=0)
                os.write(1, (json.dumps(lines) + "\\n").encode())
                os._exit(0)
            children.append(child)
        document = json.load(open(path))
        document["flags"]["ranker"]["targeting"]["fractional"] = [["v1", 10], ["v2", 90]]
        for _ in children:  # else a worker that comes late sees the new file at once
            os.read(heard, 1)
        with open(path + ".new", "w") as file:
            json.dump(document, file)
        os.replace(path + ".new", path)
        status = [os.waitpid(child, 0)[1] for child in children]
        os.write(1, (json.dumps(status) + "\\n").encode())
        os._exit(0)
    """
    path.write_text(json.dumps(SPLIT))
    first = list(decisions(Flags.from_file(path)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(path), str(busy)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5, done.stderr
    assert [0, 0, 0, 0] in lines
    second = list(decisions(Flags.from_file(path)))
    assert [line for line in lines if line != [0, 0, 0, 0]] == [[first, second]] * 4


class FileHistory(RuleBasedStateMachine):
    """A file that is written, broken and removed, against a plain model of what must be in force."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "flags.json"
        self.path.write_text(text(f=0))
        self.flags = Flags.from_file(self.path)
        self.handles = {key: self.flags.int(key, default=-1) for key in "fgh"}
        self.expected = {"f": 0}
        self.good = {"f": 0}

    @rule(values=st.dictionaries(st.sampled_from("fgh"), st.integers(0, 3) | st.none()))
    def write(self, values):
        document = json.loads(text(**values))
        self.path.write_text(
            json.dumps(document)
        )  # null is no value for a variant: that flag is bad
        self.flags.reload()
        kept = {
            key: self.expected[key] if value is None else value
            for key, value in values.items()
            if value is not None or key in self.expected
        }
        self.expected = kept

    @rule(content=st.sampled_from(["", "[]", "{"]))
    def spoil(self, content):
        self.path.write_text(content)
        with pytest.raises(FlagFileError):
            self.flags.reload()

    @rule()
    def remove(self):
        self.path.unlink(missing_ok=True)
        with pytest.raises(FlagFileError):
            self.flags.reload()

    @invariant()
    def answers(self):
        assert {
            key: handle() for key, handle in self.handles.items() if handle() >= 0
        } == self.expected
        assert self.flags.digest == Flags.in_memory({}).digest or self.expected

    def teardown(self):
        self.folder.cleanup()


TestFileHistory = FileHistory.TestCase
TestFileHistory.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
