"""Answers and likelihoods that read each image once, and conversations.

An image's prefix (template, visual tokens) goes through the language model once; its keys and
values serve all questions on that image. Questions are sorted by length, batched, and leave the
batch when they are answered. Where no image has two questions, prefix and question are read
together. Outputs are those of the plain library's greedy `generate`, one question at a time.

Axes: R rows (questions), L tokens of a row, K tokens attended to, T reply tokens, B images, M
visual tokens, E LLM width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import pack_candidates
from encoder_bench.mllm.prefix import Prefix, Question

_COMPACT_BELOW = 0.75


@torch.inference_mode()
def generate(
    mllm: MLLM,
    visual: Tensor | None,
    prompts: Sequence[Sequence[str]],
    decoding: DecodingSettings,
) -> list[list[str]]:
    """Return one answer for each prompt, cut at the first stop string.

    Args:
        mllm: the model.
        visual: `(B, M, E)`; None shows no image at all, and no image prefix.
        prompts: for each image, its prompts. The same prompt on the same image is asked once.
        decoding: more than one beam goes through the library's own beam search.

    Raises:
        DataError: prompt and answer do not fit into the context; shows the prompt.
    """
    language, tokens = mllm.language, decoding.max_new_tokens
    texts: dict[Question, str] = {}
    with _evaluating(language):
        prefix = Prefix(language, visual)
        groups, unique = prefix.questions(prompts, answer_tokens=tokens)
        shared = len({question.image for question in unique}) < len(unique)
        resumes = language.resumes_from_cache
        greedy = decoding.num_beams == 1 and resumes and all(q.ids for q in unique)
        batches: Iterable[list[Question]] = ([question] for question in unique)
        if resumes:  # otherwise padding would pass through a recurrent state
            batches = prefix.batches(unique, new_tokens=tokens, copies=decoding.num_beams)
        for batch in batches:
            if greedy:
                answers = _greedy(prefix, batch, decoding, shared=shared)
            else:
                answers = _by_library(prefix, batch, decoding)
            for question, ids in zip(batch, answers, strict=True):
                texts[question] = cut_at_stop(language.decode(ids), decoding.stop)
    return [[texts[question] for question in group] for group in groups]


def _greedy(
    prefix: Prefix, questions: Sequence[Question], decoding: DecodingSettings, *, shared: bool
) -> list[list[int]]:
    """Return the generated ids of questions decoded together, without the end token.

    Where prefixes are not `shared`, prefix and question are read in one pass.
    """
    language, before = prefix.language, prefix.length if shared else 0
    cache = prefix.cache(questions if shared else ())
    input_RLE, mask_RK = prefix.padded(questions, joined=not shared)
    positions_RL = before + (mask_RK.cumsum(1) - 1).clamp_min(0)
    mask_RK = F.pad(mask_RK, (before, 0), value=1)
    answers: list[list[int]] = [[] for _ in questions]
    owners, answered = list(range(len(questions))), set[int]()
    for step in range(decoding.max_new_tokens):
        rows_R = torch.arange(len(owners), device=input_RLE.device)
        logits_RV: Tensor = language(
            input_RLE,
            mask=mask_RK,
            position_ids=positions_RL,
            cache=cache,
            at=(rows_R, torch.full_like(rows_R, -1)),
        )
        chosen_R = logits_RV.argmax(dim=-1)
        for owner, token in zip(owners, chosen_R.tolist(), strict=True):
            if token in language.end_ids:
                answered.add(owner)
            if owner not in answered:
                answers[owner].append(token)
                text = language.decode(answers[owner]) if decoding.stop else ""
                if any(string in text for string in decoding.stop):
                    answered.add(owner)
        if step + 1 == decoding.max_new_tokens or len(answered) == len(questions):
            break
        keep = [row for row, owner in enumerate(owners) if owner not in answered]
        if len(keep) <= _COMPACT_BELOW * len(owners):
            rows = torch.tensor(keep, device=chosen_R.device)
            cache.batch_select_indices(rows)
            chosen_R, mask_RK, positions_RL = chosen_R[rows], mask_RK[rows], positions_RL[rows]
            owners = [owners[row] for row in keep]
        input_RLE = language.embed(chosen_R[:, None])
        mask_RK = F.pad(mask_RK, (0, 1), value=1)
        positions_RL = positions_RL[:, -1:] + 1
    return answers


def _by_library(
    prefix: Prefix, questions: Sequence[Question], decoding: DecodingSettings
) -> list[list[int]]:
    """Return the ids of the library's own `generate` on the joined embeddings.

    Used for beam search, for empty questions, and for models that cannot go on from a prefix
    (recurrent layers).
    """
    from transformers import GenerationConfig

    language = prefix.language
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(language.end_ids),
        pad_token_id=language.pad_id,
    )
    embeddings, mask = prefix.padded(questions, joined=True)
    generated = language.model.generate(
        inputs_embeds=embeddings, attention_mask=mask, generation_config=settings
    )
    return [
        list(takewhile(lambda token: token not in language.end_ids, ids))
        for ids in generated.tolist()
    ]


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
    language, image = mllm.language, visual is not None
    replies = {
        prompt: [language.turn_ids(prompt, text, image=image)[1] for text in candidates]
        for group in prompts
        for prompt in group
    }
    longest = max(len(reply) for own in replies.values() for reply in own)
    scores: dict[Question, list[float]] = {}
    with _evaluating(language):
        prefix = Prefix(language, visual)
        groups, unique = prefix.questions(prompts, answer_tokens=longest)
        if not all(question.ids for question in unique):
            raise DataError("an empty prompt cannot be scored")
        for batch in prefix.batches(unique, new_tokens=longest * len(candidates)):
            rows = [(question, replies[question.prompt]) for question in batch]
            scores |= _score_batch(prefix, rows)
    return [[scores[question] for question in group] for group in groups]


def _score_batch(
    prefix: Prefix, rows: list[tuple[Question, list[list[int]]]]
) -> dict[Question, list[float]]:
    """Score replies in a row per question, or a row each where no mask can keep them apart."""
    language = prefix.language
    if not language.keeps_questions_apart:
        rows = [(question, [reply]) for question, replies in rows for reply in replies]
    packed = pack_candidates(
        [(question.ids, replies) for question, replies in rows],
        pad_id=language.pad_id,
        prefix_length=prefix.length,
    ).to(language.device)
    mask = packed.mask()
    logits_TV: Tensor = language(
        language.embed(packed.input_ids),
        mask=None if mask is None else F.pad(mask, (prefix.length, 0), value=True),
        position_ids=packed.position_ids,
        cache=prefix.cache([question for question, _ in rows]),
        at=(packed.loss_rows, packed.loss_columns),
    )
    spread_TV = F.log_softmax(logits_TV.float(), dim=-1)
    values = iter(spread_TV.gather(1, packed.targets[:, None])[:, 0].double().tolist())
    scores: dict[Question, list[float]] = {question: [] for question, _ in rows}
    for question, replies in rows:
        scores[question] += [sum(next(values) for _ in reply) for reply in replies]
    return scores


@dataclass
class Conversation:
    """Questions and answers about one image.

    Attributes:
        mllm: the model, in eval mode.
        image: what is talked about; None for text only. It is encoded once.
        decoding: how answers are generated.
        turns: (question, answer) pairs so far, oldest first.
    """

    mllm: MLLM
    image: Image | None
    decoding: DecodingSettings
    turns: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def _visual(self) -> Tensor | None:
        if self.image is None:
            return None
        pixels = self.mllm.encoder.transform(self.image)[None].to(self.mllm.language.device)
        return self.mllm.visual_tokens(self.mllm.features(pixels))

    @torch.inference_mode()
    def ask(self, question: str) -> str:
        """Return the answer to `question` after all that was said, and remember both.

        Raises:
            DataError: the conversation has outgrown the context.
        """
        template = self.mllm.language.template
        said = [
            f"{earlier}{template.tail}{template.joiner}{answer}{template.end}{template.between}"
            for earlier, answer in self.turns
        ]
        prompt = "".join(said) + question
        ((answer,),) = generate(self.mllm, self._visual, [[prompt]], self.decoding)
        self.turns.append((question, answer))
        return answer


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string in it.

    >>> cut_at_stop("A dog. It runs.", [".", "!"])
    'A dog'
    """
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)].strip() if ends else text


@contextlib.contextmanager
def _evaluating(language: LanguageModel) -> Iterator[None]:
    """Put the language model into eval mode, and back as it was, module by module."""
    before = {module: module.training for module in language.modules()}
    language.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
