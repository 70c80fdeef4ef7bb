"""`verify` finds every broken file and names it, and goes on after the first."""

import numpy as np
import pytest

from mlkit.errors import VersionNotFoundError
from mlkit.models import ModelStore


@pytest.fixture
def store(tmp_path):
    store = ModelStore(tmp_path / "store")
    store.save("a", {"w": np.arange(9.0)}, spec={"k": 1})
    store.save("a", {"w": np.ones(9)})
    store.save("b", {"w": np.arange(9.0)})
    return store


def blobs(store, *, weights):
    from pathlib import Path

    files = [path for path in Path(store.path, "blobs").rglob("*") if path.is_file()]
    return sorted(path for path in files if path.read_bytes().startswith(b"{") != weights)


def change(path, *, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_whole_store_is_whole(store):
    found = store.verify()
    assert (found.n_versions, found.n_files, found.broken) == (3, 5, ())
    assert store.verify("b").n_versions == 1
    assert ModelStore(store.path + "-none").verify().n_versions == 0
    with pytest.raises(VersionNotFoundError):
        store.verify("c")


@pytest.mark.parametrize("weights", [True, False])
def test_every_flipped_byte_is_found_and_named(store, weights):
    for path in blobs(store, weights=weights):
        whole = path.read_bytes()
        for at in range(0, len(whole), 17):
            change(path, at=at)
            broken = store.verify().broken
            assert {one.file for one in broken} == {str(path)}
            path.write_bytes(whole)
    assert store.verify().broken == ()


def test_what_several_versions_share_breaks_them_all(store):
    shared = [p for p in blobs(store, weights=True) if b"\x00" in p.read_bytes()]
    for path in shared:
        change(path)
    assert [one.ref for one in store.verify().broken] == ["a@1", "a@2", "b@1"]
    shared[0].unlink()
    assert "it is not there" in {one.problem for one in store.verify().broken}


def test_a_broken_history_hides_no_other_model(store):
    from pathlib import Path

    change(Path(store.path, "models", "a.jsonl"), at=100)
    for path in blobs(store, weights=True):
        change(path)
    broken = store.verify().broken
    assert [one.ref for one in broken] == ["a", "b@1"]
    assert "a.jsonl" in broken[0].file
