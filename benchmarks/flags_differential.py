"""The same decisions as flagd's official evaluators for Python, on random flags, keys and contexts.

`python -m benchmarks.flags_differential` runs 100,000 triples for each bucketing generation and writes
`benchmarks/results/flags_differential.json`. Generation v3 is openfeature-flagd-core 2.0 of this environment; v2 is 1.0, which
lies in `flagd-core-1` of the environment or in the folder that `FLAGD_CORE_1` names. The rules leave out what the concepts
page lists as different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "flags_differential.json"
VARIANTS = {"a": "A", "b": "B", "c": "C", "true": "T", "false": "F"}
NAMES = ["a", "b", "c", "true", "false"]
TEXTS = ["pro", "free", "ann@faas.com", "", "DE", "x", "日本", "naïve", "10", "2.5", "abc", "u-17"]
VERSIONS = ["1.2.3", "2.0.0-alpha", "v1.2", "2", "1.2.3+b", "not", "3.1.0-rc.1", "10.0.0"]
NUMBERS = [0, 1, 2, 7, 18, 65, 1000, 2**31, 2**40, 2.5, 0.1, 0.001]
PER_FLAG = 20
# What flagd-core runs in: it knows nothing of us, and the two generations cannot be imported side by side.
OFFICIAL = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
for line in sys.stdin:
    key, document, triples = json.loads(line)
    core, answers = FlagdCore(), []
    core.set_flags(document)
    for unit, context in triples:
        try:
            made = core.resolve_string_value(key, "DEFAULT", EvaluationContext(unit, context))
            answers.append([made.value, made.variant, str(getattr(made.reason, "value", made.reason))])
        except Exception:
            answers.append(["DEFAULT", None, "ERROR"])
    print(json.dumps(answers))
"""


class Maker:
    """Makes random flags and contexts.

    Args:
        seed: Where it begins.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def flag(self) -> tuple[str, dict[str, Any]]:
        """Return a key and a document that holds it."""
        pick, key = self.random, self.random.choice(["f", "new-tokeniser", "флаг", "x" * 40])
        flag: dict[str, Any] = {"state": "ENABLED", "variants": VARIANTS}
        if pick.random() < 0.8:
            flag["defaultVariant"] = pick.choice(NAMES)
        if pick.random() < 0.95:
            flag["targeting"] = self.decision(3)
        if pick.random() < 0.03:
            flag["state"] = "DISABLED"
        shared = self.condition(1)
        # flagd-core can put no other text in the place of a reference, and no reference to itself.
        while not (text := json.dumps(shared, ensure_ascii=False)).isascii() or "$ref" in text:
            shared = self.condition(1)
        return key, {"flags": {key: flag}, "$evaluators": {"shared": shared}}

    def decision(self, depth: int) -> dict[str, Any]:
        """Return a rule that gives a variant, or none."""
        roll = self.random.random()
        if depth and roll < 0.5:
            arms = [self.condition(depth - 1), self.outcome(depth - 1), self.outcome(depth - 1)]
            if self.random.random() < 0.2:
                arms = [self.condition(depth - 1), self.outcome(depth - 1), *arms]
            return {"if": arms[: len(arms) - (self.random.random() < 0.15)]}
        if depth and roll < 0.57:
            return {"or": [self.decision(depth - 1), self.outcome(0)]}
        if roll < 0.62:
            return {"var": self.random.choice(["choice", "email", "gone"])}
        return self.split(depth)

    def outcome(self, depth: int) -> Any:
        if depth and self.random.random() < 0.4:
            return self.decision(depth - 1)
        return self.random.choice([*NAMES, *NAMES, True, False, None, "nowhere"])

    def split(self, depth: int) -> dict[str, Any]:
        """Return a `fractional`."""
        pick = self.random
        pairs: list[Any] = []
        for _ in range(pick.randint(1, 4)):
            outcome = (
                self.outcome(0) if depth == 0 or pick.random() < 0.8 else self.outcome(depth - 1)
            )
            weight: Any = pick.choice([0, 1, 10, 33, 50, 100, 99_999])
            if pick.random() < 0.08:
                weight = {"if": [self.condition(0), 100, 0]}
            pairs.append([outcome] if pick.random() < 0.1 else [outcome, weight])
        if pick.random() < 0.45:
            return {"fractional": pairs}
        return {"fractional": [self.bucket_key(), *pairs]}

    def bucket_key(self) -> dict[str, Any]:
        key = self.random.choice(
            ["targetingKey", "email", "age", "score", "beta", "user.name", "user", "gone"]
        )
        if self.random.random() < 0.5:
            return {"var": key}
        second = self.random.choice(["targetingKey", "email", "age", "gone"])
        return {"cat": [self.random.choice(["seed-", {"var": "$flagd.flagKey"}]), {"var": second}]}

    def condition(self, depth: int) -> Any:
        """Return a rule that holds or does not."""
        pick = self.random
        if depth and pick.random() < 0.35:
            name = pick.choice(["and", "or", "!"])
            n = 1 if name == "!" else pick.randint(1, 3)
            return {name: [self.condition(depth - 1) for _ in range(n)]}
        text = {
            "var": pick.choice(
                ["plan", "email", "country", "choice", "user.name", "gone", "targetingKey"]
            )
        }
        number = {"var": pick.choice(["age", "score", "gone", "user.age"])}
        name = pick.choice(["==", "!=", "<", "in", "sub", "starts_with", "sem_ver", "missing", "any", "sum", "ref", "split", "between"])  # fmt: skip
        if name in {"==", "!="}:
            either = pick.choice([(text, pick.choice(TEXTS)), (number, pick.choice(NUMBERS))])
            return {pick.choice([name, f"{name}="]): list(either)}
        if name == "<":
            return {pick.choice(["<", "<=", ">", ">="]): [number, pick.choice(NUMBERS)]}
        if name == "between":
            return {pick.choice(["<", "<="]): [pick.choice(NUMBERS), number, pick.choice(NUMBERS)]}
        if name == "in":
            return {"in": [text, pick.sample(TEXTS, 3)]}
        if name == "sub":
            return {"in": [pick.choice(["a", "@faas.com", "本"]), text]}
        if name == "starts_with":
            return {pick.choice(["starts_with", "ends_with"]): [pick.choice([text, number]), pick.choice(["a", "com", "pro", ""])]}  # fmt: skip
        if name == "sem_ver":
            operator = pick.choice(["=", "!=", "<", "<=", ">", ">=", "^", "~", "?"])
            return {"sem_ver": [{"var": "version"}, operator, pick.choice(VERSIONS)]}
        if name == "missing":
            return (
                {"missing": ["email", "age"]}
                if pick.random() < 0.5
                else {"missing_some": [1, ["age", "gone"]]}
            )
        if name == "any":
            return {pick.choice(["some", "all", "none"]): [{"var": "tags"}, {"==": [{"var": ""}, pick.choice(TEXTS)]}]}  # fmt: skip
        if name == "sum":
            return {">": [{pick.choice(["+", "-", "*", "max", "min"]): [number, pick.choice([1, 2, 18])]}, pick.choice(NUMBERS)]}  # fmt: skip
        return {"$ref": "shared"} if name == "ref" and depth else {"!!": [text]}

    def context(self) -> dict[str, Any]:
        """Return attributes."""
        pick = self.random
        whole = {
            "plan": pick.choice(["pro", "free", ""]),
            "email": pick.choice(TEXTS),
            "country": pick.choice(["DE", "FR", None]),
            "age": pick.choice([*NUMBERS, -3, "21", None]),
            "score": pick.choice([0.5, 3.0, 1e16, 123456.789, -0.25]),
            "beta": pick.choice([True, False]),
            "choice": pick.choice([*NAMES, "other", True, False, None]),
            "version": pick.choice(VERSIONS),
            "tags": pick.choice([[], ["pro", "x"], ["x"], [1, 2]]),
            "user": pick.choice(
                [{"name": "ann", "age": 30}, {"name": None}, {"age": 2.5, "z": [1, None]}]
            ),
        }
        return {name: value for name, value in whole.items() if pick.random() < 0.85}

    def unit(self) -> str | None:
        """Return a targeting key."""
        pick = self.random
        if pick.random() < 0.05:
            return pick.choice([None, "", "é" * 30])
        return f"user-{pick.getrandbits(pick.choice([8, 32, 100]))}" + pick.choice(
            ["", "@example.com", "日"]
        )


def official(generation: str) -> dict[str, str] | str:
    """Return the environment in which a generation's evaluator is found, or why there is none."""
    folder = os.environ.get("FLAGD_CORE_1") or str(Path(sys.prefix) / "flagd-core-1")
    paths = [folder] if generation == "v2" else []
    if paths and not Path(folder).is_dir():
        return f"openfeature-flagd-core 1.0 is not in {Path(folder).name}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    probe = [sys.executable, "-c", "import openfeature.contrib.tools.flagd.core"]
    done = subprocess.run(probe, env=environment, capture_output=True, check=False)
    return environment if done.returncode == 0 else "openfeature-flagd-core is not installed"


