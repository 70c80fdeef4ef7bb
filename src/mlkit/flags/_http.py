"""One HTTP exchange that ends in time: a bound on all of it, and on what it may give."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import zlib
from contextlib import closing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, final
from urllib.parse import unquote, urljoin, urlsplit

from mlkit._clock import current

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Deadline", "LookError", "Target", "get"]

_CHUNK = 65_536
# Answers after which the same request may do better in a moment.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 3600.0


class LookError(Exception):
    """An exchange that gave nothing.

    Args:
        reason: What happened, without a word that the server chose.
        transient: Whether trying again may help.
        wait: How many seconds the server asks to be left alone, if it does.
    """

    def __init__(self, reason: str, *, transient: bool, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.wait = reason, transient, wait


@final
class Target:
    """A parsed `http` or `https` URL.

    Args:
        url: The URL.

    Raises:
        ValueError: If it is none; the text of the error does not show it.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("it cannot be parsed") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("it does not begin with https:// and a host")
        if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            raise ValueError("it has characters that must be percent-encoded")
        self.url, self.scheme, self.host = url, parts.scheme, parts.hostname
        self.port: int = (443 if parts.scheme == "https" else 80) if port is None else port
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        place = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = place if port is None else f"{place}:{port}"
        self.user: tuple[str, str] | None = None
        if parts.username is not None or parts.password is not None:
            self.user = unquote(parts.username or ""), unquote(parts.password or "")
        # A user, a password, a query and a fragment may be secrets.
        hidden = "?..." if parts.query or parts.fragment else ""
        self.name = f"{self.scheme}://{self.authority}{parts.path}{hidden}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """To whom what is meant for one server may be told."""
        return self.scheme, self.host, self.port

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        from ipaddress import ip_address

        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def redirected(self, location: str) -> Target:
        """Return where a redirect leads.

        Raises:
            ValueError: If that is no URL to be followed.
        """
        return Target(urljoin(self.url, location))


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: 200, 304 or a redirect.
        headers: Its headers, by lower-case name.
        body: The body, unpacked; empty unless the status is 200.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(
    target: Target, headers: Mapping[str, str], *, deadline: Deadline, max_bytes: int
) -> Answer:
    """Get a resource. Nothing is followed and nothing tried again.

    Args:
        target: The resource.
        headers: Headers of the request.
        deadline: When all of it must have ended.
        max_bytes: A longer body is not read to its end.

    Raises:
        LookError: If there is no answer of the status 200, 304 or 3xx, whole and in time.
    """
    try:
        return _exchange(target, headers, deadline, max_bytes)
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate is not trusted: {error.verify_message}"
        raise LookError(reason, transient=False) from None
    except TimeoutError:
        reason = f"no whole answer within {deadline.allowed:.3g} s"
        raise LookError(reason, transient=True) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LookError(f"cannot be reached: {reason}", transient=True) from None
    except (http.client.HTTPException, zlib.error, ValueError) as error:
        # The text of these errors may quote the answer.
        reason = f"the answer is no HTTP that can be read ({type(error).__name__})"
        raise LookError(reason, transient=True) from None


def _exchange(
    target: Target, headers: Mapping[str, str], deadline: Deadline, max_bytes: int
) -> Answer:
    with closing(_connect(target, deadline)) as connected:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = _Timed(connected, deadline)
        connection.request("GET", target.path, headers=dict(headers))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.status == HTTPStatus.OK:
            return Answer(200, found, _body(response, max_bytes))
        if response.status == HTTPStatus.NOT_MODIFIED or "location" in found:
            return Answer(response.status, found, b"")
        raise _refusal(response.status, found)


def _connect(target: Target, deadline: Deadline) -> socket.socket:
    plain = _connect_plain(target, deadline)
    if target.scheme == "http":
        return plain
    try:
        plain.settimeout(deadline.left())
        return ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
    except OSError:
        plain.close()
        raise


def _connect_plain(target: Target, deadline: Deadline) -> socket.socket:
    """Connect to one of the host's addresses, each of which gets its share of the time that is left."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    for tried, (family, kind, protocol, _, address) in enumerate(found, start=1):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(deadline.left() / (len(found) - tried + 1))
            made.connect(address)
        except OSError:
            made.close()
            if tried == len(found):
                raise
        else:
            return made
    raise OSError("the host has no address")


def _refusal(status: int, headers: Mapping[str, str]) -> LookError:
    try:
        said = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = f"HTTP {status}"
    return LookError(
        f"the server answered {said}",
        transient=status in _TRANSIENT,
        wait=_wait(headers.get("retry-after")),
    )


def _wait(text: str | None) -> float | None:
    """Return the seconds that a `Retry-After` names, as a number or a date."""
    if text is None:
        return None
    if text.strip().isdecimal() and text.isascii():
        return min(float(text), _LONGEST_WAIT)
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, then - current().time()), _LONGEST_WAIT)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise LookError("the answer is packed in another way than gzip", transient=False)
    unpack = None if encoding == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    body, n_read = bytearray(), 0
    while chunk := response.read(_CHUNK):
        n_read += len(chunk)
        # Unpacked piece by piece: a small bomb must not become large before it is measured.
        body += chunk if unpack is None else unpack.decompress(chunk, max_bytes + 1 - len(body))
        if max(n_read, len(body)) > max_bytes:
            raise LookError(f"the answer has more than {max_bytes} bytes", transient=False)
    if response.length or (unpack is not None and not unpack.eof):
        raise LookError("the answer was cut off", transient=True)
    return bytes(body)


@final
class Deadline:
    """The time that is left for an exchange; what waits on a socket waits no longer.

    Args:
        timeout: Seconds.
        allowed: Of how many this is a part: what messages say was allowed.
    """

    def __init__(self, timeout: float, allowed: float) -> None:
        self._end = current().monotonic() + timeout
        self.allowed = allowed

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: If there are none.
        """
        left = self._end - current().monotonic()
        if left <= 0:
            raise TimeoutError
        return left


@final
class _Timed:
    """A socket as `http.client` uses it, each of whose operations gets the time that is left.

    The time-out of a socket alone bounds each wait: a server that sends a byte now and then could go on for ever.
    """

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(self._deadline.left())
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode
        return io.BufferedReader(_Stream(self._socket, self._deadline))

    def close(self) -> None:
        """Leave the socket open: `http.client` closes it before the body is read."""


@final
class _Stream(io.RawIOBase):
    """The reading side of a socket."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv_into(buffer)
