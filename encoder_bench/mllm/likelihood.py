"""Likelihoods: how probable each of a few given answers is, in one forward pass.

Axes: R rows, L tokens of a row, T reply tokens, B images, M visual tokens, E LLM width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.generate import evaluating, regroup
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import pack_candidates
from encoder_bench.mllm.prefix import Prefix, Question

Replies = tuple[tuple[int, ...], ...]
"""Token ids of every candidate, end of turn included."""


@torch.inference_mode()
def score(
    mllm: MLLM, visual: Tensor | None, prompts: Sequence[Sequence[str]], candidates: Sequence[str]
) -> list[list[list[float]]]:
    """Return the log-probability (nats) of each candidate as the whole answer to each prompt.

    The sum runs over the candidate's tokens and the end of turn, so that "1" and "10" compare.
    Without `visual` `(B, M, E)` no image is shown; `prompts` are grouped by image.

    Raises:
        DataError: an empty prompt or candidate, or one too long for the context.
    """
    if not candidates or not all(text.strip() for text in candidates):
        raise DataError("candidates to score: there are none, or one is empty")
    language = mllm.language
    with evaluating(language):
        prefix = Prefix(language, visual)
        questions = prefix.questions(prompts)
        if not all(question.ids for question in questions):
            raise DataError("an empty prompt cannot be scored")
        texts = [prompt for group in prompts for prompt in group]
        replies: dict[Question, Replies] = {
            question: tuple(
                tuple(language.turn_ids(prompt, candidate, image=prefix.with_image)[1])
                for candidate in candidates
            )
            for question, prompt in zip(questions, texts, strict=True)
        }
        longest = max(len(reply) for row in replies.values() for reply in row)
        prefix.check_context(questions, longest)
        unique = sorted(replies, key=lambda question: len(question.ids))
        scores: dict[Question, list[float]] = {}
        for batch in prefix.batches(unique, new_tokens=longest * len(candidates)):
            scores |= _score_batch(language, prefix, {q: replies[q] for q in batch})
    return regroup([scores[question] for question in questions], prompts)


def _score_batch(
    language: LanguageModel, prefix: Prefix, replies: dict[Question, Replies]
) -> dict[Question, list[float]]:
    """Score a row per question, or per candidate where no mask can keep them apart."""
    if language.keeps_questions_apart:
        rows = list(replies.items())
    else:
        rows = [(question, (reply,)) for question, group in replies.items() for reply in group]
    packed = pack_candidates(
        [(question.ids, group) for question, group in rows],
        pad_id=language.pad_id,
        prefix_length=prefix.length,
    ).to(language.device)
    mask = packed.mask()
    logits_TV: Tensor = language(
        language.embed(packed.input_ids),
        mask=None if mask is None else F.pad(mask, (prefix.length, 0), value=True),
        position_ids=packed.position_ids,
        cache=prefix.cache_for([question for question, _ in rows]),
        at=(packed.loss_rows, packed.loss_columns),
    )
    spread_TV = F.log_softmax(logits_TV.float(), dim=-1)
    values = iter(spread_TV.gather(1, packed.targets[:, None])[:, 0].double().tolist())
    scores: dict[Question, list[float]] = {question: [] for question in replies}
    for question, group in rows:
        scores[question] += [sum(next(values) for _ in reply) for reply in group]
    return scores
