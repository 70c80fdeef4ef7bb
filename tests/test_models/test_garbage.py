"""What nothing needs is removed, what anything may need is not."""

import os
import threading
import time
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pytest

from mlkit.errors import ConfigurationError, IntegrityError, SealError
from mlkit.models import ModelStore


class Keys:
    def __init__(self, *names):
        self.names = names

    def current(self):
        return self.names[-1], self.names[-1].encode() * 32

    def key(self, key_id):
        if key_id not in self.names:
            raise KeyError(key_id)
        return key_id.encode() * 32


def files_of(path, top="*"):
    return {str(p.relative_to(path)): p for p in Path(path).rglob(top) if p.is_file()}


def orphan(path, digest="ab" + "c" * 62, age=0.0):
    file = Path(path, "blobs", "sha256", digest[:2], digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"nobody's")
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.fixture
def store(tmp_path):
    store = ModelStore(tmp_path)
    store.save("m", b"one", spec={"a": 1})
    store.save("other/m", b"one")
    return store


def test_what_nobody_needs_and_is_old_goes(store, tmp_path):
    kept = set(files_of(tmp_path))
    old, new = orphan(tmp_path, age=7200), orphan(tmp_path, "ab" + "d" * 62)
    left, at_work = tmp_path / "tmp" / "1-left", tmp_path / "tmp" / "2-at-work"
    for path in (left, at_work):
        path.write_bytes(b"half a file")
    os.utime(left, (time.time() - 7200,) * 2)
    dry = store.collect_garbage(dry_run=True)
    assert old.exists()
    assert left.exists()
    swept = store.collect_garbage()
    assert swept == dry
    assert set(swept.files) == {str(old.relative_to(tmp_path)), "tmp/1-left"}
    assert swept.n_bytes == len(b"nobody's") + len(b"half a file")
    assert at_work.exists()
    assert new.exists()
    assert store.collect_garbage() == ((), 0)
    assert len(store.collect_garbage(older_than=0).files) == 2
    assert set(files_of(tmp_path)) == kept


def test_what_a_killed_save_adopted_goes_and_what_a_version_shares_stays(store, tmp_path):
    store.save("m", b"two")
    store.delete("m", 1)  # its weights are those of other/m@1, too
    assert store.load("other/m@1") == b"one"
    log = tmp_path / "models" / "m.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    number = len(files_of(tmp_path))
    store.save("m", b"three")
    log.write_bytes(b"".join(lines))  # as if it had been killed before its line was there
    swept = store.collect_garbage(older_than=0)
    assert len(swept.files) == 2
    assert len(files_of(tmp_path)) == number
    assert ModelStore(tmp_path).load("m@2") == b"two"


