"""What a result may depend on besides code and data: Python, machine, threads, packages, a few variables."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit.repro._generators import loaded_torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HIDDEN", "VARIABLES", "environment", "packages", "redacted"]

# Variables that change results. All others are left out: they may hold secrets, and a deny-list always misses one.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "DNNL_MAX_CPU_ISA",
    "LC_ALL",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
    "TZ",
)
# CPU features that numerical libraries choose kernels by.
_ISA = frozenset(
    (
        *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
        *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
    )
)
_SECRET = re.compile(r"(?i)(key|token|secret|passw|pwd|credential|auth|cookie|session)")
# What a command line of a training run names without a secret.
_HARMLESS = re.compile(
    r"(?i)(tokeni[sz]|keypoint|keyframe|keyword|((max|min|num|n|new)[-_])+tokens)"
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "<hidden>"


def environment() -> dict[str, Any]:
    """Return python, machine, threads, variables and torch's switches as plain data."""
    return {
        "python": {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "hash_randomization": bool(sys.flags.hash_randomization),
        },
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "libc": " ".join(_libc()),
            "isa": _isa(),
            "blas": _numpy_blas(),
        },
        "threads": {"available": _cpus(), **_torch_threads()},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch": _torch_switches(),
    }


def packages() -> dict[str, str]:
    """Return the version of every installed distribution, by its normalised name.

    Reads the names of the metadata folders on `sys.path` and opens no file, except for distributions that do not
    write their version there.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - only names are wanted
        except OSError:  # a zip file, or not there
            continue
        for name in sorted(names):
            stem, dot, kind = name.rpartition(".")
            # What pip leaves behind begins with a tilde.
            if not dot or kind not in {"dist-info", "egg-info"} or name.startswith("~"):
                continue
            project, dash, version = stem.partition("-")
            if not dash:
                version = _version_in(Path(place or ".", name))
            elif kind == "egg-info":
                version = re.sub(r"-py\d.*$", "", version)
            # Earlier entries of sys.path win, as they do for import.
            found.setdefault(re.sub(r"[-_.]+", "-", project).lower(), version)
    return dict(sorted(found.items()))


def redacted(arguments: list[str]) -> list[str]:
    """Return a command line without the values of options that look like secrets, or user names in addresses."""
    shown = []
    hide_next = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            shown.append(HIDDEN)
            hide_next = False
            continue
        hide_next = False
        if _SECRET.search(_HARMLESS.sub("", option)) and (equals or option.startswith("-")):
            hide_next = not equals
            shown.append(f"{option}={HIDDEN}" if equals else option)
        else:
            shown.append(_USERINFO.sub(f"{HIDDEN}@", argument))
    return shown


def _version_in(folder: Path) -> str:
    for name in ("METADATA", "PKG-INFO"):
        try:
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Version:"):
                return line.removeprefix("Version:").strip()
    return "unknown"


def _libc() -> tuple[str, ...]:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION")  # platform.libc_ver() reads the whole interpreter
    except (AttributeError, ValueError, OSError):
        return ()
    return (name,) if name else ()


def _isa() -> list[str]:
    """Return the CPU features that matter, sorted; empty where the system does not list them."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                key, _, features = line.partition(":")
                if key.strip() in {"flags", "Features"}:
                    return sorted(_ISA & set(features.split()))
    except OSError:
        pass
    return []


def _numpy_blas() -> str:
    """Return name and version of the BLAS that NumPy was built with; empty where it does not say.

    Two installers give one version of NumPy with two of them. Read from its file: importing NumPy would cost 100 ms.
    """
    from importlib.util import find_spec

    try:
        spec = find_spec("numpy")
        folder = Path(spec.origin or "").parent if spec is not None else Path()
        found = _BLAS.search((folder / "__config__.py").read_text(encoding="utf-8"))
    except (OSError, ValueError, ImportError):
        return ""
    return " ".join(found.groups()) if found else ""


_BLAS = re.compile(r'"blas":\s*\{\s*"name":\s*"([^"]*)".*?"version":\s*"([^"]*)"', re.DOTALL)


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _torch_threads() -> dict[str, int]:
    torch = loaded_torch()
    return {} if torch is None else {"torch": torch.get_num_threads()}


def _torch_switches() -> dict[str, Any]:
    """Return the switches of torch that change results; empty if it is not imported."""
    torch = loaded_torch()
    if torch is None:
        return {}
    matmul, cudnn, info = torch.backends.cuda.matmul, torch.backends.cudnn, torch.__config__.show()
    blas = re.search(r"\bBLAS_INFO=(\w+)", info)
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    return {
        "blas": blas[1] if blas else "",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda or torch.version.hip or "",
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_tf32": _switch(lambda: cudnn.allow_tf32),
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "devices": [torch.cuda.get_device_name(index) for index in devices],
        "fp32_conv": _switch(lambda: cudnn.conv.fp32_precision),
        "fp32_matmul": _switch(lambda: matmul.fp32_precision),
        "fp32_mkldnn": _switch(lambda: torch.backends.mkldnn.matmul.fp32_precision),
        "matmul_precision": _switch(torch.get_float32_matmul_precision),
        "mkldnn": _switch(lambda: torch.backends.mkldnn.enabled),
        "reduced_bf16_sums": _switch(lambda: matmul.allow_bf16_reduced_precision_reduction),
        "reduced_fp16_sums": _switch(lambda: matmul.allow_fp16_reduced_precision_reduction),
    }


def _switch(look: Callable[[], Any]) -> Any:
    """Return a switch of torch, if it has it and its old and new names for one thing do not contradict each other."""
    try:
        return look()
    except (AttributeError, RuntimeError):
        return "unknown"
