"""Which errors and answers are tried again, when, and how a server is heard."""

from __future__ import annotations

import asyncio
import pickle
import urllib.error

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import AllTiersFailedError, ConfigurationError, ResultRejectedError
from mlkit.resilience import (
    FALL,
    RAISE,
    RETRY,
    Budget,
    Policy,
    Retry,
    constant,
    fallback,
    tier,
    transient,
)
from mlkit.testing import virtual_time


def flaky(*errors, then="answer"):
    left = list(errors)

    def work():
        work.calls += 1
        if left:
            raise left.pop(0)
        return then

    work.calls = 0
    return work


class Pushed(ConnectionError):
    def __init__(self, retry_after):
        super().__init__("later")
        self.retry_after = retry_after


class Http(Exception):
    def __init__(self, status, **headers):
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


class TestVerdicts:
    def test_an_error_is_given_a_verdict(self):
        def on(error):
            return {"again": RETRY, "later": RETRY.after(7), "fall": FALL, "raise": RAISE}[
                str(error)
            ]

        retry = Retry(9, backoff=1)
        with virtual_time() as clock:
            work = flaky(ValueError("again"), ValueError("later"))
            assert Policy(retry=retry, on=on).call(work) == "answer"
            assert clock.sleeps == [1.0, 7.0]
            for word in ("fall", "raise"):
                work = flaky(ValueError(word))
                with pytest.raises(ValueError, match=word):
                    Policy(retry=retry, on=on).call(work)
                assert work.calls == 1

    def test_an_answer_is_given_a_verdict(self):
        answers = iter(["busy", "soon", "done"])
        verdict = {"busy": RETRY, "soon": RETRY.after(4), "done": None}.get
        with virtual_time() as clock:
            policy = Policy(retry=Retry(5, backoff=1), verdict=verdict)
            assert policy.call(lambda: next(answers)) == "done"
            assert clock.sleeps == [1.0, 4.0]

    @pytest.mark.parametrize("told", [FALL, RAISE, RETRY])
    def test_a_refused_answer_comes_out_as_an_error(self, told):
        calls = []
        with virtual_time(), pytest.raises(ResultRejectedError, match=told.name) as info:
            Policy(retry=3, verdict=lambda _: told).call(lambda: calls.append(1))
        assert len(calls) == (3 if told is RETRY else 1)
        assert pickle.loads(pickle.dumps(info.value)).verdict == told

    def test_raise_ends_a_fallback_and_fall_does_not(self):
        def wrong(x):
            raise ValueError("wrong")

        async def wrong_async(x):
            raise ValueError("wrong")

        async def asked(score):
            with virtual_time():
                return await score([1, 2])

        for fn, call in (
            (wrong, lambda score: score([1, 2])),
            (wrong_async, lambda s: asyncio.run(asked(s))),
        ):
            for retry in (None, 3):
                for told, rows in ((RAISE, False), (RAISE, True), (FALL, False), (FALL, True)):
                    first = tier(fn, policy=Policy(on=lambda _, told=told: told, retry=retry))
                    score = fallback(first, constant(0 if rows else "next"), per_row=rows)
                    if told is RAISE:
                        with pytest.raises(ValueError, match=r"^wrong$"):
                            call(score)
                    else:
                        assert call(score) == ([0, 0] if rows else "next")

    def test_verdicts_read_and_check(self):
        assert repr((RETRY, RETRY.after(1.5), FALL)) == "(RETRY, RETRY.after(1.5), FALL)"
        for wrong in (-1, float("nan"), "1", None):
            with pytest.raises(ConfigurationError, match=r"RETRY\.after"):
                RETRY.after(wrong)
        with pytest.raises(ConfigurationError, match="RETRY"):
            FALL.after(1)
        with pytest.raises(ConfigurationError, match=r"Policy\(verdict"):
            Policy(verdict=3)

    @pytest.mark.parametrize("told", [True, False, "retry", 0])
    def test_what_is_no_verdict_on_an_answer_is_a_mistake(self, told):
        calls = []
        policy = Policy(retry=3, on=Exception, verdict=lambda _: told)
        with pytest.raises(ConfigurationError, match=r"Policy\(verdict=...\) of .*RETRY"):
            policy.call(lambda: calls.append(1))
        with pytest.raises(ConfigurationError):
            fallback(tier(calls.append, policy=policy), constant(0))(1)
        assert calls == [1, 1]

    def test_a_list_of_types_is_refused_with_what_to_write(self):
        with pytest.raises(ConfigurationError, match=r"Policy\(on=...\).*as a tuple"):
            Policy(on=[ConnectionError])

    def test_nothing_that_on_returns_by_accident_is_a_retry(self):
        work = flaky(ConnectionError())
        with pytest.raises(ConnectionError):
            Policy(retry=3, on=lambda _: None).call(work)
        assert work.calls == 1