def test_files_of_others_are_none_of_its_business(store, tmp_path):
    strangers = [
        tmp_path / "blobs" / "sha256" / ".DS_Store",
        tmp_path / "blobs" / "sha256" / "ab" / "README",
        tmp_path / "blobs" / "sha256" / "cd" / ("ab" + "c" * 62),
        tmp_path / "blobs" / "md5" / "ab" / "abc",
        tmp_path / "notes.txt",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    outside = tmp_path.parent / "outside"
    outside.write_bytes(b"mine")
    link = tmp_path / "tmp" / "link"
    link.symlink_to(outside)
    assert store.collect_garbage(older_than=0) == ((), 0)
    assert all(path.exists() for path in [*strangers, outside, link])
    (tmp_path / "tmp" / "link").unlink()
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").symlink_to(tmp_path.parent)
    with pytest.raises(IntegrityError, match="symbolic link"):
        store.collect_garbage(older_than=0)
    assert outside.exists()


@pytest.mark.parametrize("damage", ["other/m", "m"])
def test_a_history_that_cannot_be_read_may_need_anything(store, tmp_path, damage):
    orphan(tmp_path)
    log = tmp_path / "models" / f"{damage.replace('/', '%2F')}.jsonl"
    log.write_bytes(log.read_bytes().replace(b"saved", b"Saved"))
    before = set(files_of(tmp_path))
    for dry_run in (True, False):
        with pytest.raises(IntegrityError):
            ModelStore(tmp_path).collect_garbage(older_than=0, dry_run=dry_run)
    assert set(files_of(tmp_path)) == before


def test_what_is_no_time_is_refused(store):
    for wrong in (-1, float("nan"), "1h"):
        with pytest.raises(ConfigurationError, match="older_than"):
            store.collect_garbage(older_than=wrong)


def test_an_empty_folder_has_none(tmp_path):
    assert ModelStore(tmp_path / "none").collect_garbage() == ((), 0)


def test_beside_savers_and_deleters_nothing_is_lost(tmp_path):
    store, stop, problems = ModelStore(tmp_path), threading.Event(), []
    contents = [[b"%d-%d" % (me, turn) for turn in range(15)] for me in range(4)]
    # Each content lies there already, old and needed by nobody: until it is saved, at the moment it is collected.
    for content in chain.from_iterable(contents):
        path = orphan(tmp_path, sha256(content).hexdigest())
        path.write_bytes(content)
        os.utime(path, (time.time() - 7200,) * 2)

    def collect():
        while not stop.is_set():
            try:
                ModelStore(tmp_path).collect_garbage(older_than=60)
            except Exception as error:
                problems.append(error)

    def save(me):
        mine = ModelStore(tmp_path)
        for turn, content in enumerate(contents[me]):
            version = mine.save("m", content)
            if mine.load(version) != content:
                problems.append(version)
            if turn % 2:
                mine.delete("m", version)

    collector = threading.Thread(target=collect)
    savers = [threading.Thread(target=save, args=(me,)) for me in range(4)]
    for thread in [collector, *savers]:
        thread.start()
    for thread in savers:
        thread.join()
    stop.set()
    collector.join()
    assert problems == []
    assert len(store.versions("m")) == 32
    assert {store.load(version) for version in store.versions("m")} == {
        content for mine in contents for content in mine[::2]
    }
    store.collect_garbage(older_than=0)
    assert len(files_of(tmp_path / "blobs")) == 64


# --- sealed anew --------------------------------------------------------------------------------------------------


def test_a_readable_store_is_sealed_and_a_key_is_replaced(store, tmp_path):
    store.save("m", b"two" * 1_000_000)
    sealed = ModelStore(tmp_path, keys=Keys("a"))
    assert sealed.load("m@1") == b"one", "what is not sealed is read all the same"
    swept = sealed.reseal()
    assert len(swept.files) == 5
    assert not files_of(tmp_path / "blobs")
    assert sealed.reseal() == ((), 0)
    with pytest.raises(SealError):
        store.load("m@1")
    rotated = ModelStore(tmp_path, keys=Keys("a", "b"))
    assert rotated.load("m@2") == b"two" * 1_000_000
    assert len(rotated.reseal().files) == 5
    only_new = ModelStore(tmp_path, keys=Keys("b"))
    assert [only_new.load(ref) for ref in ("m@1", "other/m@1")] == [b"one"] * 2
    assert only_new.load("m@2") == b"two" * 1_000_000
    with pytest.raises(SealError, match="'b'"):
        ModelStore(tmp_path, keys=Keys("a")).load("m@2")


def test_sealing_without_the_old_key_changes_nothing(store, tmp_path):
    ModelStore(tmp_path, keys=Keys("a")).reseal()
    with pytest.raises(SealError, match="'a'"):
        ModelStore(tmp_path, keys=Keys("b")).reseal()
    assert ModelStore(tmp_path, keys=Keys("a")).load("m@1") == b"one"
    with pytest.raises(ConfigurationError, match=r"reseal\(\).*keys="):
        store.reseal()


def test_damage_is_not_sealed_in(store, tmp_path):
    for path in files_of(tmp_path / "blobs").values():
        if path.read_bytes() == b"one":
            path.chmod(0o644)
            path.write_bytes(b"ONE")
    with pytest.raises(IntegrityError):
        ModelStore(tmp_path, keys=Keys("a")).reseal()
    assert not list(tmp_path.glob("tmp/*"))
