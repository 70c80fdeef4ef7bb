"""`mlkit.flags` behind OpenFeature's remote evaluation protocol (OFREP), for programs in other languages and on other hosts.

`evaluate` and `evaluate_all` are the protocol's two answers as data; `app` serves them and needs Starlette:
`pip install 'mlkit-blocks[serving]'`.
"""

from __future__ import annotations

import inspect
import math
import re
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NamedTuple, final
from weakref import WeakKeyDictionary

from mlkit._arguments import whole
from mlkit._digest import digest_bytes
from mlkit._optional import require
from mlkit.errors import ConfigurationError, RejectedError
from mlkit.flags import Flags
from mlkit.flags._evaluator import Evaluator, thaw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    Admit = Callable[[str], bool | Awaitable[bool]]

__all__ = ["app", "evaluate", "evaluate_all"]

_MAX_BYTES = 2**20
_JSON = "application/json"
_evaluators: WeakKeyDictionary[Flags, Evaluator] = WeakKeyDictionary()


def evaluate(flags: Flags, key: str, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the protocol's answer for one flag.

    Never raises for whatever *key* and *context* are. Success has `key`, `reason`, `variant`, `metadata` and `value`; a
    `value` is missing where the flag leaves it to the caller (it is disabled, or names no variant), and the `variant`
    is then empty. Failure has `key`, `errorCode` and `errorDetails`.

    Args:
        flags: The flags.
        key: The flag.
        context: Whom to decide for (`"targetingKey"`) and what rules may ask.

    Examples:
        >>> answer = evaluate(Flags.in_memory({"ranker": "v2"}), "ranker", {"targetingKey": "user-7"})
        >>> answer["value"], answer["variant"], answer["reason"]
        ('v2', 'v2', 'STATIC')
        >>> evaluate(Flags.in_memory(), "ranker")["errorCode"]
        'FLAG_NOT_FOUND'
    """
    return _answer(_evaluator(flags), key, {} if context is None else context)


def evaluate_all(flags: Flags, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the protocol's answer for all flags: `flags`, one answer each in the order of their keys, and `metadata`.

    All are of one snapshot. A flag that fails is one answer with an `errorCode`; a *context* that cannot be used at all is
    an `errorCode` in place of `flags`.

    Args:
        flags: The flags.
        context: As for `evaluate`.

    Examples:
        >>> [answer["value"] for answer in evaluate_all(Flags.in_memory({"a": 1, "b": 2}))["flags"]]
        [1, 2]
    """
    evaluator = _evaluator(flags)
    context = {} if context is None else context
    wrong = _wrong(context)
    if wrong:
        return {"errorCode": "INVALID_CONTEXT", "errorDetails": wrong}
    with flags.snapshot() as snapshot:
        keys = sorted({*snapshot.definitions, *snapshot.broken})
        answers = [_answer(evaluator, key, context) for key in keys]
        return {"flags": answers, "metadata": dict(snapshot.metadata)}


def app(
    flags: Flags,
    *,
    admit: Callable[[str], bool | Awaitable[bool]] | Collection[str] | None = None,
    max_bytes: int = _MAX_BYTES,
) -> Starlette:
    """Return an ASGI application that serves `POST /ofrep/v1/evaluate/flags/{key}` and `POST /ofrep/v1/evaluate/flags`.

    The answer for all flags has an `ETag`, and is 304 for a request whose `If-None-Match` names it; so has
    `GET /ofrep/v1/configuration`, which clients may ask for what the server can do. Nothing that a
    request holds makes it fail otherwise than with a status of the protocol. Serve it with any ASGI server, or mount it
    into an application. It does no TLS and, where browsers ask from other origins, needs Starlette's `CORSMiddleware`.

    Args:
        flags: The flags.
        admit: Whom to answer. Accepted tokens, compared in constant time; or a function, or coroutine function, of a
            request's token that says whether to answer. The token is that of `Authorization: Bearer` or `X-API-Key`,
            and empty if there is none. False is 401, a `PermissionError` 403, and a `RejectedError`, such as a rate
            limiter raises, 429 with its `retry_after`. None answers everybody. A function must not block.
        max_bytes: A request with a longer body is 413.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If Starlette is not installed.

    Examples:
        >>> application = app(Flags.in_memory({"ranker": "v2"}), admit=["token-1", "token-2"])
        >>> [route.path for route in application.routes]
        ['/ofrep/v1/evaluate/flags', '/ofrep/v1/evaluate/flags/{key:path}', '/ofrep/v1/configuration']
    """
    if not isinstance(flags, Flags):
        raise ConfigurationError("ofrep.app(flags)", flags, "flags")
    applications = require("starlette.applications", extra="serving", feature="ofrep.app")
    routing = require("starlette.routing", extra="serving", feature="ofrep.app")
    place = "/ofrep/v1/evaluate/flags"
    server = _Server(flags, _admission(admit), whole("ofrep.app(max_bytes=...)", max_bytes, low=1))
    one = routing.Route(f"{place}/{{key:path}}", server.answer_one, methods=["POST"])
    # A key may hold a line break, which a path of Starlette does not match.
    one.path_regex = re.compile(one.path_regex.pattern, re.DOTALL)
    about = routing.Route("/ofrep/v1/configuration", server.configuration, methods=["GET"])
    every = routing.Route(place, server.answer_all, methods=["POST"])
    made: Starlette = applications.Starlette(
        routes=[every, one, about], exception_handlers={404: _nothing_there, 405: _nothing_there}
    )
    return made


# What clients that ask first are told: they may poll, and must not keep what rules may answer otherwise a moment later.
_CONFIGURATION = {
    "name": "mlkit",
    "capabilities": {
        "cacheInvalidation": {"polling": {"enabled": True, "minPollingIntervalMs": 1000}},
        "flagEvaluation": {"supportedTypes": ["boolean", "string", "int", "float", "object"]},
        "caching": {"enabled": False},
    },
}


# What a failure of one flag is as a status; the protocol has no others.
_STATUS = {"FLAG_NOT_FOUND": 404}


class _RefusedError(Exception):
    """A request that gets no evaluation.

    Args:
        status: The status.
        code: The protocol's error code, if it has one for that.
        details: What is wrong.
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, code: str | None, details: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(details)
        self.status, self.code, self.details = status, code, details
        self.headers = headers or {}


class _Reply(NamedTuple):
    """An answer to be sent."""

    status: int
    body: Any
    headers: dict[str, str]


@final
class _Server:
    """What is behind the routes."""

    def __init__(self, flags: Flags, admit: Admit | None, max_bytes: int) -> None:
        self._flags, self._admit, self._max_bytes = flags, admit, max_bytes

    async def answer_one(self, request: Request) -> Response:
        key = request.path_params["key"]

        async def reply() -> _Reply:
            answer = evaluate(self._flags, key, await self._context(request))
            code = answer.get("errorCode")
            return _Reply(200 if code is None else _STATUS.get(code, 400), answer, {})

        return await _send(reply, {"key": key})

    async def answer_all(self, request: Request) -> Response:
        async def reply() -> _Reply:
            answer = evaluate_all(self._flags, await self._context(request))
            return _Reply(400, answer, {}) if "errorCode" in answer else _tagged(request, answer)

        return await _send(reply, {})

    async def configuration(self, request: Request) -> Response:
        async def reply() -> _Reply:
            await self._check(request)
            return _tagged(request, _CONFIGURATION)

        return await _send(reply, {})

    async def _context(self, request: Request) -> Any:
        """Return the context of a request that may be answered.

        Raises:
            _RefusedError: If it may not, or has none that can be read.
        """
        await self._check(request)
        from msgspec import MsgspecError
        from msgspec.json import decode

        body = await self._body(request)
        try:
            document = decode(body) if body.strip() else {}
        except (MsgspecError, ValueError, RecursionError) as error:
            reason = f"the body is not JSON that can be read: {type(error).__name__}"
            raise _RefusedError(400, "PARSE_ERROR", reason) from None
        if not isinstance(document, dict):
            raise _RefusedError(400, "PARSE_ERROR", "the body is no JSON object")
        context = document.get("context")
        context = {} if context is None else context
        wrong = _wrong(context)
        if wrong:
            raise _RefusedError(400, "INVALID_CONTEXT", wrong)
        return context

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_bytes:
                reason = f"the body has more than {self._max_bytes} bytes"
                raise _RefusedError(413, None, reason, {"Connection": "close"})
        return bytes(body)

    async def _check(self, request: Request) -> None:
        if self._admit is None:
            return
        try:
            allowed = self._admit(_token(request))
            if inspect.isawaitable(allowed):
                allowed = await allowed
        except PermissionError:
            raise _RefusedError(403, None, "this is not allowed") from None
        except RejectedError as error:
            after = error.retry_after if error.retry_after is not None else 1.0
            pause = str(max(1, math.ceil(min(after, 86_400.0))))
            header = {"Retry-After": pause}
            raise _RefusedError(429, None, "too many requests", header) from None
        if not allowed:
            header = {"WWW-Authenticate": "Bearer"}
            raise _RefusedError(401, None, "a valid token is needed", header)


async def _nothing_there(request: Request, error: Exception) -> Response:
    """Answer a path or a method that there is not, with JSON as everywhere."""
    from starlette.exceptions import HTTPException

    del request  # what it asked for is not repeated to it
    status, headers, details = 404, {}, "there is nothing at this path"
    if isinstance(error, HTTPException) and error.status_code == 405:
        status, headers = 405, dict(error.headers or {})
        details = f"this path answers {headers.get('Allow', 'another method')} only"

    async def reply() -> _Reply:
        raise _RefusedError(status, None, details, headers)

    return await _send(reply, {})


def _tagged(request: Request, answer: dict[str, Any]) -> _Reply:
    """Return an answer with its tag, or that the client has it."""
    from msgspec.json import encode

    # Of the answer, not of the flags: rules may ask the time.
    tag = f'"{digest_bytes(encode(answer)).rpartition(":")[2][:32]}"'
    asked = request.headers.get("if-none-match", "")
    known = {one.strip().removeprefix("W/") for one in asked.split(",")}
    if asked.strip() == "*" or tag in known:
        return _Reply(304, None, {"ETag": tag})
    return _Reply(200, answer, {"ETag": tag})


async def _send(reply: Callable[[], Awaitable[_Reply]], names: dict[str, str]) -> Response:
    from msgspec.json import encode
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response

    try:
        status, body, headers = await reply()
        content = b"" if body is None else encode(body)
    except _RefusedError as refused:
        status, headers = refused.status, refused.headers
        known = {} if refused.code is None else {**names, "errorCode": refused.code}
        content = encode({**known, "errorDetails": refused.details})
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    except Exception as error:  # noqa: BLE001 - a request must get a status of the protocol; not the text, which may quote it
        status, headers = 500, {}
        content = encode({"errorDetails": f"internal error: {type(error).__name__}"})
    return Response(content, status, headers, media_type=_JSON if content else None)


def _answer(evaluator: Evaluator, key: Any, context: Any) -> dict[str, Any]:
    wrong = _wrong(context)
    if wrong:
        return {"key": str(key), "errorCode": "INVALID_CONTEXT", "errorDetails": wrong}
    details = evaluator.details(key, "any", context.get("targetingKey"), context)
    if details.error is not None:
        return {"key": str(key), "errorCode": details.error, "errorDetails": details.message}
    # Clients in use want a variant with every answer.
    made = {
        "key": key,
        "reason": details.reason,
        "variant": details.variant or "",
        "metadata": dict(details.metadata),
    }
    return made if details.value is None else {**made, "value": thaw(details.value)}


def _wrong(context: Any) -> str:
    """Return what is wrong with a context, empty if nothing is."""
    from collections.abc import Mapping

    if not isinstance(context, Mapping):
        return f"the context is no object but a {type(context).__name__}"
    unit = context.get("targetingKey")
    if unit is None or (isinstance(unit, (str, int)) and not isinstance(unit, bool)):
        return ""
    return f"the targetingKey is no text but a {type(unit).__name__}"


def _evaluator(flags: Flags) -> Evaluator:
    if not isinstance(flags, Flags):
        raise ConfigurationError("ofrep.evaluate(flags)", flags, "flags")
    found = _evaluators.get(flags)
    if found is None:
        found = _evaluators[flags] = Evaluator(flags)
    return found


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key", "")


def _admission(admit: Any) -> Admit | None:
    from collections.abc import Collection

    if admit is None or callable(admit):
        given: Admit | None = admit
        return given
    if isinstance(admit, (str, bytes)) or not isinstance(admit, Collection) or not admit:
        raise ConfigurationError(
            "ofrep.app(admit=...)",
            type(admit).__name__,
            "tokens, a function, or None for everybody",
        )
    if not all(isinstance(token, str) and token for token in admit):
        raise ConfigurationError("ofrep.app(admit=...)", "an empty token", "non-empty texts")
    # By digest, so that neither the time nor the number of comparisons tells what was near.
    accepted = [digest_bytes(token.encode()) for token in admit]

    def known(token: str) -> bool:
        mine = digest_bytes(token.encode("utf-8", "surrogatepass"))
        return sum(compare_digest(mine, one) for one in accepted) > 0

    return known
