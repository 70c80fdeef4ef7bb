"""A folder store keeps the laws of every store of versions."""

from pathlib import Path

from mlkit.models import ModelStore, VersionStore
from mlkit.testing import VersionStoreContract


class TestFolder(VersionStoreContract):
    def make_store(self, place: Path) -> VersionStore:
        return ModelStore(place / "store", who="ada")

    def damage(self, place: Path) -> None:
        for path in (place / "store" / "blobs").rglob("*"):
            if path.is_file() and not path.read_bytes().startswith(b'{"format"'):
                path.chmod(0o644)
                path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def test_it_is_one():
    assert isinstance(ModelStore("anywhere"), VersionStore)
