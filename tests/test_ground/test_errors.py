"""Every error is one tree, is the builtin a caller would catch, survives a pickle, and stays short."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

from mlkit import errors
from mlkit.errors import MlkitError

LONG = "x" * 10_000

# One way to raise each error, with hostile lengths where text comes from a user.
EXAMPLES: dict[str, tuple[tuple, dict]] = {
    "AliasConflictError": (("churn@champion",), {"expected": 1, "got": None}),
    "AllTiersFailedError": (
        ("no tier answered", [ValueError(LONG), KeyError("b")]),
        {"tiers": ["big", "small"]},
    ),
    "BatcherClosedError": (("closed",), {}),
    "BreakerOpenError": (("ranker", LONG), {"retry_after": 2.5}),
    "BulkheadFullError": (("ranker", "8 calls in flight"), {}),
    "ChecksFailedError": (("churn@7", {f"check{i}": LONG for i in range(99)}), {}),
    "CheckpointError": (("scores.ckpt", "is of another job"), {}),
    "EngineError": (("dask", LONG), {}),
    "CollateError": (("shape (3,) beside (4,)",), {"index": 2}),
    "ConfigurationError": (("Batcher(max_wait=...)", LONG, "a number"), {"hint": "seconds"}),
    "DeadlineExceededError": (("the call", 0.2), {}),
    "DigestError": (("$" + LONG, "reason"), {}),
    "DuplicateNameError": (("models", "mlp@1"), {"first": "a:1", "second": "b:2"}),
    "RegistryFrozenError": (("models", LONG), {}),
    "EntryError": (("models", "vit"), {"target": "pkg:ViT", "reason": LONG}),
    "FingerprintError": (("$.a", "reason"), {}),
    "FlagFileError": (("flags.json", LONG), {}),
    "FlagTypeError": (("new-tokeniser",), {"expected": "bool", "got": "str"}),
    "IntegrityError": (("weights",), {"expected": "sha256:a", "got": "sha256:b"}),
    "JournalError": (("run.log", LONG), {}),
    "MissingDependencyError": (
        (),
        {"feature": "MlflowSink", "module": "mlflow", "extra": "mlflow"},
    ),
    "NoCandidateError": (("predictors", {f"n{i}": LONG for i in range(99)}), {}),
    "OutputShapeError": (("model",), {"expected": 3, "got": 2}),
    "ParamConflictError": (("lr", 0.1, LONG), {}),
    "OverloadedError": ((LONG, LONG), {"retry_after": 1.5}),
    "QueueFullError": ((16,), {"name": LONG, "retry_after": 1.5}),
    "RateLimitedError": (("api", "too many"), {"retry_after": 1.0}),
    "NumberTakenError": ((LONG,), {"last": 7}),
    "SignatureError": ((LONG,), {"required": ["a" * 64] * 99, "found": [LONG] * 99}),
    "SealError": ((LONG,), {"key_id": LONG, "reason": LONG}),
    "StoreUnavailableError": ((LONG, LONG), {}),
    "StoreLockedError": ((LONG,), {"timeout": 2.5, "holder": LONG}),
    "RebuildError": (("churn@7", LONG), {}),
    "RejectedError": (("api", "no"), {}),
    "ResultRejectedError": (("finite", "big"), {}),
    "RowsMismatchError": (("small", "answer['probs']", "3 rows came back for 2"), {}),
    "RowError": ((3, ValueError(LONG)), {}),
    "RunClosedError": (("r1",), {}),
    "RunNotFoundError": ((LONG, ["runs"]), {}),
    "SpecError": (([errors.SpecProblem(LONG, "type", LONG, source="a.yaml:1:1")] * 50,), {}),
    "UnknownNameError": (
        ("models", "resnt18", [f"resnet{i}" for i in range(10_000)]),
        {"hint": LONG},
    ),
    "UntrustedFormatError": ((LONG, "pass trust"), {}),
    "ModelInputError": ((LONG, [LONG] * 99), {}),
    "UnknownFormatError": ((LONG, "joblib", [LONG] * 99), {}),
    "VersionInUseError": (("churn@7", ["champion"]), {}),
    "VersionNotFoundError": (("churn@9", ["churn@7"]), {}),
}
ERRORS = [
    kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, MlkitError)
]


@pytest.fixture(params=ERRORS, ids=lambda kind: kind.__name__)
def error(request: pytest.FixtureRequest) -> MlkitError:
    args, kwargs = EXAMPLES.get(request.param.__name__, (("something happened: " + LONG,), {}))
    return request.param(*args, **kwargs)


def test_survives_a_pickle_with_its_attributes_and_notes(error: MlkitError) -> None:
    error.add_note("attempt 1: ConnectionError")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__notes__ == error.__notes__
        for name in error.__dict__:
            assert repr(getattr(again, name)) == repr(getattr(error, name))
        if isinstance(error, ImportError):
            assert again.name == error.name


def test_is_short_and_one_readable_text(error: MlkitError) -> None:
    text = str(error)
    assert text
    assert len(text) <= 600
    assert text[0] not in "(\"'" or text[0] != text[-1]


def test_stands_in_the_tree_with_its_builtin() -> None:
    tree = errors.__doc__ or ""
    for kind in ERRORS[1:]:
        line = re.search(rf"^[│├└─ ]+{kind.__name__}( \((\w+)\))?", tree, re.MULTILINE)
        assert line, f"{kind.__name__} is not drawn in the docstring"
        if line[2]:
            assert issubclass(kind, getattr(builtins, line[2]))


def test_the_tree_is_drawn_by_descent() -> None:
    parents: list[type] = [MlkitError]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]+)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            kind = getattr(errors, found[2])
            del parents[depth:]
            assert parents[-1] in kind.__bases__, f"{found[2]} is not below {parents[-1].__name__}"
            parents.append(kind)


def test_all_public_names_are_exported() -> None:
    public = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and value.__module__ == errors.__name__
        and not name.startswith("_")
    ]
    assert sorted(public) == errors.__all__


def test_a_group_can_be_split_and_stays_ours() -> None:
    group = errors.AllTiersFailedError("no tier answered", [ValueError("a"), KeyError("b")])
    values, rest = group.split(ValueError)
    assert isinstance(values, errors.AllTiersFailedError)
    assert [type(error) for error in rest.exceptions] == [KeyError]
    try:
        raise group
    except* KeyError as caught:
        assert len(caught.exceptions) == 1
    except* ValueError:
        pass


def test_a_group_says_whose_error_each_is_also_after_a_split() -> None:
    same = [ValueError("boom"), KeyError("k"), ValueError("boom")]
    group = errors.AllTiersFailedError("no tier answered", same, tiers=["a", "b", "c"])
    assert str(group).splitlines() == [
        "no tier answered",
        "  - a: ValueError: boom",
        "  - b: KeyError: 'k'",
        "  - c: ValueError: boom",
    ]
    values, rest = group.split(ValueError)
    assert (values.tiers, rest.tiers) == (("a", "c"), ("b",))
    assert pickle.loads(pickle.dumps(values)).tiers == ("a", "c")
    unnamed, _ = errors.AllTiersFailedError("no tier answered", same).split(KeyError)
    assert unnamed.tiers == ()
    assert str(unnamed) == "no tier answered\n  - KeyError: 'k'"


def test_unknown_names_come_with_the_near_ones() -> None:
    error = errors.UnknownNameError("models", "ResNt_18", ["vit", "resnet-18"])
    assert error.suggestions == ("resnet-18",)
    assert "did you mean 'resnet-18'?" in str(error)
    assert isinstance(error, KeyError)


def test_a_broken_repr_does_not_hide_the_error() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "<Broken>" in str(errors.ConfigurationError("f(x)", Broken(), "a number"))
