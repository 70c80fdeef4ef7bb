"""The store: the calls of `ModelStore`, over MLflow's registry."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast, final, overload

from mlkit.errors import (
    ConfigurationError,
    ModelStoreError,
    SignatureError,
    StoreUnavailableError,
    VersionInUseError,
)
from mlkit.integrations.mlflow_models import _aliases
from mlkit.integrations.mlflow_models._artifacts import Cache, Remote, pack
from mlkit.integrations.mlflow_models._backing import Backing
from mlkit.integrations.mlflow_models._catalog import Catalog
from mlkit.integrations.mlflow_models._foreign import load as load_foreign
from mlkit.integrations.mlflow_models._registering import VERSION_RUN, register
from mlkit.integrations.mlflow_models._server import Server, check_registered
from mlkit.integrations.mlflow_models._signatures import Signatures
from mlkit.integrations.mlflow_models._writer import Writer
from mlkit.models import Broken, Change, Check, ModelStore, ModelVersion, Verification
from mlkit.models._aliases import expected_holder
from mlkit.models._checks import named
from mlkit.models._formats import check_trust
from mlkit.models._names import check_alias, check_name, check_text
from mlkit.models._policy import checked_requirement
from mlkit.models._reading import bundles_of, check_build, compare, open_model
from mlkit.models._signing import signer
from mlkit.models._verify import broken_by
from mlkit.models._version import MAX_DOCUMENT, parse_payload, read_document
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import EllipsisType

    from mlkit._clock import Clock
    from mlkit.integrations.mlflow_models._catalog import Found
    from mlkit.models import Codec, Comparison, Requirement
    from mlkit.models._backing import Backing as Opener
    from mlkit.models._formats import Trust
    from mlkit.models._signing import Signer

__all__ = ["MlflowModelStore"]

T = TypeVar("T")


@final
class MlflowModelStore:
    """MLflow's model registry with the calls of `mlkit.models.ModelStore`.

    What is saved is a registered model version that MLflow's own client and pages show: with its artifacts (weights,
    spec, signature, manifest), tags, aliases, and a run that has its metrics. What others registered can be found,
    promoted and rolled back, and loaded with `trust="pickle"`, since MLflow's flavours unpickle.

    MLflow lacks three things, which this store adds as far as they can be added from outside:

    - **Verified loads.** MLflow serves artifacts that were changed. The digest of a version is in the path where it
      lies, which MLflow lets nobody change, and every file is compared with it. Files of other clients' versions are
      compared with what they were when they were promoted here.
    - **A history.** Each change is a param `mlkit.change.000001`, ... of a run `history` in the experiment
      `mlkit-models/<model>`. MLflow never lets a param be changed, so the list only grows, and no two writers can write
      the same entry. An alias that was moved outside is entered by the next change made here, as found.
    - **Compare-and-swap.** MLflow sets an alias whatever it was. Here a writer first enters its change, which only one
      can do for each place in the history, and then sets the alias; one that finds the two apart waits up to 2 s for
      the other writer to finish. So of any number of stores of this class with `expect=1`, one succeeds and the others
      get an `AliasConflictError`. What remains: a writer that stalls for longer than that between its two requests is
      told that it lost, and for one moment its alias can be seen; and another *kind* of client that sets the alias
      between our look and our setting of it is overwritten, and is not in the history.

    Thread-safe, fork-safe before its first call, and picklable. Building one asks nothing of MLflow.

    Args:
        uri: `"sqlite:///mlflow.db"`, another database, or `"http://host:5000"`.
        cache: A folder for the files of versions, which is shared and can be removed at any time; by default
            `mlkit/models` in `$XDG_CACHE_HOME` or `~/.cache`.
        codecs: Formats beside the built-in ones, as for `ModelStore`.
        who: Who is written down for a change; by default `user@host`.
        clock: Where times come from; by default the context's clock.
        require: Who must have signed every version that is given out, promoted or rolled back to: `signed_by(...)`.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If MLflow is not installed.

    Examples:
        >>> store = MlflowModelStore("http://127.0.0.1:5000")
        >>> store.uri
        'http://127.0.0.1:5000'

    Note:
        Measured with MLflow 3.17. The promises about writers need a server or database that refuses a second value for
        a param and a second experiment of one name, as MLflow's SQL store does by its primary keys.
    """

    def __init__(
        self,
        uri: str,
        *,
        cache: str | os.PathLike[str] | None = None,
        codecs: Sequence[Codec] = (),
        who: str | None = None,
        clock: Clock | None = None,
        require: Requirement | None = None,
    ) -> None:
        checked_requirement("MlflowModelStore(require=...)", require)
        server = Server(uri)
        if who is not None:
            check_text("MlflowModelStore(who=...)", who)
        self._who, self._clock = who, clock
        # It opens what was fetched as a folder store does, so that a version behaves the same in both.
        self._codecs = tuple(codecs)
        folder = _cache_folder() if cache is None else cache
        self._local = ModelStore(folder, codecs=codecs, clock=clock)
        cache_of_files = Cache(self._local.path, server)
        catalog = Catalog(server, cache_of_files)
        self._backing = Backing(
            server,
            cache_of_files,
            catalog,
            Signatures(server, catalog, require),
            Writer(server, catalog, who, clock),
        )

    @property
    def uri(self) -> str:
        """The tracking URI, with the path of a database file made absolute."""
        return self._backing.server.uri

    def __repr__(self) -> str:
        return f"MlflowModelStore({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {
            "cache": self._local.path,
            "codecs": self._codecs,
            "who": self._who,
            "clock": self._clock,
            "require": self._backing.signatures.requirement,
        }
        return _reopen, (self.uri, settings)

    # --- finding -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the registered models, sorted; those of other clients too.

        Raises:
            StoreUnavailableError: If MLflow does not answer.
        """
        return self._backing.catalog.names()

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; those of other clients have the format `"mlflow"`.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            StoreUnavailableError: If MLflow does not answer.
        """
        check_registered("versions(name)", name)
        return [self._backing.catalog.version(found) for found in self._backing.catalog.all(name)]

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at in MLflow, whoever set it.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            StoreUnavailableError: If MLflow does not answer.
        """
        return self._backing.catalog.aliases(check_registered("aliases(name)", name))

    def history(self, name: str) -> list[Change]:
        """Return every change of a model that was made here, or found here, oldest first.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            IntegrityError: If the history was tampered with.
            StoreUnavailableError: If MLflow does not answer.
        """
        self.aliases(name)
        return list(self._backing.writer.history(name).read().changes)

    def get(self, ref: str | ModelVersion, *, require: Requirement | None = None) -> ModelVersion:
        """Return a version without its weights; its spec, signature and manifest are read and checked.

        Args:
            ref: `"churn@champion"`, `"churn@7"`, `"churn@sha256:..."` (a beginning of at least 4 digits that only one
                content has), MLflow's `"models:/churn@champion"` or `"models:/churn/7"`, or a version.
            require: Who must have signed it, beside whom the store requires.

        Raises:
            ConfigurationError: If *ref* is none of these.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow has is not what was saved.
            SignatureError: If it is not signed as required.
            StoreUnavailableError: If MLflow does not answer.
        """
        found = self._vouched("get(ref)", ref, require)
        version = self._backing.catalog.version(found)
        if found.digest is not None:
            cast("Remote", version._folder).have_document()  # noqa: SLF001
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
        sign: str | os.PathLike[str] | object | None = None,
    ) -> ModelVersion:
        """Store a model as the next version of *name*, in MLflow.

        Its artifacts are those of the run that made it, if MLflow has that run (delivered by `mlkit.tracking`, or by its
        own id); else of a new run in the experiment `mlkit-models/<name>`, which also gets the metrics.

        Args:
            name: The model; a name without `/`.
            model: What to store, as for `ModelStore.save`.
            spec: The plain data that rebuilds the object without its weights.
            run: The id of the run that made it, mlkit's or MLflow's.
            metrics: What was measured of it, kept as floats.
            manifest: What it was made with, as plain data.
            signature: What it takes and gives: a `Signature`, or other plain data.
            example: An input, which the signature is then inferred from.
            output: What the model answers to *example*, or a callable that does.
            tags: Notes; tags of the version in MLflow, where they can be changed.
            why: Why, for the history; MLflow shows it as the description.
            trust: As for `ModelStore.save`.
            sign: A private key, see `sign`.

        Returns:
            The new version. Its digest is what a folder store would give it.

        Raises:
            ConfigurationError: If an argument is wrong.
            UntrustedFormatError: If only pickle could store it and *trust* does not say so.
            StoreUnavailableError: If MLflow does not answer; a version that was registered by then is whole, and what
                was not leaves artifacts that nothing names.
            ModelStoreError: If MLflow refuses.
        """
        check_name("save(name)", name)
        check_registered("save(name)", name)
        if bad := [key for key in tags or () if str(key).startswith("mlkit.")]:
            raise ConfigurationError(
                "save(tags=...)", bad[0], "names that do not begin with mlkit."
            )
        key = None if sign is None else signer("save(sign=...)", sign)
        writer = self._backing.writer
        with TemporaryDirectory(prefix="mlkit-") as folder:
            store = ModelStore(
                Path(folder, "store"), codecs=self._codecs, who=self._who, clock=self._clock
            )
            local = store.save(
                name, model, spec=spec, run=run, metrics=metrics, manifest=manifest,
                signature=signature, example=example, output=output, tags=tags, why=why,
                trust=trust,
            )  # fmt: skip
            found = self._upload(store, local, Path(folder, "packed"), why)
        event = writer.event("saved", found.number, why) | {"digest": local.digest}
        writer.enter(name, event)
        if key is not None:
            self._sign(found, key, why)
        return self._backing.catalog.version(found)

    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        require: Requirement | None = None,
        why: str = "",
    ) -> ModelVersion:
        """Take in a version that a store exported, after checking its files, under the next number.

        Its digest stays the same. Its signatures come with it if the next number is its own; those of another number
        stay behind.

        Args:
            path: The folder or file; of anybody.
            require: Who must have signed it under the number that it had, beside whom the store requires.
            why: Why, for the history.

        Returns:
            The version.

        Raises:
            ConfigurationError: If *path* cannot be read, or MLflow cannot have a model of that name.
            IntegrityError: If a file of it is not what the others say.
            SignatureError: If it is not signed as required.
            StoreUnavailableError: If MLflow does not answer.
            ModelStoreError: If it refuses.
        """
        check_text("import_(why=...)", why)
        checked_requirement("import_(require=...)", require)
        signatures, writer = self._backing.signatures, self._backing.writer
        with TemporaryDirectory(prefix="mlkit-") as folder:
            store = ModelStore(
                Path(folder, "store"), clock=self._clock, require=signatures.requirement
            )
            local = store.import_(path, require=require)
            name = check_registered("import_(path)", local.name)
            found = self._upload(store, local, Path(folder, "packed"), why)
            if found.number == local.number:
                signatures.keep(found, bundles_of(store._backing, local))  # noqa: SLF001 - of the same block
        event = writer.event("imported", found.number, why) | {"digest": local.digest}
        writer.enter(name, event)
        return self._backing.catalog.version(found)

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
        """Return the model of a version: one of ours after checking every byte, another client's by MLflow.

        Args:
            ref: As for `get`.
            build: Called with a copy of the version's spec, as for `ModelStore.load`.
            trust: `"pickle"` if code in the file may run; needed for what was saved so, and for every version that
                another client logged.
            require: Who must have signed it, beside whom the store requires.

        Returns:
            As `ModelStore.load`. Of another client's version what its library had (scikit-learn, PyTorch, XGBoost, ...),
            else MLflow's `PyFuncModel`.

        Raises:
            ConfigurationError: If an argument is wrong, or *build* is missing or cannot apply.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved; or, of another client's version, not what was
                promoted here.
            SignatureError: If it is not signed as required; no version of another client is.
            UntrustedFormatError: If code in the file would run and *trust* does not say so.
            RebuildError: As for `ModelStore.load`.
            StoreUnavailableError: If MLflow does not answer.
        """
        check_trust("load(trust=...)", trust)
        if build is not None:
            check_build("load(build=...)", build)
        found = self._vouched("load(ref)", ref, require)
        if found.digest is not None:
            return open_model(self._opener, self._fetched(found), build=build, trust=trust)
        ref = f"{found.name}@{found.number}"
        if build is not None:
            raise ConfigurationError(
                "load(build=...)", build, f"no build for {ref}, which MLflow loads"
            )
        pinned = self._backing.writer.history(found.name).read().pins.get(found.number)
        return load_foreign(self._backing.server, ref, found.location, trust=trust, pinned=pinned)

    def compare(self, first: str | ModelVersion, second: str | ModelVersion) -> Comparison:
        """Return what differs between two versions that were saved by mlkit, as `ModelStore.compare`.

        Args:
            first: As for `get`.
            second: As for `get`.

        Raises:
            ConfigurationError: If an argument is no reference, or a version of another client.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved.
            SignatureError: If one is not signed as the store requires.
            StoreUnavailableError: If MLflow does not answer.
        """
        one = self._fetched(self._vouched("compare(first)", first), "compare(first)")
        other = self._fetched(self._vouched("compare(second)", second), "compare(second)")
        return compare(self._opener, one, other)

    def card(self, ref: str | ModelVersion) -> str:
        """Return the model card of a version that was saved by mlkit, in Markdown, as `ModelStore.card`.

        Args:
            ref: As for `get`.

        Raises:
            ConfigurationError: If *ref* is no reference, or a version of another client.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved.
            StoreUnavailableError: If MLflow does not answer.
        """
        from mlkit.models._card import card

        version = self.get(ref)
        if not version.digest:
            raise ConfigurationError("card(ref)", ref, "a version that was saved by mlkit")
        return card(version, self.history(version.name), self.aliases(version.name))

    def verify(
        self, name: str | None = None, *, require: Requirement | None = None
    ) -> Verification:
        """Download every file of every version that was saved by mlkit, and say which are not what was saved.

        Args:
            name: One model only.
            require: Who must have signed each version, beside whom the store requires.

        Returns:
            What is broken, and how much was looked at; versions of other clients are not, for MLflow has no digest of
            them.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            StoreUnavailableError: If MLflow does not answer.
        """
        names = self.names() if name is None else [check_registered("verify(name)", name)]
        checked_requirement("verify(require=...)", require)
        catalog, signatures = self._backing.catalog, self._backing.signatures
        every = [found for one in names for found in catalog.all(one)]
        ours = [found for found in every if found.digest is not None]
        broken: list[Broken] = []
        for found in ours:
            with TemporaryDirectory(prefix="mlkit-") as folder:
                try:
                    # Not the cache: what MLflow serves now.
                    Cache(folder, self._backing.server).fetch(
                        catalog.version(found), found.location
                    )
                    signatures.check(found, require)
                except StoreUnavailableError:
                    raise
                except ModelStoreError as error:
                    broken.append(broken_by(f"{found.name}@{found.number}", error))
        return Verification(len(ours), 2 * len(ours), tuple(broken))

    def export(
        self,
        ref: str | ModelVersion,
        path: str | os.PathLike[str],
        *,
        require: Requirement | None = None,
    ) -> str:
        """Write a version that was saved by mlkit, with its signatures, as one folder or file that every store imports.

        Args:
            ref: As for `get`.
            path: Where nothing is; a folder, or a tar file if it ends with `.tar`.
            require: Who must have signed it, beside whom the store requires.

        Returns:
            The path.

        Raises:
            ConfigurationError: If an argument is wrong, or something is there.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved; nothing was written.
            SignatureError: If it is not signed as required.
            StoreUnavailableError: If MLflow does not answer.
            OSError: If a file cannot be written, or the disk is full; nothing was written.
        """
        from mlkit.models._exporting import checked_target, parts_of, write_parts

        target = checked_target("export(path)", path)
        found = self._vouched("export(ref)", ref, require)
        version = self._fetched(found, "export(ref)")
        folder, payload = self._backing.cache.folder, parse_payload(read_document(version))
        parts = parts_of(
            version.ref,
            (found.name, found.number, version._facts),  # noqa: SLF001 - what is exported
            document=folder.read_blob(version.digest, limit=MAX_DOCUMENT),
            bundles=self._backing.signatures.bundles(found),
            changes=self.history(found.name),
            weights=lambda: folder.pieces(payload.digest),
        )
        write_parts(parts, target, version.n_bytes)
        return target

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

        Another client's version is downloaded for it once, so that the history has the digest of its files.

        Args:
            name: The model.
            version: The version, or its number.
            to: The alias.
            expect: As for `ModelStore.promote`.
            checks: As for `ModelStore.promote`.
            why: Why, for the history.
            require: Who must have signed it, beside whom the store requires.

        Returns:
            The change as it was written down; if the alias points there already, the one that put it there.

        Raises:
            ConfigurationError: If an argument is wrong.
            VersionNotFoundError: If there is no such version.
            AliasConflictError: If another version than expected holds the alias, or another writer overtook this one.
            ChecksFailedError: If a check did not let it pass; the history says which and why.
            SignatureError: If it is not signed as required; no version of another client is.
            StoreUnavailableError: If MLflow does not answer. The change may be in the history and the alias not moved:
                the next change made here says so.
        """
        check_registered("promote(name)", name)
        check_alias("promote(to=...)", to)
        check_text("promote(why=...)", why)
        gates = named("promote(checks=...)", checks)
        checked_requirement("promote(require=...)", require)
        catalog = self._backing.catalog
        number = catalog.number("promote(version)", name, version)
        return _aliases.promote(
            self._backing,
            catalog.numbered(name, number),
            to=to,
            expected=None
            if expect is None
            else expected_holder(catalog.number, "promote(expect=...)", name, expect),
            gates=gates,
            why=why,
            require=require,
        )

    def rollback(
        self,
        name: str,
        alias: str = "champion",
        *,
        expect: int | ModelVersion | EllipsisType = ...,
        why: str = "",
    ) -> Change:
        """Point an alias at the version that held it before the present one did, as far as the history knows.

        Where another client moved the alias, the version that it held before is the last one that was seen here.

        Args:
            name: The model.
            alias: The alias.
            expect: The version that must hold the alias now.
            why: Why, for the history.

        Returns:
            The change as it was written down.

        Raises:
            ConfigurationError: If an argument is wrong.
            VersionNotFoundError: If nobody holds the alias, or no version that still exists held it before.
            AliasConflictError: If another version than expected holds it, or another writer overtook this one.
            SignatureError: If the version to go back to is not signed as the store requires.
            StoreUnavailableError: As for `promote`.
        """
        check_registered("rollback(name)", name)
        check_alias("rollback(alias)", alias)
        check_text("rollback(why=...)", why)
        expected = expected_holder(
            self._backing.catalog.number, "rollback(expect=...)", name, expect
        )
        return _aliases.rollback(self._backing, name, alias, expected=expected, why=why)

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
            ConfigurationError: If an argument is wrong.
            VersionNotFoundError: If nobody holds the alias.
            AliasConflictError: If another version than expected holds it, or another writer overtook this one.
            StoreUnavailableError: As for `promote`.
        """
        check_registered("remove_alias(name)", name)
        check_alias("remove_alias(alias)", alias)
        check_text("remove_alias(why=...)", why)
        expected = expected_holder(
            self._backing.catalog.number, "remove_alias(expect=...)", name, expect
        )
        return _aliases.remove_alias(self._backing, name, alias, expected=expected, why=why)

    def sign(
        self, ref: str | ModelVersion, key: str | os.PathLike[str] | object, *, why: str = ""
    ) -> Change:
        """Vouch for a version that was saved by mlkit with a private key, after checking every byte of it.

        What is signed is what `ModelStore.sign` signs, tags too: one that is changed in MLflow afterwards is not what
        was signed. The signature is an artifact beside the files of the version.

        Args:
            ref: As for `get`.
            key: A private key, as for `ModelStore.sign`.
            why: Why, for the history.

        Returns:
            The change as it was written down; if the key had signed it already, the change of that time.

        Raises:
            ConfigurationError: If an argument is wrong, or the version is another client's.
            MissingDependencyError: If `cryptography` is not installed.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow has is not what was saved.
            StoreUnavailableError: If MLflow does not answer.
        """
        check_text("sign(why=...)", why)
        private = signer("sign(key)", key)
        found = self._backing.catalog.resolve("sign(ref)", ref)
        version = self._fetched(found, "sign(ref)")
        self._local._backing.catalog.check_files(version)  # noqa: SLF001 - of the same block
        return self._sign(found, private, why)

    def delete(self, name: str, version: int | ModelVersion, *, why: str = "") -> Change:
        """Delete a version. MLflow keeps its artifacts until `mlflow gc` removes those of deleted runs.

        MLflow itself would drop the aliases of the version silently. Here an aliased version is refused; an alias that
        another client sets between that look and the deletion is dropped all the same.

        Args:
            name: The model.
            version: The version, or its number.
            why: Why, for the history.

        Returns:
            The change as it was written down.

        Raises:
            ConfigurationError: If an argument is wrong.
            VersionNotFoundError: If there is no such version.
            VersionInUseError: If an alias points at it.
            StoreUnavailableError: If MLflow does not answer; deleting it again is no harm.
        """
        check_registered("delete(name)", name)
        check_text("delete(why=...)", why)
        found = self._backing.catalog.numbered(
            name, self._backing.catalog.number("delete(version)", name, version)
        )

        def refuse_if_used() -> None:
            aliases = self.aliases(name)
            if using := [alias for alias, number in aliases.items() if number == found.number]:
                raise VersionInUseError(f"{name}@{found.number}", using)

        refuse_if_used()
        change = self._backing.writer.enter(
            name, self._backing.writer.event("deleted", found.number, why), refuse_if_used
        )
        with self._backing.server.asked():
            self._backing.server.client.delete_model_version(name, str(found.number))
            run = found.entity.run_id
            if run and self._backing.server.client.get_run(run).data.tags.get(VERSION_RUN) == name:
                # So that `mlflow gc` may free its artifacts.
                self._backing.server.client.delete_run(run)
        emit("models.version.deleted", name, version=found.number, files_kept=0)
        return change

    # --- within --------------------------------------------------------------------------------------------------

    @property
    def _opener(self) -> Opener:
        return self._local._backing  # noqa: SLF001 - one way to open a version

    def _vouched(
        self, where: str, ref: str | ModelVersion, require: Requirement | None = None
    ) -> Found:
        """Return the version that a reference means now, if it is signed as it must be."""
        checked_requirement(f"{where.partition('(')[0]}(require=...)", require)
        found = self._backing.catalog.resolve(where, ref)
        self._backing.signatures.check(found, require)
        return found

    def _fetched(self, found: Found, where: str = "load(ref)") -> ModelVersion:
        """Return a version of ours whose files are here."""
        if found.digest is None:
            ref = f"{found.name}@{found.number}"
            raise ConfigurationError(where, ref, "a version that was saved by mlkit")
        version = self._backing.catalog.version(found)
        return self._backing.cache.fetch(version, found.location)

    def _upload(self, store: ModelStore, local: ModelVersion, packed: Path, why: str) -> Found:
        """Register a version of a folder store."""
        packed.mkdir()
        pack(local, store.path, packed)
        history = self._backing.writer.history(local.name)
        entity = register(self._backing.server, history, local, packed, why)
        return self._backing.catalog.found(entity)

    def _sign(self, found: Found, key: Signer, why: str) -> Change:
        """Sign a version and say so in the history; one that the key has signed already needs no more."""
        signatures, writer = self._backing.signatures, self._backing.writer
        signed = [
            change
            for change in writer.history(found.name).read().changes
            if change.kind == "signed"
            and (change.version, change.evidence.get("signed_by"))
            == (found.number, key.fingerprint)
        ]
        with suppress(SignatureError):
            signatures.check(found, key.requirement)
            if signed:
                return signed[-1]
        signatures.keep(found, [signatures.sign(found, key)])
        event = writer.event("signed", found.number, why)
        return writer.enter(found.name, event | {"evidence": {"signed_by": key.fingerprint}})


def _cache_folder() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return str(Path(home, "mlkit", "models"))


def _reopen(uri: str, settings: dict[str, Any]) -> MlflowModelStore:
    return MlflowModelStore(uri, **settings)
