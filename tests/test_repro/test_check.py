"""The first place where two runs differ is named, and nothing is named when they do not."""

from __future__ import annotations

import os
import random
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlkit.errors import ConfigurationError
from mlkit.repro import check, rng_state
from mlkit.testing import record_events

torch.set_num_threads(1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(), torch.nn.Linear(8, 4)
        )
        self.bias = self.body[2].bias.data.numpy()  # changes without an operation of torch

    def forward(self, x):
        return self.body(x)


def train(x, *, disturb=lambda net, run: None, runs=count()):
    """Train three steps from the same start."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    disturb(net, next(runs))
    for _ in range(3):
        optimizer.zero_grad()
        net(x).pow(2).sum().backward()
        optimizer.step()
    return {name: value.detach() for name, value in net.state_dict().items()}


X = torch.linspace(-1, 1, 32).reshape(4, 8)


def test_a_seeded_training_run_has_no_divergence():
    before = rng_state()
    assert check(train, X) is None
    assert check(train, X, runs=3) is None
    assert rng_state() == before


def faulty(fault):
    runs = count()

    def fn(x):
        return train(x, disturb=lambda net, run: fault(net) if run == 1 else None, runs=runs)

    return fn


def test_an_unseeded_initial_weight_is_named():
    def fault(net):
        with torch.no_grad():
            net.body[2].weight.flatten()[5:6].add_(2**-20)

    found = check(faulty(fault), X)
    # The fault runs more operations than the first run did: the first of them is where they part.
    assert found.op
    assert found.call is not None
    assert "test_check.py" in found.line
    assert "run" in found.reason


def test_a_flipped_bit_is_named_with_module_element_and_distance():
    def fault(net):
        net.bias[1] = np.nextafter(net.bias[1], np.float32(9))

    with record_events("repro.") as events:
        found = check(faulty(fault), X)
    assert (found.op, found.module) == ("aten::addmm", "Net.body.2")
    assert found.element[1] == 1
    assert 1 <= found.differing <= 4
    assert found.total == 16
    assert found.max_ulps >= 1
    assert found.line.startswith("test_check.py:")
    assert found.run == 1
    assert "aten::addmm in Net.body.2" in str(found)
    assert events[0].fields["op"] == "aten::addmm"


def test_dropout_that_draws_elsewhere_is_named():
    def fault(net):
        net.body[1].register_forward_pre_hook(
            lambda *_: torch.set_rng_state(torch.Generator().manual_seed(5).get_state())
        )

    found = check(faulty(fault), X)
    assert found.op == "aten::bernoulli_"
    assert found.module == "Net.body.1"


def test_a_shuffled_batch_and_a_flipped_sign_are_seen():
    """Norms and sums of the values are the same."""
    runs = count()
    shuffled = check(lambda x: x.numpy()[[0, 1, 2, 3] if next(runs) == 0 else [1, 0, 2, 3]] + 0, X)
    assert shuffled.path == "$"
    signs = count()
    found = check(
        lambda x: torch.from_numpy(np.float32([1, -1]) * (1 if next(signs) == 0 else -1)) * 2, X
    )
    assert found.op == "aten::lift_fresh"


def test_not_a_number_is_no_difference():
    assert check(lambda: torch.tensor([float("nan")]) * 2) is None
    assert check(lambda: [float("nan"), np.array([np.nan])]) is None


def test_uninitialised_memory_is_no_difference():
    assert check(lambda: torch.empty(1000).fill_(1.0)) is None


def dirtied():
    """Leave no freed memory as a run before has left it."""
    for size in (1_000, 10_000, 30_000, 100_000):
        del [torch.empty(size, dtype=torch.uint8).random_() for _ in range(4)][:]


def test_memory_that_a_kernel_keeps_for_its_backward_pass_is_no_difference():
    """Most of it is never written, nor read."""
    layer = torch.nn.LSTM(8, 4, num_layers=2, dropout=0.5)
    rows = torch.rand(3, 2, 8)
    places = torch.tensor([5, 3]), torch.tensor([2, 2])

    def fn():
        dirtied()
        output = layer(rows)[0]
        logits = torch.rand(5, 2, 6).log_softmax(2)
        loss = torch.nn.functional.ctc_loss(logits, torch.tensor([[1, 2], [2, 3]]), *places)
        return output.sum(), loss

    assert all(check(fn) is None for _ in range(3))


def test_dtype_and_length_of_the_trace():
    runs = count()
    found = check(lambda: torch.ones(2, dtype=torch.float32 if next(runs) == 0 else torch.float64))
    assert found.reason == "float32[2] became float64[2]"
    more = count()
    found = check(lambda: [torch.ones(1) for _ in range(1 + next(more))])
    assert "only the later run" in found.reason
    fewer = count()
    found = check(lambda: [torch.ones(1) for _ in range(2 - next(fewer))])
    assert "only the first run" in found.reason


@dataclass
class Result:
    loss: float
    parts: list


@pytest.mark.parametrize(
    ("first", "second", "path", "reason"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "$", "keys"),
        ([1, 2], [1], "$", "length 2 became 1"),
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 3.0}]}, "$['a'][1]['b']", "2.0 became 3.0"),
        (Result(1.0, [1]), Result(1.0, [2]), "$.parts[0]", "1 became 2"),
        (1, 1.0, "$", "int became float"),
        (True, 1, "$", "bool became int"),
        (0.0, -0.0, "$", "0.0 became -0.0"),
        ("a", "b", "$", "'a' became 'b'"),
        (np.zeros(2), np.zeros(3), "$", "shape"),
        (np.zeros(2, "f4"), np.zeros(2, "f8"), "$", "dtype"),
        (np.array(["a"]), np.array(["b"]), "$", "became"),
        (np.array([None, 1]), np.array([None, 2]), "$[1]", "1 became 2"),
    ],
    ids=range(12),
)
def test_results_are_compared_part_by_part(first, second, path, reason):
    runs = count()
    found = check(lambda: first if next(runs) == 0 else second)
    assert found.path == path
    assert reason in found.reason
    assert found.op == ""
    assert check(lambda: first) is None


@given(
    npst.arrays(
        npst.floating_dtypes(sizes=(16, 32, 64), endianness="="),
        npst.array_shapes(min_side=1),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.data(),
)
def test_the_element_and_the_distance_are_right(array, data):
    index = tuple(data.draw(st.integers(0, side - 1)) for side in array.shape)
    steps = data.draw(st.integers(1, 3))
    changed = array.copy()
    with np.errstate(over="ignore"):  # the largest number's neighbour is infinity
        for _ in range(steps):
            changed[index] = np.nextafter(changed[index], array.dtype.type(np.inf))
    runs = count()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = check(lambda: array if next(runs) == 0 else changed)
    if np.isinf(changed[index]):
        return
    assert found.element == index
    assert (found.differing, found.total) == (1, array.size)
    # Going up through zero takes the step from -0.0 to 0.0 besides.
    assert steps <= found.max_ulps <= steps + 1


def test_each_run_has_its_own_arguments_and_the_same_draws():
    def fn(values):
        values.append(random.random())
        return values

    given_values = [1]
    assert check(fn, given_values, runs=4) is None
    assert given_values == [1]


def test_a_result_that_is_changed_later_counts_as_it_was():
    shared = np.zeros(3)

    def fn():
        shared[0] += 1
        return shared

    assert check(fn).element == (0,)


def test_an_unseeded_generator_is_found():
    assert check(lambda: np.random.default_rng().random(3)) is not None


def test_threads_are_varied_and_put_back():
    torch.set_num_threads(2)
    seen = []
    try:

        def fn():
            seen.append(torch.get_num_threads())
            return len(seen) > 2

        found = check(fn, vary=["threads"])
        assert seen == [2, 2, 1]
        assert found.setting == "1 threads instead of 2"
        assert torch.get_num_threads() == 2
        assert str(found).endswith("with 1 threads instead of 2")
    finally:
        torch.set_num_threads(1)


def test_folders_are_listed_backwards_however_they_are_asked_for(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    ways = (
        lambda: os.listdir(path=tmp_path),  # noqa: PTH208 - as users call it
        lambda: [entry.name for entry in os.scandir(path=tmp_path)],
        lambda: [path.name for path in tmp_path.iterdir()],
    )
    for names in ways:
        found = check(names, vary=["order"])
        assert found.setting == "folders listed the other way round"


def test_workers_are_varied_for_a_loader_with_a_timeout():
    """Which torch takes from loaders with workers alone."""

    def fn():
        loader = torch.utils.data.DataLoader(torch.arange(4), num_workers=1, timeout=600)
        batches = list(loader)
        assert (loader.num_workers, loader.timeout) == (1, 600)
        return batches

    assert check(fn, vary=["workers"]) is None


def test_errors_of_the_function_come_out():
    before = rng_state()

    def fn():
        torch.rand(2)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        check(fn)
    assert rng_state() == before
    torch.nn.Linear(2, 2)(torch.ones(1, 2))  # no hook is left behind


@pytest.mark.parametrize(
    "options",
    [
        {"runs": 1},
        {"runs": True},
        {"runs": 2.0},
        {"vary": ["thread"]},
        {"vary": "seed"},
        {"vary": [3]},
    ],
    ids=str,
)
def test_wrong_arguments(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        check(lambda: 1, **options)
    with pytest.raises(ConfigurationError, match="fn"):
        check(3)


def test_near_names_are_suggested():
    with pytest.raises(ConfigurationError, match="did you mean 'threads'"):
        check(lambda: 1, vary=["thread"])


def test_mappings_of_tensors():
    assert (
        check(
            lambda: OrderedDict(
                a=torch.ones(2), b=(torch.zeros(0), torch.tensor(1, dtype=torch.bfloat16))
            )
        )
        is None
    )


def test_a_compiled_function_is_followed_as_it_is_written():
    """Left to itself, torch.compile would compile what takes note of each operation, too."""
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    fn = torch.compile(lambda x, step: (x.sin() + step).relu(), backend=backend)
    runs = count()
    assert check(fn, torch.ones(3), 1.0) is None
    found = check(lambda: fn(torch.ones(3), torch.tensor(float(next(runs)))))
    assert found is not None
    assert found.op == "aten::lift_fresh"
    assert compiled == []
    fn(torch.ones(3), 1.0)
    assert len(compiled) == 1  # and afterwards it compiles again
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_encoder_that_leaves_out_padding_is_followed():
    """Inside it makes a nested tensor, which has no shape."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2).eval()
    rows, padding = torch.rand(2, 3, 8), torch.tensor([[False, False, True], [False] * 3])

    @torch.no_grad()
    def encode(scale):
        return encoder(rows * scale, src_key_padding_mask=padding)

    assert check(encode, 1.0) is None
    runs = count(1)
    found = check(lambda: encode(float(next(runs))))
    assert (found.op, found.module) == ("aten::mul", "")


