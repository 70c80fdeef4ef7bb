"""Switches are set, told and put back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mlkit.errors import ConfigurationError
from mlkit.repro import Finding, audit, deterministic, isolated, rng_state, seed_all

torch.set_num_threads(1)


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.fixture(autouse=True)
def _switches_as_found():
    before = switches()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[2], before[3]


@pytest.mark.parametrize("warn_only", [True, False])
@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("enabled", [(False, False), (True, True), (True, False)])
def test_inside_on_and_afterwards_as_before(warn_only, benchmark, enabled):
    torch.use_deterministic_algorithms(enabled[0], warn_only=enabled[1])
    torch.backends.cudnn.benchmark = benchmark
    before = switches()
    with pytest.raises(KeyboardInterrupt), deterministic(warn_only=warn_only):  # noqa: PT012
        assert switches()[:4] == (True, warn_only, True, False)
        with deterministic():
            assert switches()[1] is False
        assert switches()[1] is warn_only
        raise KeyboardInterrupt
    assert switches() == before


def test_it_makes_a_scatter_repeat():
    torch.set_num_threads(2)
    try:
        index, values = torch.randint(0, 4, (100_000,)), torch.randn(100_000)

        def scatter():
            return torch.zeros(4).index_put_((index,), values, accumulate=True)

        with deterministic():
            assert len({bytes(scatter().numpy()) for _ in range(10)}) == 1
    finally:
        torch.set_num_threads(1)


def test_wrong_arguments():
    for wrong in (1, None, "warn"):
        with pytest.raises(ConfigurationError, match="warn_only"):
            deterministic(warn_only=wrong)


def test_seed_all_can_switch_too():
    with isolated():
        report = seed_all(7, deterministic="warn")
        assert switches()[:2] == (True, True)
        seed_all(7, deterministic=True)
        assert switches()[:2] == (True, False)
    assert all(isinstance(finding, Finding) for finding in report.findings)


def test_audit_tells_switches_apart():
    codes = {finding.code for finding in audit()}
    assert "torch-algorithms" in codes
    with deterministic():
        assert "torch-algorithms" not in {finding.code for finding in audit()}
    with deterministic(warn_only=True):
        assert "torch-warn-only" in {finding.code for finding in audit()}
    torch.backends.cudnn.benchmark = True
    assert "cudnn-benchmark" in {finding.code for finding in audit()}


def test_audit_tells_an_unseeded_torch():
    def unseeded():
        return "torch-unseeded" in {finding.code for finding in audit()}

    with isolated():
        torch.seed()  # as a process starts
        assert unseeded()
        state = rng_state()
        for seeded in (lambda: seed_all(7), lambda: torch.manual_seed(7)):
            seeded()
            assert not unseeded()
            torch.rand(10_000)
            assert not unseeded()
        state.restore()
        assert unseeded()
    code = "import torch; from mlkit.repro import audit; print([one.code for one in audit()])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "torch-unseeded" in done.stdout


def test_audit_names_libraries_with_generators_of_their_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", sys)
    found = [finding for finding in audit() if finding.code == "own-generators"]
    assert "albumentations" in found[0].what
    assert found[0].fix in str(found[0])


def test_without_torch_the_report_says_so_and_the_hash_seed_counts():
    code = (
        "import sys; from mlkit.repro import deterministic, audit\n"
        "with deterministic() as findings: pass\n"
        "print(*[f.code for f in findings], '|', *[f.code for f in audit()])\n"
        "assert 'torch' not in sys.modules"
    )
    for seed, expected in (
        ("0", "torch-absent |"),
        ("random", "hash-seed torch-absent | hash-seed"),
    ):
        environment = {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr
