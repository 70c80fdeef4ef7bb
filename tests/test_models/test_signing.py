"""Who vouched for what: only the version that was signed, under the name and number it was signed as, passes."""

import base64
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mlkit.errors import (
    ConfigurationError,
    IntegrityError,
    MissingDependencyError,
    SignatureError,
    VersionNotFoundError,
)
from mlkit.models import ModelStore, signed_by
from mlkit.models._bundle import files_of, sign
from mlkit.models._signing import signer

PEM = (Encoding.PEM, PrivateFormat.PKCS8)


def ed25519():
    return Ed25519PrivateKey.generate()


KEYS = {
    "ed25519": ed25519,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
}


def fingerprint(key):
    from hashlib import sha256

    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return sha256(pem).hexdigest()


@pytest.fixture
def key():
    return ed25519()


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_signed_is_given_out_and_nothing_else(tmp_path, kind):
    key, other = KEYS[kind](), KEYS[kind]()
    store = ModelStore(tmp_path)
    store.save("m", b"one")
    store.sign("m@1", key)
    store.save("m", b"two", sign=key)
    store.save("m", b"three")
    need = signed_by(key.public_key())
    for ref, content in (("m@1", b"one"), ("m@2", b"two")):
        assert store.load(ref, require=need) == content
        assert store.get(ref, require=need).ref == ref
        assert store.promote("m", int(ref[2:]), require=need).version == int(ref[2:])
    for refused in (
        lambda: store.load("m@3", require=need),
        lambda: store.get("m@3", require=need),
        lambda: store.promote("m", 3, require=need),
        lambda: store.load("m@1", require=signed_by(other.public_key())),
    ):
        with pytest.raises(SignatureError):
            refused()
    assert store.aliases("m") == {"champion": 2}
    kinds = [change.kind for change in store.history("m")]
    assert kinds == ["saved", "signed", "saved", "signed", "saved", "promoted", "promoted"]


def test_either_and_both(tmp_path):
    a, b, c = ed25519(), ed25519(), ed25519()
    store = ModelStore(tmp_path)
    store.save("m", b"x", sign=a)
    pa, pb, pc = (key.public_key() for key in (a, b, c))
    assert store.load("m@1", require=signed_by(pb, pa)) == b"x"
    with pytest.raises(SignatureError) as caught:
        store.load("m@1", require=signed_by(pa) & signed_by(pb, pc))
    assert set(caught.value.required) == {fingerprint(b), fingerprint(c)}
    assert caught.value.found == (fingerprint(a),)
    store.sign("m@1", c)
    assert store.load("m@1", require=signed_by(pa) & signed_by(pb, pc)) == b"x"
    with pytest.raises(SignatureError):
        store.load("m@1", require=signed_by(pa) & signed_by(pb))


def test_a_store_asks_for_all_it_gives_out_and_nobody_can_ask_for_less(tmp_path, key):
    open_store = ModelStore(tmp_path)
    for content in (b"one", b"two", b"three"):
        open_store.save("m", content)
    open_store.sign("m@2", key)
    store = ModelStore(tmp_path, require=signed_by(key.public_key()))
    for refused in (
        lambda: store.load("m@1", require=None),
        lambda: store.get("m@1"),
        lambda: store.promote("m", 1),
        lambda: store.compare("m@1", "m@2"),
        lambda: store.compare("m@2", "m@1"),
        lambda: store.load("m@2", require=signed_by(ed25519().public_key())),
    ):
        with pytest.raises(SignatureError):
            refused()
    assert store.load("m@2") == b"two"
    open_store.promote("m", 1)
    open_store.promote("m", 2)
    with pytest.raises(SignatureError, match="m@1"):
        store.rollback("m")
    assert store.aliases("m") == {"champion": 2}
    copy = pickle.loads(pickle.dumps(store))
    with pytest.raises(SignatureError):
        copy.load("m@1")


