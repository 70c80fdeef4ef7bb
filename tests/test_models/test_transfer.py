"""A version that travels is the same version at the other end, and nothing else that travels gets in."""

import io
import json
import os
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlkit.errors import ConfigurationError, IntegrityError, NumberTakenError, SignatureError
from mlkit.models import ModelStore, signed_by

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
NEED = signed_by(KEY.public_key())


@pytest.fixture
def store(tmp_path):
    store = ModelStore(tmp_path / "from", who="ada")
    store.save("team/m", b"first")
    arrays = {"w": np.arange(30_000.0)}
    facts = {"metrics": {"accuracy": 0.9, "nan": float("nan")}, "tags": {"a": "b"}, "run": "r1"}
    store.save("team/m", arrays, spec={"a": 1}, why="why", sign=KEY, **facts)
    store.promote("team/m", 2, why="better")
    return store


@pytest.fixture
def to(tmp_path):
    return ModelStore(tmp_path / "to", who="bob")


@pytest.fixture(params=["folder", "tar", "copy"])
def travel(request, tmp_path):
    def go(store, ref, to, **kwargs):
        if request.param == "copy":
            return store.copy(ref, to, **kwargs)
        path = tmp_path / ("package" + (".tar" if request.param == "tar" else ""))
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        store.export(ref, path)
        return to.import_(path, **kwargs)

    return go


def test_it_is_the_same_version(store, to, travel):
    came = travel(store, "team/m@champion", to, why="to production", require=NEED)
    was = store.get("team/m@2")
    assert came == was
    assert (came.spec, came.run, came.tags, came.who, came.time) == (
        was.spec,
        was.run,
        was.tags,
        "ada",
        was.time,
    )
    assert came.metrics["accuracy"] == 0.9
    assert np.array_equal(to.load(came, require=NEED)["w"], np.arange(30_000.0))
    imported, signed = to.history("team/m")
    assert (imported.kind, imported.who, imported.why) == ("imported", "bob", "to production")
    assert signed.kind == "signed"
    said = " ".join(f"{key}: {value}" for key, value in imported.evidence.items())
    assert "promoted champion" in said
    assert "better" in said
    assert to.aliases("team/m") == {}, "who holds an alias here is decided here"


def test_what_a_signature_says_of_its_key_is_not_told_as_true(store, to, travel):
    travel(store, "team/m@2", to)
    made, came = store.history("team/m")[2], to.history("team/m")[1]
    assert list(made.evidence) == ["signed_by"]
    assert list(came.evidence) == ["says_signed_by"]
    assert to.sign("team/m@2", KEY) == came, "and it holds, so it needs no second one"


def test_numbers_go_on_after_it_and_come_back_to_nobody(store, to, travel):
    travel(store, "team/m@2", to)
    assert to.save("team/m", b"third").number == 3
    with pytest.raises(NumberTakenError) as caught:
        travel(store, "team/m@1", to)
    assert caught.value.last == 3
    assert travel(store, "team/m@1", to, renumber=True).number == 4
    assert to.load("team/m@4") == b"first"
    assert [version.number for version in ModelStore(to.path).versions("team/m")] == [2, 3, 4]


def test_a_version_that_is_there_stays_and_gets_the_signatures_it_lacks(store, to, travel):
    travel(store, "team/m@2", to)
    n_changes = len(to.history("team/m"))
    travel(store, "team/m@2", to)
    assert len(to.history("team/m")) == n_changes
    store.sign("team/m@2", OTHER)
    travel(store, "team/m@2", to)
    assert [change.kind for change in to.history("team/m")] == ["imported", "signed", "signed"]
    assert to.get("team/m@2", require=NEED & signed_by(OTHER.public_key()))


def test_a_number_that_is_something_else_here_is_taken(store, to, travel):
    to.save("team/m", b"one")
    to.save("team/m", b"two")
    with pytest.raises(NumberTakenError, match="renumber"):
        travel(store, "team/m@2", to)
    came = travel(store, "team/m@2", to, renumber=True)
    assert came.number == 3
    with pytest.raises(SignatureError):
        to.load("team/m@3", require=NEED)


def test_a_store_that_asks_for_signatures_takes_nothing_else(store, tmp_path, travel):
    strict = ModelStore(tmp_path / "strict", require=NEED)
    with pytest.raises(SignatureError):
        travel(store, "team/m@1", strict)
    assert strict.names() == []
    assert not list((tmp_path / "strict").rglob("*/*/*"))
    assert travel(store, "team/m@2", strict).number == 2


