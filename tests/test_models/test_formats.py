"""What goes in comes out: arrays, modules, bytes, files."""

import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlkit.errors import ConfigurationError, RebuildError, UntrustedFormatError
from mlkit.models import ModelStore, Stateful
from mlkit.testing.strategies import json_values

torch.set_num_threads(1)

DTYPES = ["bool", "i1", "<i2", ">i4", "i8", "u1", ">u2", "u4", "u8", "<f2", ">f4", "f8", ">c8"]
TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(hnp.arrays(dtype, shape))
    kind = draw(st.sampled_from(["whole", "transposed", "reversed", "fortran"]))
    if kind == "transposed":
        return array.T
    if kind == "reversed" and array.ndim:
        return array[::-1]
    return np.asfortranarray(array).reshape(shape) if kind == "fortran" else array


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1), arrays(), min_size=1, max_size=4
    )
)
@settings(max_examples=40)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, state):
    state.pop("__metadata__", None)
    if not state:
        return
    store = ModelStore(tmp_path_factory.mktemp("store"))
    version = store.save("m", state)
    loaded = store.load("m@1")
    assert set(loaded) == set(state)
    for name, array in state.items():
        back = loaded[name]
        assert back.shape == array.shape
        assert back.dtype == array.dtype.newbyteorder("=")
        assert back.tobytes() == array.astype(back.dtype).tobytes()
        back[...] = 0  # it is the caller's own
    shuffled = {
        name: np.asfortranarray(state[name]) if state[name].ndim else state[name]
        for name in sorted(state)
    }
    assert store.save("m", shuffled).digest == version.digest, "order and strides are not content"


@given(st.dictionaries(st.text(max_size=10), json_values(max_leaves=8), max_size=4))
@settings(max_examples=30)
def test_plain_data_comes_back_equal(tmp_path_factory, spec):
    store = ModelStore(tmp_path_factory.mktemp("store"))
    version = store.save("m", b"x", spec=spec, manifest=spec, signature=spec)
    again = ModelStore(store.path).get("m@1")
    assert again.spec == again.manifest == again.signature == spec
    assert repr(again.spec) == repr(version.spec), "types too: 1 is not 1.0 is not True"


@given(st.binary(max_size=200))
def test_bytes_come_back(tmp_path_factory, content):
    store = ModelStore(tmp_path_factory.mktemp("store"))
    assert store.save("m", content).digest == store.save("m", bytearray(content)).digest
    assert store.load("m@1") == content


