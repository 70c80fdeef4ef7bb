"""Serving coroutines under a rollout: nothing blocks the loop, nothing is lost by cancelling."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mlkit.flags import ErrorRate, Flags, Guard

FLAG = {"state": "ENABLED", "variants": {"v1": "m:/1", "v2": "m:/2"}, "defaultVariant": "v1"}


def made(**options):
    rollout = Flags.from_dict({"flags": {"m": FLAG}}).model("m", default="v1")
    return rollout.rollout("v2", steps=[1.0], **options)


async def hello(model):
    await asyncio.sleep(0)
    return f"{model} says hello"


async def ask(rollout, call=hello, unit="ann"):
    async with rollout.serve(unit) as served:
        return await served.arun(call)


def test_the_model_of_the_variant_answers():
    async def main():
        rollout = made()
        first = await ask(rollout)
        rollout.advance()
        return first, await asyncio.gather(*(ask(rollout, unit=i) for i in range(5)))

    first, then = asyncio.run(main())
    assert (first, then) == ("m:/1 says hello", ["m:/2 says hello"] * 5)


def test_a_candidate_that_fails_falls_back_and_counts():
    async def fragile(model):
        await asyncio.sleep(0)
        if model == "m:/2":
            raise OSError
        return model

    async def main():
        flag = Flags.from_dict({"flags": {"m": FLAG}}).model("m", default="v1")
        rollout = flag.rollout("v2", steps=[0.5, 1.0], guard=Guard(ErrorRate(max_rate=0.05)))
        rollout.advance()
        answers = [await ask(rollout, fragile, unit) for unit in range(60)]
        return rollout, answers

    rollout, answers = asyncio.run(main())
    assert set(answers) == {"m:/1"}
    assert rollout.status == "rolled_back"


def test_the_incumbents_failure_is_the_callers():
    async def broken(model):
        raise OSError(model)

    async def main():
        rollout = made(guard=Guard(ErrorRate(max_rate=0.5)))
        with pytest.raises(OSError, match="m:/1"):
            await ask(rollout, broken)
        return rollout.evidence

    assert asyncio.run(main())["error_rate.incumbent_sum"] == 1.0


def test_loading_lets_other_tasks_go_on():
    async def main():
        go, began = threading.Event(), threading.Event()

        def load(uri):
            began.set()
            assert go.wait(60)
            return uri

        rollout = made(load=load)
        asking = [asyncio.create_task(ask(rollout, unit=i)) for i in range(3)]
        while not began.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the loop turns while the model is being loaded
        go.set()
        return await asyncio.gather(*asking)

    assert asyncio.run(main()) == ["m:/1 says hello"] * 3


def test_who_is_cancelled_while_loading_holds_no_model():
    async def main():
        go, began, unloaded = threading.Event(), threading.Event(), []

        def load(uri):
            began.set()
            assert go.wait(60)
            return uri

        rollout = made(load=load, unload=unloaded.append)
        asking = asyncio.create_task(ask(rollout))
        while not began.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go.set()
        await asyncio.wait_for(_until(lambda: rollout.models.take_loaded("m:/1")[0]), 60)
        rollout.models.give_back("m:/1")
        await rollout.aclose()
        await asyncio.wait_for(_until(lambda: unloaded == ["m:/1"]), 60)
        return rollout.evidence

    asyncio.run(main())


async def _until(condition):
    while not condition():  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.001)


def test_a_cancelled_request_says_nothing_and_is_not_tried_again():
    calls = []

    async def slow(model):
        calls.append(model)
        await asyncio.sleep(60)

    async def main():
        rollout = made(guard=Guard(ErrorRate(max_rate=0.05)))
        rollout.advance()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(rollout, slow), 0.01)
        return rollout.evidence

    assert asyncio.run(main())["error_rate.candidate_n"] == 0
    assert calls == ["m:/2"]


def test_shadow_runs_are_tasks_of_the_loop():
    loops = []

    async def call(model):
        loops.append((asyncio.get_running_loop(), threading.get_ident(), model))
        await asyncio.sleep(0)
        if model == "m:/2" and len(loops) > 6:
            raise OSError
        return "same" if len(loops) < 4 else model

    async def main():
        rollout = made(shadow=1.0)
        for unit in range(4):
            assert (await ask(rollout, call, unit)) in {"same", "m:/1"}
        await rollout.aclose()
        return rollout.shadowing

    report = asyncio.run(main())
    assert (report.n, report.n_dropped) == (4, 0)
    assert report.n_failed >= 1
    assert len({(loop, thread) for loop, thread, _ in loops}) == 1
    assert sum(model == "m:/2" for *_, model in loops) == 4


def test_slow_shadows_are_left_out():
    async def main():
        gate = asyncio.Event()

        async def call(model):
            if model == "m:/2":
                await gate.wait()
            return model

        rollout = made(shadow=1.0)
        for unit in range(40):
            await ask(rollout, call, unit)
        gate.set()
        await rollout.aclose()
        return rollout.shadowing

    report = asyncio.run(main())
    assert report.n_dropped > 0
    assert report.n + report.n_dropped == 40


def test_run_refuses_a_coroutine_function():
    with made().serve("ann") as served, pytest.raises(TypeError, match="arun"):
        served.run(hello)


def test_the_folder_is_looked_into_beside_the_loop(tmp_path):
    async def main():
        rollout = made(guard=Guard(ErrorRate(max_rate=0.05)), folder=tmp_path)
        rollout.advance()
        threads = []
        rollout.sync = lambda: threads.append(threading.get_ident())
        return rollout, threads

    # `Rollout` is final and has no slots: the spy stands in for what reads the disk.
    async def spied():
        rollout, threads = await main()

        async def broken(model):
            raise OSError(model)

        for unit in range(3):
            with pytest.raises(OSError, match="m:/1"):
                await ask(rollout, broken, unit)
        return threads

    threads = asyncio.run(spied())
    assert threads
    assert threading.get_ident() not in threads
