"""A signature as it is kept: a Sigstore bundle, around a DSSE envelope, around an in-toto statement about files."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlkit.models._plain import dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlkit.models._signing import Signer
    from mlkit.models._version import Facts

__all__ = ["CURVES", "MAX_BUNDLE", "claimed", "description", "files_of", "is_about", "is_signed", "sign"]  # fmt: skip

MAX_BUNDLE = 1 << 20
# Names and values that the Model Signing specification, in-toto, DSSE and Sigstore fix.
_PREDICATE = "https://model_signing/signature/v1.0"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PAYLOAD = "application/vnd.in-toto+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
# What lies in an exported folder beside the files of the version.
_BESIDE = ["history.json", "model.sig", "signatures"]
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


def files_of(name: str, number: int, facts: Facts) -> dict[str, str]:
    """Return the digests of the files that a version is exported as, by name; these are what is signed.

    Args:
        name: The model.
        number: Its number.
        facts: What the history says of it.
    """
    from hashlib import sha256

    described = sha256(description(name, number, facts)).hexdigest()
    return {
        "document.json": facts.digest,
        "version.json": f"sha256:{described}",
        "weights": facts.payload,
    }


def description(name: str, number: int, facts: Facts) -> bytes:
    """Return what the history says of a version, as the one file that says it.

    Args:
        name: The model.
        number: Its number.
        facts: What the history says of it.
    """
    return dump({
        "mlkit": 1,
        "name": name,
        "number": number,
        "time": repr(facts.time),
        "who": facts.who,
        "digest": facts.digest,
        "payload": facts.payload,
        "format": facts.format,
        "n_bytes": facts.n_bytes,
        "run": facts.run,
        "metrics": {key: repr(value) for key, value in facts.metrics.items()},
        "tags": facts.tags,
    })  # fmt: skip


def sign(ref: str, files: Mapping[str, str], key: Signer) -> bytes:
    """Return the bundle in which a key vouches for the files of a version.

    Args:
        ref: The version.
        files: The digests of its files.
        key: Who signs.
    """
    payload = dump(_statement(ref, files))
    return dump({
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": key.fingerprint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": _base64(key.sign(_message(payload))), "keyid": ""}],
        },
    })  # fmt: skip


def is_about(ref: str, files: Mapping[str, str], bundle: bytes) -> bool:
    """Return whether a bundle says that it is about these files as this version; whether it is true, a key tells.

    Args:
        ref: The version.
        files: The digests of its files.
        bundle: Of anybody.
    """
    from base64 import b64decode
    from json import loads

    try:
        return _is_about(loads(b64decode(loads(bundle)["dsseEnvelope"]["payload"])), ref, files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def claimed(bundle: bytes) -> str:
    """Return the fingerprint of the key that a bundle says it was made with, or what it is instead.

    Args:
        bundle: Of anybody.
    """
    import json

    try:
        hint = json.loads(bundle)["verificationMaterial"]["publicKey"].get("hint")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "no bundle with a key"
    return hint if isinstance(hint, str) and len(hint) == 64 and hint.isalnum() else "unnamed key"


def _statement(ref: str, files: Mapping[str, str]) -> dict[str, Any]:
    from hashlib import sha256

    digests = {name: digest.removeprefix("sha256:") for name, digest in sorted(files.items())}
    whole = sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": ref, "digest": {"sha256": whole}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _BESIDE,
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest}
                for name, digest in digests.items()
            ],
        },
    }


def is_signed(
    ref: str, files: Mapping[str, str], bundle: bytes, keys: Iterable[tuple[str, bytes]]
) -> bool:
    """Return whether one of *keys* made the bundle, and it is about this version and its files."""
    from base64 import b64decode
    from json import loads

    try:
        parsed = loads(bundle)
        envelope = parsed["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        payload, proof = b64decode(envelope["payload"]), b64decode(signature["sig"])
        if envelope["payloadType"] != _PAYLOAD or parsed["mediaType"] != _BUNDLE:
            return False
        # Nothing of what was signed is looked at before it is known who signed it.
        return any(_made(proof, payload, pem) for _, pem in keys) and _is_about(
            loads(payload), ref, files
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _is_about(statement: Any, ref: str, files: Mapping[str, str]) -> bool:
    (subject,) = statement["subject"]
    stated = {
        resource["name"]: f"sha256:{resource['digest']}"
        for resource in statement["predicate"]["resources"]
        if resource["algorithm"] == "sha256"
    }
    return (
        statement["_type"] == _STATEMENT
        and statement["predicateType"] == _PREDICATE
        # The other tool calls a model after its folder, which cannot have a slash.
        and subject["name"] in {ref, ref.replace("/", "%2F")}
        and all(stated.get(name) == digest for name, digest in files.items())
    )


def _made(proof: bytes, payload: bytes, pem: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    public = _loaded(pem)
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(proof, _message(payload))
        elif isinstance(public, ec.EllipticCurvePublicKey):
            algorithm = getattr(hashes, CURVES[public.curve.name])()
            public.verify(proof, _message(payload), ec.ECDSA(algorithm))
        else:
            return False
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=64)
def _loaded(pem: bytes) -> Any:
    """Return a public key; parsing one takes as long as verifying with it."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return load_pem_public_key(pem)


def _message(payload: bytes) -> bytes:
    """Return what DSSE signs: the type and the length too, so that nothing can be taken for something else."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode("ascii"), len(payload), payload)


def _base64(data: bytes) -> str:
    from base64 import b64encode

    return b64encode(data).decode("ascii")
