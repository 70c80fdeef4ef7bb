"""Fault plans: what goes wrong, where, and at which call, decided before the test runs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, final

from mlkit._arguments import seconds as check_seconds
from mlkit._arguments import whole
from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fault", "FaultPlan", "fail", "faults", "faulty", "ok", "slow", "value"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@final
class Fault:
    """What happens to one call of a site. Made by `fail`, `slow` and `value`; `ok` is one. Immutable.

    Attributes:
        pause: Seconds that pass before anything else.
        replaces: Whether the function is not called.
    """

    __slots__ = ("_outcome", "_text", "pause", "replaces")
    pause: float
    replaces: bool

    def __init__(
        self, text: str, *, pause: float = 0.0, outcome: Callable[[str], Any] | None = None
    ) -> None:
        self._text, self.pause = text, pause
        self._outcome = outcome
        self.replaces = outcome is not None

    def outcome(self, site: str) -> Any:
        """Return what comes instead of the function's answer, or raise it."""
        return None if self._outcome is None else self._outcome(site)

    def __repr__(self) -> str:
        return self._text


ok: Fault = Fault("ok")
"""Nothing happens: the function is called."""


def fail(error: type[BaseException] | BaseException) -> Fault:
    """Return a fault that raises *error* and does not call the function.

    Args:
        error: An exception type, raised with a message that names the site, or an exception, of which a fresh copy is
            raised each time.

    Raises:
        ConfigurationError: If *error* is neither, or a type that a message alone does not make.

    Examples:
        >>> fail(ConnectionError)
        fail(ConnectionError)
    """
    if isinstance(error, type) and issubclass(error, BaseException):
        kind = error
        try:
            kind("injected")
        except TypeError:
            expected = "an exception, or an exception type that a message alone makes"
            raise ConfigurationError("fail(error)", error, expected) from None

        def raised(site: str) -> Any:
            raise kind(f"injected at {site}")

        return Fault(f"fail({kind.__name__})", outcome=raised)
    if isinstance(error, BaseException):
        template = error

        def raised_again(_site: str) -> Any:
            raise _fresh(template)

        return Fault(f"fail({template!r})", outcome=raised_again)
    raise ConfigurationError("fail(error)", error, "an exception type or an exception")


def _fresh(template: BaseException) -> BaseException:
    """Return a copy without calling an `__init__` of Python, which may take other arguments than it passed on."""
    kind: Any = type(template)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    if kind.__init__ is builtin.__init__:
        return copy.copy(template)
    made: BaseException = builtin.__new__(kind, *template.args)
    builtin.__init__(made, *template.args)
    vars(made).update(vars(template))
    return made


def slow(seconds: float) -> Fault:
    """Return a fault that lets *seconds* pass on the current clock and then calls the function.

    Args:
        seconds: At least 0.

    Raises:
        ConfigurationError: If *seconds* is no such number.
    """
    pause = check_seconds("slow(seconds)", seconds, zero=True)
    return Fault(f"slow({pause:g})", pause=pause)


def value(answer: object) -> Fault:
    """Return a fault that gives *answer*, as it is, and does not call the function.

    Args:
        answer: Anything, e.g. `float("nan")` or an array of them.
    """
    return Fault(f"value({type(answer).__name__})", outcome=lambda _site: answer)


