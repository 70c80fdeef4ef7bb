"""`map_batches` on a real local Spark: Python workers that are killed, data frames."""

from __future__ import annotations

import os
import re
import shutil
import sys

import numpy as np
import pytest

from mlkit.errors import ConfigurationError, EngineError
from mlkit.inference import map_batches
from mlkit.testing import EngineContract

pytest.importorskip("pyspark", reason="the extra spark is not installed")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("there is no Java", allow_module_level=True)

from mlkit.integrations.spark import spark

pytestmark = [
    pytest.mark.timeout(1200),
    # PySpark's own: it asks for an older pandas, and its gateway leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    environment = dict(os.environ)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    folder = tmp_path_factory.mktemp("spark")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder),
        "spark.local.dir": str(folder),
    }
    builder = SparkSession.builder.master("local[2,2]").appName("mlkit")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    gateway = SparkContext._gateway
    if gateway is not None:  # the Java process would stay until this one ends
        gateway.shutdown()
        process = gateway.proc
        process.stdin.close()
        process.wait(60)
        SparkContext._gateway = SparkContext._jvm = None
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


class TestSpark(EngineContract):
    survives = True

    @pytest.fixture(autouse=True)
    def _connect(self, session):
        self.session = session

    def make_engine(self):
        return spark(self.session)


def deadly(batch):
    if 77 in batch:
        os._exit(1)
    return batch


def score(table):
    if 17 in table["id"]:
        raise ArithmeticError("seventeen")
    return {
        "id": table["id"].astype(np.int32),
        "y": np.stack(table["v"]).sum(axis=1).astype(np.float32),
        "w": list(np.stack(table["v"]) * 2),
    }


def test_a_row_that_kills_each_worker_is_named_by_its_chunk(session):
    with pytest.raises(EngineError, match="Python worker exited") as caught:
        list(map_batches(deadly, range(80), batch_size=16, engine=spark(session)))
    first, last = map(int, re.findall(r"for rows (\d+) to (\d+)", str(caught.value))[0])
    assert first <= 77 <= last


def test_a_data_frame_gets_the_results_as_columns(session):
    from pyspark.errors import PythonException
    from pyspark.sql import DataFrame

    rows = session.range(0, 30, 1, 2).selectExpr(
        "id", "CAST(id AS string) AS s", "array(CAST(id AS double), 1.0D) AS v"
    )
    engine = spark(session, schema="id long, y double, w array<double>")
    scored = map_batches(score, rows, engine=engine, on_error="return")
    assert isinstance(scored, DataFrame)
    assert scored.schema.simpleString() == (
        "struct<s:string,v:array<double>,id:bigint,y:double,w:array<double>,error:string>"
    )
    got = {row.s: row for row in scored.collect()}
    assert len(got) == 30
    assert got["17"][2:] == (None, None, None, "row 2 of partition 1: ArithmeticError: seventeen")
    del got["17"]
    assert [got[s][1:] for s in sorted(got)] == [
        ([float(s), 1.0], int(s), float(s) + 1, [2 * float(s), 2.0], None) for s in sorted(got)
    ]
    with pytest.raises(PythonException, match="row 2 of partition 1: ArithmeticError: seventeen"):
        map_batches(score, rows, engine=engine).collect()


@pytest.mark.parametrize(
    ("column", "first"),
    [
        ("IF(id = 7, NULL, id + 9007199254740993)", "9007199254740993"),
        ("IF(id = 7, NULL, id > 3)", "False"),
        ("IF(id = 7, NULL, 'a')", "a"),
        ("array(1, IF(id = 7, NULL, 2))", "[1 2]"),
        ("IF(id = 7, NULL, array(1.5D))", "[1.5]"),
    ],
)
def test_a_missing_value_spoils_no_other_row(session, column, first):
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "5")
    try:
        rows = session.range(0, 12, 1, 1).selectExpr("id", f"{column} AS x")
        engine = spark(session, schema="y string")
        scored = map_batches(
            lambda table: {"y": [str(x) for x in table["x"]]},
            rows,
            engine=engine,
            on_error="return",
        )
        got = scored.collect()
    finally:
        session.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert [row.id for row in got if row.error] == [7]
    assert [row.id for row in got] == list(range(12))
    assert got[0].y == first


