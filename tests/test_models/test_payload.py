"""The file of weights: what was hashed is what is loaded, memory is bounded, and old stores stay readable."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import IntegrityError
from mlkit.models import ModelStore
from mlkit.models._payload import HashedFile, in_memory, private_copy
from mlkit.models._tensors import write_tensors

FIRST = Path(__file__).with_name("first_store.zip")
DIGESTS = ["ec1fe2ed225a", "a336f0ccaaaa", "10c5dfabffe8", "1dd1f0e56dc6", "38101bb56783"]
MIB = 1 << 20


def test_a_store_of_the_first_format_still_loads(tmp_path):
    """Made by the code before formats were codecs, with tied tensors, an object, bytes and a pickle."""
    with zipfile.ZipFile(FIRST) as made:
        made.extractall(tmp_path)
    store = ModelStore(tmp_path)
    assert [version.digest[7:19] for version in store.versions("m")] == DIGESTS
    loaded = store.load("m@1")
    assert loaded["a"] is loaded["b"]
    assert torch.equal(loaded["a"], torch.arange(4.0).reshape(2, 2))
    assert loaded["c"].dtype == torch.bfloat16
    assert store.load("m@2")["x"].tolist() == [0, 1, 2]
    assert store.get("m@2").signature == {"free": 1}
    assert store.get("m@champion").spec == {"type": "n"}
    assert (store.load("m@4"), store.load("m@5", trust="pickle")) == (b"raw", [1, 2])
    assert store.save("m", loaded).number == 6
    assert store.promote("m", 6).previous == 3


@given(st.lists(st.one_of(st.binary(max_size=100), st.integers(1, 3 * MIB).map(bytes)), max_size=6))
def test_what_is_written_is_what_is_hashed(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("file") / "f"
    with HashedFile(str(path)) as file:
        for part in parts:
            assert file.write(part) == len(part)
        assert file.tell() == sum(map(len, parts))
        digest, size = file.settle()
    content = b"".join(parts)
    assert (digest, size) == (f"sha256:{sha256(content).hexdigest()}", len(content))
    assert path.read_bytes() == content
    assert not os.access(path, os.W_OK) or os.getuid() == 0
    with pytest.raises(FileExistsError):
        HashedFile(str(path))


@pytest.mark.parametrize("n_bytes", [0, 1, MIB, MIB + 1, 4 * MIB, 9 * MIB + 7])
@pytest.mark.parametrize("kind", ["as it is", "no memfd", "no /proc", "no threads"])
def test_a_private_copy_is_a_copy(tmp_path, monkeypatch, n_bytes, kind):
    path = tmp_path / "f"
    content = os.urandom(n_bytes)
    path.write_bytes(content)
    if kind == "no memfd":
        monkeypatch.setattr(os, "memfd_create", lambda *_: (_ for _ in ()).throw(OSError(1, "no")))
    elif kind == "no /proc":
        monkeypatch.setattr(os.path, "exists", lambda path: False)
    elif kind == "no threads":  # as at the end of an interpreter
        from concurrent.futures import ThreadPoolExecutor

        def refuse(*_):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

        monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    descriptor = os.open(path, os.O_RDWR)
    file, digest = private_copy(descriptor, n_bytes)
    os.pwrite(descriptor, b"changed", 0)
    os.close(descriptor)
    with file:
        assert file.tell() == 0
        assert file.read() == content
        mapped = in_memory(file)
        assert (mapped is not None) == (n_bytes > MIB and kind in {"as it is", "no threads"})
        assert mapped is None or Path(mapped).read_bytes() == content
    assert digest == f"sha256:{sha256(content).hexdigest()}"


@pytest.mark.parametrize("make", [np.ones, torch.ones], ids=["numpy", "torch"])
def test_what_is_loaded_does_not_change_with_the_file(tmp_path, make):
    store = ModelStore(tmp_path)
    store.save("m", {"w": make(MIB)})
    loaded = store.load("m@1")["w"]
    blob = max(tmp_path.rglob("blobs/*/*/*"), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    blob.write_bytes(b"\xff" * blob.stat().st_size)
    assert float(loaded.sum()) == MIB
    with pytest.raises(IntegrityError, match=blob.name):
        store.load("m@1")
    loaded[:] = 0  # it is the caller's own


def test_a_file_that_changes_while_it_is_read_is_right_or_refused(tmp_path):
    """A writer flips the whole file between two contents as fast as it can; nothing in between is ever loaded."""
    store = ModelStore(tmp_path)
    store.save("m", {"w": np.zeros(2 * MIB)})
    blob = max(tmp_path.rglob("blobs/*/*/*"), key=lambda path: path.stat().st_size)
    right = blob.read_bytes()
    wrong = right[:-MIB] + b"\x01" * MIB
    blob.chmod(0o644)
    stop = threading.Event()

    def flip():
        with blob.open("r+b") as file:
            while not stop.is_set():
                for content in (wrong, right):
                    file.seek(-MIB, os.SEEK_END)
                    file.write(content[-MIB:])
                    file.flush()

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(8):
            try:
                assert not store.load("m@1")["w"].any()
            except IntegrityError:
                continue
    finally:
        stop.set()
        thread.join()


def test_a_model_that_changes_while_it_is_saved_makes_a_version_that_loads(tmp_path):
    """The digest is of the bytes that were written, whatever a training thread did in between."""
    store, weights = ModelStore(tmp_path), torch.zeros(4 * MIB)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            weights.add_(1)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for number in range(1, 4):
            store.save("m", {"w": weights})
            store.load(f"m@{number}")
    finally:
        stop.set()
        thread.join()


PEAK = """
import sys, numpy, torch, safetensors.numpy, safetensors.torch
from mlkit.models import ModelStore
store = ModelStore(sys.argv[1])
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
for library in (torch, numpy):
    store.save("warm", {"w": library.ones(1 << 19)}); store.load(store.versions("warm")[-1])
