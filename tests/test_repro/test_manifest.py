"""What a run was made of: equal for equal things, silent about secrets, touching nothing, telling what changed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, FingerprintError, ManifestError
from mlkit.repro import Manifest, Seeds, fingerprint
from mlkit.testing import record_events, virtual_time
from mlkit.testing.strategies import json_values


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = (
        tmp_path / "work tree: 1"
    )  # a space and a colon, which git's lists of paths are separated by
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def everything(folder):
    """Return every file with its bytes and time."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def tree(folder):
    return Manifest.capture(code=folder).to_dict()["identity"]["code"].get("tree")


def test_a_clean_tree_has_the_commits_tree(repository):
    manifest = Manifest.capture(code=repository)
    data = manifest.to_dict()
    assert data["identity"]["code"] == {"tree": git(repository, "rev-parse", "HEAD^{tree}")}
    assert data["facts"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert data["facts"]["clean"] is True
    assert manifest.findings == ()


def test_capture_touches_nothing(repository):
    (repository / "new.py").write_text("untracked")
    (repository / "train.py").write_text("changed")
    (repository / "staged.py").write_text("staged")
    git(repository, "add", "staged.py")
    status = git(repository, "status", "--porcelain")  # itself refreshes the index
    before = everything(repository)
    assert tree(repository)
    assert everything(repository) == before
    assert git(repository, "status", "--porcelain") == status


def test_the_tree_is_what_a_commit_of_everything_would_have(repository):
    first = tree(repository)
    (repository / "new.py").write_text("untracked")
    with_new = tree(repository)
    (repository / "new.py").write_text("untrackeD")
    changed = tree(repository)
    (repository / "train.py").unlink()
    without = tree(repository)
    assert len({first, with_new, changed, without}) == 4
    (repository / "ignored").mkdir()
    (repository / "ignored" / "x").write_text("not code")
    assert tree(repository) == without
    (repository / "sub").mkdir()
    assert tree(repository / "sub") == without  # from any folder in it, the whole tree
    git(repository, "add", "--all")
    git(repository, "commit", "-qm", "second")
    assert git(repository, "rev-parse", "HEAD^{tree}") == without


def test_a_repository_without_a_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    data = Manifest.capture(code=tmp_path).to_dict()
    assert data["identity"]["code"]["tree"]
    assert data["facts"]["commit"] is None
    assert data["facts"]["clean"] is False


def test_a_linked_worktree(repository, tmp_path):
    git(repository, "worktree", "add", "-q", str(tmp_path / "linked"))
    assert tree(tmp_path / "linked") == tree(repository)
    (tmp_path / "linked" / "more.py").write_text("1")
    assert tree(tmp_path / "linked") != tree(repository)


def test_git_variables_of_a_hook_are_not_followed(repository, monkeypatch, tmp_path):
    expected = tree(repository)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert tree(repository) == expected


def test_outside_of_git_it_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    manifest = Manifest.capture(code=tmp_path)
    assert [finding.code for finding in manifest.findings] == ["no-git"]
    assert "tree" not in manifest.to_dict()["identity"]["code"]
    assert manifest == Manifest.capture(code=tmp_path)


def test_without_git_it_is_a_finding(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = Manifest.capture(code=repository).findings
    assert "git is not installed" in finding.what


def test_large_untracked_data_are_not_read(repository):
    with (repository / "big.bin").open("wb") as file:
        file.truncate(300 * 2**20)
    clean = git(repository, "rev-parse", "HEAD^{tree}")
    manifest = Manifest.capture(code=repository)
    assert [finding.code for finding in manifest.findings] == ["untracked-size"]
    assert manifest.to_dict()["identity"]["code"]["tree"] == clean


def test_time_process_and_command_are_not_part_of_the_identity(repository, monkeypatch):
    options = {
        "seeds": Seeds(7) / "run",
        "params": {"lr": 0.1},
        "data": {"x": np.arange(3)},
        "code": repository,
    }
    first = Manifest.capture(**options)
    with virtual_time(), monkeypatch.context() as patched:
        patched.setattr(sys, "orig_argv", ["python", "other.py", "--fast"])
        patched.setenv("UNRELATED", "1")
        git(repository, "commit", "-q", "--allow-empty", "-m", "nothing new")
        second = Manifest.capture(**options)
    assert first.to_dict()["facts"] != second.to_dict()["facts"]
    assert first.to_dict(facts=False) == second.to_dict(facts=False)
    assert Manifest.from_dict(first.to_dict(facts=False)) == second
    assert first.digest == second.digest
    assert first == second
    assert hash(first) == hash(second)
    assert first.diff(second) == ()
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    third = Manifest.capture(**options)
    assert [str(change) for change in first.diff(third)] == [
        "variables.OMP_NUM_THREADS changed from 1 to 77"
    ]


def test_another_process_has_the_same_identity(repository):
    code = (
        "from mlkit.repro import Manifest; import sys\n"
        "print(Manifest.capture(seeds=7, params={'b': 1, 'a': {'x': 0.5}}, code=sys.argv[1]).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(repository), flag],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flag in ("--one", "--two")
    }
    assert len(digests) == 1


@given(
    st.dictionaries(
        st.text(max_size=6),
        json_values() | st.floats() | st.binary(max_size=3) | st.dates(),
        max_size=4,
    )
)
@settings(max_examples=25)
def test_it_is_the_same_after_a_file(tmp_path_factory, params):
    folder = tmp_path_factory.getbasetemp()
    manifest = Manifest({**BLANK, "params": plain(params)}, FACTS)
    manifest.save(folder / "manifest.json")
    loaded = Manifest.load(folder / "manifest.json")
    assert loaded == manifest
    assert loaded.to_dict() == manifest.to_dict()
    assert loaded.diff(manifest) == ()
    assert pickle.loads(pickle.dumps(manifest)) == manifest


BLANK = {
    "code": {},
    "data": {},
    "spec": None,
    "params": {},
    "seeds": None,
    "packages": {},
    "environment": {},
}
FACTS = {"findings": [], "paths": {}}


def plain(params):
    from mlkit.repro._given import plain_params

    return plain_params(params)


@given(
    st.dictionaries(st.text(max_size=3), json_values(max_leaves=5), max_size=3),
    st.dictionaries(st.text(max_size=3), json_values(max_leaves=5), max_size=3),
)
@settings(max_examples=60)
def test_the_difference_is_empty_if_and_only_if_the_digests_are_equal(first, second):
    one, other = (Manifest({**BLANK, "params": plain(params)}, FACTS) for params in (first, second))
    assert (one.diff(other) == ()) is (one.digest == other.digest)
    assert len(one.diff(other)) == len(other.diff(one))
    assert one.diff(one) == ()


def test_the_difference_reads_like_prose(repository):
    first = Manifest.capture(
        seeds=7,
        params={"lr": 0.1, "old": None},
        data={"x": b"1"},
        spec={"depth": 2},
        code=repository,
    )
    (repository / "train.py").write_text("print(2)\n")
    second = Manifest.capture(
        seeds=8,
        params={"lr": 0.2, "new": [1]},
        data={"x": b"2"},
        spec={"depth": 3},
        code=repository,
    )
    said = [str(change) for change in first.diff(second)]
    assert said[0].startswith("code tree changed from ")
    assert said[1].startswith("data x changed from ")
    assert said[2:] == [
        "spec depth changed from 2 to 3",
        "param lr changed from 0.1 to 0.2",
        "param new is new: [1]",
        "param old is gone; it was None",
        "seeds root changed from 0x7 to 0x8",
    ]
    with pytest.raises(ConfigurationError, match="diff"):
        first.diff(3)


def test_what_differs_where_it_is_not_shown_is_not_said_to_be_the_same():
    one = Manifest({**BLANK, "params": {"layers": [*range(99)]}}, FACTS)
    other = Manifest({**BLANK, "params": {"layers": [*range(50), 0, *range(51, 99)]}}, FACTS)
    (change,) = one.diff(other)
    assert str(change).startswith("param layers changed in the middle of [0, 1, 2")
    assert (change.before[50], change.after[50]) == (50, 0)


def test_secrets_stay_out(repository, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("MY_OWN_SETTING", "hunter3")
    command = ["train.py", "--api-key", "hunter4", "--token=hunter5", "--lr", "0.1", "DB_PASSWORD=hunter6",
               "https://user:hunter7@host/x", "--tokenizer", "bpe", "--max-tokens=9", "--auth", "--verbose"]  # fmt: skip
    monkeypatch.setattr(sys, "orig_argv", ["python", *command])
    manifest = Manifest.capture(code=repository)
    text = json.dumps(manifest.to_dict())
    assert "hunter" not in text
    assert "MY_OWN_SETTING" not in text
    shown = manifest.to_dict()["facts"]["command"][1:]
    assert shown == ["train.py", "--api-key", "<hidden>", "--token=<hidden>", "--lr", "0.1", "DB_PASSWORD=<hidden>",
                     "https://<hidden>@host/x", "--tokenizer", "bpe", "--max-tokens=9", "--auth", "--verbose"]  # fmt: skip


def test_what_torch_computes_with_is_recorded(repository):
    torch = pytest.importorskip("torch")
    matmul = torch.backends.cuda.matmul

    def switches():
        return Manifest.capture(code=repository).to_dict()["identity"]["environment"]["torch"]

    first = switches()
    assert f"BLAS_INFO={first['blas']}" in torch.__config__.show()
    assert first["devices"] == []
    before = matmul.fp32_precision, matmul.allow_fp16_reduced_precision_reduction
    try:
        matmul.allow_fp16_reduced_precision_reduction = not before[1]
        assert switches()["reduced_fp16_sums"] is not before[1]
        matmul.fp32_precision = "tf32"  # now torch refuses to tell the precision by its older name
        second = switches()
        assert (second["fp32_matmul"], second["matmul_precision"]) == ("tf32", "unknown")
    finally:
        matmul.fp32_precision, matmul.allow_fp16_reduced_precision_reduction = before
    assert switches() == first


def test_what_is_recorded(repository):
    manifest = Manifest.capture(seeds=Seeds(7) / "run" / 3, code=repository)
    data = manifest.to_dict()
    identity = data["identity"]
    assert data["schema"] == "mlkit.manifest/1"
    assert identity["seeds"] == {"root": "0x7", "path": ["run", 3]}
    assert identity["environment"]["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert identity["environment"]["platform"]["blas"] == f"{blas['name']} {blas['version']}"
    assert identity["packages"]["numpy"] == np.__version__
    assert identity["packages"]["mlkit-blocks"]
    assert "manifest" in repr(manifest).lower()
    data["identity"].clear()
    assert manifest.to_dict()["identity"] == identity or manifest.to_dict()["identity"]


def test_the_packages_are_those_that_importlib_finds():
    from importlib.metadata import distributions

    recorded = Manifest.capture().to_dict()["identity"]["packages"]
    expected: dict[str, str] = {}
    for found in distributions():
        expected.setdefault(
            found.metadata["Name"].lower().replace("_", "-").replace(".", "-"), found.version
        )
    assert recorded == expected


def test_data_by_path_by_value_and_by_fingerprint(tmp_path, repository):
    (tmp_path / "rows.csv").write_text("1,2\n")
    made, quick = fingerprint(np.arange(4)), fingerprint(np.arange(4), algorithm="blake3")
    given = {"file": tmp_path / "rows.csv", "array": np.arange(4), "made": made, "quick": quick}
    manifest = Manifest.capture(data=given, code=repository)
    data = manifest.to_dict()["identity"]["data"]
    assert data["array"] == data["made"] == made
    assert data["quick"] == quick
    assert data["file"] == fingerprint(tmp_path / "rows.csv")


def test_specs_are_plain_data_or_say_so(repository):
    class Spec:
        def to_dict(self):
            return {"type": "net", "depth": 2}

    first = Manifest.capture(spec=Spec(), code=repository)
    assert first == Manifest.capture(spec={"depth": 2, "type": "net"}, code=repository)


def test_verify_finds_what_changed(repository, tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("1,2\n")
    manifest = Manifest.capture(seeds=7, data={"rows": rows, "held": b"x"}, code=repository)
    manifest.save(tmp_path / "m.json")
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest.verify(code=repository) == ()
    rows.write_text("1,3\n")
    (repository / "train.py").write_text("changed")
    assert [(change.section, change.name) for change in manifest.verify(code=repository)] == [
        ("code", "tree"),
        ("data", "rows"),
    ]
    assert [change.name for change in manifest.verify(code=repository, data={"held": b"y"})] == [
        "tree",
        "held",
        "rows",
    ]
    rows.unlink()
    assert [change.kind for change in manifest.verify(code=repository)] == ["changed", "removed"]
    with pytest.raises(ConfigurationError, match="other"):
        manifest.verify(data={"other": 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(schema="mlkit.manifest/2"), "newer"),
        (lambda data: data.update(schema="other/1"), "schema"),
        (lambda data: data.pop("schema"), "schema"),
        (lambda data: data["identity"]["params"].update(lr=9), "changed"),
        (lambda data: data.update(digest="sha256:00"), "changed"),
        (lambda data: data["identity"].pop("seeds"), "sections"),
        (lambda data: data.update(facts=None), "facts"),
        (lambda data: data["facts"].update(findings=[1]), "facts"),
        (lambda data: data["facts"].update(paths={"a": 1}), "facts"),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, change, said):
    path = tmp_path / "m.json"
    data = Manifest({**BLANK, "params": {"lr": 1}}, FACTS).to_dict()
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=said) as caught:
        Manifest.load(path)
    assert "m.json" in str(caught.value)


def test_files_that_are_no_json(tmp_path):
    path = tmp_path / "m.json"
    for content in (b"", b"{", b"\xff\xfe", b"3", b"null"):
        path.write_bytes(content)
        with pytest.raises(ManifestError):
            Manifest.load(path)
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seeds": "7"}, ConfigurationError, "seeds"),
        ({"seeds": True}, ConfigurationError, "seeds"),
        ({"params": [1]}, ConfigurationError, "params"),
        ({"params": {1: 2}}, ConfigurationError, "params"),
        ({"params": {"x": object()}}, ManifestError, "params"),
        ({"spec": object()}, ManifestError, "spec"),
        ({"data": {"x": "rows.csv"}}, ConfigurationError, "Path"),
        ({"data": [1]}, ConfigurationError, "data"),
        ({"data": {"x": object()}}, FingerprintError, "fingerprint"),
        ({"data": {"x": Path("none")}}, FingerprintError, "none"),
        ({"code": "no/such/folder"}, ConfigurationError, "code"),
        ({"code": 3}, ConfigurationError, "code"),
    ],
    ids=range(12),
)
def test_wrong_arguments(options, error, said):
    with pytest.raises(error, match=said):
        Manifest.capture(**options)


def test_it_cannot_be_changed_and_is_announced(repository):
    with record_events("repro.") as events:
        manifest = Manifest.capture(code=repository)
    assert [event.kind for event in events] == ["repro.manifest.captured"]
    with pytest.raises(AttributeError, match="immutable"):
        manifest.digest = "x"


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    Manifest(BLANK, FACTS).save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Manifest({**BLANK, "params": {"a": 1}}, FACTS).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.json"]


def found(folder):
    (finding,) = Manifest.capture(code=folder).findings
    return finding


def test_no_hook_runs(repository, tmp_path):
    hook = repository / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    (repository / "new.py").write_text("2")
    assert tree(repository)
    assert not (tmp_path / "ran").exists()


def test_a_split_index_stays_as_it_is(repository):
    git(repository, "update-index", "--split-index")
    git(repository, "config", "core.splitIndex", "true")
    (repository / "new.py").write_text("2")
    before = {name: content for name, (_, content) in everything(repository).items()}
    assert tree(repository)
    # Git refreshes the time of the shared file that it reads, and nothing else changes.
    assert {name: content for name, (_, content) in everything(repository).items()} == before


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_what_git_was_told_to_pass_over_is_code_all_the_same(repository, flag):
    """As people do with a config of their own; Git calls such a tree clean."""
    git(repository, "update-index", flag, "train.py")
    assert tree(repository) == git(repository, "rev-parse", "HEAD^{tree}")
    (repository / "train.py").write_text("print(2)\n")
    before = everything(repository)
    manifest = Manifest.capture(code=repository)
    assert everything(repository) == before
    assert manifest.to_dict()["facts"]["clean"] is False
    git(repository, "update-index", f"--no-{flag[2:]}", "train.py")
    git(repository, "commit", "-qam", "second")
    assert tree(repository) == git(repository, "rev-parse", "HEAD^{tree}")
    assert manifest.to_dict()["identity"]["code"]["tree"] == tree(repository)


@pytest.mark.parametrize("sparse_index", ["--sparse-index", "--no-sparse-index"])
def test_a_sparse_checkout_has_the_whole_tree(repository, sparse_index):
    for folder in ("here", "elsewhere"):
        (repository / folder).mkdir()
        (repository / folder / "a.py").write_text(folder)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "folders")
    git(repository, "sparse-checkout", "init", "--cone", sparse_index)
    git(repository, "sparse-checkout", "set", "here")
    assert not (repository / "elsewhere").exists()
    before = {name: content for name, (_, content) in everything(repository).items()}
    assert tree(repository) == git(repository, "rev-parse", "HEAD^{tree}")
    # Git refreshes the times of the trees that it opens a sparse index with, and nothing else changes.
    assert {name: content for name, (_, content) in everything(repository).items()} == before
    (repository / "elsewhere").mkdir()
    (repository / "elsewhere" / "new.py").write_text("2")  # outside of what is checked out
    found = Manifest.capture(code=repository)
    assert found.findings == ()
    git(repository, "add", "--sparse", ".")
    git(repository, "commit", "-qm", "all")
    assert found.to_dict()["identity"]["code"]["tree"] == tree(repository)


@pytest.mark.parametrize("registered", [True, False])
def test_changes_inside_a_nested_repository_are_a_finding(repository, registered):
    inner = repository / "lib"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "a.py").write_text("1")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "first")
    if registered:
        git(repository, "-c", "advice.addEmbeddedRepo=false", "add", "lib")
        git(repository, "commit", "-qm", "nested")
    clean = Manifest.capture(code=repository)
    assert clean.findings == ()
    assert clean.to_dict()["facts"]["clean"] is registered
    (inner / "a.py").write_text("2")
    finding = found(repository)
    assert finding.code == "nested-changes"
    assert finding.what.startswith("lib holds changes")
    assert Manifest.capture(code=repository).to_dict()["facts"]["clean"] is False


