"""Likelihoods: how probable each of a few given answers is, in one forward pass.

What belongs here: rows of one question and all its candidates, behind the keys and values of the
image prefix, each candidate blind to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.prefix import Prefix, Question, check_context
from encoder_bench.mllm.shared_rows import lay_out_candidates

Replies = tuple[tuple[int, ...], ...]
"""Token ids of every candidate, end of turn included."""


def score_questions(
    language: LanguageModel,
    prefix: Prefix,
    questions: Sequence[Question],
    prompts: Sequence[str],
    candidates: Sequence[str],
) -> list[list[float]]:
    """Return each candidate's summed log-probability (nats), one list a question.

    Args:
        language: the language model, in eval mode.
        prefix: of the images that the questions are about.
        questions: tokenised `prompts`.
        prompts: their texts, in which candidates are tokenised.
        candidates: the answers among which to choose.

    Raises:
        DataError: an empty prompt or candidate, or one too long for the context.
    """
    if not candidates or not all(text.strip() for text in candidates):
        raise DataError("candidates to score: there are none, or one is empty")
    if not all(question.ids for question in questions):
        raise DataError("an empty prompt cannot be scored")
    image = prefix.with_image
    replies: dict[Question, Replies] = {
        question: tuple(
            tuple(language.turn_ids(prompt, text, image=image)[1]) for text in candidates
        )
        for question, prompt in zip(questions, prompts, strict=True)
    }
    longest = max(len(reply) for row in replies.values() for reply in row)
    check_context(language, prefix, questions, longest)
    unique = sorted(replies, key=lambda question: len(question.ids))
    scores: dict[Question, list[float]] = {}
    for batch in prefix.batches(unique, new_tokens=longest * len(candidates)):
        scores |= _score_batch(language, prefix, {q: replies[q] for q in batch})
    return [scores[question] for question in questions]


def _score_batch(
    language: LanguageModel, prefix: Prefix, rows: dict[Question, Replies]
) -> dict[Question, list[float]]:
    """Score one batch: a row a question, or a row a candidate where no mask can keep them apart."""
    if language.keeps_questions_apart:
        packed = list(rows.items())
    else:
        packed = [(question, (reply,)) for question, row in rows.items() for reply in row]
    values = iter(_log_probabilities(language, prefix, packed).tolist())
    scores: dict[Question, list[float]] = {question: [] for question in rows}
    for question, replies in packed:
        scores[question] += [sum(next(values) for _ in reply) for reply in replies]
    return scores


def _log_probabilities(
    language: LanguageModel, prefix: Prefix, rows: Sequence[tuple[Question, Replies]]
) -> Tensor:
    """Return `(T,)` log-probabilities of all reply tokens, row by row."""
    layout = lay_out_candidates(
        [(question.ids, replies) for question, replies in rows],
        pad_id=language.pad_id,
        prefix_length=prefix.length,
    ).to(language.device)
    mask = layout.mask()
    logits: Tensor = language(
        language.embed(layout.input_ids),
        mask=None if mask is None else F.pad(mask, (prefix.length, 0), value=True),
        positions=layout.positions,
        cache=prefix.cache_for([question for question, _ in rows]),
        at=(layout.loss_rows, layout.loss_columns),
    )
    spread = F.log_softmax(logits.float(), dim=-1)
    return spread.gather(1, layout.targets[:, None])[:, 0].double()