def test_the_digest_and_the_version_stay_what_they_were(tmp_path, key):
    store = ModelStore(tmp_path)
    version = store.save("m", b"x", spec={"a": 1})
    store.sign(version, key)
    assert store.get("m@1") == version
    assert ModelStore(tmp_path / "other").save("m", b"x", spec={"a": 1}).digest == version.digest


def test_signing_again_is_not_signing_twice(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"x")
    first = store.sign("m@1", key, why="reviewed")
    assert store.sign("m@1", key) == first
    assert len(store.history("m")) == 2


# --- replay: the bytes of one signature where another is asked for ------------------------------------------------


def signatures(store, name):
    """Return the history's lines with their bundles, as somebody who writes to the folder sees them."""
    log = Path(store.path, "models", f"{name}.jsonl")
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


def rewrite(store, name, events):
    """Write a history whose sums are right: what somebody who may write to the folder can do."""
    from hashlib import sha256

    total, lines = sha256(name.encode()).hexdigest(), []
    for number, event in enumerate(events, 1):
        event = event | {"seq": number, "model": name}
        body = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
        total = sha256(total.encode() + body).hexdigest()
        lines.append(b'{"sum":"' + total.encode() + b'","event":' + body + b"}\n")
    Path(store.path, "models", f"{name}.jsonl").write_bytes(b"".join(lines))


def test_an_old_version_under_another_name_or_number_is_not_what_was_signed(tmp_path, key):
    store = ModelStore(tmp_path, require=signed_by(key.public_key()))
    store.save("m", b"old and bad", sign=key)
    store.save("m", b"new", sign=key)
    assert store.load("m@2") == b"new"
    saved_1, signed_1, saved_2, signed_2 = signatures(store, "m")
    for name, forged in (
        ("other", [saved_1, signed_1]),
        ("m", [saved_1, signed_1, saved_1 | {"version": 2}, signed_1 | {"version": 2}]),
        ("m", [saved_1, signed_1, saved_1 | {"version": 2}, signed_2]),
        ("m", [saved_1, signed_2 | {"version": 1}, saved_2, signed_1 | {"version": 2}]),
        ("m", [saved_1, signed_1, saved_2 | {"payload": saved_1["payload"]}, signed_2]),
        ("m", [saved_1, signed_1, saved_2 | {"metrics": {"accuracy": "0.99"}}, signed_2]),
        ("m", [saved_1, signed_1, saved_2 | {"tags": {"approved": "yes"}}, signed_2]),
        ("m", [saved_1, signed_1, saved_2]),
    ):
        rewrite(store, name, forged)
        number = max(event["version"] for event in forged)
        with pytest.raises(SignatureError):
            ModelStore(tmp_path, require=store._backing.policy.requirement).load(f"{name}@{number}")
    rewrite(store, "m", [saved_1, signed_1, saved_2, signed_2])
    assert ModelStore(tmp_path, require=signed_by(key.public_key())).load("m@2") == b"new"


def bundle_of(store):
    (path,) = [
        path
        for path in Path(store.path, "blobs").rglob("*/*/*")
        if b"dsseEnvelope" in path.read_bytes()
    ]
    return path


