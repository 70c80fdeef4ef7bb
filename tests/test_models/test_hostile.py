"""Files that somebody made to do harm, in stores whose digests are right: nothing of them runs, and the error says why.

Each test has its proof that the file is what it says: what a plain loader does with it.
"""

import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import skops.io
import torch
from onnx import helper, numpy_helper
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from sklearn.linear_model import LogisticRegression

from mlkit.errors import (
    IntegrityError,
    ModelStoreError,
    RebuildError,
    SpecError,
    UnknownFormatError,
    UntrustedFormatError,
)
from mlkit.models import ModelStore
from mlkit.models._zip import problem_of_archive
from mlkit.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Touch:
    """What a pickle that runs code looks like: unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def mark(tmp_path):
    """A path that exists as soon as code of a file has run."""
    return tmp_path / "it ran"


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


def forge(store, kind, content, *, rebuild=False, ties=None, spec=None, n_bytes=None, written_in=1):
    """Put a version in a store as somebody who can write to it and to its history could."""

    def place(data):
        digest = sha256(data).hexdigest()
        path = Path(store.path, "blobs", "sha256", digest[:2], digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"sha256:{digest}"

    facts = {"format": kind, "n_bytes": len(content) if n_bytes is None else n_bytes}
    payload = place(content)
    described = facts | {"digest": payload, "rebuild": rebuild, "ties": ties or {}}
    document = {
        "format": written_in,
        "spec": spec,
        "signature": None,
        "manifest": None,
        "payload": described,
    }
    event = facts | {
        "v": 1, "seq": 1, "model": "m", "who": "", "time": 0, "why": "", "kind": "saved", "version": 1,
        "run": None, "metrics": {}, "tags": {}, "payload": payload, "digest": place(json.dumps(document).encode()),
    }  # fmt: skip
    body = json.dumps(event).encode()
    total = sha256(sha256(b"m").hexdigest().encode() + body).hexdigest()
    log = Path(store.path, "models", "m.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b'{"sum":"%s","event":%s}\n' % (total.encode(), body))


def archive(members, *, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, data in members:
            made.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return file.getvalue()


def test_a_forged_store_is_read_so_the_rest_means_something(store):
    forge(store, "bytes", b"hello")
    assert store.load("m@1") == b"hello"


# --- pickle -------------------------------------------------------------------------------------------------------


def test_a_pickle_is_not_loaded_whatever_it_is_called(store, mark):
    content = pickle.dumps(Touch(mark))
    for kind in (
        "torch",
        "numpy",
        "skops",
        "onnx",
        "bytes",
        "pickle",
        "torchscript",
        "pt2",
        "joblib",
    ):
        forge(store, kind, content)
        try:
            assert ModelStore(store.path).load("m@1") == content
            assert kind == "bytes"
        except (RebuildError, UntrustedFormatError, UnknownFormatError):
            assert kind != "bytes"
        assert not mark.exists()
    forge(store, "pickle", content)
    ModelStore(store.path).load("m@1", trust="pickle")
    assert mark.exists()


def test_a_pickle_in_a_torch_checkpoint_is_not_loaded(store, mark):
    file = io.BytesIO()
    torch.save({"w": Touch(mark)}, file)
    for kind in ("torch", "skops"):
        forge(store, kind, file.getvalue())
        with pytest.raises(RebuildError):
            store.load("m@1")
    assert not mark.exists()


def test_an_exported_program_can_hold_a_pickle_and_needs_a_decision(store, mark):
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 3), (torch.ones(4, 2),)), file)
    hidden = io.BytesIO()
    torch.save(Touch(mark), hidden)  # what torch restores the example inputs from
    with zipfile.ZipFile(file) as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    content = archive(
        [(name, hidden.getvalue() if "sample_inputs" in name else data) for name, data in members]
    )
    forge(store, "pt2", content)
    for trust in (None, "pickle", "torchscript", ["os.mkdir"]):
        with pytest.raises(UntrustedFormatError, match="unpickled"):
            store.load("m@1", trust=trust)
    assert not mark.exists()
    with pytest.raises(RebuildError):  # it is no program, but that is found out too late
        store.load("m@1", trust="pt2")
    assert mark.exists()


class Overwrites(torch.nn.Module):
    """TorchScript that makes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.data = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.data = torch.from_file(state[0], shared=True, size=8, dtype=torch.uint8)

    def forward(self, x):
        return x


