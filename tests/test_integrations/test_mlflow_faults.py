"""A real MLflow server with artifacts through it, and everything that happens to a server: the training notices nothing, the store lacks nothing."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
from contextlib import chdir, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlkit.errors import SinkRejectedError, SinkUnavailableError
from mlkit.integrations.mlflow import MlflowSink
from mlkit.tracking import Record, RunInfo, start_run, sync

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.timeout(1200)  # eight servers on a busy machine


class Upstream(http.client.HTTPConnection):
    """HTTP over the socket file on which a server listens, so that no port is ever taken."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.host)  # `close` closes it whatever comes of this


class Proxy(ThreadingHTTPServer):
    """Stands before a server, and does to requests what its `mode` says."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, upstream: Path, mode: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()  # and does not listen: connections are refused, and nobody else gets the port
        self.upstream, self.mode = upstream, mode
        self.requests = 0
        self.retry_after = "3600"
        self.seen: set[tuple[str, str]] = set()
        self.healed = threading.Event()

    def listen(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def heal(self) -> None:
        if self.mode == "refuse":
            self.listen()
        self.mode = "ok"
        self.healed.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none of our business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, mode = self.server, self.server.mode
        server.requests += 1
        if mode == "hang":
            server.healed.wait()
            self.close_connection = True
        elif mode == "500":
            self.say(500, b'{"error_code": "INTERNAL_ERROR", "message": "pool exhausted"}')
        elif mode == "429":
            self.say(429, b"slow down", ("Retry-After", server.retry_after))
        elif mode == "page":
            self.say(200, b"<html>we will be back soon</html>")
        elif mode == "empty":
            self.say(200, b"")
        elif mode == "nowhere":  # what a load balancer says while nothing is behind it
            self.say(404, b"default backend - 404")
        elif mode == "noise":
            self.wfile.write(b"\x00\xff\x16 this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif mode == "drop" or (mode == "drop first" and self.is_first()):
            # It is done, and nobody hears of it.
            self.forward(body)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        else:
            if mode == "slow":
                server.healed.wait(0.3)
            try:
                status, headers, content = self.forward(body)
            except OSError:  # the server is dead
                self.close_connection = True
                return
            self.say(status, content, *headers)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def is_first(self) -> bool:
        asked = self.command, self.path.partition("?")[0]
        first = asked not in self.server.seen
        self.server.seen.add(asked)
        return first

    def forward(self, body: bytes):
        headers = {key: value for key, value in self.headers.items() if key != "Connection"}
        with closing(Upstream(str(self.server.upstream))) as connection:
            connection.request(self.command, self.path, body, {**headers, "Connection": "close"})
            response = connection.getresponse()
            content = response.read()
        return response.status, [("Content-Type", response.headers["Content-Type"])], content

    def say(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Servers:
    """MLflow servers, each with a database, a folder of artifacts and a proxy."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with (place / "servers.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("mlflow_servers.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.template = place / "template.db"
        with chdir(place):  # where the default experiment keeps its artifacts for good
            mlflow.MlflowClient(f"sqlite:///{self.template}").search_experiments()
        assert self.process.stdout.readline() == "ready\n"
        self.running: dict[str, int] = {}
        self.proxies: list[Proxy] = []

    def proxy(self, name: str, mode: str = "ok") -> Proxy:
        """Start a server, unless it is there, and what stands before it."""
        if name not in self.running:
            shutil.copy(self.template, self.place / f"{name}.db")
            self.start(name)
        proxy = Proxy(self.place / f"{name}.sock", mode)
        if mode != "refuse":
            proxy.listen()
        self.proxies.append(proxy)
        return proxy

    def start(self, name: str) -> None:
        self.running[name] = self._ask(
            "start", *(str(self.place / f"{name}.{end}") for end in ("sock", "db", "files"))
        )
        wait_for(lambda: self._is_up(name))

    def _is_up(self, name: str) -> bool:
        with closing(Upstream(str(self.place / f"{name}.sock"))) as connection:
            try:
                connection.connect()
            except OSError:
                return False
        return True

    def kill(self, name: str) -> None:
        self._ask("kill", self.running.pop(name))

    def _ask(self, *words: object) -> int:
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def stored(self, name: str, run_id: str) -> Stored:
        return Stored(self.place / f"{name}.db", self.place / f"{name}.files", run_id)

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.healed.set()
            if proxy.mode != "refuse":
                proxy.shutdown()
            proxy.server_close()
        self.process.communicate(timeout=300)


class Stored:
    """What a server's database and folder hold of one run of ours."""

    def __init__(self, database: Path, files: Path, run_id: str) -> None:
        with sqlite3.connect(database) as db:
            tagged = "select run_uuid from tags where key = 'mlkit.run_id' and value = ?"
            runs = db.execute(
                f"select run_uuid, status from runs where lifecycle_stage = 'active' and run_uuid in ({tagged})",
                [run_id],
            ).fetchall()
            ((self.id, self.status),) = runs
            self.points = sorted(
                db.execute("select key, step, value from metrics where run_uuid = ?", [self.id])
            )
            self.params = dict(
                db.execute("select key, value from params where run_uuid = ?", [self.id])
            )
            self.tags = dict(
                db.execute("select key, value from tags where run_uuid = ?", [self.id])
            )
        db.close()
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for folder in files.glob(f"**/{self.id}/artifacts")
            for path in folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """One import of MLflow's server for all tests of this file."""
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


FAULTS = ("refuse", "hang", "500", "429", "page", "drop", "slow", "killed")

TRAINING = """
    import json, sys, time
    from mlkit.tracking import start_run
    root, *sinks = sys.argv[1:]
    seen = set()
    sys.addaudithook(lambda event, args: event.startswith("socket.") and seen.add(event))
    run = start_run("faults", root=root, sinks=sinks, tags={"stage": "one"})
    run.log_params({"lr": 0.1, "net": {"depth": 3}})
    def train(first, last):
        for step in range(first, last):
            run.log_metrics({"loss": 1 / (step + 1), "acc": step / 7}, step=step // 2)
            time.sleep(0.001)
    def say(*what):
        print(json.dumps(what), flush=True)
        return sys.stdin.readline()
    train(0, 50)
    say(run.id)                       # and all is well at first, but for who is never there
    train(50, 450)
    run.log_artifact(b"weights", name="model/w.bin")
    run.set_tag("stage", "two")
    say(sorted(seen), sorted({"asyncio", "http.client", "mlflow", "requests", "urllib3"} & set(sys.modules)))
    train(450, 500)
    delivery = run.close(timeout=900)
    say([[uri, list(one[:4]), one.reason] for uri, one in delivery.sinks.items()])
"""


@pytest.fixture(scope="module")
def outages(servers, tmp_path_factory):
    """One training that ships to eight servers, and something else happens to each of them."""
    proxies = {name: servers.proxy(name, name if name == "refuse" else "ok") for name in FAULTS}
    addresses = {
        name: f"mlflow:http://127.0.0.1:{one.server_port}" for name, one in proxies.items()
    }
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), tmp_path_factory.mktemp("runs"), *addresses.values()],
        env={**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as training:  # fmt: skip
        run_id, traces, deliveries = orchestrate(training, proxies, servers)
    by_address = {uri: rest for uri, *rest in deliveries}
    return run_id, traces, {name: by_address[uri] for name, uri in addresses.items()}


def orchestrate(training, proxies, servers):
    """Let the faults begin when all is well, and end when each has been felt."""

    def hear():
        return json.loads(training.stdout.readline())

    def go_on():
        training.stdin.write("\n")
        training.stdin.flush()

    (run_id,) = hear()
    wait_for(lambda: all(one.requests > 3 for name, one in proxies.items() if name != "refuse"))
    for name, proxy in proxies.items():
        proxy.retry_after = "1"  # that more than a minute is not obeyed is seen in virtual time
        if name == "killed":
            servers.kill(name)
        elif name != "refuse":
            proxy.mode = name
    go_on()
    traces = hear()
    before = {name: proxy.requests for name, proxy in proxies.items()}
    wait_for(lambda: all(
        proxy.requests > before[name] for name, proxy in proxies.items() if name != "refuse"
    ))  # fmt: skip
    servers.start("killed")
    for proxy in proxies.values():
        proxy.heal()
    go_on()
    (deliveries,) = hear()
    go_on()
    assert training.wait(300) == 0
    return run_id, traces, deliveries


def wait_for(what) -> None:
    for _ in range(6000):
        if what():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not come to pass in ten minutes")


def test_the_training_feels_nothing_of_it(outages):
    """No call of it asks a server, or could: a call takes well under a millisecond (benchmarks)."""
    _, (touched, loaded), _ = outages
    assert touched == []
    assert loaded == []


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_is_delivered_once_after(outages, servers, fault):
    run_id, _, deliveries = outages
    (acked, delivered, pending, dead), reason = deliveries[fault]
    assert (acked, delivered, pending, dead, reason) == (1007, 1007, 0, 0, "")
    stored = servers.stored(fault, run_id)
    assert stored.points == sorted(
        point
        for step in range(500)
        for point in (("loss", step // 2, 1 / (step + 1)), ("acc", step // 2, step / 7))
    )
    assert stored.params == {"lr": "0.1", "net.depth": "3"}
    assert (stored.tags["stage"], stored.status) == ("two", "FINISHED")
    assert stored.files == {"model/w.bin": b"weights"}


# --- one sink, one fault ------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """MLflow's client asks once and not seven times, as it does in the shipper's process."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def recorded(experiment: str, root: Path, points: int = 5):
    with start_run(experiment, root=root) as run:
        run.log_params({"lr": 0.1})
        for step in range(points):
            run.log_metric("loss", step / 3, step=step)
        run.log_input("train", b"rows")
        run.log_artifact(b"weights", name="model/w.bin")
    return run


@pytest.mark.usefixtures("patient")
def test_every_answer_is_lost_once_and_nothing_is_there_twice(servers, tmp_path):
    """The request was executed, its answer never came: the second of it must not make a second run."""
    proxy = servers.proxy("one", "drop first")
    with start_run("lost", root=tmp_path, resume=recorded("lost", tmp_path).id) as run:
        child = run.child("inner")
        child.log_metric("a", 1)
        child.close()
    delivery = sync(run.dir, sinks=[f"mlflow:http://127.0.0.1:{proxy.server_port}"], timeout=300)
    assert delivery.complete
    assert len(proxy.seen) >= 7
    stored = servers.stored("one", run.id)
    assert stored.points == [("loss", step, step / 3) for step in range(5)]
    assert (stored.params, stored.status) == ({"lr": "0.1"}, "FINISHED")
    assert stored.files == {"model/w.bin": b"weights"}
    assert servers.stored("one", child.id).tags["mlflow.parentRunId"] == stored.id
    with closing(sqlite3.connect(servers.place / "one.db")) as db:
        made = "select count(*) from runs join experiments using (experiment_id) where experiments.name = 'lost'"
        assert db.execute(made).fetchone() == (2,)  # not even deleted ones


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("mode", ["empty", "page", "nowhere", "noise", "500", "429"])
def test_what_is_no_answer_of_mlflow_stores_nothing_and_refuses_nothing(servers, tmp_path, mode):
    """A balancer that says 200, or 404, speaks of itself: the batch comes again, and no record is set aside."""
    proxy = servers.proxy("one")
    sink = MlflowSink(f"http://127.0.0.1:{proxy.server_port}")
    info = RunInfo(f"20260102-030405-{mode}", f"no answer {mode}", "x", None, 0.0)
    sink.open(info)
    file = tmp_path / "w"
    file.write_bytes(b"w")
    records = [
        Record("1", "metric", "m", 1.0, time=1.0),
        Record("2", "param", "p", "1"),
        Record("3", "tag", "t", "1"),
        Record("4", "tag", "mlkit.input.d", '{"fingerprint": "x"}'),
        Record("5", "artifact", "w.bin", "sha256:0", path=str(file)),
        Record("6", "status", "status", "FINISHED", time=2.0),
    ]
    proxy.mode = mode
    for record in records:
        with pytest.raises((SinkUnavailableError, OSError)) as caught:
            sink.send([record])
        assert not isinstance(caught.value, SinkRejectedError)
    with pytest.raises((SinkUnavailableError, OSError)):
        MlflowSink(sink.tracking_uri).open(info)
    proxy.mode = "ok"
    sink.send(records)
    sink.close()
    stored = servers.stored("one", info.id)
    assert (stored.points, stored.params) == ([("m", 0, 1.0)], {"p": "1"})
    assert (stored.files, stored.status) == ({"w.bin": b"w"}, "FINISHED")


@pytest.mark.usefixtures("patient")
def test_of_two_runs_all_take_the_same(servers):
    """Another process made it in the same moment, or a proxy sent the request twice."""
    proxy = servers.proxy("one")
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    info = RunInfo("20260102-030405-00000001", "twice", "x", None, 0.0)
    experiment = client.create_experiment("twice")
    made = [client.create_run(experiment, tags={"mlkit.run_id": info.id}) for _ in range(3)]
    client.log_metric(made[1].info.run_id, "loss", 0.5)
    sinks = [MlflowSink(f"http://127.0.0.1:{proxy.server_port}") for _ in range(2)]
    for sink in sinks:
        sink.open(info)
        assert sink.run_id == made[1].info.run_id  # the one that holds something


@pytest.mark.usefixtures("patient")
def test_a_server_that_is_too_slow_for_many_points_gets_fewer_at_once(
    servers, tmp_path, monkeypatch
):
    """Sent again as they were, the same thousand points would be too many for ever."""
    proxy = servers.proxy("one")
    whole = Handler.forward
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")

    def weak(handler, body):
        if handler.path.endswith("log-batch") and body.count(b'"timestamp"') > 300:
            proxy.healed.wait(6)  # longer than anybody waits
        return whole(handler, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "forward", weak)
        with start_run("weak", root=tmp_path) as run:
            run.log_points({"a": range(1000)}, steps=range(1000))
        delivery = sync(
            run.dir, sinks=[f"mlflow:http://127.0.0.1:{proxy.server_port}"], timeout=300
        )
    assert delivery.complete
    assert len(servers.stored("one", run.id).points) == 1000


@pytest.mark.usefixtures("patient")
def test_one_bad_record_takes_no_other_along_over_http(servers, tmp_path):
    proxy = servers.proxy("one")
    uri = f"http://127.0.0.1:{proxy.server_port}"
    run = recorded("poison", tmp_path, points=300)
    assert sync(run.dir, sinks=[f"mlflow:{uri}"]).complete
    client = mlflow.MlflowClient(uri)
    client.log_param(servers.stored("one", run.id).id, "depth", "another value")
    with start_run("poison", root=tmp_path, resume=run.id) as again:
        again.log_params({"depth": 3, "width": 8})
        again.log_metrics({"inf": float("inf"), "nan": float("nan"), "bad@key": 1.5}, step=-(2**63))
    delivery = sync(run.dir, sinks=[f"mlflow:{uri}"])
    assert (delivery.pending, delivery.dead_lettered) == (0, 1)
    stored = servers.stored("one", run.id)
    assert stored.params == {"lr": "0.1", "depth": "another value", "width": "8"}
    assert "bad@key" in stored.tags.values()
    assert "inf" in stored.tags.values()
    assert len(stored.points) == 302


@pytest.mark.usefixtures("patient")
def test_every_name_of_an_artifact_arrives_over_http(servers, tmp_path):
    proxy = servers.proxy("one")
    names = [
        "100%20.txt",
        "what?",
        "C#.md",
        "a:b",
        "C:x",
        "tab\t\n",
        "d/ led",
        "x;",
        "é ü.png",
        "a",
    ]
    with start_run("names", root=tmp_path, shipper="none") as run:
        for name in [*names, "a/b"]:
            run.log_artifact(name.encode(), name=name)
        run.log_metric("loss", 0.5)
    uri = f"http://127.0.0.1:{proxy.server_port}"
    delivery = sync(run.dir, sinks=[f"mlflow:{uri}"])
    assert (delivery.pending, delivery.dead_lettered) == (0, 1)  # a folder, and a file of its name
    stored = servers.stored("one", run.id)
    assert stored.points
    where = {
        name: tag.removeprefix("mlkit.key.")
        for tag, name in stored.tags.items()
        if tag.startswith("mlkit.key.")
    }
    assert len(where) == 8
    client = mlflow.MlflowClient(uri)
    for name in names:
        local = client.download_artifacts(stored.id, where.get(name, name), str(tmp_path))
        assert Path(local).read_bytes() == name.encode()


# --- the shipper is killed ------------------------------------------------------------------------

KILLED_AGAIN_AND_AGAIN = """
    import os, random, signal, sys, time
    from pathlib import Path
    import mlflow, mlflow.store.tracking.sqlalchemy_store    # once, for all who are killed
    from mlkit.tracking import sync
    run_dir, *sinks = sys.argv[1:]
    chance, kills = random.Random(8), 0
    while True:
        pid = os.fork()
        if not pid:
            os._exit(0 if sync(run_dir, sinks=sinks, timeout=60).complete else 1)
        time.sleep(chance.uniform(0, 0.1 + 0.05 * kills))    # all get further than the ones before
        if kills < 12 and os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            kills += 1
            os.waitpid(pid, 0)
            continue
        if kills < 4:    # it got to the end first: again, as if killed before that was noted
            for cursor in Path(run_dir).glob("sinks/*/cursor.json"):
                cursor.unlink()
            continue
        status = os.waitpid(pid, 0)[1] if kills >= 12 else 0
        print(kills, status)
        break
"""


def test_a_shipper_killed_again_and_again_leaves_what_one_that_was_not_leaves(servers, tmp_path):
    proxy = servers.proxy("one")
    with start_run("kills", root=tmp_path) as run:
        run.log_params({"lr": 0.1, "net": {"depth": 3}})
        for step in range(500):
            run.log_metrics({f"m{k}": (step + 1) / (k + 3) for k in range(5)}, step=step // 2)
            if step % 200 == 0:
                run.log_artifact(str(step).encode(), name=f"part/{step}.txt")
                run.set_tag("at", step)
    database = tmp_path / "mlflow.db"
    shutil.copy(servers.template, database)
    sinks = [f"mlflow:http://127.0.0.1:{proxy.server_port}", f"mlflow:sqlite:///{database}"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AGAIN_AND_AGAIN), run.dir, *sinks],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kills, status = map(int, done.stdout.split())
    assert kills > 3
    assert status == 0
    assert sync(run.dir, sinks=sinks).complete
    for stored in (
        servers.stored("one", run.id),
        Stored(database, tmp_path / "mlartifacts", run.id),
    ):
        assert stored.points == sorted(
            (f"m{k}", step // 2, (step + 1) / (k + 3)) for k in range(5) for step in range(500)
        )
        assert stored.params == {"lr": "0.1", "net.depth": "3"}
        assert (stored.tags["at"], stored.status) == ("400", "FINISHED")
        assert stored.files == {
            f"part/{step}.txt": str(step).encode() for step in range(0, 500, 200)
        }
