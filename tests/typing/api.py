"""Never executed: what type checkers must see through the public API (mypy strict and pyright strict read it)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import IO, Any, assert_type

import numpy as np

import mlkit
from mlkit.errors import RowError
from mlkit.flags import Details, Flag, Flags, ModelFlag, Rollout
from mlkit.inference import Batcher, map_batches
from mlkit.models import Codec, Field, ModelStore, ModelVersion, Signature
from mlkit.registry import Problem, Registry, Spec, spec_of
from mlkit.repro import Manifest, Seeds, fingerprint, isolated, seed_all
from mlkit.resilience import (
    Answer,
    Policy,
    Retry,
    Trace,
    constant,
    fallback,
    finite,
    in_range,
    stale,
    tier,
)
from mlkit.tracking import Delivery, Run, RunData, read, start_run


class Model:
    """A base that users register against."""


class Net(Model):
    """One of theirs."""

    def __init__(self, width: int, *, depth: int = 1) -> None: ...


def the_facade_is_typed() -> None:
    assert_type(mlkit.__version__, str)
    assert_type(mlkit.Seeds(1), Seeds)


def a_registry_keeps_types(models: Registry[Model]) -> None:
    assert_type(models.create("net", width=3), Model)
    assert_type(models.create(Net, 3, depth=2), Net)
    models.create(Net, "3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    assert_type(models.build(Spec({"type": "net"})), Model)
    assert_type(spec_of(Net(3)), Spec)
    registered = models.register("net")(Net)
    assert_type(registered(3), Net)
    assert_type(models["net"](3), Model)
    assert_type(models.problems(), list[Problem])
    models.register(Net, verison=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def what_is_decorated_keeps_its_type(models: Registry[Model]) -> None:
    @models.register
    class Bare(Model):
        def __init__(self, width: int) -> None: ...

    @models.register("named", version=2, tags=["x"], replacement="named@3", migrate=lambda old: old)
    def make(width: int, *, depth: int = 1) -> Net:
        return Net(width, depth=depth)

    assert_type(models.register(Net, version=2, tags=["x"]), type[Net])
    assert_type(Bare(3), Bare)
    assert_type(make(1, depth=2), Net)
    assert_type(models.create(make, 1), Net)
    assert_type(models.create(Bare, width=1), Bare)
    make("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    models.create(Bare)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    models.create(make, widht=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def seeds_give_generators(seeds: Seeds) -> None:
    assert_type(seeds / "data" / 3, Seeds)
    assert_type(seeds.numpy(), np.random.Generator)
    assert_type(seeds.int(), int)
    seed_all(seeds)
    assert_type(fingerprint([1]), str)
    assert_type(Manifest.capture().digest, str)


@isolated(7)
def evaluate(rows: list[int]) -> float:
    return float(len(rows))


def a_decorator_keeps_the_signature() -> None:
    assert_type(evaluate([1]), float)
    evaluate("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_policy_keeps_the_signature() -> None:
    @Policy(retry=Retry(attempts=2))
    def score(x: float, *, scale: int = 1) -> float:
        return x * scale

    @Policy(timeout=1.0)
    async def fetch(key: str) -> bytes:
        return key.encode()

    assert_type(score(1.0, scale=2), float)
    assert_type(await fetch("a"), bytes)
    score("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_fallback_answers_as_its_first_tier(big: Callable[[float], float]) -> None:
    score = fallback(tier(big, accept=finite), constant(0.5))
    assert_type(score(1.0), float)
    assert_type(score.explain(1.0), Answer[float])
    score("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def of_a_model_without_types_nothing_is_said(model: Any) -> None:
    bare, held = fallback(model, constant(0.5)), fallback(tier(model), constant(0.5))
    assert_type(bare(1.0), Any)
    assert_type(held.explain(1.0), Any)
    print(bare.explain(1.0).tier, (await held.explain(1.0)).tier)


class Ranker:
    def big(self, x: float, *, scale: int = 1) -> float:
        return x * scale

    def words(self, prompt: str) -> Iterator[str]:
        yield prompt

    rank = fallback(tier(big, accept=finite & in_range(0, 1)), constant(0.5))
    say = fallback(words, constant("sorry"), stream="buffer")


async def a_fallback_is_a_method_and_may_be_awaited(
    ranker: Ranker, fetch: Callable[[str], Coroutine[Any, Any, bytes]]
) -> None:
    assert_type(ranker.rank(1.0, scale=2), float)
    assert_type(ranker.rank.explain(1.0), Answer[float])
    assert_type(ranker.say("hello"), Iterator[str])
    ranker.rank("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cached = fallback(fetch, stale(60.0))
    assert_type(await cached("a"), bytes)
    assert_type(await cached.explain("a"), Answer[bytes])
    assert_type((await cached.explain("a")).trace, Trace)


def rows_keep_their_type(rows: list[int], mean: Callable[[list[int]], list[float]]) -> None:
    assert_type(map_batches(mean, rows), Iterator[float])
    assert_type(map_batches(mean, rows, on_error="return"), Iterator[float | RowError])


class Numbered:
    """A dataset that is read by number, as torch's."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> int:
        return place


