"""What MLflow's registry has: the versions that it knows, and which one a name, number, alias or digest means."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from mlkit.errors import ConfigurationError, IntegrityError, VersionNotFoundError
from mlkit.integrations.mlflow_models._artifacts import Remote, digest_of
from mlkit.integrations.mlflow_models._server import check_registered
from mlkit.models import ModelVersion
from mlkit.models._version import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlkit.integrations.mlflow_models._artifacts import Cache
    from mlkit.integrations.mlflow_models._server import Server
    from mlkit.models._folder import Folder

__all__ = ["Catalog", "Found", "pages"]

# The document of a version that has none.
_NOTHING = json.dumps(
    {
        "format": 1,
        "spec": None,
        "signature": None,
        "manifest": None,
        "payload": {
            "format": "bytes",
            "digest": "sha256:" + "0" * 64,
            "n_bytes": 0,
            "rebuild": False,
            "ties": {},
        },
    }
).encode("ascii")


class Found(NamedTuple):
    """A version as MLflow has it."""

    name: str
    number: int
    location: str
    entity: Any

    @property
    def digest(self) -> str | None:
        """Its digest if it is one of ours."""
        return digest_of(self.location)


@final
class Catalog:
    """The registered models of one MLflow. Holds nothing; every answer is MLflow's of now.

    Args:
        server: Where.
        cache: Where the files of versions are downloaded to.
    """

    def __init__(self, server: Server, cache: Cache) -> None:
        self._server, self._cache = server, cache

    @property
    def _client(self) -> Any:
        return self._server.client

    def names(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        with self._server.asked():
            return sorted(str(model.name) for model in pages(self._client.search_registered_models))

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at.

        Args:
            name: A checked name.
        """
        with self._server.asked(missing=name):
            model = self._client.get_registered_model(name)
        return {str(alias): int(number) for alias, number in sorted(model.aliases.items())}

    def all(self, name: str) -> list[Found]:
        """Return the versions of a model, oldest first.

        Args:
            name: A checked name.
        """
        with self._server.asked(missing=name):
            self._client.get_registered_model(name)
            every = pages(self._client.search_model_versions, f"name='{name}'")
            found = [self.found(entity) for entity in every]
        return sorted(found, key=lambda one: one.number)

    def found(self, entity: Any) -> Found:
        """Return a version that MLflow has told of.

        Args:
            entity: As MLflow's client returned it.
        """
        name, number, source = str(entity.name), int(entity.version), str(entity.source)
        if source.startswith("models:/"):  # copied from another registered model
            source = str(self._client.get_model_version_download_uri(name, str(number)))
        return Found(name, number, source.rstrip("/"), entity)

    def numbered(self, name: str, number: int) -> Found:
        """Return a version by its number.

        Args:
            name: A checked name.
            number: The number.
        """
        ref = f"{name}@{number}"
        try:
            with self._server.asked(missing=ref):
                return self.found(self._client.get_model_version(name, str(number)))
        except VersionNotFoundError:
            raise self.missing(ref, name, self.aliases(name)) from None

    def resolve(self, where: str, ref: object) -> Found:
        """Return the version that a reference means now.

        Args:
            where: The argument, for the error.
            ref: What the caller passed.
        """
        given = ref if isinstance(ref, ModelVersion) else None
        name, selector = _parse(where, ref if given is None else given.ref)
        if selector.isdecimal():
            found = self.numbered(name, int(selector))
        elif selector.startswith("sha256:"):
            found = self._by_digest(where, name, selector)
        else:
            aliases = self.aliases(name)
            if selector not in aliases:
                raise self.missing(f"{name}@{selector}", name, aliases)
            found = self.numbered(name, aliases[selector])
        if given is not None and given.digest != self.version(found).digest:
            raise ConfigurationError(where, given, "a version of this store")
        return found

    def _by_digest(self, where: str, name: str, prefix: str) -> Found:
        found = [one for one in self.all(name) if (one.digest or "").startswith(prefix)]
        if not found:
            raise self.missing(f"{name}@{prefix}", name, self.aliases(name))
        if len({one.digest for one in found}) > 1:
            raise ConfigurationError(
                where, prefix, f"more digits: several versions of {name!r} begin so"
            )
        return found[-1]

    def number(self, where: str, name: str, version: object) -> int:
        """Return the number of a version of *name*, which need not exist.

        Args:
            where: The argument, for the error.
            name: The model.
            version: What the caller passed.
        """
        if isinstance(version, ModelVersion):
            if version.name != name:
                raise ConfigurationError(where, version, f"a version of {name!r}")
            with suppress(VersionNotFoundError):
                if self.version(self.numbered(name, version.number)).digest != version.digest:
                    raise ConfigurationError(where, version, "a version of this store")
            return version.number
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ConfigurationError(where, version, "a version number >= 1, or a ModelVersion")
        return version

    def missing(self, ref: str, name: str, aliases: Mapping[str, int]) -> VersionNotFoundError:
        """Return the error for what MLflow does not know.

        Args:
            ref: What was asked for.
            name: The model.
            aliases: The aliases that there are.
        """
        known = [f"{name}@{alias}" for alias in aliases]
        known += [f"{name}@{found.number}" for found in self.all(name)]
        return VersionNotFoundError(ref, known, hint=f"the store is {self._server.uri}")

    def version(self, found: Found) -> ModelVersion:
        """Return a version as users see it; its files are downloaded when they are asked for.

        Args:
            found: What MLflow has.
        """
        entity, digest = found.entity, found.digest
        tags = {str(key): str(value) for key, value in (entity.tags or {}).items()}
        if digest is None:
            facts = _foreign_facts(entity, tags)
            version = ModelVersion(self._cache.folder, found.name, found.number, facts)
            version._document = _NOTHING  # noqa: SLF001 - there is none to read
            return version
        remote = cast("Folder", Remote(self._cache, found.location, digest))
        try:
            facts = _facts(entity, tags, digest)
        except (AttributeError, KeyError, TypeError, ValueError):
            where = f"tag mlkit.facts of {found.name}@{found.number} in MLflow"
            raise IntegrityError(where, expected="facts", got="something else") from None
        return ModelVersion(remote, found.name, found.number, facts)


