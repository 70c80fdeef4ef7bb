"""An async model function, for a thread that calls plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.inference._batch.model import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Awaited"]


@final
class Awaited:
    """Runs an async function to its end in an event loop that belongs to the thread which runs it.

    The loop lives until `close`, so that what the function opens in one call, such as the connections of a client, is
    there in the next.

    Args:
        fn: The async function.
    """

    def __init__(self, fn: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        self._fn = fn
        self._runner: Any = None
        self.__qualname__ = name_of(fn)

    def __call__(self, batch: Any) -> Any:
        """Return what the function returns for *batch*."""
        if self._runner is None:
            from asyncio import Runner

            self._runner = Runner()
        return self._runner.run(self._fn(batch))

    def close(self) -> None:
        """Cancel the tasks that the function has left behind, and close the loop. In the thread that ran it."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