def test_torchscript_can_write_files_and_needs_a_decision(store, mark):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Overwrites(str(mark))), file)
    forge(store, "torchscript", file.getvalue())
    for trust in (None, "pickle", "pt2", ["torch.from_file"]):
        with pytest.raises(UntrustedFormatError, match="overwrite files"):
            store.load("m@1", trust=trust)
    assert not mark.exists()
    store.load("m@1", trust="torchscript")
    assert mark.stat().st_size == 8


# --- skops and other archives ---------------------------------------------------------------------------------------


def skops_schema(node):
    return json.dumps(node | {"protocol": 2, "_skops_version": "0.16.0"}).encode()


def test_a_skops_file_that_calls_a_function_is_refused(store, mark):
    def text(value):
        return {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": json.dumps(value), "is_json": True}  # fmt: skip

    def sequence(kind, content):
        return {"__class__": kind.lower(), "__module__": "builtins", "__loader__": f"{kind}Node", "content": content}  # fmt: skip

    reduced = {
        "__class__": "mkdir", "__module__": "os", "__loader__": "ReduceNode",
        "reduce": sequence("Tuple", [text(str(mark))]), "constructor": text("x"), "content": text(None),
    }  # fmt: skip
    partial = {
        "__class__": "partial", "__module__": "functools", "__loader__": "PartialNode",
        "content": {
            "func": {"__class__": "mkdir", "__module__": "os", "__loader__": "FunctionNode", "content": "mkdir"},
            "args": sequence("Tuple", [text(str(mark))]),
            "kwds": sequence("Dict", {}) | {"key_types": sequence("List", [])},
            "namespace": text(None),
        },
    }  # fmt: skip
    kind = {"__class__": "system", "__module__": "os", "__loader__": "TypeNode", "content": {"__class__": "system", "__module__": "os"}}  # fmt: skip
    for node in (reduced, partial, kind):
        forge(store, "skops", archive([("schema.json", skops_schema(node))]))
        with pytest.raises((UntrustedFormatError, RebuildError)):
            ModelStore(store.path).load("m@1")
        assert not mark.exists()


def test_a_skops_type_is_not_even_imported(store, tmp_path, mark, monkeypatch):
    (tmp_path / "evil_module.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\nclass Model: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {
        "__class__": "Model", "__module__": "evil_module", "__loader__": "ObjectNode", "content": None,
    }  # fmt: skip
    forge(store, "skops", archive([("schema.json", skops_schema(node))]))
    with pytest.raises(UntrustedFormatError, match=r"evil_module\.Model") as caught:
        store.load("m@1")
    assert caught.value.types == ("evil_module.Model",)
    assert not mark.exists()
    assert "evil_module" not in sys.modules


def overlapping(size: int, copies: int) -> bytes:
    """Return an archive in which many entries are the same bytes: small, and large once it is read."""
    single = archive([("schema.json", b"{}"), ("0.npy", b"\x00" * size)])
    end = single.rindex(b"PK\x05\x06")
    begin = struct.unpack("<I", single[end + 16 : end + 20])[0]
    directory = single[begin:end]
    last = directory[directory.rindex(b"PK\x01\x02") :]
    more = b"".join(last.replace(b"0.npy", b"%05d" % number) for number in range(copies))
    directory += more
    tail = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, copies + 2, copies + 2, len(directory), begin, 0
    )
    return single[:begin] + directory + tail


