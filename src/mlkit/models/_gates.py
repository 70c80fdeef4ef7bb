"""Gates whose error rate is known: a version passes on an interval, not on one noisy number."""

from __future__ import annotations

from typing import TypeAlias

from mlkit.errors import ConfigurationError
from mlkit.models._gate_arguments import level
from mlkit.models._latency import LatencyGate
from mlkit.models._paired import PairedGate

__all__ = ["LatencyGate", "PairedGate", "share_alpha"]

Gate: TypeAlias = "PairedGate | LatencyGate"


def share_alpha(*gates: PairedGate | LatencyGate, alpha: float = 0.05) -> list[Gate]:
    """Return the gates with the level divided among them, so that all their bounds hold together.

    A promotion needs every gate, so the probability to promote a version that fails what one gate asks is at most that
    gate's own alpha however many gates there are (an intersection-union test; Berger 1982): for that alone nothing need
    be divided. Divided by their number (Bonferroni), the recorded bounds of all gates are true at once with probability
    `1 - alpha`, and may be quoted together.

    Args:
        gates: At least one.
        alpha: For all of them, in (0, 0.5).

    Returns:
        Copies at `alpha / len(gates)`.

    Raises:
        ConfigurationError: If there is no gate, or *alpha* is out of range.

    Examples:
        >>> import tempfile
        >>> from mlkit.models import ModelStore
        >>> old = ModelStore(tempfile.mkdtemp()).save("churn", b"")
        >>> score = {1: [0.0] * 100}
        >>> gates = [PairedGate(name, lambda version: score, against=old) for name in ("recall", "precision")]
        >>> [gate.alpha for gate in share_alpha(*gates, alpha=0.05)]
        [0.025, 0.025]
    """
    if not gates or not all(isinstance(gate, (PairedGate, LatencyGate)) for gate in gates):
        raise ConfigurationError("share_alpha(*gates)", gates, "PairedGates and LatencyGates")
    part = level("share_alpha", alpha) / len(gates)
    return [gate.at(part) for gate in gates]
