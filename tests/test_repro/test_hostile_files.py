"""Folders that loop, hold what is no file, or change under the reader: one clear error, or an answer, and never a hang."""

from __future__ import annotations

import os
import shutil
import socket
import threading

import pytest

from mlkit.errors import FingerprintError
from mlkit.repro import Manifest, RngState, fingerprint, rng_state


@pytest.fixture(params=[False, True], ids=["read", "cached"])
def options(request, tmp_path_factory):
    return {"cache": tmp_path_factory.mktemp("cache") / "f.db"} if request.param else {}


def test_links_that_lead_round_are_not_followed(tmp_path, options):
    folder = tmp_path / "data"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "x").write_text("1")
    (folder / "a" / "b" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to("self")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    first = fingerprint(folder, **options)
    assert fingerprint(folder, **options) == first
    (folder / "two").unlink()
    (folder / "two").symlink_to("a")
    assert fingerprint(folder, **options) != first
    with pytest.raises(FingerprintError, match="self"):  # named by the caller, so followed
        fingerprint(folder / "self", **options)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkdir("data")  # noqa: PTH102 - as the others here
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("data/s")
        with pytest.raises(FingerprintError, match="neither a file, a folder nor a link"):
            fingerprint(tmp_path / "data", **options)
    os.unlink("data/s")  # noqa: PTH108
    os.mkfifo("data/p")
    for path in (tmp_path / "data", tmp_path / "data" / "p"):
        with pytest.raises(FingerprintError, match=r"data/p"):
            fingerprint(path, **options)


def test_files_that_come_and_go_give_an_answer_or_one_kind_of_error(tmp_path, options):
    folder, done = tmp_path / "data", threading.Event()
    folder.mkdir()

    def disturb():
        number = 0
        while not done.is_set():
            number += 1
            place = folder / f"d{number % 7}"
            place.mkdir(exist_ok=True)
            (place / f"{number % 5}").write_text("x" * (number % 900))
            if number % 3 == 0:
                shutil.rmtree(folder / f"d{number % 7}", ignore_errors=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    seen = set()
    try:
        for _ in range(150):
            try:
                seen.add(fingerprint(folder, **options))
            except FingerprintError as error:
                assert str(folder) in str(error)
    finally:
        done.set()
        thread.join()
    assert fingerprint(folder, **options) == fingerprint(folder)


def test_a_state_or_manifest_that_is_not_there_or_a_folder(tmp_path):
    for load in (RngState.load, Manifest.load):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.json")
        with pytest.raises(IsADirectoryError):
            load(tmp_path)
    before = list(tmp_path.iterdir())
    for name in ("none/state.json", "none/state.pt"):
        with pytest.raises(FileNotFoundError):
            rng_state().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == before