def compare(generation: str, n: int, seed: int = 0) -> dict[str, Any] | str:
    """Return how often we agree with the official evaluator, or why it could not be asked.

    Args:
        generation: `"v2"` or `"v3"`.
        n: How many triples of flag, key and context.
        seed: Of the random flags.
    """
    from mlkit.flags import Flags

    environment = official(generation)
    if isinstance(environment, str):
        return environment
    maker, cases = Maker(seed), []
    for _ in range(-(-n // PER_FLAG)):
        key, document = maker.flag()
        cases.append((key, document, [(maker.unit(), maker.context()) for _ in range(PER_FLAG)]))
    lines = "\n".join(
        json.dumps([key, json.dumps(document), triples]) for key, document, triples in cases
    )
    command = [sys.executable, "-c", OFFICIAL]
    done = subprocess.run(
        command, input=lines.encode(), env=environment, capture_output=True, check=True
    )
    different: list[Any] = []
    reasons: dict[str, int] = {}
    for (key, document, triples), line in zip(cases, done.stdout.splitlines(), strict=True):
        flags = Flags.from_dict({**document, "metadata": {"bucketing": generation}})
        flag = flags.str(key, default="DEFAULT")
        for (unit, context), theirs in zip(triples, json.loads(line), strict=True):
            details = flag.details(unit, **context)
            ours = [details.value, details.variant, details.reason]
            reasons[details.reason] = reasons.get(details.reason, 0) + 1
            if ours != theirs:
                different.append(
                    [document["flags"][key].get("targeting"), unit, context, ours, theirs]
                )
    total = sum(reasons.values())
    return {
        "triples": total,
        "different": len(different),
        "reasons": reasons,
        "first": different[:5],
    }


def main() -> int:
    """Run both generations and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = {generation: compare(generation, given.n, given.seed) for generation in ("v2", "v3")}
    text = json.dumps({"seed": given.seed, **result}, indent=1, ensure_ascii=False)
    print(text)
    if given.n >= 100_000:
        RESULT.write_text(text + "\n")
    return int(any(isinstance(made, str) or made["different"] for made in result.values()))


if __name__ == "__main__":
    sys.exit(main())