def put(store, name, content):
    """Let the history name other bytes as the signature of version 1."""
    from hashlib import sha256

    digest = sha256(content).hexdigest()
    path = Path(store.path, "blobs", "sha256", digest[:2], digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    saved, signed = signatures(store, name)
    rewrite(store, name, [saved, signed | {"bundle": f"sha256:{digest}"}])


def test_no_change_to_a_bundle_gets_through_and_none_is_an_accident(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"x", sign=key)
    good = bundle_of(store).read_bytes()
    parsed = json.loads(good)
    envelope = parsed["dsseEnvelope"]
    payload = json.loads(base64.b64decode(envelope["payload"]))

    def with_payload(**changes):
        content = base64.b64encode(json.dumps(payload | changes).encode()).decode()
        return json.dumps(parsed | {"dsseEnvelope": envelope | {"payload": content}}).encode()

    need = signed_by(key.public_key())
    bad = [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 50_000,
        b"\xff\xfe",
        json.dumps(parsed | {"dsseEnvelope": envelope | {"signatures": []}}).encode(),
        json.dumps(
            parsed | {"dsseEnvelope": envelope | {"signatures": [{"sig": "", "keyid": ""}]}}
        ).encode(),
        json.dumps(parsed | {"dsseEnvelope": envelope | {"payloadType": "text/plain"}}).encode(),
        json.dumps(parsed | {"mediaType": "application/json"}).encode(),
        with_payload(),  # other bytes that say the same are not what was signed
        with_payload(subject=[{"name": "m@2", "digest": {}}]),
        with_payload(predicateType="https://example.org/other"),
    ]
    for content in bad:
        put(store, "m", content)
        with pytest.raises(SignatureError) as caught:
            ModelStore(tmp_path).load("m@1", require=need)
        assert len(str(caught.value)) <= 600
    put(store, "m", json.dumps(parsed, indent=2).encode())  # what is around the payload may differ
    assert ModelStore(tmp_path).load("m@1", require=need) == b"x"


def test_the_name_that_was_signed_counts_even_if_the_files_are_the_same(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"x", sign=key)
    facts = store._backing.catalog.state("m").facts(1)
    files = files_of("m", 1, facts)
    for ref, passes in (("m@1", True), ("m@2", False), ("n@1", False), ("", False)):
        put(store, "m", sign(ref, files, signer("test", key)))
        if passes:
            assert ModelStore(tmp_path).get("m@1", require=signed_by(key.public_key()))
        else:
            with pytest.raises(SignatureError):
                ModelStore(tmp_path).get("m@1", require=signed_by(key.public_key()))


def test_a_damaged_bundle_is_damage_and_named(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"x", sign=key)
    path = bundle_of(store)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-3] + b"!" + content[-2:])
    with pytest.raises(IntegrityError) as caught:
        store.load("m@1", require=signed_by(key.public_key()))
    assert caught.value.path == str(path)
    assert store.load("m@1") == b"x", "who asks for no signature reads none"


