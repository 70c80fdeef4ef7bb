"""Overrides: scoped to a context, exactly undone."""

import asyncio
import contextvars
import threading
from typing import Annotated, Any

import pytest

from mlkit.errors import ConfigurationError, EntryError, UnknownNameError
from mlkit.registry import Registry


class Real:
    def __init__(self, n: int = 1) -> None:
        self.n = n


class Fake(Real):
    pass


class Other(Real):
    pass


@pytest.fixture
def reg():
    registry = Registry("real", Real)
    registry.register("a", aliases=["alias"])(Real)
    registry.register("a", version=2)(lambda n=2: Real(n))
    registry.register("b")(Real)
    return registry


def state(reg):
    return (
        [(name, type(reg.create(name)), type(reg.build(name))) for name in ("a", "a@1", "a@2", "alias", "b")],
        list(reg), reg.list(versions=True), [reg[name] for name in ("a", "a@1", "b")],
    )  # fmt: skip


def test_every_way_to_get_it_is_overridden_and_restored(reg):
    before = state(reg)
    with reg.override(a=Fake):
        assert {type(reg.create(ref)) for ref in ("a", "a@1", "a@2", "alias")} == {Fake}
        assert type(reg.create("b")) is Real
        assert type(reg.build({"type": "a@1", "n": 3})) is Fake
        assert reg["a"] is Fake
        assert type(reg.create(Real)) is Fake
    assert state(reg) == before
    with reg.override({"a@1": Fake}):
        assert type(reg.create("a@1")) is Fake
        assert type(reg.create("a")) is Real
    assert state(reg) == before


def test_they_nest_and_the_innermost_wins(reg):
    before = state(reg)
    with reg.override(a=Fake):
        with reg.override({"a@1": Other}, b=Fake):
            assert [type(reg.create(ref)) for ref in ("a@1", "a@2", "b")] == [Other, Fake, Fake]
            with reg.override(a=Real):
                assert type(reg.create("a@1")) is Real
        assert [type(reg.create(ref)) for ref in ("a@1", "b")] == [Fake, Real]
    assert state(reg) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_any_exit_restores(reg, error):
    before = state(reg)
    with pytest.raises(error), reg.override(a=Fake):
        raise error
    assert state(reg) == before


def test_nested_builds_see_it(reg):
    outer: Registry[Any] = Registry("outer")

    @outer.register("o")
    def make(part: Annotated[Real, reg]) -> Any:
        return part

    with reg.override(a=Fake):
        assert type(outer.build({"type": "o", "part": "a"})) is Fake
    assert type(outer.build({"type": "o", "part": "a"})) is Real


def test_the_signature_checked_is_that_of_the_stand_in(reg):
    with reg.override(a=lambda **anything: Fake()):
        assert type(reg.build({"type": "a", "whatever": 1})) is Fake


def test_other_threads_and_tasks_do_not_see_it(reg):
    seen = {}

    def look(key):
        seen[key] = type(reg.create("a"))

    async def task():
        with reg.override(a=Other):
            await asyncio.sleep(0)
            child = asyncio.create_task(asyncio.to_thread(look, "child"))
            await child

    async def main():
        await asyncio.gather(task(), asyncio.to_thread(look, "sibling"))

    with reg.override(a=Fake):
        thread = threading.Thread(target=look, args=("thread",))
        thread.start()
        thread.join()
        carried = threading.Thread(target=contextvars.copy_context().run, args=(look, "carried"))
        carried.start()
        carried.join()
    asyncio.run(main())
    assert seen == {"thread": Real, "carried": Fake, "child": Other, "sibling": Real}


def test_it_ends_with_its_block_even_where_its_context_lives_on(reg):
    with reg.override(a=Fake):
        context = contextvars.copy_context()
    assert type(context.run(reg.create, "a")) is Real

    def generator():
        with reg.override(a=Fake):
            yield

    one, two = generator(), generator()
    next(one)
    next(two)
    one.close()  # not the innermost
    assert type(reg.create("a")) is Fake
    contextvars.Context().run(two.close)  # not even its own context
    assert type(reg.create("a")) is Real
    with reg.override(b=Fake):
        assert type(reg.create("a")) is Real


def test_what_it_refuses(reg):
    with pytest.raises(UnknownNameError, match="did you mean"):
        reg.override(alia=Fake)
    with pytest.raises(ConfigurationError):
        reg.override(a=3)
    with pytest.raises(ConfigurationError):
        reg.override({3: Fake})
    with pytest.raises(EntryError, match="subclass"):
        reg.override(a=dict)
    block = reg.override(a=Fake)
    with block:
        pass
    with pytest.raises(RuntimeError, match="used once"), block:
        pass


def test_it_imports_nothing():
    reg: Registry[Any] = Registry("lazy")
    reg.lazy("gone", "no_such_module_at_all:X")
    with reg.override(gone=Real):
        assert type(reg.create("gone")) is Real
        assert type(reg.build("gone")) is Real
    with pytest.raises(EntryError):
        reg.create("gone")


def test_leaving_twice_is_leaving_once(reg):
    block = reg.override(a=Fake)
    block.__enter__()
    block.__exit__(None, None, None)
    block.__exit__(None, None, None)
    with reg.override(a=Fake):
        assert type(reg.create("a")) is Fake
    assert type(reg.create("a")) is Real


@pytest.mark.parametrize("wrong", [["a"], None, Fake])
def test_what_is_no_mapping_is_refused(reg, wrong):
    with pytest.raises(ConfigurationError, match=r"real\.override\(mapping\)"):
        reg.override(wrong)
