"""The packages of a manifest in the forms that installers read."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Literal

from mlkit.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LockFormat", "lock"]

LockFormat = Literal["requirements", "pylock", "conda"]


def lock(
    packages: Mapping[str, str], python: str, form: LockFormat, options: Sequence[str] = ()
) -> str:
    """Return *packages* as the text of a file.

    Args:
        packages: Versions by normalised name.
        python: The version of Python.
        form: Which file.
        options: Further options for uv, which makes a `pylock.toml`.

    Raises:
        ManifestError: If uv is not there, or cannot find the packages.
    """
    pins = [f"{name}=={version}" for name, version in packages.items() if version != "unknown"]
    if form == "requirements":
        return "".join(f"{pin}\n" for pin in pins)
    if form == "conda":
        lines = [
            "name: mlkit-manifest",
            "dependencies:",
            f"  - python={python}",
            "  - pip",
            "  - pip:",
        ]
        return "".join(f"{line}\n" for line in (*lines, *(f"      - {pin}" for pin in pins)))
    return _pylock(pins, python, options)


def _pylock(pins: list[str], python: str, options: Sequence[str]) -> str:
    """Let uv write the file: where each package comes from, and its hashes, are not among what is installed."""
    uv = shutil.which("uv")
    if uv is None:
        raise ManifestError(
            "a pylock.toml needs uv, which looks up where the packages come from; install uv, or write requirements"
        )
    words = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate"]
    words += ["--format", "pylock.toml", "--python-version", python, *options, "-"]
    done = subprocess.run(  # noqa: S603 - a fixed program and our own arguments
        words, input="\n".join(pins), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ManifestError(f"uv could not lock the packages: {done.stderr.strip()[:400]}")
    return done.stdout
