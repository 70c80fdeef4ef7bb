"""A run that a client writes from what is kept of it: when the run ends, or as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit._digest import digest, short
from mlkit.errors import SinkUnavailableError
from mlkit.integrations._client import acquire, release
from mlkit.integrations._spool import Spool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlkit.integrations._client import Client
    from mlkit.tracking import Record, RunInfo

__all__ = ["Deferred"]

_BEGIN = 90.0  # seconds that a client may take to begin, and for anything else besides its rows
_ROW, _BYTE = 0.01, 1e-6


@final
class Deferred:
    """Keeps what a sink is sent, and has another process hand it to the client.

    Once the run has ended, all is with the client before `send` returns. Not thread-safe.

    Args:
        folder: Where the client writes.
        target: What works in the client's process, see `Client`. Its methods take the path of the spool, the
            folder, the options and whether this is the last time.
        environment: What it gets as environment, see `Client`.
        options: Of the sink.
    """

    method: str
    eager: bool

    def __init__(
        self,
        folder: Path,
        target: str,
        environment: Mapping[str, str | None],
        options: Mapping[str, str],
    ) -> None:
        self.method = "write"
        """Which method is called; empty for none."""
        self.eager = False
        """Whether the client gets everything at once."""
        self._folder, self._target = folder, target
        self._environment, self._options = environment, dict(options)
        # Several sinks may share a folder: of several clients, or of one with several options.
        self._label = target.partition(":")[0].rpartition(".")[2]
        if options:
            self._label += f"-{short(digest(dict(options)))}"
        self._begun = False  # the client has the run open
        self._spool: Spool | None = None
        self._client: Client | None = None

    def open(self, run: RunInfo) -> None:
        """Find what is kept of a run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        spool = Spool(self._folder / "mlkit" / self._label / f"{run.id}.jsonl")
        spool.open(run)
        self._spool, self._begun = spool, False

    def call(self, method: str) -> object:
        """Return what a method without arguments says."""
        return self._connected().call(method, timeout=_BEGIN)

    def send(self, batch: Sequence[Record]) -> None:
        """Keep what is new, and hand it on if it is time."""
        if self._spool is None:
            raise SinkUnavailableError(f"{self._target}: send before open")
        self._spool.add(batch)
        if self._spool.changed and (self._spool.ended or self.eager):
            self._write(self._spool, last=self._spool.ended)

    def close(self) -> None:
        """Hand on what has not been, and let the client go."""
        spool, self._spool = self._spool, None
        try:
            if spool is not None:
                spool.close()
                if spool.changed or self._begun:
                    self._write(spool, last=True)
        finally:
            client, self._client = self._client, None
            if client is not None:
                release(client)

    def _connected(self) -> Client:
        if self._client is None:
            self._client = acquire(self._target, self._environment)
        return self._client

    def _write(self, spool: Spool, *, last: bool) -> None:
        if self.method:
            patience = _BEGIN + _ROW * spool.rows + _BYTE * spool.content_bytes
            arguments = (str(spool.path), str(self._folder), self._options, last)
            self._connected().call(self.method, *arguments, timeout=patience)
        self._begun = self.eager and not last
        spool.done()
