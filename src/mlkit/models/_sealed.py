"""Files that only a key opens: AES-256-GCM in frames, so that one is written and read in pieces and in order.

```text
MLKSEAL1 · length and name of the key · salt (32 bytes) · check (16) · SHA-256 of all that (8)
frame 0 · frame 1 · ... · last frame      1 MiB of plaintext and 16 bytes of tag each, the last one as long as it is
```

Each file has a key of its own, derived (HKDF-SHA256, RFC 5869) from the provider's key, the salt and the key's name; so
no nonce is ever used twice. A nonce is a prefix, the number of the frame and whether it is the last one: a frame that
was changed, moved, left out, added or borrowed from another file does not open. This is the STREAM construction (Hoang,
Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015), laid
out as in Tink's streaming AEAD. The check is derived too, and tells a wrong key from a damaged frame.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from mlkit._optional import require
from mlkit._suggest import article
from mlkit.errors import ConfigurationError, IntegrityError, SealError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KeyProvider", "Sealer", "checked_keys", "sealed_with", "unsealed"]

FRAME = 1 << 20
_TAG = 16
_MAGIC = b"MLKSEAL1"
_SALT, _CHECK, _SUM = 32, 16, 8
_MAX_ID = 80
_MAX_FRAMES = 1 << 32
_MAX_HEADER = len(_MAGIC) + 1 + 4 * _MAX_ID + _SALT + _CHECK + _SUM


@runtime_checkable
class KeyProvider(Protocol):
    """Where the keys of sealed files come from: an environment variable, a file, a key management service.

    Laws: a name stands for the same 32 bytes for ever; `key(name)` still knows the names that `current` gave before, for
    as long as files are sealed with them. Called from any thread; asked each time a file is read or written, so one that
    asks a service should remember. What it returns is kept no longer than one call takes, and never shown, logged or
    pickled.
    """

    def current(self) -> tuple[str, bytes]:
        """Return the name of the key to seal with now, at most 80 characters, and the key, 32 random bytes."""
        ...

    def key(self, key_id: str, /) -> bytes:
        """Return the key of a name, or raise `KeyError`."""
        ...


@final
class _File:
    """What is derived for one file."""

    __slots__ = ("check", "cipher", "prefix")

    def __init__(self, cipher: Any, prefix: bytes, check: bytes) -> None:
        self.cipher, self.prefix, self.check = cipher, prefix, check


@final
class Sealer:
    """Seals what is written to it. Not thread-safe.

    Args:
        put: Writes bytes to the file.
        keys: Where the key comes from.
    """

    __slots__ = ("_file", "_held", "_n_frames", "_put")

    def __init__(self, put: Callable[[bytes], object], keys: KeyProvider) -> None:
        name, key = _current(keys)
        salt = os.urandom(_SALT)
        self._file = _derive(key, salt, name)
        self._put, self._held, self._n_frames = put, bytearray(), 0
        encoded = name.encode("utf-8")
        header = _MAGIC + bytes([len(encoded)]) + encoded + salt + self._file.check
        put(header + _sum(header))

    def write(self, data: memoryview | bytes) -> None:
        """Seal more.

        Args:
            data: The next bytes.
        """
        view, held = memoryview(data).cast("B"), self._held
        begin, size = 0, len(view)
        # A frame is written when it is known not to be the last one.
        while size - begin + len(held) > FRAME:
            if held:
                missing = FRAME - len(held)
                held += view[begin : begin + missing]
                begin += missing
                self._seal(held, last=False)
                held.clear()
            else:
                self._seal(view[begin : begin + FRAME], last=False)
                begin += FRAME
        held += view[begin:]

    def finish(self) -> None:
        """Seal the last frame; nothing is written after that."""
        self._seal(self._held, last=True)
        self._held = bytearray()

    def _seal(self, frame: memoryview | bytearray, *, last: bool) -> None:
        if self._n_frames >= _MAX_FRAMES:
            raise ConfigurationError("save(model)", "more than 4 PiB", "what can be sealed")
        nonce = _nonce(self._file.prefix, self._n_frames, last=last)
        self._put(self._file.cipher.encrypt(nonce, frame, None))
        self._n_frames += 1


def unsealed(descriptor: int, keys: KeyProvider | None, path: str) -> Iterator[bytes]:
    """Yield the content of a sealed file, piece by piece; each piece is what was sealed, and in its place.

    Args:
        descriptor: The open file.
        keys: Where the key comes from, None if there are none.
        path: What to call the file in errors.

    Raises:
        SealError: If there is no key, or another one.
        IntegrityError: If the file is not what was written.
    """
    start = os.pread(descriptor, _MAX_HEADER, 0)
    name, salt, check, begin = _header(start, path)
    if keys is None:
        reason = "pass ModelStore(keys=...) a provider of it"
        raise SealError(path, key_id=name, reason=reason)
    file = _derive(key_of(keys, name, path), salt, name)
    if file.check != check:
        raise SealError(path, key_id=name, reason="the key that the provider has is another one")
    return _frames(descriptor, file, begin, path)


def sealed_with(descriptor: int, path: str) -> str:
    """Return the name of the key that a file is sealed with.

    Args:
        descriptor: The open file.
        path: What to call it in errors.
    """
    return _header(os.pread(descriptor, _MAX_HEADER, 0), path)[0]


def checked_keys(where: str, keys: object) -> KeyProvider | None:
    """Return *keys* if it is a provider or None, and sealing is possible.

    Args:
        where: The argument, for the error; the provider is never shown.
        keys: What the caller passed.
    """
    if keys is None:
        return None
    if isinstance(keys, type) or not isinstance(keys, KeyProvider):
        expected = "an object with current() and key(key_id), see KeyProvider"
        raise ConfigurationError(where, article(type(keys).__name__), expected)
    require("cryptography", extra="signing", feature="sealing model versions")
    return keys


def key_of(keys: KeyProvider, name: str, path: str) -> bytes:
    """Return the key of a name.

    Args:
        keys: Where it comes from.
        name: Its name.
        path: The file that needs it, for the error.
    """
    try:
        key = keys.key(name)
    except LookupError:
        # Not chained: what a provider says may be more than may be seen.
        raise SealError(path, key_id=name, reason="the provider does not have it") from None
    return _checked_key("KeyProvider.key()", key)


def _current(keys: KeyProvider) -> tuple[str, bytes]:
    pair = keys.current()
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        raise ConfigurationError("KeyProvider.current()", "something else", "(name, key)")
    name, key = pair
    if not 0 < len(name) <= _MAX_ID or not name.isprintable() or len(name.encode("utf-8")) > 255:
        expected = f"a name of 1 to {_MAX_ID} printable characters"
        raise ConfigurationError("KeyProvider.current()", "another name", expected)
    return name, _checked_key("KeyProvider.current()", key)


def _checked_key(where: str, key: object) -> bytes:
    if not isinstance(key, bytes) or len(key) != 32:
        raise ConfigurationError(where, "something else", "a key of 32 bytes")
    return key


def _header(start: bytes, path: str) -> tuple[str, bytes, bytes, int]:
    """Return the name of the key, the salt, the check, and where the frames begin."""
    length = start[len(_MAGIC)] if len(start) > len(_MAGIC) else 0
    salt_at = len(_MAGIC) + 1 + length
    sum_at = salt_at + _SALT + _CHECK
    end = sum_at + _SUM
    if (
        not start.startswith(_MAGIC)
        or len(start) < end
        or start[sum_at:end] != _sum(start[:sum_at])
    ):
        raise IntegrityError(path, expected="the head of a sealed file", got="something else")
    name = start[len(_MAGIC) + 1 : salt_at].decode("utf-8", "replace")
    return name, start[salt_at : salt_at + _SALT], start[salt_at + _SALT : sum_at], end


def _frames(descriptor: int, file: _File, begin: int, path: str) -> Iterator[bytes]:
    from cryptography.exceptions import InvalidTag

    size = os.fstat(descriptor).st_size - begin
    step = FRAME + _TAG
    n_frames = max(1, -(-size // step))
    for index in range(n_frames):
        sealed = os.pread(descriptor, step, begin + index * step)
        nonce = _nonce(file.prefix, index, last=index == n_frames - 1)
        try:
            frame: bytes = file.cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            expected = f"frame {index} of {n_frames} as it was sealed"
            raise IntegrityError(path, expected=expected, got="something else") from None
        yield frame


def _derive(key: bytes, salt: bytes, name: str) -> _File:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"mlkit seal 1\0" + name.encode("utf-8")
    derived = HKDF(SHA256(), 32 + 7 + _CHECK, salt, info).derive(key)
    return _File(AESGCM(derived[:32]), derived[32:39], derived[39:])


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([last])


def _sum(header: bytes) -> bytes:
    from hashlib import sha256

    return sha256(header).digest()[:_SUM]
