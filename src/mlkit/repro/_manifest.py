"""What a run was made of, as one value with a digest: code, data, spec, params, seeds, environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, NoReturn, final

from mlkit._arguments import one_of, seconds, whole
from mlkit._clock import current
from mlkit._digest import digest, short
from mlkit.errors import ConfigurationError, FingerprintError, ManifestError
from mlkit.repro._determinism import Finding
from mlkit.repro._difference import Difference, compare
from mlkit.repro._fingerprint import fingerprint
from mlkit.repro._seeds import Seeds, as_seeds
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from mlkit.repro._lock import LockFormat
    from mlkit.repro._recording import Recording
    from mlkit.repro._rerun import RerunVerdict

__all__ = ["Manifest"]

_Status = Literal["captured", "running", "completed", "failed"]
_SCHEMA = "mlkit.manifest/1"
# In the order in which a difference is likely to explain another result.
_SECTIONS = ("code", "data", "spec", "params", "seeds", "packages", "environment")


@final
class Manifest:
    """What a run was made of. Made by `Manifest.capture` or `Manifest.load`.

    Two parts: the *identity* (code, data, spec, params, seeds, packages, environment), of which `digest` is the
    digest, and *facts* that differ from run to run (time, process, command, commit). So two captures of the same code,
    data, environment and seeds have equal digests.

    Immutable, comparable and hashable by its digest, picklable, safe to share between threads.

    Examples:
        >>> first = Manifest.capture(seeds=7, params={"lr": 0.1})
        >>> second = Manifest.capture(seeds=7, params={"lr": 0.2})
        >>> [str(change) for change in first.diff(second)]
        ['param lr changed from 0.1 to 0.2']
    """

    __slots__ = ("_digest", "_facts", "_identity")

    _identity: dict[str, Any]
    _facts: dict[str, Any]
    _digest: str

    def __init__(self, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        put = object.__setattr__
        put(self, "_identity", dict(identity))
        put(self, "_facts", dict(facts))
        put(self, "_digest", digest(self._identity))

    @classmethod
    def capture(
        cls,
        *,
        seeds: Seeds | int | None = None,
        spec: object = None,
        params: Mapping[str, Any] | None = None,
        data: Mapping[str, object] | None = None,
        code: str | PathLike[str] | None = None,
    ) -> Manifest:
        """Return the manifest of this process as it is now.

        Touches nothing: no file, git index, ref or object of the repository, no generator; starts no device, and
        imports nothing that costs. What cannot be told is a finding in `findings`, not an error.

        Args:
            seeds: The seeds of the run, or their root.
            spec: What was built: plain data, or something with `to_dict()`.
            params: The parameters by name: plain data.
            data: The data by name: anything that `fingerprint` takes (a `Path` is the file or folder there), or a
                fingerprint made before. A text that is no fingerprint is refused: it may be a forgotten `Path`.
            code: A folder in the git working tree that the code is in; the current folder if None.

        Returns:
            The manifest.

        Raises:
            ConfigurationError: If an argument is wrong.
            FingerprintError: If some data has no faithful content hash.
            ManifestError: If the spec or the params hold something that is not plain data.

        Note:
            Of the environment's variables only a short list that changes numerical results is recorded; of the command
            line, values of options that look like secrets are hidden. torch's switches and threads are part of the
            environment once torch is imported: capture at the same point of each run.
        """
        from pathlib import Path

        from mlkit.repro._environment import environment, packages, redacted
        from mlkit.repro._git import code_of
        from mlkit.repro._given import (
            fingerprints,
            folder_of,
            paths_of,
            plain_params,
            plain_seeds,
            plain_spec,
        )

        folder = folder_of("." if code is None else code)
        state = code_of(folder)
        findings = list(state.findings)
        recorded = {"tree": state.tree} if state.tree else _script()
        identity: dict[str, Any] = {
            "code": recorded,
            "data": fingerprints(data),
            "spec": plain_spec(spec),
            "params": plain_params(params),
            "seeds": None if seeds is None else plain_seeds(as_seeds(seeds, "capture(seeds=...)")),
            "packages": packages(),
            "environment": environment(),
        }
        facts = {
            "created": current().time(),
            "command": redacted([sys.executable or "python", *sys.orig_argv[1:]]),
            "commit": state.commit,
            "clean": state.clean,
            "directory": str(Path.cwd()),
            "paths": paths_of(data),
            "findings": [list(finding) for finding in findings],
        }
        manifest = cls(identity, facts)
        emit("repro.manifest.captured", short(manifest.digest), digest=manifest.digest)
        return manifest

    @property
    def digest(self) -> str:
        """The digest of the identity, `"sha256:..."`."""
        return self._digest

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What could not be recorded, and what to do about it."""
        return tuple(Finding(*finding) for finding in self._facts["findings"])

    @property
    def results(self) -> dict[str, float | int | str]:
        """What the recorded run gave, by name: numbers, and fingerprints of the rest; empty if nothing was recorded."""
        from mlkit.repro._results import shown

        return shown(self._facts.get("results", {}))

    @property
    def status(self) -> _Status:
        """How the recorded run ended; `"running"` also if it was killed, `"captured"` if none was recorded."""
        outcome = self._facts.get("outcome")
        found: _Status = "captured" if outcome is None else outcome["status"]
        return found

    def recording(self, path: str | PathLike[str]) -> Recording:
        """Return a block that writes this manifest to a file, with the results of the run and how it ended.

        Args:
            path: The file; an old one is replaced.

        Examples:
            >>> import tempfile
            >>> path = f"{tempfile.mkdtemp()}/run.json"
            >>> with Manifest.capture(seeds=7).recording(path) as run:
            ...     run.result("accuracy", 0.875)
            >>> record = Manifest.load(path)
            >>> record.status, record.results
            ('completed', {'accuracy': 0.875})
        """
        from mlkit.repro._recording import Recording

        return Recording(self, path, Manifest._with_facts)

    def _with_facts(self, facts: Mapping[str, Any]) -> Manifest:
        return Manifest(self._identity, {**self._facts, **facts})

    def rerun(
        self,
        *,
        command: Sequence[str] | None = None,
        directory: str | PathLike[str] | None = None,
        timeout: float | None = None,
        max_ulps: int = 16,
    ) -> RerunVerdict:
        """Run the recorded command again, and say how its results compare: bit for bit, nearly, or why not.

        The command runs in the folder that was the current one at the capture, with the code that is there now and with
        the environment variables that change results as they were; its output goes where this process's does. Its
        `recording` of the same path goes to a file aside, so that the record stays.

        Args:
            command: What to run instead, for a command with values that were hidden.
            directory: Where to run it instead.
            timeout: Seconds after which it is killed; None waits.
            max_ulps: How many units in the last place count as the same to the level `"within_ulps"`.

        Returns:
            The verdict; `verdict.because` names what changed since.

        Raises:
            ConfigurationError: If the manifest has no results, or its command holds hidden values.
            ManifestError: If the command fails, takes longer than *timeout*, or makes no record.
        """
        from mlkit.repro._rerun import judge, run_again

        ulps = whole("Manifest.rerun(max_ulps=...)", max_ulps)
        limit = None if timeout is None else seconds("Manifest.rerun(timeout=...)", timeout)
        again = run_again(self, Manifest.load, command=command, directory=directory, timeout=limit)
        return judge(self, again, ulps)

    def lock(self, form: LockFormat = "requirements", *, options: Sequence[str] = ()) -> str:
        """Return the installed packages as the text of a file that installers read.

        Args:
            form: `"requirements"` (pip and uv), `"conda"` (an `environment.yml` with a pip section), or `"pylock"`
                (PEP 751), which uv makes: it looks up where each package comes from, and its hashes.
            options: Further options for `uv pip compile`, such as `["--index-url", "..."]`; of `"pylock"` only.

        Raises:
            ConfigurationError: If *form* is none of these.
            ManifestError: If uv is not there, or cannot find a package.
        """
        from mlkit.repro._lock import lock

        one_of("Manifest.lock(form)", form, ("requirements", "pylock", "conda"))
        python = self._identity["environment"]["python"]["version"]
        return lock(self._identity["packages"], python, form, options)

    def to_dict(self, *, facts: bool = True) -> dict[str, Any]:
        """Return the manifest as plain data that JSON can hold: `schema`, `digest`, `identity`, `facts`.

        Args:
            facts: Whether to include what differs from run to run. Without it, two captures of the same code, data,
                environment and seeds give equal data, so that what contains it keeps its digest when it is made again.
        """
        from copy import deepcopy

        content = {
            "schema": _SCHEMA,
            "digest": self._digest,
            "identity": deepcopy(self._identity),
        }
        return content | {"facts": deepcopy(self._facts)} if facts else content

    def save(self, path: str | PathLike[str]) -> None:
        """Write the manifest to a JSON file; an old file is replaced in one step.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        from mlkit.repro._files import write_json

        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Manifest:
        """Return the manifest that `save` wrote.

        Args:
            path: The file.

        Raises:
            ManifestError: If the file is no manifest, was changed, or is from a newer version of mlkit.
            OSError: If it cannot be read.
        """
        from mlkit.repro._files import read_json

        return cls.from_dict(read_json(path, ManifestError), source=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "Manifest.from_dict") -> Manifest:
        """Return the manifest that `to_dict` gave.

        Args:
            data: What `to_dict` returned, or what JSON made of it.
            source: Where it comes from, for error messages.

        Raises:
            ManifestError: If it is no manifest, was changed, or is from a newer version of mlkit.
        """
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, str) or schema.rpartition("/")[0] != "mlkit.manifest":
            raise ManifestError(
                f"{source}: expected a manifest of schema {_SCHEMA!r}, found {schema!r}"
            )
        if schema != _SCHEMA:
            raise ManifestError(
                f"{source}: its schema is {schema!r}, this version of mlkit reads {_SCHEMA!r}; read it with the "
                f"version that wrote it, or a newer one"
            )
        identity, facts = data.get("identity"), data.get("facts", {"findings": [], "paths": {}})
        if not isinstance(identity, dict) or set(identity) != set(_SECTIONS):
            raise ManifestError(
                f"{source}: the identity has not the sections {', '.join(_SECTIONS)}"
            )
        if not isinstance(facts, dict) or not _facts_fit(facts):
            raise ManifestError(f"{source}: the facts of the run are missing or malformed")
        from copy import deepcopy

        manifest = cls(deepcopy(identity), deepcopy(facts))
        if manifest.digest != data.get("digest"):
            raise ManifestError(
                f"{source}: its content has the digest {short(manifest.digest)}, it says "
                f"{short(str(data.get('digest')))}: it was changed after it was saved"
            )
        return manifest

    def diff(self, other: Manifest) -> tuple[Difference, ...]:
        """Return what differs in *other*, most telling first; empty if and only if the digests are equal.

        Args:
            other: Another manifest, the later one.
        """
        if not isinstance(other, Manifest):
            raise ConfigurationError("Manifest.diff(other)", other, "a Manifest")
        changes: list[Difference] = []
        for section in _SECTIONS:
            compare(section, "", self._identity[section], other._identity[section], changes)
        return tuple(changes)

    def verify(
        self, *, data: Mapping[str, object] | None = None, code: str | PathLike[str] | None = None
    ) -> tuple[Difference, ...]:
        """Return what is different here and now from what the manifest records; empty if it could be repeated.

        Code, packages and environment are captured again; data that was given as paths is read again. Seeds, spec,
        params and other data are the caller's to provide and are taken as recorded.

        Args:
            data: The data by name, where it is not (or no longer) at its recorded path.
            code: A folder in the working tree to compare with; the current folder if None.

        Raises:
            ConfigurationError: If *data* has a name that the manifest does not have.
            FingerprintError: If some data has no faithful content hash.
        """
        from pathlib import Path

        from mlkit.repro._given import fingerprints

        recorded = self._identity["data"]
        given = dict(data or {})
        for name in given:
            if name not in recorded:
                expected = f"names among {sorted(recorded)}"
                raise ConfigurationError("Manifest.verify(data=...)", name, expected)
        now: dict[str, Any] = dict(recorded)
        for name, path in self._facts["paths"].items():
            if name not in given:
                if Path(path).exists():
                    given[name] = Path(path)
                else:
                    now.pop(name)  # gone: that is a change
        now.update(fingerprints(given))
        present = Manifest.capture(code=code)
        identity = {**self._identity, "data": now}
        for section in ("code", "packages", "environment"):
            identity[section] = present._identity[section]  # noqa: SLF001 - another of our own
        return self.diff(Manifest(identity, self._facts))

    def __eq__(self, other: object) -> bool:
        return self._digest == other._digest if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        tree = self._identity["code"].get("tree")
        code = f"code {tree[:12]}" if tree else "code unknown"
        seeds = self._identity["seeds"]
        root = f"seeds {seeds['root']}" if seeds else "no seeds"
        return (
            f"<Manifest {short(self._digest)}: {code}, {root}, {len(self._identity['data'])} data>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self._identity, self._facts)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("Manifest is immutable; capture another one")


def _facts_fit(facts: dict[str, Any]) -> bool:
    findings, paths = facts.get("findings"), facts.get("paths")
    return (
        isinstance(findings, list)
        and all(isinstance(finding, list) and len(finding) == 3 for finding in findings)
        and isinstance(paths, dict)
        and all(isinstance(path, str) for path in paths.values())
        and _run_fits(facts)
    )


def _run_fits(facts: dict[str, Any]) -> bool:
    """Return whether what is written of a recorded run, if one was, is as `Recording` writes it."""
    outcome, results = facts.get("outcome"), facts.get("results", {})
    if outcome is None and not results:
        return True
    return (
        isinstance(outcome, dict)
        and outcome.get("status") in {"running", "completed", "failed"}
        and all(isinstance(facts.get(name), str) for name in ("record", "directory"))
        and isinstance(facts.get("command"), list)
        and isinstance(results, dict)
        and all(isinstance(one, dict) and "fingerprint" in one for one in results.values())
    )


def _script() -> dict[str, str]:
    """Return the fingerprint of the program's main file, for code that is in no git working tree."""
    from pathlib import Path

    main = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        return {"script": fingerprint(Path(main))} if main else {}
    except FingerprintError:
        return {}