def test_results_of_every_kind_are_columns(session):
    from datetime import UTC, date, datetime
    from decimal import Decimal

    import torch

    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    kinds = {
        "de decimal(10,2)": Decimal("1.25"), "ts timestamp": time, "da date": date(2026, 1, 2),
        "tn timestamp_ntz": np.datetime64("2026-01-02T03:04:05"), "bi binary": b"ab", "sh short": np.int64(5),
        "st struct<a:int,b:string>": {"a": 1, "b": "x"}, "ma map<string,int>": [("k", 1)],
        "aa array<array<float>>": np.ones((1, 2)), "te float": torch.tensor(0.5), "tv array<float>": torch.ones(2),
        "bf float": torch.tensor(0.5, dtype=torch.bfloat16), "no double": None,
    }  # fmt: skip
    names = [kind.split()[0] for kind in kinds]
    engine = spark(session, schema=", ".join(kinds))

    def made(table):
        return {
            name: [value] * len(table["id"])
            for name, value in zip(names, kinds.values(), strict=True)
        }

    (row,) = map_batches(made, session.range(1), engine=engine, batch_size=1).collect()
    naive = time.replace(tzinfo=None)
    assert row.ts.astimezone(UTC) == time
    assert list(row)[1:2] + list(row)[3:] == [
        Decimal("1.25"), date(2026, 1, 2), naive, b"ab", 5, (1, "x"), {"k": 1}, [[1.0, 1.0]], 0.5, [1.0, 1.0], 0.5, None,
    ]  # fmt: skip


def test_a_result_that_its_column_would_change_is_refused(session):
    from pyspark.errors import PythonException

    for schema, value in (("y int", 0.5), ("y array<int>", [0.5])):
        scored = map_batches(
            lambda table, value=value: {"y": [value] * len(table["id"])},
            session.range(1),
            engine=spark(session, schema=schema),
        )
        with pytest.raises(PythonException, match=r"column 'y' cannot be .*int32"):
            scored.collect()


def test_parts_that_are_empty_uneven_or_run_twice_give_each_row_once(session, tmp_path):
    engine = spark(session, schema="y double")
    mark = tmp_path / "died"

    def doubled(table):
        if 12_345 in table["id"]:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return {"y": table["id"] * 2.0}
            os._exit(1)
        return {"y": table["id"] * 2.0}

    uneven = session.range(0, 15_000, 1, 1).union(session.range(15_000, 15_004, 1, 4))
    got = sorted(map_batches(doubled, uneven, engine=engine).collect())
    assert mark.exists()
    assert got == [(i, 2.0 * i) for i in range(15_004)]
    assert map_batches(doubled, session.range(0), engine=engine).collect() == []
    some = session.range(0, 6, 1, 8).filter("id IN (1, 4)")
    assert sorted(map_batches(doubled, some, engine=engine).collect()) == [(1, 2.0), (4, 8.0)]


def test_a_frame_needs_a_schema_and_a_session(session):
    with pytest.raises(ConfigurationError, match=r"spark\(schema=...\)"):
        map_batches(score, session.range(3), engine=spark(session))
    with pytest.raises(ConfigurationError, match="SparkSession"):
        spark(session.range(3))


def test_a_session_of_spark_connect_takes_data_frames_and_may_be_stopped():
    # A stand-in: the real one needs grpcio-status.
    kind = type("SparkSession", (), {"createDataFrame": len, "is_stopped": False})
    kind.__module__ = "pyspark.sql.connect.session"
    with pytest.raises(EngineError, match="over Spark Connect only data frames"):
        map_batches(np.negative, range(3), engine=spark(kind()))
    kind.is_stopped = True
    with pytest.raises(EngineError, match="the session was stopped"):
        map_batches(np.negative, range(3), engine=spark(kind()))
