"""Importing is cheap, brings nothing along, and needs no extra."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from statistics import median

import pytest

import mlkit

BLOCKS = ("registry", "repro", "inference", "resilience", "flags", "tracking", "models")
EXTRAS = (
    "hypothesis", "matplotlib", "mlflow", "opentelemetry", "prometheus_client", "sklearn", "starlette", "structlog", "torch",
    "tqdm", "uvicorn", "dask", "distributed", "pyspark", "ray",
    "accelerate", "lightning", "lightning_utilities", "pytorch_lightning", "transformers",
    "comet_ml", "pandas", "polars", "pyarrow", "tensorboard", "trackio", "wandb",
)  # fmt: skip


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the second import of a module is not compiled again."""
    folder = tmp_path_factory.mktemp("bytecode")
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder)}


def cpu_of_import(module: str, compiled: dict[str, str]) -> float:
    """Return the CPU time of importing *module* in a fresh interpreter, in seconds."""
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    return float(run(code, **compiled))


def share_of_numpy(module: str, limit: float, compiled: dict[str, str]) -> float:
    """Return the least CPU time of importing *module* over that of numpy.

    The two take turns. On a busy machine a single figure is too high, never too low: so the least of each counts, and
    more turns are taken while the share is above *limit*. Where the machine's own speed changes, the two may be of
    different speeds: then the middle of the shares of single turns is nearer.
    """
    ours, theirs = [], []
    for turn in range(25):
        ours.append(cpu_of_import(module, compiled))
        theirs.append(cpu_of_import("numpy", compiled))
        shares = [one / other for one, other in zip(ours, theirs, strict=True)]
        share = min(min(ours) / min(theirs), median(shares))
        if turn >= 4 and share <= limit:
            break
    return share


def test_the_facade_costs_next_to_nothing(compiled: dict[str, str]) -> None:
    assert share_of_numpy("mlkit", 0.04, compiled) <= 0.04


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_costs_less_than_numpy(block: str, compiled: dict[str, str]) -> None:
    assert share_of_numpy(f"mlkit.{block}", 0.40, compiled) <= 0.40


def test_the_blocks_bring_no_third_party_module() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        + "\n".join(f"import mlkit.{name}" for name in (*BLOCKS, "errors", "telemetry", "testing"))
        + "\ntops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(tops - set(sys.stdlib_module_names) - {'mlkit'}))\n"
        "print('asyncio' in sys.modules)"
    )
    assert run(code).splitlines() == ["False"] or run(code).splitlines() == ["", "False"]


def test_a_block_brings_no_sibling() -> None:
    for block in BLOCKS:
        code = (
            f"import sys, mlkit.{block}\n"
            f"print(*[b for b in {BLOCKS} if b != {block!r} and 'mlkit.' + b in sys.modules])"
        )
        assert run(code) == ""


def every_module() -> list[str]:
    return [info.name for info in pkgutil.walk_packages(mlkit.__path__, "mlkit.")]


def test_without_extras_every_module_imports_and_star_works() -> None:
    modules = every_module()
    assert len(modules) > 40
    code = f"""
import sys
from statistics import median
for name in {EXTRAS}:
    sys.modules[name] = None  # what an absent package does to an import of it
from mlkit import *
import importlib
for name in {modules}:
    importlib.import_module(name)
import mlkit
for name in mlkit.__all__:
    getattr(mlkit, name)
print("fine")
"""
    assert run(code) == "fine"