class TestPushback:
    @given(asked=st.floats(0, 60), backoff=st.floats(0, 60))
    def test_the_wait_is_at_least_what_was_asked_for(self, asked, backoff):
        with virtual_time() as clock:
            Policy(retry=Retry(2, backoff=backoff)).call(flaky(Pushed(asked)))
            assert sum(clock.sleeps) == max(asked, backoff)

    def test_asked_for_more_than_max_wait_it_gives_up(self):
        work = flaky(Pushed(3600))
        with virtual_time() as clock, pytest.raises(Pushed) as info:
            Policy(retry=Retry(3, max_wait=30)).call(work)
        assert (work.calls, clock.sleeps) == (1, [])
        assert "asked to wait 3.6e+03 s, more than max_wait" in info.value.__notes__[-1]

    def test_asked_for_more_than_the_deadline_it_gives_up_at_once(self):
        work = flaky(Pushed(10))
        with virtual_time() as clock, pytest.raises(Pushed):
            Policy(retry=3, deadline=5).call(work)
        assert (work.calls, clock.sleeps) == (1, [])

    @pytest.mark.parametrize("text", ["12", " 12 "])
    def test_the_header_in_seconds(self, text):
        with virtual_time() as clock:
            Policy(retry=Retry(2, backoff=0)).call(flaky(Http(503, **{"Retry-After": text})))
            assert clock.sleeps == [12.0]

    def test_the_header_as_a_date(self):
        from email.utils import formatdate

        with virtual_time() as clock:
            later = formatdate(clock.time() + 20, usegmt=True)
            Policy(retry=Retry(2, backoff=0)).call(flaky(Http(429, **{"Retry-After": later})))
            assert clock.sleeps == [20.0]
            past = formatdate(clock.time() - 20, usegmt=True)
            Policy(retry=Retry(2, backoff=1)).call(flaky(Http(429, **{"Retry-After": past})))
            assert clock.sleeps == [20.0, 1.0]

    @pytest.mark.parametrize(
        "text", ["soon", "", "-3", "1e400", "never", f"Mon, 01 Jan 2024 00:00:00 +{9:0<20}"]
    )
    def test_a_header_that_says_nothing_is_not_heard(self, text):
        with virtual_time() as clock:
            Policy(retry=Retry(2, backoff=1)).call(flaky(Http(503, **{"Retry-After": text})))
            assert clock.sleeps == [1.0]

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1, "3", True, None])
    def test_a_retry_after_that_is_no_number_is_not_heard(self, wrong):
        with virtual_time() as clock:
            Policy(retry=Retry(2, backoff=1)).call(flaky(Pushed(wrong)))
            assert clock.sleeps == [1.0]


