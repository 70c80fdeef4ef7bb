"""What an answer of MLflow means: it is done, try again later, or never like this."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, final

from mlkit._suggest import clip
from mlkit.errors import SinkRejectedError, SinkUnavailableError

if TYPE_CHECKING:
    from mlkit.errors import TrackingError

__all__ = ["content_of", "translated"]

# What MLflow answers when the same request will never do.
_HOPELESS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_TOO_LARGE = 413  # said by a proxy, in words of its own


def content_of(response: Any) -> dict[str, Any]:
    """Return what an HTTP answer holds.

    Args:
        response: Of `requests`.

    Raises:
        SinkUnavailableError: If it is an error of the moment, or no answer of MLflow: a load balancer says 404 in
            HTML while the server behind it starts, and one that says 200 has stored nothing.
        SinkRejectedError: If MLflow will never do it.
    """
    said = _json_of(response.text)
    if response.status_code == 200 and said is not None:
        return said
    raise _verdict(response, said)


def _verdict(response: Any, said: dict[str, Any] | None) -> TrackingError:
    status, code = response.status_code, str((said or {}).get("error_code", ""))
    what = f"{code}: {(said or {}).get('message')}" if code else "no answer of MLflow: "
    message = clip(f"HTTP {status}, {what if code else what + response.text}", 300)
    if code in _HOPELESS or status == _TOO_LARGE:
        return SinkRejectedError(message)
    wish = response.headers.get("Retry-After", "")
    return SinkUnavailableError(message, retry_after=float(wish) if wish.isdecimal() else 0.0)


def _json_of(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@final
class translated:  # noqa: N801 - reads as the statement it is: `with translated():`
    """Context manager: the errors of MLflow's own client become those that the lane understands."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from mlflow.exceptions import MlflowException, RestException
        from requests import HTTPError

        if isinstance(error, MlflowException):
            # The client says BAD_REQUEST for any answer of 400, also one that is not MLflow's.
            foreign = error.error_code == "BAD_REQUEST" and not isinstance(error, RestException)
            hopeless = error.error_code in _HOPELESS and not foreign
            found = SinkRejectedError if hopeless else SinkUnavailableError
            raise found(f"{error.error_code}: {error.message}") from error
        if isinstance(error, HTTPError) and error.response is not None:
            raise _verdict(error.response, _json_of(error.response.text)) from error
        if type(error).__module__.startswith(("sqlalchemy.", "alembic.")):
            raise SinkUnavailableError(f"{type(error).__name__}: {error}") from error
