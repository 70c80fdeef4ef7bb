"""A model that is made where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError
from mlkit.inference._batch.check import is_async
from mlkit.inference._batch.model import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Loaded"]


@final
class Loaded:
    """In place of a model: the function that makes it, called where the model runs.

    With `engine=` it is called once in each worker process, so that weights are read from a disk or a store there instead
    of being pickled here; without, once per call of `map_batches`. Pickles as *make* does. Thread-safe if *make* is.

    Args:
        make: Takes nothing and returns what `map_batches` takes as its function: a torch module in evaluation mode, a
            function of a batch, a method such as `estimator.predict`. `functools.partial` gives it arguments.

    Raises:
        ConfigurationError: If *make* cannot be called, or is a coroutine function.

    Examples:
        >>> import numpy as np
        >>> from mlkit.inference import map_batches
        >>> def doubling():
        ...     weight = 2.0  # or read from a file
        ...     return lambda batch: batch * weight
        >>> [float(result) for result in map_batches(Loaded(doubling), np.arange(3))]
        [0.0, 2.0, 4.0]
    """

    __slots__ = ("_make", "name")
    name: str

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        if not callable(make) or is_async(make):
            raise ConfigurationError(
                "Loaded(make)", make, "a plain function without arguments that returns the model"
            )
        self._make = make
        while hasattr(make, "func"):  # functools.partial
            make = make.func
        self.name = name_of(make)

    def load(self) -> Callable[[Any], Any]:
        """Make the model.

        Raises:
            ConfigurationError: If what was made cannot be called.
        """
        model = self._make()
        if not callable(model):
            raise ConfigurationError(
                f"Loaded({self.name})",
                model,
                "a function that returns a callable model",
                hint="of an estimator, return its method: model.predict",
            )
        return model

    def __call__(self, batch: Any) -> Any:
        """Make the model and run it once; `map_batches` makes it once for all batches."""
        return self.load()(batch)

    def __repr__(self) -> str:
        return f"Loaded({self.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Loaded, (self._make,)
