"""The same flags in the words of other libraries, and their answers, for `benchmarks/flags.py`.

Three flags, the second as often as wanted: one that is always on, a rule of three conditions, and 10 % of the pro users.
Questions are triples of key, unit and attributes. What a library needs for one decision is made anew for each: a context, a
user. Each imports its library when it is called, so that one that is not installed is left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Question = tuple[str, str, dict[str, Any]]
    Ask = Callable[[list[Question]], list[bool]]

STATIC = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
THREE = {
    "and": [
        {"==": [{"var": "plan"}, "pro"]},
        {">=": [{"var": "age"}, 18]},
        {"in": [{"var": "country"}, ["DE", "FR"]]},
    ]
}
SPLIT = {"if": [{"==": [{"var": "plan"}, "pro"]}, {"fractional": [["on", 10], ["off", 90]]}, "off"]}
RULE = {**STATIC, "targeting": {"if": [THREE, "on", "off"]}}
_OPEN: list[Callable[[], object]] = []
KEPT = tempfile.TemporaryDirectory(prefix="mlkit-flags-peers-")


def close() -> None:
    """End the threads of the libraries that were made to answer, so that they do not run beside the next."""
    while _OPEN:
        _OPEN.pop()()


def flagd_document(n_rules: int) -> dict[str, Any]:
    """Return the flags as a flagd file, with so many copies of the rule."""
    return {
        "flags": {
            "static": STATIC,
            "rollout": {**STATIC, "defaultVariant": "off", "targeting": SPLIT},
            **{f"rule-{number}": RULE for number in range(n_rules)},
        }
    }


def flagd_core(n_rules: int) -> Ask:
    """flagd's evaluator for Python."""
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext

    core = FlagdCore()
    core.set_flags(json.dumps(flagd_document(n_rules)))
    return lambda questions: [
        core.resolve_boolean_value(key, False, EvaluationContext(unit, attributes)).value  # noqa: FBT003
        for key, unit, attributes in questions
    ]


def openfeature_flagd(n_rules: int) -> Ask:
    """OpenFeature's client over flagd's provider in its file mode."""
    from openfeature import api
    from openfeature.contrib.provider.flagd import FlagdProvider
    from openfeature.contrib.provider.flagd.config import ResolverType
    from openfeature.evaluation_context import EvaluationContext

    path = Path(KEPT.name) / f"flagd-{n_rules}.json"
    path.write_text(json.dumps(flagd_document(n_rules)))
    provider = FlagdProvider(
        resolver_type=ResolverType.FILE,
        offline_flag_source_path=str(path),
    )
    api.set_provider_and_wait(provider, domain=f"flagd-{n_rules}")
    _OPEN.append(api.clear_providers)
    client = api.get_client(f"flagd-{n_rules}")
    return lambda questions: [
        client.get_boolean_details(key, False, EvaluationContext(unit, attributes)).value  # noqa: FBT003
        for key, unit, attributes in questions
    ]


def growthbook(n_rules: int) -> Ask:
    """GrowthBook's SDK, one object for all users."""
    from growthbook import GrowthBook

    condition = {"plan": "pro", "age": {"$gte": 18}, "country": {"$in": ["DE", "FR"]}}
    tenth = {"condition": {"plan": "pro"}, "force": True, "coverage": 0.1, "hashAttribute": "id"}
    rule = {"defaultValue": False, "rules": [{"condition": condition, "force": True}]}
    features = {
        "static": {"defaultValue": True},
        "rollout": {"defaultValue": False, "rules": [tenth]},
        **{f"rule-{number}": rule for number in range(n_rules)},
    }
    client = GrowthBook(features=features)

    def ask(questions: list[Question]) -> list[bool]:
        answers = []
        for key, unit, attributes in questions:
            client.set_attributes({"id": unit, **attributes})
            answers.append(client.eval_feature(key).value)
        return answers

    return ask


def unleash_document(n_rules: int) -> dict[str, Any]:
    """Return the flags as an Unleash server would give them."""
    constraints = [
        {"contextName": "plan", "operator": "IN", "values": ["pro"]},
        {"contextName": "age", "operator": "NUM_GTE", "value": "18"},
        {"contextName": "country", "operator": "IN", "values": ["DE", "FR"]},
    ]
    parameters = {"rollout": "10", "stickiness": "userId", "groupId": "rollout"}
    tenth = {
        "name": "flexibleRollout",
        "parameters": parameters,
        "constraints": constraints[:1],
    }
    strategies: dict[str, Any] = {
        "static": {"name": "default", "parameters": {}},
        "rollout": tenth,
        **{
            f"rule-{number}": {"name": "default", "parameters": {}, "constraints": constraints}
            for number in range(n_rules)
        },
    }
    features = [
        {"name": key, "type": "release", "enabled": True, "strategies": [strategy]}
        for key, strategy in strategies.items()
    ]
    return {"version": 2, "features": features}


