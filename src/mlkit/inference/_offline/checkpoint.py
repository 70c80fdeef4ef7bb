"""A job that can be killed: the results of each batch in a file, as soon as they are there.

The file is a line that names the format, then records: first the job, then one per batch. Each has its two lengths and a
checksum before it, JSON, and a block of bytes. It is only ever appended to, so a kill leaves at most one record torn at
the end; it is cut off, and its rows run again.
"""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, final

from mlkit._digest import digest_bytes
from mlkit._suggest import clip
from mlkit.errors import CheckpointError, ConfigurationError, RowError
from mlkit.inference._batch.runner import Failure
from mlkit.inference._offline.columns import Payload, UnloadedError, UnstorableError, decode, encode
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Checkpoint", "Stored"]

_MAGIC = b"mlkit-map-batches-1\n"
_HEAD = Struct("<QQI")  # bytes of JSON, bytes of the block, CRC-32 of both; its own CRC-32 follows
_FRESH = "delete the file to start over, or pass another path"


class Stored(NamedTuple):
    """What one record says.

    Attributes:
        n_rows: Rows of the batch.
        results: For each of them its result, or a `Failure` with the `RowError` it had.
        last: Whether no row came after them.
        example: Which of them is the row that all others must fit, if it was settled in this batch.
        state: What the runner had learned; None if nothing.
        batch_size: The size that `batch_size="auto"` has chosen by now; None if none.
    """

    n_rows: int
    results: list[Any]
    last: bool
    example: int | None
    state: list[Any] | None
    batch_size: int | None