@final
class FaultPlan:
    """What goes wrong at which call of which site.

    A site's faults are either a sequence, used up call by call (then all is well), or a mapping from fault to its share
    of the calls. Shares are drawn by seed, site and number of the call alone: threads and tasks may come in any order
    without changing what the nth call of a site meets.

    Thread-safe. State (how many calls were made) belongs to the object.

    Args:
        plan: Faults by site.
        seed: What shares are drawn from.

    Raises:
        ConfigurationError: If something in *plan* is not a fault, or shares do not add up to at most 1.

    Examples:
        >>> plan = FaultPlan({"db": [ok, fail(ConnectionError)], "model": {slow(0.2): 0.05}}, seed=7)
        >>> [plan.draw("db") for _ in range(3)]
        [ok, fail(ConnectionError), ok]
    """

    def __init__(
        self, plan: Mapping[str, Sequence[Fault] | Mapping[Fault, float]], *, seed: int = 0
    ) -> None:
        if not isinstance(plan, Mapping):
            raise ConfigurationError("FaultPlan(plan)", plan, "a mapping from site to faults")
        seed = whole("FaultPlan(seed=...)", seed, low=None)
        self._plan = {site: _checked(site, given) for site, given in plan.items()}
        self._seed = seed
        self._lock = threading.Lock()
        self._calls = dict.fromkeys(self._plan, 0)

    def draw(self, site: str) -> Fault:
        """Return what happens to the next call of *site*; `ok` if the plan does not speak of it.

        Args:
            site: The site's name.
        """
        given = self._plan.get(site)
        if given is None:
            return ok
        with self._lock:
            number = self._calls[site]
            self._calls[site] = number + 1
        if isinstance(given, tuple):
            return given[number] if number < len(given) else ok
        point = _uniform(self._seed, site, number)
        for fault, share in given.items():
            if point < share:
                return fault
            point -= share
        return ok

    @property
    def calls(self) -> dict[str, int]:
        """Calls so far, by site."""
        return dict(self._calls)

    @property
    def unused(self) -> dict[str, int]:
        """Faults of sequences that no call has met yet, by site; a misspelt site shows here."""
        left = {
            site: len(given) - self._calls[site]
            for site, given in self._plan.items()
            if isinstance(given, tuple)
        }
        return {site: n for site, n in left.items() if n > 0}

    def __repr__(self) -> str:
        return f"<FaultPlan seed={self._seed}: {', '.join(self._plan)}>"


_active: ContextVar[FaultPlan | None] = ContextVar("mlkit.faults", default=None)


@contextmanager
def faults(
    plan: FaultPlan | Mapping[str, Sequence[Fault] | Mapping[Fault, float]], *, seed: int = 0
) -> Iterator[FaultPlan]:
    """Let the `faulty` functions of this context, and of what it starts, follow a plan while the block runs.

    Args:
        plan: A plan, or what makes one.
        seed: For a plan made here.

    Yields:
        The plan.

    Raises:
        ConfigurationError: As `FaultPlan`.

    Examples:
        >>> @faulty("model")
        ... def predict(x: float) -> float:
        ...     return 2 * x
        >>> with faults({"model": [ok, value(float("nan"))]}) as plan:
        ...     predict(1.0), predict(1.0), predict(1.0)
        (2.0, nan, 2.0)
        >>> plan.calls
        {'model': 3}
    """
    active = plan if isinstance(plan, FaultPlan) else FaultPlan(plan, seed=seed)
    token = _active.set(active)
    try:
        yield active
    finally:
        _active.reset(token)


