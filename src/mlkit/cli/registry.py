"""`python -m mlkit registry`: what a registry holds, and whether a spec would build, without building anything."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit.cli._printing import print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mlkit.errors import SpecProblem
    from mlkit.registry import Entry, Registry

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Look into a registry. TARGET is where it is, PACKAGE.MODULE:VARIABLE; the module is imported, from the "
        "current folder too."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, purpose) in _ACTIONS.items():
        action = actions.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
        )
        action.add_argument("target", metavar="TARGET", help="e.g. mypkg.registry:models")
        if name in {"list", "schema"}:
            action.add_argument(
                "patterns", nargs="*", metavar="PATTERN", help="e.g. 'resnet*' (default: all)"
            )
        if name == "list":
            action.add_argument("--tag", help="only entries with this tag")
            action.add_argument("--versions", action="store_true", help="every version, as name@N")
            action.add_argument("--deprecated", action="store_true", help="deprecated entries too")
        if name == "show":
            action.add_argument("name", metavar="NAME", help="a name, an alias, or name@N")
        if name == "check":
            action.add_argument("specs", nargs="+", metavar="SPEC", help="YAML or JSON files")
            action.add_argument(
                "--at", default="", metavar="PATH", help="the part that is the spec, e.g. model"
            )
        if name != "schema":
            action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run one action.

    Args:
        options: The words, parsed.

    Returns:
        0 if all is well, 1 if what was asked about is wrong.
    """
    action, _ = _ACTIONS[options.action]
    return action(_find(options.target), options)


def _list(registry: Registry[Any], options: argparse.Namespace) -> int:
    refs = registry.list(
        options.patterns or "*",
        tag=options.tag,
        versions=options.versions,
        deprecated=options.deprecated,
    )
    if options.json:
        print_json([_facts(registry.entry(ref)) for ref in refs])
        return 0
    for ref in refs:
        print(ref)
    if not refs:
        print(f"nothing of {registry.name!r} fits", file=sys.stderr)
    return 0


def _show(registry: Registry[Any], options: argparse.Namespace) -> int:
    import inspect
    import warnings

    from mlkit.errors import RegistryError

    entry = registry.entry(options.name)
    facts, trouble = _facts(entry), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that it is deprecated is shown below
            factory = registry[entry.ref]
    except RegistryError as error:
        trouble = str(error)
    else:
        facts["signature"] = _signature(factory)
        facts["doc"] = inspect.getdoc(factory) or ""
    if options.json:
        print_json({**facts, "problem": trouble or None})
        return int(bool(trouble))
    print(f"{entry.ref}{facts.pop('signature', '')}")
    doc = facts.pop("doc", "")
    for key, value in facts.items():
        if key not in {"name", "version", "ref"} and value:
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"  {key:<12} {shown}")
    if doc:
        print("\n" + "\n".join(f"  {line}".rstrip() for line in doc.splitlines()))
    if trouble:
        print(f"\n{trouble}")
    return int(bool(trouble))


def _schema(registry: Registry[Any], options: argparse.Namespace) -> int:
    print_json(registry.json_schema(options.patterns or "*"))
    return 0


def _check(registry: Registry[Any], options: argparse.Namespace) -> int:
    from pathlib import Path

    from mlkit.errors import ConfigurationError, SpecError, SpecProblem
    from mlkit.registry import Spec

    wrong: list[SpecProblem] = []
    for file in options.specs:
        try:
            spec = Spec.load(Path(file), at=options.at).resolved(registry)
        except SpecError as error:
            wrong += error.problems
        except ConfigurationError as error:  # the file cannot be read: the others still can
            if not isinstance(error.__cause__, OSError):
                raise
            message = f"the file cannot be read: {error.__cause__.strerror}"
            wrong.append(SpecProblem("", "file", message, source=file))
        else:
            if not options.json:
                print(f"{file}: ok, {spec.type}")
    if options.json:
        keys = ("source", "path", "kind", "message", "suggestions")
        print_json([{key: getattr(problem, key) for key in keys} for problem in wrong])
    else:
        for problem in wrong:
            if problem.kind == "file":
                print(f"mlkit registry: {problem}", file=sys.stderr)
            else:
                print(problem)
    return int(bool(wrong))


_ACTIONS: dict[str, tuple[Callable[[Registry[Any], argparse.Namespace], int], str]] = {
    "list": (_list, "list names, importing no entry"),
    "show": (_show, "say all about one entry, which is imported for it"),
    "schema": (_schema, "print the JSON Schema of the specs that it builds"),
    "check": (_check, "check specs and print every problem with its line, building nothing"),
}


def _find(target: str) -> Registry[Any]:
    """Return the registry at `package.module:variable`.

    Raises:
        ConfigurationError: If there is none; with those that the module has.
    """
    from importlib import import_module

    from mlkit._suggest import clip, did_you_mean
    from mlkit.errors import ConfigurationError
    from mlkit.registry import Registry

    expected = "PACKAGE.MODULE:VARIABLE of a registry"
    name, colon, variable = target.partition(":")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(
            "TARGET", target, expected, hint="for example mypkg.registry:models"
        )
    try:
        module = import_module(name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        hint = (
            f"there is no module {error.name!r} here; run this in the folder that holds it, or install it"
            if absent and isinstance(error, ImportError)
            else f"importing {name} failed: {type(error).__name__}: {clip(str(error), 200)}"
        )
        if absent and "." in name and not colon:
            hint += f"; a variable of a module is written {':'.join(name.rsplit('.', 1))}"
        raise ConfigurationError("TARGET", target, expected, hint=hint) from error
    found: Any = module
    for part in variable.split(".") if colon else ():
        found = getattr(found, part, None)
    if isinstance(found, Registry):
        return found
    known = [key for key, value in vars(module).items() if isinstance(value, Registry)]
    hint = f"{name} has {', '.join(f'{name}:{one}' for one in known[:5]) or 'no registry'}"
    raise ConfigurationError("TARGET", target, expected, hint=hint + did_you_mean(variable, known))


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "ref": entry.ref,
        "name": entry.name,
        "version": entry.version,
        "target": entry.target,
        "source": entry.source,
        "aliases": list(entry.aliases),
        "tags": sorted(entry.tags),
        "requires": list(entry.requires),
        "deprecated": entry.deprecated,
        "replacement": entry.replacement,
        "meta": dict(entry.meta),
    }


def _signature(factory: Any) -> str:
    import inspect

    for evaluated in (True, False):
        try:
            found = inspect.signature(factory, eval_str=evaluated)
        except Exception:  # noqa: BLE001, S112 - text annotations may raise anything; some have no signature
            continue
        if isinstance(factory, type):  # what `__init__` returns tells nobody anything
            found = found.replace(return_annotation=found.empty)
        return str(found)
    return "(...)"
