"""What is sealed is opened with its key and nothing else, whole and in order; and nobody reads it without."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, IntegrityError, SealError
from mlkit.models import ModelStore
from mlkit.models._sealed import FRAME, Sealer, unsealed


class Keys:
    def __init__(self, **keys):
        self.keys = {name: bytes([value]) * 32 for name, value in keys.items()}
        self.now = next(reversed(self.keys))

    def current(self):
        return self.now, self.keys[self.now]

    def key(self, key_id):
        return self.keys[key_id]


def files_of(store):
    root = Path(store.path)
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != "lock")


SECRET = b"the weights that nobody may read"


def make(path):
    store = ModelStore(path, keys=Keys(first=1))
    store.save("m", SECRET, spec={"hidden": "spec"}, metrics={"accuracy": 0.9})
    store.save("m", {"w": np.arange(200_000.0)}, tags={"team": "risk"})
    return store


def test_what_comes_back_is_what_was_saved(tmp_path):
    store = make(tmp_path)
    for one in (store, ModelStore(tmp_path, keys=Keys(first=1, second=2))):
        assert one.load("m@1") == SECRET
        assert one.get("m@1").spec == {"hidden": "spec"}
        assert np.array_equal(one.load("m@2")["w"], np.arange(200_000.0))


def test_the_digest_is_that_of_the_content(tmp_path):
    plain = ModelStore(tmp_path / "plain").save("m", SECRET, spec={"hidden": "spec"})
    assert make(tmp_path / "sealed").get("m@1").digest == plain.digest


def test_nothing_readable_is_written(tmp_path, monkeypatch):
    written, real = [], os.write

    def write(descriptor, data):
        written.append(bytes(data))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    store = make(tmp_path)
    assert written
    for content in [*written, *(path.read_bytes() for path in files_of(store))]:
        assert SECRET not in content
        assert b"hidden" not in content
        assert np.arange(200_000.0).tobytes()[800:1600] not in content


def test_names_and_metrics_are_readable_without_a_key_and_content_is_not(tmp_path):
    make(tmp_path)
    store = ModelStore(tmp_path)
    assert [v.metrics.get("accuracy") for v in store.versions("m")] == [0.9, None]
    assert store.promote("m", 1).version == 1
    for read in (lambda: store.load("m@1"), lambda: store.get("m@1"), lambda: store.load("m@2")):
        with pytest.raises(SealError, match=r"'first'.*keys=") as caught:
            read()
        assert caught.value.key_id == "first"


def test_another_key_of_that_name_and_a_missing_one_are_told_from_damage(tmp_path):
    make(tmp_path)
    with pytest.raises(SealError, match="another one"):
        ModelStore(tmp_path, keys=Keys(first=9)).load("m@1")
    with pytest.raises(SealError, match="does not have it"):
        ModelStore(tmp_path, keys=Keys(second=2)).load("m@1")


def test_a_store_with_sealed_versions_takes_no_readable_ones(tmp_path):
    make(tmp_path)
    with pytest.raises(ConfigurationError, match=r"keys="):
        ModelStore(tmp_path).save("m", b"for everybody to read")
    assert len(ModelStore(tmp_path).versions("m")) == 2
    assert not list(tmp_path.glob("tmp/*"))


def test_keys_are_in_nothing_that_is_shown_or_kept(tmp_path):
    keys = Keys(first=1)
    store = ModelStore(tmp_path, keys=keys)
    version = store.save("m", b"x")
    with pytest.raises(ConfigurationError, match="pickling"):
        pickle.dumps(store)
    copy = pickle.loads(pickle.dumps(version))
    with pytest.raises(SealError):
        copy.spec
    assert copy == version
    everything = [repr(store).encode(), repr(version).encode(), pickle.dumps(version)]
    everything += [path.read_bytes() for path in files_of(store)]
    assert not any(keys.keys["first"] in content for content in everything)


class Odd(Keys):
    def __init__(self, answer):
        super().__init__(first=1)
        self.answer = answer

    def current(self):
        return self.answer


def test_what_is_no_provider_or_no_key_is_refused_and_never_shown(tmp_path):
    secret = b"SECRETSECRETSECRET"
    for wrong in ({"first": secret}, secret, Keys, lambda: secret):
        with pytest.raises(ConfigurationError, match=r"keys=") as caught:
            ModelStore(tmp_path, keys=wrong)
        assert "SECRET" not in str(caught.value)
    good = b"S" * 32
    wrong = [secret, (secret, good), ("a", secret), ("a", "S" * 32), ("", good), ("a" * 81, good)]
    wrong += [("a\n", good), ("a", good, 1), None]
    for answer in wrong:
        with pytest.raises(ConfigurationError, match="KeyProvider") as caught:
            ModelStore(tmp_path, keys=Odd(answer)).save("m", b"x")
        assert "SECRET" not in str(caught.value)
        assert "SSSS" not in str(caught.value)
    assert ModelStore(tmp_path).names() == []


def test_every_flipped_byte_of_a_sealed_file_is_found_and_named(tmp_path):
    store = ModelStore(tmp_path, keys=Keys(first=1))
    store.save("m", SECRET, spec={"a": 1})
    for path in files_of(store):
        content = path.read_bytes()
        path.chmod(0o644)
        for offset in range(len(content)):
            path.write_bytes(
                content[:offset] + bytes([content[offset] ^ 0x20]) + content[offset + 1 :]
            )
            with pytest.raises(IntegrityError) as caught:
                ModelStore(tmp_path, keys=Keys(first=1)).load("m@1")
            assert caught.value.path.startswith(str(path))
        path.write_bytes(content)
    assert store.load("m@1") == SECRET


def seal(path, content, keys, pieces=1):
    with path.open("wb", buffering=0) as file:
        sealer = Sealer(file.write, keys)
        step = -(-len(content) // pieces) or 1
        for begin in range(0, len(content), step):
            sealer.write(memoryview(content)[begin : begin + step])
        sealer.finish()


def unseal(path, keys):
    with path.open("rb") as file:
        return b"".join(unsealed(file.fileno(), keys, str(path)))


@given(
    size=st.sampled_from([0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME + 5]),
    pieces=st.sampled_from([1, 2, 3, 7]),
)
def test_frames_of_any_cut_are_the_content(tmp_path_factory, size, pieces):
    path = tmp_path_factory.mktemp("frames") / "file"
    content = np.arange(size, dtype=np.uint32).astype(np.uint8).tobytes()
    seal(path, content, Keys(k=1), pieces)
    assert unseal(path, Keys(k=1)) == content


def test_frames_are_not_left_out_moved_added_or_borrowed(tmp_path):
    keys, content = Keys(k=1), os.urandom(3 * FRAME + 100)
    path, other = tmp_path / "file", tmp_path / "other"
    seal(path, content, keys)
    seal(other, content, keys)
    data = path.read_bytes()
    step = FRAME + 16
    head = len(data) - 3 * step - 116
    frames = [data[head + index * step : head + (index + 1) * step] for index in range(4)]
    borrowed = other.read_bytes()[head : head + step]
    hostile = [
        frames[:3],  # ends where a frame ends
        frames[:1],
        [],
        [frames[1], frames[0], *frames[2:]],
        frames[1:],
        [frames[0], *frames],
        [*frames, frames[3]],
        [borrowed, *frames[1:]],
        [*frames[:3], frames[3][:-1]],
        [*frames, b"\0"],
    ]
    for chosen in hostile:
        path.write_bytes(data[:head] + b"".join(chosen))
        with pytest.raises(IntegrityError):
            unseal(path, keys)
    path.write_bytes(other.read_bytes()[:head] + data[head:])
    with pytest.raises(IntegrityError):
        unseal(path, keys)
    path.write_bytes(data)
    assert unseal(path, keys) == content


def test_no_two_files_are_sealed_alike(tmp_path):
    for name in ("a", "b"):
        seal(tmp_path / name, SECRET, Keys(k=1))
    assert (tmp_path / "a").read_bytes()[-48:] != (tmp_path / "b").read_bytes()[-48:]


def test_a_plain_copy_beside_a_sealed_one_is_no_way_around_the_digest(tmp_path):
    store = make(tmp_path)
    (document, *_) = [path for path in files_of(store) if "sealed" in str(path)]
    plain = Path(str(document).replace("/sealed/", "/blobs/"))
    plain.parent.mkdir(parents=True)
    plain.write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        [store.load(version) for version in store.versions("m")]


def test_deleting_takes_the_sealed_files_along(tmp_path):
    store = make(tmp_path)
    n_files = len(files_of(store))
    store.delete("m", 1)
    assert len(files_of(store)) == n_files - 2
    shutil.rmtree(tmp_path / "sealed")
    with pytest.raises(IntegrityError, match="found nothing"):
        store.load("m@2")
