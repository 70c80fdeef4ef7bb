"""MLflow servers for the tests of this folder, which cost eight seconds to start."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def mlflow_servers(tmp_path_factory):
    """One import of MLflow's server for all tests of this folder that ask for it."""
    pytest.importorskip("mlflow")
    if "mlkit_tests_faults" not in sys.modules:
        place = Path(__file__).with_name("test_mlflow_faults.py")
        spec = importlib.util.spec_from_file_location("mlkit_tests_faults", place)
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    servers = sys.modules["mlkit_tests_faults"].Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()