def _properties(unit: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {"userId": unit, "properties": {name: str(value) for name, value in attributes.items()}}


def yggdrasil(n_rules: int) -> Ask:
    """Unleash's engine, without the client around it."""
    from yggdrasil_engine.engine import UnleashEngine

    engine = UnleashEngine()
    engine.take_state(json.dumps(unleash_document(n_rules)))
    return lambda questions: [
        engine.is_enabled(key, _properties(unit, attributes)).is_enabled
        for key, unit, attributes in questions
    ]


def unleash(n_rules: int) -> Ask:
    """Unleash's client, which counts, around its engine; it asks no server."""
    from UnleashClient import UnleashClient
    from UnleashClient.cache import FileCache

    cache = FileCache(f"mlkit-bench-{n_rules}", directory=KEPT.name)
    cache.bootstrap_from_dict(unleash_document(n_rules))
    client = UnleashClient(
        "http://127.0.0.1:9/api",
        f"mlkit-bench-{n_rules}",
        cache=cache,
        disable_metrics=True,
        disable_registration=True,
        refresh_interval=10**6,
    )
    client.initialize_client(fetch_toggles=False)
    _OPEN.append(client.destroy)
    return lambda questions: [
        client.is_enabled(key, _properties(unit, attributes)) for key, unit, attributes in questions
    ]


def configcat(n_rules: int) -> Ask:
    """ConfigCat's client over a local file, which it looks at before each answer."""
    import configcatclient
    from configcatclient.configcatoptions import ConfigCatOptions
    from configcatclient.localfiledatasource import LocalFileFlagOverrides
    from configcatclient.overridedatasource import OverrideBehaviour
    from configcatclient.user import User

    on, off = {"v": {"b": True}, "i": "on"}, {"v": {"b": False}, "i": "off"}
    pro = {"u": {"a": "plan", "c": 28, "s": "pro"}}
    adult = {"u": {"a": "age", "c": 15, "d": 18}}
    here = {"u": {"a": "country", "c": 0, "l": ["DE", "FR"]}}
    tenth = [{"p": 10, **on}, {"p": 90, **off}]
    rule = {"t": 0, **off, "r": [{"c": [pro, adult, here], "s": on}]}
    settings = {
        "static": {"t": 0, **on},
        "rollout": {"t": 0, **off, "r": [{"c": [pro], "p": tenth}]},
        **{f"rule-{number}": rule for number in range(n_rules)},
    }
    path = Path(KEPT.name) / f"configcat-{n_rules}.json"
    path.write_text(json.dumps({"p": {"s": "salt"}, "f": settings}))
    overrides = LocalFileFlagOverrides(str(path), OverrideBehaviour.LocalOnly)
    client = configcatclient.get(
        f"configcat-sdk-1/{n_rules:022d}/{n_rules:022d}", ConfigCatOptions(flag_overrides=overrides)
    )
    _OPEN.append(client.close)
    return lambda questions: [
        client.get_value_details(key, False, User(unit, custom=attributes)).value  # noqa: FBT003
        for key, unit, attributes in questions
    ]


def datalogic(n_rules: int) -> Ask:
    """A JsonLogic engine in Rust: the rules alone, parsed before; neither flags nor splits."""
    from datalogic_py import Engine

    engine = Engine()
    rules = {f"rule-{number}": engine.compile(RULE["targeting"]) for number in range(n_rules)}
    return lambda questions: [
        rules[key].evaluate({"targetingKey": unit, **attributes}) == "on"
        for key, unit, attributes in questions
    ]


PEERS: dict[str, Callable[[int], Ask]] = {
    "flagd-core": flagd_core,
    "openfeature + flagd file": openfeature_flagd,
    "growthbook": growthbook,
    "unleash client": unleash,
    "unleash engine (yggdrasil)": yggdrasil,
    "configcat": configcat,
    "datalogic-py": datalogic,
}
# Whose hash is flagd's, so that they choose the same units.
SAME_HASH = frozenset({"flagd-core", "openfeature + flagd file"})
