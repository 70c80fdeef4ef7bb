"""A card says what the store knows, is the same each time, and shows what people wrote as text."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mlkit.errors import VersionNotFoundError
from mlkit.models import ModelStore
from mlkit.testing import VirtualTime

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table><h1>x</h1>", "<!-- ", "&lt;b&gt;",
    "a | b | c", "x\n\n# Approved\n\n- [x] safe", "[click](javascript:alert(1))", "![i](http://e/x.png)",
    "<http://e>", "`code`", "``` \n", "**bold** _it_ ~~gone~~", "[ref]: http://e", "a\\", "\\|", "\u202egnp.exe",
    "\x00\x1b[31m", "http://e.com www.e.com", "$x$", "| --- |", "", " ", "\u2028line",
]  # fmt: skip


def make(path, text="good", clock=None) -> ModelStore:
    store = ModelStore(path, who=text, clock=clock)
    store.save("m", b"old")
    store.save(
        "m", {"w": np.zeros((2, 3))}, run=text, metrics={"accuracy": 0.5, text or "x": float("nan")},
        tags={text or "x": text}, manifest={"data": {text: text, "train": "sha256:12"}, text: [text]},
        spec={"type": text}, example={text or "x": np.zeros((2, 3))}, output=np.zeros(2), why=text,
    )  # fmt: skip
    store.promote("m", 1, why="first")
    store.promote("m", 2, checks=[lambda version: None], why=text)
    return store


def test_everything_that_is_known_is_on_it(tmp_path):
    store = make(tmp_path)
    version = store.get("m@2")
    card = store.card("m@champion")
    assert card == store.card(version) == ModelStore(tmp_path).card("m@2")
    assert card.startswith("# m@2\n")
    for part in (
        version.digest,
        f"numpy, {version.n_bytes} bytes",
        "champion",
        "0.5",
        "nan",
        "sha256:12",
        "float64",
        "(any, 3)",
    ):
        assert part in card
    for line in ("| champion to 2 from 1 |", "| promoted |", "| saved |", '"type": "good"'):
        assert line in card
    other = store.card("m@1")
    assert "None was recorded." in other
    assert "None were recorded." in other
    assert "champion to 1" in other
    with pytest.raises(VersionNotFoundError):
        store.card("m@9")


def test_equal_stores_have_equal_cards(tmp_path):
    cards = {make(tmp_path / place, clock=VirtualTime()).card("m@2") for place in "ab"}
    assert len(cards) == 1


def shown(card):
    """Return the rendered page without the tags that a card has itself."""
    own = r"</?(h1|h2|p|table|thead|tbody|tr|th|td|pre)>|<code class=\"language-json\">|</code>"
    return re.sub(own, "", RENDER.render(card))


@given(st.text(max_size=60))
@settings(max_examples=25)
@example(" ")
def test_whatever_people_wrote_stays_text(tmp_path_factory, text):
    text = "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)
    store = make(tmp_path_factory.mktemp("card"), text)
    page = shown(store.card("m@2"))
    assert "<" not in page, "no tag is anybody else's"
    assert page.count("\n") < 400


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_injections(tmp_path, text):
    card = make(tmp_path, text).card("m@2")
    rendered = RENDER.render(card)
    assert "<" not in shown(card)
    assert rendered.count("<h1>") == 1
    assert rendered.count("<table>") == 6
    assert rendered.count("<h2>") == 6
    assert not any(character in card for character in "\x00\x1b\u202e\u2028")
    rows = re.findall(r"<tr>.*?</tr>", rendered.partition("<h2>History")[2], re.DOTALL)
    assert {row.count("<td>") for row in rows[1:]} == {6}
    visible = (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\n", " ")
        .strip()
    )
    if visible.isprintable():
        assert visible in rendered, "it shows as it was written"


def test_a_long_text_is_cut(tmp_path):
    store = ModelStore(tmp_path)
    store.save("m", b"x", tags={"note": "x" * 100_000}, spec={"a": ["y" * 100] * 1000})
    assert len(store.card("m@1")) < 40_000