def test_signing_reads_every_byte_first(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"weights" * 1000)
    path = max(Path(store.path, "blobs").rglob("*/*/*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(b"W" + path.read_bytes()[1:])
    with pytest.raises(IntegrityError):
        store.sign("m@1", key)
    assert [change.kind for change in store.history("m")] == ["saved"]


def test_deleting_a_version_deletes_its_signatures(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"x", sign=key)
    store.save("m", b"y", sign=key)
    store.delete("m", 1)
    assert len(list(Path(store.path, "blobs").rglob("*/*/*"))) == 3
    with pytest.raises(VersionNotFoundError):
        store.load("m@1", require=signed_by(key.public_key()))


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_come_from_files_bytes_and_objects(tmp_path, key):
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(*PEM, NoEncryption())
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "private.pem").write_bytes(private)
    store = ModelStore(tmp_path / "s")
    forms = [tmp_path / "private.pem", str(tmp_path / "private.pem"), private, private.decode()]
    for number, form in enumerate(forms, 1):
        store.save("m", b"x", sign=form)
        for need in (tmp_path / "public.pem", str(tmp_path / "public.pem"), public):
            assert store.load(f"m@{number}", require=signed_by(need)) == b"x"


def test_what_is_no_key_is_refused_early_and_never_shown(tmp_path, key):
    store = ModelStore(tmp_path / "s")
    private = key.private_bytes(*PEM, NoEncryption())
    sealed = key.private_bytes(*PEM, BestAvailableEncryption(b"password"))
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    other_curve = ec.generate_private_key(ec.SECP256K1())
    secret = private.decode().splitlines()[1]
    for wrong in (sealed, weak, other_curve, b"", b"no pem", tmp_path / "none.pem", 7, secret):
        with pytest.raises(
            ConfigurationError, match=r"save\(sign=\.\.\.\).*private key|PEM file"
        ) as caught:
            store.save("m", b"x", sign=wrong)
        assert secret not in str(caught.value)
    assert store.names() == []
    for wrong in (private, weak.public_key(), other_curve.public_key(), None, key, secret):
        with pytest.raises(ConfigurationError, match="signed_by") as caught:
            signed_by(wrong)
        assert secret not in str(caught.value)
    with pytest.raises(ConfigurationError, match="at least one"):
        signed_by()
    for call in (
        lambda: ModelStore(tmp_path, require="key.pem"),
        lambda: store.load("m@1", require=key.public_key()),
    ):
        with pytest.raises(ConfigurationError, match="signed_by"):
            call()


def test_nothing_of_a_private_key_is_left_behind(tmp_path, key):
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    pem = key.private_bytes(*PEM, NoEncryption())
    store = ModelStore(tmp_path, require=signed_by(key.public_key()))
    version = store.save("m", b"x", sign=pem)
    store.sign(version, pem)
    texts = [
        repr(store),
        repr(version),
        repr(store.history("m")),
        repr(store._backing.policy.requirement),
    ]
    with pytest.raises(SignatureError) as caught:
        store.load(version, require=signed_by(ed25519().public_key()))
    texts += [str(caught.value), repr(caught.value.__dict__)]
    everything = [text.encode() for text in texts]
    everything += [pickle.dumps(store), pickle.dumps(version), pickle.dumps(caught.value)]
    everything += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    secrets = (raw, raw.hex().encode(), base64.b64encode(raw), pem.splitlines()[1])
    assert not [secret for secret in secrets for text in everything if secret in text]
    assert fingerprint(key)[:12] in str(caught.value), "and yet one sees whose signature there is"


def test_the_digest_covers_each_part(tmp_path):
    store = ModelStore(tmp_path)
    whole = {"spec": {"a": 1}, "signature": {"b": 2}, "manifest": {"c": 3}}
    changed = [whole | {part: {"d": 4}} for part in whole] + [
        whole | {part: None} for part in whole
    ]
    digests = {store.save("m", b"x", **parts).digest for parts in (whole, *changed)}
    digests.add(store.save("m", b"y", **whole).digest)
    assert len(digests) == 8
    assert store.save("n", b"x", metrics={"m": 1}, run="r", **whole).digest in digests


def test_a_copied_folder_is_the_same_store(tmp_path, key):
    ModelStore(tmp_path / "a").save("m", b"x", sign=key)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert ModelStore(tmp_path / "b", require=signed_by(key.public_key())).load("m@1") == b"x"


def test_without_cryptography_one_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    store = ModelStore(tmp_path)
    store.save("m", b"x")

    class Keys:
        def current(self):
            return "a", bytes(32)

        def key(self, key_id):
            return bytes(32)

    for call in (
        lambda: signed_by("public.pem"),
        lambda: store.sign("m@1", "private.pem"),
        lambda: store.save("m", b"x", sign="private.pem"),
        lambda: ModelStore(tmp_path, keys=Keys()),
    ):
        with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[signing\]"):
            call()
    assert store.load("m@1") == b"x"


def test_a_key_file_that_is_not_there_is_named_and_a_key_is_not_shown(tmp_path):
    secret = "MC4CAQAwBQYDK2VwBCIEIO" * 4  # a key without its first line, taken for a path
    for wrong, shown in ((tmp_path / "team.pem", "team.pem"), ("keys/team.pem", "keys/team.pem")):
        with pytest.raises(ConfigurationError, match=shown):
            signed_by(wrong)
    with pytest.raises(ConfigurationError) as caught:
        ModelStore(tmp_path).save("m", b"", sign=secret)
    assert secret[:9] not in str(caught.value)


def test_verify_says_that_it_is_the_signature(tmp_path, key):
    store = ModelStore(tmp_path)
    store.save("m", b"")
    (broken,) = store.verify(require=signed_by(key.public_key())).broken
    assert (broken.ref, broken.file) == ("m@1", "signatures")
