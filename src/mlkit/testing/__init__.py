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
    from mlkit.testing._sinks import SinkContract, StoredRun
    from mlkit.testing._stores import VersionStoreContract
else:  # were it visible to type checkers, they would accept any misspelt name (PEP 562)

    def __getattr__(name: str) -> object:
        if name in {"SinkContract", "StoredRun"}:  # only who writes a sink pays for tracking
            from mlkit.testing import _sinks

            return getattr(_sinks, name)
        if name == "CodecContract":
            from mlkit.testing._codecs import CodecContract

            return CodecContract
        if name == "BreakerStorageContract":
            from mlkit.testing._breakers import BreakerStorageContract

            return BreakerStorageContract
        if name == "VersionStoreContract":
            from mlkit.testing._stores import VersionStoreContract

            return VersionStoreContract
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return __all__
