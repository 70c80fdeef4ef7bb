"""Entry points of really installed distributions: found without an import, and never able to hurt the others."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

from mlkit.errors import DuplicateNameError, EntryError, SpecError, UnknownNameError
from mlkit.registry import Problem, Registry
from mlkit.testing import record_events

GROUP = "mlkit.test_plugins"


def install(root, name, entries, *, requires=(), **modules):
    info = root / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + "".join(f"Requires-Dist: {line}\n" for line in requires)
    )
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
        with pytest.raises(
            EntryError, match=r"plug_broken:X.*RuntimeError: boom.*distribution broken-dist 1.0"
        ):
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
    Registry("with_plugins", entry_points="mlkit.none").register("d")(dict)
    reg = Registry("r")
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


def hub_for(monkeypatch, reg):
    import types

    hub = types.ModuleType("plug_hub")
    hub.reg = reg
    monkeypatch.setitem(sys.modules, "plug_hub", hub)


def test_problems_are_listed_and_everything_else_works(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    install(
        site,
        "wrong-dist",
        {"wrong": "plug_wrong:make", "target": "no colon here", "absent": "plug_absent:X"},
        plug_wrong="make = 3\n",
    )
    found = reg.problems()
    assert all(type(problem) is Problem for problem in found)
    by_name = {(one.name, one.distribution): one for one in found}
    assert {(name, dist): one.kind for (name, dist), one in by_name.items()} == {
        ("absent@1", "wrong-dist"): "broken",
        ("bad name!*", "good-dist"): "invalid",
        ("broken@1", "broken-dist"): "broken",
        ("clash@1", "one-dist"): "conflict",
        ("clash@1", "other-dist"): "conflict",
        ("target", "wrong-dist"): "invalid",
        ("wrong@1", "wrong-dist"): "broken",
    }
    assert "RuntimeError: boom" in by_name["broken@1", "broken-dist"].message
    for one in found:
        assert len(one.message) <= 600
        assert one.distribution in str(one)
    for name in ("one-dist", "other-dist"):
        assert name in by_name["clash@1", "one-dist"].message
    assert [one.name for one in reg.problems()] == [one.name for one in found]
    assert type(reg.create("good@1")).__name__ == "Good"
    assert Registry("none").problems() == []


def test_a_problem_ends_when_it_is_mended(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    assert "broken@1" in {one.name for one in reg.problems()}
    (site / "plug_broken.py").write_text(
        "class X(dict): pass  # longer than before, and another size\n"
    )
    importlib.invalidate_caches()
    assert "broken@1" not in {one.name for one in reg.problems()}
    assert type(reg.create("broken")).__name__ == "X"


@pytest.mark.parametrize("first", ["plug_claim_one", "plug_claim_two"])
@pytest.mark.parametrize("read_first", [True, False])
def test_a_conflict_lasts_whoever_is_imported_first(site, monkeypatch, first, read_first):
    reg = Registry("plugins", dict, entry_points=GROUP)
    hub_for(monkeypatch, reg)
    code = "from plug_hub import reg\n@reg.register('claimed')\nclass A(dict): pass\n"
    install(site, "claim-one", {"claimed": "plug_claim_one:A"}, plug_claim_one=code)
    install(site, "claim-two", {"claimed": "plug_claim_two:A"}, plug_claim_two=code)
    if read_first:
        assert "claimed" in reg
    importlib.import_module(first)
    for use in (reg.create, reg.__getitem__):
        with pytest.raises(DuplicateNameError) as caught:
            use("claimed")
        assert "claim-one" in str(caught.value)
        assert "claim-two" in str(caught.value)
        assert "uninstall one of them" in str(caught.value)
    made = sys.modules[first].A
    assert type(reg.create(made)) is made  # who has the class itself leaves no doubt
    conflicts = {one.distribution for one in reg.problems() if one.kind == "conflict"}
    assert conflicts >= {"claim-one", "claim-two"}
    assert reg.select(None, prefer=["claimed", "good"]).rejected["claimed"].startswith("several")
    reg.register("claimed", version=2)(dict)
    assert reg.create("claimed") == {}


def test_a_plugin_in_the_shadow_of_code_is_a_problem_that_stops_nobody(site):
    reg = Registry("plugins", dict, entry_points=GROUP)

    class Ours(dict):
        pass

    reg.register("good")(Ours)
    assert reg["good"] is Ours
    (shadow,) = [one for one in reg.problems() if one.kind == "shadowed"]
    assert (shadow.name, shadow.distribution) == ("good@1", "good-dist")
    assert "Ours" in shadow.message


def test_versions_are_listed_exactly_where_they_are_found(site):
    for ours in ((), (1,), (3,), (1, 2, 5)):
        reg = Registry("plugins", dict, entry_points=GROUP)
        for version in ours:
            reg.register("good", version=version)(type(f"Ours{version}", (dict,), {}))
        listed = reg.list("good", versions=True)
        assert listed == [f"good@{v}" for v in sorted({1, 2, *ours})]
        assert [ref for v in range(1, 9) if (ref := f"good@{v}") in reg] == listed
        for ref in listed:
            assert reg.entry(ref).ref == ref
            assert type(reg.create(ref)).__name__.startswith("Ours") is (
                int(ref.rpartition("@")[2]) in ours
            )


def test_one_distribution_seen_twice_is_one(site, tmp_path_factory, monkeypatch):
    import shutil

    again = tmp_path_factory.mktemp("editable")
    info = "good_dist-1.0.dist-info"
    shutil.copytree(site / info, again / info)
    monkeypatch.syspath_prepend(again)
    reg = Registry("plugins", dict, entry_points=GROUP)
    assert type(reg.create("good@1")).__name__ == "Good"
    assert not [one for one in reg.problems() if one.kind == "conflict" and "good" in one.name]


@pytest.mark.parametrize(
    ("point", "requires", "hint"),
    [
        ("plug_needs:A [fast]", [], "pip install 'needs-dist[fast]'"),
        ("plug_needs:A", ["plug-not-there>=2; extra == 'gpu'"], "pip install 'needs-dist[gpu]'"),
        ("plug_needs:A", ["other", "Plug.Not_There (>=2)"], "pip install needs-dist"),
        ("plug_needs:A", ["other"], "needs-dist does not declare that it does"),
    ],
)
def test_what_a_plugin_lacks_is_installed_through_the_plugin(site, point, requires, hint):
    install(
        site,
        "needs-dist",
        {"needs": point},
        requires=requires,
        plug_needs="import plug_not_there.deep\nclass A(dict): pass\n",
    )
    reg = Registry("plugins", dict, entry_points=GROUP)
    with pytest.raises(EntryError) as caught:
        reg.create("needs")
    assert "it needs 'plug_not_there', which is not installed" in str(caught.value)
    assert hint in str(caught.value)
    assert "mlkit" not in str(caught.value)


def test_of_fifty_distributions_only_the_one_asked_for_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for n in range(50):
        install(
            tmp_path,
            f"many-dist-{n}",
            {f"many{n}": f"plug_many_{n}:A"},
            **{f"plug_many_{n}": "class A(dict): pass\n"},
        )
    reg = Registry("many", dict, entry_points=GROUP)
    assert len(reg.list("many*")) == 50
    assert "many7" in reg
    assert reg.entry("many7").source == "distribution many-dist-7 1.0"
    with pytest.raises(UnknownNameError):
        reg.create("manny7")
    assert [name for name in loaded() if "many" in name] == []
    assert reg.create("many7") == {}
    assert [name for name in loaded() if "many" in name] == ["plug_many_7"]
    del sys.modules["plug_many_7"]


def test_metadata_that_cannot_be_read_hides_nothing(site):
    reg = Registry("plugins", dict, entry_points=GROUP)
    info = site / "nameless-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nnameless = plug_good:Good\n")
    assert type(reg.create("nameless")).__name__ == "Good"
    assert type(reg.create("good@1")).__name__ == "Good"


def test_a_frozen_registry_still_takes_what_was_declared(site, monkeypatch):
    from mlkit.errors import RegistryFrozenError

    reg = Registry("plugins", dict, entry_points=GROUP)
    hub_for(monkeypatch, reg)
    install(
        site,
        "late-dist",
        {"late": "plug_late:A"},
        plug_late="from plug_hub import reg\n@reg.register('late', tags=['t'])\nclass A(dict): pass\n",
    )
    (site / "plug_lazy.py").write_text(
        "from plug_hub import reg\n@reg.register('lazily')\nclass A(dict): pass\n"
    )
    reg.lazy("lazily", "plug_lazy:A", tags=["kept"])
    reg.freeze()
    assert loaded() == ["plug_hub"]
    assert type(reg.create("late")).__name__ == "A"
    assert reg.create("lazily") == {}
    assert reg.entry("lazily").tags == {"kept"}
    with pytest.raises(RegistryFrozenError, match=r"'plugins' is frozen, so 'more'"):
        reg.lazy("more", "plug_good:Good")
    with pytest.raises(RegistryFrozenError):
        reg.register("late", replace=True)(dict)
    with pytest.raises(RegistryFrozenError):
        reg.register("good")(dict)
    with reg.override(late=dict):
        assert type(reg.create("late")) is dict
    assert "more" not in reg


def test_a_plugin_is_overridden_and_restored_without_an_import(site):
    reg = Registry("plugins", dict, entry_points=GROUP)

    class Fake(dict):
        pass

    with reg.override({"good": Fake, "broken": Fake, "clash": Fake}):
        assert {type(reg.create(name)) for name in ("good", "good@1", "broken", "clash")} == {Fake}
        assert type(reg.build("broken")) is Fake
    assert loaded() == []
    assert type(reg.create("good@1")).__name__ == "Good"
    with pytest.raises(EntryError):
        reg.create("broken")
    with pytest.raises(DuplicateNameError):
        reg.create("clash")
