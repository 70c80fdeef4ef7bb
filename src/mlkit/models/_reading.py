"""Giving versions out: what a reference means, whether it is signed as it must be, its model, and what differs."""

from __future__ import annotations

from functools import partial
from typing import IO, TYPE_CHECKING, Any

from mlkit._digest import short
from mlkit._suggest import article
from mlkit.errors import ConfigurationError
from mlkit.models._formats import decode, may_load, takes_build
from mlkit.models._payload import open_payload
from mlkit.models._version import MAX_DOCUMENT, parse_payload, read_document
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.models._backing import Backing
    from mlkit.models._compare import Comparison
    from mlkit.models._formats import Trust
    from mlkit.models._package import Parts
    from mlkit.models._signing import Requirement
    from mlkit.models._version import ModelVersion

__all__ = ["bundles_of", "check_build", "compare", "open_model", "parts", "vouched"]

# Of the process, not of a store: a count that fell when a store was collected would be none.
_LOADS = Counter("models_loads_total")
register(_LOADS)


def vouched(
    store: Backing, where: str, ref: str | ModelVersion, require: Requirement | None = None
) -> ModelVersion:
    """Return the version that a reference means now, if it is signed as it must be.

    Args:
        store: The store.
        where: The argument, for the error.
        ref: What the caller passed.
        require: Who must have signed it, beside whom the store requires.
    """
    version = store.catalog.resolve(where, ref)
    store.policy.check(version, require)
    return version


def open_model(
    store: Backing,
    version: ModelVersion,
    *,
    build: Callable[[dict[str, Any]], Any] | None,
    trust: Trust | None,
) -> Any:
    """Return the model of a version, after checking every byte that is read.

    Args:
        store: Where its files are.
        version: The version.
        build: Rebuilds it from its spec, checked.
        trust: What may run, checked.
    """
    document = store.catalog.reading(version, lambda: read_document(version))
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
    with store.catalog.reading(version, lambda: open_payload(store.folder, payload)) as file:
        model = decode(
            version.ref,
            file,
            payload,
            spec=document["spec"],
            build=build,
            trust=trust,
            codecs=store.codecs,
        )
    _LOADS.add()
    return model


def check_build(where: str, build: object) -> None:
    """Raise unless *build* is a callable of a spec.

    Args:
        where: The argument, for the error.
        build: What the caller passed.
    """
    if not isinstance(build, type) and callable(getattr(build, "state_dict", None)):
        raise ConfigurationError(
            where,
            article(type(build).__name__),
            "a callable of the spec",
            hint="pass a function of the spec, such as a registry's build, not the model",
        )
    if not callable(build):
        raise ConfigurationError(where, build, "a callable of the spec")


def compare(store: Backing, first: ModelVersion, second: ModelVersion) -> Comparison:
    """Return what differs between two versions.

    Args:
        store: Where their files are.
        first: One.
        second: The other.
    """
    from mlkit.models._compare import compare as differences

    def opened(version: ModelVersion) -> IO[bytes]:
        payload = parse_payload(read_document(version))
        return store.catalog.reading(version, lambda: open_payload(store.folder, payload))

    for version in (first, second):
        store.catalog.reading(version, partial(read_document, version))
    return differences(first, second, opened)


def bundles_of(store: Backing, version: ModelVersion) -> list[bytes]:
    """Return the signatures that are kept with a version.

    Args:
        store: The store.
        version: The version.
    """
    state = store.catalog.state(version.name)
    return store.policy.bundles(version.name, version.number, state)


def parts(store: Backing, version: ModelVersion) -> Parts:
    """Return what a version is exported as.

    Args:
        store: The store.
        version: The version.
    """
    from mlkit.models._exporting import parts_of

    name, number = version.name, version.number
    state = store.catalog.state(name)
    store.catalog.version(name, state, number)
    facts = state.facts(number)
    document = store.catalog.reading(
        version, lambda: store.folder.read_blob(facts.digest, limit=MAX_DOCUMENT)
    )
    return parts_of(
        version.ref,
        (name, number, facts),
        document=document,
        bundles=store.policy.bundles(name, number, state),
        changes=state.changes,
        weights=lambda: store.folder.pieces(facts.payload),
    )