class TestClients:
    """Real error classes where the client is here; none is imported by mlkit."""

    def test_requests(self):
        errors = pytest.importorskip("requests.exceptions")
        for kind in (
            "ConnectionError",
            "ConnectTimeout",
            "ReadTimeout",
            "ProxyError",
            "ChunkedEncodingError",
        ):
            assert transient(getattr(errors, kind)()), kind
        for kind in ("SSLError", "InvalidURL", "TooManyRedirects", "JSONDecodeError"):
            error = getattr(errors, kind)
            assert not transient(error("x", "", 0) if kind == "JSONDecodeError" else error()), kind
        response = pytest.importorskip("requests").Response()
        for status, expected in ((503, True), (429, True), (404, False), (501, False)):
            response.status_code = status
            assert transient(errors.HTTPError(response=response)) is expected

    def test_httpx(self):
        httpx = pytest.importorskip("httpx")
        request = httpx.Request("GET", "http://host")
        for kind in (
            "ConnectTimeout",
            "ReadTimeout",
            "PoolTimeout",
            "ConnectError",
            "ReadError",
            "RemoteProtocolError",
        ):
            assert transient(getattr(httpx, kind)("x")), kind
        for kind in (
            "LocalProtocolError",
            "UnsupportedProtocol",
            "TooManyRedirects",
            "DecodingError",
        ):
            assert not transient(getattr(httpx, kind)("x")), kind
        for status, expected in ((502, True), (400, False)):
            response = httpx.Response(status, request=request, headers={"retry-after": "3"})
            error = httpx.HTTPStatusError("x", request=request, response=response)
            assert transient(error) is expected
        with virtual_time() as clock:
            response = httpx.Response(503, request=request, headers={"retry-after": "3"})
            error = httpx.HTTPStatusError("x", request=request, response=response)
            Policy(retry=Retry(2, backoff=0)).call(flaky(error))
            assert clock.sleeps == [3.0]

    def test_urllib3_and_aiohttp_and_urllib(self):
        errors = pytest.importorskip("urllib3.exceptions")
        assert transient(errors.ProtocolError("x"))
        assert transient(errors.ReadTimeoutError(None, "http://host", "x"))
        assert not transient(errors.SSLError("x"))
        aiohttp = pytest.importorskip("aiohttp")
        assert transient(aiohttp.ServerDisconnectedError())
        assert transient(aiohttp.ServerTimeoutError())
        assert not transient(aiohttp.InvalidURL("x"))
        with urllib.error.HTTPError("http://host", 503, "busy", {}, None) as error:
            assert transient(error)
        with urllib.error.HTTPError("http://host", 403, "no", {}, None) as error:
            assert not transient(error)

    def look_alike(self, module, name, base=Exception, **fields):
        kind = type(name, (base,), {"__module__": module, **fields})
        return kind("x")

    def test_botocore_by_its_shape(self):
        assert transient(self.look_alike("botocore.exceptions", "ConnectionError"))
        assert transient(self.look_alike("botocore.exceptions", "HTTPClientError"))
        for status, expected in ((503, True), (400, False)):
            response = {
                "Error": {"Code": "SlowDown"},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            error = self.look_alike("botocore.exceptions", "ClientError", response=response)
            assert transient(error) is expected
        assert not transient(self.look_alike("botocore.exceptions", "ClientError", response={}))

    def test_grpc_by_its_shape(self):
        def error(name):
            code = type("StatusCode", (), {"name": name})()
            return self.look_alike(
                "grpc", "RpcError", code=lambda _: code, details=lambda _: "no details"
            )

        assert transient(error("UNAVAILABLE"))
        assert transient(error("RESOURCE_EXHAUSTED"))
        assert not transient(error("INVALID_ARGUMENT"))

    def test_a_name_alone_is_not_enough(self):
        assert not transient(self.look_alike("shop.errors", "Timeout"))

    def test_a_certificate_that_is_wrong_stays_wrong(self):
        import ssl

        assert not transient(ssl.SSLCertVerificationError(1, "certificate verify failed"))


class TestStop:
    def test_tenacity_stops_are_taken(self):
        with virtual_time():
            work = flaky(*[ConnectionError()] * 9)
            stop = tenacity.stop_after_attempt(2) | tenacity.stop_after_delay(100)
            with pytest.raises(ConnectionError):
                Policy(retry=Retry(5, stop=stop)).call(work)
            assert work.calls == 2

    def test_delays_are_counted_from_the_first_attempt(self):
        for stop, calls in (
            (tenacity.stop_after_delay(10), 4),
            (tenacity.stop_before_delay(10), 3),
        ):
            with virtual_time():
                work = flaky(*[ConnectionError()] * 9)
                with pytest.raises(ConnectionError) as info:
                    Policy(retry=Retry(9, backoff=4, stop=stop)).call(work)
                assert work.calls == calls
                assert "told to stop" in info.value.__notes__[-1]

    def test_a_callable_hears_attempts_elapsed_and_pause(self):
        heard = []
        with virtual_time():
            Policy(retry=Retry(4, backoff=2, stop=lambda *a: heard.append(a))).call(
                flaky(*[ConnectionError()] * 3)
            )
        assert heard == [(1, 0.0, 2.0), (2, 2.0, 2.0), (3, 4.0, 2.0)]
        with pytest.raises(ConfigurationError, match="stop"):
            Retry(stop=3)


class TestSharedErrors:
    """One error object, raised through two policies: neither takes the other's mark for its own business."""

    def test_each_policy_tries_as_often_as_told(self):
        shared, calls = ConnectionError("down"), []

        def down():
            calls.append(1)
            raise shared

        retry = Retry(3, backoff=0, budget=None)
        for round_ in range(1, 4):
            for policy in (Policy(retry=retry), Policy(retry=retry, timeout=5.0)):
                before = len(calls)
                with pytest.raises(ConnectionError):
                    policy.call(down)
                assert len(calls) - before == 3, round_

    def test_nested_policies_still_do_not_multiply(self):
        shared, calls = ConnectionError("down"), []

        def down():
            calls.append(1)
            raise shared

        retry = Retry(3, backoff=0, budget=None)
        inner = Policy(retry=retry)(down)
        for n in range(1, 4):
            with pytest.raises(ConnectionError):
                Policy(retry=retry).call(inner)
            assert len(calls) == 3 * n


def test_budgets_of_one_name_are_one():
    one = Budget(0.2, 3, name="verdict-test")
    assert Budget(0.2, 3, name="verdict-test") is one
    assert pickle.loads(pickle.dumps(one)) is one
    assert one.spend()
    assert Budget(0.2, 3, name="verdict-test").tokens == 2
    with pytest.raises(ConfigurationError, match="the settings that it has already"):
        Budget(0.1, 3, name="verdict-test")
    with pytest.raises(ConfigurationError, match=r"Budget\(name"):
        Budget(name="")
    del one
    assert Budget(0.5, 1, name="verdict-test").tokens == 1  # nobody held the other any more


class Unreadable(ConnectionError):
    def __str__(self):
        raise ValueError("no text")

    def __setattr__(self, name, value):
        raise RuntimeError("frozen")

    @property
    def status_code(self):
        raise KeyError("no response")


class UnreadableStatus(Exception):
    @property
    def response(self):
        raise RuntimeError("not sent")  # as httpx has it for `request`


@pytest.mark.parametrize("kind", [Unreadable, UnreadableStatus])
def test_an_error_that_cannot_be_read_comes_out_itself(kind):
    work = flaky(kind(), kind(), kind())
    with pytest.raises(kind):
        Policy(retry=Retry(2, backoff=0)).call(work)
    assert work.calls == (2 if kind is Unreadable else 1)
    with pytest.raises(AllTiersFailedError) as caught:
        fallback(tier(flaky(kind()), policy=None))()
    assert kind.__name__ in str(caught.value)
    assert isinstance(caught.value.exceptions[0], kind)
