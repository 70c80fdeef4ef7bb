"""Flags from a URL, against real servers on this machine that behave well, badly and maliciously."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags import Flags
from mlkit.testing import record_events, virtual_time


def text(**values):
    flags = {
        key: {"state": "ENABLED", "variants": {"v": value}, "defaultVariant": "v"}
        for key, value in values.items()
    }
    return json.dumps({"flags": flags}).encode()


class Site:
    """What a test server answers, and what it was asked."""

    def __init__(self):
        self.asked = []
        self.released = threading.Event()
        self.respond = self.document
        self.body = text(f=1)
        self.etag = None
        self.modified = None
        self.url = ""

    def document(self, handler):
        """Serve `body` as a good server does."""
        same = (self.etag and handler.headers.get("If-None-Match") == self.etag) or (
            self.modified and handler.headers.get("If-Modified-Since") == self.modified
        )
        handler.send_response(304 if same else 200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        if not same:
            handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        if not same:
            handler.wfile.write(self.body)

    def status(self, code, **headers):
        def respond(handler):
            handler.send_response(code)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        self.respond = respond

    def raw(self, data, *, hang=False):
        def respond(handler):
            handler.wfile.write(data)
            handler.wfile.flush()
            if hang:
                self.released.wait(60)
            handler.close_connection = True

        self.respond = respond


@contextmanager
def serving(site=None):
    site = site or Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append((self.path, dict(self.headers)))
            try:
                site.respond(self)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/flags.json"
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site():
    with serving() as made:
        yield made


@pytest.fixture
def quickly():
    """No pause between attempts costs real time."""
    with virtual_time() as clock:
        yield clock


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_flags_come_from_a_url(site):
    flags = Flags.from_url(site.url)
    assert flags.int("f", default=0)() == 1
    assert flags.problems == ()
    assert flags.age < 60
    site.body = text(f=2, g=3)
    change = flags.reload()
    assert (change.added, change.changed) == (("g",), ("f",))
    assert flags.reload() is None
    assert flags.digest == Flags.from_dict(json.loads(site.body)).digest


@pytest.mark.parametrize(
    ("field", "value", "header"),
    [
        ("etag", '"one"', "If-None-Match"),
        ("etag", 'W/"weak"', "If-None-Match"),
        ("modified", formatdate(1e9, usegmt=True), "If-Modified-Since"),
    ],
)
def test_a_document_that_is_the_same_is_not_sent_again(site, field, value, header):
    setattr(site, field, value)
    flags = Flags.from_url(site.url)
    assert flags.reload() is None
    assert [header in headers for _, headers in site.asked] == [False, True]
    assert flags.problems == ()
    setattr(
        site, field, value.replace("e", "x", 1) if field == "etag" else formatdate(2e9, usegmt=True)
    )
    site.body = text(f=2)
    assert flags.reload().changed == ("f",)


def test_a_replaced_document_comes_back_with_the_next_reload(site):
    site.etag = '"one"'
    flags = Flags.from_url(site.url)
    f = flags.int("f", default=0)
    flags.replace({"flags": {}})
    assert f() == 0
    flags.reload()
    assert f() == 1


def test_a_server_that_says_unchanged_unasked_is_not_believed(site, quickly):
    site.status(304)
    with pytest.raises(FlagFileError, match="HTTP 304"):
        Flags.from_url(site.url)


@pytest.mark.parametrize(
    ("code", "n_attempts"),
    [
        (404, 1),
        (401, 1),
        (403, 1),
        (410, 1),
        (204, 1),
        (206, 1),
        (500, 3),
        (502, 3),
        (503, 3),
        (408, 3),
    ],
)
def test_trouble_that_may_pass_is_tried_again(site, quickly, code, n_attempts):
    flags = Flags.from_url(site.url)
    f, digest = flags.int("f", default=0), flags.digest
    site.asked.clear()
    site.status(code)
    with record_events("flags.") as events:
        for _ in range(2):
            with pytest.raises(FlagFileError, match=f"HTTP {code}"):
                flags.reload()
    assert len(site.asked) == 2 * n_attempts
    assert [event.kind for event in events] == ["flags.reload.failed"]
    assert (f(), flags.digest) == (1, digest)
    assert flags.problems[0].kept
    site.respond = site.document
    with record_events("flags.") as events:
        assert flags.reload() is None
    assert [event.kind for event in events] == ["flags.reload.recovered"]
    assert flags.problems == ()


def test_a_second_attempt_may_succeed(site, quickly):
    answers = iter([500, 429])

    def respond(handler):
        code = next(answers, None)
        if code is None:
            return site.document(handler)
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.respond = respond
    assert Flags.from_url(site.url).int("f", default=0)() == 1
    assert len(site.asked) == 3


def test_the_server_says_how_long_to_leave_it_alone(site, quickly):
    flags = Flags.from_url(site.url)
    site.asked.clear()
    site.status(429, Retry_After="3")  # shorter than the time-out: it is waited for
    with pytest.raises(FlagFileError, match="HTTP 429 Too Many Requests"):
        flags.reload()
    n_asked, before = len(site.asked), quickly.monotonic()
    assert n_asked == 3
    site.status(503, Retry_After="120")
    quickly.sleep(10)
    with pytest.raises(FlagFileError, match="HTTP 503"):
        flags.reload()
    assert len(site.asked) == n_asked + 1
    site.respond = site.document
    with pytest.raises(FlagFileError, match="HTTP 503"):
        flags.reload()  # still within the two minutes: nobody is asked
    assert len(site.asked) == n_asked + 1
    quickly.sleep(120)
    assert flags.reload() is None
    assert flags.problems == ()
    assert quickly.monotonic() - before < 200


def test_a_pause_may_be_given_as_a_date(site, quickly):
    flags = Flags.from_url(site.url)
    site.status(503, Retry_After=formatdate(quickly.time() + 100, usegmt=True))
    site.asked.clear()
    for _ in range(2):
        with pytest.raises(FlagFileError, match="HTTP 503"):
            flags.reload()
    assert len(site.asked) == 1
    site.respond = site.document
    quickly.sleep(101)
    flags.reload()


@pytest.mark.parametrize("pause", ["soon", "-5", "1e9", "\u0663", "99999999999999999999"])
def test_a_pause_that_makes_no_sense_is_bounded(site, quickly, pause):
    flags = Flags.from_url(site.url)
    site.status(503, Retry_After=pause.encode().decode("latin-1"))
    with pytest.raises(FlagFileError, match="HTTP 503"):
        flags.reload()
    quickly.sleep(3601)
    site.respond = site.document
    flags.reload()


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_a_server_that_hangs_costs_the_time_out(site, chunk):
    site.raw(chunk, hang=True)
    # Of the whole look, whatever one of its attempts had; else the server closes, later: "cut off".
    with pytest.raises(FlagFileError, match=r"no whole answer within 0\.3 s"):
        Flags.from_url(site.url, timeout=0.3)


def test_a_host_with_many_addresses_costs_the_time_out_once(monkeypatch, quickly):
    import socket

    class Silent:
        def __init__(self, *_):
            self.closed = False
            sockets.append(self)

        def settimeout(self, limit):
            self.limit = limit

        def connect(self, address):
            del address
            quickly.sleep(self.limit)
            raise TimeoutError

        def close(self):
            self.closed = True

    sockets = []
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 443)) for n in range(8)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", Silent)
    began = quickly.monotonic()
    with pytest.raises(FlagFileError, match=r"no whole answer within 4 s"):
        Flags.from_url("https://flags.example/flags.json", timeout=4.0, attempts=2)
    assert quickly.monotonic() - began <= 4.0
    assert len(sockets) >= 8
    assert all(one.closed for one in sockets)


@pytest.mark.parametrize("head", [True, False])
def test_a_server_that_drips_costs_the_time_out(site, head):
    def respond(handler):
        first = (
            b"HTTP/1.1 200 OK\r\n" if head else b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
        )
        handler.wfile.write(first)
        for n in range(4000):
            handler.wfile.write(b"X-%d: y\r\n" % n if head else b" ")
            handler.wfile.flush()
            if site.released.wait(0.02):
                break

    site.respond = respond
    start = time.monotonic()
    with pytest.raises(FlagFileError):
        Flags.from_url(site.url, timeout=0.3)
    assert time.monotonic() - start < 60  # it would drip for longer


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no HTTP|cannot be reached"),
        (b"\x00\xff\x16\x03garbage\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n", "not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + text(f=1), "cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{", "no HTTP|cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n\x00", "packed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnope", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(text(f=1))[:-9], "cut off"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "object"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "HTTP 999|no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "no HTTP"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_changes_nothing(site, quickly, data, reason):
    flags = Flags.from_url(site.url)
    digest = flags.digest
    site.raw(data)
    with pytest.raises(FlagFileError, match=reason):
        flags.reload()
    assert flags.digest == digest
    assert flags.problems[0].kept
    site.respond = site.document
    flags.reload()
    assert flags.problems == ()


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_answer_is_not_read_to_its_end(site, packed):
    sent = []

    def respond(handler):
        handler.send_response(200)
        if packed:
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        block = gzip.compress(b" " * 50_000_000) if packed else b" " * 100_000
        for _ in range(1 if packed else 2000):
            handler.wfile.write(block)
            sent.append(len(block))

    site.respond = respond
    with pytest.raises(FlagFileError, match="more than 1000 bytes"):
        Flags.from_url(site.url, max_bytes=1000, timeout=600)
    assert sum(sent) < 100_000_000
    assert len(site.asked) == 1


def test_a_packed_answer_is_unpacked(site):
    def respond(handler):
        assert handler.headers["Accept-Encoding"] == "gzip"
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(gzip.compress(text(f=7)))

    site.respond = respond
    assert Flags.from_url(site.url).int("f", default=0)() == 7


def test_a_chunked_answer_is_read_whole(site):
    body = text(f=7)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    site.raw(head + b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (5, body[:5], len(body) - 5, body[5:]))
    assert Flags.from_url(site.url).int("f", default=0)() == 7


def test_redirects_are_followed_a_few_times(site):
    def respond(handler):
        step = int(handler.path.rpartition("/")[2] or 0) if handler.path.startswith("/step") else 0
        if step == site.last:
            return site.document(handler)
        handler.send_response((301, 302, 303, 307, 308)[step % 5])
        handler.send_header("Location", f"/step/{step + 1}")
        handler.end_headers()

    site.respond, site.last = respond, 5
    assert Flags.from_url(site.url).int("f", default=0)() == 1
    site.last = 6
    with pytest.raises(FlagFileError, match="more than 5 redirects"):
        Flags.from_url(site.url)


@pytest.mark.parametrize(
    "location",
    [
        "http://example.invalid/flags.json",
        "ftp://127.0.0.1/flags.json",
        "file:///etc/passwd",
        "http://[",
    ],
)
def test_a_redirect_leads_nowhere_else(site, location):
    site.status(302, Location=location)
    with pytest.raises(FlagFileError, match="redirect"):
        Flags.from_url(site.url)
    assert len(site.asked) == 1


def test_secrets_are_told_to_their_own_server_alone(site):
    with serving() as other:
        site.status(307, Location=other.url)
        url = site.url.replace("://", "://ann:pass%40word@") + "?token=t0ken"
        flags = Flags.from_url(url, headers={"X-Secret": "s3cret"})
        first, second = site.asked[0][1], other.asked[0][1]
        assert first["Authorization"] == "Basic YW5uOnBhc3NAd29yZA=="
        assert first["X-Secret"] == "s3cret"
        assert "Authorization" not in second
        assert "X-Secret" not in second
        assert flags.int("f", default=0)() == 1


def test_headers_may_come_from_a_function(site, quickly):
    tokens = iter("abc")
    flags = Flags.from_url(site.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
    flags.reload()
    assert [headers["Authorization"] for _, headers in site.asked] == ["Bearer a", "Bearer b"]
    next(tokens)
    with pytest.raises(FlagFileError, match="function for headers failed: StopIteration"):
        flags.reload()
    assert len(site.asked) == 2


SECRETS = ("us3r", "pa55", "t0ken", "s3cret", "fr4gment")


def test_no_message_tells_a_secret(site, quickly, tmp_path):
    url = site.url.replace("://", "://us3r:pa55@") + "?key=t0ken#fr4gment"
    options = {"headers": {"X-Key": "s3cret"}, "keep": tmp_path / "kept.json"}
    said = []
    with record_events("flags.") as events:
        flags = Flags.from_url(url, **options)
        site.respond = lambda handler: (
            handler.send_response(302),
            handler.send_header("Location", "http://us3r:pa55@example.invalid/?t0ken"),
            handler.end_headers(),
        )
        for code in (None, 404, 500):
            if code is not None:
                site.status(code)
            with pytest.raises(FlagFileError) as caught:
                flags.reload()
            said += [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
        site.raw(b"HTTP/1.1 t0ken\r\n\r\n")
        with pytest.raises(FlagFileError) as caught:
            flags.reload()
        said += [str(caught.value), str(caught.value.__cause__)]
    said += [repr(events), repr(flags), repr(flags.problems), (tmp_path / "kept.json").read_text()]
    from mlkit import telemetry

    said.append(repr(telemetry.collect()))
    for wrong in (
        "http://us3r:pa55@example.invalid/?t0ken",
        "https://us3r:pa55@[/t0ken",
        "ftp://us3r:pa55@h/t0ken",
        "https://h/t0ken pa55",
        "t0ken",
    ):
        with pytest.raises(ConfigurationError) as refused:
            Flags.from_url(wrong)
        said.append(str(refused.value))
    for headers in ({"X": "s3cret\r\nY: z"}, {"X": 3}, ["s3cret"]):
        with pytest.raises(ConfigurationError) as refused:
            Flags.from_url(site.url, headers=headers)
        said.append(str(refused.value))
    for line in said:
        assert not any(secret in line for secret in SECRETS), line
    assert "?..." in repr(flags)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.invalid/flags.json",
        "ftp://x/",
        "flags.json",
        "",
        "https://",
        "https://h:port/",
        7,
        None,
    ],
)
def test_what_is_no_safe_url_is_refused_before_anybody_is_asked(url):
    with pytest.raises(ConfigurationError, match="from_url"):
        Flags.from_url(url)


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"attempts": 0},
        {"attempts": True},
        {"max_bytes": 0},
        {"keep": 3},
    ],
)
def test_other_arguments_are_checked_too(options):
    with pytest.raises(ConfigurationError, match="from_url"):
        Flags.from_url("https://example.invalid/", **options)


def test_plain_http_elsewhere_needs_a_word(monkeypatch, site):
    import socket

    address = "127.0.0.1", int(site.url.split(":")[2].split("/")[0])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    flags = Flags.from_url("http://flags.example/flags.json", insecure=True)
    assert flags.int("f", default=0)() == 1
    assert site.asked[0][1]["Host"] == "flags.example"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tmp_path):
    import ssl
    import subprocess

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with serving() as site:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.respond(self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"https://localhost:{server.server_port}/flags.json"
        try:
            with pytest.raises(FlagFileError, match="certificate is not trusted"):
                Flags.from_url(url)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SSL_CERT_FILE", str(certificate))
                assert Flags.from_url(url).int("f", default=0)() == 1
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


# --- the last good document ------------------------------------------------------------------------------------------


def test_the_last_good_document_outlives_the_process_and_the_server(site, tmp_path, quickly):
    keep = tmp_path / "deep" / "kept.json"
    site.etag = '"one"'
    before = Flags.from_url(site.url, keep=keep)
    quickly.sleep(100)
    site.status(500)
    flags = Flags.from_url(site.url, keep=keep)
    assert flags.int("f", default=0)() == 1
    assert flags.digest == before.digest
    (problem,) = flags.problems
    assert "HTTP 500" in problem.message
    assert problem.kept
    assert 100 <= flags.age < 110
    quickly.sleep(10)
    assert flags.age >= 110
    site.respond = site.document
    site.asked.clear()
    assert flags.reload() is None
    assert site.asked[0][1]["If-None-Match"] == '"one"'
    assert flags.problems == ()
    assert flags.age < 1
    assert oct(keep.stat().st_mode)[-3:] == "600"


def test_nothing_kept_and_no_server_is_an_error(site, tmp_path, quickly):
    site.status(500)
    with pytest.raises(FlagFileError, match="HTTP 500"):
        Flags.from_url(site.url, keep=tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "head", "mark", "empty", "other", "folder", "deep", "array"]
)
def test_a_damaged_copy_is_not_used(site, tmp_path, quickly, damage):
    keep = tmp_path / "kept.json"
    Flags.from_url(site.url, keep=keep)
    good, url = keep.read_bytes(), site.url
    if damage == "other":
        url += "?environment=test"
    elif damage == "folder":
        keep.unlink()
        keep.mkdir()
    else:
        bad = {
            "cut": good[:-3],
            "flip": good.replace(b'"v": 1', b'"v": 2'),
            "head": b"{}\n" + good.partition(b"\n")[2],
            "mark": json.dumps(json.loads(good.partition(b"\n")[0]) | {"mark": [1, 2]}).encode()
            + b"\n"
            + good.partition(b"\n")[2],
            "empty": b"",
            "deep": b"[" * 60_000,
            "array": b"[1]\n{}",
        }[damage]
        assert bad != good
        keep.write_bytes(bad)
    site.status(500)
    with pytest.raises(FlagFileError, match="HTTP 500"):
        Flags.from_url(url, keep=keep)
    site.respond = site.document
    flags = Flags.from_url(url, keep=keep)  # with a server it is not needed
    assert flags.int("f", default=0)() == 1
    assert bool(flags.problems) == (damage == "folder")


def test_a_folder_that_cannot_be_written_is_a_problem_and_no_more(site, tmp_path):
    (tmp_path / "file").write_text("")
    flags = Flags.from_url(site.url, keep=tmp_path / "file" / "kept.json")
    assert flags.int("f", default=0)() == 1
    (problem,) = flags.problems
    assert "cannot be written" in problem.message


def test_a_flag_that_went_bad_is_kept_as_it_was(site, tmp_path, quickly):
    keep = tmp_path / "kept.json"
    site.etag = '"one"'
    flags = Flags.from_url(site.url, keep=keep)
    bad = json.loads(text(f=2, g=3))
    bad["flags"]["f"]["state"] = "ON"
    site.body, site.etag = json.dumps(bad).encode(), '"two"'
    flags.reload()
    assert (flags.int("f", default=0)(), flags.int("g", default=0)()) == (1, 3)
    for respond in (site.document, None):  # the next process, with the server and without
        site.respond = respond or site.respond
        if respond is None:
            site.status(500)
        after = Flags.from_url(site.url, keep=keep)
        assert (after.int("f", default=0)(), after.int("g", default=0)()) == (1, 3)
        assert after.digest == flags.digest
        assert after.problems


def test_a_refused_document_is_not_kept(site, tmp_path, quickly):
    keep = tmp_path / "kept.json"
    flags = Flags.from_url(site.url, keep=keep)
    site.body = b"{"
    with pytest.raises(FlagFileError, match="not JSON"):
        flags.reload()
    after = Flags.from_url(site.url, keep=keep)
    assert after.int("f", default=0)() == 1
    assert "not JSON" in after.problems[0].message


def test_a_crash_while_keeping_leaves_the_old_copy(site, tmp_path, monkeypatch):
    keep = tmp_path / "kept.json"
    flags = Flags.from_url(site.url, keep=keep)
    good = keep.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    site.body = text(f=2)
    flags.reload()
    assert flags.int("f", default=0)() == 2
    assert "No space left" in flags.problems[0].message
    assert keep.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    monkeypatch.undo()
    site.body = text(f=3)
    flags.reload()
    assert flags.problems == ()
    assert keep.read_bytes() != good


def test_the_copy_is_confirmed_seldom(site, tmp_path, quickly):
    keep = tmp_path / "kept.json"
    site.etag = '"one"'
    flags = Flags.from_url(site.url, keep=keep)
    first = keep.stat().st_ino
    flags.reload()
    assert keep.stat().st_ino == first
    quickly.sleep(700)
    flags.reload()
    assert json.loads(keep.read_bytes().partition(b"\n")[0])["confirmed"] >= quickly.time() - 1


# --- watching --------------------------------------------------------------------------------------------------------


def test_the_watcher_asks_again_and_again(site):
    with Flags.from_url(site.url, watch=True, interval=0.01) as flags:
        f = flags.int("f", default=0)
        site.body = text(f=2)
        until(lambda: f() == 2)
        site.status(404)
        until(lambda: flags.problems)
        assert f() == 2
        site.respond = site.document
        site.body = text(f=3)
        until(lambda: f() == 3)
        assert flags.problems == ()
    n_asked = len(site.asked)
    time.sleep(0.05)
    assert len(site.asked) == n_asked


def test_many_processes_do_not_come_at_once(site):
    with virtual_time(autojump=False) as clock:
        flags = Flags.from_url(site.url, watch=True, interval=100)
        until(lambda: clock._deadlines)  # it waits
        clock.advance(79)
        time.sleep(0.02)
        assert len(site.asked) == 1
        clock.advance(42)
        until(lambda: len(site.asked) == 2)
        flags.close()


def test_no_evaluation_and_no_rollback_waits_for_the_server(site):
    flags = Flags.from_url(site.url, timeout=600)
    f = flags.int("f", default=0)
    site.raw(b"HTTP/1.1 200 OK\r\n", hang=True)

    def reload():
        with pytest.raises(FlagFileError):
            flags.reload()

    thread = threading.Thread(target=reload)
    thread.start()
    until(lambda: len(site.asked) == 2)
    for _ in range(1000):
        assert f("user") == 1
    flags.int("other", default=0)  # a handle takes the lock of the writers
    assert flags.replace({"flags": {}}) is not None
    assert thread.is_alive()
    site.released.set()
    thread.join()


def test_a_function_for_headers_may_use_the_flags(site):
    """User code never runs under a lock of ours."""
    made = []

    def headers():
        if made and len(made) == 1:
            made.append(None)
            made[0].reload()
            made[0].replace({"flags": {}})
        return {}

    made.append(Flags.from_url(site.url, headers=dict))
    made[0] = Flags.from_url(site.url, headers=headers)
    done = threading.Event()
    threading.Thread(target=lambda: (made[0].reload(), done.set()), daemon=True).start()
    assert done.wait(60)


def test_it_pickles_as_its_source(site, tmp_path):
    site.etag = '"one"'
    flags = Flags.from_url(
        site.url, keep=tmp_path / "kept.json", headers={"X-Key": "k"}, attempts=1
    )
    site.body, site.etag = text(f=2), '"two"'
    other = pickle.loads(pickle.dumps(flags))
    assert other.int("f", default=0)() == 2
    assert site.asked[-1][1]["X-Key"] == "k"