def layouts():
    """Return for each kind of tensor without elements of its own at their index what makes one of a number."""
    eye = torch.eye(3)
    return {
        "coo": lambda x: (eye * x).to_sparse(),
        "csr": lambda x: (eye * x).to_sparse_csr(),
        "bsc": lambda x: (eye * x).to_sparse_bsc((1, 1)),
        "onednn": lambda x: (eye * x).to_mkldnn(),
        "quantized": lambda x: torch.quantize_per_tensor(eye * x, 0.1, 0, torch.qint8),
        "nested": lambda x: torch.nested.nested_tensor([torch.ones(2) * x, torch.ones(3)]),
        "complex halves": lambda x: torch.full((2,), x).to(torch.complex32),
        "eighths": lambda x: torch.full((2,), x).to(torch.float8_e5m2),
    }


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", layouts())
def test_every_layout_is_compared_in_operations_and_results(layout):
    made = layouts()[layout]
    tensors = {x: made(x) for x in (1.0, 2.0)}
    assert check(made, 1.0) is None
    runs = count()
    found = check(lambda: tensors[2.0 if next(runs) else 1.0])  # made before: no operation
    assert (found.op, found.path[:1]) == ("", "$")
    runs = count()
    found = check(lambda: made(2.0 if next(runs) else 1.0))
    assert found.op.startswith("aten::")


