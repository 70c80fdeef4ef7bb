"""`map_batches` on a real local Ray: actors that are killed, datasets."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from mlkit.errors import ConfigurationError, EngineError
from mlkit.inference import map_batches
from mlkit.testing import EngineContract

library = pytest.importorskip("ray", reason="the extra ray is not installed")

from mlkit.integrations.ray import ray  # noqa: E402

ray_engine = ray

pytestmark = [
    pytest.mark.timeout(1200),
    # Ray's own, on its way to other versions of itself and of what it uses.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    environment = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    logger = logging.getLogger("ray")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    library.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )
    yield
    library.shutdown()
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


class TestRay(EngineContract):
    survives = True

    def make_engine(self):
        return ray()


def test_a_dataset_gets_the_results_as_columns():
    import ray.data

    from mlkit.integrations.ray import ray as engine

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.range_tensor(30, shape=(2,), override_num_blocks=2)

    def score(table):
        if 17 in table["data"][:, 0]:
            raise ArithmeticError("seventeen")
        return {"y": table["data"].sum(axis=1) / 2, "name": ["r"] * len(table["data"])}

    scored = map_batches(score, rows, engine=engine(n_workers=1), on_error="return")
    assert isinstance(scored, ray.data.Dataset)
    got = sorted(scored.take_all(), key=lambda row: int(row["data"][0]))
    assert [row["data"].tolist() for row in got] == [[i, i] for i in range(30)]
    assert set(got[0]) == {"data", "y", "name", "error"}
    bad = got.pop(17)
    assert "ArithmeticError: seventeen" in bad["error"]
    assert bad["y"] is None or np.isnan(bad["y"])
    assert all(row["y"] == row["data"][0] and row["name"] == "r" for row in got)
    assert [row["error"] for row in got] == [None] * 29


def test_a_missing_value_spoils_no_other_row_and_no_column():
    import pyarrow as pa
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    none = ray.data.from_arrow(pa.table({"i": pa.array([], pa.int64())}))
    assert (
        map_batches(lambda batch: batch["i"], none, engine=ray_engine(n_workers=1)).take_all() == []
    )
    large = [None if i == 7 else 2**53 + i for i in range(12)]
    lists = [[1, None if i == 7 else 2] for i in range(12)]
    table = pa.table({"i": range(12), "x": large, "v": lists})

    def text(batch):
        return {"y": [f"{x} {v}" for x, v in zip(batch["x"], batch["v"], strict=True)]}

    scored = map_batches(
        text, ray.data.from_arrow(table), engine=ray_engine(n_workers=1), on_error="return"
    )
    got = sorted(scored.take_all(), key=lambda row: row["i"])
    assert [row["i"] for row in got if row["error"]] == [7]
    assert [row["x"] for row in got] == large
    assert [row["y"] for row in got if row["i"] != 7] == [
        f"{2**53 + i} [1 2]" for i in range(12) if i != 7
    ]


def test_a_block_of_pandas_and_results_that_arrow_does_not_know():
    import pandas as pd
    import ray.data

    frame = pd.DataFrame({"x": np.arange(6.0), "k": list("abcdef")}, index=range(10, 16))

    def mixed(batch):
        if 2.0 in batch["x"]:
            raise ArithmeticError
        return {"t": batch["x"] * 2, "o": [{"a": k} for k in batch["k"]]}

    scored = map_batches(
        mixed, ray.data.from_pandas(frame), engine=ray_engine(n_workers=1), on_error="skip"
    )
    got = sorted(scored.take_all(), key=lambda row: row["x"])
    assert [(row["x"], row["k"], row["t"], row["o"]) for row in got] == [
        (x, k, 2 * x, {"a": k}) for x, k in zip(range(6), "abcdef", strict=True) if x != 2
    ]


def test_more_than_the_cluster_has_is_refused_at_the_call():
    with pytest.raises(EngineError, match="needs 1 GPUs and the cluster has 0"):
        map_batches(np.negative, range(3), engine=ray(n_gpus=1))
    with pytest.raises(ConfigurationError, match="n_workers"):
        ray(n_workers=0)
    with pytest.raises(ConfigurationError, match="n_cpus"):
        ray(n_cpus=0)


def test_the_actors_end_with_the_job():

    results = map_batches(np.negative, range(10_000), batch_size=8, engine=ray(n_workers=1))
    next(results)
    assert library.available_resources().get("CPU", 0) <= 1
    results.close()


def test_a_dataset_over_a_remote_address_is_refused(monkeypatch):
    import ray.data
    from ray.util import client

    rows = ray.data.range(3)
    monkeypatch.setattr(client.ray, "is_connected", lambda: True)
    with pytest.raises(EngineError, match="does not run over a ray:// address"):
        ray_engine().dataset(None, rows)
