"""Importing is cheap, brings nothing along, and needs no extra."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

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


def calls_of(statement: str, compiled: dict[str, str]) -> int:
    """Return how many calls and returns, of Python and of C, a fresh interpreter makes to run *statement*.

    A count, because a time depends on the machine and its neighbours. On an idle machine a sixth of numpy's calls took
    40 % of numpy's CPU time, with its linear algebra on one thread.
    """
    code = f"""
import sys
calls = 0
def note(frame, event, argument):
    global calls
    calls += 1
body = compile({statement!r}, "statement", "exec")
sys.setprofile(note)
exec(body)
sys.setprofile(None)
print(calls)
"""
    run(code, **compiled)  # writes the bytecode
    return int(run(code, **compiled))


@pytest.fixture(scope="module")
def calls_of_numpy(compiled: dict[str, str]) -> int:
    return calls_of("import numpy", compiled)


def test_the_facade_costs_next_to_nothing(compiled: dict[str, str], calls_of_numpy: int) -> None:
    assert calls_of("import mlkit", compiled) <= calls_of_numpy / 100


@pytest.mark.parametrize(
    "imported",
    [
        "flags import Flags",
        "inference import Batcher",
        "inference import map_batches",
        "models import ModelStore",
        "registry import Registry, Spec",
        "repro import Manifest",
        "repro import Seeds, seed_all",
        "resilience import Breaker, Policy",
        "resilience import fallback, provenance, tier",
        "tracking import Run, start_run",
    ],
)
def test_a_block_costs_a_sixth_of_numpy(
    imported: str, compiled: dict[str, str], calls_of_numpy: int
) -> None:
    assert calls_of(f"from mlkit.{imported}", compiled) <= calls_of_numpy / 6


def test_the_blocks_bring_no_third_party_module() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        + "\n".join(
            f"from mlkit.{name} import *" for name in (*BLOCKS, "errors", "telemetry", "testing")
        )
        + "\ntops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(tops - set(sys.stdlib_module_names) - {'mlkit'}))\n"
        "print('asyncio' in sys.modules)"
    )
    assert run(code).splitlines() == ["False"] or run(code).splitlines() == ["", "False"]


def test_a_block_brings_no_sibling() -> None:
    for block in BLOCKS:
        code = (
            f"import sys; from mlkit.{block} import *\n"
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
