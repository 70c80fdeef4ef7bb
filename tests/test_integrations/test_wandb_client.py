"""A client works in a process of its own: what it prints, breaks, hangs or leaves behind stays there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mlkit.errors import SinkUnavailableError
from mlkit.integrations._client import Client, acquire, release

CODE = """
    import atexit, os, sys, time
    print("imported"); sys.stderr.write("imported\\n")

    class Served:
        def __init__(self):
            self.calls = 0
        def add(self, *numbers):
            self.calls += 1
            print("called", flush=True)
            os.write(1, b"raw output")
            return sum(numbers), self.calls
        def setting(self, name):
            return os.environ.get(name)
        def fail(self):
            raise ValueError("x" * 5000)
        def die(self):
            sys.stderr.write("Segmentation fault, or so")
            sys.stderr.flush()
            os._exit(3)
        def hang(self):
            time.sleep(600)
        def start(self):
            import subprocess
            return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
        def leave(self, path):
            atexit.register(lambda: open(path, "w").write("ended"))
            return os.getpid()
"""


@pytest.fixture
def target(tmp_path, monkeypatch):
    (tmp_path / "a_tracker.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "a_tracker:Served"


@pytest.fixture
def client(target):
    client = Client(target, {"A_SETTING": "ours", "NOT_OURS": None})
    yield client
    client.close()


def test_calls_are_answered_whatever_the_client_prints(client, capfd, monkeypatch):
    monkeypatch.setenv("NOT_OURS", "theirs")
    assert client.call("add", 1, 2, timeout=60) == (3, 1)
    assert client.call("add", *range(100_000), timeout=60) == (sum(range(100_000)), 2)
    assert client.call("setting", "A_SETTING", timeout=60) == "ours"
    assert client.call("setting", "NOT_OURS", timeout=60) is None
    assert capfd.readouterr() == ("", "")
    assert "a_tracker" not in sys.modules


def gone(pid: int) -> bool:
    """Return whether a process has ended, be it reaped or not."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_an_error_is_told_and_the_client_goes_on(client):
    client.call("add", timeout=60)
    with pytest.raises(SinkUnavailableError, match="ValueError: xxx") as caught:
        client.call("fail", timeout=60)
    assert len(str(caught.value)) < 600
    assert client.call("add", timeout=60) == (0, 2)


def test_a_client_that_dies_says_its_last_words_and_is_started_again(client):
    with pytest.raises(SinkUnavailableError, match=r"process died: Segmentation fault, or so$"):
        client.call("die", timeout=60)
    assert client.call("add", timeout=60) == (0, 1)


def test_a_client_that_hangs_is_ended(client):
    client.call("add", timeout=60)
    started = client.call("start", timeout=60)
    with pytest.raises(SinkUnavailableError, match=r"longer than 0\.2 seconds"):
        client.call("hang", timeout=0.2)
    assert gone(started)
    assert client.call("add", timeout=60) == (0, 1)


def test_a_variable_that_is_set_later_is_seen(target, monkeypatch):
    one = acquire(target, {})
    assert one.call("setting", "WANDB_A_KEY", timeout=60) is None
    monkeypatch.setenv("WANDB_A_KEY", "secret")
    two = acquire(target, {})
    assert two.call("setting", "WANDB_A_KEY", timeout=60) == "secret"
    release(one)
    release(two)


def test_a_client_ends_with_its_last_user_and_runs_its_exit_hooks(target, tmp_path):
    one, two = acquire(target, {}), acquire(target, {})
    other = acquire(target, {"A_SETTING": "another"})
    assert one is two
    assert other is not one
    release(other)
    pid = one.call("leave", str(tmp_path / "ended"), timeout=60)
    release(one)
    assert two.call("leave", os.devnull, timeout=60) == pid
    release(two)
    assert (tmp_path / "ended").read_text() == "ended"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_forked_child_has_a_client_of_its_own(client):
    first = client.call("leave", os.devnull, timeout=60)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, str(client.call("leave", os.devnull, timeout=60)).encode())
            client.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        second = int(told.read())
    os.waitpid(child, 0)
    assert second != first
    assert client.call("leave", os.devnull, timeout=60) == first


def test_a_client_whose_user_is_killed_ends_with_all_that_it_has_started(target, tmp_path):
    code = """
        import sys, time
        from mlkit.integrations._client import Client
        client = Client(sys.argv[1], {})
        print(client.call("leave", sys.argv[2], timeout=60), client.call("start", timeout=60), flush=True)
        time.sleep(600)
    """
    user = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), target, tmp_path / "ended"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with user:
        pids = [int(pid) for pid in user.stdout.readline().split()]
        user.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert not (
        tmp_path / "ended"
    ).exists()  # a hook that finishes a run would do so beside its successor
