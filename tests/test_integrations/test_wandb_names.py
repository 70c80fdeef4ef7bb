"""Names: what a backend refuses gets another name, and different names stay different."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlkit.integrations import comet, trackio, wandb
from mlkit.integrations._names import address_of, folder_and_options, safe_name, typed

RULES = [
    (wandb._is_key, 128), (wandb._is_id, 64), (wandb._is_project, 128), (comet._is_key, 100), (comet._is_file, 100),
    (trackio._is_key, 500), (trackio._is_artifact, 128), (str.isprintable, 1000),
]  # fmt: skip
names = (
    st.text(max_size=12)
    | st.text("ab/.-_ #%?\n\ud800é", max_size=6)
    | st.text("x-0", min_size=90, max_size=600)
)


@given(st.lists(names, unique=True, max_size=6), st.sampled_from(RULES))
def test_different_names_stay_different_and_are_taken(given_names, rule):
    is_fine, limit = rule
    safe = [safe_name(name, is_fine, limit) for name in given_names]
    assert len(set(safe)) == len(safe)
    for name, one in zip(given_names, safe, strict=True):
        assert one
        assert len(one) <= limit
        assert is_fine(one)
        # A name that was made of another is none that stands for itself.
        assert (
            safe_name(one, is_fine, limit) == one
            if one == name
            else one != safe_name(one, is_fine, limit)
        )


@given(
    st.text(max_size=12) | st.floats().map(str) | st.integers().map(str) | st.booleans().map(str)
)
def test_a_typed_param_has_its_text(text):
    value = typed(text)
    assert str(value) == text.encode("utf-8", "backslashreplace").decode()


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.dictionaries(st.sampled_from(["mode", "project"]), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)),
)  # fmt: skip
def test_an_address_is_read_back_as_it_was(name, options):
    from pathlib import Path

    known = dict.fromkeys(["mode", "project"])
    folder, given_options = folder_and_options(
        "Sink", Path("/data") / name.strip("/"), {**known, **options}
    )
    again, read = folder_and_options(
        "Sink", address_of("x", folder, given_options).partition(":")[2], known
    )
    assert (again, read) == (folder, options)
