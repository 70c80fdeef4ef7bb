"""`map_batches` on Dask, Ray and Spark beside the same call here and beside each engine's own idiom.

Two works: rows that the driver has and results that it wants, and a dataset that lives in the engine. The model does next to
nothing, so that what is measured is the way there and back; then one that computes. Local clusters of two processes,
which start before anything is timed. Run: `python -m benchmarks.inference_engines [dask|ray|spark ...] [--quick]`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Bench
from mlkit.inference import map_batches

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 256
CHUNK = 4_096
WIDTH = 16
HERE = "rows and results in the driver"
THERE = "a table in the engine"


class Total:
    """A model that does next to nothing, as a class: engines make it once per worker."""

    def __call__(self, batch: Any) -> Any:
        return batch.sum(axis=1)


class Layers:
    """A model that computes: about 0.1 ms per row."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.weights = [draw.standard_normal((WIDTH, 4096)), draw.standard_normal((4096, 256))]

    def __call__(self, batch: Any) -> Any:
        hidden = np.maximum(batch @ self.weights[0], 0)
        return np.tanh(hidden @ self.weights[1]).sum(axis=1)


def table_of(model: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *model* for batches that are dicts of columns."""

    def of_columns(columns: Any) -> Any:
        return model(np.stack([np.asarray(columns[f"x{i}"]) for i in range(WIDTH)], axis=1))

    return of_columns


def in_batches(model: Callable[[Any], Any], block: Any) -> Any:
    """Run a block as a careful user would: in batches of the same size as ours."""
    return np.concatenate([model(block[i : i + BATCH]) for i in range(0, len(block), BATCH)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="*")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    engines = {"dask": _dask, "spark": _spark, "ray": _ray}
    bench = Bench("inference_engines", quick=options.quick)
    bench.note(
        "Elapsed time per row, on two cores that the driver shares with two workers. Ray's actors start within each run, ours "
        "and Ray Data's alike. The idioms find no bad row, and Ray Data and mapInPandas keep no order."
    )
    logging.disable(logging.WARNING)
    for name in options.engine or engines:
        try:
            engines[name](bench)
        except ImportError as error:
            bench.skipped(f"{name}: {HERE}", name, str(error))
        if not options.quick and not options.engine:
            bench.save()  # each engine takes minutes
    print(f"## inference on engines\n\n{bench.table()}\n")
    return 0


def _equal(got: object, truth: object) -> bool:
    """Whether the same numbers came, in whatever order the engine gives its rows."""
    a, b = np.sort(np.asarray(got, float)), np.sort(np.asarray(truth, float))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-4))


def _works(bench: Bench) -> list[tuple[str, Any, Any]]:
    n = 5_000 if bench.quick else 10_000
    draw = np.random.default_rng(1).standard_normal
    return [
        ("next to nothing", Total(), draw((n, WIDTH))),
        ("layers", Layers(), draw((n // 10, WIDTH))),
    ]


def _compare(
    bench: Bench, work: str, contenders: dict[str, Callable[[], object]], baseline: str, n: int
) -> None:
    bench.compare(
        work,
        contenders,
        baseline=baseline,
        calls=n,
        equal=_equal,
        rounds=1 if bench.quick else 2,
    )


def _dask(bench: Bench) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for title, model, block in _works(bench):
            _on_dask(bench, client, title, model, block)


def _on_dask(bench: Bench, client: Any, title: str, model: Any, block: Any) -> None:
    import dask.dataframe
    import pandas as pd

    from mlkit.integrations.dask import dask as engine

    rows, of_columns = list(block), table_of(model)

    def chunks() -> object:
        parts = [np.stack(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        futures = client.map(lambda part: in_batches(model, part), parts, pure=False)
        return np.concatenate(client.gather(futures))

    _compare(
        bench,
        f"dask: {HERE}, {title}",
        {
            "map_batches here": lambda: list(map_batches(model, rows, batch_size=BATCH)),
            "map_batches, engine=dask": lambda: list(
                map_batches(model, rows, batch_size=BATCH, engine=engine(client))
            ),
            "client.map on stacked chunks": chunks,
        },
        "map_batches here",
        len(rows),
    )
    frame = pd.DataFrame(block, columns=[f"x{i}" for i in range(WIDTH)])
    table = dask.dataframe.from_pandas(frame, npartitions=8).persist()
    meta = table._meta.assign(result=0.0)

    def idiom() -> object:
        def part(some: Any) -> Any:
            return some.assign(result=in_batches(model, some.to_numpy()))

        return table.map_partitions(part, meta=meta)["result"].compute()

    def ours() -> object:
        on = engine(client, meta={"result": "f8"})
        return map_batches(of_columns, table, batch_size=BATCH, engine=on)["result"].compute()

    _compare(
        bench,
        f"dask: {THERE}, {title}",
        {"map_partitions": idiom, "map_batches, engine=dask": ours},
        "map_partitions",
        len(rows),
    )


def _ray(bench: Bench) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.data

    ray.init(
        address="local",
        num_cpus=4,  # two would do for the actors, but Ray Data also wants some for itself
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        for title, model, block in _works(bench):
            _on_ray(bench, title, model, block)
    finally:
        ray.shutdown()


def _on_ray(bench: Bench, title: str, model: Any, block: Any) -> None:
    import ray.data

    from mlkit.integrations.ray import ray as engine

    rows = list(block)
    kind = type(model)

    class Actor:
        def __init__(self, kind: Any = kind) -> None:
            self.model = kind()

        def __call__(self, batch: Any) -> Any:
            return {**batch, "result": self.model(batch["data"])}

    def actors(data: Any) -> Any:
        pool = ray.data.ActorPoolStrategy(size=2)
        return data.map_batches(Actor, batch_size=BATCH, compute=pool)

    def there_and_back() -> object:
        data = ray.data.from_numpy(np.array_split(block, 8))
        return np.concatenate([one["result"] for one in actors(data).iter_batches(batch_size=None)])

    _compare(
        bench,
        f"ray: {HERE}, {title}",
        {
            "map_batches here": lambda: list(map_batches(model, rows, batch_size=BATCH)),
            "map_batches, engine=ray": lambda: list(
                map_batches(model, rows, batch_size=BATCH, engine=engine(n_workers=2))
            ),
            "Ray Data, an actor class": there_and_back,
        },
        "map_batches here",
        len(rows),
    )
    table = ray.data.from_numpy(np.array_split(block, 8)).materialize()

    def results(data: Any) -> object:
        return np.concatenate([one["result"] for one in data.iter_batches(batch_size=None)])

    _compare(
        bench,
        f"ray: {THERE}, {title}",
        {
            "Ray Data, an actor class": lambda: results(actors(table)),
            "map_batches, engine=ray": lambda: results(
                map_batches(
                    lambda batch: model(batch["data"]),
                    table,
                    batch_size=BATCH,
                    engine=engine(n_workers=2),
                )
            ),
        },
        "Ray Data, an actor class",
        len(rows),
    )


def _spark(bench: Bench) -> None:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    try:
        for title, model, block in _works(bench):
            _on_spark(bench, session, title, model, block)
    finally:
        session.stop()


def _on_spark(bench: Bench, session: Any, title: str, model: Any, block: Any) -> None:
    import pandas as pd

    from mlkit.integrations.spark import spark as engine

    rows, of_columns = list(block), table_of(model)

    def chunks() -> object:
        parts = [np.stack(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        distributed = session.sparkContext.parallelize(parts, len(parts))
        return np.concatenate(distributed.map(lambda part: in_batches(model, part)).collect())

    _compare(
        bench,
        f"spark: {HERE}, {title}",
        {
            "map_batches here": lambda: list(map_batches(model, rows, batch_size=BATCH)),
            "map_batches, engine=spark": lambda: list(
                map_batches(model, rows, batch_size=BATCH, engine=engine(session))
            ),
            "parallelize stacked chunks": chunks,
        },
        "map_batches here",
        len(rows),
    )
    names = [f"x{i}" for i in range(WIDTH)]
    table = session.createDataFrame(pd.DataFrame(block, columns=names)).cache()
    table.count()
    schema = ", ".join(f"{name} double" for name in [*names, "result"])

    def idiom() -> object:
        def parts(frames: Any) -> Any:
            for frame in frames:
                yield frame.assign(result=in_batches(model, frame.to_numpy()))

        return table.mapInPandas(parts, schema).select("result").toPandas()["result"]

    def ours() -> object:
        on = engine(session, schema="result double")
        scored = map_batches(of_columns, table, batch_size=BATCH, engine=on)
        return scored.select("result").toPandas()["result"]

    _compare(
        bench,
        f"spark: {THERE}, {title}",
        {"mapInPandas": idiom, "map_batches, engine=spark": ours},
        "mapInPandas",
        len(rows),
    )


if __name__ == "__main__":
    sys.exit(main())
