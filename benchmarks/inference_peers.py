"""Batchers of others, and ours, behind one call: `async with CONTENDERS[name](model, size, wait) as submit:`.

The model is a plain function from a list of rows to a list of results. Where a peer wants an async function, one thread of
its own runs the model, as a user would do it.
"""

from __future__ import annotations

# ruff: noqa: ARG001 - all contenders take the same arguments, and some have no use for one
import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlkit.inference import Batcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Model = Callable[[list[Any]], list[Any]]
    Submit = Callable[[Any], Awaitable[Any]]

__all__ = ["CONTENDERS", "FALLBACK", "FLOOR", "OURS", "UNBOUNDED", "bare", "missing"]

OURS = "mlkit Batcher"
FLOOR = "bare hand-over"
UNBOUNDED = 100_000  # rows that may wait, where a contender has such a bound


@asynccontextmanager
async def _ours(
    model: Model, size: int, wait: float, bound: int = UNBOUNDED
) -> AsyncIterator[Submit]:
    options: dict[str, Any] = {"max_batch_size": size, "max_wait": wait, "max_queue": bound}
    async with Batcher(model, collate=list, **options) as batcher:
        yield batcher.submit


@asynccontextmanager
async def bare(model: Model, size: int, wait: float) -> AsyncIterator[Submit]:
    """Do only what every batcher must that runs the model in a thread: the floor under the CPU time a request.

    A future for each row, one hand-over to the thread a turn of the loop, one back a batch. It knows one loop, and has no
    bound, no wait for company, no cancellation, no errors and no counts.
    """
    loop, inbox = asyncio.get_running_loop(), SimpleQueue[Any]()
    waiting: list[tuple[Any, asyncio.Future[Any]]] = []

    def hand_over() -> None:
        for first in range(0, len(waiting), size):
            inbox.put(waiting[first : first + size])
        waiting.clear()

    def run() -> None:
        while (batch := inbox.get()) is not None:
            loop.call_soon_threadsafe(answer, batch, model([row for row, _ in batch]))

    def answer(batch: list[tuple[Any, asyncio.Future[Any]]], results: list[Any]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    async def submit(row: Any) -> Any:
        future = loop.create_future()
        if not waiting:
            loop.call_soon(hand_over)
        waiting.append((row, future))
        return await future

    thread = Thread(target=run)
    thread.start()
    try:
        yield submit
    finally:
        inbox.put(None)
        await asyncio.to_thread(thread.join)


@asynccontextmanager
async def _batched(model: Model, size: int, wait: float, bound: int = 0) -> AsyncIterator[Submit]:
    from batched import aio

    yield aio.dynamically(batch_size=size, timeout_ms=wait * 1000)(model)


@asynccontextmanager
async def _async_batcher(
    model: Model, size: int, wait: float, bound: int = UNBOUNDED
) -> AsyncIterator[Submit]:
    from async_batcher.batcher import AsyncBatcher

    class Peer(AsyncBatcher[Any, Any]):  # type: ignore[misc]
        def process_batch(self, batch: list[Any]) -> list[Any]:
            return model(batch)

    bounds = {} if bound == UNBOUNDED else {"max_queue_size": bound}
    batcher = Peer(max_batch_size=size, max_queue_time=wait, **bounds)
    try:
        yield lambda row: batcher.process(item=row)
    finally:
        await asyncio.wait_for(batcher.stop(force=True), 5)


@asynccontextmanager
async def _aiodataloader(
    model: Model, size: int, wait: float, bound: int = 0
) -> AsyncIterator[Submit]:
    from aiodataloader import DataLoader

    with ThreadPoolExecutor(1) as pool:

        async def load(batch: list[Any]) -> list[Any]:
            return await asyncio.get_running_loop().run_in_executor(pool, model, batch)

        yield DataLoader(load, max_batch_size=size, cache=False).load


@asynccontextmanager
async def _batchlet(
    model: Model, size: int, wait: float, bound: int = UNBOUNDED
) -> AsyncIterator[Submit]:
    import batchlet

    with ThreadPoolExecutor(1) as pool:

        async def process(batch: list[Any]) -> list[Any]:
            return await asyncio.get_running_loop().run_in_executor(pool, model, batch)

        policy = batchlet.BatchPolicy(max_items=size)
        batcher: Any = batchlet.AsyncBatcher(
            process, policy=policy, max_wait_ms=wait * 1000, max_pending_items=bound
        )
        try:
            yield batcher.submit
        finally:
            await asyncio.wait_for(batcher.aclose(), 5)


@asynccontextmanager
async def _ray(model: Model, size: int, wait: float, bound: int = 0) -> AsyncIterator[Submit]:
    from types import SimpleNamespace
    from unittest import mock

    from ray import serve
    from ray.serve import context

    # The decorator asks its deployment one thing; no cluster is needed for what it does itself.
    config = SimpleNamespace(max_ongoing_requests=1_000_000)
    stand_in = mock.MagicMock(_deployment_config=config, app_name="", deployment="", replica_tag="")
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    before, context._INTERNAL_REPLICA_CONTEXT = context._INTERNAL_REPLICA_CONTEXT, stand_in
    try:
        with ThreadPoolExecutor(1) as pool:

            @serve.batch(max_batch_size=size, batch_wait_timeout_s=wait)
            async def process(batch: list[Any]) -> list[Any]:
                return await asyncio.get_running_loop().run_in_executor(pool, model, batch)

            yield process
    finally:
        context._INTERNAL_REPLICA_CONTEXT = before


@asynccontextmanager
async def _bentoml(model: Model, size: int, wait: float, bound: int = 0) -> AsyncIterator[Submit]:
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    logging.getLogger("bentoml").setLevel(logging.CRITICAL)
    with ThreadPoolExecutor(1) as pool:

        async def process(batch: Any) -> list[Any]:
            return await asyncio.get_running_loop().run_in_executor(pool, model, list(batch))

        dispatcher: Any = CorkDispatcher(
            max_latency_in_ms=60_000,
            max_batch_size=size,
            fallback=lambda: FALLBACK,
            get_batch_size=lambda _: 1,
        )
        try:
            yield dispatcher(process)
        finally:
            dispatcher.shutdown()


FALLBACK = "fallback"
"""What BentoML's dispatcher gives a caller in place of a result."""

CONTENDERS: dict[str, Callable[..., Any]] = {
    OURS: _ours,
    "batched": _batched,
    "async-batcher": _async_batcher,
    "batchlet": _batchlet,
    "aiodataloader": _aiodataloader,
    "Ray @serve.batch": _ray,
    "BentoML dispatcher": _bentoml,
}


def missing(name: str) -> str:
    """Return why the contender *name* cannot take part; empty if it can."""

    async def probe() -> None:
        async with CONTENDERS[name](lambda batch: batch, 4, 0.001) as submit:
            if await asyncio.wait_for(submit(1), 5) != 1:
                raise RuntimeError("another result")

    try:
        asyncio.run(probe())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""
