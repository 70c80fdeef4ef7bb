"""Entry points of really installed distributions: found without an import, and never able to hurt the others."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

from mlkit.errors import DuplicateNameError, EntryError, SpecError, UnknownNameError
from mlkit.registry import Registry
from mlkit.testing import record_events

GROUP = "mlkit.test_plugins"


def install(root, name, entries, **modules):
    info = root / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
    )
    for module, code in modules.items():
        (root / f"{module}.py").write_text(textwrap.dedent(code))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    install(
        tmp_path,
        "good-dist",
        {"good": "plug_good:Good", "good@2": "plug_good:Newer", "bad name!*": "plug_good:Good"},
        plug_good="class Good(dict): pass\nclass Newer(dict): pass\n",
    )
    install(
        tmp_path,
        "broken-dist",
        {"broken": "plug_broken:X"},
        plug_broken="raise RuntimeError('boom')\n",
    )
    install(tmp_path, "one-dist", {"clash": "plug_good:Good", "twice": "plug_good:Good"})
    install(tmp_path, "other-dist", {"clash": "plug_other:Good", "twice": "plug_good:Good"})
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


def loaded():
    return sorted(name for name in sys.modules if name.startswith("plug_"))


def test_only_getting_one_imports_it(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    assert "good" in reg
    assert "goood" not in reg
    assert reg.list() == ["broken", "clash", "good", "twice"]
    assert list(reg) == reg.list()
    assert len(reg) == 4
    assert reg.entry("good").version == 2
    assert reg.entry("good").source == "distribution good-dist 1.0"
    with pytest.raises(UnknownNameError, match="did you mean 'good'"):
        reg.create("goood")
    with pytest.raises(SpecError):
        reg.build("goood")
    assert loaded() == []
    assert type(reg.create("good@1")).__name__ == "Good"
    assert loaded() == ["plug_good"]
    assert type(reg.create("good")).__name__ == "Newer"
    assert type(reg.create("twice")).__name__ == "Good"


def test_a_broken_one_raises_only_when_asked_for(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    with record_events() as events:
        assert reg.create("good") == {}
        with pytest.raises(EntryError, match=r"plug_broken:X.*RuntimeError: boom"):
            reg.create("broken")
    kinds = [(event.kind, event.fields.get("entry")) for event in events]
    assert kinds == [
        ("registry.plugin.skipped", "bad name!*"),
        ("registry.entry.failed", "broken@1"),
    ]


def test_two_distributions_of_one_name_are_both_named(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    with pytest.raises(DuplicateNameError) as caught:
        reg.create("clash")
    assert "one-dist" in str(caught.value)
    assert "other-dist" in str(caught.value)
    with pytest.raises(SpecError, match="one-dist"):
        reg.build("clash")


def test_what_code_registers_comes_first_whenever_the_plugins_are_read(site):
    class Ours(dict):
        pass

    for read_first in (True, False):
        reg = Registry("plugins", dict, entry_points=GROUP)
        if read_first:
            reg.list()
        reg.register("good")(Ours)
        assert reg["good"] is Ours
        reg.list()
        assert reg["good"] is Ours
        assert type(reg.create("good@2")).__name__ == "Newer"


def test_a_plugin_that_registers_itself_on_import_stays_one_entry(site, monkeypatch):
    import types

    reg = Registry("plugins", dict, entry_points=GROUP)
    hub = types.ModuleType("plug_hub")
    hub.reg = reg
    monkeypatch.setitem(sys.modules, "plug_hub", hub)
    install(
        site,
        "self-dist",
        {"self": "plug_self:A", "self@2": "plug_self_two:B"},
        plug_self="from plug_hub import reg\n@reg.register('self')\nclass A(dict): pass\n",
        plug_self_two="class B(dict): pass\n",
    )
    assert type(reg.create("self@1")).__name__ == "A"
    assert type(reg.create("self")).__name__ == "B"
    assert reg.list("self", versions=True) == ["self@1", "self@2"]


def test_the_block_is_lean_and_a_registry_without_plugins_reads_none():
    code = """
    import sys
    from mlkit.registry import Registry, Spec
    heavy = {"pydantic", "yaml", "numpy", "torch", "inspect", "asyncio", "importlib.metadata", "dataclasses", "difflib"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    reg = Registry("r", entry_points="mlkit.none")
    reg.register("d")(dict)
    reg.create("d", a=1), reg["d"], "d" in reg, reg.entry("d"), Spec({"type": "d"}).digest
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("imported_first", [True, False])
def test_a_name_means_the_same_whether_a_plugin_was_imported_before_the_plugins_were_read(
    site, monkeypatch, imported_first
):
    import types

    reg = Registry("plugins", dict, entry_points=GROUP)
    hub = types.ModuleType("plug_hub")
    hub.reg = reg
    monkeypatch.setitem(sys.modules, "plug_hub", hub)
    install(
        site,
        "early-dist",
        {"early": "plug_early:A", "early@2": "plug_early_two:B"},
        plug_early="""
        from plug_hub import reg
        @reg.register('early', aliases=['soon'])
        class A(dict): pass
        """,
        plug_early_two="class B(dict): pass\n",
    )
    if not imported_first:
        assert "early" in reg
    importlib.import_module("plug_early")
    first = sys.modules["plug_early"].A
    assert type(reg.create(first)) is first
    assert reg.list("early", versions=True) == ["early@1", "early@2"]
    assert type(reg.create("early")).__name__ == type(reg.create("soon")).__name__ == "B"
    assert reg["early@1"] is first
    assert reg.entry("early@1").imported
