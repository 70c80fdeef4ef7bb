"""`mlkit.tracking` as a callback of Transformers' trainer. Needs it: `pip install 'mlkit-blocks[transformers]'`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from mlkit._arguments import one_of
from mlkit._optional import require
from mlkit.errors import TrackingError
from mlkit.integrations._recording import Options, Recording, late, status_of
from mlkit.tracking import read

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from transformers import (
        TrainerCallback as _Base,
    )
    from transformers import (
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from mlkit.tracking import Run, Sink
else:
    _Base = object

__all__ = ["RunCallback"]

_NOTE = "mlkit"  # in the trainer's state, and so in its checkpoints: which run they belong to


class RunCallback(_Base):  # type: ignore[misc]
    """Records what a `Trainer` does as a run of `mlkit.tracking`: `Trainer(..., callbacks=[RunCallback("churn")])`.

    The training arguments and the model's config are the run's params, what the trainer logs its metrics, with the
    trainer's own steps. A run is begun by `train` and ended when that returns. `train(resume_from_checkpoint=...)` goes on
    with the run that the checkpoint is of, if it is in *root* and of this experiment. Evaluation after a training belongs to its run. Each trial of
    a search for hyperparameters is a run of its own; `run` is the latest. Which run a checkpoint is of is noted in its state
    as `mlkit`; with `restore_callback_states_from_checkpoint` Transformers says that it ignores that.

    The trainer tells its callbacks of no exception. Used as a context manager around `train`, the callback ends the run as
    failed, or killed if it is interrupted; otherwise that happens when the next training begins, or the program ends.

    Only the process of rank 0 in the world logs. Nothing that is logged stops the training. Not thread-safe. Picklable.

    Args:
        experiment: What the runs belong to.
        name: The run's name, for people; by default the trainer's `run_name`, or the run's id.
        root: Folder of run folders.
        sinks: Where the records go besides, see `start_run`.
        durability: As for `start_run`.
        run_id: An id for the run of the first training. A run of that id that is in *root* is gone on with.
        tags: Tags to begin with.
        shipper: As for `start_run`.
        checkpoints: Which checkpoints become artifacts `checkpoint-<step>/...` of the run: `"none"`, or `"all"`, each when
            it is saved. They are copied, and the training waits for that.
        timeout: Seconds, at least 0, for which the end of a run waits for the sinks.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If Transformers is not installed.

    Examples:
        >>> from mlkit.integrations.transformers import RunCallback
        >>> callback = RunCallback("churn", sinks=["mlflow:http://127.0.0.1:5000"])
        >>> callback.run is None
        True
    """

    def __init__(
        self,
        experiment: str = "transformers",
        *,
        name: str | None = None,
        root: str | os.PathLike[str] = "runs",
        sinks: Sequence[str | Sink] = (),
        durability: Literal["process", "group", "record"] = "process",
        run_id: str | None = None,
        tags: Mapping[str, str | float] | None = None,
        shipper: Literal["process", "thread", "none"] = "process",
        checkpoints: Literal["none", "all"] = "none",
        timeout: float = 10.0,
    ) -> None:
        one_of("RunCallback(checkpoints=...)", checkpoints, ("none", "all"))
        options = Options(
            name=name, root=root, sinks=sinks, durability=durability, tags=tags, shipper=shipper
        )
        self._options, self._timeout = options, timeout
        self._experiment, self._checkpoints = experiment, checkpoints
        self._recording = self._make(run_id, options)
        self._run_id, self._training, self._logged = run_id, False, False
        self._run: Run | None = None

    @property
    def run(self) -> Run | None:
        """The run of the latest training, also when it has ended; None before the first."""
        return self._run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin a run, or go on with the one of the checkpoint that the training is resumed from.

        Args:
            args: The training arguments.
            state: The trainer's state.
            control: Not used.
            kwargs: The model among others.
        """
        del control
        if not state.is_world_process_zero:
            return
        # A smaller batch is tried, after the first one was too large for the memory.
        again = self._training and not self._logged and args.auto_find_batch_size
        if not again:
            if self._training:  # nobody has said that the one before has ended
                self._recording.end("FAILED")
            self._recording = self._next(args, state)
        self._training, self._logged = True, False
        self._run = self._recording.run
        model = kwargs.get("model")
        config: Any = getattr(model, "config", None)
        if hasattr(config, "to_dict"):
            # A saved model's config fills what was None.
            held = {key: one for key, one in config.to_dict().items() if one is not None}
            self._recording.params({"model": held})
        # Where it is resumed from is new each time, and no conflict.
        params = {
            key: one for key, one in args.to_dict().items() if key != "resume_from_checkpoint"
        }
        self._recording.params({**params, **_trial(state)})
        _note(state, self._recording.id)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log what the trainer logs: losses, evaluation metrics, learning rates.

        Args:
            args: Not used.
            state: The trainer's state, which has the step.
            control: Not used.
            logs: Numbers by name.
            kwargs: Not used.
        """
        del args, control, kwargs
        if state.is_world_process_zero and logs:
            self._record(logs, state.global_step)

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        """Log the metrics of a prediction.

        Args:
            args: Not used.
            state: The trainer's state, which has the step.
            control: Not used.
            metrics: Numbers by name.
            kwargs: Not used.
        """
        del args, control, kwargs
        if state.is_world_process_zero and metrics:
            self._record(metrics, state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy a checkpoint into the run, if that was asked for.

        Args:
            args: The training arguments, which say where it is.
            state: The trainer's state, which has the step.
            control: Not used.
            kwargs: Not used.
        """
        del control, kwargs
        if state.is_world_process_zero and self._training and self._checkpoints == "all":
            place = _checkpoint(args, state)
            if place is not None:
                self._recording.run.log_artifacts(place, place.name)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run.

        Args:
            args: Not used.
            state: The trainer's state.
            control: Not used.
            kwargs: Not used.
        """
        del args, control, kwargs
        if state.is_world_process_zero:
            self._training = False
            self._recording.end("FINISHED")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._training = False
        self._recording.end(status_of(error))

    def _next(self, args: TrainingArguments, state: TrainerState) -> Recording:
        """Return where the training that begins now is recorded."""
        name = getattr(state, "trial_name", None) or self._options.get("name")
        options = Options(**{**self._options, "name": name or getattr(args, "run_name", None)})
        run_id, noted = self._run_id, _noted(state)
        self._run_id = None  # it was for the first training
        if run_id is None and noted and self._is_ours(noted):
            run_id = noted
        return self._make(run_id, options)

    def _is_ours(self, run_id: str) -> bool:
        """Return whether a run is there, and of this experiment: nobody has asked for it by its id."""
        try:
            return read(Path(self._recording.root, run_id)).experiment == self._experiment
        except TrackingError:
            return False

    def _make(self, run_id: str | None, options: Options) -> Recording:
        return Recording(
            "RunCallback", self._experiment, run_id, self._timeout, options, abandoned="FAILED"
        )

    def _record(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log *metrics*; those that come when no training is on belong to the latest run, and end with the call."""
        self._recording.metrics(metrics, step)
        self._logged = True
        self._run = self._recording.run
        if not self._training:
            self._recording.end("FAILED" if sys.exc_info()[1] else "FINISHED")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path | None:
    """Return the folder of the checkpoint that was just saved: that of a trial is one level deeper."""
    name = f"checkpoint-{state.global_step}"
    places = [Path(str(args.output_dir), name), *Path(str(args.output_dir)).glob(f"*/{name}")]
    there = [place for place in places if place.is_dir()]
    return max(there, key=lambda place: place.stat().st_mtime, default=None)


def _noted(state: TrainerState) -> str | None:
    """Return which run the checkpoint belongs to that the training is resumed from."""
    held: Any = state.stateful_callbacks
    note = held.get(_NOTE) if isinstance(held, dict) else None
    found = note.get("run_id") if isinstance(note, dict) else None
    return found if isinstance(found, str) and state.global_step else None


def _note(state: TrainerState, run_id: str) -> None:
    held: Any = state.stateful_callbacks
    if isinstance(held, dict):
        held[_NOTE] = {"run_id": run_id}


def _trial(state: TrainerState) -> dict[str, Any]:
    found = getattr(state, "trial_params", None)
    return {"trial": dict(found)} if found else {}


def _base() -> type[Any]:
    transformers = require("transformers", extra="transformers", feature="RunCallback")
    base: type[Any] = transformers.TrainerCallback
    return base


if not TYPE_CHECKING:
    _written = RunCallback
    __getattr__, __dir__ = late(__name__, _written, _base)
    del RunCallback