def faulty(site: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that makes a function follow the plan of the context; without one it is as before.

    Of a generator, what is planned happens when the first item is asked for, and `value(items)` stands for all of them.
    What is sent into a decorated async generator does not reach it.

    Args:
        site: The name that plans use for it.

    Raises:
        ConfigurationError: If *site* is not a name, or what is decorated is not callable; when it is called, if the
            `value` that is planned for a generator has no items.

    Examples:
        >>> @faulty("chat")
        ... def chat(question: str):
        ...     yield from question.split()
        >>> with faults({"chat": [fail(ConnectionError), value(["no", "idea"])]}):
        ...     try:
        ...         list(chat("who are you"))
        ...     except ConnectionError as error:
        ...         print(error)
        ...     list(chat("who are you")), list(chat("who are you"))
        injected at chat
        (['no', 'idea'], ['who', 'are', 'you'])
    """
    if not isinstance(site, str) or not site:
        raise ConfigurationError("faulty(site)", site, "a name", hint='write @faulty("name")')

    def decorate(fn: Callable[_P, _R]) -> Callable[_P, _R]:
        from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

        if not callable(fn):
            raise ConfigurationError(f"faulty({site!r})(fn)", fn, "a callable")
        wrap: Callable[[str, Any], Any] = _function
        for kind, wrap_kind in (
            (isasyncgenfunction, _async_stream),
            (isgeneratorfunction, _stream),
            (iscoroutinefunction, _coroutine),
        ):
            if kind(fn) or kind(type(fn).__call__):
                wrap = wrap_kind
        return cast("Callable[_P, _R]", update_wrapper(wrap(site, fn), fn))

    return decorate


def _planned(site: str) -> Fault:
    """Return what happens to this call of *site*."""
    plan = _active.get()
    return ok if plan is None else plan.draw(site)


def _function(site: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def faulty_function(*args: Any, **kwargs: Any) -> Any:
        fault = _planned(site)
        if fault.pause:
            current().sleep(fault.pause)
        return fault.outcome(site) if fault.replaces else fn(*args, **kwargs)

    return faulty_function


def _coroutine(site: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty_coroutine(*args: Any, **kwargs: Any) -> Any:
        fault = _planned(site)
        if fault.pause:
            await current().asleep(fault.pause)
        return fault.outcome(site) if fault.replaces else await fn(*args, **kwargs)

    return faulty_coroutine


def _stream(site: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def faulty_stream(*args: Any, **kwargs: Any) -> Any:
        fault = _planned(site)
        if fault.pause:
            current().sleep(fault.pause)
        return (yield from _items(site, fault) if fault.replaces else fn(*args, **kwargs))

    return faulty_stream


def _async_stream(site: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    from contextlib import aclosing

    async def faulty_async_stream(*args: Any, **kwargs: Any) -> Any:
        fault = _planned(site)
        if fault.pause:
            await current().asleep(fault.pause)
        if fault.replaces:
            for item in _items(site, fault):
                yield item
            return
        async with aclosing(fn(*args, **kwargs)) as stream:
            async for item in stream:
                yield item

    return faulty_async_stream


def _items(site: str, fault: Fault) -> list[Any]:
    answer = fault.outcome(site)
    try:
        return list(answer)
    except TypeError:
        raise ConfigurationError(
            f"value(answer) at {site!r}", answer, "items, for a generator"
        ) from None


def _checked(site: object, given: object) -> tuple[Fault, ...] | dict[Fault, float]:
    where = f"FaultPlan(plan)[{site!r}]"
    if not isinstance(site, str) or not site:
        raise ConfigurationError("FaultPlan(plan)", site, "names of sites as keys")
    if isinstance(given, Mapping):
        shares = dict(given)
        numbers = [
            share
            for share in shares.values()
            if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1
        ]
        if len(numbers) < len(shares) or sum(numbers) > 1 + 1e-9:
            raise ConfigurationError(where, shares, "shares in [0, 1] that add up to at most 1")
        faults_given: Sequence[object] = list(shares)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        faults_given = given
    else:
        raise ConfigurationError(where, given, "a list of faults, or a mapping from fault to share")
    for one in faults_given:
        if not isinstance(one, Fault):
            name = getattr(one, "__name__", "")
            raise ConfigurationError(
                where,
                one,
                "faults: ok, fail(E), slow(seconds), value(answer)",
                hint=did_you_mean(name, ["ok", "fail", "slow", "value"]).lstrip("; ")
                if name
                else "",
            )
    return dict(given) if isinstance(given, Mapping) else tuple(cast("Sequence[Fault]", given))


def _uniform(seed: int, site: str, number: int) -> float:
    """Return a number in [0, 1) that depends on its arguments alone."""
    text = digest_bytes(f"mlkit.faults/{seed}/{site}/{number}".encode())
    return int(text.rpartition(":")[2][:13], 16) / 16**13
