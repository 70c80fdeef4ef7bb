"""Signatures are those of OpenSSF Model Signing: its tool made the one kept here, and verifies ours where it is installed."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mlkit.errors import IntegrityError, SignatureError
from mlkit.models import ModelStore, signed_by

# An exported version that model_signing 1.1.1 signed:
# model_signing sign key churn@2 --signature churn@2/model.sig --private_key private.pem
HERE = Path(__file__).parent / "openssf"


def test_what_its_tool_signed_is_signed(tmp_path):
    store = ModelStore(tmp_path, require=signed_by(HERE / "public.pem"))
    version = store.import_(HERE / "churn@2")
    assert (version.ref, store.load(version)) == ("churn@2", b"eight by")
    assert store.get("churn@2").metrics == {"accuracy": 0.9}


def test_its_signature_is_of_that_version_only(tmp_path):
    package = tmp_path / "churn@2"
    shutil.copytree(HERE / "churn@2", package)
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(SignatureError):
        ModelStore(tmp_path / "s").import_(package, require=signed_by(key.public_key()))
    other = ModelStore(tmp_path / "other")
    other.save("risk", b"first")
    other.save("risk", b"eight by", spec={"a": 1}, metrics={"accuracy": 0.9})
    other.export("risk@2", tmp_path / "risk@2")
    shutil.copy(package / "model.sig", tmp_path / "risk@2" / "model.sig")
    with pytest.raises(IntegrityError, match=r"model\.sig"):
        ModelStore(tmp_path / "s").import_(tmp_path / "risk@2")


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name
)
def test_its_tool_verifies_what_we_sign(tmp_path, curve):
    verifying = pytest.importorskip("model_signing.verifying")
    key = ec.generate_private_key(curve)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = tmp_path / "public.pem"
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    store = ModelStore(tmp_path / "store")
    store.save("team/churn", b"weights", spec={"a": 1}, sign=private)
    store.export("team/churn@1", tmp_path / "out")
    (signature,) = (tmp_path / "out" / "signatures").iterdir()
    verify = verifying.Config().use_elliptic_key_verifier(public_key=public).verify
    verify(tmp_path / "out", signature)
    (tmp_path / "out" / "weights").write_bytes(b"Weights")
    with pytest.raises(ValueError, match="weights"):
        verify(tmp_path / "out", signature)
