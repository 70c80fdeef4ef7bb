"""TensorBoard's event files, written by hand: neither TensorBoard nor TensorFlow is needed to write them."""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, final

from mlkit.errors import SinkUnavailableError
from mlkit.tracking._sink import checked_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlkit.tracking._records import Record, RunInfo

__all__ = ["TensorboardSink"]

# A file is a sequence of `length:u64 crc:u32 data crc:u32` (TFRecord); data is the protobuf message
# tensorflow.Event. Both CRCs are CRC-32C, "masked".
_LENGTH, _CRC = Struct("<Q"), Struct("<I")
_DOUBLE, _FLOAT = Struct("<d"), Struct("<f")
_OURS = "mlkit/"
# A field that TensorBoard's own messages do not have, which readers of protobuf skip: the record's id, by which a replay
# is known.
_ID_FIELD = 60_000
_LONG = bytes(range(128, 256))  # what the length of a long text begins with, and ASCII does not
_FLOAT32, _STRING = 1, 7  # tensorflow.DataType
_SCALAR, _TENSOR = 1, 2  # tensorboard.DataClass, without which nothing is shown


@final
class TensorboardSink:
    """Writes each run as a folder of TensorBoard: `tensorboard --logdir FOLDER` shows it.

    A metric is a scalar of 32 bits, which is what TensorBoard shows, with every bit of the number beside it in
    the tensor's `double_val`; one too large for that is text under `mlkit/beyond-float32/<name>`. Params, tags, artifact digests and the status are on the page "Text", under
    `mlkit/params/<name>`, `mlkit/tags/...`, `mlkit/artifacts/...` and `mlkit/status`; a metric whose own name
    begins with `mlkit/` is `mlkit/metrics/<name>`. TensorBoard itself shows of a metric whose steps go back what
    came after. Not thread-safe. Its address is `tensorboard:FOLDER`.

    Args:
        folder: Where the runs' folders go; made when needed.

    Examples:
        >>> TensorboardSink("logs").uri.startswith("tensorboard:/")
        True

    Note:
        It opens a run in a time linear in what it holds. The format: `tensorflow/core/util/event.proto`,
        `tensorflow/core/framework/summary.proto` and `tensorflow/core/lib/io/record_writer.h`.
    """

    folder: Path

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = checked_folder("TensorboardSink", folder)
        """Where the runs' folders go."""
        self._file = -1
        self._known: set[str] = set()

    @property
    def uri(self) -> str:
        """`"tensorboard:"` and the absolute path of the folder."""
        return f"tensorboard:{self.folder}"

    @property
    def max_records(self) -> int:
        """1000."""
        return 1000

    def open(self, run: RunInfo) -> None:
        """Open the run's file, and drop what a killed process did not finish.

        Args:
            run: The run.
        """
        self.close()
        place = self.folder / run.id
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"events.out.tfevents.{int(run.start_time):010d}.mlkit"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content, whole = path.read_bytes(), 0
        self._known = set()
        for end, event in _events(content):
            self._known.add(_id_of(event))
            whole = end
        os.ftruncate(self._file, whole)
        if not whole:
            self._write(_framed(_double(1, run.start_time) + _bytes(3, b"brain.Event:2")))

    def send(self, batch: Sequence[Record]) -> None:
        """Append the records that the file does not have.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If the file cannot be written to now.
        """
        fresh = {record.id: record for record in batch if record.id not in self._known}
        self._write(b"".join(_framed(_event(record)) for record in fresh.values()))
        self._known.update(fresh)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __repr__(self) -> str:
        return f"TensorboardSink({str(self.folder)!r})"

    def _write(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise SinkUnavailableError(f"{self.folder}: no space left for {len(data)} bytes")


def _event(record: Record) -> bytes:
    """Return a tensorflow.Event of one summary value."""
    exact, value = b"", record.value
    if isinstance(value, (int, float)):
        exact = _bytes(6, _DOUBLE.pack(value))  # double_val, which readers of another type skip
    shown = _float32(value) if record.kind == "metric" else None
    if shown is not None:
        tag = f"{_OURS}metrics/{record.key}" if record.key.startswith(_OURS) else record.key
        tensor = _number(1, _FLOAT32) + _bytes(2, b"") + _bytes(4, shown)
        plugin, data_class = b"scalars", _SCALAR
    else:
        place = "beyond-float32" if record.kind == "metric" else f"{record.kind}s"
        tag = _OURS + ("status" if record.kind == "status" else f"{place}/{record.key}")
        text = str(value).encode("utf-8", "backslashreplace")
        tensor = _number(1, _STRING) + _bytes(2, b"") + _bytes(8, text)
        plugin, data_class = b"text", _TENSOR
    named = _bytes(1, tag.encode("utf-8", "backslashreplace"))
    metadata = _bytes(9, _bytes(1, _bytes(1, plugin)) + _number(4, data_class))
    summary = _bytes(1, named + _bytes(8, tensor + exact) + metadata)
    return (
        _double(1, record.time)
        + _number(2, record.step)
        + _bytes(5, summary)
        + _bytes(_ID_FIELD, record.id.encode())
    )


def _float32(value: float | str) -> bytes | None:
    """Return the nearest float of 32 bits, or None if there is none."""
    try:
        return _FLOAT.pack(value)
    except OverflowError:
        return None


def _framed(data: bytes) -> bytes:
    length = _LENGTH.pack(len(data))
    return length + _CRC.pack(_masked(length)) + data + _CRC.pack(_masked(data))


def _events(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the end and the data of each whole event, and stop at the first that is not whole."""
    start = 0
    while start + 12 <= len(content):
        head = content[start : start + 8]
        end = start + 12 + _LENGTH.unpack(head)[0]
        if _CRC.unpack_from(content, start + 8)[0] != _masked(head) or end + 4 > len(content):
            return
        data = content[start + 12 : end]
        if _CRC.unpack_from(content, end)[0] != _masked(data):
            return
        start = end + 4
        yield start, data


def _id_of(event: bytes) -> str:
    """Return the record's id, which is the last field of an event of ours."""
    mark = _varint(_ID_FIELD << 3 | 2)
    behind = event.rpartition(mark)[2]
    return behind.lstrip(_LONG)[1:].decode("utf-8", "replace")


# --- protobuf's wire format: a field is its number and type, then its content --------------------


def _varint(number: int) -> bytes:
    number &= 0xFFFFFFFFFFFFFFFF  # a negative one is its two's complement
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + _DOUBLE.pack(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


# --- CRC-32C (Castagnoli), which Python does not have ---------------------------------------------


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE: list[int] = []


def _masked(data: bytes) -> int:
    """Return the CRC of *data* as TFRecord keeps it: rotated and shifted, so that a CRC of data with CRCs in it is sound."""
    if not _TABLE:
        _TABLE.extend(_table())
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
