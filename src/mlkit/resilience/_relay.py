"""Streams across tiers: which tier answers is decided before the first item is handed out, or after the last was read."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError
from mlkit.resilience._plan import Plan
from mlkit.resilience._policy import Policy
from mlkit.resilience._streams import AsyncOpened, Opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from mlkit.resilience._asked import Call
    from mlkit.resilience._store import Store
    from mlkit.resilience._tiers import Tier

__all__ = ["AskedStream", "async_opener", "opener"]


@final
class AskedStream:
    """One stream for all of the arguments."""

    __slots__ = ("_args", "_kwargs", "_source", "open", "where")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args, self._kwargs = args, kwargs
        self._source: Any = None
        self.open = True
        self.where: Any = []

    def call(self) -> Call:
        return self._args, self._kwargs

    def take(self, at: int, tier: Tier[..., Any], answer: Any) -> str | None:  # noqa: ARG002 - judged when it was opened
        if answer is None:
            return ""
        self._source, self.open, self.where = answer, False, [at]
        return None

    def recall(
        self, at: int, store: Store
    ) -> str | None:  # pragma: no cover - refused when a fallback is made
        raise NotImplementedError

    def keep(self, position: int, store: Store) -> None:  # pragma: no cover - as above
        raise NotImplementedError

    def counts(self) -> dict[int, int]:
        return {self.where[0]: 1}

    def result(self) -> Any:
        return self._source

    def left(self) -> tuple[int, ...]:
        return ()


def opener(tier: Tier[..., Any], mode: str) -> Callable[..., Any]:
    """Return what opens a stream of *tier*: an `Opened`, or None if the tier's gate rejects it."""
    run, plan, whole = tier.run, Plan(Policy(), tier.name), mode == "buffer"

    def opened(*args: Any, **kwargs: Any) -> Any:
        source = run(*args, **kwargs)  # type: ignore[misc]  # only a stale tier has none
        if whole or tier.kind != "stream":
            source = Opened(plan, _relayed(_iterable(tier, source)), whole=whole)
        accepted = False
        try:
            accepted = _passes(tier, source, args, kwargs, whole=whole)
        finally:
            if not accepted:
                source.close()
        return source if accepted else None

    return opened


def async_opener(tier: Tier[..., Any], mode: str) -> Callable[..., Any]:
    """Return what opens a stream of *tier*: an `AsyncOpened`, or None if the tier's gate rejects it."""
    run, plan, whole = tier.run, Plan(Policy(), tier.name), mode == "buffer"

    async def opened(*args: Any, **kwargs: Any) -> Any:
        source = run(*args, **kwargs)  # type: ignore[misc]  # only a stale tier has none
        if tier.is_async:
            source = await source
        if not isinstance(source, AsyncOpened) or whole:
            items = _relayed_async(_iterable(tier, source))
            source = await AsyncOpened(plan, items).read(whole=whole)
        accepted = False
        try:
            accepted = _passes(tier, source, args, kwargs, whole=whole)
        finally:
            if not accepted:
                await source.aclose()
        return source if accepted else None

    return opened


def _passes(
    tier: Tier[..., Any],
    source: Opened | AsyncOpened,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    whole: bool,
) -> bool:
    """Return whether the gate takes the first item, or the list of all of them; no item is nothing to refuse."""
    if tier.accept is None or (not source.items and not whole):
        return True
    return tier.accept(source.items[::-1] if whole else source.items[-1], *args, **kwargs)


def _iterable(tier: Tier[..., Any], answer: Any) -> Any:
    """Return the items of an answer: a constant is one item, anything else must be made of them."""
    if tier.kind == "constant":
        return (answer,)
    if isinstance(answer, (str, bytes, dict)) or not isinstance(
        answer, (Iterable, AsyncIterable, AsyncOpened)
    ):
        raise ConfigurationError(
            f"the answer of {tier.name} in a stream", type(answer), "a list or iterator of items"
        )
    return answer


def _relayed(source: Any) -> Generator[Any, Any, Any]:
    return (yield from source)


async def _relayed_async(source: Any) -> AsyncGenerator[Any, Any]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    elif not isinstance(source, AsyncOpened):
        for item in source:
            yield item
    else:
        try:
            while True:
                yield await source.asend(None)
        except StopAsyncIteration:
            return
        finally:
            await source.aclose()
