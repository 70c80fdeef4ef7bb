"""The store: save, find, load, promote, roll back, delete."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, final, overload

from mlkit._arguments import seconds
from mlkit._clock import Clock, current
from mlkit._digest import short
from mlkit.errors import (
    AliasConflictError,
    ChecksFailedError,
    ConfigurationError,
    VersionInUseError,
    VersionNotFoundError,
)
from mlkit.models._catalog import Catalog
from mlkit.models._checks import Check, ask, named, refusals
from mlkit.models._codec import Codec, checked_codecs
from mlkit.models._folder import WRITABLE, Folder
from mlkit.models._formats import Trust, check_trust, decode, may_load, takes_build
from mlkit.models._names import check_alias, check_name, check_text
from mlkit.models._payload import open_payload
from mlkit.models._plain import check_metrics, check_tags, plain_mapping
from mlkit.models._policy import Policy, checked_requirement
from mlkit.models._sealed import checked_keys
from mlkit.models._signature import signature_of
from mlkit.models._signing import signer
from mlkit.models._version import MAX_DOCUMENT, Change, ModelVersion, parse_payload, read_document
from mlkit.telemetry import Counter, emit, register

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from types import EllipsisType

    from mlkit.models._compare import Comparison
    from mlkit.models._garbage import Sweep
    from mlkit.models._package import Package, Parts
    from mlkit.models._sealed import KeyProvider
    from mlkit.models._signing import Requirement
    from mlkit.models._verify import Verification


__all__ = ["ModelStore"]

T = TypeVar("T")
# Of the process, not of a store: a count that fell when a store was collected would be none.
_SAVES, _LOADS = Counter("models_saves_total"), Counter("models_loads_total")
register(_SAVES)
register(_LOADS)


@final
class ModelStore:
    """A folder of model versions, found by name, number, alias or digest.

    ```text
    blobs/sha256/ab/abcd...   weights, and one JSON document per version; named by their content, never changed
    models/churn.jsonl        the history of a model: one chained line per change; what has happened is what it says
    sealed/sha256/...         the same, sealed with a key
    lock, tmp/                held by a writer; files not yet finished
    ```

    A change happens when its line is written, whole, after all it speaks of is on the disk: a process that is killed
    at any point leaves the state before or the state after. Readers take no lock (but to look again before they report
    a damaged history). Writers, in any number of threads and processes of one machine, take turns; between machines as
    far as the file system gives `flock` (NFSv4 does).

    Thread-safe, fork-safe and, without *keys*, picklable. Building one touches no file.

    Args:
        path: The folder; created by the first `save`.
        codecs: Formats beside the built-in ones; asked first by `save`, in this order.
        who: Who is written down for a change; by default `user@host`.
        clock: Where times come from; by default the context's clock.
        keys: Where the keys come from that weights, specs, signatures and manifests are sealed with at rest, see
            `KeyProvider`. Names, numbers, metrics, tags and digests stay readable.
        timeout: How long a change waits for another writer to finish, in seconds; None for as long as it takes.
        require: Who must have signed every version that `get`, `load`, `promote` and `rollback` touch: `signed_by(...)`.

    Raises:
        ConfigurationError: If *path* is not the path of a local folder, *who* not text of at most 1000 characters, or
            another argument wrong.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> store = ModelStore(tempfile.mkdtemp())
        >>> for shift in (0.1, 0.2):
        ...     version = store.save("prior", {"shift": np.array(shift)})
        >>> _ = store.promote("prior", 1, to="champion")
        >>> _ = store.promote("prior", 2, to="champion", expect=1)
        >>> float(store.load("prior@champion")["shift"])
        0.2
        >>> store.rollback("prior", "champion").version
        1
        >>> [change.kind for change in store.history("prior")]
        ['saved', 'saved', 'promoted', 'promoted', 'rolled_back']
    """

    __slots__ = ("__weakref__", "_catalog", "_clock", "_codecs", "_folder", "_policy", "_who")

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        codecs: Sequence[Codec] = (),
        who: str | None = None,
        clock: Clock | None = None,
        require: Requirement | None = None,
        timeout: float | None = 60.0,
        keys: KeyProvider | None = None,
    ) -> None:
        if timeout is not None:
            timeout = seconds("ModelStore(timeout=...)", timeout, zero=True)
        checked_keys("ModelStore(keys=...)", keys)
        self._folder = Folder(_checked_path(path), timeout=timeout, keys=keys)
        self._who = None if who is None else check_text("ModelStore(who=...)", who)
        self._clock = clock
        self._codecs = checked_codecs("ModelStore(codecs=...)", codecs)
        self._catalog = Catalog(self._folder)
        checked_requirement("ModelStore(require=...)", require)
        self._policy = Policy(self._folder, self._catalog, require)

    @property
    def path(self) -> str:
        """The folder."""
        return self._folder.root

    def __repr__(self) -> str:
        return f"ModelStore({self.path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._folder.keys is not None:
            # Its copy would have the keys in its bytes, or none and save for everybody to read.
            raise ConfigurationError(
                "pickling a ModelStore",
                self,
                "a store without keys",
                hint="open it where it is used",
            )
        settings = {
            "who": self._who,
            "clock": self._clock,
            "codecs": list(self._codecs.values()),
            "require": self._policy.requirement,
            "timeout": self._folder.timeout,
        }
        return _reopen, (self.path, settings)

    # --- finding -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the models that have a history, sorted.

        Raises:
            ConfigurationError: If the folder cannot be read.
        """
        return self._catalog.names()

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model that are not deleted, oldest first.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        state = self._catalog.state(check_name("versions(name)", name))
        return [self._catalog.version(name, state, number) for number in state.versions]

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        return self._catalog.state(check_name("aliases(name)", name)).aliases()

    def history(self, name: str) -> list[Change]:
        """Return every change of a model since its first version, oldest first.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        state = self._catalog.state(check_name("history(name)", name))
        return [_copy(change) for change in state.changes]

    def get(self, ref: str | ModelVersion, *, require: Requirement | None = None) -> ModelVersion:
        """Return a version without its weights; its spec, signature and manifest are read and checked.

        Args:
            ref: `"churn@champion"`, `"churn@7"`, `"churn@sha256:..."` (a beginning of at least 4 digits that only one
                content has; of equal versions the newest), or a version.
            require: Who must have signed it, beside whom the store requires.

        Raises:
            ConfigurationError: If *ref* is none of these, or the folder cannot be read.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what is stored is not what was saved.
            SignatureError: If it is not signed as required.
        """
        checked_requirement("get(require=...)", require)
        version = self._catalog.resolve("get(ref)", ref)
        self._policy.check(version, require)
        self._catalog.reading(version, lambda: read_document(version))
        return version

    # --- saving and loading --------------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        model: object,
        *,
        spec: Mapping[str, Any] | None = None,
        run: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
        signature: Mapping[str, Any] | None = None,
        example: object = None,
        output: object = None,
        tags: Mapping[str, str] | None = None,
        why: str = "",
        trust: Trust | None = None,
        sign: str | PathLike[str] | object | None = None,
    ) -> ModelVersion:
        """Store a model as the next version of *name*.

        Args:
            name: The model.
            model: What to store: a mapping of NumPy arrays or of torch tensors, a torch module or other `Stateful`
                object (with *spec*), a scikit-learn estimator, an `onnx.ModelProto`, a `torch.jit.ScriptModule`, a
                `torch.export.ExportedProgram`, bytes, or a `pathlib.Path` of a file, which is copied as it is; or
                whatever a codec of the store handles.
            spec: The plain data that rebuilds the object without its weights.
            run: The id of the run that made it.
            metrics: What was measured of it, kept as floats: numbers, bools (as 1 and 0), NumPy scalars; NaN is kept.
            manifest: What it was made with, as plain data.
            signature: What it takes and gives: a `Signature`, or other plain data.
            example: An input, which the signature is then inferred from; see `Signature.infer`.
            output: What the model answers to *example*, or a callable that does, such as the model itself.
            tags: Notes.
            why: Why, for the history.
            trust: What is saved without it loads without it. `"torchscript"` and `"pt2"` store such a program;
                `"pickle"` stores what has no safe format, and estimators, with pickle; each load must then say the
                same. A list has names of types that an estimator may hold beside those that skops trusts.

            sign: A private key, see `sign`; the version and its signature come into the history together.

        Returns:
            The new version. Its digest covers weights, spec, signature and manifest, and nothing else.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            UntrustedFormatError: If loading it would need a decision that *trust* does not say.
            MissingDependencyError: If the package that stores models of its kind is not installed.
            IntegrityError: If the history was tampered with.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was saved.
        """
        from mlkit.models._draft import Draft  # a process that only loads never needs it

        check_name("save(name)", name)
        check_trust("save(trust=...)", trust)
        if run is not None:
            check_text("save(run=...)", run)
        check_text("save(why=...)", why)
        key = None if sign is None else signer("save(sign=...)", sign)
        facts: dict[str, Any] = {
            "run": run,
            # JSON has no NaN.
            "metrics": {
                key: repr(value)
                for key, value in check_metrics("save(metrics=...)", metrics).items()
            },
            "tags": check_tags("save(tags=...)", tags),
        }
        parts = {
            "spec": plain_mapping("save(spec=...)", spec),
            "signature": signature_of("save", signature, example, output),
            "manifest": plain_mapping("save(manifest=...)", manifest),
        }
        with Draft(self._folder) as draft:
            with self._folder.fit(WRITABLE):
                facts |= draft.write(model, parts, trust, self._codecs)
            log = self._catalog.log(name)
            with self._folder.lock():
                state = log.read_locked()
                draft.adopt()
                events = [self._event("saved", state.last + 1, why) | facts]
                if key is not None:
                    events.append(self._policy.signed_event(events[0], name, key))
                state = log.append(state, *events)
        _SAVES.add()
        return self._catalog.version(name, state, state.last)

    @overload
    def load(
        self,
        ref: str | ModelVersion,
        *,
        build: Callable[[dict[str, Any]], T],
        trust: None = None,
        require: Requirement | None = None,
    ) -> T: ...
    @overload
    def load(
        self,
        ref: str | ModelVersion,
        *,
        build: None = None,
        trust: Trust | None = None,
        require: Requirement | None = None,
    ) -> Any: ...
    def load(
        self,
        ref: str | ModelVersion,
        *,
        build: Callable[[dict[str, Any]], Any] | None = None,
        trust: Trust | None = None,
        require: Requirement | None = None,
    ) -> Any:
        """Return the model of a version, after checking every byte that is read.

        Args:
            ref: As for `get`.
            build: Called with a copy of the version's spec; must return the object without its weights, which then
                takes them by `load_state_dict`. Needed for what was saved as an object.
            trust: `"pickle"`, `"torchscript"` or `"pt2"` if code in such a file may run, or a list of names of types
                that an estimator may hold; needed for what was saved so.
            require: Who must have signed it, beside whom the store requires: `signed_by("team.pem")`.

        Returns:
            What *build* returned, with the weights in it, in the stored dtypes; without *build*, the mapping of
            arrays or tensors, the bytes, the estimator, the ONNX model or the program that was saved.

        Raises:
            ConfigurationError: If an argument is wrong, *build* is missing or cannot apply, or the folder cannot be
                read.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what is stored is not what was saved.
            SignatureError: If it is not signed as required.
            UntrustedFormatError: If loading it could run code, or holds a type that is not known to be harmless, and
                *trust* does not say so.
            UnknownFormatError: If it was stored by a codec that this store does not have.
            MissingDependencyError: If the package that reads its format is not installed.
            RebuildError: If the file is not of the format that its document says, *build* raises (its error is the cause; one of mlkit's own comes through), or what it
                returned has no `load_state_dict`, or is a torch module that does not take the weights. What the
                `load_state_dict` of another object raises comes through.
        """
        check_trust("load(trust=...)", trust)
        if build is not None:
            _check_build("load(build=...)", build)
        checked_requirement("load(require=...)", require)
        version = self._catalog.resolve("load(ref)", ref)
        self._policy.check(version, require)
        return self._open(version, build=build, trust=trust)

    def _open(
        self,
        version: ModelVersion,
        *,
        build: Callable[[dict[str, Any]], Any] | None,
        trust: Trust | None,
    ) -> Any:
        """Return the model of a version whose files are here; another store uses this one as its cache."""
        document = self._catalog.reading(version, lambda: read_document(version))
        payload = parse_payload(document)
        may_load(f"{version.ref} (sha256:{short(version.digest)})", payload, trust)
        if build is None and payload.rebuild:
            raise ConfigurationError(
                "load(build=...)",
                None,
                f"the callable that rebuilds {version.ref} from its spec",
                hint="e.g. the build method of the registry it came from",
            )
        if build is not None and not takes_build(payload):
            raise ConfigurationError(
                "load(build=...)", build, f"no build for {version.ref}, which is {payload.format}"
            )
        with self._catalog.reading(version, lambda: open_payload(self._folder, payload)) as file:
            model = decode(
                version.ref,
                file,
                payload,
                spec=document["spec"],
                build=build,
                trust=trust,
                codecs=self._codecs,
            )
        _LOADS.add()
        return model

    def compare(self, first: str | ModelVersion, second: str | ModelVersion) -> Comparison:
        """Return what differs between two versions: spec, signature, manifest, metrics, tags, and each tensor.

        Args:
            first: As for `get`.
            second: As for `get`.

        Returns:
            The differences, in the order of the parts; printed, one a line.

        Raises:
            ConfigurationError: If an argument is no reference, or the folder cannot be read.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what is stored is not what was saved.

        Note:
            Weights whose digests are equal are not read; of others two tensors at a time are in memory.
        """
        from mlkit.models._compare import compare

        one = self._catalog.resolve("compare(first)", first)
        other = self._catalog.resolve("compare(second)", second)
        return self._catalog.reading(one, lambda: compare(one, other, self._opened))

    def card(self, ref: str | ModelVersion) -> str:
        """Return the model card of a version, in Markdown.

        Facts, tags, metrics, signature, the data that its manifest names, manifest, spec and history. Equal for an
        equal store. Names, tags and reasons are escaped: they show as they were written, and format or link nothing.

        Args:
            ref: As for `get`.

        Raises:
            ConfigurationError: If *ref* is no reference, or the folder cannot be read.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what is stored is not what was saved.
            SignatureError: If it is not signed as the store requires.
        """
        from mlkit.models._card import card

        version = self.get(ref)
        return card(version, self.history(version.name), self.aliases(version.name))

    def verify(
        self, name: str | None = None, *, require: Requirement | None = None
    ) -> Verification:
        """Read every file of every version again, and say which are not what was saved.

        Damage ends nothing: the rest is looked at, too. No version needs to be loadable here.

        Args:
            name: One model only.
            require: Who must have signed each version, beside whom the store requires.

        Returns:
            What is broken, and how much was looked at.

        Raises:
            ConfigurationError: If an argument is wrong, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.

        Note:
            One file at a time, in pieces of a megabyte; as fast as the disk and SHA-256 are.
        """
        from mlkit.models._verify import verify

        checked_requirement("verify(require=...)", require)
        names = self.names() if name is None else [check_name("verify(name)", name)]
        return verify(
            names, self._catalog, self._folder, lambda version: self._policy.check(version, require)
        )

    def _opened(self, version: ModelVersion) -> IO[bytes]:
        payload = parse_payload(read_document(version))
        return self._catalog.reading(version, lambda: open_payload(self._folder, payload))

    # --- changing ------------------------------------------------------------------------------------------------

    def promote(
        self,
        name: str,
        version: int | ModelVersion,
        *,
        to: str = "champion",
        expect: int | ModelVersion | EllipsisType | None = ...,
        checks: Sequence[Check] = (),
        why: str = "",
        require: Requirement | None = None,
    ) -> Change:
        """Point an alias at a version, if the alias is where it is expected to be and every check passes.

        Args:
            name: The model.
            version: The version, or its number.
            to: The alias.
            expect: The version that must hold the alias now, None if none may. Left out: any; but what checks judged
                against the holder when the call began does not count if it is another at the end.
            checks: Gates, all of which are asked; see `Check`. No lock is held meanwhile.
            why: Why, for the history.
            require: Who must have signed it, beside whom the store requires.

        Returns:
            The change as it was written down. If every check passes and the alias points there already, nothing is
            written, and the change that put it there is returned.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            VersionNotFoundError: If there is no such version.
            AliasConflictError: If another version than expected holds the alias.
            ChecksFailedError: If a check did not let it pass; the history says which and why.
            SignatureError: If it is not signed as required.
            IntegrityError: If the history was tampered with.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was changed.
        """
        check_name("promote(name)", name)
        check_alias("promote(to=...)", to)
        check_text("promote(why=...)", why)
        checked_requirement("promote(require=...)", require)
        gates = named("promote(checks=...)", checks)
        number = self._catalog.number("promote(version)", name, version)
        expected = (
            expect
            if expect is ... or expect is None
            else self._catalog.number("promote(expect=...)", name, expect)
        )
        state = self._catalog.state(name)
        judged = self._catalog.version(name, state, number)
        self._policy.check_number(name, number, state, require)
        holder = state.aliases().get(to)
        if expected is not ... and expected != holder:
            raise AliasConflictError(f"{name}@{to}", expected=expected, got=holder)
        evidence = {gate: ask(check, judged) for gate, check in gates.items()}
        failures = refusals(evidence)
        kind: Literal["promoted", "refused"] = "refused" if failures else "promoted"
        log = self._catalog.log(name)
        with self._folder.lock():
            state = log.read_locked()
            self._catalog.version(name, state, number)
            holder_now = state.aliases().get(to)
            if not failures:
                if (expected is not ... or gates) and holder_now != holder:
                    raise AliasConflictError(f"{name}@{to}", expected=holder, got=holder_now)
                if holder_now == number:
                    return _copy(state.last_move(to))
            event = self._event(kind, number, why)
            event |= {"alias": to, "previous": holder_now, "evidence": evidence}
            change = _copy(log.append(state, event).last_change())
        if failures:
            emit("models.promotion.refused", name, alias=to, version=number)
            raise ChecksFailedError(f"{name}@{number}", failures)
        emit("models.alias.moved", name, alias=to, version=number, previous=holder_now)
        return change

    def rollback(
        self,
        name: str,
        alias: str = "champion",
        *,
        expect: int | ModelVersion | EllipsisType = ...,
        why: str = "",
    ) -> Change:
        """Point an alias at the version that held it before the present one did.

        Called again it goes back further; what was rolled back is not returned to. Versions deleted since are passed
        over. Two guards that see the same trouble should both pass *expect*, so that only one of them rolls back.

        Args:
            name: The model.
            alias: The alias.
            expect: The version that must hold the alias now.
            why: Why, for the history.

        Returns:
            The change as it was written down.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            VersionNotFoundError: If nobody holds the alias, or no version that still exists held it before.
            AliasConflictError: If another version than expected holds it.
            SignatureError: If the version to go back to is not signed as the store requires.
            IntegrityError: If the history was tampered with.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was changed.
        """
        check_name("rollback(name)", name)
        check_alias("rollback(alias)", alias)
        check_text("rollback(why=...)", why)
        expected = (
            ... if expect is ... else self._catalog.number("rollback(expect=...)", name, expect)
        )
        self._catalog.state(name)
        log = self._catalog.log(name)
        with self._folder.lock():
            state = log.read_locked()
            held = state.holders.get(alias, ())
            if not held:
                raise self._catalog.missing(f"{name}@{alias}", state)
            if expected is not ... and held[-1] != expected:
                raise AliasConflictError(f"{name}@{alias}", expected=expected, got=held[-1])
            if len(held) < 2:
                raise VersionNotFoundError(f"{name}@{alias}", before=held[-1])
            self._policy.check_number(name, held[-2], state)
            event = self._event("rolled_back", held[-2], why)
            event |= {"alias": alias, "previous": held[-1]}
            change = _copy(log.append(state, event).last_change())
        emit(
            "models.alias.moved",
            name,
            alias=alias,
            version=change.version,
            previous=change.previous,
        )
        return change

    def remove_alias(
        self,
        name: str,
        alias: str,
        *,
        expect: int | ModelVersion | EllipsisType = ...,
        why: str = "",
    ) -> Change:
        """Let an alias point at nothing. What it pointed at before stays in the history, but is not rolled back to.

        Args:
            name: The model.
            alias: The alias.
            expect: The version that must hold the alias now.
            why: Why, for the history.

        Returns:
            The change as it was written down.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            VersionNotFoundError: If nobody holds the alias.
            AliasConflictError: If another version than expected holds it.
            IntegrityError: If the history was tampered with.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was changed.
        """
        check_name("remove_alias(name)", name)
        check_alias("remove_alias(alias)", alias)
        check_text("remove_alias(why=...)", why)
        expected = (
            ... if expect is ... else self._catalog.number("remove_alias(expect=...)", name, expect)
        )
        self._catalog.state(name)
        log = self._catalog.log(name)
        with self._folder.lock():
            state = log.read_locked()
            holder = state.aliases().get(alias)
            if holder is None:
                raise self._catalog.missing(f"{name}@{alias}", state)
            if expected is not ... and holder != expected:
                raise AliasConflictError(f"{name}@{alias}", expected=expected, got=holder)
            event = self._event("alias_removed", holder, why) | {"alias": alias, "previous": holder}
            change = _copy(log.append(state, event).last_change())
        emit("models.alias.removed", name, alias=alias, previous=holder)
        return change

    def sign(
        self, ref: str | ModelVersion, key: str | PathLike[str] | object, *, why: str = ""
    ) -> Change:
        """Vouch for a version with a private key, after checking every byte of it.

        What is signed is its digest, its facts (metrics, tags, run, who, when) and its name and number: put back under
        another name or number, the same content is not what was signed. A version may have any number of signatures;
        its digest stays what it is. Where an alias points is not signed.

        Args:
            ref: As for `get`.
            key: A private key: the path of a PEM file that is not encrypted, the bytes of one, or a key of the package
                `cryptography`. ECDSA over P-256, P-384 or P-521, which the tools of OpenSSF Model Signing know, or
                Ed25519, which they do not. It is used and forgotten.
            why: Why, for the history.

        Returns:
            The change as it was written down; if the key had signed it already, the change of that time.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            MissingDependencyError: If `cryptography` is not installed.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what is stored is not what was saved.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was changed.
        """
        check_text("sign(why=...)", why)
        private = signer("sign(key)", key)
        version = self._catalog.resolve("sign(ref)", ref)
        self._catalog.check_files(version)
        event = self._event("signed", version.number, why)
        return _copy(self._policy.sign(version, private, event))

    def delete(self, name: str, version: int | ModelVersion, *, why: str = "") -> Change:
        """Delete a version and what only it uses on the disk. Its number is never given again.

        Args:
            name: The model.
            version: The version, or its number.
            why: Why, for the history.

        Returns:
            The change as it was written down.

        Raises:
            ConfigurationError: If an argument is wrong, or the path is no folder that can be written.
            VersionNotFoundError: If there is no such version.
            VersionInUseError: If an alias points at it.
            IntegrityError: If the history was tampered with.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was changed.
        """
        check_name("delete(name)", name)
        check_text("delete(why=...)", why)
        number = self._catalog.number("delete(version)", name, version)
        self._catalog.state(name)
        log = self._catalog.log(name)
        with self._folder.lock():
            state = log.read_locked()
            gone = self._catalog.version(name, state, number)
            if using := [alias for alias, holder in state.aliases().items() if holder == number]:
                raise VersionInUseError(gone.ref, using)
            change = _copy(log.append(state, self._event("deleted", number, why)).last_change())
            facts = state.versions[number]
            unused = {facts.digest, facts.payload, *state.signatures(number)}
            kept = self._catalog.remove_unused(unused)
        emit("models.version.deleted", name, version=number, files_kept=kept)
        return change

    def collect_garbage(self, *, older_than: float = 3600.0, dry_run: bool = False) -> Sweep:
        """Remove files that no version needs: what killed processes left, and what could not be removed by `delete`.

        Safe beside writers and readers: what a save has written is in no other writer's way until it is named, under
        the lock under which this looks again.

        Args:
            older_than: Only files last changed longer ago than this, in seconds. It must be more than a save may take,
                and than the clocks of the machines differ.
            dry_run: Whether to remove nothing, and only say what would be.

        Returns:
            The files and their size.

        Raises:
            ConfigurationError: If *older_than* is no number of seconds, or the folder cannot be written.
            IntegrityError: If a history was tampered with: what it needs is not known. Nothing was removed.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file cannot be removed; others may have been.
        """
        from mlkit.models._garbage import collect

        older_than = seconds("collect_garbage(older_than=...)", older_than, zero=True)
        before = current(self._clock).time() - older_than
        with self._folder.fit(WRITABLE):
            return collect(self._folder, self._catalog, before=before, dry_run=dry_run)

    def reseal(self) -> Sweep:
        """Seal with the present key every file that is sealed with another one, or not at all.

        Can be interrupted and called again. A removed file may still be found on a disk that somebody else gets.

        Returns:
            The files as they were called before, and the size of their contents.

        Raises:
            ConfigurationError: If the store has no *keys*, or the folder cannot be written.
            SealError: If a file is sealed with a key that the provider does not have.
            IntegrityError: If what is stored is not what was saved.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file cannot be written, or the disk is full; each file is as it was, or sealed anew.
        """
        from mlkit.models._garbage import reseal

        if self._folder.keys is None:
            raise ConfigurationError("reseal()", self, "a store opened with keys=")
        with self._folder.fit(WRITABLE):
            return reseal(self._folder, self._catalog)

    # --- to and from other stores --------------------------------------------------------------------------------

    def export(
        self,
        ref: str | ModelVersion,
        path: str | PathLike[str],
        *,
        require: Requirement | None = None,
    ) -> str:
        """Write a version, its signatures and its history as one folder or file. The same bytes each time.

        The tools of OpenSSF Model Signing verify such a folder with the signatures in it. What was sealed is readable.

        Args:
            ref: As for `get`.
            path: Where nothing is; a folder, or a tar file if it ends with `.tar`.
            require: Who must have signed it, beside whom the store requires.

        Returns:
            The path.

        Raises:
            ConfigurationError: If an argument is wrong, or something is there.
            VersionNotFoundError: If there is no such version.
            SignatureError: If it is not signed as required.
            IntegrityError: If what is stored is not what was saved; nothing was written.
            OSError: If a file cannot be written, or the disk is full; nothing was written.
        """
        from mlkit.models._transfer import to_folder, to_tar

        checked_requirement("export(require=...)", require)
        target = _checked_target("export(path)", path)
        if not os.path.isdir(os.path.dirname(target)):  # noqa: PTH112, PTH120 - a path is text here
            raise ConfigurationError("export(path)", path, "a path in a folder that exists")
        version = self._catalog.resolve("export(ref)", ref)
        self._policy.check(version, require)
        parts = self._parts(version)
        if target.endswith(".tar"):
            self._catalog.reading(version, lambda: to_tar(parts, target, version.n_bytes))
        else:
            self._catalog.reading(version, lambda: to_folder(parts, target))
        return target

    def import_(
        self,
        path: str | PathLike[str],
        *,
        require: Requirement | None = None,
        renumber: bool = False,
        why: str = "",
    ) -> ModelVersion:
        """Take in a version that `export` wrote, under its name and number, after checking every byte of it.

        A version that is here already stays as it is, and gets the signatures that it lacks. What the other store's
        history says is kept as evidence and believed by nobody.

        Args:
            path: The folder or file; of anybody.
            require: Who must have signed it, beside whom the store requires.
            renumber: Whether it gets the next number if its own was given to something else; its signatures, which are
                of its own number, then stay behind.
            why: Why, for the history.

        Returns:
            The version.

        Raises:
            ConfigurationError: If *path* cannot be read, or the folder of the store not be written.
            NumberTakenError: If it cannot have its number.
            SignatureError: If it is not signed as required.
            IntegrityError: If a file of it is not what the others say, or is none that `export` writes.
            StoreLockedError: If another writer held the store for longer than *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was imported.
        """
        from mlkit.models._package import read_package, read_parts

        checked_requirement("import_(require=...)", require)
        check_text("import_(why=...)", why)
        package = read_package(read_parts(_checked_target("import_(path)", path)))
        return self._admit(package, renumber=renumber, require=require, why=why)

    def copy(
        self,
        ref: str | ModelVersion,
        to: ModelStore,
        *,
        require: Requirement | None = None,
        renumber: bool = False,
        why: str = "",
    ) -> ModelVersion:
        """Take a version of this store into another one; as `export` there and `import_` here, without the files.

        Args:
            ref: As for `get`.
            to: The other store.
            require: Who must have signed it, beside whom both stores require.
            renumber: As for `import_`.
            why: Why, for the history of the other store.

        Returns:
            The version in the other store.

        Raises:
            ConfigurationError: If an argument is wrong, or a folder cannot be used.
            VersionNotFoundError: If there is no such version.
            NumberTakenError: If it cannot have its number.
            SignatureError: If it is not signed as required.
            IntegrityError: If what is stored is not what was saved.
            StoreLockedError: If another writer held the other store for longer than its *timeout*.
            OSError: If a file of it cannot be written, or the disk is full; nothing was copied.
        """
        from mlkit.models._package import read_package

        if not isinstance(to, ModelStore):
            raise ConfigurationError("copy(to=...)", to, "a ModelStore")
        checked_requirement("copy(require=...)", require)
        check_text("copy(why=...)", why)
        version = self._catalog.resolve("copy(ref)", ref)
        self._policy.check(version, require)
        package = read_package(self._parts(version))
        return self._catalog.reading(
            version,
            lambda: to._admit(package, renumber=renumber, require=require, why=why),
        )

    def _parts(self, version: ModelVersion) -> Parts:
        from mlkit.models._transfer import parts_of

        name, number = version.name, version.number
        state = self._catalog.state(name)
        self._catalog.version(name, state, number)
        facts = state.facts(number)
        document = self._catalog.reading(
            version, lambda: self._folder.read_blob(facts.digest, limit=MAX_DOCUMENT)
        )
        return parts_of(
            version.ref,
            (name, number, facts),
            document=document,
            bundles=self._policy.bundles(name, number, state),
            changes=state.changes,
            weights=lambda: self._folder.pieces(facts.payload),
        )

    def _admit(
        self, package: Package, *, renumber: bool, require: Requirement | None, why: str
    ) -> ModelVersion:
        from mlkit.models._admit import admit

        state, number = admit(
            package,
            (self._folder, self._catalog, self._policy),
            self._event("imported", package.number, why),
            renumber=renumber,
            require=require,
        )
        return self._catalog.version(package.name, state, number)

    # --- within --------------------------------------------------------------------------------------------------

    def _event(self, kind: str, number: int, why: str) -> dict[str, Any]:
        who = _whoami() if self._who is None else self._who
        time = current(self._clock).time()
        return {"kind": kind, "version": number, "who": who, "time": time, "why": why}


def _reopen(path: str, settings: dict[str, Any]) -> ModelStore:
    return ModelStore(path, **settings)


def _checked_target(where: str, path: object) -> str:
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(where, path, "a path")
    return os.path.abspath(text)  # noqa: PTH100 - does not look at the disk


def _checked_path(path: object) -> str:
    import re

    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError("ModelStore(path)", path, "the path of a folder")
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", text):  # it would become a folder named "s3:"
        raise ConfigurationError("ModelStore(path)", path, "the path of a local folder, not a URL")
    return os.path.abspath(text)  # noqa: PTH100 - does not look at the disk


def _check_build(where: str, build: object) -> None:
    if not isinstance(build, type) and callable(getattr(build, "state_dict", None)):
        raise ConfigurationError(
            where,
            f"a {type(build).__name__}",
            "a callable of the spec",
            hint="pass a function of the spec, such as a registry's build, not the model",
        )
    if not callable(build):
        raise ConfigurationError(where, build, "a callable of the spec")


def _copy(change: Change) -> Change:
    # What callers do to theirs must not reach the state that others read.
    evidence = {
        name: said if isinstance(said, str) else dict(said)
        for name, said in change.evidence.items()
    }
    return change._replace(evidence=evidence)


def _whoami() -> str:
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers often run as a number without a name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"
