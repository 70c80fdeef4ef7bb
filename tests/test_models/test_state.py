"""Any sequence of calls does what a plain dictionary would do."""

import shutil
import tempfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlkit.errors import (
    AliasConflictError,
    SignatureError,
    VersionInUseError,
    VersionNotFoundError,
)
from mlkit.models import ModelStore, signed_by

NAMES = st.sampled_from(["churn", "a/b"])
ALIASES = st.sampled_from(["champion", "challenger"])
NUMBERS = st.integers(1, 6)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
NEED = signed_by(KEY.public_key())


class Stores(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.store = ModelStore(self.root)
        self.saved = {}  # name -> number -> content, None once deleted
        self.held = {}  # (name, alias) -> holders, the present one last
        self.kinds = {}  # name -> what happened
        self.signed = set()

    def teardown(self):
        shutil.rmtree(self.root)

    def live(self, name, number):
        return self.saved.get(name, {}).get(number) is not None

    @rule(name=NAMES, content=st.sampled_from([b"", b"x", b"yy"]))
    def save(self, name, content):
        version = self.store.save(name, content)
        versions = self.saved.setdefault(name, {})
        assert version.number == len(versions) + 1
        versions[version.number] = content
        self.kinds.setdefault(name, []).append("saved")

    @rule(name=NAMES, number=NUMBERS, alias=ALIASES, expect=st.just(...) | st.none() | NUMBERS)
    def promote(self, name, number, alias, expect):
        held = self.held.setdefault((name, alias), [])
        holder = held[-1] if held else None
        if not self.live(name, number):
            with pytest.raises(VersionNotFoundError):
                self.store.promote(name, number, to=alias, expect=expect)
        elif expect not in (..., holder):
            with pytest.raises(AliasConflictError):
                self.store.promote(name, number, to=alias, expect=expect)
        else:
            assert self.store.promote(name, number, to=alias, expect=expect).version == number
            if holder != number:
                held.append(number)
                self.kinds[name].append("promoted")

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name, alias):
        held = self.held.get((name, alias), [])
        if len(held) < 2:
            with pytest.raises(VersionNotFoundError):
                self.store.rollback(name, alias)
        else:
            change = self.store.rollback(name, alias)
            assert change.previous == held.pop()
            assert change.version == held[-1]
            self.kinds[name].append("rolled_back")

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name, alias):
        held = self.held.get((name, alias), [])
        if not held:
            with pytest.raises(VersionNotFoundError):
                self.store.remove_alias(name, alias)
        else:
            change = self.store.remove_alias(name, alias)
            assert (change.version, change.previous, change.alias) == (held[-1], held[-1], alias)
            held.clear()
            self.kinds[name].append("alias_removed")

    @rule(name=NAMES, number=NUMBERS)
    def sign(self, name, number):
        if not self.live(name, number):
            with pytest.raises(VersionNotFoundError):
                self.store.sign(f"{name}@{number}", KEY)
        else:
            self.store.sign(f"{name}@{number}", KEY)
            if (name, number) not in self.signed:
                self.signed.add((name, number))
                self.kinds[name].append("signed")

    @rule(name=NAMES, number=NUMBERS)
    def travel(self, name, number):
        if not self.live(name, number):
            return
        with tempfile.TemporaryDirectory() as path:
            self.store.export(f"{name}@{number}", path + "/package.tar")
            self.store.import_(path + "/package.tar")  # it is here already
            other = ModelStore(path + "/other")
            came = self.store.copy(f"{name}@{number}", other)
            assert came.number == number
            assert other.load(came) == self.saved[name][number]
            assert (len(other.history(name)) == 2) == ((name, number) in self.signed)

    @rule()
    def collect(self):
        assert self.store.collect_garbage(older_than=0) == ((), 0), "there is never any left"

    @rule(name=NAMES, number=NUMBERS)
    def delete(self, name, number):
        if not self.live(name, number):
            with pytest.raises(VersionNotFoundError):
                self.store.delete(name, number)
        elif any(held and held[-1] == number for (n, _), held in self.held.items() if n == name):
            with pytest.raises(VersionInUseError):
                self.store.delete(name, number)
        else:
            self.store.delete(name, number)
            self.saved[name][number] = None
            self.kinds[name].append("deleted")
            for (n, _), held in self.held.items():
                if n == name:
                    kept = [h for h in held if h != number]
                    held[:] = [h for i, h in enumerate(kept) if i == 0 or kept[i - 1] != h]

    @rule()
    def reopen(self):
        self.store = ModelStore(self.root)

    @invariant()
    def same(self):
        assert self.store.names() == sorted(self.saved)
        for name, versions in self.saved.items():
            live = {number: content for number, content in versions.items() if content is not None}
            assert [v.number for v in self.store.versions(name)] == list(live)
            assert {n: self.store.load(f"{name}@{n}") for n in live} == live
            now = {alias: held[-1] for (n, alias), held in self.held.items() if n == name and held}
            assert self.store.aliases(name) == now
            assert [change.kind for change in self.store.history(name)] == self.kinds[name]
            for number in live:
                if (name, number) in self.signed:
                    assert self.store.get(f"{name}@{number}", require=NEED).number == number
                else:
                    with pytest.raises(SignatureError):
                        self.store.get(f"{name}@{number}", require=NEED)


Stores.TestCase.settings = settings(max_examples=15, stateful_step_count=20)
TestStores = Stores.TestCase
