"""Seeding, isolation, named streams, fingerprints, manifests and checks, beside the libraries they replace."""

from __future__ import annotations

import random
import warnings
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.repro_batches import batches
from benchmarks.repro_content import contents
from mlkit.repro import Keyed, Seeds, check, isolated, seed_all

if TYPE_CHECKING:
    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = (
    "lightning",
    "transformers",
    "accelerate",
    "joblib",
    "deepdiff",
    "dvc-data",
    "blake3",
    "xxhash",
)


def run(bench: Bench) -> None:
    """Measure all of it."""
    bench.clock = _cpu_seconds
    bench.note(
        "Times are CPU seconds of the process and of those it starts, on a machine that others use too."
    )
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(1)
    with isolated():
        _seeding(bench, torch)
        _isolation(bench, torch)
    _streams(bench)
    contents(bench, peer)
    if torch is not None:
        _checks(bench, torch)
        batches(bench, torch)


def _cpu_seconds() -> float:
    """Return what this process and those it started have cost."""
    from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

    own, children = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peer(bench: Bench, work: str, name: str, find: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return find()
    except ImportError as error:
        bench.skipped(work, name, f"not installed ({error.name})")
        return None


def _lightning_seed() -> Any:
    import logging

    from lightning.fabric.utilities.seed import seed_everything

    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.ERROR)
    return lambda seed: seed_everything(seed, verbose=False)


def _accelerate_seed() -> Any:
    from accelerate.utils import set_seed

    return set_seed


def _transformers_seed() -> Any:
    from transformers import set_seed

    return set_seed


def _lightning_isolation() -> Any:
    from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states

    def scope() -> None:
        states = _collect_rng_states(include_cuda=False)
        _set_rng_states(states)

    return scope


def _repeats(calls: int, step: Any) -> Any:
    def contender() -> bool:
        for _ in range(calls):
            step()
        return True

    return contender


def _seeding(bench: Bench, torch: Any) -> None:
    """Seed python, numpy and torch; equal means that it leads to equal draws each time."""
    work, calls = "seed python, numpy and torch", 100

    def by_hand(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, TID251 - what users write
        if torch is not None:
            torch.manual_seed(seed)

    def floor(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, TID251
        if torch is not None:
            torch.default_generator.manual_seed(seed)

    contenders = {"floor: three bare calls": floor, "by hand: torch.manual_seed": by_hand}
    contenders["mlkit seed_all"] = seed_all
    bench.skipped(work, "sacred", "its import needs pkg_resources, which setuptools no longer has")
    peers = {
        "lightning": _lightning_seed,
        "transformers": _transformers_seed,
        "accelerate": _accelerate_seed,
    }
    for name, find in peers.items():
        if torch is None:
            bench.skipped(work, name, "torch is not installed")
        elif (found := peer(bench, work, name, find)) is not None:
            contenders[name] = found

    def repeated(seed_with: Any) -> Any:
        def contender() -> bool:
            drawn = []
            for _ in range(calls):
                seed_with(7)
            for _ in range(2):
                seed_with(7)
                drawn.append((random.random(), np.random.random()))  # noqa: NPY002
            return drawn[0] == drawn[1]

        return contender

    bench.compare(
        work,
        {name: repeated(function) for name, function in contenders.items()},
        baseline="floor: three bare calls",
        calls=calls + 2,
    )
    if torch is not None:
        chosen = {name: contenders[name] for name in list(contenders)[:3]}

        # CPython's stack of frames is cut into pieces, and a call that crosses the end of one pays for mapping the next:
        # each round is at another depth, so that a round or two may show that, and the others do not.
        depths = {name: cycle(range(95, 110)) for name in chosen}

        def deep(step: Any, levels: int) -> Any:
            return repeated(step)() if levels == 0 else deep(step, levels - 1)

        bench.compare(
            "seed them 100 calls deep",
            {
                name: lambda step=step, name=name: deep(step, next(depths[name]))
                for name, step in chosen.items()
            },
            baseline="floor: three bare calls",
            calls=calls + 2,
        )
    bench.note(
        "seed: the others give numpy and torch one stream and torch 32 bits; seed_all gives each its own 128 bits."
    )


def _isolation(bench: Bench, torch: Any) -> None:
    work, calls = "isolate: in and out", 100

    def floor() -> None:
        states = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
        kept = None if torch is None else torch.default_generator.get_state()
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if torch is not None:
            torch.default_generator.set_state(kept)

    def ours() -> None:
        with isolated():
            pass

    contenders = {"floor: bare get and set": floor, "mlkit isolated": ours}
    if torch is not None and (found := peer(bench, work, "lightning", _lightning_isolation)):
        contenders["lightning isolate_rng (does not restore on errors)"] = found
    timed = {name: _repeats(calls, step) for name, step in contenders.items()}
    bench.compare(work, timed, baseline="floor: bare get and set", calls=calls)

    class Rows:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            return index

    keyed = Keyed(Rows(), 1).at(0)
    timed = {"floor: bare get and set": _repeats(calls, floor)}
    timed["mlkit Keyed[index]"] = _repeats(calls, lambda: keyed[3])
    bench.compare("one keyed item", timed, baseline="floor: bare get and set", calls=calls)


def _streams(bench: Bench) -> None:
    calls = 200
    seeds = Seeds(42) / "data"
    generator = seeds.numpy()
    contenders = {
        "np.random.default_rng(seed)": _repeats(calls, lambda: np.random.default_rng(7)),
        "SeedSequence(spawn_key) -> Philox": _repeats(
            calls,
            lambda: np.random.Generator(
                np.random.Philox(np.random.SeedSequence(42, spawn_key=(1, 7)))
            ),
        ),
        "mlkit (seeds / 7).numpy()": _repeats(calls, lambda: (seeds / 7).numpy()),
        "mlkit (seeds / 7).rekey(generator)": _repeats(calls, lambda: (seeds / 7).rekey(generator)),
        "mlkit (seeds / 7).int()": _repeats(calls, lambda: (seeds / 7).int()),
    }
    bench.compare("a child stream", contenders, baseline="np.random.default_rng(seed)", calls=calls)


def _checks(bench: Bench, torch: Any) -> None:
    rows = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)

    def train(batch: Any) -> Any:
        torch.default_generator.manual_seed(1)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(256, 10)
        )
        optimizer = torch.optim.AdamW(net.parameters())
        for _ in range(10):
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()
        return net[0].weight.detach()

    with isolated():
        contenders = {
            "two plain runs, outputs compared": lambda: torch.equal(train(rows), train(rows)),
            "mlkit check": lambda: check(train, rows) is None,
        }
        from torch.utils._python_dispatch import TorchDispatchMode

        class Empty(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return func(*args, **(kwargs or {}))

        def dispatched() -> Any:
            with Empty():
                return train(rows)

        floor = "floor: two runs under a dispatch mode that does nothing"
        contenders[floor] = lambda: torch.equal(dispatched(), dispatched())
        try:
            from torch.utils._debug_mode import DebugMode
        except ImportError:
            bench.skipped("run twice, find a difference", "torch DebugMode", "this torch has none")
        else:

            def logged() -> list[Any]:
                with DebugMode() as mode, DebugMode.log_tensor_hashes():
                    train(rows)
                return mode.logs

            def debug() -> bool:
                return not DebugMode.check_hash_mismatches(logged(), logged())

            contenders["torch DebugMode (private)"] = debug
        bench.compare(
            "run 10 training steps twice, find a difference",
            contenders,
            baseline="two plain runs, outputs compared",
            unit="ms",
            rounds=5,
        )
