"""What every test starts from: Hypothesis profiles and one thread for torch."""

from __future__ import annotations

import os
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


_forget_trackers()


@pytest.fixture(autouse=True)
def _no_stray_config() -> Iterator[None]:
    """Hand nothing of one test's trackers on to the next, nor to the processes it starts."""
    yield
    _forget_trackers()
