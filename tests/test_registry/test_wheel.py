"""The example plugin package: a wheel of it, installed by a real installer, used by a fresh process."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins"


def wheel(into: Path) -> Path:
    """Write the wheel that the project's own backend would, which a test cannot count on to be installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    info = f"{name}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {version}",
        *(f"Requires-Dist: {line}" for line in project["dependencies"]),
    ]
    for extra, lines in project["optional-dependencies"].items():
        metadata.append(f"Provides-Extra: {extra}")
        metadata += [f'Requires-Dist: {line} ; extra == "{extra}"' for line in lines]
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    files = {
        str(path.relative_to(EXAMPLE / "src")): path.read_bytes()
        for path in sorted((EXAMPLE / "src").rglob("*.py"))
    }
    files[f"{info}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = "\n".join(groups).encode()
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    made = into / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    made = wheel(folder)
    installer = ["uv", "pip"] if importlib.util.find_spec("uv") else ["pip"]
    offline = ["--offline", "--no-cache"] if installer[0] == "uv" else ["--no-cache-dir"]
    done = subprocess.run(
        [sys.executable, "-m", *installer, "install", "--quiet", "--no-index", "--no-deps", *offline,
         "--target", str(folder / "site"), str(made)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "app.py").write_text(
        "from mlkit.registry import Registry\nheads = Registry('heads', entry_points='example.heads')\n"
    )
    return folder


def python(site, *words):
    environment = {**os.environ, "PYTHONPATH": str(site / "site")}
    return subprocess.run(
        [sys.executable, *words], cwd=site, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_it_is_listed_used_and_judged_in_a_fresh_process(site):
    code = """
    import json, sys
    from app import heads
    from mlkit.errors import EntryError, SpecError
    seen = lambda: sorted(name for name in sys.modules if name.startswith("example_heads"))
    out = {"names": heads.list(), "miss": "lineer" in heads, "after_list": seen()}
    head = heads.build({"type": "linear", "width": 3, "bias": 1})
    out["answer"], out["after_build"] = head([1, 2, 3]), seen()
    try:
        heads.create("fused", width=3)
    except EntryError as error:
        out["error"] = str(error)
    out["problems"] = [tuple(problem) for problem in heads.problems()]
    out["again"] = heads.create("linear", 1)([2.0])
    print(json.dumps(out))
    """
    done = python(site, "-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["names"] == ["fused", "linear"]
    assert out["miss"] is False
    assert out["after_list"] == []
    assert out["answer"] == 7.0
    assert out["after_build"] == ["example_heads", "example_heads.linear"]
    hint = "it needs 'example_gpu_kernels', which is not installed; install it with:  pip install 'example-heads[gpu]'"
    assert hint in out["error"]
    ((name, kind, distribution, target, message),) = out["problems"]
    assert (name, kind, distribution) == ("fused@1", "broken", "example-heads")
    assert target == "example_heads.fused:Fused"
    assert hint in message
    assert out["again"] == 2.0


def test_the_command_line_sees_it(site):
    (site / "good.yaml").write_text("type: linear\nwidth: 2\n")
    (site / "bad.yaml").write_text("type: linear\nwdth: 2\n")
    done = python(site, "-m", "mlkit", "registry", "list", "app:heads")
    assert done.stdout.split() == ["fused", "linear"]
    done = python(site, "-m", "mlkit", "registry", "show", "app:heads", "linear")
    assert done.returncode == 0
    assert "linear@1(width: int, bias: float = 0.0)\n" in done.stdout
    assert "distribution example-heads 1.0" in done.stdout
    assert "A weighted sum." in done.stdout
    done = python(site, "-m", "mlkit", "registry", "show", "app:heads", "fused")
    assert done.returncode == 1
    assert "pip install 'example-heads[gpu]'" in done.stdout
    done = python(site, "-m", "mlkit", "registry", "check", "app:heads", "good.yaml", "bad.yaml")
    assert done.returncode == 1
    assert "good.yaml: ok, linear@1" in done.stdout
    assert (
        "bad.yaml:2:1 wdth: linear@1 has no argument 'wdth'; did you mean 'width'?" in done.stdout
    )
