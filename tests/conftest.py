"""What every test starts from, and leaves as it was: Hypothesis profiles, one thread for torch, the process's settings."""

from __future__ import annotations

import gc
import locale
import logging
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Machines are noisy: a slow example is not a failing one.
_common = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("dev", max_examples=50, **_common)
settings.register_profile("ci", max_examples=50, derandomize=True, **_common)
settings.register_profile("deep", max_examples=5_000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# Two spinning threads on a busy machine cost several times the work of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


_TRACKERS = ("COMET_", "MLFLOW_", "MLKIT_", "TRACKIO_", "WANDB_")


def _forget_trackers() -> None:
    """Drop the settings of trackers: a developer's own, and those that a client leaves for its subprocesses."""
    for name in [name for name in os.environ if name.startswith(_TRACKERS)]:
        del os.environ[name]
    # Transformers imports Comet's client, which would then follow MLflow's runs.
    os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"
    # MLflow keeps its addresses and its experiment in variables of its modules, too.
    if fluent := sys.modules.get("mlflow.tracking.fluent"):
        fluent._active_experiment_id = None
        sys.modules["mlflow"].set_tracking_uri(None)
        sys.modules["mlflow"].set_registry_uri(None)


_forget_trackers()


@pytest.fixture(autouse=True)
def _no_stray_config() -> Iterator[None]:
    """Hand nothing of one test's trackers on to the next, nor to the processes it starts."""
    yield
    _forget_trackers()


# What libraries set for good when they are loaded, or for as long as a fixture of theirs lives.
_OF_LIBRARIES = (
    "_", "ABSL_", "CUBLAS_", "CUDA_", "GLOG_", "GRPC_", "HF_", "JAVA_", "KMP_", "LRU_", "MASTER_", "MKL_", "NCCL_",
    "OMP_", "PYSPARK_", "PYTEST_", "PYTORCH_", "RAY_", "SPARK_", "TF_", "TOKENIZERS_", "TORCH", "TRITON_", "XLA_",
)  # fmt: skip


def _shared() -> dict[str, object]:
    """Return what belongs to the whole process, and a test may change only for as long as it runs.

    Hooks, handlers of signals and levels of loggers are not here: libraries set them for good when they are loaded.
    """
    os.umask(umask := os.umask(0o022))
    found: dict[str, object] = {
        "the working folder": os.getcwd(),  # noqa: PTH109 - this runs twice a test
        "the umask": umask,
        "the switch interval": sys.getswitchinterval(),
        "the garbage collector": gc.isenabled(),
        "the profiler": sys.getprofile(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "what is logged at all": logging.root.manager.disable,
    }
    if (torch := sys.modules.get("torch")) and hasattr(torch, "is_grad_enabled"):
        found["torch"] = {
            "threads": torch.get_num_threads(),
            "default dtype": torch.get_default_dtype(),
            "determinism": torch.are_deterministic_algorithms_enabled(),
            "gradients": torch.is_grad_enabled(),
        }
    if (numpy := sys.modules.get("numpy")) and hasattr(numpy, "geterr"):
        found["numpy"] = numpy.geterr()
    return found


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Name the test that leaves the process changed, not the one that fails of it an hour later."""
    before = _shared()
    variables = os.environ._data.copy()  # a hundred times cheaper than dict(os.environ)
    yield
    after = _shared()
    left = [
        f"{what}: {old!r} became {after[what]!r}"
        for what, old in before.items()
        if old != after[what]
    ]
    left += [
        f"${os.fsdecode(name)} was {'set' if name in now else 'deleted'}"
        for now in [os.environ._data]
        if now != variables
        for name in sorted(variables.keys() | now.keys())
        if variables.get(name) != now.get(name)
        and not os.fsdecode(name).startswith((*_TRACKERS, *_OF_LIBRARIES))
    ]
    assert not left, "left behind: " + "; ".join(left)
