"""Saving, verified loading, finding and promoting versions, beside MLflow, joblib, skops, torch and the bare library."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
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

PEERS = ("mlflow", "joblib", "skops", "torch", "safetensors")
N_VERSIONS = 1000


def run(bench: Bench) -> None:
    """Run all comparisons."""
    with tempfile.TemporaryDirectory() as folder, _mlflow(Path(folder)) as mlflow:
        root = Path(folder)
        _large(bench, root, mlflow)
        _small(bench, root)
        _module(bench, root, mlflow)
        _estimators(bench, root)
        _aliases(bench, root, mlflow, n_versions=20 if bench.quick else N_VERSIONS)
    bench.note(
        "Baselines are the same bytes through the same library, hashed once on the way in and once on the way out, with "
        "one fsync: what no verified store can be without. torch, joblib and MLflow verify nothing and sync nothing. "
        "mlkit hashes in one more thread beside writing and copying, so a busy second core costs it more than the others; "
        "peak memory beside the tensors is 2 MiB for a save, and one copy of the file, which the tensors then are, for a "
        "load of torch tensors."
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


def _large(bench: Bench, root: Path, mlflow: Any) -> None:
    """Save and load tensors that take seconds: 1 GiB, or 64 MiB when quick."""
    import torch
    from safetensors.torch import load_file, save_file

    n_megabytes = 64 if bench.quick else 1024
    tensors = {f"layer{i}": torch.randn(n_megabytes << 15) for i in range(8)}
    store = ModelStore(root / "large")
    paths = {name: root / f"large-{name}" for name in ("raw", "torch", "joblib")}
    kept: list[Any] = []

    def raw_save() -> Callable[[], Any]:
        paths["raw"].unlink(missing_ok=True)
        save_file(tensors, paths["raw"])
        _sync(paths["raw"])
        digest = digest_file(paths["raw"])

        def load() -> Any:
            assert digest_file(paths["raw"]) == digest
            return load_file(paths["raw"])

        return load

    def save() -> Callable[[], Any]:
        for version in kept:  # the disk holds one at a time, as for all others
            store.delete("large", version)
        kept[:] = [store.save("large", tensors)]
        return lambda: store.load(kept[0])

    def torch_save() -> Callable[[], Any]:
        paths["torch"].unlink(missing_ok=True)
        torch.save(tensors, paths["torch"])
        return lambda: torch.load(paths["torch"], weights_only=True)

    saves: dict[str, Callable[[], Any]] = {
        "safetensors + fsync + sha256": raw_save,
        "mlkit": save,
        "torch.save": torch_save,
    }
    try:
        import joblib
    except ImportError:
        bench.skipped(f"save {n_megabytes} MiB", "joblib", "not installed")
    else:

        def joblib_save() -> Callable[[], Any]:
            paths["joblib"].unlink(missing_ok=True)
            joblib.dump({name: tensor.numpy() for name, tensor in tensors.items()}, paths["joblib"])
            return lambda: {
                name: torch.from_numpy(array)
                for name, array in joblib.load(paths["joblib"]).items()
            }

        saves["joblib"] = joblib_save
    if mlflow is not None:
        saves["mlflow.pytorch"] = _mlflow_save(mlflow, root, tensors)
    else:
        bench.skipped(f"save {n_megabytes} MiB", "mlflow.pytorch", "not installed")
    loads = {name.replace(" + fsync", ""): contender() for name, contender in saves.items()}
    rounds = 3 if bench.quick else 4
    for work, contenders, equal in (
        (f"load {n_megabytes} MiB", loads, _same_tensors),
        (f"save {n_megabytes} MiB", saves, lambda a, b: _same_tensors(a(), b())),
    ):
        bench.compare(
            work,
            contenders,
            baseline=next(iter(contenders)),
            unit="ms",
            equal=equal,
            rounds=rounds,
        )


def _mlflow_save(mlflow: Any, root: Path, tensors: dict[str, Any]) -> Callable[[], Any]:
    import torch

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    module = Weights()

    def save() -> Callable[[], Any]:
        shutil.rmtree(root / "mlflow", ignore_errors=True)
        with mlflow.start_run():
            path = root / "mlflow" / "model"
            mlflow.pytorch.save_model(
                torch.nn.ParameterDict(module.state_dict()), str(path), pip_requirements=["torch"],
                serialization_format="pickle",
            )  # fmt: skip
        return lambda: dict(mlflow.pytorch.load_model(str(path)))

    return save


def _estimators(bench: Bench, root: Path) -> None:
    """Save and load a scikit-learn model of 120 kB without pickle, and with it."""
    try:
        import joblib
        import skops.io
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        bench.skipped("save and load an estimator", "scikit-learn", str(error))
        return
    rows, labels = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)).fit(rows, labels)
    store, path = ModelStore(root / "estimators"), root / "estimator"

    def skops_load() -> Any:
        digest = digest_file(path)
        assert digest_file(path) == digest
        return skops.io.load(path, trusted=[])

    def skops_save() -> Any:
        path.unlink(missing_ok=True)
        skops.io.dump(model, path)
        _sync(path)
        return skops_load()

    def joblib_save() -> Any:
        joblib.dump(model, root / "estimator.joblib")
        return joblib.load(root / "estimator.joblib")

    bench.compare(
        "save and load a scikit-learn pipeline",
        {
            "skops + fsync + sha256": skops_save,
            "mlkit": lambda: store.load(store.save("pipeline", model)),
            "joblib (pickle)": joblib_save,
        },
        baseline="skops + fsync + sha256",
        unit="ms",
        equal=lambda a, b: bool((a.predict_proba(rows) == b.predict_proba(rows)).all()),
    )


def _small(bench: Bench, root: Path) -> None:
    """Load what a request could wait for: a module of 10 kB."""
    import torch
    from safetensors.torch import load

    def build(_: dict[str, Any]) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )

    module = build({})
    store = ModelStore(root / "small")
    store.save("small", module, spec={})
    store.promote("small", 1)
    path = max((root / "small").rglob("blobs/*/*/*"), key=lambda path: path.stat().st_size)
    digest = digest_file(path)

    def raw() -> torch.nn.Module:
        data = path.read_bytes()
        assert digest_bytes(data) == digest
        rebuilt = build({})
        rebuilt.load_state_dict(load(data))
        return rebuilt

    bench.compare(
        "load a 10 kB module by its alias",
        {
            "build + safetensors + sha256": raw,
            "mlkit": lambda: store.load("small@champion", build=build),
            "mlkit, a store just opened": lambda: ModelStore(store.path).load(
                "small@champion", build=build
            ),
        },
        baseline="build + safetensors + sha256",
        unit="ms",
        equal=_same_module,
        rounds=5 if bench.quick else 50,
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
        "mlkit aliases, a store just opened": lambda: ModelStore(store.path).aliases("m")[
            "champion"
        ],
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


def _same_tensors(a: Any, b: Any) -> bool:
    import torch

    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in b)


def _same_module(a: Any, b: Any) -> bool:
    import torch

    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in two)