before = peak()
for number in (1, 2):
    model = store.load(f"m@{number}"); float(model["w"].sum())
    loaded = peak(); store.save("m", model)
    print((loaded - before) / (48 << 20), (peak() - loaded) / (48 << 20))
    del model
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory(tmp_path):
    for make in (torch.ones, np.ones):
        ModelStore(tmp_path).save("m", {"w": make((48 << 20) // make(1).itemsize)})
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for line, times in zip(done.stdout.splitlines(), (1.5, 2.5), strict=True):
        load, save = map(float, line.split())
        assert load < times
        assert save < 0.5, "two chunks, however large the model is"


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_the_layout_is_that_of_safetensors(library):
    dtypes = ["float32", "int64", "uint8", "float16", "bool", "complex64"]
    make = {"torch": lambda d: torch.arange(6).reshape(2, 3).to(getattr(torch, d)), "numpy": lambda d: np.arange(6).reshape(2, 3).astype(d)}[library]  # fmt: skip
    state = {f"{name} \U0001f600": make(name) for name in dtypes} | {"empty": make("uint8")[:0]}
    file = io.BytesIO()
    write_tensors(state, file)
    load = getattr(safetensors, library).load
    back = load(file.getvalue())
    assert set(back) == set(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert back[name].tolist() == value.tolist()
    own, theirs = file.getvalue(), getattr(safetensors, library).save(state)
    assert len(own) == len(theirs)
    header = own[8 : 8 + int.from_bytes(own[:8], "little")]
    assert (len(header) % 8, header[:1]) == (0, b"{")


def test_a_forked_store_loads_and_saves_large_models(tmp_path):
    store = ModelStore(tmp_path)
    store.save("m", {"w": np.ones(MIB)})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ok = (
                store.load("m@1")["w"].sum() == MIB
                and store.save("m", {"w": np.zeros(MIB)}).number == 2
            )
            code = 0 if ok else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not store.load("m@2")["w"].any()


def test_a_model_is_saved_while_the_interpreter_ends(tmp_path):
    code = (
        "import atexit, sys, numpy as np; from mlkit.models import ModelStore\n"
        "atexit.register(lambda: ModelStore(sys.argv[1]).save('m', {'w': np.ones(1 << 20)}))\n"
        "import concurrent.futures.thread"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert ModelStore(tmp_path).load("m@1")["w"].sum() == MIB


def test_nothing_is_left_when_the_disk_is_full(tmp_path, monkeypatch):
    store = ModelStore(tmp_path / "s")
    store.save("m", b"x")
    write, left = os.write, [6 * MIB]

    def full(descriptor, data):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    threads = set(threading.enumerate())
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store.save("m", {"w": np.ones(2 * MIB)})
    monkeypatch.undo()
    assert [version.number for version in store.versions("m")] == [1]
    assert not list((tmp_path / "s" / "tmp").iterdir())
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
        assert not thread.is_alive()
    assert pickle.loads(pickle.dumps(store)).load("m@1") == b"x"
    shutil.rmtree(tmp_path / "s")