def pages(search: Callable[..., Any], *args: Any) -> Iterable[Any]:
    """Yield what a search of MLflow's client finds, page after page.

    Args:
        search: The method.
        args: What it is asked.
    """
    token: str | None = None
    while True:
        page = search(*args, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _facts(entity: Any, tags: Mapping[str, str], digest: str) -> Facts:
    """Return what the tags say of a version of ours; they can be changed in MLflow, the digest cannot."""
    about = json.loads(tags.get("mlkit.facts", "{}"))
    run = about.get("run")
    return Facts(
        time=float(about.get("time", entity.creation_timestamp / 1000)),
        who=str(about.get("who", "")),
        digest=digest,
        payload=str(about.get("payload", "")),
        format=str(about.get("format", "bytes")),
        n_bytes=int(about.get("n_bytes", 0)),
        run=None if run is None else str(run),
        metrics={key: float(value) for key, value in about.get("metrics", {}).items()},
        tags={key: value for key, value in tags.items() if not key.startswith("mlkit.")},
    )


def _foreign_facts(entity: Any, tags: dict[str, str]) -> Facts:
    return Facts(
        time=entity.creation_timestamp / 1000,
        who=str(getattr(entity, "user_id", None) or ""),
        digest="",
        payload="",
        format="mlflow",
        n_bytes=0,
        run=entity.run_id or None,
        metrics={},
        tags=tags,
    )


def _parse(where: str, ref: object) -> tuple[str, str]:
    expected = "'name@alias', 'name@7', 'name@sha256:...', 'models:/name@alias' or 'models:/name/7'"
    if not isinstance(ref, str):
        raise ConfigurationError(where, ref, f"{expected}, or a ModelVersion")
    body = ref.removeprefix("models:/")
    mark = "/" if body != ref and "@" not in body else "@"
    name, found, selector = body.rpartition(mark)
    if not found or not selector:
        raise ConfigurationError(where, ref, expected)
    digits = selector.removeprefix("sha256:")
    if digits != selector and (len(digits) < 4 or digits.strip("0123456789abcdef")):
        raise ConfigurationError(where, ref, expected)
    return check_registered(where, name), selector
