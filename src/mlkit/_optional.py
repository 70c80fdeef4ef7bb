"""The one place where a package that may be missing is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mlkit.errors import MissingDependencyError

__all__ = ["DISTRIBUTION", "installed", "require"]

DISTRIBUTION = "mlkit-blocks"


def require(module: str, *, extra: str, feature: str) -> Any:
    """Import *module*, or say which feature needs it and how to install it.

    Only the absence of *module* itself is translated. An installed package that fails to import, or
    that misses one of its own dependencies, raises its own error: installing our extra would not
    help.

    Args:
        module: Dotted name of the module, e.g. `"mlflow"`.
        extra: The extra of this distribution that brings it, e.g. `"mlflow"`.
        feature: What the user was doing, as a subject: `"MlflowSink"`, `"loading a torch module"`.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: If the package of *module* is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        wanted = {
            module[:end] for end in range(1, len(module) + 1) if module[end : end + 1] in {"", "."}
        }
        if error.name not in wanted:
            raise
        raise MissingDependencyError(feature=feature, module=module, extra=extra) from None


def installed(module: str) -> bool:
    """Return whether *module* could be imported, without importing it.

    Args:
        module: Name of a top-level module.
    """
    import sys
    from importlib.util import find_spec

    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None
