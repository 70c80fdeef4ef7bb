"""pickle, for what has no safe format, by decision."""

from __future__ import annotations

import pickle
from typing import IO, Any, final

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError

__all__ = ["PickleCodec"]


@final
class PickleCodec:
    """The codec `"pickle"`."""

    __slots__ = ()
    name = "pickle"

    def handles(self, model: object, /) -> bool:
        """Return whether *model* can be tried: everything but text, which is rather a path that was meant."""
        return not isinstance(model, str)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        """Write anything that pickle takes."""
        try:
            pickle.dump(model, file, protocol=5)
        except (
            pickle.PicklingError,
            AttributeError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            reason = clip(f"{type(error).__name__}: {error}", 200)
            raise ConfigurationError(
                "save(model)", model, "what pickle can store", hint=reason
            ) from error

    def read(self, file: IO[bytes], /) -> Any:
        """Return the object in *file*, running whatever it says."""
        return pickle.load(file)  # noqa: S301 - the caller said trust="pickle", and the digest was checked
