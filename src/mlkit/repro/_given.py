"""What the caller of a capture gives (folder, data, spec, params, seeds), checked and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlkit._digest import canonical, is_digest
from mlkit.errors import ConfigurationError, DigestError, ManifestError
from mlkit.repro._fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from mlkit.repro._seeds import Seeds

__all__ = ["fingerprints", "folder_of", "paths_of", "plain_params", "plain_seeds", "plain_spec"]


@runtime_checkable
class _Spec(Protocol):
    """Something that can be written as plain data, such as a spec of `mlkit.registry`."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return plain data."""
        ...


def folder_of(code: str | PathLike[str]) -> Path:
    """Return *code* as the absolute path of a folder that exists."""
    from pathlib import Path

    try:
        folder = Path(code)
    except TypeError:
        raise ConfigurationError("capture(code=...)", code, "a folder") from None
    if not folder.is_dir():
        raise ConfigurationError("capture(code=...)", str(code), "a folder that exists")
    return folder.absolute()


def fingerprints(data: Mapping[str, object] | None) -> dict[str, str]:
    """Return the fingerprint of each of *data*, by name."""
    found = {}
    for name, value in _named(data, "data").items():
        if not isinstance(value, str):
            found[name] = fingerprint(value)
        elif is_digest(value.replace("blake3:", "sha256:", 1)):
            found[name] = value
        else:
            expected = "a fingerprint, or anything but text"
            hint = "for a file or folder pass pathlib.Path(...), for text its fingerprint(text)"
            raise ConfigurationError(f"capture(data={{{name!r}: ...}})", value, expected, hint=hint)
    return found


def paths_of(data: Mapping[str, object] | None) -> dict[str, str]:
    """Return where those of *data* lie that were given as paths."""
    from pathlib import Path

    return {
        name: str(value.absolute())
        for name, value in (data or {}).items()
        if isinstance(value, Path)
    }


def plain_seeds(seeds: Seeds) -> dict[str, Any]:
    """Return *seeds* as JSON data."""
    return {"root": f"{seeds.root:#x}", "path": list(seeds.path)}


def plain_spec(spec: object) -> Any:
    """Return *spec* as JSON data."""
    if isinstance(spec, _Spec):
        spec = spec.to_dict()
    return _plain(spec, "spec")


def plain_params(params: Mapping[str, Any] | None) -> Any:
    """Return *params* as JSON data."""
    return _plain(_named(params, "params"), "params")


def _named(values: Mapping[str, Any] | None, argument: str) -> dict[str, Any]:
    from collections.abc import Mapping as AnyMapping

    if values is None:
        return {}
    if not isinstance(values, AnyMapping) or not all(isinstance(key, str) for key in values):
        raise ConfigurationError(f"capture({argument}=...)", values, "a mapping with text keys")
    return dict(values)


def _plain(value: object, argument: str) -> Any:
    """Return *value* as JSON data with the same meaning; what JSON cannot say exactly keeps its canonical tag."""
    import json

    try:
        return _readable(json.loads(canonical(value)))
    except DigestError as error:
        raise ManifestError(f"Manifest.capture({argument}=...): {error}") from None


def _readable(value: Any) -> Any:
    """Write finite floats as JSON numbers, which hold them exactly; a person reads the file, too."""
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"!float"}:
        number = float("nan") if value["!float"] == "nan" else float.fromhex(value["!float"])
        return number if abs(number) < float("inf") else value
    return {key: _readable(item) for key, item in value.items()}