@final
class Checkpoint:
    """The file of one job. Use `check` first, then `with`, then `replay` to its end, then `append`.

    One thread at a time; another process that opens it meanwhile is refused.

    Args:
        path: The file; it need not exist yet, its folder must.
        job: What the results depend on, as JSON data; it must be the same for all runs.
    """

    def __init__(self, path: str | os.PathLike[str], job: Mapping[str, Any]) -> None:
        where = "map_batches(checkpoint=...)"
        try:
            self._path = Path(path)
        except TypeError:
            raise ConfigurationError(where, path, "the path of a file") from None
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise ConfigurationError(where, str(path), "the path of a file in a folder that exists")
        self._job: dict[str, Any] = json.loads(json.dumps(job))
        self._file: BinaryIO | None = None
        self._size = 0

    def check(self) -> None:
        """Refuse a file that is there and is not a checkpoint of this job."""
        if self._path.exists():
            with self._path.open("rb", buffering=0) as file:
                self._begin(file)

    def __enter__(self) -> Checkpoint:
        import fcntl

        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise self._error("is in use by another job that runs now; wait for it") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def replay(
        self, source: Iterator[Any], seen: Callable[[Stored, list[Any]], None]
    ) -> Iterator[Stored]:
        """Yield what is stored, and take its rows from *source*, each batch as its turn comes.

        Args:
            source: The rows, from the first one.
            seen: Called with each record and its rows.
        """
        file = self._opened()
        if not self._begin(file):
            file.truncate(0)
            file.seek(0)
            self._write([_MAGIC, *_record(self._job, Payload())])
            return
        n_before = 0
        end = file.tell()
        while (record := self._read(file)) is not None:
            end = file.tell()
            stored = self._understand(*record, n_before)
            rows = list(islice(source, stored.n_rows))
            self._compare(record[0].get("first"), rows, stored.n_rows, n_before)
            for _ in source if stored.last else ():
                raise self._error(
                    f"is of a job with {n_before + len(rows)} rows, and now there are more; {_FRESH}"
                )
            seen(stored, rows)
            del rows
            n_before += stored.n_rows
            yield stored
            del stored, record
        torn = file.seek(0, os.SEEK_END) - end
        file.truncate(end)
        file.seek(end)
        emit("inference.job.resumed", self._job["function"], rows=n_before, torn_bytes=torn)

    def append(self, rows: Sequence[Any], n_before: int, stored: Stored) -> None:
        """Write the record of one batch.

        Args:
            rows: Its rows.
            n_before: How many rows came before them.
            stored: Its results, each a value or a `Failure`, and the rest.
        """
        values = [result for result in stored.results if not isinstance(result, Failure)]
        payload = Payload()
        content: dict[str, Any] = {
            "n": stored.n_rows,
            "last": stored.last,
            "first": _digest_of(rows[0]) if rows else None,
            "failed": [
                [place, result.error.error_type, str(result.error)]
                for place, result in enumerate(stored.results)
                if isinstance(result, Failure) and isinstance(result.error, RowError)
            ],
            "example": stored.example,
            "state": stored.state,
            "batch_size": stored.batch_size,
        }
        try:
            content["results"] = encode(values, payload) if values else None
        except (UnstorableError, RecursionError) as error:
            raise self._unstorable(stored.results, n_before, error) from None
        self._write(_record(content, payload))

    def _unstorable(self, results: list[Any], n_before: int, error: Exception) -> CheckpointError:
        """Find the row whose result cannot be stored."""
        row, why = n_before, str(error)
        for place, result in enumerate(results):
            if isinstance(result, Failure):
                continue
            try:
                encode([result], Payload())
            except (UnstorableError, RecursionError) as own:
                row, why = n_before + place, str(own)
                break
        return self._error(
            f"cannot hold the result of row {row}: {clip(why, 200)}; return arrays, tensors, numbers, text, bytes, None, or "
            f"dicts, lists, tuples and dataclasses of them"
        )

    def _begin(self, file: BinaryIO) -> bool:
        """Read the format and the job; False if even those were not written before a kill."""
        magic = _read_up_to(file, len(_MAGIC))
        if magic != _MAGIC:
            if _MAGIC.startswith(magic):
                return False
            raise self._error(
                "is no checkpoint of map_batches, and is left as it is; pass another path"
            )
        record = self._read(file)
        if record is None:
            if os.fstat(file.fileno()).st_size > file.tell():
                # A kill tears the end only. What follows may be hours of work: nothing is cut off here.
                raise self._error(f"is damaged at its beginning; {_FRESH}")
            return False
        was, now = record[0], self._job
        differ = [
            f"{key} was {clip(was.get(key), 60)} and is {clip(now.get(key), 60)}"
            for key in {**now, **was}
            if json.dumps(was.get(key)) != json.dumps(now.get(key))
            # A generator has no number of rows beforehand.
            and not (key == "rows" and None in (was.get(key), now.get(key)))
        ]
        if differ:
            raise self._error(
                f"is of another job: {'; '.join(differ)}; pass what it was, or {_FRESH}"
            )
        return True

    def _read(self, file: BinaryIO) -> tuple[dict[str, Any], bytearray] | None:
        """Return the next record, or None if there is no whole one."""
        from zlib import crc32

        head = _read_up_to(file, _HEAD.size + 4)
        if len(head) < _HEAD.size + 4 or crc32(head[:-4]).to_bytes(4, "little") != head[-4:]:
            return None
        n_text, n_block, checksum = _HEAD.unpack_from(head)
        if n_text + n_block > os.fstat(file.fileno()).st_size - file.tell():
            file.seek(0, os.SEEK_END)
            return None
        text = _read_up_to(file, n_text)
        block = _read_up_to(file, n_block)
        if len(block) < n_block or crc32(block, crc32(text)) != checksum:
            return None
        try:
            content = json.loads(bytes(text))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise self._error(f"cannot be read: {_FRESH}")
        return content, block

    def _understand(self, content: dict[str, Any], block: bytearray, n_before: int) -> Stored:
        try:
            n_rows = content["n"]
            results: list[Any] = [None] * n_rows
            for place, kind, text in content["failed"]:
                results[place] = Failure(_row_error(n_before + place, kind, text), 1)
            places = [place for place in range(n_rows) if results[place] is None]
            values = decode(content["results"], len(places), block) if places else []
            for place, value in zip(places, values, strict=True):
                results[place] = value
            rest = [content[key] for key in ("last", "example", "state", "batch_size")]
        except UnloadedError as error:
            raise self._error(clip(str(error), 300)) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self._error(f"cannot be read: {clip(str(error), 200)}; {_FRESH}") from error
        return Stored(n_rows, results, *rest)

    def _compare(self, digest: str | None, rows: list[Any], n_rows: int, n_before: int) -> None:
        """Refuse rows that are not those of the record: too few, or another first one."""
        if len(rows) < n_rows:
            raise self._error(
                f"holds results of {n_before + n_rows} rows or more, and now there are {n_before + len(rows)}; {_FRESH}"
            )
        if rows and digest is not None and digest != _digest_of(rows[0]):
            raise self._error(f"is of other rows: row {n_before} is not what it was; {_FRESH}")

    def _write(self, parts: list[Any]) -> None:
        file = self._opened()
        data = memoryview(b"".join(parts))
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            # A full disk; the next run cuts off what was written of this record.
            error.filename = str(self._path)
            raise

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("a Checkpoint is used inside `with`")
        return self._file

    def _error(self, reason: str) -> CheckpointError:
        return CheckpointError(str(self._path), reason)


def _record(content: Mapping[str, Any], payload: Payload) -> list[Any]:
    from zlib import crc32

    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    checksum = crc32(text)
    for part in payload.parts:
        checksum = crc32(part, checksum)
    head = _HEAD.pack(len(text), payload.size, checksum)
    return [head, crc32(head).to_bytes(4, "little"), text, *payload.parts]


def _read_up_to(file: BinaryIO, n: int) -> bytearray:
    """Return *n* bytes, or fewer at the end of the file; arrays over them can be written to."""
    data = bytearray(n)
    rest = memoryview(data)
    while rest:
        got = file.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            break
        rest = rest[got:]
    n_missing = len(rest)
    rest.release()
    del data[n - n_missing :]
    return data


def _digest_of(row: Any) -> str | None:
    """Return what tells *row* from another one, or None if it is nothing that can be written down."""
    payload = Payload()
    try:
        stored = encode([row], payload)
    except (UnstorableError, RecursionError):
        return None
    return digest_bytes(b"".join([json.dumps(stored).encode("ascii"), *payload.parts]))


def _row_error(index: int, kind: str, text: str) -> RowError:
    """Return a `RowError` as it was, but for its cause, which is gone with the process that raised it."""
    error = RowError(index, Exception())
    error.error_type, error.args, error.__cause__ = kind, (text,), None
    return error
