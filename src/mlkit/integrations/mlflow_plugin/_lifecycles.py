"""Runs and experiments that were deleted through the plug-in, which then take nothing more."""

from __future__ import annotations

from typing import final

from mlkit.integrations.mlflow_plugin._refusals import not_active

__all__ = ["Lifecycles"]


@final
class Lifecycles:
    """Knows without a question what this process has deleted, so that a log call to it is refused as MLflow would.

    What another process deletes shows when it is delivered: it is set aside with the reason.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._experiment_of: dict[str, str] = {}
        self._runs: set[str] = set()
        self._experiments: set[str] = set()

    def began(self, run_id: str, experiment_id: str) -> None:
        """Remember of which experiment a run is."""
        self._experiment_of[run_id] = experiment_id

    def delete_run(self, run_id: str) -> None:
        """A run is deleted."""
        self._runs.add(run_id)

    def restore_run(self, run_id: str) -> None:
        """A run is there again."""
        self._runs.discard(run_id)

    def delete_experiment(self, experiment_id: str) -> None:
        """An experiment is deleted, with all its runs."""
        self._experiments.add(experiment_id)

    def restore_experiment(self, experiment_id: str) -> None:
        """An experiment is there again, with all its runs."""
        self._experiments.discard(experiment_id)
        self._runs -= {
            run_id for run_id, one in self._experiment_of.items() if one == experiment_id
        }

    def check_run(self, run_id: str) -> None:
        """Check that a run takes something.

        Raises:
            MlflowException: If it is deleted.
        """
        if run_id in self._runs or self._experiment_of.get(run_id) in self._experiments:
            raise not_active(run_id)

    def check_experiment(self, experiment_id: str) -> None:
        """Check that an experiment takes a run.

        Raises:
            MlflowException: If it is deleted.
        """
        if experiment_id in self._experiments:
            raise not_active(f"experiment {experiment_id}")
