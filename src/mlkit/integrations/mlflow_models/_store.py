"""The store: the calls of `ModelStore`, over MLflow's registry."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast, final, overload

from mlkit.errors import (
    AliasConflictError,
    ChecksFailedError,
    ConfigurationError,
    ModelStoreError,
    StoreUnavailableError,
    VersionInUseError,
    VersionNotFoundError,
)
from mlkit.integrations.mlflow_models._bundle import Cache, Remote, pack
from mlkit.integrations.mlflow_models._catalogue import Catalogue
from mlkit.integrations.mlflow_models._foreign import digest_of_files
from mlkit.integrations.mlflow_models._foreign import load as load_foreign
from mlkit.integrations.mlflow_models._registering import VERSION_RUN, register
from mlkit.integrations.mlflow_models._server import Server, check_registered
from mlkit.integrations.mlflow_models._writer import Writer
from mlkit.models import Broken, Change, Check, ModelStore, ModelVersion, Verification
from mlkit.models._checks import ask, named, refusals
from mlkit.models._formats import check_trust
from mlkit.models._names import check_alias, check_name, check_text
from mlkit.models._reading import check_build, compare, open_model
from mlkit.models._verify import broken_by
from mlkit.models._version import MAX_DOCUMENT, parse_payload, read_document
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import EllipsisType

    from mlkit._clock import Clock
    from mlkit.integrations.mlflow_models._catalogue import Found
    from mlkit.integrations.mlflow_models._history import Past
    from mlkit.models import Codec, Comparison
    from mlkit.models._backing import Backing
    from mlkit.models._formats import Trust

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
    ) -> None:
        self._server = Server(uri)
        if who is not None:
            check_text("MlflowModelStore(who=...)", who)
        self._who, self._clock = who, clock
        # It opens what was fetched as a folder store does, so that a version behaves the same in both.
        self._codecs = tuple(codecs)
        folder = _cache_folder() if cache is None else cache
        self._local = ModelStore(folder, codecs=codecs, clock=clock)
        self._cache = Cache(self._local.path, self._server)
        self._catalogue = Catalogue(self._server, self._cache)
        self._writer = Writer(self._server, self._catalogue, who, clock)

    @property
    def uri(self) -> str:
        """The tracking URI, with the path of a database file made absolute."""
        return self._server.uri

    def __repr__(self) -> str:
        return f"MlflowModelStore({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.uri, self._local.path, self._codecs, self._who, self._clock)

    # --- finding -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the registered models, sorted; those of other clients too.

        Raises:
            StoreUnavailableError: If MLflow does not answer.
        """
        return self._catalogue.names()

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
        return [self._catalogue.version(found) for found in self._catalogue.all(name)]

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at in MLflow, whoever set it.

        Args:
            name: The model.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            StoreUnavailableError: If MLflow does not answer.
        """
        return self._catalogue.aliases(check_registered("aliases(name)", name))

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
        return list(self._writer.history(name).read().changes)

    def get(self, ref: str | ModelVersion) -> ModelVersion:
        """Return a version without its weights; its spec, signature and manifest are read and checked.

        Args:
            ref: `"churn@champion"`, `"churn@7"`, `"churn@sha256:..."` (a beginning of at least 4 digits that only one
                content has), MLflow's `"models:/churn@champion"` or `"models:/churn/7"`, or a version.

        Raises:
            ConfigurationError: If *ref* is none of these.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow has is not what was saved.
            StoreUnavailableError: If MLflow does not answer.
        """
        found = self._catalogue.resolve("get(ref)", ref)
        version = self._catalogue.version(found)
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
        event = self._writer.event("saved", found.number, why) | {"digest": local.digest}
        self._writer.enter(name, event)
        return self._catalogue.version(found)

    def import_(self, path: str | os.PathLike[str], *, why: str = "") -> ModelVersion:
        """Take in a version that a store exported, after checking every byte of it, under the next number.

        Its digest stays the same. Its signatures, which are of its old number, stay behind.

        Args:
            path: The folder or file; of anybody.
            why: Why, for the history.

        Returns:
            The version.

        Raises:
            ConfigurationError: If *path* cannot be read, or MLflow cannot have a model of that name.
            IntegrityError: If a file of it is not what the others say.
            StoreUnavailableError: If MLflow does not answer.
            ModelStoreError: If it refuses.
        """
        check_text("import_(why=...)", why)
        with TemporaryDirectory(prefix="mlkit-") as folder:
            store = ModelStore(Path(folder, "store"), clock=self._clock)
            local = store.import_(path)
            name = check_registered("import_(path)", local.name)
            found = self._upload(store, local, Path(folder, "packed"), why)
        event = self._writer.event("imported", found.number, why) | {"digest": local.digest}
        self._writer.enter(name, event)
        return self._catalogue.version(found)

    @overload
    def load(
        self, ref: str | ModelVersion, *, build: Callable[[dict[str, Any]], T], trust: None = None
    ) -> T: ...
    @overload
    def load(
        self, ref: str | ModelVersion, *, build: None = None, trust: Trust | None = None
    ) -> Any: ...
    def load(
        self,
        ref: str | ModelVersion,
        *,
        build: Callable[[dict[str, Any]], Any] | None = None,
        trust: Trust | None = None,
    ) -> Any:
        """Return the model of a version: one of ours after checking every byte, another client's by MLflow.

        Args:
            ref: As for `get`.
            build: Called with a copy of the version's spec, as for `ModelStore.load`.
            trust: `"pickle"` if code in the file may run; needed for what was saved so, and for every version that
                another client logged.

        Returns:
            As `ModelStore.load`. Of another client's version what its library had (scikit-learn, PyTorch, XGBoost, ...),
            else MLflow's `PyFuncModel`.

        Raises:
            ConfigurationError: If an argument is wrong, or *build* is missing or cannot apply.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved; or, of another client's version, not what was
                promoted here.
            UntrustedFormatError: If code in the file would run and *trust* does not say so.
            RebuildError: As for `ModelStore.load`.
            StoreUnavailableError: If MLflow does not answer.
        """
        check_trust("load(trust=...)", trust)
        found = self._catalogue.resolve("load(ref)", ref)
        version = self._catalogue.version(found)
        if found.digest is not None:
            if build is not None:
                check_build("load(build=...)", build)
            here = self._cache.fetch(version, found.location)
            return open_model(self._backing, here, build=build, trust=trust)
        if build is not None:
            raise ConfigurationError(
                "load(build=...)", build, f"no build for {version.ref}, which MLflow loads"
            )
        pinned = self._writer.history(found.name).read().pins.get(found.number)
        return load_foreign(self._server, version.ref, found.location, trust=trust, pinned=pinned)

    def compare(self, first: str | ModelVersion, second: str | ModelVersion) -> Comparison:
        """Return what differs between two versions that were saved by mlkit, as `ModelStore.compare`.

        Args:
            first: As for `get`.
            second: As for `get`.

        Raises:
            ConfigurationError: If an argument is no reference, or a version of another client.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved.
            StoreUnavailableError: If MLflow does not answer.
        """
        fetched: list[ModelVersion] = []
        for where, ref in (("compare(first)", first), ("compare(second)", second)):
            found = self._catalogue.resolve(where, ref)
            if found.digest is None:
                raise ConfigurationError(where, ref, "a version that was saved by mlkit")
            fetched.append(self._cache.fetch(self._catalogue.version(found), found.location))
        one, other = fetched
        return compare(self._backing, one, other)

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

    def verify(self, name: str | None = None) -> Verification:
        """Download every file of every version that was saved by mlkit, and say which are not what was saved.

        Args:
            name: One model only.

        Returns:
            What is broken, and how much was looked at; versions of other clients are not, for MLflow has no digest of
            them.

        Raises:
            ConfigurationError: If *name* is no name.
            VersionNotFoundError: If there is no such model.
            StoreUnavailableError: If MLflow does not answer.
        """
        names = self.names() if name is None else [check_registered("verify(name)", name)]
        every = [found for one in names for found in self._catalogue.all(one)]
        ours = [found for found in every if found.digest is not None]
        broken: list[Broken] = []
        for found in ours:
            with TemporaryDirectory(prefix="mlkit-") as folder:
                try:
                    # Not the cache: what MLflow serves now.
                    Cache(folder, self._server).fetch(
                        self._catalogue.version(found), found.location
                    )
                except StoreUnavailableError:
                    raise
                except ModelStoreError as error:
                    broken.append(broken_by(f"{found.name}@{found.number}", error))
        return Verification(len(ours), 2 * len(ours), tuple(broken))

    def export(self, ref: str | ModelVersion, path: str | os.PathLike[str]) -> str:
        """Write a version that was saved by mlkit as one folder or file, which every store can import.

        Args:
            ref: As for `get`.
            path: Where nothing is; a folder, or a tar file if it ends with `.tar`.

        Returns:
            The path.

        Raises:
            ConfigurationError: If an argument is wrong, or something is there.
            VersionNotFoundError: If there is no such version.
            IntegrityError: If what MLflow serves is not what was saved; nothing was written.
            StoreUnavailableError: If MLflow does not answer.
            OSError: If a file cannot be written, or the disk is full; nothing was written.
        """
        from mlkit.models._transfer import checked_target, parts_of, write_parts

        target = checked_target("export(path)", path)
        found = self._catalogue.resolve("export(ref)", ref)
        if found.digest is None:
            raise ConfigurationError("export(ref)", ref, "a version that was saved by mlkit")
        version = self._cache.fetch(self._catalogue.version(found), found.location)
        folder, payload = self._cache.folder, parse_payload(read_document(version))
        parts = parts_of(
            version.ref,
            (found.name, found.number, version._facts),  # noqa: SLF001 - what is exported
            document=folder.read_blob(version.digest, limit=MAX_DOCUMENT),
            bundles=[],
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

        Returns:
            The change as it was written down; if the alias points there already, the one that put it there.

        Raises:
            ConfigurationError: If an argument is wrong.
            VersionNotFoundError: If there is no such version.
            AliasConflictError: If another version than expected holds the alias, or another writer overtook this one.
            ChecksFailedError: If a check did not let it pass; the history says which and why.
            StoreUnavailableError: If MLflow does not answer. The change may be in the history and the alias not moved:
                the next change made here says so.
        """
        check_registered("promote(name)", name)
        check_alias("promote(to=...)", to)
        check_text("promote(why=...)", why)
        gates = named("promote(checks=...)", checks)
        found = self._catalogue.numbered(
            name, self._catalogue.number("promote(version)", name, version)
        )
        expected = (
            expect
            if expect is ... or expect is None
            else self._catalogue.number("promote(expect=...)", name, expect)
        )
        holder = self.aliases(name).get(to)
        if expected is not ... and expected != holder:
            raise AliasConflictError(f"{name}@{to}", expected=expected, got=holder)
        judged = self._catalogue.version(found)
        evidence = {gate: ask(check, judged) for gate, check in gates.items()}
        failures = refusals(evidence)
        if failures:
            event = self._writer.event("refused", found.number, why)
            self._writer.enter(
                name, event | {"alias": to, "previous": holder, "evidence": evidence}
            )
            emit("models.promotion.refused", name, alias=to, version=found.number)
            raise ChecksFailedError(f"{name}@{found.number}", failures)
        pin = (
            {"artifacts": digest_of_files(self._server, found.location)}
            if found.digest is None
            else {}
        )

        def decide(past: Past, now: int | None) -> dict[str, Any] | Change:
            self._catalogue.numbered(name, found.number)
            if (expected is not ... or gates) and now != holder:
                raise AliasConflictError(f"{name}@{to}", expected=holder, got=now)
            last = past.last_move(to)
            if now == found.number and last is not None:
                return last
            event = self._writer.event("promoted", found.number, why)
            return event | {"alias": to, "previous": now, "evidence": evidence} | pin

        return self._writer.move(name, to, decide)

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
            StoreUnavailableError: As for `promote`.
        """
        check_registered("rollback(name)", name)
        check_alias("rollback(alias)", alias)
        check_text("rollback(why=...)", why)
        expected = (
            expect
            if expect is ...
            else self._catalogue.number("rollback(expect=...)", name, expect)
        )
        known = self.aliases(name)
        if alias not in known:
            raise self._catalogue.missing(f"{name}@{alias}", name, known)

        def decide(past: Past, now: int | None) -> dict[str, Any] | Change:
            if now is None:
                raise self._catalogue.missing(f"{name}@{alias}", name, {})
            if expected is not ... and now != expected:
                raise AliasConflictError(f"{name}@{alias}", expected=expected, got=now)
            held = past.holders.get(alias, ())
            if len(held) < 2:
                raise VersionNotFoundError(f"{name}@{alias}", before=now)
            event = self._writer.event("rolled_back", held[-2], why)
            return event | {"alias": alias, "previous": now}

        return self._writer.move(name, alias, decide)

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
        expected = (
            expect
            if expect is ...
            else self._catalogue.number("remove_alias(expect=...)", name, expect)
        )
        known = self.aliases(name)
        if alias not in known:
            raise self._catalogue.missing(f"{name}@{alias}", name, known)

        def decide(_: Past, now: int | None) -> dict[str, Any]:
            if now is None:
                raise self._catalogue.missing(f"{name}@{alias}", name, {})
            if expected is not ... and now != expected:
                raise AliasConflictError(f"{name}@{alias}", expected=expected, got=now)
            event = self._writer.event("alias_removed", now, why)
            return event | {"alias": alias, "previous": now}

        return self._writer.move(name, alias, decide)

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
        found = self._catalogue.numbered(
            name, self._catalogue.number("delete(version)", name, version)
        )

        def refuse_if_used() -> None:
            aliases = self.aliases(name)
            if using := [alias for alias, number in aliases.items() if number == found.number]:
                raise VersionInUseError(f"{name}@{found.number}", using)

        refuse_if_used()
        change = self._writer.enter(
            name, self._writer.event("deleted", found.number, why), refuse_if_used
        )
        with self._server.asked():
            self._client.delete_model_version(name, str(found.number))
            run = found.entity.run_id
            if run and self._client.get_run(run).data.tags.get(VERSION_RUN) == name:
                self._client.delete_run(run)  # so that `mlflow gc` may free its artifacts
        emit("models.version.deleted", name, version=found.number, files_kept=0)
        return change

    # --- within: what MLflow has -----------------------------------------------------------------------------------

    def _upload(self, store: ModelStore, local: ModelVersion, packed: Path, why: str) -> Found:
        """Register a version of a folder store."""
        packed.mkdir()
        pack(local, store.path, packed)
        history = self._writer.history(local.name)
        return self._catalogue.found(register(self._server, history, local, packed, why))

    @property
    def _backing(self) -> Backing:
        return self._local._backing  # noqa: SLF001 - one way to open a version

    @property
    def _client(self) -> Any:
        return self._server.client


def _cache_folder() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return str(Path(home, "mlkit", "models"))


def _reopen(
    uri: str, cache: str, codecs: Sequence[Codec], who: str | None, clock: Clock | None
) -> MlflowModelStore:
    return MlflowModelStore(uri, cache=cache, codecs=codecs, who=who, clock=clock)
