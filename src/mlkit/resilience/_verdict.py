"""What is to be done about an error or an answer: another attempt, the next tier, or nothing."""

from __future__ import annotations

import errno
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import seconds
from mlkit.errors import ConfigurationError, RejectedError
from mlkit.resilience._kinds import of_tenacity
from mlkit.resilience._settings import exception_types

if TYPE_CHECKING:
    from collections.abc import Callable

    On = Callable[[Exception], "bool | Verdict"] | type[Exception] | tuple[type[Exception], ...]

__all__ = ["FALL", "RAISE", "RETRY", "Verdict", "predicate", "pushback", "transient"]

_NETWORK = frozenset({
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN,
    errno.EAGAIN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
    errno.ENOBUFS, errno.ETIMEDOUT,
})  # fmt: skip
_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_GRPC = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
# Clients whose errors are neither ConnectionError nor TimeoutError, by the package that defines them. A certificate that
# is wrong stays wrong, although `requests.SSLError` is a connection error.
_CLIENTS = {
    "requests": frozenset({"ConnectionError", "Timeout", "ChunkedEncodingError"}),
    "httpx": frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError"}),
    "httpcore": frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError"}),
    "urllib3": frozenset({"TimeoutError", "NewConnectionError", "ProtocolError", "MaxRetryError"}),
    "aiohttp": frozenset({"ClientConnectionError", "ClientPayloadError"}),
    "botocore": frozenset({"ConnectionError", "HTTPClientError"}),
    "redis": frozenset({"ConnectionError", "TimeoutError"}),
    "openai": frozenset({"APIConnectionError"}),
    "anthropic": frozenset({"APIConnectionError"}),
}
_PYTHONS = frozenset({
    ConnectionError, BrokenPipeError, ConnectionAbortedError, ConnectionRefusedError, ConnectionResetError, TimeoutError,
})  # fmt: skip
_PERMANENT = frozenset({"SSLError", "ClientSSLError", "ClientConnectorSSLError"})


class Verdict(NamedTuple):
    """What is to be done about an error or an answer. One of `RETRY`, `FALL` and `RAISE`, or `RETRY.after(seconds)`.

    Attributes:
        name: `"RETRY"`, `"FALL"` or `"RAISE"`.
        pause: Seconds that must pass before the next attempt, or None if the back-off decides.
    """

    name: str
    pause: float | None = None

    @property
    def again(self) -> bool:
        """Whether there shall be another attempt."""
        return self.name == "RETRY"

    def after(self, pause: float) -> Verdict:
        """Return the verdict that the next attempt shall begin in *pause* seconds at the earliest.

        Args:
            pause: Seconds, at least 0.

        Raises:
            ConfigurationError: If *pause* is no such number, or this is not `RETRY`.

        Examples:
            >>> RETRY.after(1.5)
            RETRY.after(1.5)
        """
        if not self.again:
            raise ConfigurationError("Verdict.after", self.name, "RETRY: nothing comes after it")
        return Verdict(self.name, seconds("RETRY.after(pause)", pause, zero=True))

    def __repr__(self) -> str:
        return self.name if self.pause is None else f"{self.name}.after({self.pause:g})"


RETRY: Verdict = Verdict("RETRY")
"""Another attempt, if there may be one."""
FALL: Verdict = Verdict("FALL")
"""No other attempt: the error comes out, and a fallback asks its next tier."""
RAISE: Verdict = Verdict("RAISE")
"""No other attempt and no other tier: the caller made a mistake."""


def transient(error: Exception) -> bool:
    """Return whether *error* may be gone at the next attempt.

    True for `ConnectionError`, `TimeoutError`, an `OSError` with a network error number; for errors that carry an HTTP
    status of 408, 425, 429, 500, 502, 503 or 504 (as `status`, `status_code` or `code`, on the error or its
    `response`; botocore's and gRPC's too) or a number of seconds as `retry_after`; and for the time-outs and lost
    connections of requests, httpx, urllib3, aiohttp, botocore, redis, openai and anthropic. False for everything else,
    as for a `ValueError`, which comes again, for a wrong certificate, and for rejections of a policy.

    Args:
        error: What was raised.

    Examples:
        >>> transient(ConnectionResetError()), transient(ValueError("n_rows"))
        (True, False)

    Note:
        Clients are known by the names of their errors; none is imported.
    """
    if type(error) in _PYTHONS:
        return True
    if isinstance(error, (ConnectionError, TimeoutError)):
        return not _permanent(error)
    if isinstance(error, RejectedError):
        return False
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return True
    if _number(_field(error, "retry_after")) is not None:
        return True
    return _status_says(error) or (_of_a_client(error) and not _permanent(error))


def pushback(error: Exception) -> float | None:
    """Return the seconds that *error* asks its callers to wait, or None.

    They are its `retry_after`, or the `Retry-After` header of its `response` (seconds or a date).
    """
    try:  # nearly every error has neither
        asked, response = getattr(error, "retry_after", None), getattr(error, "response", None)
    except Exception:  # noqa: BLE001 - as in `_field`
        asked, response = _field(error, "retry_after"), _field(error, "response")
    if asked is not None and (wait := _number(asked)) is not None:
        return wait
    if response is None:
        return None
    get = getattr(getattr(response, "headers", None), "get", None)
    if not callable(get):
        return None
    text = get("Retry-After") or get("retry-after")
    return _header(text) if isinstance(text, str) else None


def predicate(where: str, on: object) -> Callable[[Exception], Any]:
    """Return *on* as a callable of the exception: exception types, or such a callable."""
    if isinstance(on, (type, tuple)):
        kinds = exception_types(where, on)
        return lambda error: isinstance(error, kinds)
    if callable(on) and not of_tenacity(on, "retry"):
        return on
    hint = ""
    if isinstance(on, (list, set, frozenset)):
        hint = "write the types as a tuple"
    elif callable(on):
        hint = "pass the types, or the function of the exception, that this tenacity object was made of"
    raise ConfigurationError(
        where, on, "exception types, or a callable of the exception", hint=hint
    )


def _status_says(error: Exception) -> bool:
    response = _field(error, "response")
    if isinstance(response, dict):  # botocore's
        metadata = response.get("ResponseMetadata")
        return isinstance(metadata, dict) and metadata.get("HTTPStatusCode") in _STATUS
    for carrier in (error, response):
        for field in ("status", "status_code", "code"):
            status = _field(carrier, field)
            if isinstance(status, int) and status in _STATUS:
                return True
    code = _field(error, "code")  # gRPC's is a method that returns an enumeration
    if callable(code) and _field(error, "details") is not None:
        return getattr(code(), "name", None) in _GRPC
    return False


def _field(carrier: object, name: str) -> Any:
    """Return an attribute, or None if there is none; a property of a foreign error may raise anything."""
    try:
        return getattr(carrier, name, None)
    except Exception:  # noqa: BLE001 - it must not take the place of the error
        return None


def _of_a_client(error: Exception) -> bool:
    for kind in type(error).__mro__:
        names = _CLIENTS.get(kind.__module__.partition(".")[0])
        if names is not None and kind.__name__ in names:
            return True
    return False


def _permanent(error: Exception) -> bool:
    return any(kind.__name__ in _PERMANENT for kind in type(error).__mro__)


def _number(value: object) -> float | None:
    """Return a number of seconds that can be waited for, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if isfinite(value) and value >= 0 else None


def _header(text: str) -> float | None:
    if text.strip().isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    from mlkit._clock import current

    try:
        when = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):  # a zone of 20 digits
        return None
    return max(0.0, when - current().time())
