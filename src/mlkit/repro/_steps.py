"""What one run did, step by step: written once, and compared with later runs in bounded memory."""

from __future__ import annotations

from struct import Struct
from typing import Any, NamedTuple, TypeAlias, final

__all__ = ["Head", "Reading", "Step", "Steps", "kind_of"]

_IN_MEMORY = 2**20  # bytes
_PIECE = 2**16  # bytes
_RECORD = Struct("<II")  # which head, and how long the digest after it is

# Operation, module, then dtype and shape of each tensor: what steps have alike, flat because it is hashed each time.
Head: TypeAlias = "tuple[Any, ...]"


class Step(NamedTuple):
    """One operation: its name, the module it ran in (empty outside of one), what it wrote, a digest of that.

    `written` has dtype and shape of each tensor.
    """

    op: str
    module: str
    written: tuple[tuple[Any, Any], ...]
    content: bytes

    @classmethod
    def of(cls, head: Head, content: bytes) -> Step:
        """Return the step with that head."""
        return cls(head[0], head[1], tuple(zip(head[2::2], head[3::2], strict=True)), content)

    @property
    def kind(self) -> str:
        """The dtypes and shapes as text: `"float32[4, 8]"`."""
        return kind_of(self.written)


def kind_of(written: tuple[tuple[Any, Any], ...]) -> str:
    """Return dtypes and shapes as text."""
    return ", ".join([f"{dtype}{list(shape)}" for dtype, shape in written]).replace("torch.", "")


@final
class Steps:
    """The steps of one run, written once and read any number of times, while nobody else reads or writes them.

    Each head is kept once; the records of the steps go to a file once they are many.
    """

    __slots__ = ("_file", "_last", "heads")

    def __init__(self) -> None:
        from tempfile import SpooledTemporaryFile

        self.heads: dict[Head, int] = {}
        self._file: Any = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by close()
        self._last = bytearray()  # records on their way to the file

    def append(self, head: Head, content: bytes) -> None:
        """Add a step at the end."""
        number = self.heads.setdefault(head, len(self.heads))
        self._last += _RECORD.pack(number, len(content)) + content
        if len(self._last) > _PIECE:
            self._flush()

    def read(self) -> Reading:
        """Return a reading from the first step on."""
        self._flush()
        self._file.seek(0)
        return Reading(self, self._file)

    def close(self) -> None:
        """Remove the file, if there is one."""
        self._file.close()

    def _flush(self) -> None:
        self._file.write(self._last)
        self._last.clear()


@final
class Reading:
    """Goes through the steps of a run beside another run."""

    __slots__ = ("_at", "_file", "_heads", "_piece")

    def __init__(self, steps: Steps, file: Any) -> None:
        self._heads, self._file = steps.heads, file
        self._piece, self._at = b"", 0

    def goes_on(self, head: Head, content: bytes) -> bool:
        """Go past the next step if it is this one, and return whether it is."""
        number = self._heads.get(head)
        if number is None:
            return False
        record = _RECORD.pack(number, len(content)) + content
        end = self._at + len(record)
        if end > len(self._piece):
            self._fill(len(record))
            end = len(record)
        if self._piece[self._at : end] != record:
            return False
        self._at = end
        return True

    def next(self) -> Step | None:
        """Return the next step, or None at the end."""
        self._fill(_RECORD.size)
        if not self._piece:
            return None
        number, size = _RECORD.unpack_from(self._piece)
        self._fill(_RECORD.size + size)
        content = self._piece[_RECORD.size : _RECORD.size + size]
        self._at = _RECORD.size + size
        return Step.of([*self._heads][number], content)

    def _fill(self, size: int) -> None:
        """Let the piece begin at the next record, and hold *size* bytes if there are as many."""
        self._piece, self._at = self._piece[self._at :], 0
        if len(self._piece) < size:
            self._piece += self._file.read(max(size, _PIECE))
