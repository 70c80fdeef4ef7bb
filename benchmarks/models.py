"""Saving, verified loading, finding and promoting versions, beside MLflow, joblib, torch and the bare file system."""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit._digest import digest_bytes, digest_file
from mlkit.models import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Bench

PEERS = ("mlflow", "joblib", "torch", "safetensors")
N_VERSIONS = 200


def run(bench: Bench) -> None:
    """Run all comparisons."""
    with tempfile.TemporaryDirectory() as folder, _mlflow(Path(folder)) as mlflow:
        root = Path(folder)
        _module(bench, root, mlflow)
        _arrays(bench, root, n_megabytes=4 if bench.quick else 64)
        _aliases(bench, root, mlflow, n_versions=20 if bench.quick else N_VERSIONS)
    bench.note(
        "Baselines are the same bytes through the same safetensors, hashed once on the way in and once on the way out, "
        "with one fsync: what no verified store can be without. torch, joblib and MLflow verify nothing and sync nothing."
    )


def _module(bench: Bench, root: Path, mlflow: Any) -> None:
    import torch
    from safetensors.torch import load, save_file

    torch.set_num_threads(1)

    def build(spec: dict[str, Any]) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(spec["width"], spec["width"]))

    spec = {"width": 1024}
    module = build(spec)
    store, count = ModelStore(root / "modules"), itertools.count()

    def raw_save() -> tuple[Path, str]:
        path = root / f"raw-{next(count)}.safetensors"
        save_file(module.state_dict(), path)
        _sync(path)
        return path, digest_file(path)

    def raw_load(path: Path, digest: str) -> torch.nn.Module:
        data = path.read_bytes()
        assert digest_bytes(data) == digest
        rebuilt = build(spec)
        rebuilt.load_state_dict(load(data))
        return rebuilt

    def torch_save() -> Path:
        path = root / f"torch-{next(count)}.pt"
        torch.save(module.state_dict(), path)
        return path

    def torch_load(path: Path) -> torch.nn.Module:
        rebuilt = build(spec)
        rebuilt.load_state_dict(torch.load(path, weights_only=True))
        return rebuilt

    saves: dict[str, Callable[[], Any]] = {
        "safetensors + sha256 + fsync": lambda: raw_load(*raw_save()),
        "mlkit": lambda: store.load(store.save("net", module, spec=spec), build=build),
        "torch.save": lambda: torch_load(torch_save()),
    }
    path, digest = raw_save()
    version, pt = store.save("net", module, spec=spec), torch_save()
    loads: dict[str, Callable[[], Any]] = {
        "safetensors + sha256": lambda: raw_load(path, digest),
        "mlkit": lambda: store.load(version, build=build),
        "mlkit, a store just opened": lambda: ModelStore(store.path).load(version.ref, build=build),
        "torch.load": lambda: torch_load(pt),
    }
    try:
        import joblib
    except ImportError:
        bench.skipped("save and load a 4 MB module", "joblib", "not installed")
    else:

        def joblib_load(path: Path) -> torch.nn.Module:
            rebuilt = build(spec)
            rebuilt.load_state_dict(joblib.load(path))
            return rebuilt

        def joblib_save() -> Path:
            path = root / f"joblib-{next(count)}"
            joblib.dump(module.state_dict(), path)
            return path

        pickled = joblib_save()
        saves["joblib"] = lambda: joblib_load(joblib_save())
        loads["joblib"] = lambda: joblib_load(pickled)
    if mlflow is not None:

        def log() -> str:
            logged = mlflow.pytorch.log_model(
                module, name="net", pip_requirements=["torch"], serialization_format="pickle"
            )
            return str(logged.model_uri)

        mlflow.set_experiment("modules")
        mlflow.start_run()
        uri = log()
        saves["mlflow.pytorch"] = lambda: mlflow.pytorch.load_model(log())
        loads["mlflow.pytorch"] = lambda: mlflow.pytorch.load_model(uri)
    else:
        for work in ("save and load", "load"):
            bench.skipped(f"{work} a 4 MB module", "mlflow.pytorch", "not installed")
    rounds = 3 if bench.quick else 9
    for work, contenders in (("save and load", saves), ("load", loads)):
        bench.compare(
            f"{work} a 4 MB module",
            contenders,
            baseline=next(iter(contenders)),
            unit="ms",
            equal=_same_module,
            rounds=rounds,
        )
    if mlflow is not None:
        mlflow.end_run()


