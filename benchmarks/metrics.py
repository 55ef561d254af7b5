"""How fast metrics score: CIDEr-D against pycocoevalcap's own, VQA accuracy, and the bootstrap.

Text is made from a random seed, the same for both ways.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.timing import medians
from encoder_bench.data.sample import Sample

_VOCABULARY = 4000
_WORDS = (8, 13)
_REFERENCES = 5
_ANSWERS = ("yes", "no", "two", "red", "a dog", "on the table", "skateboarding", "black and white")


def run_bench(
    *, images: int = 5000, answers: int = 10_000, repeats: int = 5, device: str = "cpu"
) -> dict[str, Any]:
    """Measure the metrics' speed and return JSON; they run on the CPU whatever `device` says."""
    return {
        "settings": {"images": images, "answers": answers, "repeats": repeats},
        "cider": _cider(images, repeats),
        "vqa": _vqa(answers, repeats),
    }


def _sentences(count: int, seed: int) -> list[str]:
    """Return sentences of words that are drawn about as unevenly as those of captions."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(_VOCABULARY)]
    weights = [1 / (number + 3) for number in range(_VOCABULARY)]
    lengths = [rng.randint(*_WORDS) for _ in range(count)]
    drawn = iter(rng.choices(words, weights, k=sum(lengths)))
    return [" ".join(next(drawn) for _ in range(length)) for length in lengths]


def _cider(images: int, repeats: int) -> dict[str, float]:
    import numpy as np
    from pycocoevalcap.cider.cider import Cider

    from encoder_bench.metrics.caption import cider_d

    flat = _sentences(images * _REFERENCES, 1)
    truths = {i: flat[i * _REFERENCES : (i + 1) * _REFERENCES] for i in range(images)}
    guesses = {i: [text] for i, text in enumerate(_sentences(images, 2))}
    ours, theirs = [guesses[i][0] for i in range(images)], list(truths.values())
    own, official = medians(
        [lambda: cider_d(ours, theirs), lambda: Cider().compute_score(truths, guesses)],
        repeats,
    )
    raw = [f"A {text}, and it's there." for text in flat + ours]
    (tokenised,) = medians([lambda: _tokenise(raw)], repeats)
    apart = np.abs(cider_d(ours, theirs) - np.array(Cider().compute_score(truths, guesses)[1]))
    return {
        "seconds": own,
        "pycocoevalcap_seconds": official,
        "times_as_fast": official / own,
        "largest_difference": float(apart.max()),
        "tokenising_seconds": tokenised,
    }


def _vqa(answers: int, repeats: int) -> dict[str, float]:
    from encoder_bench.metrics import vqa
    from encoder_bench.metrics.metric import find_metric, runner_metrics
    from encoder_bench.tasks.evaluate import score_of

    rng = random.Random(3)
    samples = [
        Sample(f"{i}", "vqa", i // 5, Path("x"), "?", tuple(rng.choices(_ANSWERS, k=10)), "yes")
        for i in range(answers)
    ]
    texts = [f"{rng.choice(_ANSWERS)} {i % 50}" for i in range(answers)]

    def scored(names: list[str]) -> None:
        vqa.normalise.cache_clear()
        vqa.strip_punctuation.cache_clear()
        references = [sample.references for sample in samples]
        for name in names:
            score_of(find_metric(name).measure(texts, references), samples, seed=0)

    official, every = medians(
        [lambda: scored(["vqa_accuracy"]), lambda: scored(runner_metrics("vqa"))], repeats
    )
    return {"official_with_interval_seconds": official, "all_variants_seconds": every}


def _tokenise(texts: list[str]) -> None:
    from encoder_bench.metrics.ptb import ptb_tokenize

    ptb_tokenize.cache_clear()
    for text in texts:
        ptb_tokenize(text)
