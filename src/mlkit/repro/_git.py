"""The whole working tree as one git tree id, with nothing touched: not the index, a ref, an object or a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from mlkit.repro._determinism import Finding

__all__ = ["Code", "code_of"]

_TIMEOUT = 60.0
_LARGEST_UNTRACKED = 256 * 2**20


class Code(NamedTuple):
    """The code of a run.

    `tree` is the id that `git write-tree` gives for the working tree, untracked files that are not ignored included.
    """

    tree: str | None
    commit: str | None
    clean: bool | None
    findings: tuple[Finding, ...]


class _GitError(Exception):
    """git is missing, refused, or took too long."""


def code_of(folder: Path) -> Code:
    """Return the state of the working tree that *folder* lies in; a finding says what could not be told."""
    try:
        return _capture(folder)
    except (_GitError, OSError) as error:
        # OSError: no place for temporary files, an index of somebody else.
        what = f"the code has no git tree id: {error}"
        return Code(None, None, None, (Finding("no-git", what, _fix(str(error))),))


def _fix(said: str) -> str:
    """Return what to do about what git said."""
    if "dubious ownership" in said:
        return "run as the owner of the folder, or trust it: git config --global --add safe.directory <folder>"
    if "not a git repository" in said or "not installed" in said or "work tree" in said:
        return "run where git is, from a git working tree, to have the code recorded"
    return "see what stops `git add --all --dry-run .` there, and that temporary files can be made"


def _capture(folder: Path) -> Code:
    from tempfile import TemporaryDirectory

    places = _git(folder, "rev-parse", "--show-toplevel", "--git-path", "index")
    # Not splitlines: it knows more ends of lines than a path.
    lines = places.removesuffix("\n").split("\n")
    if len(lines) != 2:
        raise _GitError("the path of the folder has a line break in it")
    top, index = (folder / line for line in lines)
    head = _git(top, "rev-parse", "HEAD^{commit}", "HEAD^{tree}", allow=(0, 128)).split()
    # Before the first commit git prints the question itself.
    commit, committed = head if len(head) == 2 and "HEAD^{tree}" not in head else (None, None)
    findings = _untracked_findings(top)
    with TemporaryDirectory(prefix="mlkit-git-") as scratch:
        private = Path(scratch)
        (private / "objects").mkdir()
        if index.exists():  # its file times spare git from reading what has not changed
            shutil.copy2(index, private / "index")
        environment = {
            "GIT_INDEX_FILE": str(private / "index"),
            "GIT_OBJECT_DIRECTORY": str(private / "objects"),
        }
        _unveil(top, private / "index", environment)
        scope = "--update" if findings else "--all"
        _git(top, "add", scope, "--", ".", environment=environment)
        # Not with the repository's objects as alternates: git would set the times of those it meets.
        tree = _git(top, "write-tree", "--missing-ok", environment=environment).strip()
        nested = _nested_findings(top, environment)
    return Code(tree, commit, tree == committed and not nested, (*findings, *nested))


def _unveil(top: Path, index: Path, environment: dict[str, str]) -> None:
    """Let the private index look at every file there is, those included that git was told to pass over."""
    if not index.exists():
        return
    # The folders of a sparse index are looked up among the repository's objects.
    if b"sdir" in index.read_bytes():
        _git(top, "update-index", "--force-write-index", environment={"GIT_INDEX_FILE": str(index)})
    # H is any file; a small letter says that it is assumed to be unchanged, S that a sparse checkout leaves it out.
    files = _git(top, "ls-files", "-v", "-z", environment=environment).split("\0")
    flagged = [(file[0], file[2:]) for file in files if file[:1] not in {"H", ""}]
    assumed = [name for tag, name in flagged if tag.islower()]
    here = [name for tag, name in flagged if tag in "Ss" and os.path.lexists(top / name)]
    for flag, names in (("--no-assume-unchanged", assumed), ("--no-skip-worktree", here)):
        if names:
            given = "\0".join(names)
            _git(top, "update-index", flag, "-z", "--stdin", environment=environment, given=given)


def _nested_findings(top: Path, environment: dict[str, str]) -> tuple[Finding, ...]:
    """Return a finding if a repository inside this one, which counts by its commit, holds something else than that."""
    changes = _git(top, "diff-files", "--ignore-submodules=none", "-z", environment=environment)
    fields = changes.split("\0")
    names = [
        name
        for state, name in zip(fields[::2], fields[1::2], strict=False)
        if state[:7] == ":160000"
    ]
    if not names:
        return ()
    what = f"{', '.join(names[:3])} {'holds' if len(names) == 1 else 'and more hold' if len(names) > 3 else 'hold'}"
    return (
        Finding(
            "nested-changes",
            f"{what} changes that are not part of the code's tree id, which names the commit of a submodule",
            "commit inside of it, and have it ignore what is no code",
        ),
    )


def _untracked_findings(top: Path) -> tuple[Finding, ...]:
    """Return a finding if the untracked files are too large to be read at each capture."""
    names = _git(top, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    size = 0
    for name in filter(None, names):
        try:
            size += (top / name).lstat().st_size
        except OSError:  # it vanished meanwhile
            continue
    if size <= _LARGEST_UNTRACKED:
        return ()
    what = f"the untracked files hold {size / 2**20:.0f} MiB and are not part of the code's tree id"
    fix = "name data in .gitignore and pass it as data="
    return (Finding("untracked-size", what, fix),)


def _git(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    allow: tuple[int, ...] = (0,),
    given: str = "",
) -> str:
    import subprocess

    program = shutil.which("git")
    if program is None:
        raise _GitError("git is not installed")
    # A hook or a wrapper may have set these for another repository or index.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_")
        or name.startswith(("GIT_CONFIG", "GIT_EXEC", "GIT_CEILING", "GIT_SSL"))
    }
    # No optional lock, no question to a user, no hook (one hears of index writes), no shared index beside the private
    # one, no compression of objects that are thrown away, no folder that a sparse checkout leaves out of the index or of
    # what may be added to it.
    settings = (
        "core.fsmonitor=false",
        f"core.hooksPath={os.devnull}",
        "core.splitIndex=false",
        "core.compression=0",
        "core.safecrlf=false",
        "core.sparseCheckout=false",
        "index.sparse=false",
    )
    options = [part for setting in settings for part in ("-c", setting)]
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program and our own arguments
            [program, *options, *arguments],
            cwd=folder,
            env={**inherited, **quiet, **(environment or {})},
            capture_output=True,
            input=os.fsencode(given),
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _GitError(f"git {arguments[0]} took longer than {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise _GitError(str(error)) from error
    if done.returncode not in allow:
        said = os.fsdecode(done.stderr).strip().splitlines()
        raise _GitError(said[0] if said else f"git {arguments[0]} exited with {done.returncode}")
    return os.fsdecode(done.stdout)
