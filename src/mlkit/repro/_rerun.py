"""A run done again by its own command, and what came of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, ManifestError
from mlkit.repro._recording import REDIRECT
from mlkit.repro._results import ResultDifference, compare_results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlkit.repro._difference import Difference
    from mlkit.repro._manifest import Manifest

__all__ = ["RerunVerdict", "judge", "run_again"]


class RerunVerdict(NamedTuple):
    """How a repeated run compares with the recorded one; its text is a sentence.

    Attributes:
        level: `"identical"`: every result has the same bits. `"within_ulps"`: those that differ are floats, by no more
            than was allowed. `"metrics_equal"`: all single numbers are the same, other results are not. `"differs"`.
        results: The results that differ.
        because: What the manifests have different, most telling first.
        total: How many results there are.
        manifest: The record of the repeated run.
    """

    level: Literal["identical", "within_ulps", "metrics_equal", "differs"]
    results: tuple[ResultDifference, ...]
    because: tuple[Difference, ...]
    total: int
    manifest: Manifest

    @property
    def max_ulps(self) -> int | None:
        """The largest difference in units in the last place: 0 if all is identical, None if one cannot be told."""
        found = [result.max_ulps for result in self.results]
        return (
            None if None in found else max((ulps for ulps in found if ulps is not None), default=0)
        )

    def __str__(self) -> str:
        if self.level == "identical":
            return f"identical bits in {self.total} result{'s' if self.total > 1 else ''}"
        names = ", ".join(result.name for result in self.results[:3])
        more = f" and {len(self.results) - 3} more" if len(self.results) > 3 else ""
        if self.level == "within_ulps":
            return (
                f"within {self.max_ulps} ulp: {names}{more} differ{'s' * (len(self.results) == 1)}"
            )
        if self.level == "metrics_equal":
            return f"metrics equal; {names}{more} differ{'s' * (len(self.results) == 1)}; {self._why()}"
        return f"differs: {'; '.join(map(str, self.results[:3]))}{more}; {self._why()}"

    def _why(self) -> str:
        if not self.because:
            return (
                "nothing that the manifest records explains it: look for it with mlkit.repro.check"
            )
        more = f" and {len(self.because) - 3} more" if len(self.because) > 3 else ""
        return f"because {'; '.join(map(str, self.because[:3]))}{more}"


def judge(before: Manifest, after: Manifest, max_ulps: int) -> RerunVerdict:
    """Compare the results of two records."""
    one, other = _results(before), _results(after)
    found = compare_results(one, other)
    level: Literal["identical", "within_ulps", "metrics_equal", "differs"] = "differs"
    if not found:
        level = "identical"
    elif all(result.max_ulps is not None and result.max_ulps <= max_ulps for result in found):
        level = "within_ulps"
    elif not any(result.is_number for result in found) and _same_numbers(one, other):
        level = "metrics_equal"
    return RerunVerdict(level, found, before.diff(after), len(one), after)


def _same_numbers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    numbers = {name for name, result in one.items() if "number" in result}
    return bool(numbers) and numbers == {
        name for name, result in other.items() if "number" in result
    }


def _results(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest._facts.get("results", {}))  # noqa: SLF001 - the block's own


def run_again(
    manifest: Manifest,
    load: Any,
    *,
    command: Sequence[str] | None,
    directory: str | os.PathLike[str] | None,
    timeout: float | None,
) -> Manifest:
    """Run the command of *manifest* and return the record that it makes.

    Args:
        manifest: What was recorded.
        load: What reads a manifest from a path.
        command: What to run instead of the recorded command.
        directory: Where, instead of the recorded folder.
        timeout: Seconds, or None.

    Raises:
        ConfigurationError: If the record has no results to compare with, or the command cannot be known.
        ManifestError: If the command fails, takes too long or makes no record.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from mlkit.repro._environment import HIDDEN

    facts: dict[str, Any] = manifest._facts  # noqa: SLF001 - the block's own
    if not _results(manifest):
        expected = "a record with results"
        hint = "record the run: with manifest.recording(path) as run: run.result(name, value)"
        raise ConfigurationError(
            "Manifest.rerun", "a manifest without results", expected, hint=hint
        )
    words = list(facts["command"] if command is None else command)
    if hidden := [word for word in words if HIDDEN in word]:
        expected = "a command without values that were hidden as secrets"
        raise ConfigurationError(
            "Manifest.rerun(command=...)", hidden[0], expected, hint="pass the whole command"
        )
    with TemporaryDirectory(prefix="mlkit-rerun-") as scratch:
        target = Path(scratch, "record.json")
        environment = _environment(manifest) | {REDIRECT: f"{facts['record']}\n{target}"}
        code = _finished(words, directory or facts["directory"], environment, timeout)
        if not target.exists():
            reason = f"exited with {code} and made no record" if code else "made no record"
            raise ManifestError(
                f"rerun: {clip(' '.join(words), 200)} {reason} at {facts['record']}"
            )
        again: Manifest = load(target)
    outcome = again._facts["outcome"]  # noqa: SLF001
    if outcome["status"] != "completed":
        what = outcome["error"] or f"it exited with {code}"
        raise ManifestError(f"rerun: {clip(' '.join(words), 200)} did not complete: {what}")
    return again


def _environment(manifest: Manifest) -> dict[str, str]:
    """Return the variables of this process, with those that change results as they were recorded."""
    from mlkit.repro._environment import VARIABLES

    recorded: dict[str, str] = manifest._identity["environment"].get("variables", {})  # noqa: SLF001
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | recorded


def _finished(
    words: list[str], directory: Any, environment: dict[str, str], timeout: float | None
) -> int:
    import subprocess

    try:
        with subprocess.Popen(  # noqa: S603 - the user asked for this command
            words, cwd=directory, env=environment, start_new_session=True
        ) as process:
            try:
                return process.wait(timeout)
            except BaseException:
                os.killpg(process.pid, 9)  # and what it started
                raise
    except subprocess.TimeoutExpired:
        raise ManifestError(
            f"rerun: {clip(' '.join(words), 200)} took longer than {timeout} s"
        ) from None
    except OSError as error:
        raise ManifestError(f"rerun: {clip(' '.join(words), 200)}: {error}") from error
