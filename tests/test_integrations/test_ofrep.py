"""The official OFREP client drives the application through a real server; hostile requests get a status, never a crash."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from mlkit.errors import ConfigurationError, RateLimitedError
from mlkit.flags import Flags
from mlkit.integrations.ofrep import app, evaluate, evaluate_all

ONE, ALL = "/ofrep/v1/evaluate/flags/{}", "/ofrep/v1/evaluate/flags"


def flag(default, variants, **more):
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, **more}


DOCUMENT = {
    "metadata": {"set": "s"},
    "flags": {
        "bool": flag("on", {"on": True, "off": False}, metadata={"owner": "ann"}),
        "str": flag("hi", {"hi": "hi"}),
        "int": flag("ten", {"ten": 10}),
        "float": flag("half", {"half": 0.5, "ten": 10.0}),
        "object": flag("some", {"some": {"a": [1, {"b": None}]}}),
        "list": flag("some", {"some": [1, 2]}),
        "zero": flag("zero", {"zero": 0}),
        "disabled": flag("on", {"on": True}, state="DISABLED"),
        "open": flag(None, {"on": True}),
        "broken": flag("on", {"on": True}, targeting={"nope": []}),
        "missing": flag("on", {"on": True}, targeting={"if": [True, "gone"]}),
        "plan": flag("free", {"free": "f", "pro": "p"}, targeting={"if": [{"==": [{"var": "plan"}, "pro"]}, "pro"]}),
        "unit": flag("no", {"no": "no", "yes": "yes"}, targeting={"if": [{"==": [{"var": "targetingKey"}, "user-7"]}, "yes"]}),
        "a/b c?": flag("on", {"on": True}),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def serve():
    """Return a function that serves an application on a free port and gives its URL."""
    import uvicorn

    stops = []

    def start(application):
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        while not server.started:
            time.sleep(0.002)

        def stop():
            server.should_exit = True
            thread.join()
            listening.close()

        stops.append(stop)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="module")
def url(serve):
    return serve(app(Flags.from_dict(DOCUMENT)))


@pytest.fixture
def client(url):
    provider = OFREPProvider(url)
    api.set_provider_and_wait(provider)
    yield api.get_client()
    provider.session.close()
    api.shutdown()
    api.clear_providers()


def request(application, path, body=b"{}", method="POST", chunks=None, **headers):
    """Send one request to an application and return the status, the JSON of the body and the headers."""

    async def stream():
        for chunk in chunks:
            yield chunk

    async def send():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            content = body if chunks is None else stream()
            return await client.request(method, path, content=content, headers=names)

    answer = asyncio.run(send())
    return answer.status_code, answer.json() if answer.content else None, answer.headers


@pytest.mark.parametrize(
    ("kind", "key", "default", "value", "variant"),
    [
        ("boolean", "bool", False, True, "on"),
        ("string", "str", "", "hi", "hi"),
        ("integer", "int", 1, 10, "ten"),
        ("integer", "zero", 1, 0, "zero"),
        ("float", "float", 0.1, 0.5, "half"),
        ("object", "object", {}, {"a": [1, {"b": None}]}, "some"),
        ("object", "list", {}, [1, 2], "some"),
    ],
)
def test_the_official_client_gets_values(client, kind, key, default, value, variant):  # noqa: PLR0917
    details = getattr(client, f"get_{kind}_details")(key, default)
    assert (details.value, details.variant, details.reason) == (value, variant, Reason.STATIC)
    assert details.error_code is None
    assert details.flag_metadata["set"] == "s"


def test_the_official_client_sends_the_context(client):
    pro = EvaluationContext("user-7", {"plan": "pro", "nested": {"a": [1]}})
    assert client.get_string_details("plan", "", pro).reason == Reason.TARGETING_MATCH
    assert client.get_string_value("plan", "", pro) == "p"
    assert client.get_string_value("unit", "", pro) == "yes"
    assert client.get_string_details("unit", "").reason == Reason.DEFAULT
    assert client.get_boolean_details("bool", False).flag_metadata == {"set": "s", "owner": "ann"}


def test_the_official_client_gets_errors(client):
    def code(key):
        details = client.get_boolean_details(key, False)
        assert (details.value, details.reason) == (False, Reason.ERROR)
        return details.error_code

    assert code("gone") is ErrorCode.FLAG_NOT_FOUND
    assert code("broken") is ErrorCode.PARSE_ERROR
    assert code("missing") is ErrorCode.GENERAL
    assert code("str") is ErrorCode.TYPE_MISMATCH


@pytest.mark.parametrize(
    ("key", "reason"), [("disabled", Reason.DISABLED), ("open", Reason.DEFAULT)]
)
def test_the_official_client_falls_back_to_the_code(client, key, reason):
    for default in (True, False):
        details = client.get_boolean_details(key, default)
        assert (details.value, details.reason, details.error_code) == (default, reason, None)


def test_the_official_client_respects_a_rate_limit_and_a_missing_token(serve):
    def admit(token):
        if token == "busy":
            raise RateLimitedError("flags", "too many", retry_after=29.2)
        return token == "good"

    url = serve(app(Flags.from_dict(DOCUMENT), admit=admit))
    try:
        for token, error in (
            ("good", None),
            ("bad", "unauthorized"),
            ("busy", "Rate limited, retry after: 30"),
        ):
            provider = OFREPProvider(
                url, headers_factory=lambda token=token: {"Authorization": f"Bearer {token}"}
            )
            api.set_provider_and_wait(provider)
            details = api.get_client().get_boolean_details("bool", False)
            assert details.error_message == error
            provider.session.close()
        assert (
            api.get_client()
            .get_boolean_details("bool", False)
            .error_message.startswith("OFREP evaluation paused")
        )
    finally:
        api.shutdown()
        api.clear_providers()


def test_all_flags_at_once():
    application = app(Flags.from_dict(DOCUMENT))
    body = json.dumps({"context": {"targetingKey": "user-7", "plan": "pro"}})
    status, answer, headers = request(application, ALL, body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    flags = {one["key"]: one for one in answer["flags"]}
    assert list(flags) == sorted(DOCUMENT["flags"])
    assert answer["metadata"] == {"set": "s"}
    assert flags["plan"] == {
        "key": "plan",
        "reason": "TARGETING_MATCH",
        "variant": "pro",
        "metadata": {"set": "s"},
        "value": "p",
    }
    assert "value" not in flags["disabled"]
    assert flags["broken"]["errorCode"] == "PARSE_ERROR"
    for key, one in flags.items():
        if "errorCode" not in one:
            assert (
                request(application, ONE.format("a%2Fb%20c%3F" if "/" in key else key), body)[1]
                == one
            )


def test_an_answer_that_is_known_is_not_sent_again():
    flags = Flags.from_dict(DOCUMENT)
    application = app(flags)
    _, _, headers = request(application, ALL)
    tag = headers["etag"]
    for asked in (tag, f'"x", W/{tag}', "*"):
        status, answer, again = request(application, ALL, If_None_Match=asked)
        assert (status, answer, again["etag"]) == (304, None, tag)
    assert request(application, ALL, If_None_Match='"x"')[0] == 200
    other = json.dumps({"context": {"plan": "pro"}})
    assert request(application, ALL, other, If_None_Match=tag)[0] == 200
    flags.replace({"flags": {}})
    status, answer, _ = request(application, ALL, If_None_Match=tag)
    assert (status, answer) == (200, {"flags": [], "metadata": {}})


def test_a_browser_may_ask_from_another_origin():
    from starlette.middleware.cors import CORSMiddleware

    application = CORSMiddleware(
        app(Flags.from_dict(DOCUMENT), admit=["t"]),
        allow_origins=["https://shop.example"],
        allow_methods=["POST"],
        allow_headers=["Authorization", "Content-Type", "If-None-Match"],
        expose_headers=["ETag"],
    )

    async def asked():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://flags") as http:
            origin = {"Origin": "https://shop.example"}
            wanted = "authorization,content-type,if-none-match"
            asks = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": wanted,
            }
            first = await http.options(ALL, headers=origin | asks)
            then = await http.post(ALL, json={}, headers=origin | {"Authorization": "Bearer t"})
            return first, then

    before, answer = asyncio.run(asked())
    assert (before.status_code, answer.status_code) == (200, 200)  # no token is sent with the first
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-expose-headers"] == "ETag"
    assert answer.headers["etag"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "PARSE_ERROR"),
        (b"\xff", "PARSE_ERROR"),
        (b"[]", "PARSE_ERROR"),
        (b"null", "PARSE_ERROR"),
        (b"NaN", "PARSE_ERROR"),
        (b"[" * 100_000, "PARSE_ERROR"),
        (b'{"context": ' * 50_000, "PARSE_ERROR"),
        (b'{"context": 3}', "INVALID_CONTEXT"),
        (b'{"context": []}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": {}}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": true}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": 1.5}}', "INVALID_CONTEXT"),
    ],
    ids=str,
)
def test_a_body_that_is_none(body, code):
    application = app(Flags.from_dict(DOCUMENT))
    for path, names in ((ONE.format("bool"), {"key": "bool"}), (ALL, {})):
        status, answer, _ = request(application, path, body)
        assert status == 400
        assert answer.pop("errorDetails")
        assert answer == {**names, "errorCode": code}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{}",
        b'{"context": null}',
        b'{"context": {}}',
        b'{"context": {"targetingKey": null}, "more": 1}',
        b'{"context": {"targetingKey": 7}}',
    ],
)
def test_a_body_may_say_little(body):
    application = app(Flags.from_dict(DOCUMENT))
    assert request(application, ONE.format("bool"), body)[1]["value"] is True


@pytest.mark.parametrize(
    "key",
    [
        "gone",
        "a" * 5000,
        "%00",
        "%ff%fe",
        "..%2f..",
        "%F0%9F%98%80",
        "a/b",
        "a%0Ab",
        "%0A",
        "a%0D%0A",
    ],
)
def test_a_key_that_is_not_there(key):
    status, answer, _ = request(app(Flags.from_dict(DOCUMENT)), ONE.format(key))
    assert (status, answer["errorCode"]) == (404, "FLAG_NOT_FOUND")
    assert set(answer) == {"key", "errorCode", "errorDetails"}


def test_a_key_with_a_line_break():
    document = {"flags": {"a\nb\n": flag("on", {"on": True})}}
    status, answer, _ = request(app(Flags.from_dict(document)), ONE.format("a%0Ab%0A"))
    assert (status, answer["key"], answer["value"]) == (200, "a\nb\n", True)


def test_what_the_server_can_do():
    application = app(Flags.in_memory(), admit=["token"])

    async def send(**headers):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application), base_url="http://test"
        ) as client:
            return await client.get("/ofrep/v1/configuration", headers=headers)

    assert asyncio.run(send()).status_code == 401
    made = asyncio.run(send(Authorization="Bearer token"))
    assert made.json()["name"] == "mlkit"
    assert made.json()["capabilities"]["caching"] == {"enabled": False}
    again = {"Authorization": "Bearer token", "If-None-Match": made.headers["etag"]}
    again = asyncio.run(send(**again))
    assert (again.status_code, again.content) == (304, b"")


def test_a_large_body_is_not_read_to_its_end():
    application = app(Flags.from_dict(DOCUMENT), max_bytes=100)
    assert request(application, ONE.format("bool"), b'{"context": {}}' + b" " * 85)[0] == 200
    status, answer, _ = request(application, ONE.format("bool"), b'{"context": {}}' + b" " * 86)
    assert (status, list(answer)) == (413, ["errorDetails"])
    assert request(application, ALL, chunks=[b" " * 60, b" " * 60])[0] == 413


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_refused(method):
    application = app(Flags.from_dict(DOCUMENT))
    status, answer, headers = request(application, ALL, method=method)
    assert (status, headers["allow"], headers["content-type"]) == (405, "POST", "application/json")
    assert answer == {"errorDetails": "this path answers POST only"}


@pytest.mark.parametrize("path", ["/", "/ofrep/v1", "/ofrep/v2/evaluate/flags", ALL + "x"])
def test_a_path_that_is_not_there_is_told_in_json(path):
    status, answer, headers = request(app(Flags.from_dict(DOCUMENT)), path)
    assert (status, headers["content-type"]) == (404, "application/json")
    assert answer == {"errorDetails": "there is nothing at this path"}


def test_raw_rubbish_leaves_the_server_alive(serve, url):
    host, port = url.removeprefix("http://").split(":")
    for rubbish in (
        b"\x00\xff\x16",
        b"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{",
        b"POST /ofrep/v1/evaluate/flags/\xff\xfe HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(rubbish)
    assert httpx.post(url + ONE.format("bool"), json={}).json()["value"] is True


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_tokens(scheme):
    application = app(Flags.from_dict(DOCUMENT), admit=["one", "two"])
    for token, status in (("one", 200), ("two", 200), ("on", 401), ("one2", 401), ("", 401)):
        got, answer, headers = request(application, ALL, Authorization=f"{scheme} {token}".strip())
        assert got == status
        assert request(application, ALL, X_API_Key=token)[0] == status
        if status == 401:
            assert headers["www-authenticate"] == "Bearer"
            assert list(answer) == ["errorDetails"]
            assert "one" not in answer["errorDetails"].split()
    assert request(application, ALL)[0] == 401
    assert request(application, ALL, Authorization="Basic one")[0] == 401


def test_admission_by_a_function():
    asked = []

    async def admit(token):
        asked.append(token)
        if token == "known":
            raise PermissionError
        if token == "busy":
            raise RateLimitedError("flags", "too many")
        if token == "bug":
            raise ZeroDivisionError("secret")
        return token == "good"

    application = app(Flags.from_dict(DOCUMENT), admit=admit)
    assert request(application, ALL, X_API_Key="good")[0] == 200
    assert request(application, ALL, X_API_Key="known")[0] == 403
    status, _, headers = request(application, ALL, X_API_Key="busy")
    assert (status, headers["retry-after"]) == (429, "1")
    status, answer, _ = request(application, ALL, X_API_Key="bug")
    assert (status, answer) == (500, {"errorDetails": "internal error: ZeroDivisionError"})
    assert request(application, ALL, b"{" * 999)[0] == 401  # who may not ask is not read either
    assert asked[-1] == ""


@pytest.mark.parametrize(
    "admit", ["token", b"token", [], [""], [3], 3, {"a": 1} and [None]], ids=str
)
def test_admission_is_checked_when_the_application_is_made(admit):
    with pytest.raises(ConfigurationError, match="admit"):
        app(Flags.in_memory(), admit=admit)


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_bytes": True}], ids=str)
def test_other_arguments_are_checked(options):
    with pytest.raises(ConfigurationError, match="max_bytes"):
        app(Flags.in_memory(), **options)
    for wrong in (lambda: app({}), lambda: evaluate({}, "x"), lambda: evaluate_all(None)):
        with pytest.raises(ConfigurationError, match="flags"):
            wrong()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
FLAGS = Flags.from_dict(DOCUMENT)
SERVED = app(FLAGS)


@given(
    key=ANYTHING | st.sampled_from(sorted(DOCUMENT["flags"])),
    context=ANYTHING | st.dictionaries(st.text() | st.just("targetingKey"), ANYTHING),
)
def test_no_key_and_no_context_raises(key, context):
    for answer in (evaluate(FLAGS, key, context), evaluate_all(FLAGS, context)):
        assert isinstance(answer, dict)
        assert answer.get("errorCode") in {
            None,
            "FLAG_NOT_FOUND",
            "PARSE_ERROR",
            "INVALID_CONTEXT",
            "GENERAL",
        }


@given(
    body=st.binary()
    | st.builds(
        lambda value: json.dumps({"context": value}).encode(),
        st.dictionaries(
            st.text() | st.just("targetingKey"),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=5,
            ),
        ),
    )
)
@settings(max_examples=20)
def test_no_body_gets_another_status(body):
    for path in (ALL, ONE.format("plan")):
        status, answer, _ = request(SERVED, path, body)
        assert status in {200, 400}
        assert (status == 400) == ("errorCode" in answer)


def test_an_answer_is_the_callers_own():
    first = evaluate(FLAGS, "object")
    first["value"]["a"].clear()
    first["metadata"].clear()
    assert evaluate(FLAGS, "object")["value"] == {"a": [1, {"b": None}]}
    assert evaluate(FLAGS, "object")["metadata"] == {"set": "s"}


def test_all_answers_are_of_one_snapshot():
    def document(n):
        return {"metadata": {"n": n}, "flags": {key: flag("v", {"v": n}) for key in "abcdefgh"}}

    flags, mixed, done = Flags.from_dict(document(0)), [], threading.Event()

    def read():
        while not done.is_set():
            answer = evaluate_all(flags)
            seen = {one["value"] for one in answer["flags"]} | {answer["metadata"]["n"]}
            if len(seen) > 1:
                mixed.append(seen)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 200):
        flags.replace(document(n))
    done.set()
    for thread in threads:
        thread.join()
    assert not mixed
