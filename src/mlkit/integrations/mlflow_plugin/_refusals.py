"""What MLflow itself would say to a call that it refuses, in its words and with its codes."""

from __future__ import annotations

from typing import Any

__all__ = ["changed_params", "invalid", "not_active", "unknown_run"]


def invalid(message: str, code: str = "INVALID_PARAMETER_VALUE") -> Exception:
    """Return an error of MLflow."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    error: Exception = MlflowException(message, error_code=ErrorCode.Value(code))
    return error


def unknown_run(run_id: Any) -> Exception:
    """Return the error for a run that there is not."""
    return invalid(f"Run with id={run_id} not found", "RESOURCE_DOES_NOT_EXIST")


def not_active(what: str, stage: str = "deleted") -> Exception:
    """Return the error for a run, or an experiment, that is deleted."""
    name = what if what.startswith("experiment ") else f"run {what}"
    return invalid(f"The {name} must be in the 'active' state. Current state is {stage}.")


def changed_params(run_id: str, changed: list[tuple[str, str, str]], *, alone: bool) -> Exception:
    """Return the error for params that cannot change.

    Args:
        run_id: Their run.
        changed: Name, value and refused value of each.
        alone: Whether the param was logged by itself.
    """
    if alone:
        ((key, old, new),) = changed
        return invalid(
            f"Changing param values is not allowed. Param with key='{key}' was already logged with value='{old}' for run "
            f"ID='{run_id}'. Attempted logging new value '{new}'."
        )
    shown = [{"key": key, "old_value": old, "new_value": new} for key, old, new in changed]
    return invalid(
        f"Changing param values is not allowed. Params were already logged='{shown}' for run ID='{run_id}'."
    )