def test_the_operation_on_a_sparse_tensor_is_named_and_no_later_one():
    runs = count(1)
    found = check(lambda: (torch.eye(3).to_sparse() * next(runs)).to_dense())
    assert (found.op, found.element) == ("aten::mul", (0, 0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it loads the mode
def test_tensors_without_elements_are_followed():
    from torch._subclasses import FakeTensorMode

    def fake():
        with FakeTensorMode():
            return tuple(torch.ones(3).add(1).shape)

    assert check(fake) is None
    assert check(lambda: torch.ones(2, device="meta")) is None
    cubes = torch.func.hessian(lambda x: (x**3).sum())  # with tangents of zeros that take no memory
    assert check(lambda: cubes(torch.ones(3))) is None


def test_tables_are_compared_column_by_column():
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, float("nan")]})
    assert check(frame.copy) is None

    def found(other, first=frame):
        runs = count()
        return check(lambda: other if next(runs) else first)

    changed = found(frame.assign(b=[0.5, 1.0]))
    assert (changed.path, changed.element) == ("$['b']", (1,))
    assert found(frame[["b", "a"]]).reason.startswith("columns ['a', 'b'] became")
    assert found(frame.set_axis([1, 2])).path == "$.index"
    assert found(frame.astype({"a": "int32"})).reason == "dtype int64 became int32"
    assert found(pd.Series([1, 3]), pd.Series([1, 2])).element == (1,)


def test_results_and_arguments_that_cannot_be_handled_are_refused():
    class Rows:
        def __eq__(self, other):
            raise ValueError("ambiguous")

        __hash__ = None

    with pytest.raises(ConfigurationError, match="results that can be compared"):
        check(Rows)
    inner = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(ConfigurationError, match=r"deepcopy.*inside of fn"):
        check(lambda x: x, inner)
    assert check(lambda: complex("nan")) is None


def test_a_check_takes_constant_memory():
    import tracemalloc

    rows = torch.zeros(4)

    def peak(n):
        def fn():
            own = rows.clone()
            for _ in range(n):
                own.add_(1)
            return own

        tracemalloc.start()
        assert check(fn) is None
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlkit.repro._steps._IN_MEMORY", 4096)  # so that few operations are many
        patch.setattr("mlkit.repro._steps._PIECE", 1024)
        assert peak(2000) < 2 * peak(400)
