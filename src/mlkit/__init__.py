"""Machine-learning-engineering building blocks, each usable on its own.

Importing `mlkit` imports nothing else; each name loads its block on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # every type checker takes it for true; `typing` itself need not be imported

__version__: str

__all__ = [
    "Batcher",
    "Breaker",
    "Flags",
    "Manifest",
    "MlkitError",
    "ModelStore",
    "Policy",
    "Registry",
    "Retry",
    "Rollout",
    "Run",
    "Seeds",
    "Spec",
    "__version__",
    "deadline",
    "fallback",
    "map_batches",
    "provenance",
    "seed_all",
    "start_run",
    "tier",
]

if TYPE_CHECKING:
    from mlkit.errors import MlkitError
    from mlkit.flags import Flags, Rollout
    from mlkit.inference import Batcher, map_batches
    from mlkit.models import ModelStore
    from mlkit.registry import Registry, Spec
    from mlkit.repro import Manifest, Seeds, seed_all
    from mlkit.resilience import Breaker, Policy, Retry, deadline, fallback, provenance, tier
    from mlkit.tracking import Run, start_run
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _MODULES = {
        "Batcher": "inference",
        "Breaker": "resilience",
        "Flags": "flags",
        "Manifest": "repro",
        "MlkitError": "errors",
        "ModelStore": "models",
        "Policy": "resilience",
        "Registry": "registry",
        "Retry": "resilience",
        "Rollout": "flags",
        "Run": "tracking",
        "Seeds": "repro",
        "Spec": "registry",
        "deadline": "resilience",
        "fallback": "resilience",
        "map_batches": "inference",
        "provenance": "resilience",
        "seed_all": "repro",
        "start_run": "tracking",
        "tier": "resilience",
    }
    _BLOCKS = frozenset({*_MODULES.values(), "telemetry", "testing"})

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            value = globals()[name] = getattr(import_module(f"mlkit.{_MODULES[name]}"), name)
            return value
        if name in _BLOCKS:  # `import mlkit; mlkit.registry` works without a second import line
            return import_module(f"mlkit.{name}")
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("mlkit-blocks")
            except PackageNotFoundError:  # run from a source tree that was never installed
                return "0+unknown"
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mlkit._suggest import did_you_mean

        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}", name=name
        )

    def __dir__() -> list[str]:
        return sorted({*__all__, *_BLOCKS})
