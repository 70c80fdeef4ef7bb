"""A flag document behind a URL."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags._http import Deadline, LookError, Target, get
from mlkit.flags._source import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlkit.flags._http import Answer

    Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]

__all__ = ["Url"]

_MAX_REDIRECTS = 5
_MAX_MARK = 1024
_CALL = "Flags.from_url"


@final
class Url:
    """A document that is got by HTTP. Secrets of the URL and the headers stand in no message.

    Args:
        url: Where it is.
        headers: Headers to send, or a function that returns them for each look; told to the URL's own server alone.
        timeout: Seconds for one look, its attempts and pauses included.
        attempts: How often a look asks at most.
        max_bytes: Longer documents are refused.
        insecure: Whether plain HTTP to another machine will do.

    Raises:
        ConfigurationError: If an argument is wrong.
    """

    name: str
    spread: float = 0.2

    def __init__(
        self,
        url: str,
        headers: Headers | None,
        *,
        timeout: float,
        attempts: int,
        max_bytes: int,
        insecure: bool,
    ) -> None:
        self._target = _target(url, insecure=insecure)
        self.name = self._target.name
        self._headers = headers if callable(headers) else _checked(headers or {})
        self._timeout, self._attempts = timeout, attempts
        self._max_bytes, self._insecure = max_bytes, insecure
        self._pause: tuple[float, str] | None = None  # until when the server wants rest, and why

    @property
    def identity(self) -> str:
        """Digest of the URL without user and password, to tell copies of different documents apart."""
        target = self._target
        return digest_bytes(repr((target.origin, target.path)).encode())

    def unchanged(self, mark: Any) -> bool:
        """Return False: only the server knows."""
        del mark
        return False

    def prepare(self) -> Callable[[Any], Reading]:
        """Return a function that asks the server; the user's function for headers is called now.

        Raises:
            FlagFileError: If the user's function fails.
        """
        headers = self._headers
        if callable(headers):
            try:
                headers = _checked(headers())
            except Exception as error:  # noqa: BLE001 - whatever it raises; not its text, which may quote a secret
                reason = f"the function for headers failed: {type(error).__name__}"
                raise FlagFileError(self.name, reason) from None
        return lambda mark: self._look(headers, mark)

    def _look(self, headers: Mapping[str, str], mark: Any) -> Reading:
        if self._pause is not None and current().monotonic() < self._pause[0]:
            raise FlagFileError(self.name, self._pause[1])
        import tenacity

        end = current().monotonic() + self._timeout
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, LookError) and error.transient
            ),
            wait=_backoff,
            stop=lambda state: (
                state.attempt_number >= self._attempts
                or current().monotonic() + state.upcoming_sleep >= end
            ),
            sleep=lambda pause: current().sleep(pause),
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    left = self._attempts - attempt.retry_state.attempt_number + 1
                    share = (end - current().monotonic()) / left
                    made = self._ask(headers, mark, Deadline(share, self._timeout))
        except LookError as error:
            if error.wait:
                self._pause = current().monotonic() + error.wait, error.reason
            raise FlagFileError(self.name, error.reason) from None
        self._pause = None
        return made

    def _ask(self, headers: Mapping[str, str], mark: Any, deadline: Deadline) -> Reading:
        """Ask once, following redirects."""
        target = self._target
        for _ in range(_MAX_REDIRECTS + 1):
            answer = get(
                target,
                self._request(target, headers, mark),
                deadline=deadline,
                max_bytes=self._max_bytes,
            )
            if answer.status == 304 and mark:
                return Reading(None, mark)
            if answer.status == 200:
                return Reading(answer.body, _mark(answer))
            target = self._follow(target, answer)
        raise LookError(f"more than {_MAX_REDIRECTS} redirects", transient=False)

    def _request(self, target: Target, headers: Mapping[str, str], mark: Any) -> dict[str, str]:
        made = {"Host": target.authority, "Accept": "application/json, */*;q=0.1"}
        made |= {"Accept-Encoding": "gzip", "User-Agent": "mlkit", "Connection": "close"}
        etag, modified = mark or ("", "")
        if etag:
            made["If-None-Match"] = etag
        if modified:
            made["If-Modified-Since"] = modified
        if target.origin == self._target.origin:  # else it is told to somebody else
            if self._target.user is not None:
                user = ":".join(self._target.user).encode()
                made["Authorization"] = f"Basic {b64encode(user).decode()}"
            made |= headers
        return made

    def _follow(self, target: Target, answer: Answer) -> Target:
        """Return where a redirect leads: never from https to http, and never where the URL itself might not be."""
        if answer.status not in {301, 302, 303, 307, 308}:
            raise LookError(f"the server answered HTTP {answer.status}", transient=False)
        try:
            onward = target.redirected(answer.headers["location"])
        except (ValueError, KeyError):
            raise LookError("a redirect leads to no URL", transient=False) from None
        if onward.scheme == "http":
            if target.scheme == "https":
                raise LookError("a redirect leads from https to http", transient=False)
            if not (onward.loopback or self._insecure):
                raise LookError("a redirect leads to plain http elsewhere", transient=False)
        return onward

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "timeout": self._timeout,
            "attempts": self._attempts,
            "max_bytes": self._max_bytes,
            "insecure": self._insecure,
        }
        return _again, (self._target.url, self._headers, options)


def _again(url: str, headers: Headers, options: dict[str, Any]) -> Url:
    return Url(url, headers, **options)


def _target(url: object, *, insecure: bool) -> Target:
    if not isinstance(url, str):
        raise ConfigurationError(f"{_CALL}(url)", type(url).__name__, "a text")
    try:
        target = Target(url)
    except ValueError as error:
        # The URL is not shown: it may hold a password.
        scheme = url.partition(":")[0] if url[:8].lower().startswith("http") else ""
        shown = f"{scheme}:..." if scheme else "another text"
        raise ConfigurationError(
            f"{_CALL}(url)", shown, "a URL such as 'https://host/flags.json'", hint=str(error)
        ) from None
    if target.scheme == "http" and not target.loopback and not insecure:
        raise ConfigurationError(
            f"{_CALL}(url)",
            target.name,
            "https, or a server on this machine",
            hint="plain http lets anybody on the way change the flags; insecure=True takes it all the same",
        )
    return target


def _checked(headers: object) -> dict[str, str]:
    """Return headers that can be sent.

    Raises:
        ConfigurationError: If they are not; no value is shown.
    """
    from collections.abc import Mapping

    wanted = "a mapping of names to texts that fit one line, or a function that returns one"
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"{_CALL}(headers=...)", type(headers).__name__, wanted)
    for name, value in headers.items():
        texts = isinstance(name, str) and isinstance(value, str)
        if not texts or not (name + value).isprintable() or not name.isascii() or ":" in name:
            raise ConfigurationError(f"{_CALL}(headers=...)", f"{name!s:.40}: ...", wanted)
    return dict(headers)


def _mark(answer: Answer) -> tuple[str, str] | None:
    """Return what the server tells this state of the document by."""
    made = tuple(
        text if text.isascii() and text.isprintable() and len(text) <= _MAX_MARK else ""
        for text in (answer.headers.get("etag", ""), answer.headers.get("last-modified", ""))
    )
    return (made[0], made[1]) if any(made) else None


def _backoff(state: Any) -> float:
    """Return the seconds until the next attempt: what the server asks for, else longer each time."""
    error = state.outcome.exception()
    if isinstance(error, LookError) and error.wait is not None:
        return error.wait
    return float(min(2.0, 0.1 * 2**state.attempt_number))
