"""Every byte that is read is checked; nothing outside the folder is touched; what is too new or too big is refused."""

import errno
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import (
    ConfigurationError,
    IntegrityError,
    ModelStoreError,
    VersionNotFoundError,
)
from mlkit.models import ModelStore


def make(path) -> ModelStore:
    store = ModelStore(path)
    store.save("m", {"w": np.arange(3.0)}, spec={"a": 1}, manifest={"b": "c"}, metrics={"x": 1})
    store.promote("m", 1)
    store.save("m", b"second", run="r2")
    store.promote("m", 2, why="better")
    return store


def files_of(store, suffix="*"):
    root = Path(store.path)
    return sorted(p for p in root.rglob(suffix) if p.is_file() and p.name != "lock")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "store")


def read_all(path):
    store = ModelStore(path)
    return [
        (v.ref, v.spec, v.manifest, str(store.load(v))) for v in store.versions("m")
    ], store.aliases("m")


@given(data=st.data())
def test_a_flipped_byte_anywhere_is_found_and_its_file_named(made, data):
    path = data.draw(st.sampled_from(files_of(made)))
    content = path.read_bytes()
    offset = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[offset] ^= data.draw(st.integers(1, 255))
    path.chmod(0o644)
    path.write_bytes(flipped)
    try:
        with pytest.raises(IntegrityError) as caught:
            read_all(made.path)
        assert caught.value.path.startswith(str(path))
        assert path.name in str(caught.value)
    finally:
        path.write_bytes(content)
    read_all(made.path)


def test_no_byte_of_any_file_can_change_unseen(tmp_path):
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    store = make(tmp_path / "s")
    store.sign("m@2", key)
    files = files_of(store)
    assert len(files) == 6, "two documents, two weights, a signature, a history"
    assert not store.verify().broken
    for path in files:
        content = path.read_bytes()
        path.chmod(0o644)
        for offset in range(0, len(content), 5 if len(content) > 200 else 1):
            path.write_bytes(
                content[:offset] + bytes([content[offset] ^ 0x04]) + content[offset + 1 :]
            )
            broken = ModelStore(store.path).verify().broken
            assert broken, (path, offset)
            assert any(one.file.startswith(str(path)) for one in broken)
        path.write_bytes(content)
    assert not store.verify().broken


def test_every_byte_of_the_history_is_covered(tmp_path):
    store = make(tmp_path / "s")
    (log,) = files_of(store, "*.jsonl")
    content = log.read_bytes()
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= 0x01 if content[offset] == 0x0A or offset % 2 else content[offset] ^ 0x0A
        log.write_bytes(changed)  # one bit, or a line end out of nowhere
        with pytest.raises(IntegrityError):
            ModelStore(store.path).aliases("m")


def test_an_open_store_sees_damage_too(tmp_path):
    store = make(tmp_path / "s")
    assert store.load("m@2") == b"second"
    for path in files_of(store):
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-2] + b"!" + content[-1:])
        with pytest.raises(IntegrityError):
            store.get("m@1"), store.get("m@2"), store.load("m@1"), store.load("m@2")
        path.write_bytes(content)
        os.utime(path)
    assert store.load("m@2") == b"second"


def test_a_missing_file_is_named(tmp_path):
    store = make(tmp_path / "s")
    for path in files_of(store):
        if path.suffix != ".jsonl":
            path.unlink()
    with pytest.raises(IntegrityError, match="found nothing"):
        store.load("m@1")
    assert [v.number for v in store.versions("m")] == [1, 2], "the listing needs no blob"


def test_saving_again_heals_a_damaged_blob(tmp_path):
    store = make(tmp_path / "s")
    for path in files_of(store):
        if path.read_bytes() == b"second":
            path.unlink()
            path.write_bytes(b"secund")
    with pytest.raises(IntegrityError):
        store.load("m@2")
    store.save("m", b"second")
    assert store.load("m@2") == b"second"


def test_lines_cannot_be_dropped_swapped_or_borrowed(tmp_path):
    store = make(tmp_path / "s")
    store.save("other", b"x")
    log = Path(store.path) / "models" / "m.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for forged in (
        [lines[0], *lines[2:]],
        [lines[1], lines[0], *lines[2:]],
        [*lines, lines[-1]],
        [lines[0], *lines],
    ):
        log.write_bytes(b"".join(forged))
        with pytest.raises(IntegrityError):
            ModelStore(store.path).versions("m")
    log.write_bytes((log.parent / "other.jsonl").read_bytes())
    with pytest.raises(IntegrityError):
        ModelStore(store.path).versions("m")
    assert "m" in ModelStore(store.path).names(), "it is there; using it says what is wrong"


