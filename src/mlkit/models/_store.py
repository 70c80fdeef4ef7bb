"""The store: save, find, load, promote, roll back, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, final, overload

from mlkit._arguments import seconds
from mlkit._clock import Clock, current
from mlkit.errors import ConfigurationError
from mlkit.models import _aliases, _garbage, _saving
from mlkit.models._aliases import expected_holder
from mlkit.models._backing import Backing
from mlkit.models._catalog import Catalog
from mlkit.models._checks import Check, named
from mlkit.models._codec import Codec, checked_codecs
from mlkit.models._folder import WRITABLE, Folder
from mlkit.models._formats import Trust, check_trust
from mlkit.models._names import check_alias, check_name, check_text, checked_path
from mlkit.models._plain import check_metrics, check_tags, plain_mapping
from mlkit.models._policy import Policy, checked_requirement
from mlkit.models._reading import check_build, compare, open_model, parts, vouched
from mlkit.models._sealed import checked_keys
from mlkit.models._signature import signature_of
from mlkit.models._signing import signer
from mlkit.models._version import Change, ModelVersion, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from types import EllipsisType

    from mlkit.models._compare import Comparison
    from mlkit.models._garbage import Sweep
    from mlkit.models._sealed import KeyProvider
    from mlkit.models._signing import Requirement
    from mlkit.models._verify import Verification


__all__ = ["ModelStore"]

T = TypeVar("T")


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
        require: Who must have signed every version that is not merely listed: `signed_by(...)`. `get`, `load`, `compare`,
            `card`, `verify`, `promote`, `rollback`, `export`, `copy` and `import_` ask for it.
        timeout: How long a change waits for another writer to finish, in seconds; None for as long as it takes.
        keys: Where the keys come from that weights, specs, signatures and manifests are sealed with at rest, see
            `KeyProvider`. Names, numbers, metrics, tags and digests stay readable.

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

    __slots__ = ("__weakref__", "_backing")

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
        folder = Folder(_checked_path(path), timeout=timeout, keys=keys)
        catalog = Catalog(folder)
        self._backing = Backing(
            folder,
            catalog,
            Policy(folder, catalog, checked_requirement("ModelStore(require=...)", require)),
            checked_codecs("ModelStore(codecs=...)", codecs),
            None if who is None else check_text("ModelStore(who=...)", who),
            clock,
        )

    @property
    def path(self) -> str:
        """The folder."""
        return self._backing.folder.root

    def __repr__(self) -> str:
        return f"ModelStore({self.path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        store = self._backing
        if store.folder.keys is not None:
            # Its copy would have the keys in its bytes, or none and save for everybody to read.
            raise ConfigurationError(
                "pickling a ModelStore",
                self,
                "a store without keys",
                hint="open it where it is used",
            )
        settings = {
            "who": store.who,
            "clock": store.clock,
            "codecs": list(store.codecs.values()),
            "require": store.policy.requirement,
            "timeout": store.folder.timeout,
        }
        return _reopen, (self.path, settings)

    # --- finding -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the models that have a history, sorted.

        Raises:
            ConfigurationError: If the folder cannot be read.
        """
        return self._backing.catalog.names()

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model that are not deleted, oldest first.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        state = self._backing.catalog.state(check_name("versions(name)", name))
        return [self._backing.catalog.version(name, state, number) for number in state.versions]

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        return self._backing.catalog.state(check_name("aliases(name)", name)).aliases()

    def history(self, name: str) -> list[Change]:
        """Return every change of a model since its first version, oldest first.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name, or the folder cannot be read.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If its history was tampered with.
        """
        state = self._backing.catalog.state(check_name("history(name)", name))
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
        version = vouched(self._backing, "get(ref)", ref, require)
        self._backing.catalog.reading(version, lambda: read_document(version))
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
        check_name("save(name)", name)
        check_trust("save(trust=...)", trust)
        if run is not None:
            check_text("save(run=...)", run)
        check_text("save(why=...)", why)
        key = None if sign is None else signer("save(sign=...)", sign)
        numbers = check_metrics("save(metrics=...)", metrics)
        facts: dict[str, Any] = {
            "run": run,
            # JSON has no NaN.
            "metrics": {metric: repr(value) for metric, value in numbers.items()},
            "tags": check_tags("save(tags=...)", tags),
        }
        parts = {
            "spec": plain_mapping("save(spec=...)", spec),
            "signature": signature_of("save", signature, example, output),
            "manifest": plain_mapping("save(manifest=...)", manifest),
        }
        return _saving.save(
            self._backing, name, model, parts=parts, facts=facts, why=why, trust=trust, key=key
        )

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
            check_build("load(build=...)", build)
        checked_requirement("load(require=...)", require)
        version = vouched(self._backing, "load(ref)", ref, require)
        return open_model(self._backing, version, build=build, trust=trust)

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
            SignatureError: If one is not signed as the store requires.

        Note:
            Weights whose digests are equal are not read; of others two tensors at a time are in memory.
        """
        one = vouched(self._backing, "compare(first)", first)
        other = vouched(self._backing, "compare(second)", second)
        return compare(self._backing, one, other)

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
        store = self._backing
        return verify(
            names,
            store.catalog,
            store.folder,
            lambda version: store.policy.check(version, require),
        )

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
        catalog = self._backing.catalog
        change = _aliases.promote(
            self._backing,
            name,
            catalog.number("promote(version)", name, version),
            to=to,
            expected=None
            if expect is None
            else expected_holder(catalog.number, "promote(expect=...)", name, expect),
            gates=gates,
            why=why,
            require=require,
        )
        return _copy(change)

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
        expected = expected_holder(
            self._backing.catalog.number, "rollback(expect=...)", name, expect
        )
        return _copy(_aliases.rollback(self._backing, name, alias, expected=expected, why=why))

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
        expected = expected_holder(
            self._backing.catalog.number, "remove_alias(expect=...)", name, expect
        )
        return _copy(_aliases.remove_alias(self._backing, name, alias, expected=expected, why=why))

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
        store = self._backing
        version = store.catalog.resolve("sign(ref)", ref)
        store.catalog.check_files(version)
        event = store.event("signed", version.number, why)
        return _copy(store.policy.sign(version, private, event))

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
        number = self._backing.catalog.number("delete(version)", name, version)
        return _copy(_garbage.delete(self._backing, name, number, why))

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
        older_than = seconds("collect_garbage(older_than=...)", older_than, zero=True)
        store = self._backing
        before = current(store.clock).time() - older_than
        with store.folder.fit(WRITABLE):
            return _garbage.collect(store.folder, store.catalog, before=before, dry_run=dry_run)

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
        store = self._backing
        if store.folder.keys is None:
            raise ConfigurationError("reseal()", self, "a store opened with keys=")
        with store.folder.fit(WRITABLE):
            return _garbage.reseal(store.folder, store.catalog)

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
        from mlkit.models._exporting import checked_target, write_parts

        checked_requirement("export(require=...)", require)
        target = checked_target("export(path)", path)
        version = vouched(self._backing, "export(ref)", ref, require)
        exported = parts(self._backing, version)
        self._backing.catalog.reading(
            version, lambda: write_parts(exported, target, version.n_bytes)
        )
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
        from mlkit.models._admit import admit
        from mlkit.models._package import read_package, read_parts

        checked_requirement("import_(require=...)", require)
        check_text("import_(why=...)", why)
        package = read_package(read_parts(checked_path("import_(path)", path, "a path")))
        return admit(package, self._backing, renumber=renumber, require=require, why=why)

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
        from mlkit.models._admit import admit
        from mlkit.models._package import read_package

        if not isinstance(to, ModelStore):
            raise ConfigurationError("copy(to=...)", to, "a ModelStore")
        checked_requirement("copy(require=...)", require)
        check_text("copy(why=...)", why)
        version = vouched(self._backing, "copy(ref)", ref, require)
        package = read_package(parts(self._backing, version))
        return self._backing.catalog.reading(
            version,
            lambda: admit(package, to._backing, renumber=renumber, require=require, why=why),
        )


def _reopen(path: str, settings: dict[str, Any]) -> ModelStore:
    return ModelStore(path, **settings)


def _checked_path(path: object) -> str:
    import re

    absolute = checked_path("ModelStore(path)", path, "the path of a folder")
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # it would become a folder named "s3:"
        raise ConfigurationError("ModelStore(path)", path, "the path of a local folder, not a URL")
    return absolute


def _copy(change: Change) -> Change:
    # What callers do to theirs must not reach the state that others read.
    evidence = {
        name: said if isinstance(said, str) else dict(said)
        for name, said in change.evidence.items()
    }
    return change._replace(evidence=evidence)
