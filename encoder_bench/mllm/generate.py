"""Answers and likelihoods that read each image once, and conversations.

An image's prefix (template, visual tokens) goes through the language model once; its keys and
values serve all questions on that image. Questions are sorted by length, batched, and leave the
batch when they are answered. Where no image has two questions, prefix and question are read
together. Candidate answers are scored on the same keys and values. Outputs are those of the plain
library's greedy `generate`, one question at a time.

Axes: R rows (questions), L tokens of a row, K tokens attended to, T reply tokens, B images, M
visual tokens, E LLM width, V vocabulary.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import DataError, WeightsError
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import pack_candidates
from encoder_bench.mllm.prefix import Prefix, Question, rows_of

_COMPACT_BELOW = 0.75


class Reply(NamedTuple):
    """An answer, and each candidate's log-probability (nats) as the whole answer."""

    text: str
    likelihoods: tuple[float, ...] = ()


def generate(
    mllm: MLLM, visual: Tensor | None, prompts: Sequence[Sequence[str]], decoding: DecodingSettings
) -> list[list[str]]:
    """Return the texts of `answer` about images `(B, M, E)`, or without any image."""
    images = [None] * len(prompts) if visual is None else list(visual)
    replies = answer(mllm, images, prompts, decoding)
    return [[reply.text for reply in group] for group in replies]


@torch.inference_mode()
def answer(
    mllm: MLLM,
    visual: Sequence[Tensor | None],
    prompts: Sequence[Sequence[str]],
    decoding: DecodingSettings,
    candidates: Sequence[str] = (),
) -> list[list[Reply]]:
    """Return one reply to each prompt, its text cut at the first stop string.

    Args:
        mllm: in any mode.
        visual: `(M, E)` of each image; None shows no image at all, and no image prefix.
        prompts: for each image, its prompts. The same prompt on the same image is asked once.
        decoding: more than one beam goes through the library's own beam search.
        candidates: whole answers whose likelihoods are wanted. The sum runs over a candidate's
            tokens and the end of turn, so that "1" and "10" compare.

    Raises:
        DataError: prompt and answer do not fit into the context (shows the prompt), or a candidate,
            or a prompt that has some or has nothing before it, is empty.
        WeightsError: the language model's logits are not finite.
    """
    language, tokens = mllm.language, decoding.max_new_tokens
    found: dict[Question, Reply] = {}
    with _evaluating(language):
        prefix = Prefix(language, visual)
        groups, unique = prefix.questions(prompts)
        replies = _candidate_ids(language, unique, candidates)
        lengths = [[len(ids) for ids in each] for each in replies.values()]
        prefix.check_lengths(unique, answer_tokens=max([tokens, *itertools.chain(*lengths)]))
        resumes = language.resumes_from_cache
        shared = resumes and len({question.image for question in unique}) < len(unique)
        greedy = decoding.num_beams == 1 and resumes and all(q.ids for q in unique)
        batches: Iterable[list[Question]] = ([question] for question in unique)
        if resumes:  # otherwise padding would pass through a recurrent state
            added = max([tokens, *map(sum, lengths)])
            rows = 1 if language.keeps_questions_apart else len(candidates)
            copies = max(decoding.num_beams, rows)
            batches = prefix.batches(unique, new_tokens=added, copies=copies)
        for batch in batches:
            own = [replies[question.ids] for question in batch]
            answered = _replies(prefix, batch, own, decoding, shared=shared, greedy=greedy)
            found |= zip(batch, answered, strict=True)
    return [[found[question] for question in group] for group in groups]


def _replies(
    prefix: Prefix,
    questions: Sequence[Question],
    candidates: Sequence[Sequence[list[int]]],
    decoding: DecodingSettings,
    *,
    shared: bool,
    greedy: bool,
) -> Iterator[Reply]:
    """Yield the reply to each question of a batch, with the likelihoods of its candidates' ids."""
    language = prefix.language
    scores: Sequence[tuple[float, ...]] = [()] * len(questions)
    resumes, scored = language.resumes_from_cache, any(candidates)
    read = _read(prefix, questions, shared=shared) if greedy or (scored and resumes) else None
    if scored and read is not None:
        scores = _likelihoods(language, read, candidates)
    elif scored:
        scores = [_read_whole(prefix, *each) for each in zip(questions, candidates, strict=True)]
    if greedy and read is not None:
        answers = _greedy(language, read, decoding)
    else:
        answers = _by_library(prefix, questions, decoding)
    for ids, score in zip(answers, scores, strict=True):
        yield Reply(cut_at_stop(language.decode(ids), decoding.stop), score)


