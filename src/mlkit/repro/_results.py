"""What a run gave, kept so that a later run can be compared with it: numbers exactly, arrays as far as they are small."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ConfigurationError
from mlkit.repro._compare import Difference, results_differ
from mlkit.repro._fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ResultDifference", "compare_results", "kept", "shown"]

_LARGEST = 2**20  # bytes of an array that is kept whole


class ResultDifference(NamedTuple):
    """A result of a run that is another one when the run is repeated.

    Attributes:
        name: The result; `"weights.0.bias"` for a part of one.
        reason: What differs, as a phrase: `"0.5 became 0.25"`.
        max_ulps: By how many units in the last place at most; None if that cannot be said (it is no float, only its
            fingerprint was kept, the shape differs).
        is_number: Whether it is a single number, such as a metric.
    """

    name: str
    reason: str
    max_ulps: int | None
    is_number: bool

    def __str__(self) -> str:
        by = "" if self.max_ulps is None else f", by at most {self.max_ulps} ulp"
        return f"{self.name}: {self.reason}{by}"


def kept(name: str, value: object) -> dict[str, dict[str, Any]]:
    """Return what is kept of a result, as JSON data by name; each value of a mapping is a result of its own.

    Raises:
        ConfigurationError: If *name* is no text, or a mapping is empty.
        FingerprintError: If the value has no faithful content hash.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError("result(name)", name, "a name (str) that is not empty")
    found = {path: _kept_one(part) for path, part in _parts(name, value)}
    if not found:
        raise ConfigurationError("result(value)", value, "a mapping that is not empty")
    return found


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    from collections.abc import Mapping

    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    else:
        yield name, value


def _kept_one(value: Any) -> dict[str, Any]:
    whole = {"fingerprint": fingerprint(value)}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.numpy() if value.dtype in _numpy_types(torch) else None
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, bool) or value is None:
        return whole
    if isinstance(value, float):
        return {**whole, "number": value.hex()}
    if isinstance(value, int):
        return {**whole, "number": value}
    if numpy is not None and isinstance(value, numpy.ndarray) and value.nbytes <= _LARGEST:
        return {**whole, "array": _written(value)} if value.dtype.kind in "biuf" else whole
    return whole


def _numpy_types(torch: Any) -> tuple[Any, ...]:
    return torch.float16, torch.float32, torch.float64, torch.int32, torch.int64


def _written(array: Any) -> dict[str, Any]:
    from base64 import b64encode

    import numpy as np

    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = b64encode(little.tobytes()).decode("ascii")
    return {"dtype": little.dtype.str, "shape": list(array.shape), "data": data}


def _value(one: Mapping[str, Any]) -> Any:
    """Return the value that was kept, or its fingerprint."""
    if "number" in one:
        number = one["number"]
        return float.fromhex(number) if isinstance(number, str) else number
    if "array" in one:
        from base64 import b64decode

        import numpy as np

        array = one["array"]
        return np.frombuffer(b64decode(array["data"]), array["dtype"]).reshape(array["shape"])
    return one["fingerprint"]


def shown(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | int | str]:
    """Return the numbers, and the fingerprints of the others, by name."""
    return {
        name: _value(one) if "number" in one else one["fingerprint"]
        for name, one in results.items()
    }


def compare_results(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> tuple[ResultDifference, ...]:
    """Return what differs, in the order of the first run."""
    names = [*before, *(name for name in after if name not in before)]
    pairs = [(name, _differ(before.get(name), after.get(name))) for name in names]
    return tuple(
        ResultDifference(
            name, difference.reason, difference.max_ulps, "number" in before.get(name, {})
        )
        for name, difference in pairs
        if difference is not None
    )


def _differ(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Difference | None:
    if before is None or after is None:
        return Difference("$", "it is new" if before is None else "it is gone")
    if before["fingerprint"] == after["fingerprint"]:
        return None
    one, other = _value(before), _value(after)
    if isinstance(one, str) or isinstance(other, str):
        return Difference("$", "its content is another")
    # Equal as compared (-0.0 is not 0.0), and yet of another fingerprint: 1 and 1.0
    return results_differ(one, other) or Difference("$", "its type is another")
