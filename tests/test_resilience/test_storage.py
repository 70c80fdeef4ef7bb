"""A breaker's shared state: the contract on what we ship and on doubles that each break a law, and real processes."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from mlkit.errors import BreakerOpenError, ConfigurationError
from mlkit.resilience import (
    Breaker,
    BreakerRecord,
    BreakerStorage,
    FileStorage,
    MemoryStorage,
    Policy,
)
from mlkit.testing import BreakerStorageContract, record_events, virtual_time


class TestMemoryStorage(BreakerStorageContract):
    one_backend = False

    def make_storage(self, place):
        return MemoryStorage()


class TestFileStorage(BreakerStorageContract):
    def make_storage(self, place):
        return FileStorage(place / "breakers")


def blocks_of(page):
    """Return what the Python blocks of a page of the docs define."""
    text, space = (Path(__file__).parents[2] / "docs/how-to" / page).read_text(encoding="utf-8"), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, space)
    return space


@pytest.fixture(scope="module")
def sqlite_storage(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("page"))
        yield blocks_of("share-a-breaker.md")["SqliteStorage"]


class TestSqliteStorage(BreakerStorageContract):
    """Written by somebody else: the storage of the how-to page, as it stands there."""

    @pytest.fixture(autouse=True)
    def _of_the_page(self, sqlite_storage):
        self.kind = sqlite_storage

    def make_storage(self, place):
        return self.kind(place / "breakers.db")


class Double:
    """A right storage in the plainest words, for doubles to break. All of one place have the same records."""

    refresh = 0.0

    def __init__(self, backend):
        self.records = backend.setdefault("records", {})
        self.lock = backend.setdefault("lock", threading.Lock())

    def key(self, name):
        return name

    def read(self, name):
        return self.records.get(self.key(name))

    def same(self, stored, old):
        return stored == old

    def swap(self, name, old, new):
        with self.lock:
            if not self.same(self.read(name), old):
                return False
            self.records[self.key(name)] = new
            return True


class KnowsWhatNobodyStored(Double):
    def read(self, name):
        return super().read(name) or BreakerRecord()


class StoresAnyway(Double):
    def same(self, stored, old):
        return True


class ComparesTheVersionOnly(Double):
    def same(self, stored, old):
        return getattr(stored, "version", None) == getattr(old, "version", None)


class ChecksAndThenStores(Double):
    def swap(self, name, old, new):
        if self.read(name) != old:
            return False
        time.sleep(1e-4)
        self.records[name] = new
        return True


class GivesListsForTuples(Double):
    def read(self, name):
        record = super().read(name)
        return record and record._replace(leases=[list(lease) for lease in record.leases])


class RoundsTimes(Double):
    def read(self, name):
        record = super().read(name)
        return record and record._replace(until=round(record.until, 3))


class FoldsNames(Double):
    def key(self, name):
        return name.lower()


class CutsNames(Double):
    def key(self, name):
        return name.rpartition("/")[2]


class RemembersWhatItRead(Double):
    def __init__(self, backend):
        super().__init__(backend)
        self.known = {}

    def read(self, name):
        return self.known.setdefault(name, super().read(name))


class HasALockOfItsOwn(Double):
    def __init__(self, backend):
        super().__init__(backend)
        self.lock = threading.Lock()

    def same(self, stored, old):
        same = super().same(stored, old)
        time.sleep(1e-4)
        return same


class IsReset(Double):
    def __init__(self, backend):
        super().__init__(backend)
        self.records.clear()


class NeverRefreshes(Double):
    refresh = float("inf")


BROKEN = [
    (KnowsWhatNobodyStored, "test_what_was_never_stored_is_none"),
    (StoresAnyway, "test_a_swap_from_something_else_changes_nothing"),
    (ComparesTheVersionOnly, "test_a_swap_from_something_else_changes_nothing"),
    (ChecksAndThenStores, "test_one_of_many_swaps_wins"),
    (GivesListsForTuples, "test_what_was_swapped_in_comes_back_equal"),
    (RoundsTimes, "test_what_was_swapped_in_comes_back_equal"),
    (FoldsNames, "test_names_do_not_affect_each_other"),
    (CutsNames, "test_names_do_not_affect_each_other"),
    (NeverRefreshes, "test_refresh_is_a_number_of_seconds"),
    (RemembersWhatItRead, "test_storages_of_one_place_are_one"),
    (HasALockOfItsOwn, "test_one_of_many_swaps_wins"),
    (IsReset, "test_a_breaker_that_comes_later_finds_it_open"),
]


def contract(kind):
    backend = {}

    class OnDouble(BreakerStorageContract):
        def make_storage(self, place):
            return kind(backend)

    return OnDouble()


LAWS = [name for name in dir(BreakerStorageContract) if name[:4] == "test"]


def test_the_page_says_how_many_tests_there_are():
    page = (Path(__file__).parents[2] / "docs/how-to/share-a-breaker.md").read_text("utf-8")
    assert f"\n{len(LAWS)} passed\n" in page
    assert {law for _, law in BROKEN} <= set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_the_right_double_keeps_every_law(law, tmp_path):
    getattr(contract(Double), law)(tmp_path)


@pytest.mark.parametrize(("kind", "law"), BROKEN)
def test_each_broken_double_is_caught_by_the_test_of_its_law(kind, law, tmp_path):
    with pytest.raises((AssertionError, TypeError)):
        getattr(contract(kind), law)(tmp_path)


def test_what_is_no_storage_is_refused():
    with pytest.raises(ConfigurationError, match=r"FileStorage\(folder\)"):
        FileStorage(3)
    with pytest.raises(ConfigurationError, match=r"Breaker\(storage"):
        Breaker(name="x", storage={})
    with pytest.raises(ConfigurationError, match="by which breakers of one storage"):
        Breaker(storage=MemoryStorage())
    assert isinstance(Double({}), BreakerStorage)


def test_others_hear_of_a_change_within_refresh(tmp_path):
    with virtual_time() as clock:
        one, other = (
            Breaker(name="ranker", storage=FileStorage(tmp_path, refresh=0.5)) for _ in range(2)
        )
        assert other.acquire() is not None
        one.trip()
        assert other.acquire() is not None  # has looked just now
        clock.advance(0.5)
        assert other.acquire() is None
        assert other.stats().retry_after == pytest.approx(29.5)
        guarded = Policy(breaker=other)(lambda: 1)
        with pytest.raises(BreakerOpenError):
            guarded()
        one.reset()
        clock.advance(0.5)
        assert guarded() == 1
        one.isolate()
        clock.advance(0.5)
        assert (other.acquire(), other.stats().state) == (None, "isolated")


def test_verdicts_of_each_process_are_its_own_and_a_success_stores_nothing():
    class Counting(Double):
        swaps = 0

        def swap(self, name, old, new):
            self.swaps += 1
            return super().swap(name, old, new)

    storage = Counting({})
    one, other = (Breaker(name="r", min_calls=4, window=8, storage=storage) for _ in range(2))
    for _ in range(3):
        for breaker in (one, other):
            breaker.settle(breaker.acquire(), True)
            breaker.settle(breaker.acquire(), True)
            breaker.settle(breaker.acquire(), False)
    assert storage.swaps == 0
    assert one.stats().calls == 8


def test_a_storage_that_fails_is_told_once_and_done_without():
    class Failing(Double):
        down = False

        def read(self, name):
            if self.down:
                raise OSError("disk full")
            return super().read(name)

    storage = Failing({})
    with virtual_time() as clock, record_events("resilience.breaker.") as events:
        one = Breaker(name="r", min_calls=1, window=2, cooldown=5.0, storage=storage)
        other = Breaker(name="r", min_calls=1, window=2, cooldown=5.0, storage=storage)
        guarded = Policy(breaker=one)(lambda ok: ok or 1 / 0)
        storage.down = True
        assert guarded(True)
        with pytest.raises(ZeroDivisionError):
            guarded(False)
        with pytest.raises(BreakerOpenError):
            guarded(True)  # it goes on alone
        kinds = [event.kind for event in events]
        assert kinds.count("resilience.breaker.storage_failed") == 1
        storage.down = False
        other.isolate()
        clock.advance(1.0)
        assert one.acquire() is None
        assert one.state == "isolated"  # what is stored counts again
        other.reset()
        assert guarded(True)


def test_times_of_before_a_restart_of_the_host_do_not_hold_it_open(tmp_path):
    storage = FileStorage(tmp_path)
    assert storage.swap("r", None, BreakerRecord(1, 1, "open", until=1e9))
    with virtual_time() as clock:
        breaker = Breaker(name="r", cooldown=30.0, storage=storage)
        assert breaker.acquire() is None
        assert breaker.stats().retry_after == pytest.approx(30.0)
        clock.advance(15.0)
        assert breaker.stats().retry_after == pytest.approx(15.0)
        clock.advance(15.0)
        assert breaker.acquire() is not None


def test_a_lock_that_nobody_lets_go_of_blocks_nobody_for_long(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.undo()  # the patience of the others

    Breaker(name="r", storage=FileStorage(tmp_path)).reset()
    (path,) = tmp_path.glob("*.lock")
    with path.open("ab") as held, record_events("resilience.") as events:
        fcntl.flock(held, fcntl.LOCK_EX)
        breaker = Breaker(name="r", storage=FileStorage(tmp_path, refresh=0))
        began = time.monotonic()
        breaker.trip()
        assert time.monotonic() - began < 60
        assert breaker.acquire() is None
    assert [event.kind for event in events] == [
        "resilience.breaker.storage_failed",
        "resilience.breaker.opened",
    ]


def test_a_damaged_file_is_nothing_stored(tmp_path):
    storage = FileStorage(tmp_path)
    assert storage.swap("r", None, BreakerRecord(3, 2, "open", 5.0))
    for path in tmp_path.glob("*.json"):
        for text in ("", "{", "[1]", '{"leases": 3}', '{"leases": [], "colour": 1}'):
            path.write_text(text)
            assert storage.read("r") is None
            assert storage.swap("r", None, BreakerRecord(4))
            assert storage.read("r") == BreakerRecord(4)


@pytest.mark.parametrize(
    "damage",
    [
        {"state": "melted"},
        {"state": ["open"]},
        {"version": "7"},
        {"era": None},
        {"until": None},
        {"serial": 1.5},
        {"settled": "x", "state": "half_open"},
        {"more": 1},
    ],
    ids=lambda damage: "-".join(f"{name}={value}" for name, value in damage.items()),
)
def test_a_record_that_is_damaged_refuses_nobody_for_ever(tmp_path, damage):
    storage = FileStorage(tmp_path, refresh=0.0)
    with virtual_time() as clock:
        breaker = Breaker(name="ranker", storage=storage, cooldown=10.0)
        breaker.trip()
        (path,) = tmp_path.glob("*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
        with pytest.raises(BreakerOpenError):  # what is known goes on
            Policy(breaker=breaker).call(int)
        clock.advance(11)
        assert Policy(breaker=breaker).call(int) == 0
        assert breaker.state == "closed"
        assert storage.read("ranker").state == "closed"


@pytest.mark.parametrize("again", [False, True])
def test_a_storage_that_was_emptied_holds_no_breaker_open(tmp_path, again):
    storage = FileStorage(tmp_path, refresh=0.0)
    with virtual_time() as clock:
        breaker = Breaker(name="ranker", storage=storage, cooldown=10.0)
        for _ in range(5):
            breaker.trip()
        for path in tmp_path.iterdir():  # as what tidies /tmp does
            path.unlink()
        if again:  # another process begins anew
            Breaker(name="ranker", storage=storage).reset()
            assert breaker.acquire() is not None
        else:
            assert breaker.acquire() is None
            clock.advance(11)
            assert Policy(breaker=breaker).call(int) == 0
        assert breaker.state == "closed"
        breaker.trip()
        breaker.reset()
        assert (breaker.state, storage.read("ranker").state) == ("closed", "closed")


def test_probes_of_other_rules_are_made_anew_once_nobody_is_left_to_judge_them():
    storage = MemoryStorage()
    with virtual_time() as clock:
        old = Breaker(name="ranker", storage=storage, cooldown=10.0, probes=3)
        new = Breaker(name="ranker", storage=storage, cooldown=10.0)
        old.trip()
        clock.advance(11)
        first, second = old.acquire(), old.acquire()
        old.settle(first, True)
        assert new.acquire() is None  # the second one is on its way
        old.settle(second, None)  # and its process ends
        ticket = new.acquire()
        assert ticket is not None
        new.settle(ticket, True)
        assert (new.state, storage.read("ranker").state) == ("closed", "closed")


def test_a_pickled_breaker_with_a_storage_shares_its_state(tmp_path):
    breaker = Breaker(name="r", storage=FileStorage(tmp_path, refresh=0))
    breaker.trip()
    assert pickle.loads(pickle.dumps(breaker)).acquire() is None


CHILD = """
import os, sys
from mlkit.resilience import Breaker, FileStorage
from mlkit.errors import ConfigurationError
import mlkit.resilience._storage
mlkit.resilience._storage._PATIENCE = 60.0  # they go on by themselves if one is held up, as is right and not meant here
folder, me, eras = sys.argv[1], sys.argv[2], int(sys.argv[3])
breaker = Breaker(name="ranker", probes=3, cooldown=0.01, probe_lease=3600.0, storage=FileStorage(folder, refresh=0))
done = 0
while True:
    probe = breaker.acquire()
    if probe is None:
        continue
    if not hasattr(probe, "era"):
        breaker.trip()  # closed: somebody won this era; open the next
        continue
    os.write(1, f"{probe.era} {probe.number}\\n".encode())
    if probe.era >= eras:
        break
    breaker.settle(probe, False)  # opens again, whatever the others do
"""


def start(folder, *args):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_admit_no_more_probes_together_than_one_would(tmp_path):
    Breaker(name="ranker", storage=FileStorage(tmp_path)).trip()
    children = [start(tmp_path, n, 60) for n in range(3)]
    probes = []
    for child in children:
        out, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        probes += [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(set(probes)) == len(probes)  # no permit was given twice
    assert max(Counter(era for era, _ in probes).values()) <= 3
    assert len({era for era, _ in probes}) > 20


def test_a_killed_process_leaves_a_storage_that_works(tmp_path):
    Breaker(name="ranker", storage=FileStorage(tmp_path)).trip()
    for _ in range(3):
        child = start(tmp_path, 0, 10**9)
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        child.stdout.close()
        storage = FileStorage(tmp_path)
        old = storage.read("ranker")
        assert old is not None
        assert storage.swap("ranker", old, old._replace(version=old.version + 1))
        Breaker(name="ranker", storage=storage).trip()
