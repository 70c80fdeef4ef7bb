"""The laws of a breaker's storage as tests, for those who write one."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import sys
import threading
from math import inf
from typing import TYPE_CHECKING, Any

from mlkit.resilience import Breaker, BreakerRecord

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.resilience import BreakerStorage

__all__ = ["BreakerStorageContract"]

_RECORDS = (
    BreakerRecord(),
    BreakerRecord(1, 1, "open", 12_345.678_901_234_5),
    BreakerRecord(7, 3, "half_open", 0.1 + 0.2, 4, ((3, 1e-9), (4, 86_400.5)), 1, 1, 0, 2),
    BreakerRecord(9, 4, "isolated"),
)
_NAMES = (
    "ranker",
    "Ranker",
    "a/b",
    "../ranker",
    "name with spaces",
    "Gerät",
    "x" * 300,
    "\x00",
)


class BreakerStorageContract:
    """The laws of `mlkit.resilience.BreakerStorage`, to be inherited by a test class for pytest.

    Attributes:
        one_backend: Whether two storages that are made for one place share what they hold. Set it to False for a
            storage that is shared by passing the object itself.

    Examples:
        ```python
        class TestMyStorage(BreakerStorageContract):
            def make_storage(self, place: Path) -> BreakerStorage:
                return MyStorage(place / "store")
        ```
    """

    one_backend: bool = True

    def make_storage(self, place: Path) -> BreakerStorage:
        """Return a storage. Two made for one *place* share what they hold, unless `one_backend` is False.

        Args:
            place: A temporary folder, empty for each test.
        """
        raise NotImplementedError

    def test_what_was_never_stored_is_none(self, tmp_path: Path) -> None:
        """Law 1."""
        storage = self.make_storage(tmp_path)
        assert [storage.read(name) for name in _NAMES] == [None] * len(_NAMES)
        assert not storage.swap("ranker", BreakerRecord(), BreakerRecord(1))
        assert storage.read("ranker") is None

    def test_refresh_is_a_number_of_seconds(self, tmp_path: Path) -> None:
        """A breaker compares it with the time since it last looked."""
        assert 0 <= self.make_storage(tmp_path).refresh < inf

    def test_what_was_swapped_in_comes_back_equal(self, tmp_path: Path) -> None:
        """Law 3: every field, floats to the last bit, tuples as tuples."""
        storage, old = self.make_storage(tmp_path), None
        for new in _RECORDS:
            assert storage.swap("ranker", old, new)
            got = storage.read("ranker")
            assert got == new
            assert type(got) is BreakerRecord
            assert [type(field) for field in got] == [type(field) for field in new]
            hash(got)
            old = new

    def test_a_swap_from_something_else_changes_nothing(self, tmp_path: Path) -> None:
        """Law 2: whichever field differs."""
        storage = self.make_storage(tmp_path)
        stored = _RECORDS[2]
        assert storage.swap("ranker", None, stored)
        wrong: list[BreakerRecord | None] = [None, stored._replace(leases=stored.leases[:1])]
        for field, value in stored._asdict().items():
            if field != "leases":
                changed: dict[str, Any] = {field: "open" if field == "state" else value + 1}
                wrong.append(stored._replace(**changed))
        for old in wrong:
            assert not storage.swap("ranker", old, BreakerRecord(99))
            assert storage.read("ranker") == stored
        assert storage.swap("ranker", stored, BreakerRecord(99))

    def test_names_do_not_affect_each_other(self, tmp_path: Path) -> None:
        """Law 4."""
        storage = self.make_storage(tmp_path)
        for number, name in enumerate(_NAMES):
            assert storage.swap(name, None, BreakerRecord(number))
        for number, name in enumerate(_NAMES):
            assert storage.read(name) == BreakerRecord(number)

    def test_storages_of_one_place_are_one(self, tmp_path: Path) -> None:
        """Laws 1 to 3 hold for all who share it: nobody answers from what he remembers."""
        one, other = self._storages(tmp_path, 2)
        assert other.read("ranker") is None
        assert one.swap("ranker", None, _RECORDS[0])
        assert other.read("ranker") == _RECORDS[0]
        assert not other.swap("ranker", None, _RECORDS[1])
        assert other.swap("ranker", _RECORDS[0], _RECORDS[2])
        assert one.read("ranker") == _RECORDS[2]
        assert not one.swap("ranker", _RECORDS[0], _RECORDS[3])

    def _storages(self, place: Path, n: int) -> list[BreakerStorage]:
        """Return what n processes would hold."""
        first = self.make_storage(place)
        return [
            first,
            *(self.make_storage(place) if self.one_backend else first for _ in range(n - 1)),
        ]

    def test_one_of_many_swaps_wins(self, tmp_path: Path) -> None:
        """Law 2: threads that all count up lose no step. One that is told that the storage is busy tries again."""
        threads, steps = 4, 25
        storages = self._storages(tmp_path, threads)
        start, won = threading.Barrier(threads), [0] * threads
        failures: list[BaseException] = []

        def count(me: int) -> None:
            storage = storages[me]
            start.wait(30)
            refused = 0
            while won[me] < steps:
                try:
                    old = storage.read("ranker")
                    new = BreakerRecord(0 if old is None else old.version + 1)
                    won[me] += storage.swap("ranker", old, new)
                except Exception:
                    refused += 1
                    if refused > 10 * steps:
                        raise

        def run(me: int) -> None:
            try:
                count(me)
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            running = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(threads)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join(60)
        finally:
            sys.setswitchinterval(interval)
        assert not failures
        last = storages[0].read("ranker")
        assert last is not None
        assert last.version == threads * steps - 1

    def test_breakers_of_one_name_act_as_one(self, tmp_path: Path) -> None:
        """Together they admit as many probes as one would, and a verdict on one of them counts for all."""
        from mlkit.testing import virtual_time

        with virtual_time() as clock:
            storages = self._storages(tmp_path, 3)
            storage = storages[0]
            breakers = [
                Breaker(name="ranker", min_calls=1, window=4, cooldown=10.0, probes=2, storage=one)
                for one in storages
            ]
            breakers[0].settle(breakers[0].acquire(), ok=False)
            clock.advance(storage.refresh)
            assert [one.acquire() for one in breakers] == [None] * 3
            clock.advance(10.0)
            probes = [one.acquire() for one in breakers]
            assert [probe is not None for probe in probes] == [True, True, False]
            breakers[0].settle(probes[0], ok=True)
            breakers[1].settle(probes[1], ok=True)
            clock.advance(storage.refresh)
            assert all(one.acquire() is not None for one in breakers)
            assert [one.state for one in breakers] == ["closed"] * 3

    def test_a_breaker_that_comes_later_finds_it_open(self, tmp_path: Path) -> None:
        """A process that starts while the service is down resets nothing, and prolongs nothing by asking."""
        from mlkit.testing import virtual_time

        with virtual_time() as clock:
            storage = self.make_storage(tmp_path)
            Breaker(name="ranker", cooldown=10.0, storage=storage).trip()
            later = self.make_storage(tmp_path) if self.one_backend else storage
            breaker = Breaker(name="ranker", cooldown=10.0, storage=later)
            for _ in range(9):
                assert breaker.acquire() is None
                clock.advance(1.0)
            clock.advance(1.0)
            assert breaker.acquire() is not None