def test_what_git_refuses_is_a_finding_with_its_own_way_out(repository, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        assert "temporary files" in found(repository).fix
    (repository / "empty").mkdir()
    git(repository / "empty", "init", "-q")
    assert "does not have a commit" in found(repository).what
    assert "git add --all --dry-run" in found(repository).fix


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a second user")
def test_the_repository_of_another_user_is_a_finding(repository):
    os.chown(repository, 1234, 1234)
    os.chown(repository / ".git", 1234, 1234)
    assert "dubious ownership" in found(repository).what
    assert "safe.directory" in found(repository).fix


@pytest.mark.parametrize("name", ["a\u2028b", "a\x0bb", "a\nb"])
def test_odd_names_of_folders(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("1")
    if "\n" in name:
        assert "line break" in found(folder).what
    else:
        assert tree(folder)


def test_a_command_line_of_any_bytes_is_saved(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "orig_argv", ["python", os.fsdecode(b"tr\xffin.py")])
    monkeypatch.setattr(sys, "executable", None)  # as where Python is embedded
    manifest = Manifest.capture(code=repository)
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json").to_dict() == manifest.to_dict()


def test_a_saved_manifest_has_the_permissions_of_any_file(repository, tmp_path):
    Manifest.capture(code=repository).save(tmp_path / "manifest.json")
    (tmp_path / "other").write_text("")
    modes = {(tmp_path / name).stat().st_mode for name in ("manifest.json", "other")}
    assert len(modes) == 1