BOMBS = {
    "compressed": archive([("schema.json", b"{}"), ("0.npy", b"\x00" * (300 << 20))], compression=zipfile.ZIP_DEFLATED),
    "overlapping": overlapping(1 << 20, 5000),
    "sparse schema": archive([("schema.json", b" " * (300 << 20))], compression=zipfile.ZIP_DEFLATED),
}  # fmt: skip
NESTED = archive([("schema.json", b"{}"), ("0.npz", archive([("data.npy", b"\x00" * (300 << 20))], compression=zipfile.ZIP_DEFLATED))])  # fmt: skip
ESCAPES = [
    "../../evil",
    "/etc/evil",
    "a/../../evil",
    "C:\\evil",
    "..\\evil",
    "\\\\host\\evil",
    "c:evil",
]
BAD = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + b"\x00" * 100,
    "cut off": archive([("schema.json", b"{}" * 1000)])[:-30],
    "lzma": archive([("schema.json", b"{}")], compression=zipfile.ZIP_LZMA),
    "two of a name": archive([("a", b"1"), ("b", b"2")]).replace(b"b", b"a"),
} | {f"escape {name}": archive([(name, b"x")]) for name in ESCAPES}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "trust"), [("skops", None), ("torchscript", "torchscript"), ("pt2", "pt2")]
)
@pytest.mark.parametrize("content", [*BOMBS.values(), *BAD.values()], ids=[*BOMBS, *BAD])
def test_archives_are_looked_at_before_they_are_read(store, kind, trust, content):
    forge(store, kind, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RebuildError, match=rf"it is no {kind} model"):
        store.load("m@1", trust=trust)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, (
        "nothing was unpacked"
    )


def test_an_archive_in_an_archive_is_looked_at_too(store):
    forge(store, "skops", NESTED)
    assert problem_of_archive(io.BytesIO(NESTED)) is None
    with pytest.raises(
        RebuildError, match=r"0\.npz.* that is an archive of \d+ bytes that says it hol"
    ):
        store.load("m@1")


def test_the_bombs_are_bombs():
    for content in BOMBS.values():
        assert len(content) < 3 << 20
        assert problem_of_archive(io.BytesIO(content))
    with zipfile.ZipFile(io.BytesIO(BOMBS["overlapping"])) as opened:
        assert sum(member.file_size for member in opened.infolist()) > 5_000_000_000
    assert problem_of_archive(io.BytesIO(archive([("a/b.txt", b"x" * 1000)]))) is None


# --- safetensors ----------------------------------------------------------------------------------------------------