def test_a_line_torn_anywhere_is_as_if_it_had_not_begun(tmp_path):
    store = make(tmp_path / "s")
    (log,) = files_of(store, "*.jsonl")
    content = log.read_bytes()
    *_, last = content.splitlines(keepends=True)
    whole = content[: -len(last)]
    for cut in range(len(last)):  # all of it but the line end is still torn
        log.write_bytes(whole + last[:cut])
        assert ModelStore(store.path).aliases("m") == {"champion": 1}
        assert len(ModelStore(store.path).history("m")) == 3
    for cut in (0, 1, 80, len(last) - 1):
        log.write_bytes(whole + last[:cut])
        ModelStore(store.path).promote("m", 2)
        assert [c.version for c in ModelStore(store.path).history("m")] == [1, 1, 2, 2]


def test_an_open_store_goes_on_over_a_repair(tmp_path):
    store, other = make(tmp_path / "s"), ModelStore(tmp_path / "s")
    (log,) = files_of(store, "*.jsonl")
    with log.open("ab") as file:
        file.write(b'{"sum":"half a li')
    assert store.aliases("m") == {"champion": 2}
    other.rollback("m")
    assert store.aliases("m") == {"champion": 1}
    assert len(store.history("m")) == 5


def test_an_open_store_goes_on_when_a_line_it_had_read_is_taken_back(tmp_path, monkeypatch):
    store, other = make(tmp_path / "s"), ModelStore(tmp_path / "s")
    (log,) = files_of(store, "*.jsonl")
    real, seen = os.fsync, []

    def full(descriptor):
        if os.fstat(descriptor).st_ino == log.stat().st_ino:
            seen.append(len(other.history("m")))
            raise OSError(errno.EIO, "the disk would not keep it")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="would not keep"):
            store.rollback("m")
    assert seen == [5], "the other had read the line"
    store.rollback("m", why="again, and a longer line than the one before")
    assert [change.why for change in other.history("m")] == [
        "",
        "",
        "",
        "better",
        store.history("m")[-1].why,
    ]
    other.promote("m", 2)
    assert ModelStore(store.path).aliases("m") == {"champion": 2}


@pytest.mark.parametrize("what", ["blobs", "blobs/sha256", "models", "tmp"])
def test_links_out_of_the_store_are_not_followed(tmp_path, what):
    store = make(tmp_path / "s")
    inside, outside = Path(store.path) / what, tmp_path / "outside"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(IntegrityError, match="symbolic link"):
        store.load("m@1"), store.save("m", b"new")
    assert sorted(outside.rglob("*")) == before


def test_files_that_are_links_or_pipes_are_not_opened(tmp_path):
    store = make(tmp_path / "s")
    for path in files_of(store):
        secret = tmp_path / "secret"
        shutil.copy(path, secret)
        path.unlink()
        path.symlink_to(secret)
        with pytest.raises(IntegrityError, match="plain file"):
            read_all(store.path)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(IntegrityError, match="plain file"):  # and does not wait for a writer
            read_all(store.path)
        path.unlink()
        path.mkdir()
        with pytest.raises(IntegrityError, match="plain file"):
            read_all(store.path)
        path.rmdir()
        shutil.copy(secret, path)
    read_all(store.path)


def test_the_store_itself_may_be_a_link(tmp_path):
    store = make(tmp_path / "s")
    (tmp_path / "link").symlink_to(store.path)
    assert ModelStore(tmp_path / "link").load("m@2") == b"second"


def forge(store, name, *events):
    """Write a history whose sums are right and whose content is hostile."""
    total, lines = sha256(name.encode()).hexdigest(), []
    for number, event in enumerate(events, 1):
        body = event if isinstance(event, bytes) else json.dumps(
            {"v": 1, "seq": number, "model": name, "who": "", "time": 0, "why": ""} | event
        ).encode()  # fmt: skip
        total = sha256(total.encode() + body).hexdigest()
        lines.append(b'{"sum":"' + total.encode() + b'","event":' + body + b"}\n")
    path = Path(store.path) / "models" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))


