"""A sink in memory that does what a test tells it to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlkit.errors import SinkRejectedError, SinkUnavailableError
from mlkit.tracking import Record, RunInfo


class MemorySink:
    """Keeps records by id; can be away, or refuse records by key."""

    def __init__(self, uri: str = "memory:one", *, max_records: int = 100) -> None:
        self.uri = uri
        self.max_records = max_records
        self.held: dict[str, Record] = {}
        self.sent: list[int] = []
        self.opened: list[RunInfo] = []
        self.away = 0
        self.refuse: set[str] = set()

    def open(self, run: RunInfo) -> None:
        self._answer()
        self.opened.append(run)

    def send(self, batch: Sequence[Record]) -> None:
        self._answer()
        self.sent.append(len(batch))
        for record in batch:
            if record.key in self.refuse:
                raise SinkRejectedError(f"{record.key} is not welcome")
            self.held[record.id] = record

    def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise SinkUnavailableError("nobody at home")

    @property
    def keys(self) -> list[str]:
        return [record.key for record in self.held.values()]


@pytest.fixture
def memory() -> MemorySink:
    return MemorySink()


@pytest.fixture
def memory_sink() -> type[MemorySink]:
    return MemorySink
