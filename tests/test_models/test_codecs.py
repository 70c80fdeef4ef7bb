"""Formats of other libraries, and of the caller: what goes in comes out, and only what was passed is ever used."""

import inspect
import json
import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlkit.errors import (
    ConfigurationError,
    MissingDependencyError,
    UnknownFormatError,
    UntrustedFormatError,
)
from mlkit.models import Codec, ModelStore
from mlkit.models._codecs._onnx import OnnxCodec
from mlkit.models._codecs._pickle import PickleCodec
from mlkit.models._codecs._programs import ExportedCodec, ScriptCodec
from mlkit.models._codecs._sklearn import SklearnCodec
from mlkit.testing import CodecContract

# torch says so itself whenever a scripted module is saved or loaded.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
torch.set_num_threads(1)

ROWS = np.random.default_rng(0).normal(size=(40, 4))
LABELS = (ROWS[:, 0] > 0).astype(int)
TEXTS = ["a red apple", "a green pear", "red red wine", "green tea"]
INPUT = torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


def make_estimator():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, LABELS)


def make_module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())


def make_onnx():
    weight = numpy_helper.from_array(np.eye(2, dtype="float32"), "w")
    value = partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=["n", 2])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x")], [value("y")], [weight]
    )
    return helper.make_model(graph)


class RowsCodec:
    """A codec as a user writes one: lists of rows of numbers as JSON."""

    name = "rows.json"

    def handles(self, model, /):
        return isinstance(model, list) and all(isinstance(row, list) for row in model) and model

    def write(self, model, file, /):
        file.write(json.dumps(model).encode())

    def read(self, file, /):
        return json.load(file)


class TestSklearn(CodecContract):
    def make_codec(self):
        return SklearnCodec()

    def make_model(self):
        return make_estimator()

    def answer(self, model):
        return model.predict_proba(ROWS).tolist()


class TestOnnx(CodecContract):
    def make_codec(self):
        return OnnxCodec()

    def make_model(self):
        return make_onnx()

    def answer(self, model):
        return model.SerializeToString(deterministic=True)


class TestRows(CodecContract):
    def make_codec(self):
        return RowsCodec()

    def make_model(self):
        return [[1.0, 2.0]]

    def answer(self, model):
        return list(model)


class Programs(CodecContract):
    # torch numbers the classes of scripted modules, and marks each file with an id of its own.
    test_equal_models_make_equal_bytes = None


class TestScript(Programs):
    def make_codec(self):
        return ScriptCodec()

    def make_model(self):
        return torch.jit.script(make_module())

    def answer(self, model):
        return model(INPUT).tolist()


class TestExported(Programs):
    def make_codec(self):
        return ExportedCodec()

    def make_model(self):
        return torch.export.export(make_module(), (INPUT,))

    def answer(self, model):
        return model.module()(INPUT).tolist()


LAWS = sorted(law for law in vars(CodecContract) if law.startswith("test_"))


def broken(law, **methods):
    """Return a contract over a codec that breaks one law, and the law."""
    codec = type("Broken", (RowsCodec,), methods)()

    class Contract(TestRows):
        def make_codec(self):
            return codec

    return pytest.param(Contract(), law, id=law)


def spoil(self, model, file, /):
    file.write(json.dumps(model).encode())
    model.append([0.0])


@pytest.mark.parametrize(
    ("contract", "law"),
    [
        broken("test_the_name_can_be_stored", name="My Rows"),
        broken("test_it_handles_its_models_and_nothing_else", handles=lambda self, model: True),
        broken(
            "test_what_is_read_answers_as_what_was_written",
            read=lambda self, file: [[len(file.read())]],
        ),
        broken(
            "test_equal_models_make_equal_bytes",
            write=lambda self, model, file: file.write(
                json.dumps(model).encode() + b" " * (os.urandom(4)[0] + 1)
            ),
        ),
        broken("test_writing_changes_nothing_and_reading_makes_a_new_one", write=spoil),
        broken("test_what_is_no_model_is_refused", read=lambda self, file: [[1.0, 2.0]]),
    ],
)
def test_each_law_bites(contract, law):
    with pytest.raises(AssertionError):
        getattr(contract, law)()
    assert len(LAWS) == 6


