"""Generators: guarded until the first item is there. What was handed out cannot be taken back, so nothing is replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

__all__ = ["guarded_async_stream", "guarded_stream"]


class _Ended(NamedTuple):
    """A stream without items."""

    value: Any


def guarded_stream(
    fn: Callable[..., Generator[Any, Any, Any]], bind: Callable[..., Callable[..., Any]]
) -> Callable[..., Generator[Any, Any, Any]]:
    """Return *fn* with the policy that *bind* applies around its opening."""

    def opening(*args: Any, **kwargs: Any) -> _Opened | _Ended:
        stream = fn(*args, **kwargs)
        try:
            return _Opened(stream, next(stream))
        except StopIteration as stop:
            return _Ended(stop.value)

    guarded = bind(opening)

    def stream(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        opened = guarded(*args, **kwargs)
        if isinstance(opened, _Ended):
            return opened.value
        return (yield from opened)

    return stream


@final
class _Opened:
    """A generator whose first item was already taken, for `yield from`."""

    __slots__ = ("_first", "_stream")

    def __init__(self, stream: Generator[Any, Any, Any], first: object) -> None:
        self._stream = stream
        self._first: list[object] = [first]

    def __iter__(self) -> _Opened:
        return self

    def __next__(self) -> Any:
        return self._first.pop() if self._first else next(self._stream)

    def send(self, value: object) -> Any:
        return self._stream.send(value)

    def throw(self, error: BaseException) -> Any:
        return self._stream.throw(error)

    def close(self) -> None:
        self._stream.close()


def guarded_async_stream(
    fn: Callable[..., AsyncGenerator[Any, Any]],
    bind: Callable[..., Callable[..., Coroutine[Any, Any, Any]]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return *fn* with the policy that *bind* applies around its opening."""

    async def opening(*args: Any, **kwargs: Any) -> Any:
        stream = fn(*args, **kwargs)
        try:
            return stream, await anext(stream)
        except StopAsyncIteration:
            return None

    guarded = bind(opening)

    async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        opened = await guarded(*args, **kwargs)
        if opened is None:
            return
        source, item = opened
        try:
            while True:
                item = await source.asend((yield item))
        except StopAsyncIteration:
            pass
        finally:
            await source.aclose()

    return stream