def test_a_file_is_copied(store, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx" * 1000)
    version = store.save("m", path)
    path.write_bytes(b"changed")
    assert store.load("m@1") == b"onnx" * 1000
    assert (version.format, version.n_bytes) == ("bytes", 4000)
    assert store.save("m", b"onnx" * 1000).digest == version.digest


class Net(torch.nn.Module):
    """Tied weights, buffers that are saved and not, a scalar buffer."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.embed = torch.nn.Embedding(6, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.out = torch.nn.Linear(width, 6, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.out(self.norm(self.embed(x))) * self.scale


def build(spec):
    assert spec.pop("type") == "net"
    return Net(**spec)


def equal_modules(a, b):
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(
        one[k].dtype == two[k].dtype and torch.equal(one[k], two[k]) for k in one
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_module_is_rebuilt_as_it_was(store, dtype):
    net = Net(width=5).to(dtype)
    net.embed.weight.requires_grad_(False)
    net.norm(torch.randn(8, 5, dtype=dtype))
    version = store.save("net", net, spec={"type": "net", "width": 5})
    with torch.no_grad():
        net.norm.weight.add_(1)  # what was saved stays as it was
    loaded = store.load("net@1", build=build)
    assert loaded.out.weight is loaded.embed.weight
    assert int(loaded.norm.num_batches_tracked) == 1
    assert not equal_modules(net, loaded)
    with torch.no_grad():
        net.norm.weight.sub_(1)
    assert equal_modules(net, loaded)
    x = torch.arange(6)
    assert torch.equal(net.eval()(x), loaded.eval()(x))
    assert version.spec == {"type": "net", "width": 5}, "build had a copy of its own"
    assert store.save("net", loaded, spec=version.spec).digest == version.digest


def test_equal_modules_have_equal_digests_whatever_their_memory_looks_like(store):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3)
    spec = {"type": "conv"}
    first = store.save("c", conv, spec=spec)
    assert (
        store.save("c", conv.to(memory_format=torch.channels_last), spec=spec).digest
        == first.digest
    )
    assert equal_modules(store.load("c@2", build=lambda s: torch.nn.Conv2d(3, 4, 3)), conv)


def test_tied_weights_are_stored_once(store):
    weight = torch.zeros(100, 100)
    once = store.save("w", {"a": weight}).n_bytes
    assert store.save("w", {"a": weight, "b": weight, "c": weight}).n_bytes == once
    loaded = store.load("w@2")
    assert loaded["a"] is loaded["b"] is loaded["c"]


def test_one_element_is_stored_whatever_its_stride(store):
    numbers = torch.arange(12.0).view(3, 4)
    state = {"imag": torch.tensor([1 + 2j]).conj().imag, "corner": numbers[1:2, ::3][:, 1:]}
    store.save("w", state)
    loaded = store.load("w@1")
    assert (loaded["imag"].tolist(), loaded["corner"].tolist()) == ([-2.0], [[7.0]])


class Twice(torch.nn.Module):
    """Two layers of one shape, perhaps with one weight."""

    def __init__(self, *, tied):
        super().__init__()
        self.a = torch.nn.Linear(2, 2, bias=False)
        self.b = torch.nn.Linear(2, 2, bias=False)
        if tied:
            self.b.weight = self.a.weight


def test_two_weights_do_not_become_one_because_the_spec_builds_one(store):
    store.save("twice", Twice(tied=False), spec={})
    with pytest.raises(RebuildError, match=r"'a\.weight' and 'b.weight' are one tensor"):
        store.load("twice@1", build=lambda spec: Twice(tied=True))
    same = Twice(tied=False)
    same.b.load_state_dict(same.a.state_dict())
    with torch.no_grad():
        same.a.weight[0, 0] = same.b.weight[0, 0] = torch.nan
    store.save("twice", same, spec={})
    loaded = store.load("twice@2", build=lambda spec: Twice(tied=True))
    assert loaded.b.weight.isnan().tolist() == [[True, False], [False, False]]


def test_a_spec_that_builds_what_cannot_hold_the_stored_dtype_is_said_so(store):
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    net = torch.nn.Linear(2, 2, bias=False)
    net.weight = weight
    store.save("net", net, spec={})
    with pytest.raises(RebuildError, match="floating point"):
        store.load("net@1", build=lambda spec: torch.nn.Linear(2, 2, bias=False))


def test_a_module_without_weights(store):
    store.save("identity", torch.nn.Identity(), spec={})
    assert isinstance(
        store.load("identity@1", build=lambda spec: torch.nn.Identity()), torch.nn.Identity
    )


@given(data=st.data())
@settings(max_examples=40)
def test_tensors_come_back_bit_for_bit_even_when_they_share_memory(tmp_path_factory, data):
    store = ModelStore(tmp_path_factory.mktemp("store"))
    base = torch.arange(24, dtype=torch.float32).to(data.draw(st.sampled_from(TORCH_DTYPES)))
    views = {
        "whole": base,
        "again": base,
        "slice": base[3:9],
        "matrix": base.view(4, 6),
        "transposed": base.view(4, 6).T,
        "strided": base[::2],
        "scalar": base[5],
        "empty": base[:0],
        "expanded": base[:1].expand(5),
        "twin": base.view(4, 6).T,
        "parameter": torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)),
    }
    names = data.draw(st.lists(st.sampled_from(sorted(views)), min_size=1, unique=True))
    state = {name: views[name] for name in names}
    store.save("t", state)
    loaded = store.load("t@1")
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        back = loaded[name]
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
        assert bytes(
            back.contiguous().view(-1).view(torch.uint8).tolist() if back.numel() else []
        ) == bytes(
            tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()
            if tensor.numel()
            else []
        )


def test_conjugate_and_negated_views(store):
    value = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    state = {"plain": value, "conj": value.conj(), "imag": value.conj().imag.clone()}
    store.save("t", state)
    loaded = store.load("t@1")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Centroids:
    """A model that is no torch module and yet has a state."""

    def __init__(self, n: int):
        self.points = np.zeros((n, 2))

    def state_dict(self):
        return {"points": self.points}

    def load_state_dict(self, state):
        if state["points"].shape != self.points.shape:
            raise ValueError("another number of points")
        self.points = state["points"]


def test_any_stateful_object(store):
    model = Centroids(3)
    model.points += 7
    assert isinstance(model, Stateful)
    store.save("c", model, spec={"n": 3})
    loaded = store.load("c@1", build=lambda spec: Centroids(**spec))
    assert np.array_equal(loaded.points, model.points)
    with pytest.raises(ValueError, match="another number") as caught:
        store.load("c@1", build=lambda spec: Centroids(4))
    with pytest.raises(ConfigurationError, match="build"):
        store.load("c@1")
    del caught


def test_arrays_with_a_spec_load_either_way(store):
    store.save("c", {"points": np.ones((3, 2))}, spec={"n": 3})
    assert store.load("c@1")["points"].sum() == 6
    assert store.load("c@1", build=lambda spec: Centroids(**spec)).points.sum() == 6


def test_weights_that_do_not_fit_are_refused(store):
    store.save("net", Net(4), spec={"type": "net", "width": 4})
    with pytest.raises(RebuildError, match="size mismatch"):
        store.load("net@1", build=lambda spec: Net(5))
    with pytest.raises(RebuildError, match="Unexpected key"):
        store.load("net@1", build=lambda spec: torch.nn.Linear(2, 2))
    with pytest.raises(RebuildError, match="load_state_dict"):
        store.load("net@1", build=lambda spec: object())
    with pytest.raises(RebuildError) as caught:
        store.load("net@1", build=lambda spec: None)
    assert pickle.loads(pickle.dumps(caught.value)).ref == "net@1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_a_wrapper_is_refused_with_what_it_wraps(store):
    net = torch.nn.Linear(2, 3)
    compiled, parallel = torch.compile(net), torch.nn.DataParallel(net)
    with pytest.raises(ConfigurationError, match=r"save net\._orig_mod, the module that was comp"):
        store.save("m", compiled, spec={})
    for wrapper in (parallel, torch.nn.DataParallel(compiled)):
        with pytest.raises(ConfigurationError, match=r"save net\.module"):
            store.save("m", wrapper, spec={}, trust="pickle")
    store.save("m", compiled._orig_mod, spec={})
    store.save("m", parallel.module, spec={})
    assert equal_modules(store.load("m@2", build=lambda spec: torch.nn.Linear(2, 3)), net)


def test_a_module_may_call_its_part_module(store):
    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(2, 3)

    net = Outer()
    store.save("m", net, spec={})
    assert equal_modules(store.load("m@1", build=lambda spec: Outer()), net)


def test_an_error_of_build_says_where_it_was(store):
    store.save("net", Net(4), spec={"type": "other"})
    with pytest.raises(RebuildError, match="net@1 cannot be rebuilt: build raised Asser") as caught:
        store.load("net@1", build=build)
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(RebuildError, match="build raised KeyError: 'units'; build it") as caught:
        store.load("net@1", build=lambda spec: Net(spec["units"]))
    assert pickle.loads(pickle.dumps(caught.value)).ref == "net@1"


def test_an_error_of_build_that_is_mlkits_own_comes_through(store):
    def refuse(spec):
        raise ConfigurationError("build(spec)", spec, "another type")

    store.save("net", Net(4), spec={"type": "other"})
    with pytest.raises(ConfigurationError, match="build") as caught:
        store.load("net@1", build=refuse)
    assert "net@1" in "".join(caught.value.__notes__)


def test_a_model_is_no_build(store):
    store.save("net", Net(4), spec={})
    for model in (Net(4), Centroids(2)):
        with pytest.raises(ConfigurationError, match=r"pass a function of the spec.*not the mod"):
            store.load("net@1", build=model)

    class FromSpec(Net):  # a class has state_dict too, and is a builder
        def __init__(self, spec):
            super().__init__(**spec)

    store.save("own", FromSpec({"width": 4}), spec={"width": 4})
    assert isinstance(store.load("own@1", build=FromSpec), FromSpec)


@pytest.mark.parametrize(
    "model",
    [
        {"a": np.array(["text"])},
        {"a": np.array([object()])},
        {"a": np.zeros(1, dtype="c16")},
        {"a": np.zeros(1, dtype="g")},
        {"a": np.zeros(1, dtype="M8[s]")},
        {"a": np.zeros(1, dtype=[("x", "f4")])},
        {"a": 1.0},
        {"a": np.float32(1)},
        {"a": {"b": np.zeros(1)}},
        {"a": np.zeros(1), "b": torch.zeros(1)},
        {"a": torch.zeros(2, dtype=torch.complex128)},
        {"a": torch.eye(2).to_sparse()},
        Net,
        lambda x: x,
        [np.zeros(1)],
        None,
    ],
    ids=range(16),
)
def test_what_has_no_safe_format_needs_a_decision(store, model):
    with pytest.raises(UntrustedFormatError, match="pickle"):
        store.save("m", model)
    assert store.names() == []


def test_state_that_is_no_tensor_needs_a_decision(store):
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {"vocabulary": ["a"]}

        def set_extra_state(self, state):
            pass

    with pytest.raises(UntrustedFormatError, match="_extra_state"):
        store.save("m", Extra(1, 1), spec={})


@pytest.mark.parametrize(
    "module", [torch.nn.Linear(2, 2, device="meta"), torch.nn.LazyLinear(3)], ids=["meta", "lazy"]
)
def test_a_module_without_data_is_refused(store, module):
    with pytest.raises(ConfigurationError, match="without data"):
        store.save("m", module, spec={})


def test_a_module_built_on_the_meta_device_is_refused(store):
    store.save("m", torch.nn.Linear(2, 3), spec={})
    with pytest.raises(RebuildError, match="meta device"):
        store.load("m@1", build=lambda spec: torch.nn.Linear(2, 3, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lazy_module_takes_its_shapes_from_the_weights(store, dtype):
    net = torch.nn.Linear(2, 3, dtype=dtype)
    store.save("m", net, spec={})
    assert equal_modules(store.load("m@1", build=lambda spec: torch.nn.LazyLinear(3)), net)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o444), (0o027, 0o440), (0o077, 0o400)])
def test_the_umask_says_who_may_read_whatever_the_format(store, umask, mode):
    before = os.umask(umask)
    try:
        for model in (b"x", {"a": np.zeros(1)}, {"a": torch.zeros(1)}):
            store.save("m", model)
    finally:
        os.umask(before)
    blobs = [path for path in Path(store.path, "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in blobs} == {mode}


def test_a_module_without_a_spec_is_refused(store):
    with pytest.raises(ConfigurationError, match="state_dict"):
        store.save("m", torch.nn.Linear(1, 1))
    store.save("m", torch.nn.Linear(1, 1).state_dict())
    assert set(store.load("m@1")) == {"weight", "bias"}