SAVED = {
    "kind": "saved", "version": 1, "format": "bytes", "n_bytes": 1, "run": None, "metrics": {}, "tags": {},
    "digest": "sha256:" + "a" * 64, "payload": "sha256:" + "b" * 64,
}  # fmt: skip


def test_a_forged_history_is_possible_so_the_next_tests_mean_something(tmp_path):
    store = ModelStore(tmp_path)
    forge(store, "m", SAVED)
    assert [v.number for v in store.versions("m")] == [1]
    with pytest.raises(IntegrityError, match="found nothing"):
        store.get("m@1")


HOSTILE = [
    [SAVED | {"digest": "sha256:../../../../etc/passwd"}],
    [SAVED | {"payload": "../../../etc/passwd"}],
    [SAVED | {"digest": 7}],
    [SAVED | {"format": "exec"}],
    [SAVED | {"version": 2}],
    [SAVED | {"version": -1}],
    [SAVED | {"version": True}],
    [SAVED | {"metrics": [1]}],
    [SAVED | {"n_bytes": float("inf")}],
    [SAVED | {"run": 7}],
    [SAVED | {"kind": "what"}],
    [SAVED, SAVED],
    [SAVED, {"kind": "promoted", "version": 2, "alias": "champion"}],
    [SAVED, {"kind": "promoted", "version": 1, "alias": "../x"}],
    [SAVED, {"kind": "promoted", "version": 1}],
    [SAVED, {"kind": "rolled_back", "version": 1, "alias": "champion"}],
    [{"kind": "deleted", "version": 1}],
    [SAVED | {"seq": 2}],
    [SAVED | {"model": "n"}],
    [SAVED | {"time": "now"}],
    [SAVED | {"v": None, "seq": "1"}],
    [b"[" * 100_000 + b"]" * 100_000],
    [b'{"v":' + b"9" * 5000 + b"}"],
    [b"[]"],
    [b"null"],
    [b"\xff\xfe"],
    [b'{"a":"' + b"x" * (2 << 20) + b'"}'],
]


