"""Named streams: frozen vectors, one obvious model, and independence of everything but root and path."""

from __future__ import annotations

import ctypes
import pickle
import random
import subprocess
import sys
from hashlib import blake2b, shake_256

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.repro import Seeds

torch.set_num_threads(1)

ROOTS = st.integers(0, 2**128 - 1)
PARTS = st.text(min_size=1, max_size=8).filter(
    lambda text: text.isprintable() and text.encode("utf-8", "ignore").decode() == text
) | st.integers(-(2**127), 2**128 - 1)
PATHS = st.lists(PARTS, max_size=4)


def at(root, path):
    seeds = Seeds(root)
    for part in path:
        seeds = seeds / part
    return seeds


# Published in docs/concepts/repro.md. They never change: a stored seed must mean the same stream for ever.
# root, path, int(), int(64), numpy's first raw word, python's first 64 bits, torch's first 31-bit number
VECTORS = [
    (0, [], 4158991380, 64295884903456554, 16398579640295091668, 7414655322641848333, 1431912092),
    (42, [], 2058456301, 18434368162153804854, 4186348356913989096, 15951837525110530543, 1274628189),
    (2**128 - 1, [], 1520418939, 509194368859316543, 758633989968105104, 7003371376496868590, 2071776678),
    (42, ["data"], 2017025683, 8978417287750541354, 7427643078821325886, 7344275827553068897, 1525434044),
    (42, ["data", 3], 3088419376, 6074210363701720790, 17691943059805036049, 13387443165461421112, 863827615),
    (42, ["data", "3"], 2775122128, 6282406489166965030, 8167472884692869422, 14955044862103764920, 566824856),
    (42, [-1], 451809640, 5379383675690712922, 305508380070553589, 17644814239588769858, 680530349),
    (42, ["é"], 1626858537, 2630356947800800718, 14669877687796092562, 6622976070837503936, 258617340),
]  # fmt: skip


def draws(seeds):
    torch_draw = torch.empty(1, dtype=torch.int64).random_(0, 2**31, generator=seeds.torch())
    return (
        seeds.int(),
        seeds.int(64),
        int(seeds.numpy().bit_generator.random_raw()),
        seeds.python().getrandbits(64),
        int(torch_draw),
    )


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_published_vectors(vector):
    root, path, *expected = vector
    assert draws(at(root, path)) == tuple(expected)


def model_word(root, path, purpose):
    """Return the word as the documentation derives it, written a second time."""

    def step(key, data):
        return blake2b(data, key=key, digest_size=16, person=b"mlkit.seeds.v1").digest()

    node = step(b"", root.to_bytes(16, "little"))
    for part in path:
        node = step(node, f"s{part}".encode() if isinstance(part, str) else b"i%d" % part)
    return int.from_bytes(step(node, b"=" + purpose.encode()), "little")


@given(ROOTS, PATHS)
def test_a_stream_is_what_the_documentation_says(root, path):
    seeds = at(root, path)
    philox = np.random.Philox(key=model_word(root, path, "numpy"))
    assert seeds.numpy().random() == np.random.Generator(philox).random()
    assert seeds.python().random() == random.Random(model_word(root, path, "python")).random()
    assert seeds.int(20) == model_word(root, path, "int:20") >> 108
    stretched = shake_256(model_word(root, path, "torch").to_bytes(16, "little")).digest(2496)
    words = np.frombuffer(stretched, dtype="<u4").copy()
    words[0] |= 1 << 31
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(3, dtype=torch.int64).random_(0, 2**16, generator=seeds.torch())
    assert drawn.tolist() == (twister.random_raw(3) % 2**16).tolist()


