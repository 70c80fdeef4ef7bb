"""Switch to deterministic algorithms and back, and say what threatens reproducibility in this process now."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.errors import ConfigurationError
from mlkit.repro._generators import loaded_torch
from mlkit.repro._mersenne import WORDS
from mlkit.repro._torch_mersenne import FIRST

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Finding", "audit", "deterministic", "make_deterministic"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")  # the two that NVIDIA documents as deterministic
# Libraries that draw from generators of their own, which no global seed reaches, and how they are seeded.
_OWN_GENERATORS = {
    "albumentations": "pass seed= to Compose",
    "imgaug": "call imgaug.random.seed",
    "jax": "pass keys made from (seeds / name).int()",
    "monai": "call set_random_state on each transform",
    "tensorflow": "call tensorflow.random.set_seed",
    "cupy": "call cupy.random.seed",
}


class Finding(NamedTuple):
    """Something that can make two runs differ, or that could not be recorded.

    Attributes:
        code: A stable name for it, `"hash-seed"`.
        what: What is the case.
        fix: What to do about it.
    """

    code: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.what}; {self.fix}"


@final
class deterministic:  # noqa: N801 - reads as the statement it is: `with deterministic():`
    """Use deterministic algorithms inside the block, and put every switch back as it was on any exit.

    Entering gives the findings: what could not be switched now, and what to do about it. torch is switched only if it
    is imported already: `use_deterministic_algorithms`, `cudnn.deterministic`, `cudnn.benchmark`, and
    `CUBLAS_WORKSPACE_CONFIG` where CUDA is built in and not started yet. The switches are global to the process and
    its threads. The same bits on another number of threads are not promised: see `check(fn, vary=["threads"])`.
    Meanwhile torch also fills memory that it allocates (`torch.empty`), which takes time; to go without, set
    `torch.utils.deterministic.fill_uninitialized_memory = False`.

    Args:
        warn_only: Let an operation that has no deterministic form run with torch's warning instead of its error.

    Raises:
        ConfigurationError: If *warn_only* is not a bool.

    Examples:
        >>> with deterministic() as findings:
        ...     codes = [finding.code for finding in findings]
    """

    __slots__ = ("_before", "_warn_only")

    def __init__(self, *, warn_only: bool = False) -> None:
        if not isinstance(warn_only, bool):
            raise ConfigurationError("deterministic(warn_only=...)", warn_only, "True or False")
        self._warn_only = warn_only
        self._before: list[_Switches] = []

    def __enter__(self) -> tuple[Finding, ...]:
        before = _read()
        try:
            findings = make_deterministic(warn_only=self._warn_only)
        except BaseException:
            before.restore()
            raise
        self._before.append(before)
        return findings

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._before.pop().restore()


def audit() -> list[Finding]:
    """Return what in this process threatens reproducibility now; empty if nothing known does.

    Looks, and changes nothing: hash seed, threads, torch's switches and seed, libraries with generators of their own.

    Returns:
        The findings, each with its fix, in a fixed order.

    Examples:
        >>> for finding in audit():
        ...     assert finding.code and finding.fix
    """
    findings = []
    if sys.flags.hash_randomization and _hash_seed_at_start() in {b"", b"random"}:
        findings.append(
            Finding(
                "hash-seed",
                "the order of sets of text differs between runs",
                "sort what you iterate, or start Python with PYTHONHASHSEED=0 in its environment (before Python 3.12, None "
                "hashes by its address all the same)",
            )
        )
    torch = loaded_torch()
    if torch is not None:
        findings += _audit_torch(torch)
    findings += [
        Finding("own-generators", f"{name} draws from generators that seed_all does not reach", fix)
        for name, fix in _OWN_GENERATORS.items()
        if name in sys.modules
    ]
    return findings


def _hash_seed_at_start() -> bytes:
    """Return PYTHONHASHSEED as the process began with it: setting it later changes no hash."""
    try:
        with open("/proc/self/environ", "rb") as environment:  # noqa: PTH123 - no Path at import
            found = dict(
                entry.partition(b"=")[::2] for entry in environment.read().split(b"\0") if entry
            )
    except OSError:  # no Linux: what the process says now has to do
        return os.environ.get("PYTHONHASHSEED", "").encode()
    return bytes(found.get(b"PYTHONHASHSEED", b""))


def _audit_torch(torch: Any) -> list[Finding]:
    findings = []
    if _is_unseeded(torch):
        what = "torch's global generator has the random seed that this process started with"
        findings.append(Finding("torch-unseeded", what, "call seed_all after importing torch"))
    if not torch.are_deterministic_algorithms_enabled():
        what = "torch may use algorithms whose result depends on timing"
        findings.append(Finding("torch-algorithms", what, "use deterministic()"))
    elif torch.is_deterministic_algorithms_warn_only_enabled():
        what = "torch only warns about operations that are not deterministic"
        findings.append(Finding("torch-warn-only", what, "use deterministic(warn_only=False)"))
    if torch.backends.cudnn.benchmark:
        what = "cuDNN chooses algorithms by timing them"
        findings.append(
            Finding("cudnn-benchmark", what, "set torch.backends.cudnn.benchmark = False")
        )
    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ:
        what = f"torch sums on {torch.get_num_threads()} threads, a number taken from this machine"
        fix = "set OMP_NUM_THREADS, or call torch.set_num_threads, to the same number everywhere"
        findings.append(Finding("threads", what, fix))
    if _has_cuda(torch) and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        what = f"cuBLAS may change its algorithm: {_WORKSPACE} is not set"
        findings.append(Finding("cublas-workspace", what, f"set {_WORKSPACE}=:4096:8 before start"))
    return findings


def _is_unseeded(torch: Any) -> bool:
    """Return whether torch seems to have seeded its generator by itself: with 64 random bits, of which it uses 32.

    Told by its words, as long as they are the first: what goes on from a saved state may have such a seed, too.
    """
    seed = torch.initial_seed()
    if seed < 2**32:  # chosen by somebody
        return False
    states = torch.default_generator.get_state(), torch.Generator().manual_seed(seed).get_state()
    mine, its = (bytes(state[FIRST : FIRST + 8 * WORDS].numpy()) for state in states)
    return mine == its


def make_deterministic(*, warn_only: bool) -> tuple[Finding, ...]:
    """Switch everything that can be switched now, and return what cannot."""
    torch = loaded_torch()
    findings = [finding for finding in audit() if finding.code in {"hash-seed", "threads"}]
    if torch is None:
        what = "torch is not imported, so it was not switched"
        return (*findings, Finding("torch-absent", what, "import torch first"))
    if _has_cuda(torch) and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        if torch.cuda.is_initialized():  # cuBLAS has read it
            what = f"CUDA has started without {_WORKSPACE}"
            findings.append(
                Finding("cublas-workspace", what, f"set {_WORKSPACE}=:4096:8 before CUDA is used")
            )
        else:
            os.environ[_WORKSPACE] = _WORKSPACES[0]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(mode=True, warn_only=warn_only)
    return tuple(findings)


class _Switches(NamedTuple):
    """Every switch that `make_deterministic` may touch."""

    workspace: str | None
    torch: tuple[bool, bool, bool, bool] | None

    def restore(self) -> None:
        if self.workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = self.workspace
        torch = loaded_torch()
        if self.torch is None or torch is None:
            return
        enabled, warn_only, chosen, benchmark = self.torch
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.deterministic = chosen
        torch.backends.cudnn.benchmark = benchmark


def _read() -> _Switches:
    torch = loaded_torch()
    workspace = os.environ.get(_WORKSPACE)
    if torch is None:
        return _Switches(workspace, None)
    return _Switches(
        workspace,
        (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
    )


def _has_cuda(torch: Any) -> bool:
    return bool(torch.version.cuda)