class _Read(NamedTuple):
    """Questions that the model has read, and from which it goes on.

    Attributes:
        cache: keys and values of prefix and question.
        mask: `(R, K)`, 0 for padding, which is on the left.
        positions: `(R, 1)` of the last token.
        logits: `(R, V)` of the first token of the answer.
    """

    cache: Any
    mask: Tensor
    positions: Tensor
    logits: Tensor


def _read(prefix: Prefix, questions: Sequence[Question], *, shared: bool) -> _Read:
    """Read questions together; where prefixes are not `shared`, prefix and question in one pass."""
    input_RLE, mask_RK = prefix.padded(questions, joined=not shared)
    cache = prefix.empty_cache()
    if shared:
        cache, before_RP = prefix.read(questions)
        mask_RK = torch.cat([before_RP, mask_RK], dim=1)
    positions_RL = (mask_RK.cumsum(1) - 1).clamp_min(0)[:, -input_RLE.shape[1] :]
    logits_RV = _logits(
        prefix.language,
        input_RLE,
        mask=mask_RK,
        position_ids=positions_RL,
        cache=cache,
        at=_last(len(questions), mask_RK.device),
    )
    return _Read(cache, mask_RK, positions_RL[:, -1:], logits_RV)


def _logits(language: LanguageModel, embeddings: Tensor, **how: Any) -> Tensor:
    """Return what `LanguageModel.forward` returns; the largest of NaN is a token like any other."""
    return _finite(language, language(embeddings, **how))


def _finite(language: LanguageModel, logits: Tensor) -> Tensor:
    if torch.isfinite(logits.amax(dim=-1)).all():  # -inf is how models rule a token out
        return logits
    dtype = str(language.dtype).removeprefix("torch.")
    hint = (
        "check its weights and the projector's"
        if dtype == "float32"
        else "set llm.dtype to float32"
    )
    raise WeightsError(
        f"LLM {language.settings.name}: its logits are not finite, in {dtype}; {hint}"
    )


def _last(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows_R = torch.arange(rows, device=device)
    return rows_R, torch.full_like(rows_R, -1)


def _greedy(language: LanguageModel, read: _Read, decoding: DecodingSettings) -> list[list[int]]:
    """Return the generated ids of questions decoded together, without the end token."""
    cache, mask_RK, positions_R1, logits_RV = read
    answers: list[list[int]] = [[] for _ in logits_RV]
    owners, answered = list(range(len(answers))), set[int]()
    for step in range(decoding.max_new_tokens):
        chosen_R = logits_RV.argmax(dim=-1)
        for owner, token in zip(owners, chosen_R.tolist(), strict=True):
            if token in language.end_ids:
                answered.add(owner)
            if owner not in answered:
                answers[owner].append(token)
                text = language.decode(answers[owner]) if decoding.stop else ""
                if any(string in text for string in decoding.stop):
                    answered.add(owner)
        if step + 1 == decoding.max_new_tokens or len(answered) == len(answers):
            break
        keep = [row for row, owner in enumerate(owners) if owner not in answered]
        if len(keep) <= _COMPACT_BELOW * len(owners):
            rows = torch.tensor(keep, device=chosen_R.device)
            cache.batch_select_indices(rows)
            chosen_R, mask_RK, positions_R1 = chosen_R[rows], mask_RK[rows], positions_R1[rows]
            owners = [owners[row] for row in keep]
        mask_RK = F.pad(mask_RK, (0, 1), value=1)
        positions_R1 = positions_R1 + 1
        logits_RV = _logits(
            language,
            language.embed(chosen_R[:, None]),
            mask=mask_RK,
            position_ids=positions_R1,
            cache=cache,
            at=_last(len(owners), chosen_R.device),
        )
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
    if not language.generates:
        raise WeightsError(
            f"LLM {language.settings.name}: transformers' {type(language.model).__name__} has no "
            "beam search from embeddings, and answers no empty prompt; set decoding.num_beams to 1"
        )
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(language.end_ids),
        pad_token_id=language.pad_id,
    )
    embeddings, mask = prefix.padded(questions, joined=True)
    generated = language.model.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=[lambda _, scores: _finite(language, scores)],
        stopping_criteria=[partial(_stopped, language, decoding.stop)] * bool(decoding.stop),
    )
    return [
        list(takewhile(lambda token: token not in language.end_ids, ids))
        for ids in generated.tolist()
    ]


