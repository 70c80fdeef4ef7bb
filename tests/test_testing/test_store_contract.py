"""The contract of stores bites: for each law a store that breaks it, and the test that says so."""

from __future__ import annotations

import threading

import pytest

from mlkit.errors import IntegrityError
from mlkit.models import ModelStore
from mlkit.testing import VersionStoreContract


class Double:
    """A folder store that does everything right, but for what a subclass breaks."""

    def __init__(self, place):
        self.store = ModelStore(place / "store", who="ada")
        self.loaded = {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.store, name)

    def __reduce__(self):
        return type(self), (_Place(self.store.path),)


class _Place:
    def __init__(self, path):
        self.path = path

    def __truediv__(self, _):
        return self.path


class ServesWhatWasChanged(Double):
    def load(self, ref, **settings):
        try:
            return self.store.load(ref, **settings)
        except IntegrityError:
            return {}


class ForgetsToCompare(Double):
    def promote(self, name, version, *, expect=..., **settings):
        return self.store.promote(name, version, **settings)


class ComparesBeforeItSwaps(Double):
    """As MLflow would: look, then set, with nothing in between to hold others off."""

    meeting = threading.Barrier(4)

    def promote(self, name, version, *, expect=..., **settings):
        if expect not in (..., None):
            assert self.store.aliases(name)["champion"] == expect
            self.meeting.wait(60)
        return self.store.promote(name, version, **settings)


class Toggles(Double):
    def rollback(self, name, alias="champion", **settings):
        held = [change for change in self.store.history(name) if change.alias == alias]
        if len(held) < 2:
            return self.store.rollback(name, alias, **settings)
        return self.store.promote(name, held[-1].previous, to=alias)


class ForgetsRefusals(Double):
    def history(self, name):
        return [change for change in self.store.history(name) if change.kind != "refused"]


class DeletesWhatIsUsed(Double):
    def delete(self, name, version, **settings):
        for alias, holder in self.store.aliases(name).items():
            if holder == getattr(version, "number", version):
                self.store.remove_alias(name, alias)
        return self.store.delete(name, version, **settings)


class LosesReasons(Double):
    def promote(self, name, version, *, why="", **settings):
        return self.store.promote(name, version, **settings)


class KeepsRemovedAliases(Double):
    def remove_alias(self, name, alias, **settings):
        return self.store.history(name)[-1]


BREAKS = {
    ServesWhatWasChanged: ["test_what_was_changed_is_refused"],
    ForgetsToCompare: ["test_promotions_compare_and_swap", "test_of_many_writers_one_wins"],
    ComparesBeforeItSwaps: ["test_of_many_writers_one_wins"],
    Toggles: ["test_rollbacks_go_back_and_back", "test_any_calls_do_what_a_dictionary_would"],
    ForgetsRefusals: ["test_checks_decide_and_are_written_down"],
    DeletesWhatIsUsed: ["test_a_version_in_use_is_not_deleted"],
    LosesReasons: ["test_checks_decide_and_are_written_down"],
    KeepsRemovedAliases: ["test_an_alias_is_removed"],
}


def contract_of(kind):
    class Contract(VersionStoreContract):
        def make_store(self, place):
            return kind(place)

        def damage(self, place):
            for path in (place / "store" / "blobs").rglob("*"):
                if path.is_file() and not path.read_bytes().startswith(b"{"):
                    path.chmod(0o644)
                    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    return Contract()


@pytest.mark.parametrize(
    ("kind", "law"),
    [(kind, law) for kind, laws in BREAKS.items() for law in laws],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_broken_store_is_found(kind, law, tmp_path):
    with pytest.raises(Exception) as caught:
        getattr(contract_of(kind), law)(tmp_path)
    assert isinstance(caught.value, (AssertionError, LookupError, RuntimeError, ValueError))


@pytest.mark.parametrize(
    "law", [name for name in vars(VersionStoreContract) if name[:5] == "test_"]
)
def test_the_double_itself_is_whole(law, tmp_path):
    getattr(contract_of(Double), law)(tmp_path)
