"""`mlkit.tracking` as a logger of Lightning. Needs it: `pip install 'mlkit-blocks[lightning]'`.

For the package `pytorch_lightning` the same class is in `mlkit.integrations.pytorch_lightning`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlkit._arguments import one_of
from mlkit._optional import require
from mlkit.errors import ConfigurationError
from mlkit.integrations._recording import Options, Recording, late, status_of

if TYPE_CHECKING:
    import os
    from argparse import Namespace
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import Logger as _Base

    from mlkit.tracking import Run, Sink
else:
    _Base = object

__all__ = ["RunLogger"]


class RunLogger(_Base):  # type: ignore[misc]
    """Lets Lightning's trainer log into a run of `mlkit.tracking`.

    `trainer.logger.run` is the run itself, for tags, tables and figures. It is begun when the trainer starts, ended when
    the trainer has, as finished, failed, or killed if it was interrupted, and gone on with if more is logged, by a `test`
    after a `fit` say. Nothing that is logged stops the training: neither a tracker that is away, nor a value that is no
    number, nor a hyperparameter that would change; the latter two are warnings.

    Checkpoints are kept by Lightning in `<root>/<experiment>/<run id>/checkpoints`.

    Picklable, for strategies that spawn: the run's id is chosen when the logger is made, and the copies go on with it. Not
    thread-safe, as Lightning's trainer.

    Args:
        experiment: What the run belongs to.
        name: The run's name, for people; by default its id.
        root: Folder of run folders.
        sinks: Where the records go besides, see `start_run`.
        durability: As for `start_run`.
        run_id: An id for the run. A run of that id that is in *root* is gone on with.
        tags: Tags to begin with.
        shipper: As for `start_run`.
        ranks: Which processes of a distributed training log: `"zero"`, or `"all"`, each into a file of its own and under
            names that begin with `rank-<rank>/`. For all, *run_id* is needed, so that they meet.
        checkpoints: Which checkpoints become artifacts `checkpoints/...` of the run: `"none"`, `"kept"`, those that the
            callback has kept when the trainer ends, or `"all"`, each when it is saved. They are copied, and the training
            waits for that.
        prefix: What is put before the name of each metric, with a `/`.
        timeout: Seconds, at least 0, for which the end of the run waits for the sinks.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If Lightning is not installed.

    Examples:
        >>> from mlkit.integrations.lightning import RunLogger
        >>> import tempfile
        >>> logger = RunLogger("digits", root=tempfile.mkdtemp())
        >>> logger.log_hyperparams({"net": {"depth": 3}})
        >>> logger.log_metrics({"loss": 0.5}, step=1)
        >>> logger.finalize("success")
        >>> from mlkit.tracking import read
        >>> read(logger.log_dir).params
        {'net.depth': 3}
    """

    def __init__(
        self,
        experiment: str = "lightning",
        *,
        name: str | None = None,
        root: str | os.PathLike[str] = "runs",
        sinks: Sequence[str | Sink] = (),
        durability: Literal["process", "group", "record"] = "process",
        run_id: str | None = None,
        tags: Mapping[str, str | float] | None = None,
        shipper: Literal["process", "thread", "none"] = "process",
        ranks: Literal["zero", "all"] = "zero",
        checkpoints: Literal["none", "kept", "all"] = "none",
        prefix: str = "",
        timeout: float = 10.0,
    ) -> None:
        super().__init__()
        one_of("RunLogger(ranks=...)", ranks, ("zero", "all"))
        one_of("RunLogger(checkpoints=...)", checkpoints, ("none", "kept", "all"))
        if ranks == "all" and run_id is None:
            raise ConfigurationError(
                "RunLogger(run_id=...)", run_id, "an id that all ranks know, with ranks='all'",
                hint="pass that of the job",
            )  # fmt: skip
        options = Options(
            name=name, root=root, sinks=sinks, durability=durability, tags=tags, shipper=shipper
        )
        self._recording = Recording("RunLogger", experiment, run_id, timeout, options)
        self._ranks, self._checkpoints = ranks, checkpoints
        self._prefix = f"{prefix}/" if prefix else ""
        self._saved: dict[str, float] = {}
        self._callback: ModelCheckpoint | None = None

    @property
    def run(self) -> Run:
        """The run, begun if need be.

        Raises:
            RuntimeError: On a rank that does not log.
        """
        if not self._logs():
            raise RuntimeError("only rank 0 logs; RunLogger(ranks='all') lets every rank")
        return self._recording.run

    @property
    def experiment(self) -> Run:
        """The run, as Lightning calls it; on a rank that does not log Lightning's dummy, which takes any call."""
        return self.run if self._logs() else _dummy(type(self))

    @property
    def name(self) -> str:
        """What the run belongs to."""
        return self._recording.experiment

    @property
    def version(self) -> str:
        """The run's id, known before the run is begun."""
        return self._recording.id

    @property
    def save_dir(self) -> str:
        """The absolute path of the folder of run folders."""
        return self._recording.root

    @property
    def root_dir(self) -> str:
        """As `save_dir`."""
        return self._recording.root

    @property
    def log_dir(self) -> str:
        """The run's folder, for `read` and `sync`."""
        return str(self._recording.dir)

    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Log what the training was started with.

        Args:
            params: A mapping, a `Namespace`, a dataclass or an OmegaConf, nested or not. What has no text of its own is
                kept as the name of its type.
            metrics: Numbers to log besides, as TensorBoard's logger takes them.
            step: When these were measured; by default 0.
            args: Not used.
            kwargs: Not used.
        """
        del args, kwargs
        # Params belong to the run, not to a rank.
        if self._rank() == 0:
            self._recording.params(params)
            if metrics:
                self._recording.metrics(metrics, step or 0, self._prefix)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one point of each metric.

        Args:
            metrics: Numbers or tensors of one element by name. What is none is left out with a warning.
            step: The trainer's step; by default one more than the last.
        """
        if self._logs():
            self._recording.metrics(metrics, step, self._prefix)

    def log_graph(self, model: object, input_array: object = None) -> None:
        """Do nothing: a run keeps no graphs.

        Args:
            model: Not used.
            input_array: Not used.
        """

    def save(self) -> None:
        """Do nothing: what was logged is in the journal already."""

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Copy new checkpoints into the run, or remember to do so at the end.

        Args:
            checkpoint_callback: What has saved them.
        """
        if self._rank() == 0:
            self._callback = checkpoint_callback
            if self._checkpoints == "all":
                self._keep_checkpoints()

    def finalize(self, status: str) -> None:
        """End the run, and wait for the sinks, but not for long.

        Args:
            status: `"success"`, or why not.
        """
        if not self._recording.is_open:
            return
        if self._checkpoints != "none":
            self._keep_checkpoints()
        if status in {"success", "finished"}:
            self._recording.end("FINISHED")
        else:
            error = sys.exc_info()[1]
            self._recording.end("FAILED" if error is None else status_of(error))

    def _keep_checkpoints(self) -> None:
        callback, run = self._callback, self._recording.run
        if callback is None:
            return
        paths = [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
        for path in dict.fromkeys(Path(one) for one in paths if one):
            if not path.exists() or self._saved.get(str(path)) == path.stat().st_mtime:
                continue
            self._saved[str(path)] = path.stat().st_mtime
            place = f"checkpoints/{path.name}"
            if path.is_dir():  # of a sharded strategy
                run.log_artifacts(path, place)
            else:
                run.log_artifact(path, place)

    def _rank(self) -> int:
        """Return which process of the training this is; Lightning sets it when its strategy is set up."""
        from lightning_utilities.core.rank_zero import rank_zero_only

        self._recording.rank = rank = int(getattr(rank_zero_only, "rank", 0) or 0)
        return rank

    def _logs(self) -> bool:
        return self._rank() == 0 or self._ranks == "all"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_callback": None}


def _dummy(kind: type[Any]) -> Any:
    """Return what stands for an experiment in the package that *kind* derives from; there are two of them."""
    for one in kind.__mro__:
        module: Any = sys.modules.get(one.__module__)
        if hasattr(module, "DummyExperiment"):
            return module.DummyExperiment()
    raise RuntimeError(f"{kind.__qualname__} derives from no logger of Lightning")


def _base() -> type[Any]:
    loggers = require("lightning.pytorch.loggers", extra="lightning", feature="RunLogger")
    base: type[Any] = loggers.Logger
    return base


if not TYPE_CHECKING:
    _written = RunLogger
    __getattr__, __dir__ = late(__name__, _written, _base)
    del RunLogger
