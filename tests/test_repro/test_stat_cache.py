"""A cache never changes an answer; it saves reading what has not changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import mlkit.repro._hashing as hashing
import mlkit.repro._stat_cache as stat_cache
from mlkit.errors import ConfigurationError
from mlkit.repro import fingerprint


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that no test has to wait two seconds."""
    monkeypatch.setattr(stat_cache, "_TICK_NS", -(10**10))


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read."""
    names: list[str] = []
    pieces = hashing._pieces

    def noted(file):
        names.append(Path(file.name).name)
        return pieces(file)

    monkeypatch.setattr(hashing, "_pieces", noted)
    return names


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (folder / name).write_text(name)
    return folder


def test_only_what_changed_is_read(tmp_path, folder, settled, read):
    cache = tmp_path / "cache.db"
    first = fingerprint(folder, cache=cache)
    assert sorted(read) == ["a", "b", "c"]
    read.clear()
    assert fingerprint(folder, cache=cache) == first
    assert fingerprint(folder / "a", cache=cache) == fingerprint(folder / "a")
    assert read == ["a"]  # the one without a cache
    read.clear()
    (folder / "b").write_text("B")
    second = fingerprint(folder, cache=cache)
    assert read == ["b"]
    assert second == fingerprint(folder) != first


def test_a_rewrite_that_keeps_size_and_times_is_seen(tmp_path, folder, settled):
    cache, path = tmp_path / "cache.db", folder / "a"
    before, status = fingerprint(folder, cache=cache), path.stat()
    path.write_text("A")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(folder, cache=cache) == fingerprint(folder) != before


@pytest.mark.parametrize("seconds", [-3_000_000_000, 10_000_000_000])
def test_times_before_1970_and_after_2262(tmp_path, folder, settled, read, seconds):
    for file in folder.rglob("*"):
        os.utime(file, (seconds, seconds))
    cache = tmp_path / "cache.db"
    assert fingerprint(folder, cache=cache) == fingerprint(folder)
    read.clear()
    fingerprint(folder, cache=cache)
    assert read == []


def test_what_changed_just_now_is_not_remembered(tmp_path, folder, read):
    cache = tmp_path / "cache.db"
    for _ in range(2):
        fingerprint(folder, cache=cache)
    assert len(read) == 6


def test_the_algorithms_do_not_mix(tmp_path, folder, settled):
    cache = tmp_path / "cache.db"
    for algorithm in ("sha256", "blake3", "sha256", "blake3"):
        assert fingerprint(folder, cache=cache, algorithm=algorithm) == fingerprint(
            folder, algorithm=algorithm
        )


def test_a_file_that_is_no_cache_is_left_alone(tmp_path, folder):
    path = tmp_path / "rows.csv"
    path.write_text("1,2\n" * 100)
    with pytest.raises(ConfigurationError, match="cache made by fingerprint"):
        fingerprint(folder, cache=path)
    assert path.read_text() == "1,2\n" * 100
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ConfigurationError, match="cache made by fingerprint"):
        fingerprint(folder, cache=tmp_path / "other.db")
    fingerprint(folder, cache=tmp_path / "cache.db")
    with sqlite3.connect(tmp_path / "cache.db") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigurationError, match="this version"):
        fingerprint(folder, cache=tmp_path / "cache.db")


def test_a_cache_in_the_folder_it_describes_is_refused(folder):
    with pytest.raises(ConfigurationError, match="outside"):
        fingerprint(folder, cache=folder / "cache.db")
    with pytest.raises(ConfigurationError, match="exists"):
        fingerprint(folder, cache=folder / "none" / "cache.db")


def test_a_locked_cache_is_done_without(tmp_path, folder, settled, read, monkeypatch):
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, connect=sqlite3.connect: connect(path, timeout=0)
    )
    cache = tmp_path / "cache.db"
    expected = fingerprint(folder, cache=cache)
    read.clear()
    holder = sqlite3.connect(cache)
    holder.execute("BEGIN EXCLUSIVE")
    assert fingerprint(folder, cache=cache) == expected
    assert sorted(read) == ["a", "b", "c"]
    holder.close()


def test_many_processes_use_one_cache(tmp_path, folder):
    code = (
        "import sys, pathlib; from mlkit.repro import fingerprint; import mlkit.repro._stat_cache as module\n"
        "module._TICK_NS = -(10**10)\n"
        "for _ in range(20): print(fingerprint(pathlib.Path(sys.argv[1]), cache=sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache.db")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert set("".join(outputs).split()) == {fingerprint(folder)}


NAMES = st.sampled_from(["a", "b", "s/a", "s/b"])


class CachedFolder(RuleBasedStateMachine):
    """After any changes the cached answer is the answer."""

    def __init__(self):
        super().__init__()
        import tempfile

        self.place = Path(tempfile.mkdtemp())
        self.folder = self.place / "data"
        (self.folder / "s").mkdir(parents=True)

    @rule(name=NAMES, content=st.binary(max_size=2))
    def write(self, name, content):
        (self.folder / name).write_bytes(content)

    @rule(name=NAMES, content=st.binary(min_size=1, max_size=1))
    def rewrite_in_secret(self, name, content):
        path = self.folder / name
        if path.exists():
            status = path.stat()
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @rule(name=NAMES)
    def remove(self, name):
        (self.folder / name).unlink(missing_ok=True)

    @rule(one=NAMES, other=NAMES)
    def swap(self, one, other):
        places = [self.folder / one, self.folder / other]
        if one != other and all(path.exists() for path in places):
            spare = self.place / "spare"
            places[0].rename(spare), places[1].rename(places[0]), spare.rename(places[1])

    @rule(name=NAMES, mode=st.sampled_from([0o644, 0o755]))
    def change_mode(self, name, mode):
        if (self.folder / name).exists():
            (self.folder / name).chmod(mode)

    @invariant()
    def the_answer_is_the_same(self):
        assert fingerprint(self.folder, cache=self.place / "cache") == fingerprint(self.folder)

    def teardown(self):
        shutil.rmtree(self.place)


TestCachedFolder = CachedFolder.TestCase
TestCachedFolder.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
