"""`mlkit.tracking` as a tracker of Hugging Face Accelerate. Needs it: `pip install 'mlkit-blocks[accelerate]'`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mlkit._optional import require
from mlkit.integrations._recording import Options, Recording, late

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from mlkit.tracking import Run, Sink

__all__ = ["RunTracker"]


class RunTracker:  # a GeneralTracker once it is asked for, see the end; Accelerate has no types
    """Lets an `Accelerator` log into a run of `mlkit.tracking`: `Accelerator(log_with=RunTracker("churn"))`.

    The run is begun by `init_trackers` and ended by `end_training`; without that it ends with the program, as failed or
    killed if an exception has ended it. Nothing that is logged stops the training: neither a tracker that is away, nor a
    value that is no number, nor a setting that would change; the latter two are warnings.

    The main process logs, as with Accelerate's own trackers. Not thread-safe. Picklable: the copy goes on with the run.

    Args:
        experiment: What the run belongs to; `init_trackers` has a project name, which is not used.
        name: The run's name, for people; by default its id.
        root: Folder of run folders.
        sinks: Where the records go besides, see `start_run`.
        durability: As for `start_run`.
        run_id: An id for the run. A run of that id that is in *root* is gone on with, its steps too.
        tags: Tags to begin with.
        shipper: As for `start_run`.
        timeout: Seconds, at least 0, for which the end of the run waits for the sinks.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If Accelerate is not installed.

    Examples:
        >>> from mlkit.integrations.accelerate import RunTracker
        >>> import tempfile
        >>> tracker = RunTracker("digits", root=tempfile.mkdtemp())
        >>> tracker.store_init_configuration({"lr": 0.1})
        >>> tracker.log({"train": {"loss": 0.5}}, step=1)
        >>> tracker.finish()
        >>> from mlkit.tracking import read
        >>> read(tracker.tracker.dir).metrics["train/loss"][0].value
        0.5
    """

    name: str = "mlkit"
    requires_logging_directory: bool = False
    main_process_only: bool = True

    def __init__(
        self,
        experiment: str = "accelerate",
        *,
        name: str | None = None,
        root: str | os.PathLike[str] = "runs",
        sinks: Sequence[str | Sink] = (),
        durability: Literal["process", "group", "record"] = "process",
        run_id: str | None = None,
        tags: Mapping[str, str | float] | None = None,
        shipper: Literal["process", "thread", "none"] = "process",
        timeout: float = 10.0,
    ) -> None:
        options = Options(
            name=name, root=root, sinks=sinks, durability=durability, tags=tags, shipper=shipper
        )
        self._recording = Recording("RunTracker", experiment, run_id, timeout, options)
        self._ended: Run | None = None

    @property
    def tracker(self) -> Run | None:
        """The run; the one that has ended, after `finish`; None on another process than the main one."""
        if not _is_main():
            return None
        return self._ended or self._recording.run

    def start(self) -> None:
        """Begin the run; Accelerate calls this."""
        if _is_main():
            self._recording.run  # noqa: B018 - asking begins it

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Log what the training was started with.

        Args:
            values: Settings by name, nested or not.
        """
        if _is_main():
            self._recording.params(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log one point of each metric.

        Args:
            values: Numbers or tensors of one element by name; of a mapping, its own entries as `name/entry`. A text
                becomes a tag; anything else is left out with a warning.
            step: When; by default one more than the last.
            kwargs: Not used.
        """
        del kwargs
        if _is_main():
            self._ended = None
            self._recording.metrics(values, step)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep images as artifacts `images/<name>/<step>-<number>.png`.

        Args:
            values: By name, images of Pillow or figures of Matplotlib, one or a list, or an array of shape (n, h, w),
                (n, h, w, 3) or (n, 3, h, w), of bytes or of floats in [0, 1].
            step: When.
            kwargs: Not used.
        """
        del kwargs
        if not _is_main():
            return
        run = self._recording.run
        for name, images in values.items():
            for number, image in enumerate(_images(images)):
                run.log_figure(image, f"images/{_file(name)}/{step or 0}-{number}.png")

    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: object = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep a table as an artifact `tables/<name>/<step>.json`.

        Args:
            table_name: Its name.
            columns: Names of the columns; those without have their number as text.
            data: The rows, the missing cells of a short one null.
            dataframe: The table instead, as a data frame.
            step: When.
            kwargs: Not used.

        Raises:
            ConfigurationError: If it is no table.
        """
        del kwargs
        if not _is_main():
            return
        table = dataframe
        if table is None:
            table = _rows([str(one) for one in columns or ()], [list(row) for row in data or ()])
        self._recording.run.log_table(table, f"tables/{_file(table_name)}/{step or 0}.json")

    def finish(self) -> None:
        """End the run, and wait for the sinks, but not for long."""
        if _is_main() and self._recording.is_open:
            self._ended = self._recording.run
            self._recording.end("FINISHED")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ended": None}


def _is_main() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _file(name: str) -> str:
    return (
        "".join(char if char.isalnum() or char in "-_." else "_" for char in name).strip(".")
        or "unnamed"
    )


def _rows(names: list[str], rows: list[list[Any]]) -> list[dict[str, Any]]:
    """Return rows as dicts that all have the same names."""
    width = max([len(names), *map(len, rows)])
    names = [*names, *(str(place) for place in range(len(names), width))]
    return [dict(zip(names, [*row, *[None] * (width - len(row))], strict=True)) for row in rows]


def _images(images: Any) -> list[Any]:
    """Return images as Pillow's, or whatever else a run takes for a figure."""
    if isinstance(images, (list, tuple)):
        return [one for some in images for one in _images(some)]
    if not hasattr(images, "shape"):
        return [images]
    import numpy as np
    from PIL import Image

    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    if array.ndim == 2 or (array.ndim == 3 and 3 in {array.shape[0], array.shape[2]}):
        array = array[None]
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    return [Image.fromarray(one) for one in array]


def _base() -> type[Any]:
    tracking = require("accelerate.tracking", extra="accelerate", feature="RunTracker")
    base: type[Any] = tracking.GeneralTracker
    return base


if not TYPE_CHECKING:
    _written = RunTracker
    __getattr__, __dir__ = late(__name__, _written, _base)
    del RunTracker
