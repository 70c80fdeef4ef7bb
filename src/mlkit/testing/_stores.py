"""The laws of a store of model versions as tests, for those who write one."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, Any

from mlkit.errors import (
    AliasConflictError,
    ChecksFailedError,
    ConfigurationError,
    IntegrityError,
    ModelStoreError,
    VersionInUseError,
    VersionNotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.models import ModelVersion, VersionStore

__all__ = ["VersionStoreContract"]


class VersionStoreContract:
    """The laws of `mlkit.models.VersionStore`, to be inherited by a test class for pytest.

    Examples:
        ```python
        class TestMyStore(VersionStoreContract):
            def make_store(self, place: Path) -> VersionStore:
                return MyStore(place, who="ada")

            def damage(self, place: Path) -> None:
                ...
        ```
    """

    n_calls: int = 60
    """How many random calls `test_any_calls_do_what_a_dictionary_would` makes; fewer for a slow backend."""

    def make_store(self, place: Path) -> VersionStore:
        """Return a new store whose changes are by `"ada"`. Two made for one *place* are of one backend.

        Args:
            place: A temporary folder, empty for each test.
        """
        raise NotImplementedError

    def damage(self, place: Path) -> None:
        """Change one byte of the weights of every version that the backend of *place* keeps.

        Args:
            place: As for `make_store`.
        """
        raise NotImplementedError

    def test_what_was_saved_is_loaded(self, tmp_path: Path) -> None:
        """Law 2, by every kind of reference, also by another store of the same place."""
        import numpy as np

        weights = {"w": np.arange(6.0).reshape(2, 3), "n": np.array(3, "int8")}
        spec, manifest = {"layers": [1, 2]}, {"seed": 7}
        version = self.make_store(tmp_path).save(
            "net", weights, spec=spec, manifest=manifest, metrics={"loss": 0.1}, tags={"t": "x"}
        )
        store = self.make_store(tmp_path)
        store.promote("net", 1)
        for ref in ("net@1", "net@champion", f"net@{version.digest[:17]}", version):
            found = store.load(ref)
            assert found.keys() == weights.keys()
            for name, array in weights.items():
                assert found[name].dtype == array.dtype
                assert found[name].tobytes() == array.tobytes()
        got = store.get("net@1")
        assert (got.spec, got.manifest, got.signature) == (spec, manifest, None)
        assert (got.ref, got.digest, got.who) == ("net@1", version.digest, "ada")
        assert (dict(got.metrics), dict(got.tags)) == ({"loss": 0.1}, {"t": "x"})
        assert got == version
        assert store.names() == ["net"]

    def test_an_object_is_rebuilt_from_its_spec(self, tmp_path: Path) -> None:
        """Law 2, for what `build` makes."""
        store = self.make_store(tmp_path)
        store.save("scale", _Scale(3.0), spec={"by": 1.0})
        assert store.load("scale@1", build=lambda spec: _Scale(spec["by"])).by == 3.0

    def test_equal_content_has_equal_digests_and_numbers_only_grow(self, tmp_path: Path) -> None:
        """Law 1."""
        store = self.make_store(tmp_path)
        first, second, third = (store.save("m", content) for content in (b"a", b"a", b"b"))
        assert [one.number for one in (first, second, third)] == [1, 2, 3]
        assert first.digest == second.digest != third.digest
        assert first != second
        store.delete("m", 3)
        assert store.save("m", b"c").number == 4
        assert [one.number for one in store.versions("m")] == [1, 2, 4]
        assert store.load("m@2") == b"a"

    def test_what_is_not_there_is_said_so(self, tmp_path: Path) -> None:
        """Every call, for models, versions and aliases."""
        store = self.make_store(tmp_path)
        store.save("m", b"")
        for call in (
            lambda: store.load("other@1"),
            lambda: store.get("m@2"),
            lambda: store.load("m@champion"),
            lambda: store.get("m@sha256:0000"),
            lambda: store.versions("other"),
            lambda: store.aliases("other"),
            lambda: store.history("other"),
            lambda: store.promote("m", 2),
            lambda: store.promote("other", 1),
            lambda: store.rollback("m"),
            lambda: store.delete("m", 2),
        ):
            _raises(VersionNotFoundError, call)
        for call in (
            lambda: store.load("m"),
            lambda: store.promote("m", 0),
            lambda: store.promote("m", 1, to="latest"),
            lambda: store.save("", b""),
        ):
            _raises(ConfigurationError, call)
        assert [change.kind for change in store.history("m")] == ["saved"]

    def test_what_was_changed_is_refused(self, tmp_path: Path) -> None:
        """Law 2, for damage; also by a store that had loaded it before."""
        import numpy as np

        store = self.make_store(tmp_path)
        store.save("m", {"w": np.zeros(100)})
        self.damage(tmp_path)
        _raises(IntegrityError, lambda: self.make_store(tmp_path).load("m@1"))
        _raises(IntegrityError, lambda: store.load("m@1"))

    def test_promotions_compare_and_swap(self, tmp_path: Path) -> None:
        """Law 3, one after the other."""
        store = self.make_store(tmp_path)
        for content in (b"1", b"2", b"3"):
            store.save("m", content)
        assert store.promote("m", 1, expect=None).previous is None
        assert store.promote("m", 2, expect=1).previous == 1
        error = _raises(AliasConflictError, lambda: store.promote("m", 3, expect=1))
        assert (error.expected, error.got) == (1, 2)
        _raises(AliasConflictError, lambda: store.promote("m", 3, expect=None))
        _raises(AliasConflictError, lambda: store.rollback("m", expect=3))
        assert store.aliases("m") == {"champion": 2}
        assert store.promote("m", 3).previous == 2
        again = store.promote("m", 3)
        assert (again.sequence, again.version) == (store.history("m")[-1].sequence, 3)

    def test_checks_decide_and_are_written_down(self, tmp_path: Path) -> None:
        """Law 5, for refusals."""
        store = self.make_store(tmp_path)
        store.save("m", b"1", metrics={"accuracy": 0.9})

        def good(version: ModelVersion) -> bool:
            return version.metrics["accuracy"] > 0.8

        def bad(version: ModelVersion) -> str:
            return f"{version.ref} is too slow"

        error = _raises(
            ChecksFailedError, lambda: store.promote("m", 1, checks=[good, bad], why="try")
        )
        assert error.failures == {"bad": "m@1 is too slow"}
        assert store.aliases("m") == {}
        store.promote("m", 1, checks=[good], why="go")
        *_, refused, promoted = store.history("m")
        assert (refused.kind, refused.alias, refused.why) == ("refused", "champion", "try")
        assert refused.evidence == {"good": "passed", "bad": "m@1 is too slow"}
        assert (promoted.kind, promoted.who, promoted.why) == ("promoted", "ada", "go")
        assert promoted.evidence == {"good": "passed"}
        assert abs(promoted.time - refused.time) < 60

    def test_rollbacks_go_back_and_back(self, tmp_path: Path) -> None:
        """Law 4; deleted versions are passed over."""
        store = self.make_store(tmp_path)
        for content in (b"1", b"2", b"3", b"4"):
            version = store.save("m", content)
            store.promote("m", version)
        assert store.rollback("m", why="slow").version == 3
        store.delete("m", 2)
        assert (store.rollback("m").version, store.aliases("m")) == (1, {"champion": 1})
        _raises(VersionNotFoundError, lambda: store.rollback("m"))
        assert store.load("m@champion") == b"1"

    def test_an_alias_is_removed(self, tmp_path: Path) -> None:
        """It points at nothing then, and what it pointed at is not rolled back to."""
        store = self.make_store(tmp_path)
        store.save("m", b"1")
        store.save("m", b"2")
        store.promote("m", 1)
        _raises(AliasConflictError, lambda: store.remove_alias("m", "champion", expect=2))
        assert store.remove_alias("m", "champion", why="over").previous == 1
        assert store.aliases("m") == {}
        _raises(VersionNotFoundError, lambda: store.remove_alias("m", "champion"))
        _raises(VersionNotFoundError, lambda: store.load("m@champion"))
        store.promote("m", 2, expect=None)
        _raises(VersionNotFoundError, lambda: store.rollback("m"))
        assert [one.kind for one in store.history("m")][-2:] == ["alias_removed", "promoted"]

    def test_a_version_in_use_is_not_deleted(self, tmp_path: Path) -> None:
        """Law 6."""
        store = self.make_store(tmp_path)
        store.save("m", b"1")
        store.save("m", b"2")
        store.promote("m", 1, to="blue")
        store.promote("m", 1, to="green")
        error = _raises(VersionInUseError, lambda: store.delete("m", 1))
        assert sorted(error.aliases) == ["blue", "green"]
        assert store.delete("m", 2, why="old").kind == "deleted"
        _raises(VersionNotFoundError, lambda: store.load("m@2"))
        assert store.load("m@blue") == b"1"

    def test_versions_are_compared(self, tmp_path: Path) -> None:
        """`compare` names what differs."""
        store = self.make_store(tmp_path)
        store.save("m", b"1", spec={"n": 1}, metrics={"a": 0.5})
        store.save("m", b"22", spec={"n": 2}, metrics={"a": 0.5})
        found = store.compare("m@1", "m@2")
        assert [(one.part, one.path) for one in found.differences] == [
            ("spec", "n"),
            ("weights", ""),
        ]
        assert not found.same_content
        assert store.compare("m@1", "m@1").differences == ()

    def test_of_many_writers_one_wins(self, tmp_path: Path) -> None:
        """Law 3 and 5, at once: each of four stores promotes its own version over the same holder, in rounds."""
        n, rounds = 4, 3
        stores = [self.make_store(tmp_path) for _ in range(n)]
        stores[0].save("m", b"first")
        stores[0].promote("m", 1)
        barrier = Barrier(n)

        def one(place: int) -> tuple[list[int], list[int]]:
            numbers, won = [], []
            for turn in range(rounds):
                number = stores[place].save("m", f"{place} {turn}".encode()).number
                numbers.append(number)
                barrier.wait(60)
                holder = stores[place].aliases("m")["champion"]
                barrier.wait(60)
                try:
                    stores[place].promote("m", number, expect=holder)
                except AliasConflictError:
                    pass
                else:
                    won.append(number)
                barrier.wait(60)
            return numbers, won

        with ThreadPoolExecutor(n) as pool:
            results = list(pool.map(one, range(n)))
        saved = sorted(number for numbers, _ in results for number in numbers)
        assert saved == list(range(2, 2 + n * rounds))
        won = {number for _, some in results for number in some}
        assert len(won) == rounds
        history = stores[0].history("m")
        assert [change.sequence for change in history] == list(range(1, len(history) + 1))
        moves = [(one.previous, one.version) for one in history if one.kind == "promoted"]
        assert {version for _, version in moves[1:]} == won
        assert [previous for previous, _ in moves] == [None, *(to for _, to in moves[:-1])]
        assert stores[-1].aliases("m") == {"champion": moves[-1][1]}
        assert stores[-1].history("m") == history

    def test_any_calls_do_what_a_dictionary_would(self, tmp_path: Path) -> None:
        """All laws, over a random sequence of calls by two stores of one place."""
        stores = [self.make_store(tmp_path), self.make_store(tmp_path)]
        stores[0].save("m", b"0")
        saved: dict[int, bytes | None] = {1: b"0"}
        held: dict[str, list[int]] = {"blue": [], "green": []}
        rng = random.Random(7)  # noqa: S311 - a test
        for step in range(self.n_calls):
            store = rng.choice(stores)
            call = rng.choice(["save", "promote", "promote", "rollback", "delete"])
            number, alias = rng.randint(1, 6), rng.choice(["blue", "green"])
            holders = held[alias]
            live = saved.get(number) is not None
            if call == "save" and len(saved) < 6:
                content = f"{step}".encode()
                saved[store.save("m", content).number] = content
            elif call == "promote" and live:
                store.promote("m", number, to=alias)
                if holders[-1:] != [number]:
                    holders.append(number)
            elif call == "rollback" and len(holders) > 1:
                assert store.rollback("m", alias).previous == holders.pop()
            elif call == "delete" and live:
                if any(some[-1:] == [number] for some in held.values()):
                    _raises(VersionInUseError, partial(store.delete, "m", number))
                else:
                    store.delete("m", number)
                    saved[number] = None
                    for some in held.values():
                        kept = [one for one in some if one != number]
                        some[:] = [one for i, one in enumerate(kept) if not i or kept[i - 1] != one]
            else:
                _raises(ModelStoreError, partial(store.promote, "m", 99, to=alias))
            expected = {one: some[-1] for one, some in held.items() if some}
            assert rng.choice(stores).aliases("m") == expected
        live_now = {number: content for number, content in saved.items() if content is not None}
        assert {one.number: stores[0].load(one) for one in stores[0].versions("m")} == live_now
        assert stores[0].history("m") == stores[1].history("m")

    def test_a_store_and_its_versions_travel(self, tmp_path: Path) -> None:
        """Both are pickled, as process pools do."""
        store = self.make_store(tmp_path)
        version = store.save("m", b"1", spec={"n": 1})
        copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
        assert copy.load("m@1") == b"1"
        again = pickle.loads(pickle.dumps(version))  # noqa: S301 - our own
        assert (again, again.spec) == (version, {"n": 1})


class _Scale:
    """An object with weights, the smallest there is."""

    def __init__(self, by: float) -> None:
        self.by = by

    def state_dict(self) -> dict[str, Any]:
        import numpy as np

        return {"by": np.array(self.by)}

    def load_state_dict(self, state: Any, /) -> None:
        self.by = float(state["by"])


def _raises(kind: type[Any], call: Any) -> Any:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
