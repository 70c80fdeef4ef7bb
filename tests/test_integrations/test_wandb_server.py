"""Against a small W&B of our own: what the real client uploads, live or by `wandb sync`, is there once.

The server keeps what W&B's does for a run: lines by file and offset, how many there are, and the last one.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlkit.integrations.wandb import WandbSink
from mlkit.tracking import Record, RunInfo, start_run, sync

pytest.importorskip("wandb")

RUN = RunInfo("20260102-030405-0a1b2c3d", "digits", "first", None, 1_767_323_045.0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({})

    def do_PUT(self):
        self.server.files[self.path.removeprefix("/upload/")] = self._content()
        self._answer({})

    def do_POST(self):
        content = self._content()
        if self.path == "/graphql":
            request = json.loads(content)
            self._answer({"data": self._asked(request["query"], request["variables"])})
        elif self.path.endswith("/file_stream"):
            for name, chunk in (json.loads(content).get("files") or {}).items():
                lines = self.server.streams.setdefault(self.path.split("/")[-2], {}).setdefault(
                    name, {}
                )
                lines.update(enumerate(chunk["content"], chunk["offset"]))
            self._answer({"limits": {}})
        else:
            self._answer({})

    def _asked(self, query, variables):
        project = {"id": "P", "name": "digits", "entity": {"id": "E", "name": "me"}}
        name = variables.get("name")
        lines = self.server.streams.get(name, {}).get("wandb-history.jsonl", {})
        held = {"id": "R", "name": name, "displayName": name, "historyLineCount": len(lines)}
        if "upsertBucket" in query:
            self.server.runs.setdefault(name, {}).update(
                {key: value for key, value in variables.items() if value}
            )
            return {"upsertBucket": {"inserted": not lines, "bucket": {**held, "project": project}}}
        if "createRunFiles" in query:
            url = f"http://{self.headers['Host']}/upload"
            files = [{"name": file, "uploadUrl": f"{url}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if "historyTail" in query:
            tail = json.dumps([lines[max(lines)]] if lines else [])
            bucket = {
                **held, "summaryMetrics": "{}", "logLineCount": 0, "eventsLineCount": 0, "historyTail": tail,
                "eventsTail": "[]", "config": "{}", "tags": [], "notes": None, "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**project, "bucket": bucket if name in self.server.runs else None}}
        return {
            "viewer": {
                "id": "V",
                "entity": "me",
                "username": "me",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _content(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return (
            gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content
        )

    def _answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that ends leaves connections behind."""

    def rows(self, run_id):
        lines = self.streams[run_id]["wandb-history.jsonl"]
        assert sorted(lines) == list(range(len(lines)))
        return [json.loads(lines[number]) for number in range(len(lines))]


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = _Server(("127.0.0.1", 0), _Handler)
    server.runs, server.streams, server.files = {}, {}, {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def metric(number: int, step: int) -> Record:
    return Record(f"f:{number}:0", "metric", "loss", number / 8, step, RUN.start_time + number)


def test_what_wandb_sync_has_uploaded_is_not_uploaded_again(server, tmp_path):
    uri = f"wandb:{tmp_path / 'w'}?mode=offline"
    steps = [[9, 3, 3], [1, 12]]
    run_id = None
    for some in steps:
        with start_run("digits", root=tmp_path / "runs", resume=run_id, shipper="none") as run:
            for step in some:
                run.log_metrics({"loss": step / 8}, step=step)
            run.log_artifact(b"weights", name="model/w.bin")
        run_id = run.id
        assert sync(run.dir, sinks=[uri], timeout=60).complete
        folders = [
            path for path in (tmp_path / "w/wandb").iterdir() if not list(path.glob("*.synced"))
        ]
        (folder,) = folders
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        uploaded = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Finished syncing" in uploaded.stdout + uploaded.stderr
        assert list(folder.glob("*.synced"))
    rows = server.rows(run_id)
    assert [(row["_step"], row["mlkit/step"], row["loss"]) for row in rows] == [
        (number, step, step / 8) for number, step in enumerate([9, 3, 3, 1, 12])
    ]
    assert server.files["artifacts/model/w.bin"] == b"weights"
    assert json.loads(server.runs[run_id]["config"])["mlkit"]["value"]["status"] == "FINISHED"


def test_a_client_that_is_killed_live_doubles_nothing(server, tmp_path):
    sink = WandbSink(tmp_path / "w", mode="online")
    sink.open(RUN)
    sink.send([metric(number, 100 - number) for number in range(20)])
    client = sink._run._client._process
    for path in Path("/proc").glob(f"{client.pid}/task/*/children"):
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGKILL)  # wandb-core
    client.kill()
    client.wait()
    sink.send([metric(number, 100 - number) for number in range(10, 30)])
    sink.send([Record("f:99:0", "status", "status", "FINISHED", time=RUN.start_time + 99)])
    sink.close()
    rows = server.rows(RUN.id)
    assert [(row["_step"], row["mlkit/step"], row["loss"]) for row in rows] == [
        (number, 100 - number, number / 8) for number in range(30)
    ]
    again = WandbSink(tmp_path / "w", mode="online")
    again.open(RUN)
    again.send([metric(number, 100 - number) for number in range(31)])
    again.close()
    assert [row["_step"] for row in server.rows(RUN.id)] == list(range(31))
