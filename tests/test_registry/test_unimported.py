"""A miss says where the name is defined, if a file that nobody imported would register it; and is right about it."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from mlkit.errors import SpecError, UnknownNameError
from mlkit.registry import Registry, _unimported
from mlkit.testing import virtual_time

HUB = """
from mlkit.registry import Registry
models = Registry("models", entry_points="unimported.models")
encoders = Registry("encoders")
"""
HEADS = '''
"""Heads."""
import os
from .hub import models, encoders as enc
from unim_pkg import hub
import unim_pkg.hub as central
import unim_pkg.hub

@models.register
class Plain: pass

@models.register("blend_mask", version=2)
class BlendMask:
    """@models.register("in_a_text")"""

@enc.register("encoder_only")
class Encoder: pass

@hub.models.register(aliases=["other_name"])
def by_module(): pass

@central.models.register(name="by_alias")
def b(): pass

@unim_pkg.hub.models.register("dotted")
async def c(): pass

if os.sep:
    try:
        models.lazy("lazily", "unim_pkg.deep:Thing")
    except ValueError:
        pass
    else:
        models.register("direct")(Plain)
models.register(by_module)
NAME = "computed"
models.register(NAME)(Plain)
# @models.register("commented")
print("@models.register('printed')")
def function():
    @models.register("inside")
    class Inside: pass
'''
STRANGE = """
from mlkit.registry import Registry
models = Registry("models")
@models.register("of_another_registry")
class A: pass
from unim_pkg.hub import models
models = something()
@models.register("rebound")
class B: pass
"""
STAR = """
from unim_pkg.hub import *
@models.register("starred")
class A: pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "unim_pkg"
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "hub.py": HUB,
        "heads.py": HEADS,
        "strange.py": STRANGE,
        "broken.py": "@models.register('blend_mask'\n",
        "sub/__init__.py": "",
        "sub/star.py": STAR,
    }.items():
        (folder / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(_unimported, "_BUDGET", 60)
    before = set(sys.modules)
    yield importlib.import_module("unim_pkg.hub")
    imported = {name for name in set(sys.modules) - before if name.startswith("unim_")}
    for name in imported:
        del sys.modules[name]
    assert imported <= {"unim_pkg", "unim_pkg.hub", "unim_pkg.seen", "unim_script_hub"}


def missed(registry, ref):
    with pytest.raises(UnknownNameError) as caught:
        registry.create(ref)
    assert len(str(caught.value)) <= 600
    return caught.value


@pytest.mark.parametrize(
    ("name", "file", "target"),
    [
        ("blend_mask", "unim_pkg/heads.py", "unim_pkg.heads:BlendMask"),
        ("Plain", "unim_pkg/heads.py", "unim_pkg.heads:Plain"),
        ("by_module", "unim_pkg/heads.py", "unim_pkg.heads:by_module"),
        ("other_name", "unim_pkg/heads.py", "unim_pkg.heads:by_module"),
        ("by_alias", "unim_pkg/heads.py", "unim_pkg.heads:b"),
        ("dotted", "unim_pkg/heads.py", "unim_pkg.heads:c"),
        ("direct", "unim_pkg/heads.py", "unim_pkg.heads:Plain"),
        ("starred", "unim_pkg/sub/star.py", "unim_pkg.sub.star:A"),
    ],
)
def test_the_definition_is_found(package, name, file, target):
    error = missed(package.models, name)
    path, _, line = error.defined_at.partition(":")
    assert path == file
    source = Path(sys.modules["unim_pkg"].__path__[0]).parent / path
    shown = source.read_text().splitlines()[int(line) - 1]
    assert shown.strip().startswith(("class", "def", "async def", "models.register"))
    module = target.partition(":")[0]
    assert (
        f"{error.defined_at} but never imported: import {module}, or declare the entry point "
        f'[project.entry-points."unimported.models"] {name} = "{target}"'
    ) in str(error)


def test_build_getting_and_asking_for_a_version_say_it_too(package):
    with pytest.raises(SpecError, match=r"defined at unim_pkg/heads.py:\d+ but never imported"):
        package.models.build({"type": "blend_mask"})
    with pytest.raises(UnknownNameError, match=r"heads.py"):
        package.models["blend_mask@2"]
    with pytest.raises(UnknownNameError, match=r"heads.py"):
        package.models.entry("blend_mask")
    assert missed(package.models, "blend_mask@1").defined_at == ""
    assert missed(package.models, "lazily").defined_at.startswith("unim_pkg/heads.py")
    error = missed(package.encoders, "encoder_only")
    assert "or declare it with lazy('encoder_only', 'unim_pkg.heads:Encoder')" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "in_a_text", "computed", "NAME", "commented", "printed", "inside", "Inside", "of_another_registry",
        "rebound", "encoder_only", "Encoder", "models", "register", "blend_mas", "",
    ],
)  # fmt: skip
def test_what_is_no_definition_for_this_registry_is_not_reported(package, name):
    error = missed(package.models, name)
    assert error.defined_at == ""
    assert "never imported" not in str(error)


def test_a_module_that_was_imported_is_not_blamed(package):
    folder = sys.modules["unim_pkg"].__path__[0]
    Path(folder, "seen.py").write_text(
        "from unim_pkg.hub import models\n"
        "if False:\n    @models.register('never')\n    class A: pass\n"
    )
    assert missed(package.models, "never").defined_at == "unim_pkg/seen.py:4"
    importlib.import_module("unim_pkg.seen")
    assert missed(package.models, "never").defined_at == ""


def test_the_modules_beside_a_script_are_read_too(package, tmp_path):
    (tmp_path / "unim_script_hub.py").write_text(HUB)
    (tmp_path / "unim_beside.py").write_text(
        "import unim_script_hub as hub\n@hub.models.register()\nclass Beside: pass\n"
    )
    hub = importlib.import_module("unim_script_hub")
    assert missed(hub.models, "Beside").defined_at == "unim_beside.py:3"


def test_a_registry_that_no_module_holds_reads_nothing(package, monkeypatch):

    monkeypatch.setattr(_unimported, "_text", lambda path: pytest.fail("a file was read"))
    assert missed(Registry("local"), "blend_mask").defined_at == ""


def test_the_time_it_may_take_is_bounded(package, monkeypatch):
    folder = sys.modules["unim_pkg"].__path__[0]
    Path(folder, "zz.py").write_text(
        "from unim_pkg.hub import models\n@models.register('last')\nclass A: pass\n"
    )
    assert missed(package.models, "last").defined_at
    monkeypatch.setattr(_unimported, "_BUDGET", 0.05)
    monkeypatch.setattr(_unimported, "_reading", None)
    read = _unimported._text
    with virtual_time() as clock:

        def slow(path):
            clock.sleep(0.04)
            return read(path)

        monkeypatch.setattr(_unimported, "_text", slow)
        assert missed(package.models, "last").defined_at == ""