def _arrays(bench: Bench, root: Path, *, n_megabytes: int) -> None:
    import numpy as np
    from safetensors.numpy import load, save_file

    arrays = {
        f"layer{i}": np.random.default_rng(i).random((n_megabytes * 16384,)) for i in range(8)
    }
    store = ModelStore(root / "arrays")
    version = store.save("arrays", arrays)
    path = root / "arrays.safetensors"
    save_file(arrays, path)
    digest = digest_file(path)
    np.savez(root / "arrays.npz", **arrays)

    def raw() -> dict[str, Any]:
        data = path.read_bytes()
        assert digest_bytes(data) == digest
        return dict(load(data))

    def npz() -> dict[str, Any]:
        with np.load(root / "arrays.npz") as file:
            return dict(file)

    contenders: dict[str, Callable[[], Any]] = {
        "read + sha256 + safetensors": raw,
        "mlkit": lambda: store.load(version),
        "numpy.load of an npz (crc32)": npz,
    }
    try:
        import joblib
    except ImportError:
        bench.skipped(f"load {n_megabytes} MB of arrays", "joblib", "not installed")
    else:
        joblib.dump(arrays, root / "arrays.joblib")
        contenders["joblib"] = lambda: joblib.load(root / "arrays.joblib")
    bench.compare(
        f"load {n_megabytes} MB of arrays",
        contenders,
        baseline="read + sha256 + safetensors",
        unit="ms",
        equal=lambda a, b: set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in b),
        rounds=3 if bench.quick else 7,
    )


def _aliases(bench: Bench, root: Path, mlflow: Any, *, n_versions: int) -> None:
    store = ModelStore(root / "many")
    for number in range(n_versions):
        store.save("m", str(number).encode())
    store.promote("m", n_versions)
    aliases = root / "aliases.json"
    aliases.write_text(json.dumps({"champion": n_versions}))
    log = os.open(root / "bare.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    turns = itertools.cycle((1, n_versions))

    def bare() -> None:
        os.write(log, b'{"alias":"champion","version":1}\n' * 8)
        os.fsync(log)

    finds: dict[str, Callable[[], Any]] = {
        "read and parse a JSON file": lambda: json.loads(aliases.read_bytes())["champion"],
        "mlkit aliases": lambda: store.aliases("m")["champion"],
        "mlkit get, document read and checked": lambda: store.get("m@champion").number,
        "mlkit get, a store just opened": lambda: ModelStore(store.path).get("m@champion").number,
    }
    moves: dict[str, Callable[[], Any]] = {
        "append a line + fsync": bare,
        "mlkit": lambda: store.promote("m", next(turns)) and None,
    }
    if mlflow is not None:
        client = mlflow.MlflowClient()
        client.create_registered_model("m")
        for _ in range(n_versions):
            client.create_model_version("m", source=str(root / "modules"))
        client.set_registered_model_alias("m", "champion", n_versions)
        finds["MlflowClient, sqlite"] = lambda: int(
            client.get_model_version_by_alias("m", "champion").version
        )
        moves["MlflowClient, sqlite"] = lambda: client.set_registered_model_alias(
            "m", "champion", next(turns)
        )
    else:
        bench.skipped("find an alias", "MlflowClient", "not installed")
    rounds = 3 if bench.quick else 15
    work = f"find an alias among {n_versions} versions"
    bench.compare(work, finds, baseline="read and parse a JSON file", rounds=rounds)
    bench.compare("move an alias", moves, baseline="append a line + fsync", rounds=rounds)
    os.close(log)


@contextmanager
def _mlflow(root: Path) -> Iterator[Any]:
    """Yield MLflow on a warm sqlite file of its own, or None if it is not installed."""
    try:
        import mlflow
    except ImportError:
        yield None
        return
    import mlflow.pytorch

    logging.disable(logging.WARNING)
    before = mlflow.get_tracking_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        mlflow.MlflowClient().create_experiment("modules", artifact_location=str(root / "mlflow"))
        try:
            yield mlflow
        finally:
            mlflow.set_tracking_uri(before)
            logging.disable(logging.NOTSET)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _same_module(a: Any, b: Any) -> bool:
    import torch

    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in two)