@pytest.mark.parametrize("events", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_history_is_refused(tmp_path, events):
    store = ModelStore(tmp_path)
    forge(store, "m", *events)
    with pytest.raises(IntegrityError):
        store.get("m@1")


def place(store, content: bytes):
    digest = sha256(content).hexdigest()
    path = Path(store.path) / "blobs" / "sha256" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return "sha256:" + digest


PAYLOAD = {
    "format": "bytes",
    "digest": "sha256:" + "b" * 64,
    "n_bytes": 1,
    "rebuild": False,
    "ties": {},
}
DOCUMENT = {"format": 1, "spec": None, "signature": None, "manifest": None, "payload": PAYLOAD}
DOCUMENTS = [
    b"", b"{}", b"null", b"[" * 100_000, b"\xff", b'{"format":1}',
    DOCUMENT | {"spec": [1]},
    DOCUMENT | {"payload": None},
    DOCUMENT | {"payload": PAYLOAD | {"digest": "sha256:../../x"}},
    DOCUMENT | {"payload": PAYLOAD | {"format": "exec"}},
    DOCUMENT | {"payload": PAYLOAD | {"n_bytes": float("inf")}},
    DOCUMENT | {"payload": PAYLOAD | {"rebuild": "yes"}},
    DOCUMENT | {"payload": PAYLOAD | {"ties": {"a": 1}}},
    DOCUMENT | {"payload": PAYLOAD | {"ties": [1]}},
    b'{"x":"' + b"a" * (17 << 20) + b'"}',
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_a_hostile_document_is_refused(tmp_path, document):
    store = ModelStore(tmp_path)
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    forge(store, "m", SAVED | {"digest": place(store, content)})
    with pytest.raises(IntegrityError):
        store.load("m@1")


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}", b"\x02" + b"\x00" * 7 + b"[]"],
    ids=range(5),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_hostile_weights_are_refused(tmp_path, content, kind):
    store = ModelStore(tmp_path)
    payload = PAYLOAD | {"format": kind, "digest": place(store, content), "n_bytes": len(content)}
    digest = place(store, json.dumps(DOCUMENT | {"payload": payload}).encode())
    forge(store, "m", SAVED | {"digest": digest, "payload": payload["digest"], "format": kind})
    with pytest.raises(ModelStoreError):
        store.load("m@1")


def test_pickle_does_not_run_because_a_file_says_so(tmp_path):
    store = ModelStore(tmp_path)
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    payload = PAYLOAD | {"format": "pickle", "digest": place(store, bomb), "n_bytes": len(bomb)}
    digest = place(store, json.dumps(DOCUMENT | {"payload": payload}).encode())
    forge(store, "m", SAVED | {"digest": digest, "payload": payload["digest"]})
    with pytest.raises(ModelStoreError, match="trust"):
        store.load("m@1")
    assert not (tmp_path / "ran").exists()


def test_what_a_newer_mlkit_wrote_is_refused_politely(tmp_path):
    store = ModelStore(tmp_path)
    forge(store, "log", SAVED | {"v": 2, "kind": "merged"})
    digest = place(store, json.dumps({"format": 2, "layers": []}).encode())
    forge(store, "document", SAVED | {"digest": digest})
    for name in ("log", "document"):
        with pytest.raises(ModelStoreError, match="newer mlkit") as caught:
            store.get(f"{name}@1")
        assert not isinstance(caught.value, IntegrityError)


def test_stray_files_are_no_models(tmp_path):
    store = make(tmp_path)
    for name in (
        ".hidden",
        "notes.txt",
        "a b.jsonl",
        "x%2F..jsonl",
        "UP@1.jsonl",
        ".jsonl",
        "empty.jsonl",
    ):
        (tmp_path / "models" / name).write_bytes(b"")
    assert store.names() == ["m"]
    with pytest.raises(VersionNotFoundError):
        store.versions("empty")
    for name in ("._m.jsonl", "m (copy).jsonl", "a" * 81 + ".jsonl"):
        (tmp_path / "models" / name).write_bytes(b"no history\n")
    assert store.names() == ["m"], "these are no names of models"
    store.delete("m", 1)
    assert len(files_of(store, "blobs/*/*/*")) == 2, "and use nothing"


def test_a_store_that_may_only_be_read():
    with folder_for_all() as root:
        store = make(Path(root) / "s")
        everything = [Path(store.path), *Path(store.path).rglob("*")]
        for path in everything:
            path.chmod(path.stat().st_mode & ~0o222 | 0o044)
        with as_nobody():
            reader = ModelStore(store.path)
            assert reader.load("m@champion") == b"second"
            for change in (lambda: reader.save("m", b"x"), lambda: reader.rollback("m")):
                with pytest.raises(ConfigurationError, match=r"can be written.*Permission"):
                    change()
        for path in everything:
            path.chmod(path.stat().st_mode | 0o700)


def test_a_store_that_may_not_be_read_is_a_wrong_path():
    with folder_for_all() as root:
        store = make(Path(root) / "s")
        Path(store.path).chmod(0)
        with as_nobody():
            reader = ModelStore(store.path)
            for read in (reader.names, lambda: reader.load("m@1"), lambda: reader.rollback("m")):
                with pytest.raises(ConfigurationError, match=r"can be read, got .*; Permission"):
                    read()
        Path(store.path).chmod(0o700)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("file", ["tmp", "lock"])
def test_a_disk_that_fails_is_no_wrong_path(tmp_path, monkeypatch, number, file):
    store, real = make(tmp_path), os.open

    def fail(path, *args, **kwargs):
        if str(path).startswith(store.path + "/" + file):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            store.save("m", b"third")
    assert len(store.versions("m")) == 2


def test_a_history_that_may_not_be_read_is_in_nobody_elses_way():
    with folder_for_all() as root:
        store = make(Path(root) / "s")
        store.save("private", b"x")
        (Path(store.path) / "models" / "private.jsonl").chmod(0)
        with as_nobody():
            reader = ModelStore(store.path)
            assert reader.names() == ["m", "private"]
            with pytest.raises(VersionNotFoundError, match="private"):
                reader.get("pirvate@1")
            with pytest.raises(PermissionError):
                reader.get("private@1")


@contextmanager
def folder_for_all():
    """A folder that others can reach, whatever the umask."""
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as root:
            Path(root).chmod(0o755)
            with as_nobody():
                reached = os.path.isdir(root)  # noqa: PTH112 - which does not raise
            if not reached:
                pytest.skip("the folder of temporary files is closed to others")
            yield root
    finally:
        os.umask(before)


@contextmanager
def as_nobody():
    """Let file permissions count even when root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