@pytest.mark.parametrize(
    ("make", "answer", "kind", "trust"),
    [
        (make_estimator, lambda m: m.predict_proba(ROWS), "skops", None),
        (
            lambda: RandomForestClassifier(5, random_state=0).fit(ROWS, LABELS),
            lambda m: m.predict_proba(ROWS), "skops", ["sklearn.tree._tree.Tree"],
        ),
        (
            lambda: KNeighborsClassifier(3).fit(CountVectorizer().fit_transform(TEXTS), [0, 1, 0, 1]),
            lambda m: m.predict(CountVectorizer().fit_transform(TEXTS)),
            "skops", ["scipy.sparse._csr.csr_matrix"],
        ),
        (make_onnx, lambda m: m.SerializeToString(deterministic=True), "onnx", None),
    ],
    ids=["pipeline", "forest", "sparse", "onnx"],
)  # fmt: skip
def test_models_of_other_libraries(store, make, answer, kind, trust):
    model = make()
    version = store.save("m", model, trust=trust)
    loaded = store.load("m@1", trust=trust)
    assert version.format == kind
    assert type(loaded) is type(model)
    assert np.array_equal(answer(loaded), answer(model))
    assert store.save("m", make(), trust=trust).digest == version.digest
    assert store.save("m", loaded, trust=trust).digest == version.digest


