"""What mlkit's own tests use and its users need too: virtual time, faults, contract suites.

`mlkit.testing.strategies` needs Hypothesis, and a contract suite pytest (the extra `testing`); the
rest needs the standard library only.
"""

from __future__ import annotations

from mlkit.testing._events import record_events
from mlkit.testing._faults import Fault, FaultPlan, fail, faults, faulty, ok, slow, value
from mlkit.testing._time import VirtualTime, virtual_time

TYPE_CHECKING = False  # every type checker takes it for true

__all__ = [
    "BreakerStorageContract",
    "CodecContract",
    "EngineContract",
    "Fault",
    "FaultPlan",
    "SinkContract",
    "StoredRun",
    "VersionStoreContract",
    "VirtualTime",
    "fail",
    "faults",
    "faulty",
    "ok",
    "record_events",
    "slow",
    "value",
    "virtual_time",
]

if TYPE_CHECKING:
    from mlkit.testing._breakers import BreakerStorageContract
    from mlkit.testing._codecs import CodecContract
    from mlkit.testing._engines import EngineContract
    from mlkit.testing._sinks import SinkContract, StoredRun
    from mlkit.testing._stores import VersionStoreContract
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)
    _SUITES = {  # only who writes a sink pays for tracking
        "BreakerStorageContract": "_breakers",
        "CodecContract": "_codecs",
        "EngineContract": "_engines",
        "SinkContract": "_sinks",
        "StoredRun": "_sinks",
        "VersionStoreContract": "_stores",
    }

    def __getattr__(name: str) -> object:
        if name not in _SUITES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        import sys
        from importlib import import_module

        module = f"mlkit.testing.{_SUITES[name]}"
        pytest = sys.modules.get("pytest")
        if pytest is not None and module not in sys.modules:
            pytest.register_assert_rewrite(module)  # a law that is broken then shows its values
        return getattr(import_module(module), name)

    def __dir__() -> list[str]:
        return __all__
