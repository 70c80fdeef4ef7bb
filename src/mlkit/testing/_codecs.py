"""The laws of a codec of models as tests, for those who write one."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

from io import BytesIO, RawIOBase
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mlkit.models import Codec

__all__ = ["CodecContract"]


class CodecContract:
    """The laws of `mlkit.models.Codec`, to be inherited by a test class for pytest.

    That equal bytes come from another process, too, and that reading hostile bytes runs nothing, it cannot show.

    Examples:
        ```python
        class TestBooster(CodecContract):
            def make_codec(self) -> Codec:
                return BoosterCodec()

            def make_model(self) -> object:
                return train(seed=0)

            def answer(self, model: object) -> object:
                return model.predict(ROWS).tolist()
        ```
    """

    def make_codec(self) -> Codec:
        """Return a new codec."""
        raise NotImplementedError

    def make_model(self) -> object:
        """Return a new model that the codec handles; an equal one each time."""
        raise NotImplementedError

    def answer(self, model: Any) -> object:
        """Return what *model* answers to some fixed input, as a value that `==` compares.

        Args:
            model: What `make_model` or `read` returned.
        """
        raise NotImplementedError

    def test_the_name_can_be_stored(self) -> None:
        """The name is a format's name, and the same each time."""
        from mlkit.models._codec import is_format

        codec = self.make_codec()
        assert is_format(codec.name), f"{codec.name!r} cannot be the name of a format"
        assert codec.name == codec.name == self.make_codec().name

    def test_it_handles_its_models_and_nothing_else(self) -> None:
        """Law 1: `handles` is False for what is no model of this kind, and raises for nothing."""
        codec, model = self.make_codec(), self.make_model()
        assert codec.handles(model)
        for other in (None, 0, "", {}, [], object(), type(model), _Evil()):
            assert not codec.handles(other), f"it says that it handles {type(other).__name__}"

    def test_what_is_read_answers_as_what_was_written(self) -> None:
        """Law 2."""
        model = self.make_model()
        loaded = self.make_codec().read(BytesIO(self._written(model)))
        assert self.answer(loaded) == self.answer(model)

    def test_equal_models_make_equal_bytes(self) -> None:
        """Law 3: also one that was read, and one after another in one codec."""
        codec, content = self.make_codec(), self._written(self.make_model())
        assert self._written(self.make_model()) == content
        assert self._written(codec.read(BytesIO(content))) == content
        assert [self._written(self.make_model(), codec) for _ in range(2)] == [content, content]

    def test_writing_changes_nothing_and_reading_makes_a_new_one(self) -> None:
        """Law 4."""
        codec, model = self.make_codec(), self.make_model()
        before = self.answer(model)
        content = self._written(model, codec)
        assert self.answer(model) == before
        one, other = codec.read(BytesIO(content)), codec.read(BytesIO(content))
        assert one is not other
        assert one is not model

    def test_what_is_no_model_is_refused(self) -> None:
        """Law 5: nothing, something else, and a part of a model all raise."""
        codec, content = self.make_codec(), self._written(self.make_model())
        for wrong in (b"", b"\x00" * 64, b"not a model " * 99, content[: len(content) // 2]):
            try:
                codec.read(BytesIO(wrong))
            except Exception:  # noqa: BLE001, S112 - any error will do
                continue
            raise AssertionError(f"it read a model out of {wrong[:20]!r}... ({len(wrong)} bytes)")

    def _written(self, model: object, codec: Codec | None = None) -> bytes:
        file = _Stream()
        (codec or self.make_codec()).write(model, cast("IO[bytes]", file))
        return bytes(file.content)


class _Stream(RawIOBase):
    """What a store gives to `write`: it takes bytes and cannot go back."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return len(self.content)

    def write(self, data: Any) -> int:
        part = memoryview(data).cast("B")
        self.content += part
        return len(part)


class _Evil:
    """An object of which nothing can be asked but its type."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"asked for {name}")