def test_an_estimator_has_its_digest_in_every_process(store):
    def make():
        model = GaussianNB().fit([[0.0], [1.0], [2.0]], [0, 1, 1])
        model.seen_ = {"the", "an", "of", "red", "by", "to"}  # its order is that of the process
        return model

    code = f"""
        import sys
        from sklearn.naive_bayes import GaussianNB
        from mlkit.models import ModelStore
{textwrap.indent(textwrap.dedent(inspect.getsource(make)), " " * 8)}
        print(ModelStore(sys.argv[1]).save("m", make()).digest)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), store.path],
        env={**os.environ, "PYTHONHASHSEED": "77"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert store.save("m", make()).digest == done.stdout.strip()
    assert store.load("m@1").seen_ == make().seen_


class Shifted(StandardScaler):
    """A type that skops cannot know."""


def test_types_that_are_not_known_are_a_decision(store):
    model = make_pipeline(Shifted(), FunctionTransformer(np.log1p)).fit(np.abs(ROWS))
    name = f"{Shifted.__module__}.Shifted"
    with pytest.raises(UntrustedFormatError, match="Shifted") as caught:
        store.save("m", model)
    assert caught.value.types == (name,)
    assert pickle.loads(pickle.dumps(caught.value)).types == (name,)
    with pytest.raises(UntrustedFormatError):
        store.save("m", model, trust=["another.Type"])
    assert store.names() == []
    sys.modules[Shifted.__module__] = sys.modules.get(Shifted.__module__) or type(sys)(
        Shifted.__module__
    )
    sys.modules[Shifted.__module__].Shifted = Shifted
    store.save("m", model, trust=[name])
    for trust in (None, [], ["another.Type"]):
        with pytest.raises(UntrustedFormatError, match="m@1 holds types"):
            store.load("m@1", trust=trust)
    assert isinstance(store.load("m@1", trust=[name])[0], Shifted)
    assert store.save("m", model, trust="pickle").format == "pickle"


@pytest.mark.parametrize(
    "trust", ["yes", "safetensors", True, 1, ["pickle"], [1], b"pickle", {"a.b": 1}]
)
def test_trust_is_a_format_or_names_of_types(store, trust):
    store.save("m", b"x")
    for call in (partial(store.save, "m", b"x"), partial(store.load, "m@1")):
        with pytest.raises(ConfigurationError, match="trust"):
            call(trust=trust)


@pytest.mark.parametrize("program", ["torchscript", "pt2"])
def test_programs_of_torch_are_a_decision(store, program):
    module = make_module()
    model = (
        torch.jit.script(module)
        if program == "torchscript"
        else torch.export.export(module, (INPUT,))
    )
    for trust in (None, "pickle", ["a.b"]):
        with pytest.raises(UntrustedFormatError, match=f"trust='{program}'"):
            store.save("m", model, trust=trust)
    assert store.save("m", model, trust=program).format == program
    for trust in (None, "pickle", ["a.b"]):
        with pytest.raises(UntrustedFormatError, match=f"trust='{program}'"):
            store.load("m@1", trust=trust)
    loaded = store.load("m@1", trust=program)
    answered = loaded(INPUT) if program == "torchscript" else loaded.module()(INPUT)
    assert torch.equal(answered, module(INPUT))


def test_a_scripted_module_with_a_spec_is_a_module(store):
    module = make_module()
    assert store.save("m", torch.jit.script(module), spec={}).format == "torch"
    assert torch.equal(store.load("m@1", build=lambda spec: make_module())(INPUT), module(INPUT))


def test_an_onnx_model_has_its_weights_with_it(store, tmp_path):
    model = make_onnx()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    apart = onnx.load(path, load_external_data=False)
    with pytest.raises(ConfigurationError, match="'w' lies in another file"):
        store.save("m", apart)
    inner = helper.make_graph([], "then", [], [], list(apart.graph.initializer))
    nested = make_onnx()
    nested.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner))
    with pytest.raises(ConfigurationError, match="another file"):
        store.save("m", nested)
    store.save("m", onnx.load(path))


def test_a_codec_of_the_caller(tmp_path):
    store = ModelStore(tmp_path, codecs=[RowsCodec()])
    assert isinstance(RowsCodec(), Codec)
    version = store.save("m", [[1.0, 2.0]])
    assert (version.format, store.load("m@1")) == ("rows.json", [[1.0, 2.0]])
    assert pickle.loads(pickle.dumps(store)).load("m@1") == [[1.0, 2.0]]
    with pytest.raises(ConfigurationError, match=r"no build for m@1, which is rows\.json"):
        store.load("m@1", build=dict)
    plain = ModelStore(tmp_path)
    assert plain.get("m@1").format == "rows.json"
    with pytest.raises(UnknownFormatError, match=r"'rows.json'.*codecs=\[\.\.\.\]") as caught:
        plain.load("m@1")
    assert (caught.value.ref, caught.value.format) == ("m@1", "rows.json")
    with pytest.raises(UnknownFormatError):
        plain.load("m@1", trust="pickle")
    with pytest.raises(UntrustedFormatError):
        plain.save("m", [[1.0, 2.0]])


def test_a_codec_is_asked_before_the_built_in_ones(tmp_path):
    class Mine(RowsCodec):
        name = "mine"

        def handles(self, model, /):
            return isinstance(model, dict)

        def write(self, model, file, /):
            for part in (b"a" * 3_000_000, b"b", b"c" * 5_000_000):
                file.write(part)

        def read(self, file, /):
            assert (file.seekable(), file.tell()) == (True, 0)
            content = file.read()
            file.seek(1)
            return content, file.read(1)

    store = ModelStore(tmp_path, codecs=[Mine(), RowsCodec()])
    assert store.save("m", {"w": np.zeros(2)}).format == "mine"
    content, second = store.load("m@1")
    assert content == b"a" * 3_000_000 + b"b" + b"c" * 5_000_000
    assert second == b"a"


@pytest.mark.parametrize(
    "codecs",
    [
        None, "rows", [RowsCodec], [object()], [RowsCodec(), RowsCodec()],
        [type("T", (RowsCodec,), {"name": name})() for name in ("torch",)],
        *[[type("T", (RowsCodec,), {"name": name})()] for name in ("pickle", "", "A", "a b", "a/b", "1a", "é", "a" * 41, None)],
    ],
)  # fmt: skip
def test_codecs_that_cannot_be(tmp_path, codecs):
    with pytest.raises(ConfigurationError, match="codecs"):
        ModelStore(tmp_path, codecs=codecs)


def test_what_a_codec_raises_comes_through_and_leaves_nothing(tmp_path):
    class Full(RowsCodec):
        def write(self, model, file, /):
            file.write(b"half")
            raise RuntimeError("no more")

    store = ModelStore(tmp_path, codecs=[Full()])
    with pytest.raises(RuntimeError, match="no more"):
        store.save("m", [[1.0]])
    assert store.names() == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.parametrize(
    ("module", "make", "kind"),
    [("skops", make_estimator, "sklearn"), ("onnx", make_onnx, "onnx")],
)
def test_a_package_that_is_missing_is_named(store, monkeypatch, module, make, kind):
    store.save("m", make())
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"mlkit-blocks\[{kind}\]"):
        store.load("m@1")


def test_pickle_takes_what_nothing_else_does(store):
    assert PickleCodec().handles(object())
    for model in ([1, {2}], sparse.eye(3)):
        with pytest.raises(UntrustedFormatError):
            store.save("m", model)
        store.save("m", model, trust="pickle")
    assert store.load("m@1", trust="pickle") == [1, {2}]
    with pytest.raises(ConfigurationError, match="pickle can store"):
        store.save("m", lambda: 0, trust="pickle")
