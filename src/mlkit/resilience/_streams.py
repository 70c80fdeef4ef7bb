"""Generators: guarded until the first item is there, or as a whole.

What was handed out cannot be taken back, so nothing is replayed: in mode `open` the policy decides before the first item,
in mode `buffer` it reads all of them before it hands out any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

    from mlkit.resilience._limits import Permit
    from mlkit.resilience._plan import Plan

__all__ = ["AsyncOpened", "Opened", "relay", "relay_async", "stream_opener"]


@final
class Opened:
    """A generator that was opened: a first item, or all of them, and what is still to come.

    It is what `yield from` takes, and its value is the one that the generator returns. Whoever does not read it to its
    end closes it: only then is its place in the bulkhead free.

    Attributes:
        items: The items that were read and not handed out yet, the next one last.
    """

    __slots__ = ("_ended", "_permit", "_plan", "_stream", "_value", "items")

    items: list[Any]

    def __init__(self, plan: Plan, stream: Generator[Any, Any, Any], *, whole: bool) -> None:
        self._plan, self._stream = plan, stream
        self._permit: Permit | None = None
        self._ended, self._value = False, None
        self.items = []
        try:
            self.items.append(next(stream))
            while whole:
                self.items.append(next(stream))
        except StopIteration as stop:
            self._ended, self._value = True, stop.value
        self.items.reverse()

    def hold(self, permit: Permit | None) -> Opened:
        """Keep a place in the bulkhead until the end; return the stream."""
        self._permit = permit
        return self

    def __iter__(self) -> Opened:
        return self

    def __next__(self) -> Any:
        if self.items:
            return self.items.pop()
        return self._read(self._stream.__next__)

    def send(self, value: object) -> Any:
        """Send *value* to the generator, and return its next item."""
        if self.items or self._ended:
            raise _read_already(self._plan)
        return self._read(lambda: self._stream.send(value))

    def throw(self, error: BaseException) -> Any:
        """Raise *error* in the generator, and return its next item."""
        if self.items or self._ended:
            try:
                self.close()
                raise error
            finally:
                del error  # whose traceback leads back here
        return self._read(lambda: self._stream.throw(error))

    def close(self) -> None:
        """Close the generator and let go of what was read."""
        self.items.clear()
        try:
            self._stream.close()
        finally:
            self._release()

    def _read(self, ask: Callable[[], Any]) -> Any:
        going = False
        try:
            if self._ended:
                raise StopIteration(self._value)
            item = ask()
            going = True
        except StopIteration:
            raise
        except Exception as error:
            self._plan.broke_off(error)
            raise
        finally:
            if not going:
                self._release()
        return item

    def _release(self) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.release()


@final
class AsyncOpened:
    """An async generator that was opened, see `Opened`. `asend` gives the next item, or raises `StopAsyncIteration`.

    Attributes:
        items: The items that were read and not handed out yet, the next one last.
    """

    __slots__ = ("_ended", "_permit", "_plan", "_stream", "items")

    items: list[Any]

    def __init__(self, plan: Plan, stream: AsyncGenerator[Any, Any]) -> None:
        self._plan, self._stream = plan, stream
        self._permit: Permit | None = None
        self._ended = False
        self.items = []

    async def read(self, *, whole: bool) -> AsyncOpened:
        """Read the first item, or all of them; return the stream."""
        try:
            self.items.append(await anext(self._stream))
            while whole:
                self.items.append(await anext(self._stream))
        except StopAsyncIteration:
            self._ended = True
        finally:
            if not self.items or self._ended:
                await self._stream.aclose()  # a failed attempt leaves nothing to the event loop
        self.items.reverse()
        return self

    def hold(self, permit: Permit | None) -> AsyncOpened:
        """Keep a place in the bulkhead until the end; return the stream."""
        self._permit = permit
        return self

    async def asend(self, value: object) -> Any:
        """Send *value* to the generator, and return its next item; with None, one that was read before."""
        if self.items and value is None:
            return self.items.pop()
        if value is not None and (self.items or self._ended):
            raise _read_already(self._plan)
        return await self._judged(self._stream.asend(value))

    async def athrow(self, error: BaseException) -> Any:
        """Raise *error* in the generator, and return its next item."""
        if self.items or self._ended:
            try:
                await self.aclose()
                raise error
            finally:
                del error  # whose traceback leads back here
        return await self._judged(self._stream.athrow(error))

    async def aclose(self) -> None:
        """Close the generator and let go of what was read."""
        self.items.clear()
        try:
            await self._stream.aclose()
        finally:
            permit, self._permit = self._permit, None
            if permit is not None:
                permit.release()

    async def _judged(self, item: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await item
        except StopAsyncIteration:
            raise
        except Exception as error:
            self._plan.broke_off(error)
            raise


def stream_opener(plan: Plan, fn: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """Return the function (a coroutine function if *is_async*) that opens one stream of *fn*: one attempt."""
    whole = plan.policy.stream == "buffer"

    def opened(*args: Any, **kwargs: Any) -> Opened:
        return Opened(plan, fn(*args, **kwargs), whole=whole)

    async def opened_async(*args: Any, **kwargs: Any) -> AsyncOpened:
        return await AsyncOpened(plan, fn(*args, **kwargs)).read(whole=whole)

    return opened_async if is_async else opened


def relay(opened: Callable[..., Opened]) -> Callable[..., Generator[Any, Any, Any]]:
    """Return the generator function whose streams *opened* opens."""

    def stream(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        source = opened(*args, **kwargs)
        del args, kwargs  # what was asked need not live as long as the stream
        return (yield from source)

    return stream


def relay_async(
    opened: Callable[..., Coroutine[Any, Any, AsyncOpened]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return the async generator function whose streams *opened* opens: `yield from`, which async generators lack."""

    async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        source = await opened(*args, **kwargs)
        del args, kwargs
        try:
            item = await source.asend(None)
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - it is handed on to whom it was thrown at
                    item = await source.athrow(error)
                else:
                    item = await source.asend(sent)
        except StopAsyncIteration:
            return
        finally:
            await source.aclose()

    return stream


def _read_already(plan: Plan) -> ConfigurationError:
    return ConfigurationError(
        f"Policy(stream='buffer')({plan.name}).send(value)",
        plan.name,
        "next()",
        hint="the generator has ended before its first item was handed out; stream='open' lets it hear",
    )