@given(ROOTS, st.lists(PATHS, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_creation_does_not_matter(root, paths, order):
    expected = [at(root, path).numpy().bit_generator.random_raw() for path in paths]
    numbered = list(enumerate(paths))
    order.shuffle(numbered)
    for position, path in numbered:
        assert at(root, path).numpy().bit_generator.random_raw() == expected[position]


@given(ROOTS, PATHS, PATHS)
def test_equal_paths_and_only_they_are_equal(root, first, second):
    one, other = at(root, first), at(root, second)
    same = [(type(part), part) for part in first] == [(type(part), part) for part in second]
    assert (one == other) is same
    assert (one.int(128) == other.int(128)) is same
    if same:
        assert hash(one) == hash(other)


@given(ROOTS, PATHS)
def test_it_pickles_and_its_repr_builds_it(root, path):
    seeds = at(root, path)
    assert pickle.loads(pickle.dumps(seeds)) == seeds
    assert eval(repr(seeds)) == seeds
    assert (seeds.root, seeds.path) == (root, tuple(path))
    assert draws(pickle.loads(pickle.dumps(seeds)))[:2] == draws(seeds)[:2]


def test_numbers_and_names_are_different_children():
    seeds = Seeds(1)
    children = [
        seeds / 1,
        seeds / "1",
        seeds / "i1",
        seeds / "s1",
        seeds / "=numpy",
        seeds / -1,
        seeds / 0,
    ]
    assert len({child.int(128) for child in children}) == len(children)
    assert (seeds / "a" / "b").int() != (seeds / "a/b").int()
    assert seeds / np.int64(3) == seeds / 3
    assert Seeds(np.uint64(2**63)) == Seeds(2**63)


def test_it_is_the_same_in_any_process_and_for_any_hash_seed():
    code = (
        "from mlkit.repro import Seeds; s = Seeds(42) / 'data' / 3; "
        "print(s.int(), s.numpy().bit_generator.random_raw(), s.python().getrandbits(64))"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["3088419376", "17691943059805036049", "13387443165461421112"]


@pytest.mark.parametrize(
    "root", [True, False, 1.0, "7", -1, 2**128, b"7", float("nan"), [1], np.float64(3), np.bool_(True), torch.tensor(3)],
    ids=repr,
)  # fmt: skip
def test_wrong_roots_are_refused(root):
    with pytest.raises(ConfigurationError, match=r"Seeds\(root\)"):
        Seeds(root)


@pytest.mark.parametrize(
    "name", [True, 1.0, None, "", b"x", ("a",), "\ud800", 2**128, -(2**127) - 1], ids=repr
)
def test_wrong_names_are_refused(name):
    with pytest.raises(ConfigurationError, match="Seeds / name"):
        Seeds(1) / name


@pytest.mark.parametrize("bits", [0, 129, True, 8.0, None], ids=repr)
def test_wrong_sizes_are_refused(bits):
    with pytest.raises(ConfigurationError, match="bits"):
        Seeds(1).int(bits)


def test_none_takes_fresh_entropy_and_keeps_it():
    seeds = Seeds()
    assert seeds != Seeds()
    assert Seeds(seeds.root) == seeds


def test_it_cannot_be_changed():
    seeds = Seeds(1)
    with pytest.raises(AttributeError, match="immutable"):
        seeds.root = 2
    with pytest.raises(AttributeError):
        del seeds._root
    with pytest.raises(AttributeError):
        seeds.extra = 1


@given(ROOTS, st.integers(1, 128))
def test_int_is_in_range(root, bits):
    assert 0 <= Seeds(root).int(bits) < 2**bits


def test_plain_seeds_are_what_libraries_take():
    for number in range(300):
        seeds = Seeds(number) / "model"
        np.random.RandomState(seeds.int())  # scikit-learn, optuna: refuses 2**32
        assert ctypes.c_int64(seeds.int()).value == seeds.int()  # XGBoost
        assert ctypes.c_int32(seeds.int(31)).value == seeds.int(31)  # LightGBM, CatBoost


def test_spawned_numpy_generators_repeat():
    first, second = Seeds(3).numpy().spawn(2)[1], Seeds(3).numpy().spawn(2)[1]
    assert first.random() == second.random()


def test_torch_uses_more_than_32_bits_of_the_seed():
    # torch.manual_seed(42) and torch.manual_seed(42 + 2**32) are one stream.
    same = torch.Generator().manual_seed(42), torch.Generator().manual_seed(42 + 2**32)
    assert torch.equal(torch.rand(4, generator=same[0]), torch.rand(4, generator=same[1]))
    states = {
        bytes(Seeds(root).torch().get_state().numpy()) for root in (42, 42 + 2**32, 42 + 2**64)
    }
    assert len(states) == 3


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigurationError, match="device"):
        Seeds(1).torch("no-such-device")


def test_siblings_are_not_correlated():
    seeds = Seeds(42)
    drawn = np.stack([(seeds / index).numpy().standard_normal(256) for index in range(60)])
    correlations = np.corrcoef(drawn)[np.triu_indices(60, 1)]
    # 1,770 pairs of 256 draws: the standard error is 1/16, five of it is beyond chance.
    assert np.abs(correlations).max() < 5 / 16
    assert abs(correlations.mean()) < 0.01
    flipped = [(seeds / index).int(64) ^ (seeds / (index + 1)).int(64) for index in range(400)]
    assert 31 < np.mean([word.bit_count() for word in flipped]) < 33


GENERATORS = {
    "numpy": lambda seeds: seeds.numpy(),
    "pcg64": lambda seeds: np.random.default_rng(seeds.int()),
    "mt19937": lambda seeds: np.random.Generator(np.random.MT19937(seeds.int())),
    "legacy": lambda seeds: np.random.RandomState(seeds.int()),
    "python": lambda seeds: seeds.python(),
    "torch": lambda seeds: seeds.torch(),
}
DRAW = {
    "legacy": lambda generator: (generator.randn(), generator.randint(2**31)),
    "python": lambda generator: (generator.gauss(0, 1), generator.random()),
    "torch": lambda generator: (torch.randn(3, generator=generator).tolist(),),
}


def drawn(kind, generator):
    return DRAW.get(kind, lambda g: (g.normal(), g.integers(2**31), g.integers(9, dtype="u4")))(
        generator
    )


@pytest.mark.parametrize("kind", GENERATORS)
@given(PATHS, PATHS, st.integers(0, 3))
@settings(max_examples=20)
def test_a_rekeyed_generator_has_no_memory(kind, path, other, before):
    one, two = (GENERATORS[kind](at(7, where)) for where in (path, other))
    for _ in range(before):  # an odd number leaves half a word and a Gaussian behind
        drawn(kind, one)
    seeds = at(3, path)
    assert seeds.rekey(one) is one
    expected = [drawn(kind, seeds.rekey(two)), drawn(kind, two)]
    assert [drawn(kind, one), drawn(kind, one)] == expected
    if kind in {"numpy", "python", "torch"}:
        fresh = GENERATORS[kind](seeds)
        assert [drawn(kind, fresh), drawn(kind, fresh)] == expected


def test_what_is_no_generator_cannot_be_rekeyed():
    for value in (None, 3, random, np.random, torch.ones(1), np.random.Philox(1)):
        with pytest.raises(ConfigurationError, match="rekey"):
            Seeds(1).rekey(value)


def test_generators_pickle_and_spawn_alike():
    generator = Seeds(3).numpy()
    generator.random()
    copied = pickle.loads(pickle.dumps(generator))
    assert copied.random() == generator.random()
    assert [child.random() for child in copied.spawn(3)] == [
        child.random() for child in generator.spawn(3)
    ]
    children = [child.random() for child in Seeds(3).numpy().spawn(200)]
    assert len(set(children)) == 200
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).random())"  # imports nothing of ours first
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(generator), capture_output=True
    )
    assert float(done.stdout) == generator.random()


def test_the_seed_sequence_feeds_any_bit_generator():
    sequence = Seeds(3).numpy().bit_generator.seed_seq
    for kind in (np.random.PCG64, np.random.MT19937, np.random.SFC64, np.random.Philox):
        assert kind(sequence).random_raw() == kind(sequence).random_raw()
    assert sequence.generate_state(9).dtype == np.uint32
    assert sequence.generate_state(8).tobytes() == sequence.generate_state(4, np.uint64).tobytes()