def test_an_export_is_the_same_bytes_each_time(store, tmp_path):
    for name in ("a", "b"):
        store.export("team/m@2", tmp_path / name)
        store.export("team/m@2", tmp_path / f"{name}.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
        assert names == sorted(names)
        for name in names:
            one, other = (tmp_path / folder / name for folder in ("a", "b"))
            assert one.read_bytes() == other.read_bytes() == tar.extractfile(name).read()
    assert "sha256:" + sha256((tmp_path / "a/document.json").read_bytes()).hexdigest() == (
        store.get("team/m@2").digest
    )


def test_nothing_is_overwritten_and_nothing_half_is_left(store, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.tar").write_bytes(b"mine")
    for path in (tmp_path / "there", tmp_path / "there.tar"):
        with pytest.raises(ConfigurationError, match="where nothing is"):
            store.export("team/m@2", path)
    assert (tmp_path / "there.tar").read_bytes() == b"mine"
    before = sorted(tmp_path.iterdir())
    real, n_left = os.write, 3

    def full(descriptor, data):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError(28, "no space left")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    for name in ("new", "new.tar"):
        n_left = 3 if name == "new" else 1
        with pytest.raises(OSError, match="no space"):
            store.export("team/m@2", tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_damage_in_the_store_does_not_travel(store, to, tmp_path, travel):
    weights = max(Path(store.path).rglob("*/*/*/*"), key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[100_000] ^= 1
    weights.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IntegrityError):
        travel(store, "team/m@2", to)
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "to"] == before
    assert to.names() == []


# --- what others made ---------------------------------------------------------------------------------------------


def files_of(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def test_every_file_of_an_export_is_checked(store, to, tmp_path):
    store.export("team/m@2", tmp_path / "good")
    for path in files_of(tmp_path / "good"):
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", bad)
        target = bad / path.relative_to(tmp_path / "good")
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
        if path.name == "history.json":
            to.import_(bad)  # hearsay: nothing relies on it
            to = ModelStore(tmp_path / "to2")
        elif path.suffix == ".sig":
            # A signature that does not hold gets in only if it still says that it is about this version.
            try:
                to.import_(bad)
            except IntegrityError as error:
                assert error.path == str(target)
            else:
                with pytest.raises(SignatureError):
                    to.load("team/m@2", require=NEED)
        else:
            with pytest.raises(IntegrityError) as caught:
                to.import_(bad)
            assert caught.value.path == str(target)
        shutil.rmtree(bad)
        to = ModelStore(tmp_path / f"to-{path.name}")


def rewritten(folder, changes):
    path = folder / "version.json"
    said = json.loads(path.read_bytes()) | changes
    path.write_bytes(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc"},
        {"name": "/etc/passwd"},
        {"name": ""},
        {"number": 0},
        {"number": -1},
        {"number": 10**9},
        {"number": True},
        {"number": "2"},
        {"digest": "sha256:../../x"},
        {"payload": 7},
        {"format": "../x"},
        {"n_bytes": 10**15},
        {"n_bytes": -1},
        {"metrics": []},
        {"metrics": {"a": "x"}},
        {"who": "x" * 2000},
        {"mlkit": 2},
        {"extra": 1},
        {"time": "now"},
    ],
    ids=str,
)
def test_hostile_descriptions_are_refused(store, to, tmp_path, changes):
    store.export("team/m@2", tmp_path / "p")
    rewritten(tmp_path / "p", changes)
    with pytest.raises(IntegrityError):
        to.import_(tmp_path / "p")
    assert to.names() == []


def test_metrics_that_were_made_better_on_the_way_are_not_what_was_signed(store, to, tmp_path):
    store.export("team/m@2", tmp_path / "p")
    rewritten(tmp_path / "p", {"metrics": {"accuracy": "0.99"}})
    with pytest.raises(IntegrityError, match=r"signatures"):
        to.import_(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "signatures")
    with pytest.raises(SignatureError):
        to.import_(tmp_path / "p", require=NEED)


def test_links_and_strangers_in_a_folder_are_refused(store, to, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")

    def link(path):
        path.unlink()
        path.symlink_to(secret)

    def pipe(path):
        path.unlink()
        os.mkfifo(path)

    hostile = {
        "link": lambda p: link(p / "weights"),
        "link to a description": lambda p: link(p / "version.json"),
        "pipe": lambda p: pipe(p / "document.json"),
        "folder": lambda p: ((p / "weights").unlink(), (p / "weights").mkdir()),
        "stranger": lambda p: (p / "evil.py").write_text("1"),
        "nested": lambda p: (p / "more").mkdir(),
        "signatures elsewhere": lambda p: (
            shutil.rmtree(p / "signatures"),
            (p / "signatures").symlink_to(tmp_path),
        ),
        "signature of a name": lambda p: (p / "signatures" / "..sig").write_bytes(b""),
        "signature that is a link": lambda p: (p / "signatures" / "a.sig").symlink_to(secret),
        "many": lambda p: [(p / "signatures" / f"{i}.sig").write_bytes(b"") for i in range(65)],
        "big": lambda p: os.truncate(p / "version.json", 2 << 20),
        "missing": lambda p: (p / "weights").unlink(),
        "longer": lambda p: os.truncate(p / "weights", 1 << 40),  # a file of holes
    }
    for name, spoil in hostile.items():
        package = tmp_path / name
        store.export("team/m@2", package)
        spoil(package)
        with pytest.raises(IntegrityError) as caught:
            to.import_(package)
        assert caught.value.path.startswith(str(package)), name
    assert to.names() == []
    assert not [path for path in Path(to.path).rglob("*/*") if path.is_file()]


def tar_of(path, *members, **kwargs):
    with tarfile.open(path, "w", **kwargs) as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
                info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))


def test_hostile_archives_are_refused(store, to, tmp_path):
    store.export("team/m@2", tmp_path / "good")
    good = [
        (str(path.relative_to(tmp_path / "good")), path.read_bytes(), tarfile.REGTYPE)
        for path in files_of(tmp_path / "good")
    ]
    plain = [each for each in good if each[0] != "weights"]
    hostile = {
        "escape": [*good, ("../escaped", b"x", tarfile.REGTYPE)],
        "absolute": [*good, (str(tmp_path / "escaped"), b"x", tarfile.REGTYPE)],
        "within": [*good, ("signatures/../../escaped.sig", b"x", tarfile.REGTYPE)],
        "link": [*plain, ("weights", b"", tarfile.SYMTYPE)],
        "hard link": [*plain, ("weights", b"", tarfile.LNKTYPE)],
        "device": [*plain, ("weights", b"", tarfile.CHRTYPE)],
        "twice": [*good, good[0]],
        "weights twice": [*good, good[-1]],
        "long name": [*good, ("a" * 5000, b"x", tarfile.REGTYPE)],
        "none": plain,
        "only weights": [good[-1]],
    }
    for name, members in hostile.items():
        path = tmp_path / f"{name}.tar"
        tar_of(path, *members)
        with pytest.raises(IntegrityError) as caught:
            to.import_(path)
        assert caught.value.path.startswith(str(path)), name
    whole = tmp_path / "whole.tar"
    store.export("team/m@2", whole)
    content = whole.read_bytes()
    for name, bad in {
        "compressed": __import__("gzip").compress(content),
        "empty": b"",
        "zeros": bytes(1 << 20),
        "cut": content[: len(content) // 2],
        "noise": b"\x01" * 10_000,
        "size": content[:124] + b"77777777777\0" + content[136:],
    }.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(bad)
        with pytest.raises(IntegrityError):
            to.import_(path)
    assert not list(tmp_path.rglob("escaped*"))
    assert to.names() == []
    tar_of(tmp_path / "by-tarfile.tar", *good)
    assert to.import_(tmp_path / "by-tarfile.tar", require=NEED).ref == "team/m@2"


def test_what_is_no_path_is_said_so(store, to, tmp_path):
    for wrong in (tmp_path / "none", 7, "", "a\0b"):
        with pytest.raises(ConfigurationError, match=r"import_\(path\)"):
            to.import_(wrong)
    for wrong in (7, "", b"bytes", tmp_path / "none" / "p", tmp_path / "none" / "p.tar"):
        with pytest.raises(ConfigurationError, match=r"export\(path\)"):
            store.export("team/m@2", wrong)
    with pytest.raises(ConfigurationError, match=r"copy\(to"):
        store.copy("team/m@2", str(tmp_path))