def tensors(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        tensors(b"{}", length=(1 << 63) - 1),
        tensors(b"{}", length=99_000_000),
        tensors(b"[" * 100_000),
        tensors(b'{"a":' * 10_000),
        tensors({"w": entry([1 << 40], 0, 8)}, bytes(8)),
        tensors({"w": entry([1 << 62, 4], 0, 0)}),
        tensors({"w": entry([2], 0, 8)}),
        tensors({"w": entry([2], -8, 0)}, bytes(8)),
        tensors({"w": entry([2], 0, 8), "v": entry([2], 0, 8)}, bytes(8)),
        tensors({"w": entry([2], 8, 16)}, bytes(16)),
        tensors({"w": entry([2], 0, 8)}, bytes(16)),
        tensors({"w": entry([2], 0, 8, "OBJECT")}, bytes(8)),
        tensors({"w": entry([-2], 0, 8)}, bytes(8)),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_header_that_lies_is_refused(store, kind, content):
    forge(store, kind, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RebuildError, match="its weights are not what its document says"):
        store.load("m@1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    with pytest.raises(SafetensorError):
        load_tensors(content)


@pytest.mark.parametrize(
    "content",
    [
        tensors(b'{"w":%s,"w":%s}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2), bytes(4)),
        tensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"a":1,"a":2}}', bytes(4)),
        tensors(b" " + json.dumps({"w": entry([1], 0, 4)}).encode(), bytes(4)),
    ],
    ids=["a tensor twice", "a field twice", "no brace first"],
)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_header_that_the_format_forbids_is_refused_although_its_library_reads_it(
    store, kind, content
):
    assert list(load_tensors(content)) == ["w"]
    forge(store, kind, content)
    with pytest.raises(RebuildError, match=r"(twice in its|begin with a brace)"):
        store.load("m@1")


def test_a_large_file_that_lies_is_refused_too(store):
    content = tensors({"w": entry([1 << 40], 0, 8)}, bytes(4 << 20))
    for kind in ("torch", "numpy"):
        forge(store, kind, content)
        with pytest.raises(RebuildError):
            ModelStore(store.path).load("m@1")


def test_ties_to_nothing_are_refused(store):
    forge(store, "torch", tensors({"w": entry([2], 0, 8)}, bytes(8)), ties={"v": "u"})
    with pytest.raises(RebuildError):
        store.load("m@1")


def test_a_size_that_lies_is_refused_before_anything_is_read(store):
    for n_bytes in (0, 7, 9, 1 << 50):
        forge(store, "torch", tensors({}), n_bytes=n_bytes)
        with pytest.raises(IntegrityError, match="bytes"):
            ModelStore(store.path).load("m@1")


# --- onnx, specs ------------------------------------------------------------------------------------------------------


def test_an_onnx_model_does_not_read_other_files(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8))
    weight = numpy_helper.from_array(np.zeros(2, "float32"), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight]))
    forge(store, "onnx", model.SerializeToString())
    with pytest.raises(RebuildError, match="'w' lies in another file"):
        store.load("m@1")
    forge(store, "onnx", b"\x3a" * 5000)
    with pytest.raises(RebuildError, match="no onnx model"):
        ModelStore(store.path).load("m@1")


def test_a_spec_that_names_what_is_not_registered_builds_nothing(store, mark):
    registry = Registry("nets")
    registry.register("linear")(torch.nn.Linear)
    for name in ("os.mkdir", "os:mkdir", "builtins.eval", "torch.nn.Linear"):
        spec = {"type": name, "path": str(mark), "name": str(mark)}
        forge(store, "torch", tensors({"w": entry([2], 0, 8)}, bytes(8)), rebuild=True, spec=spec)
        with pytest.raises(SpecError) as caught:
            ModelStore(store.path).load("m@1", build=registry.build)
        assert "m@1" in "".join(caught.value.__notes__)
        assert not mark.exists()


@pytest.mark.parametrize(
    "kind", ["", "../skops", "os.system", "pickle ", "Torch", "a" * 99, None, 7, ["torch"]]
)
def test_a_format_is_a_name_and_never_a_place(store, kind):
    forge(store, kind, b"x")
    with pytest.raises((IntegrityError, UnknownFormatError)):
        store.load("m@1", trust="pickle")


def test_a_newer_document_is_refused_politely(store):
    forge(store, "bytes", b"x", written_in=2)
    for call in (store.get, store.load):
        with pytest.raises(ModelStoreError, match=r"newer mlkit .* upgrade mlkit-blocks"):
            call("m@1")


def test_skops_itself_refuses_what_we_do_and_more_is_ours(store):
    content = skops.io.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    forge(store, "skops", content)  # as skops wrote it, not we
    assert isinstance(store.load("m@1"), LogisticRegression)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_a_loaded_version_is_left_open(store, tmp_path):
    store.save("m", {"w": np.zeros(1 << 20)})
    store.save("m", {"w": torch.zeros(1 << 20)})

    def n_open():
        kept = [store.load(version) for version in store.versions("m")]
        paths = []
        for one in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # of another thread, and closed by now
                paths.append(str(one.readlink()))
        return len(kept), sum(path.startswith(str(tmp_path.resolve())) for path in paths)

    before = n_open()
    assert {n_open() for _ in range(20)} == {before}
    assert before == (2, 0)
