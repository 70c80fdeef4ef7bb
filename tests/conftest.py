"""What every test starts from: Hypothesis profiles and one thread for torch."""

from __future__ import annotations

import os

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


@pytest.fixture(autouse=True)
def _no_stray_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own MLFLOW_*, MLKIT_* settings out of the tests."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "MLKIT_")):
            monkeypatch.delenv(name)
