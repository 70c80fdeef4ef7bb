"""Which errors are worth another attempt."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mlkit.errors import ConfigurationError, RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    On = Callable[[Exception], bool] | type[Exception] | tuple[type[Exception], ...]

__all__ = ["predicate", "transient"]

_NETWORK = frozenset({
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN,
    errno.EAGAIN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
    errno.ENOBUFS, errno.ETIMEDOUT,
})  # fmt: skip
_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def transient(error: Exception) -> bool:
    """Return whether *error* may be gone at the next attempt.

    True for `ConnectionError`, `TimeoutError`, an `OSError` with a network error number, and errors that carry an HTTP
    status of 408, 425, 429, 500, 502, 503 or 504 (as `status`, `status_code` or `code`, on the error or its
    `response`) or a number of seconds as `retry_after`. False for everything else, as for a `ValueError`, which comes
    again, and for rejections of a policy. Clients with an error tree of their own (`requests.Timeout`,
    `httpx.TransportError`) are none of these: name their errors in `Policy(on=...)`.

    Args:
        error: What was raised.

    Examples:
        >>> transient(ConnectionResetError()), transient(ValueError("n_rows"))
        (True, False)
    """
    if isinstance(error, RejectedError):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return True
    if isinstance(getattr(error, "retry_after", None), (int, float)):
        return True
    for carrier in (error, getattr(error, "response", None)):
        for field in ("status", "status_code", "code"):
            status = getattr(carrier, field, None)
            if isinstance(status, int) and status in _STATUS:
                return True
    return False


def predicate(where: str, on: object) -> Callable[[Exception], bool]:
    """Return *on* as a predicate: exception types, or a callable of the exception."""
    if isinstance(on, (type, tuple)):
        from mlkit.resilience._breaker import exception_types

        kinds = exception_types(where, on)
        return lambda error: isinstance(error, kinds)
    if callable(on):
        return on
    raise ConfigurationError(where, on, "exception types, or a callable of the exception")
