"""A process of its own for a tracker's client, whose imports, threads, hooks, settings and output stay there.

`python -m mlkit.integrations._client MODULE:CLASS` makes the object and calls its methods as it is told on its
standard input, until it is told to end, or that ends.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import SinkUnavailableError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from typing import IO

__all__ = ["Client", "acquire", "release"]

_LENGTH = Struct("<Q")
# Variables that change what a client does: its own, and where keys, proxies and certificates are.
_ASKED = (
    "COMET_", "HF_", "HOME", "HTTP", "NETRC", "NO_PROXY", "REQUESTS_", "SSL_", "TRACKIO_", "WANDB_", "XDG_",
)  # fmt: skip
_GOODBYE = 10.0  # seconds that a client has to end by itself


@final
class Client:
    """Calls methods of an object that lives in another process, which is started when it is needed.

    Thread-safe: one call at a time. A forked child starts a process of its own.

    Args:
        target: `"module:class"`; the class is called without arguments.
        environment: Variables that the process gets besides those of this one; None takes one away.
    """

    def __init__(self, target: str, environment: Mapping[str, str | None]) -> None:
        self._target, self._environment = target, environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._output: IO[bytes] | None = None

    def call(self, method: str, *arguments: object, timeout: float) -> Any:
        """Call a method.

        Args:
            method: Its name.
            arguments: What it takes; pickled.
            timeout: Seconds after which the process is taken for stuck, and ended.

        Raises:
            SinkUnavailableError: If the method raises, the process dies, or it takes too long.
        """
        with self._lock:
            process = self._running()
            request = pickle.dumps((method, arguments))
            try:
                assert process.stdin is not None  # noqa: S101 - Popen's type, not a check
                process.stdin.write(_LENGTH.pack(len(request)) + request)
                process.stdin.flush()
                fine, answer = pickle.loads(self._read(timeout))  # noqa: S301 - our own process
            except (OSError, EOFError, TimeoutError) as error:
                said = self._said()
                self._end(0.0)
                reason = f"the client's process died{f': {said}' if said else ''}"
                if isinstance(error, TimeoutError):
                    reason = f"the client took longer than {timeout:g} seconds, and was ended"
                name = self._target.partition(":")[0].rpartition(".")[2]
                raise SinkUnavailableError(f"{name}: {reason}") from error
        if not fine:
            raise SinkUnavailableError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end(_GOODBYE)

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        self._end(0.0)
        import subprocess
        import tempfile

        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        }
        for name, value in self._environment.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        # -P: a `wandb.py` in the working folder is not for the client to import.
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "mlkit.integrations._client", self._target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._output,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training
        )  # fmt: skip
        self._owner = os.getpid()
        return self._process

    def _read(self, timeout: float) -> bytes:
        """Return one answer."""
        deadline = current().monotonic() + timeout
        (length,) = _LENGTH.unpack(self._read_exactly(_LENGTH.size, deadline))
        return self._read_exactly(length, deadline)

    def _read_exactly(self, length: int, deadline: float) -> bytes:
        import select

        if self._process is None or self._process.stdout is None:
            raise EOFError
        descriptor = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        found = bytearray()
        while len(found) < length:
            left = deadline - current().monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                raise TimeoutError
            piece = os.read(descriptor, length - len(found))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def _said(self) -> str:
        """Return the last line that the process wrote to standard error."""
        if self._output is None:
            return ""
        self._output.seek(0)
        lines = self._output.read()[-2000:].decode("utf-8", "replace").split("\n")
        return clip(next((line.strip() for line in reversed(lines) if line.strip()), ""), 300)

    def _end(self, patience: float) -> None:
        process, self._process = self._process, None
        output, self._output = self._output, None
        if output is not None:
            output.close()
        if process is None:
            return
        if patience and self._owner == os.getpid() and process.stdin is not None:
            with suppress(OSError):  # it is gone already
                process.stdin.write(_LENGTH.pack(0))
                process.stdin.flush()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a request that nobody read
                    pipe.close()
        if self._owner != os.getpid():
            process.returncode = 0  # a forked child's copy: the process is the parent's to reap
            return
        import subprocess

        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            # Those first that the client has started: they would go on with what is given to the next one.
            for pid in (*_descendants(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have, where the system tells."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123 - no path, a question
            children = [int(child) for child in file.read().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *_descendants(child))]


_clients: dict[tuple[object, ...], tuple[Client, int]] = {}
_lock = threading.Lock()


def acquire(target: str, environment: Mapping[str, str | None]) -> Client:
    """Return the one client of its kind in this process, to be given back to `release`.

    Its start costs seconds, and a run may have hundreds of runs in it.
    """
    # A process begins with the environment of its time, and does not see a key that is set later.
    asked = {item for item in os.environ.items() if item[0].upper().startswith(_ASKED)}
    key = (target, frozenset(environment.items()), frozenset(asked))
    with _lock:
        client, users = _clients.get(key) or (Client(target, environment), 0)
        _clients[key] = client, users + 1
    return client


def release(client: Client) -> None:
    """End a client if nobody else uses it."""
    with _lock:
        key = next(key for key, (one, _) in _clients.items() if one is client)
        left = _clients[key][1] - 1
        if left:
            _clients[key] = client, left
        else:
            del _clients[key]
    if not left:
        client.close()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for client, _ in _clients.values():
        client._lock = threading.Lock()  # noqa: SLF001 - the module's own class


os.register_at_fork(after_in_child=_after_fork)


def main() -> None:
    """Serve."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what the client prints is no answer
    module, _, name = sys.argv[1].partition(":")
    served = None
    while head := requests.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        if not length:
            return
        method, arguments = pickle.loads(requests.read(length))  # noqa: S301 - our own parent
        try:
            served = served or getattr(importlib.import_module(module), name)()
            answer = pickle.dumps((True, getattr(served, method)(*arguments)))
        except Exception as error:  # noqa: BLE001 - whatever a client raises goes to the one who asked
            answer = pickle.dumps((False, clip(f"{type(error).__name__}: {error}", 400)))
        answers.write(_LENGTH.pack(len(answer)) + answer)
        answers.flush()
    # Without a word the parent was killed. Whoever takes its work up must not find two clients at it.
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
