"""Gates: whether an answer may be given out, for the whole of it or row by row, and how they compose.

A verdict is yes, no, or unknown, and composes by the rules of Kleene's logic; what is unknown does not pass, and neither
does its negation. Of rows, a verdict is two masks: those that are known to pass, and those that are known not to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, final

from mlkit.errors import ConfigurationError
from mlkit.resilience._kinds import is_array, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate", "Judge", "gate_of", "rows_verdict", "whole_verdict"]


class Judge(Protocol):
    """What decides in a gate. Immutable; equal, hashed and pickled by what it is made of."""

    @property
    def cost(self) -> int:
        """What is asked first in `&` and `|`: 0 looks at the answer, 1 is code of a user, 2 asks another model."""

    @property
    def arguments(self) -> bool:
        """Whether it looks at the arguments of the call as well."""

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        """Return whether all of *answer* passes; None if that is unknown."""

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return two NumPy masks of shape `(n,)`: the rows that pass, and those that do not."""


@final
class Gate:
    """A question about an answer. Gates compose with `&`, `|` and `~`; `and`, `or` and `not` raise.

    Called with an answer it says whether all of it passes; `mask` says it for each row. What a gate cannot know (whether
    NaN is in a range) does not pass, and does not pass the opposite of that gate either. Of two, the cheaper one is asked
    first, whichever is written first, and the other one only if the first does not decide: gates of mlkit that look at
    the answer, then checks of your own in the order in which they are written, then `agrees`.

    Immutable, thread-safe; equal to a gate that is made in the same way; picklable if *check* is.

    Args:
        check: From an answer to a bool, or to bools for its elements (array, tensor or list, rows first). A single bool
            decides about all rows. None, in place of a bool, if it cannot be known.
        name: How it is shown; default the name of *check*.
        arguments: Whether *check* is also given the arguments of the call, after the answer; with `per_row`, of the rows
            it is about.

    Raises:
        ConfigurationError: If *check* is not callable.

    Examples:
        >>> from mlkit.resilience import confidence, finite
        >>> short = Gate(lambda text: len(text) < 5, name="short")
        >>> short("four"), (~short)("four")
        (True, False)
        >>> finite & confidence(0.6)
        finite & confidence(0.6)
    """

    __slots__ = ("_judge", "_loose", "_whole", "name")
    name: str

    def __init__(
        self, check: Callable[..., Any], *, name: str | None = None, arguments: bool = False
    ) -> None:
        if not callable(check):
            raise ConfigurationError("Gate(check)", check, "a callable of the answer")
        if not isinstance(arguments, bool):
            raise ConfigurationError("Gate(arguments=...)", arguments, "True or False")
        shown = name or str(getattr(check, "__name__", type(check).__name__))
        self._be(_Check(check, shown, arguments), shown)

    @classmethod
    def of(cls, where: str, value: Gate | Callable[[Any], Any]) -> Gate:
        """Return *value* as a gate.

        Args:
            where: The argument it came from, for the error.
            value: A gate, or a callable of the answer.
        """
        if isinstance(value, Gate):
            return value
        if not callable(value):
            raise ConfigurationError(where, value, "a gate or a callable of the answer")
        return cls(value)

    @property
    def arguments(self) -> bool:
        """Whether it looks at the arguments of the call as well as at its answer."""
        return self._judge.arguments

    def __call__(self, answer: Any, *args: Any, **kwargs: Any) -> bool:
        """Return whether all of *answer* passes.

        Args:
            answer: What a tier gave.
            *args: What the tier was called with, for a gate that looks at it.
            **kwargs: The same, by keyword.

        Raises:
            ConfigurationError: If the check gives something else than bools, or is one of mlkit's that cannot judge the
                answer.
        """
        return self._whole(answer, args, kwargs) is True

    def mask(self, answer: Any, n: int, *args: Any, **kwargs: Any) -> Any:
        """Return which rows of *answer* pass, as a NumPy array of bool of shape `(n,)`.

        Args:
            answer: `(n, ...)`, rows first.
            n: The number of rows.
            *args: What the tier was called with, for a gate that looks at it.
            **kwargs: The same, by keyword.

        Raises:
            ConfigurationError: If the check gives neither one bool nor one per row, or is one of mlkit's that cannot
                judge the answer.
        """
        return self._judge.rows(answer, n, args, kwargs)[0]

    def __and__(self, other: Gate | Callable[[Any], Any]) -> Gate:
        right = Gate.of("gate & other", other)
        return gate_of(_Both(self, right), f"{self._tight()} & {right._tight()}")

    def __rand__(self, other: Callable[[Any], Any]) -> Gate:
        return Gate.of("other & gate", other) & self

    def __or__(self, other: Gate | Callable[[Any], Any]) -> Gate:
        right = Gate.of("gate | other", other)
        return gate_of(_Either(self, right), f"{self.name} | {right.name}", loose=True)

    def __ror__(self, other: Callable[[Any], Any]) -> Gate:
        return Gate.of("other | gate", other) | self

    def __invert__(self) -> Gate:
        composed = " & " in self.name or " | " in self.name
        return gate_of(_Not(self), f"~({self.name})" if composed else f"~{self.name}")

    def __bool__(self) -> NoReturn:
        raise ConfigurationError(
            f"bool({self.name})",
            self,
            "an answer to judge, as in gate(answer)",
            hint="compose gates by & | ~; `and`, `or` and `not` would drop one of them",
        )

    def _tight(self) -> str:
        return f"({self.name})" if self._loose else self.name

    def _be(self, judge: Judge, name: str, *, loose: bool = False) -> None:
        self._judge, self._whole = judge, judge.whole
        self.name, self._loose = name, loose

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Gate)
            and type(other._judge) is type(self._judge)
            and other._judge == self._judge
            and other.name == self.name
        )

    def __hash__(self) -> int:
        return hash((type(self._judge), self._judge, self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return gate_of, (self._judge, self.name, self._loose)

    def __repr__(self) -> str:
        return self.name


def gate_of(judge: Judge, name: str, loose: bool = False) -> Gate:  # noqa: FBT001, FBT002 - also what pickle calls
    """Return the gate of a judge."""
    gate = Gate.__new__(Gate)
    gate._be(judge, name, loose=loose)  # noqa: SLF001 - its own kind
    return gate


class _Check(NamedTuple):
    """Code of a user."""

    check: Callable[..., Any]
    name: str
    arguments: bool

    @property
    def cost(self) -> int:
        return 1

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        return whole_verdict(self._asked(answer, args, kwargs), self.name)

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rows_verdict(self._asked(answer, args, kwargs), n, self.name)

    def _asked(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.check(answer, *args, **kwargs) if self.arguments else self.check(answer)


class _Both(NamedTuple):
    left: Gate
    right: Gate

    @property
    def cost(self) -> int:
        return max(_cost(self.left), _cost(self.right))

    @property
    def arguments(self) -> bool:
        return self.left.arguments or self.right.arguments

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        first, second = _cheaper_first(self.left, self.right)
        one = first.whole(answer, args, kwargs)
        if one is False:
            return False
        other = second.whole(answer, args, kwargs)
        return other if one is True or other is False else None

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = _cheaper_first(self.left, self.right)
        yes, no = first.rows(answer, n, args, kwargs)
        if n and no.all():
            return yes, no
        more_yes, more_no = second.rows(answer, n, args, kwargs)
        return yes & more_yes, no | more_no


class _Either(NamedTuple):
    left: Gate
    right: Gate

    @property
    def cost(self) -> int:
        return max(_cost(self.left), _cost(self.right))

    @property
    def arguments(self) -> bool:
        return self.left.arguments or self.right.arguments

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        first, second = _cheaper_first(self.left, self.right)
        one = first.whole(answer, args, kwargs)
        if one is True:
            return True
        other = second.whole(answer, args, kwargs)
        return other if one is False or other is True else None

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = _cheaper_first(self.left, self.right)
        yes, no = first.rows(answer, n, args, kwargs)
        if n and yes.all():
            return yes, no
        more_yes, more_no = second.rows(answer, n, args, kwargs)
        return yes | more_yes, no & more_no


class _Not(NamedTuple):
    gate: Gate

    @property
    def cost(self) -> int:
        return _cost(self.gate)

    @property
    def arguments(self) -> bool:
        return self.gate.arguments

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        verdict = self.gate._judge.whole(answer, args, kwargs)  # noqa: SLF001 - one room
        return None if verdict is None else not verdict

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        yes, no = self.gate._judge.rows(answer, n, args, kwargs)  # noqa: SLF001 - one room
        return no, yes


def _cost(gate: Gate) -> int:
    return gate._judge.cost  # noqa: SLF001 - one room


def _cheaper_first(left: Gate, right: Gate) -> tuple[Judge, Judge]:
    one, other = left._judge, right._judge  # noqa: SLF001 - one room
    return (other, one) if other.cost < one.cost else (one, other)


def whole_verdict(verdict: Any, gate: str) -> bool | None:
    """Read what a check said about an answer: a bool, None, or these for its elements, which all must be True."""
    if verdict is None or isinstance(verdict, bool):
        return verdict
    if is_tensor(verdict) or is_array(verdict):
        if "bool" in str(verdict.dtype):
            return bool(verdict.all())
    elif isinstance(verdict, (list, tuple)):
        items = [whole_verdict(item, gate) for item in verdict]
        return False if False in items else None if None in items else True
    raise ConfigurationError(f"gate {gate!r}", type(verdict), "a bool, or bools, from its check")


def rows_verdict(verdict: Any, n: int, gate: str) -> Any:
    """Read what a check said about rows as two NumPy masks of shape `(n,)`: those that pass, and those that do not."""
    import numpy as np

    if verdict is None:
        return np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    if isinstance(verdict, (list, tuple)):
        items = [whole_verdict(item, gate) for item in verdict]
        yes = np.array([item is True for item in items], dtype=bool)
        no = np.array([item is False for item in items], dtype=bool)
        return _one_each(yes, n, gate), no
    if is_tensor(verdict):
        verdict = verdict.detach().cpu().numpy()
    verdict = np.asarray(verdict)
    if verdict.dtype != bool:
        raise ConfigurationError(
            f"gate {gate!r}", verdict.dtype, "a bool, or bools, from its check"
        )
    if verdict.ndim == 0:
        yes = np.full(n, bool(verdict))
    elif _one_each(verdict, n, gate).all():  # far cheaper than row by row, and the usual case
        yes = np.ones(n, dtype=bool)
    else:
        yes = verdict.all(axis=tuple(range(1, verdict.ndim)))
    return yes, ~yes


def _one_each(verdicts: Any, n: int, gate: str) -> Any:
    if len(verdicts) != n:
        raise ConfigurationError(f"gate {gate!r}", len(verdicts), f"one bool for each of {n} rows")
    return verdicts
