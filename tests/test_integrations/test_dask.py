"""`map_batches` on a real local Dask cluster: processes that are killed, bags, data frames."""

from __future__ import annotations

import logging
import os
import re
import time

import numpy as np
import pytest

from mlkit.errors import ConfigurationError, EngineError, RowError
from mlkit.inference import map_batches
from mlkit.testing import EngineContract, record_events

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")

from mlkit.integrations.dask import dask  # noqa: E402

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def running():
    import dask as library

    quiet = [
        logging.getLogger(f"distributed.{name}")
        for name in ("nanny", "scheduler", "worker", "client", "core")
    ]
    levels = [logger.level for logger in quiet]
    environment = dict(os.environ)
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": "600s",  # else one that is slow to come back never does
    }
    with library.config.set(settings):
        with (
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    for logger, level in zip(quiet, levels, strict=True):
        logger.setLevel(level)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@pytest.fixture
def client(running):
    running.wait_for_workers(2, timeout=600)  # one may have been killed a moment ago
    return running


def small_device(batch):
    if len(batch) > 4:
        raise MemoryError
    return batch


class TestDask(EngineContract):
    survives = True

    @pytest.fixture(autouse=True)
    def _connect(self, client):
        self.client = client

    def make_engine(self):
        return dask(self.client)


def deadly(batch):
    if 77 in batch:
        os._exit(1)
    return batch


def slow_negative(batch):
    time.sleep(0.01)
    return -batch


def strict_about_7(batch):
    if 7 in batch:
        raise ArithmeticError("seven")
    return batch


def score(table):
    if 7 in table["x"]:
        raise ValueError("seven")
    return {"y": table["x"] * np.float32(2), "k": [k.upper() for k in table["k"]]}


def test_a_row_that_kills_each_worker_is_named_by_its_chunk(client):
    with pytest.raises(EngineError, match="KilledWorker") as caught:
        list(map_batches(deadly, range(80), batch_size=16, engine=dask(client)))
    first, last = map(int, re.findall(r"for rows (\d+) to (\d+)", str(caught.value))[0])
    assert first <= 77 <= last
    assert sum(map_batches(np.negative, range(100), engine=dask(client))) == -4950


def test_torch_is_given_the_threads_of_the_worker(client):
    from mlkit.integrations.dask import _threads

    assert client.submit(_threads, pure=False).result() == 1


def test_the_workers_forget_the_model_when_the_job_is_over(client):
    def loaded():
        from mlkit.inference._engines import work as _work

        return list(_work._models)

    def marked(batch):
        return batch * 123

    before = {key for keys in client.run(loaded).values() for key in keys}
    results = map_batches(marked, range(1000), batch_size=8, engine=dask(client))
    next(results)
    (key,) = {key for keys in client.run(loaded).values() for key in keys} - before
    results.close()
    assert not any(key in keys for keys in client.run(loaded).values())
    for _ in range(600):  # the scheduler is told, and does it when it comes to it
        if not any("marked" in str(name) for name in client.who_has()):
            return
        time.sleep(0.1)
    raise AssertionError("the scheduler still has the model")


def test_results_that_nobody_closes_are_let_go_of_in_any_thread(client):
    results = map_batches(np.negative, range(1000), batch_size=8, engine=dask(client))
    next(results)

    async def collect():
        nonlocal results
        results = None  # in the client's own thread, as the garbage collector might

    client.sync(collect)
    assert list(map_batches(np.negative, range(3), engine=dask(client))) == [0, -1, -2]


def test_what_happens_in_a_worker_is_told_here(client):
    with record_events("inference.") as events:
        results = list(map_batches(small_device, range(50), batch_size=16, engine=dask(client)))
    assert results == list(range(50))
    assert {(event.kind, event.fields["limit"]) for event in events} == {
        ("inference.batch.split", 8),
        ("inference.batch.split", 4),
    }


def test_a_batch_of_large_rows_is_sent_without_complaint(client):
    rows = (np.full(800_000, float(i)) for i in range(4))
    means = map_batches(lambda batch: batch.mean(axis=1), rows, batch_size=2, engine=dask(client))
    assert [float(mean) for mean in means] == [0.0, 1.0, 2.0, 3.0]


def test_a_bag_gives_a_lazy_bag_and_errors_name_the_partition(client):
    from dask import bag

    rows = bag.from_sequence(range(70, 90), npartitions=4)

    def strict(batch):
        if 77 in batch:
            raise ArithmeticError
        return batch * 2

    results = map_batches(strict, rows, engine=dask(client), on_error="return")
    assert isinstance(results, bag.Bag)
    assert results.npartitions == 4
    got = results.compute()
    assert [int(one) for i, one in enumerate(got) if i != 7] == [
        i * 2 for i in range(70, 90) if i != 77
    ]
    assert (got[7].index, got[7].partition) == (2, 1)
    assert "row 2 of partition 1: ArithmeticError" in str(got[7])
    assert map_batches(strict, rows, engine=dask(client), on_error="skip").count().compute() == 19
    with pytest.raises(RowError, match="row 2 of partition 1"):
        map_batches(strict, rows, engine=dask(client)).compute()


def test_a_data_frame_gets_the_results_as_columns(client):
    import pandas as pd
    from dask import dataframe

    frame = pd.DataFrame({"x": np.arange(10.0), "k": list("abcdefghij")}, index=range(100, 110))
    engine = dask(client, meta={"y": "f4", "k": object})
    rows = dataframe.from_pandas(frame, npartitions=3)
    scored = map_batches(score, rows, engine=engine, on_error="return")
    assert isinstance(scored, dataframe.DataFrame)
    assert scored.divisions == rows.divisions
    got = scored.compute()
    assert list(got.columns) == ["x", "k", "y", "error"]
    assert got["y"].dtype == scored.dtypes["y"] == np.float32
    assert list(got.index) == list(range(100, 110))
    assert got["x"].tolist() == frame["x"].tolist()
    assert got["k"].tolist()[:2] == ["A", "B"]
    assert got["y"].isna().tolist() == [i == 7 for i in range(10)]
    assert [i for i, error in enumerate(got["error"]) if isinstance(error, str)] == [7]
    assert map_batches(score, rows, engine=engine, on_error="skip").compute()["y"].tolist() == [
        2.0 * i for i in range(10) if i != 7
    ]
    series = map_batches(np.negative, rows["x"], engine=dask(client, meta={"result": "f8"}))
    assert series.compute()["result"].tolist() == [-float(i) for i in range(10)]


def test_a_missing_value_spoils_no_other_block(client):
    import pandas as pd
    from dask import dataframe

    n = 4_200  # more than one block
    values = pd.array([2**53 + i for i in range(n)], dtype="Int64")
    values[4_150] = pd.NA
    rows = dataframe.from_pandas(pd.DataFrame({"x": values}), npartitions=1)
    engine = dask(client, meta={"y": object})
    scored = map_batches(
        lambda table: {"y": [str(x) for x in table["x"]]}, rows, engine=engine, on_error="return"
    )
    got = scored.compute()
    assert [i for i, error in enumerate(got["error"]) if isinstance(error, str)] == [4_150]
    assert [got["y"][i] for i in (0, 4_149, 4_199)] == [str(2**53 + i) for i in (0, 4_149, 4_199)]


def test_rows_wait_for_workers_that_come_and_go(client):
    cluster = client.cluster
    rows = iter(range(300))
    results = map_batches(slow_negative, rows, batch_size=4, engine=dask(client))
    got = [int(next(results))]
    cluster.scale(0)
    got += [int(next(results))]
    cluster.scale(2)
    got += [int(one) for one in results]
    assert got == [-i for i in range(300)]


def test_an_asynchronous_client_is_refused(client):
    import asyncio

    async def refused():
        async with distributed.Client(client.scheduler.address, asynchronous=True) as other:
            with pytest.raises(ConfigurationError, match="asynchronous=False"):
                dask(other)

    asyncio.run(refused())


def test_threads_of_this_process_can_be_the_workers(tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as other,
    ):
        results = list(
            map_batches(
                strict_about_7, range(100), batch_size=8, on_error="return", engine=dask(other),
                checkpoint=tmp_path / "kept",
            )
        )  # fmt: skip
        again = map_batches(
            strict_about_7,
            range(100),
            batch_size=8,
            on_error="return",
            checkpoint=tmp_path / "kept",
        )
        assert [str(one) for one in again] == [str(one) for one in results]
    assert [i for i, one in enumerate(results) if isinstance(one, RowError)] == [7]
    assert [int(one) for i, one in enumerate(results) if i != 7] == [
        i for i in range(100) if i != 7
    ]


def test_what_a_dataset_cannot_have_is_refused(client, tmp_path):
    from dask import bag, dataframe

    rows = bag.from_sequence(range(3), npartitions=1)
    with pytest.raises(ConfigurationError, match=r"checkpoint.*dask Bag"):
        map_batches(np.negative, rows, engine=dask(client), checkpoint=tmp_path / "a")
    with pytest.raises(ConfigurationError, match="progress"):
        map_batches(np.negative, rows, engine=dask(client), progress=True)
    frame = dataframe.from_dict({"x": [1.0]}, npartitions=1)
    with pytest.raises(ConfigurationError, match=r"dask\(meta=...\)"):
        map_batches(np.negative, frame, engine=dask(client))


def test_a_client_that_cannot_be_used_is_refused_at_the_call(client):
    other = distributed.Client(client.scheduler.address)
    engine = dask(other)
    other.close()
    with pytest.raises(EngineError, match="client is closed"):
        map_batches(np.negative, range(3), engine=engine)
    with pytest.raises(ConfigurationError, match=r"a distributed\.Client"):
        dask("tcp://127.0.0.1:1")


def test_a_client_that_is_closed_meanwhile_is_said(client):
    other = distributed.Client(client.scheduler.address)
    results = map_batches(np.negative, range(100_000), batch_size=8, engine=dask(other))
    next(results)
    other.close()
    with pytest.raises(EngineError, match="engine dask"):
        list(results)
