"""What mlkit's own tests use and its users need too: virtual time, faults, contract suites.

`mlkit.testing.strategies` needs Hypothesis and is imported by its own name; the rest needs the
standard library only.
"""

from __future__ import annotations

from mlkit.testing._events import record_events
from mlkit.testing._time import VirtualTime, virtual_time

__all__ = ["VirtualTime", "record_events", "virtual_time"]
