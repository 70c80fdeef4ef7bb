"""What is public: exported, documented, described, spelled one way, and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import mlkit

ROOT = Path(__file__).parents[1]
BLOCKS = ("registry", "repro", "inference", "resilience", "flags", "tracking", "models")
ROOMS = (
    "accelerate", "lightning", "mlflow", "mlflow_plugin", "ofrep", "openfeature", "opentelemetry", "prometheus", "pytorch_lightning",
    "structlog", "transformers", "dask", "ray", "spark", "comet", "neptune", "trackio", "wandb",
)  # fmt: skip
PUBLIC = (
    *BLOCKS,
    "errors",
    "telemetry",
    "testing",
    "testing.strategies",
    *(f"integrations.{room}" for room in ROOMS),
)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_exactly_all(name: str) -> None:
    module = importlib.import_module(f"mlkit.{name}")
    public = {
        key
        for key in {*vars(module), *dir(module)}
        if not key.startswith("_")
        and key not in {"TYPE_CHECKING", "annotations"}
        and not inspect.ismodule(value := getattr(module, key))
        and _is_ours(value, module.__name__)
    }
    assert module.__all__ == sorted(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))
    assert public == set(module.__all__)


def _is_ours(value: object, module: str) -> bool:
    """Return whether *value* is defined by the module itself or, for a package, by one of its parts."""
    home = getattr(value, "__module__", None)
    return home is None or home == module or home.startswith(module + "._")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_in_the_reference(name: str) -> None:
    module = importlib.import_module(f"mlkit.{name}")
    text = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")
    )
    documented = re.findall(rf"^::: mlkit\.{re.escape(name)}\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == module.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_thing_says_what_it_is(name: str) -> None:
    module = importlib.import_module(f"mlkit.{name}")
    silent = []
    for key in module.__all__:
        value = getattr(module, key)
        if inspect.isclass(value) or inspect.isroutine(value):
            if not inspect.getdoc(value):
                silent.append(key)
        if inspect.isclass(value):
            silent += [
                f"{key}.{member}"
                for member, thing in vars(value).items()
                if not member.startswith("_")
                and (
                    inspect.isroutine(thing)
                    or isinstance(thing, (property, classmethod, staticmethod))
                )
                and not inspect.getdoc(getattr(thing, "__func__", thing))
            ]
    assert not silent


def late_names(path: Path, package: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return where the names that load late come from: as type checkers read it, and as the table says."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    conditional = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: statement.module.removeprefix(f"{package}.")
        for statement in conditional.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    table = next(
        ast.literal_eval(node.value)
        for node in conditional.orelse
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_MODULES"
    )
    return typed, table


def test_the_facade_is_one_list_three_times() -> None:
    typed, table = late_names(ROOT / "src/mlkit/__init__.py", "mlkit")
    assert typed == table
    assert sorted([*table, "__version__"]) == mlkit.__all__
    assert set(mlkit.__all__) <= set(dir(mlkit))


@pytest.mark.parametrize(
    "block", ["flags", "inference", "models", "repro", "resilience", "tracking"]
)
def test_what_a_block_loads_late_is_one_list_too(block: str) -> None:
    typed, table = late_names(ROOT / f"src/mlkit/{block}/__init__.py", f"mlkit.{block}")
    assert typed == table
    module = importlib.import_module(f"mlkit.{block}")
    assert set(table) <= set(module.__all__) == set(dir(module))
    with pytest.raises(AttributeError, match=f"did you mean '{module.__all__[0]}'"):
        getattr(module, module.__all__[0] + "s")
    assert not hasattr(module, "_repr_html_")


def test_the_facade_gives_what_the_blocks_have() -> None:
    for name in mlkit.__all__:
        assert getattr(mlkit, name) is not None
    assert mlkit.Registry is mlkit.registry.Registry


def test_a_misspelt_name_says_which_was_meant() -> None:
    with pytest.raises(AttributeError, match="did you mean 'Batcher'"):
        mlkit.Bacher


def test_the_version_is_the_distributions() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{mlkit.__version__}"' in text
    assert f"## [{mlkit.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def tracked_texts() -> list[tuple[str, str]]:
    """Return the files of the checkout; of an sdist, what lies there."""
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listing.stdout.splitlines() or [
        str(path.relative_to(ROOT))
        for folder in ("src", "tests", "docs", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    texts = []
    for name in names:
        try:
            texts.append((name, (ROOT / name).read_text(encoding="utf-8")))
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or deleted and not yet committed
    return texts


def test_nobody_is_told_to_install_the_other_distribution() -> None:
    # The distribution called mlkit is somebody else's and installs a top-level mlkit folder.
    wrong = re.compile(r"(pip|uv) (install|add) [^\n]*\bml" + r"kit(?![-\w]|/)")
    assert [name for name, text in tracked_texts() if wrong.search(text)] == []


def test_our_module_names_are_not_the_other_distributions() -> None:
    theirs = {
        "base",
        "cluster",
        "datasets",
        "linear_model",
        "metrics",
        "model_selection",
        "neighbors",
        "preprocessing",
    }
    ours = {path.stem for path in (ROOT / "src/mlkit").iterdir()}
    assert not theirs & ours


def test_no_file_is_named_after_nothing() -> None:
    empty_names = {"utils", "util", "helpers", "common", "base", "manager", "core", "misc"}
    assert [name for name, _ in tracked_texts() if Path(name).stem.strip("_") in empty_names] == []


def test_each_extra_that_an_error_names_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    named = {
        extra
        for name, text in tracked_texts()
        if name.startswith("src/")
        for extra in re.findall(r"extra=\"([\w-]+)\"", text)
    }
    assert named
    assert named <= set(extras)
