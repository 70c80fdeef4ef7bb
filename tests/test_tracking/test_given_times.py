"""Points that bring their own time, and the step that a run is at."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.tracking import read, start_run

times = st.floats(-8e9, 8e9, allow_nan=False)


@given(rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), times), max_size=20))
def test_a_point_keeps_its_own_time(tmp_path, rows):
    with start_run("times", root=tmp_path / "runs") as run:
        run.log_points({"a": [0.5] * len(rows)}, [step for step, _ in rows], times=[at for _, at in rows])  # fmt: skip
    found = read(run.dir).metrics.get("a", [])
    assert [point.step for point in found] == [step for step, _ in rows]
    for point, (_, at) in zip(found, rows, strict=True):
        assert math.isclose(point.time, at, abs_tol=1e-5)


@pytest.mark.parametrize("wrong", [[1.0], [1.0, "a"], [1.0, math.nan], [1.0, 1e300], 5])
def test_times_that_are_none_are_refused_and_nothing_is_kept(tmp_path, wrong):
    with start_run("times", root=tmp_path) as run:
        with pytest.raises(ConfigurationError, match="times"):
            run.log_points({"a": [1, 2]}, [1, 2], times=wrong)
    assert not read(run.dir).metrics


def test_a_run_knows_the_step_that_was_logged_last(tmp_path):
    with start_run("steps", root=tmp_path) as run:
        assert run.step is None
        run.log_metrics({"a": 1}, step=7)
        run.log_metrics({"b": 1}, step=3)
        assert run.step == 3
        run.log_points({"c": [1, 2]}, steps=[4, 5])
        assert run.step == 5
    assert run.step is None
