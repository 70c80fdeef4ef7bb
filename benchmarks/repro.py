"""Seeding, isolation, named streams, fingerprints, manifests and checks, beside the libraries they replace."""

from __future__ import annotations

import hashlib
import importlib.metadata
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlkit.repro import Keyed, Manifest, Seeds, check, fingerprint, isolated, seed_all

if TYPE_CHECKING:
    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("lightning", "accelerate", "joblib", "deepdiff")


def run(bench: Bench) -> None:
    """Measure all of it."""
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
    _fingerprints(bench)
    _folders(bench)
    _manifests(bench)
    if torch is not None:
        _checks(bench, torch)


def _peer(bench: Bench, work: str, name: str, find: Any) -> Any:
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
    for name, find in (("lightning", _lightning_seed), ("accelerate", _accelerate_seed)):
        if torch is None:
            bench.skipped(work, name, "torch is not installed")
        elif (peer := _peer(bench, work, name, find)) is not None:
            contenders[name] = peer

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
    if torch is not None and (peer := _peer(bench, work, "lightning", _lightning_isolation)):
        contenders["lightning isolate_rng (does not restore on errors)"] = peer
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
    contenders = {
        "np.random.default_rng(seed)": _repeats(calls, lambda: np.random.default_rng(7)),
        "SeedSequence(spawn_key) -> Philox": _repeats(
            calls,
            lambda: np.random.Generator(
                np.random.Philox(np.random.SeedSequence(42, spawn_key=(1, 7)))
            ),
        ),
        "mlkit (seeds / 7).numpy()": _repeats(calls, lambda: (seeds / 7).numpy()),
        "mlkit (seeds / 7).int()": _repeats(calls, lambda: (seeds / 7).int()),
    }
    bench.compare("a child stream", contenders, baseline="np.random.default_rng(seed)", calls=calls)


def _fingerprints(bench: Bench) -> None:
    array = np.arange((2 if bench.quick else 16) * 2**17, dtype=np.float64)
    view = memoryview(array).cast("B")
    work = f"fingerprint an array of {array.nbytes / 2**20:.0f} MiB"
    floor = "floor: hashlib.sha256"
    contenders: dict[str, Any] = {
        floor: lambda: len(hashlib.sha256(view).hexdigest()) == 64,
        "mlkit fingerprint": lambda: fingerprint(array) == fingerprint_of_array,
    }
    fingerprint_of_array = fingerprint(array.copy())
    joblib = _peer(bench, work, "joblib.hash", lambda: __import__("joblib"))
    if joblib is not None:
        expected = joblib.hash(array.copy())
        contenders["joblib.hash (md5)"] = lambda: joblib.hash(array) == expected
    bench.compare(work, contenders, baseline=floor, unit="ms")

    value = {"lr": 0.1, "layers": [64, 64, 10], "name": "digits", "nested": {"a": None, "b": True}}
    copy = dict(reversed(list(value.items())))
    work, calls = "fingerprint a small config", 50
    ours = {"floor: json.dumps + sha256": _repeats(calls, lambda: _json_digest(value))}
    ours["mlkit fingerprint"] = lambda: all(
        fingerprint(value) == fingerprint(copy) for _ in range(calls // 2)
    )
    if joblib is not None:
        ours["joblib.hash"] = lambda: all(
            joblib.hash(value) == joblib.hash(copy) for _ in range(calls // 2)
        )
    deepdiff = _peer(bench, work, "deepdiff", lambda: __import__("deepdiff"))
    if deepdiff is not None:
        hashed = deepdiff.DeepHash
        ours["deepdiff.DeepHash"] = lambda: all(
            hashed(value)[value] == hashed(copy)[copy] for _ in range(calls // 2)
        )
    bench.compare(work, ours, baseline="floor: json.dumps + sha256", calls=calls)


def _json_digest(value: object) -> str:
    import json

    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _folders(bench: Bench) -> None:
    count = 200 if bench.quick else 2000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(count):
            (folder / f"{number:05}.bin").write_bytes(number.to_bytes(4, "little") * 512)
        expected = fingerprint(folder)

        def floor() -> bool:
            total = hashlib.sha256()
            for path in sorted(folder.iterdir()):
                total.update(path.read_bytes())
            return len(total.hexdigest()) == 64

        contenders = {"floor: read and sha256": floor}
        contenders["mlkit fingerprint"] = lambda: fingerprint(folder) == expected
        work = f"fingerprint a folder of {count} files"
        bench.compare(work, contenders, baseline="floor: read and sha256", unit="ms")


def _manifests(bench: Bench) -> None:
    def listed() -> bool:
        return len({item.metadata["Name"] for item in importlib.metadata.distributions()}) > 0

    def frozen() -> bool:
        command = [sys.executable, "-m", "pip", "freeze"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode == 0

    params = {"lr": 0.1}
    contenders = {
        "packages alone, by importlib.metadata": listed,
        "mlkit Manifest.capture": lambda: Manifest.capture(seeds=7, params=params).digest != "",
    }
    if frozen():
        contenders["packages alone, by pip freeze"] = frozen
    else:
        bench.skipped("capture what a run is made of", "pip freeze", "no pip in this environment")
    bench.compare(
        "capture what a run is made of",
        contenders,
        baseline="packages alone, by importlib.metadata",
        unit="ms",
        rounds=5,
    )
    bench.note("capture: ours has the git tree of every file, packages, machine and seeds besides.")


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
