"""Signatures of versions: who vouches for which version under which name, as OpenSSF Model Signing writes them down.

A signature is a Sigstore bundle: a DSSE envelope around an in-toto statement whose subject is `name@number` and whose
resources are the files of the version as `ModelStore.export` writes them. So the tool of that project (the package
`model_signing`, its key method) verifies ours over an exported folder, and we verify its own. It knows elliptic curve
keys (P-256, P-384, P-521); we know Ed25519 too, in the same envelope.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias, final

from mlkit._optional import require
from mlkit.errors import ConfigurationError, SignatureError
from mlkit.models._bundle import CURVES, claimed, is_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike

__all__ = ["Requirement", "Signer", "signed_by", "signer"]


_Key: TypeAlias = tuple[str, bytes]
"""The fingerprint and the PEM of a public key."""


@final
class Signer:
    """A private key that was found to be one; it says nothing of itself.

    Args:
        fingerprint: Of the public key.
        pem: The public key.
        sign: Signs a message.
    """

    __slots__ = ("fingerprint", "pem", "sign")

    def __init__(self, fingerprint: str, pem: bytes, sign: Callable[[bytes], bytes]) -> None:
        self.fingerprint, self.pem, self.sign = fingerprint, pem, sign

    @property
    def requirement(self) -> Requirement:
        """That it has signed."""
        return Requirement((((self.fingerprint, self.pem),),))

    def __repr__(self) -> str:
        return f"Signer({self.fingerprint[:12]})"


@final
class Requirement:
    """Who must have signed a version; made by `signed_by`, combined with `&`.

    Holds public keys only. Immutable, thread-safe and picklable.
    """

    __slots__ = ("_groups",)

    def __init__(self, groups: tuple[tuple[_Key, ...], ...]) -> None:
        self._groups = groups

    def __and__(self, other: Requirement) -> Requirement:
        """Return the requirement of both."""
        if not isinstance(other, Requirement):
            return NotImplemented
        return Requirement(self._groups + other._groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Requirement):
            return NotImplemented
        return self._groups == other._groups

    def __hash__(self) -> int:
        return hash(self._groups)

    def __repr__(self) -> str:
        shown = (", ".join(repr(key[:12]) for key, _ in group) for group in self._groups)
        return " & ".join(f"<signed_by {group}>" for group in shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return Requirement, (self._groups,)

    def check(self, ref: str, files: Mapping[str, str], bundles: Iterable[bytes]) -> None:
        """Raise unless, of each group of keys, one has signed these files as this version.

        Args:
            ref: The version.
            files: The digests of its files, by name.
            bundles: The signatures that are kept with it, by whomever.

        Raises:
            SignatureError: If a signature is missing, of something else, or no signature.
        """
        bundles = list(bundles)
        for group in self._groups:
            if not any(is_signed(ref, files, bundle, group) for bundle in bundles):
                raise SignatureError(
                    ref,
                    required=[key for key, _ in group],
                    found=[claimed(bundle) for bundle in bundles],
                )


def signed_by(*keys: str | PathLike[str] | bytes | object) -> Requirement:
    """Return the requirement that one of these keys has signed a version, under its name and number.

    `signed_by(a, b)` asks for either, `signed_by(a) & signed_by(b)` for both.

    Args:
        keys: Public keys: the path of a PEM file, the bytes of one, or a key of the package `cryptography`. Ed25519, or
            ECDSA over P-256, P-384 or P-521.

    Returns:
        For `ModelStore(require=...)`, `load(..., require=...)`, `get` and `promote`.

    Raises:
        ConfigurationError: If there is none, or one is not such a key. A private key is refused: what only checks
            must not be able to sign.
        MissingDependencyError: If `cryptography` is not installed.

    Examples:
        >>> import tempfile
        >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        >>> from mlkit.models import ModelStore, signed_by
        >>> key = Ed25519PrivateKey.generate()
        >>> store = ModelStore(tempfile.mkdtemp(), require=signed_by(key.public_key()))
        >>> version = store.save("prior", b"0.3", sign=key)
        >>> store.load("prior@1")
        b'0.3'
    """
    if not keys:
        raise ConfigurationError("signed_by(*keys)", (), "at least one public key")
    return Requirement((tuple(_public(key) for key in keys),))


def signer(where: str, key: object) -> Signer:
    """Return what signs with a private key.

    Args:
        where: The argument, for the error; the key is never shown.
        key: The path of a PEM file that is not encrypted, the bytes of one, or a key of `cryptography`.
    """
    if isinstance(key, Signer):
        return key
    require("cryptography", extra="signing", feature="signing a model version")
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private: object = key
    if (pem := _read(where, key)) is not None:
        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError):
            hint = "an encrypted PEM is opened with cryptography's load_pem_private_key"
            raise _no_key(where, "private", hint) from None
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return _signer(private.public_key(), private.sign)
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in CURVES:
        ecdsa = ec.ECDSA(getattr(hashes, CURVES[private.curve.name])())
        return _signer(private.public_key(), lambda message: private.sign(message, ecdsa))
    raise _no_key(where, "private")


def _public(key: object) -> _Key:
    require("cryptography", extra="signing", feature="signed_by")
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = key
    where = "signed_by(*keys)"
    if (pem := _read(where, key)) is not None:
        try:
            public = load_pem_public_key(pem)
        except ValueError:
            hint = "its first line is -----BEGIN PUBLIC KEY-----"
            raise _no_key(where, "public", hint) from None
    if isinstance(public, ed25519.Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in CURVES
    ):
        return _fingerprint(public), _pem(public)
    raise _no_key(where, "public")


def _read(where: str, key: object) -> bytes | None:
    """Return the PEM text that was passed, or that lies where it was said to, or None for an object."""
    if isinstance(key, bytes):
        return key
    if not isinstance(key, (str, os.PathLike)):
        return None
    from pathlib import Path

    if isinstance(key, str) and "-----BEGIN" in key:
        return key.encode("utf-8", "replace")
    try:
        return Path(key).read_bytes()
    except (OSError, ValueError) as error:
        # Text without such an ending may be a key that was taken for a path.
        is_path = not isinstance(key, str) or key.endswith((".pem", ".key", ".pub"))
        raise ConfigurationError(
            where,
            os.fspath(key) if is_path else "text",
            "the path of a PEM file that can be read",
            hint=type(error).__name__,
        ) from None


def _signer(public: Any, sign_message: Callable[[bytes], bytes]) -> Signer:
    return Signer(_fingerprint(public), _pem(public), sign_message)


def _no_key(where: str, kind: str, hint: str = "") -> ConfigurationError:
    expected = f"a {kind} key, Ed25519 or ECDSA over P-256, P-384 or P-521: a PEM file or a key of cryptography"
    return ConfigurationError(where, "something else", expected, hint=hint)


def _pem(public: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _fingerprint(public: Any) -> str:
    """Return SHA-256 over the PEM text: what a bundle calls a key, and what `sha256sum key.pem` prints."""
    from hashlib import sha256

    return sha256(_pem(public)).hexdigest()
