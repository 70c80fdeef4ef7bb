"""Arguments that both `map_batches` and `Batcher` take, refused early when they are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["bucket_sizes", "is_async", "is_coroutine_function", "plain_callable"]

# inspect.CO_COROUTINE and CO_ASYNC_GENERATOR, without the 10 ms of importing it
_COROUTINE, _ASYNC_GENERATOR = 0x80, 0x200


def bucket_sizes(
    argument: str, buckets: Iterable[int] | None, *, largest: int, limit: str
) -> tuple[int, ...]:
    """Return *buckets* sorted and without repeats; they must cover a batch of *largest* rows."""
    if buckets is None:
        return ()
    expected = "a list of batch sizes, each a whole number >= 1"
    if isinstance(buckets, (str, bytes)):
        raise ConfigurationError(argument, buckets, expected)
    try:
        sizes = tuple(sorted({whole(argument, size, low=1) for size in buckets}))
    except TypeError:
        raise ConfigurationError(argument, buckets, expected) from None
    if not sizes:
        raise ConfigurationError(argument, buckets, expected, hint="or None for no buckets")
    if sizes[-1] < largest:
        raise ConfigurationError(
            argument,
            buckets,
            f"a largest bucket of at least {limit}={largest}",
            hint=f"add {largest}, or lower {limit}",
        )
    return sizes


def plain_callable(argument: str, fn: object, *, of: str = "a batch") -> None:
    """Refuse what cannot be called, and coroutine functions."""
    if not callable(fn):
        raise ConfigurationError(argument, fn, f"a callable that takes {of}")
    if is_async(fn):
        raise ConfigurationError(
            argument,
            fn,
            "a plain function, not a coroutine function",
            hint="the model runs in a thread of its own; make fn an ordinary `def`",
        )


def is_async(fn: Any) -> bool:
    """Return whether calling *fn* gives a coroutine or an async generator."""
    return bool(_flags(fn) & (_COROUTINE | _ASYNC_GENERATOR))


def is_coroutine_function(fn: Any) -> bool:
    """Return whether calling *fn* gives a coroutine."""
    return bool(_flags(fn) & _COROUTINE)


def _flags(fn: Any) -> int:
    fn = getattr(fn, "__wrapped__", fn) if not hasattr(fn, "__code__") else fn
    while hasattr(fn, "func") and not hasattr(fn, "__code__"):  # functools.partial
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    code = getattr(fn, "__code__", None) or getattr(
        getattr(type(fn), "__call__", None),  # noqa: B004 - its code is what is wanted
        "__code__",
        None,
    )
    return 0 if code is None else code.co_flags
