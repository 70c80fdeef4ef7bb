"""A run on behalf of a training framework, which calls when and with what it likes and must never be stopped by it."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, final

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit.errors import ConfigurationError, ParamConflictError, TrackingWarning
from mlkit.integrations._plain import flat_numbers, hyperparameters
from mlkit.tracking import read, start_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from mlkit.tracking import Delivery, Run, Sink

    Status = Literal["FINISHED", "FAILED", "KILLED"]

__all__ = ["Options", "Recording", "late", "status_of"]


class Options(TypedDict, total=False):
    """What `start_run` takes besides the experiment, as far as a framework's user may choose it."""

    name: str | None
    root: str | os.PathLike[str]
    sinks: Sequence[str | Sink]
    durability: Literal["process", "group", "record"]
    tags: Mapping[str, str | float] | None
    shipper: Literal["process", "thread", "none"]


@final
class Recording:
    """Holds the run of a logger: begun when it is needed first, and gone on with when it is needed after its end.

    What a framework passes may be anything, and was meant for another tracker: a value that is no number is left out and
    a param that would change keeps its value, each with a warning. Picklable: the copy goes on with the same run.
    Thread-safe but for its beginning.

    Args:
        where: Whose arguments they are, for errors.
        experiment: What the run belongs to.
        run_id: Its id; of a run that is there already, that one is gone on with.
        timeout: Seconds for which the end of the run waits for the sinks.
        options: The rest of what `start_run` takes.
        abandoned: How a run counts that nobody has ended, if no exception says better.
    """

    id: str

    def __init__(
        self,
        where: str,
        experiment: str,
        run_id: str | None,
        timeout: float,
        options: Options,
        *,
        abandoned: Status = "FINISHED",
    ) -> None:
        self.timeout = seconds(f"{where}(timeout=...)", timeout, zero=True, endless=True)
        if not isinstance(experiment, str) or not experiment:
            raise ConfigurationError(f"{where}(experiment)", experiment, "a name")
        root = options.get("root", "runs")
        if not isinstance(root, (str, os.PathLike)):
            raise ConfigurationError(f"{where}(root=...)", root, "the path of a folder")
        if run_id is not None and not isinstance(run_id, str):
            raise ConfigurationError(f"{where}(run_id=...)", run_id, "the id of a run")
        # Known before the run is there: a process that is spawned later must find the same one.
        self.id = run_id or _new_id()
        self.experiment, self.root = experiment, str(Path(root).absolute())
        self.options: Options = {**options, "root": self.root}
        self.rank = 0
        self._abandoned: Status = abandoned
        self._warned: set[str] = set()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._open: list[Run] = []
        self._last: int | None = None
        weakref.finalize(self, _abandon, self._open, self._abandoned, _last_error(), os.getpid())

    @property
    def is_open(self) -> bool:
        """Whether the run was begun and is not ended."""
        return bool(self._open)

    @property
    def run(self) -> Run:
        """The run; begun, or gone on with, if need be."""
        if not self._open:
            run = start_run(self.experiment, run_id=self.id, rank=self.rank, **self.options)
            self._open.append(run)
        return self._open[0]

    @property
    def dir(self) -> Path:
        """The run's folder, whether it is there or not."""
        return Path(self.root, self.id)

    def params(self, values: object) -> None:
        """Log what the training was started with, whatever holds it."""
        flat = hyperparameters(values)
        while flat:
            try:
                self.run.log_params(flat)
            except ParamConflictError as error:
                del flat[error.key]
                self._warn(error.key, f"{error}; the first one stays")
            else:
                return

    def metrics(self, values: Mapping[str, Any], step: int | None = None, prefix: str = "") -> None:
        """Log what is a number in *values*; a text becomes a tag.

        Args:
            values: By name; may be nested.
            step: When; by default one more than the last, also after the run was gone on with.
            prefix: What is put before each name.
        """
        run = self.run
        if step is None:
            step = self._last_step() + 1
        if self._last is not None:
            self._last = max(self._last, step)
        try:
            run.log_metrics({prefix + key: values[key] for key in values}, step)
        except ConfigurationError:
            numbers, texts, others = flat_numbers(values, prefix)
            if numbers:
                run.log_metrics(numbers, step)
            if texts:
                run.set_tags(texts)
            for key, kind in others.items():
                self._warn(key, f"metric {key!r} is left out: {kind} is no number")

    def end(self, status: Status) -> Delivery | None:
        """End the run if it is open; logging later goes on with it."""
        if not self._open:
            return None
        return self._open.pop().close(status, self.timeout)

    def _last_step(self) -> int:
        if self._last is None:
            known = read(self.dir).metrics.values()
            self._last = max((point.step for points in known for point in points), default=-1)
        return self._last

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, TrackingWarning, stacklevel=4)

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_open", "_last"}
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_anew()


def status_of(error: BaseException | None) -> Status:
    """Return how a run has ended that *error* has ended."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def late(
    module: str, written: type[Any], base: Callable[[], type[Any]]
) -> tuple[Callable[[str], type[Any]], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a module whose class derives from one of an optional package.

    So importing the module costs nothing, and the class, once asked for, is a real subclass that is
    found under its name: it can be pickled, derived from and named in a config.

    Args:
        module: Name of the module.
        written: The class without its base.
        base: Imports the base.
    """

    def find(name: str) -> type[Any]:
        if name != written.__name__:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        parent = base()
        described = {"__module__": module, "__doc__": written.__doc__}
        metaclass: Any = type(parent)
        made: type[Any] = metaclass(name, (written, parent), described)
        vars(sys.modules[module])[name] = made
        return made

    return find, lambda: sorted({*vars(sys.modules[module]), written.__name__})


def _abandon(
    open_runs: list[Run], otherwise: Status, before: BaseException | None, owner: int
) -> None:
    """End a run that nobody has ended: its logger is gone, or the interpreter ends."""
    if os.getpid() != owner:
        return
    error = sys.exc_info()[1] or _last_error()
    status = otherwise if error is None or error is before else status_of(error)
    while open_runs:
        open_runs.pop().close(status)


def _last_error() -> BaseException | None:
    """Return what has ended the program, or the last cell of a notebook."""
    error = getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def _new_id() -> str:
    from time import gmtime, strftime

    return f"{strftime('%Y%m%d-%H%M%S', gmtime(current().time()))}-{os.urandom(4).hex()}"