def a_dataset_is_rows(mean: Callable[[list[int]], list[float]]) -> None:
    assert_type(map_batches(mean, Numbered()), Iterator[float])
    assert_type(map_batches(mean, Numbered(), on_error="return"), Iterator[float | RowError])


async def a_batcher_answers_in_its_models_type(mean: Callable[[list[int]], list[float]]) -> None:
    async with Batcher(mean) as batcher:
        answer = await batcher.submit(1)
        assert_type(answer, float)
        assert_type(batcher.call(1, key="one"), float)

    async def remote(batch: list[int]) -> list[float]:
        return [float(row) for row in batch]

    async with Batcher(remote, target_latency=0.1) as batcher:
        assert_type(await batcher.submit(1), float)


@dataclass
class Retries:
    """What a JSON variant is made of."""

    times: int = 3


def flags_are_typed_handles(flags: Flags) -> None:
    assert_type(flags.bool("new", default=False), Flag[bool])
    assert_type(flags.int("size", default=3)("user"), int)
    assert_type(flags.float("share", default=0.5).details("user"), Details[float])
    assert_type(flags.json("search", default=[], schema=None), Flag[Any])
    assert_type(flags.json("retry", default=Retries(), schema=Retries)("user"), Retries)
    model = flags.model("ranker", default="v1")
    assert_type(model, ModelFlag)
    assert_type(model.rollout("v2"), Rollout)
    flags.bool("new", default="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_run_records() -> None:
    with start_run("churn") as run:
        assert_type(run, Run)
        run.log_metrics({"loss": np.float32(0.5)}, step=1)
        assert_type(run.flush(1.0), Delivery)
    assert_type(read(run.dir), RunData)


def a_store_gives_versions(store: ModelStore, build: Callable[[dict[str, Any]], Net]) -> None:
    version = store.save("net", b"weights")
    assert_type(version, ModelVersion)
    assert_type(store.load("net@1", build=build), Net)
    assert_type(store.versions("net"), list[ModelVersion])
    assert_type(version.signature, Signature | None)
    assert_type(Signature.infer([1.0]).inputs, tuple[Field, ...])
    store.save("net", [1], trust=["mine.Scaler"], example=[1], output=len)
    store.load("net@1", trust=7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


class Rows:
    """A codec as a user writes one."""

    name = "rows"

    def handles(self, model: object, /) -> bool:
        return isinstance(model, list)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        file.write(repr(model).encode())

    def read(self, file: IO[bytes], /) -> Any:
        return file.read()


def a_store_takes_codecs() -> None:
    codec: Codec = Rows()
    assert_type(ModelStore("models", codecs=[codec, Rows()]), ModelStore)
    ModelStore("models", codecs=[object()])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