def _stopped(
    language: LanguageModel, stop: Sequence[str], ids: Tensor, _scores: Any, **_: Any
) -> Tensor:
    """Return which rows `(R,)` of generated ids `(R, T)` hold a stop string, as `_greedy` looks."""
    texts = map(language.decode, ids.tolist())
    found = [any(string in text for string in stop) for text in texts]
    return torch.tensor(found, device=ids.device)


def _candidate_ids(
    language: LanguageModel, questions: Sequence[Question], candidates: Sequence[str]
) -> dict[tuple[int, ...], list[list[int]]]:
    """Return the ids of candidates as answers to each question's ids, the end of turn included."""
    if not all(text.strip() for text in candidates):
        raise DataError("candidates to score: one is empty")
    if candidates and not all(question.ids for question in questions):
        raise DataError("an empty prompt cannot be scored")
    asked = {question.ids: question for question in questions}
    return {
        ids: [language.turn_ids(q.prompt, text, image=q.with_image)[1] for text in candidates]
        for ids, q in asked.items()
    }


def _likelihoods(
    language: LanguageModel, read: _Read, replies: Sequence[Sequence[list[int]]]
) -> list[tuple[float, ...]]:
    """Return the log-probabilities of each question's replies; `read` stays as it is.

    A question's replies share a row, or have a row each where no mask can keep them apart.
    """
    rows = [(number, list(own)) for number, own in enumerate(replies)]
    if not language.keeps_questions_apart:
        rows = [(number, [reply]) for number, own in rows for reply in own]
    packed = pack_candidates([own for _, own in rows], pad_id=language.pad_id).to(language.device)
    owners_R = torch.tensor([number for number, _ in rows], device=language.device)
    mask_RK, length = read.mask[owners_R], packed.input_ids.shape[1]
    mask = F.pad(mask_RK, (0, length), value=1)
    if (apart := packed.mask()) is not None:
        before = mask_RK.bool()[:, None, None].expand(-1, 1, length, -1)
        mask = torch.cat([before, apart], dim=-1)
    later = packed.loss_columns >= 0  # each reply's first token follows the question
    logits_TV = _logits(
        language,
        language.embed(packed.input_ids),
        mask=mask,
        position_ids=read.positions[owners_R] + 1 + packed.position_ids,
        cache=rows_of(read.cache, owners_R),
        at=(packed.loss_rows[later], packed.loss_columns[later]),
    )
    values_T = torch.empty(len(later), device=language.device)
    first = owners_R[packed.loss_rows[~later]]
    spread_RV = F.log_softmax(read.logits.float(), dim=-1)
    values_T[~later] = spread_RV[first, packed.targets[~later]]
    spread_TV = F.log_softmax(logits_TV.float(), dim=-1)
    values_T[later] = spread_TV.gather(1, packed.targets[later][:, None])[:, 0]
    values = iter(values_T.tolist())
    return [tuple(sum(next(values) for _ in reply) for reply in own) for own in replies]


def _read_whole(
    prefix: Prefix, question: Question, replies: Sequence[list[int]]
) -> tuple[float, ...]:
    """Return the log-probabilities of replies where the model cannot go on from what it has read.

    Each is read with prefix and question, in a row without padding.
    """
    scores = []
    for reply in replies:
        whole = question._replace(ids=(*question.ids, *reply[:-1]))
        row_1LE, _ = prefix.padded([whole], joined=True)
        last = torch.arange(-len(reply), 0)
        logits_TV = _logits(prefix.language, row_1LE, at=(torch.zeros_like(last), last))
        targets_T = torch.tensor(reply, device=logits_TV.device)
        scores.append(-float(F.cross_entropy(logits_TV.float(), targets_T, reduction="sum")))
    return tuple(scores)


@dataclass
class Conversation:
    """Questions and answers about one image, which is encoded once; None for text only.

    Attributes:
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
