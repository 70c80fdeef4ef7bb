"""A fallback in the body of a class: a method, as a function would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, TypeVar, cast, final, overload

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from mlkit.resilience._fallback import Fallback
    from mlkit.resilience._provenance import Answer

__all__ = ["BoundFallback"]

_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_T = TypeVar("_T")


@final
class BoundFallback(Generic[_Q, _T]):
    """A fallback as a method of an object: it is handed on to every tier as the first argument."""

    __slots__ = ("__self__", "_function")
    __self__: object
    _function: Any  # a Fallback; said so, checkers would bind it, as it is a descriptor

    def __init__(self, function: Fallback[..., _T], instance: object) -> None:
        self._function, self.__self__ = function, instance

    @property
    def __func__(self) -> Fallback[..., _T]:
        """The fallback itself."""
        function: Fallback[..., _T] = self._function
        return function

    @property
    def _is_coroutine(self) -> object:
        return getattr(self._function, "_is_coroutine", None)

    @property
    def _is_coroutine_marker(self) -> object:
        return getattr(self._function, "_is_coroutine_marker", None)

    @property
    def __name__(self) -> str:
        """The name of the fallback."""
        found: str = self._function.name
        return found

    def __call__(self, *args: _Q.args, **kwargs: _Q.kwargs) -> _T:
        """Return the first good answer, see `Fallback`."""
        function, given = self._function, (self.__self__, *args)
        if function.per_row:
            return cast("_T", function._called(given, kwargs, 1))  # noqa: SLF001 - one room
        found: _T = function(*given, **kwargs)
        return found

    @overload
    def explain(self: BoundFallback[_Q, Never], *args: _Q.args, **kwargs: _Q.kwargs) -> Any: ...
    @overload
    def explain(  # type: ignore[overload-overlap]  # as in `Fallback`
        self: BoundFallback[_Q, Coroutine[Any, Any, _R]], *args: _Q.args, **kwargs: _Q.kwargs
    ) -> Coroutine[Any, Any, Answer[_R]]: ...
    @overload
    def explain(self, *args: _Q.args, **kwargs: _Q.kwargs) -> Answer[_T]: ...
    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first good answer together with where it came from, see `Fallback.explain`."""
        return self._function._explained((self.__self__, *args), kwargs, 1)  # noqa: SLF001 - one room

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BoundFallback)
            and other._function is self._function
            and other.__self__ is self.__self__
        )

    def __hash__(self) -> int:
        return hash((id(self._function), id(self.__self__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundFallback, (self._function, self.__self__)

    def __repr__(self) -> str:
        return f"<bound {self._function!r} of {type(self.__self__).__qualname__}>"
