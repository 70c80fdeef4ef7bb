"""Every code block of the README and the docs runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

import mlkit

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_examples_of_a_page_run_in_order(
    page: Path, eval_example: EvalExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A page shows what a person sees, whose machine is not held up in the middle of it.
    monkeypatch.setattr("mlkit.registry._unimported._BUDGET", 60.0)
    monkeypatch.setattr("mlkit.resilience._storage._PATIENCE", 60.0)
    namespace: dict[str, object] = {}
    blocks: list[CodeExample] = [
        example
        for example in find_examples(page)
        if example.prefix.split()[:1] in (["python"], ["py"])
    ]
    assert blocks
    for block in blocks:
        namespace |= eval_example.run_print_check(block, module_globals=namespace)


def test_no_block_hides_from_the_tests() -> None:
    allowed = {"python", "console", "text", "json", "yaml", "toml", "mermaid", "bash", "make"}
    for page in PAGES:
        fences = re.findall(r"^ *```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        opening = fences[::2]
        assert set(opening) <= allowed, page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def documented_modules() -> list[str]:
    return [
        info.name
        for info in pkgutil.walk_packages(mlkit.__path__, "mlkit.")
        if info.name != "mlkit.__main__"
    ]


@pytest.mark.parametrize("name", documented_modules())
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=flags, extraglobs={"tmp_path": tmp_path})
    assert failed == 0


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example_scripts_run(script: Path, tmp_path: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 80
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert list(tmp_path.iterdir()) == [], "an example leaves files behind"


def test_the_error_tree_of_the_docs_is_the_one_of_the_code() -> None:
    from mlkit import errors

    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    drawn = [
        line
        for line in (errors.__doc__ or "").splitlines()
        if re.search(r"(Error|Warning)\b.*(\(|  )", line)
    ]
    assert len(drawn) > 40
    assert [line for line in drawn if line not in page] == []
