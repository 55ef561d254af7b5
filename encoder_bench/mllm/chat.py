"""Chat templates, cut into the pieces around a question and its answer.

What belongs here: reading a tokenizer's own template. What is taught and asked with it is
`language.py`'s job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from encoder_bench.base.errors import WeightsError

_CONTENT = "ENCODER-BENCH-CONTENT"
_REPLY = "ENCODER-BENCH-REPLY"
_NEXT = "ENCODER-BENCH-NEXT"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The text around questions and answers.

    Attributes:
        head: what comes before the question (system message, start of the user's turn).
        tail: what comes between the question and the answer.
        between: what comes between an answer and the next question.
        joiner: put before an answer whose context does not end in whitespace.
    """

    head: str
    tail: str
    between: str
    joiner: str


_PLAIN = ChatTemplate(head="", tail="", between="\n", joiner=" ")


def read_template(tokenizer: Any, *, name: str) -> ChatTemplate:
    """Cut a tokenizer's chat template around its content; without one, plain text.

    Raises:
        WeightsError: the template does not keep a question as it is; names the model.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _PLAIN
    question = {"role": "user", "content": _CONTENT}
    reply = {"role": "assistant", "content": _REPLY}
    following = {"role": "user", "content": _NEXT}
    asked: str = tokenizer.apply_chat_template(
        [question], tokenize=False, add_generation_prompt=True
    )
    if asked.count(_CONTENT) != 1:
        raise WeightsError(
            f"LLM {name}: its chat template does not keep a question as it is; "
            "set llm.chat_template = false"
        )
    head, _, tail = asked.partition(_CONTENT)
    chat: str = tokenizer.apply_chat_template([question, reply, following], tokenize=False)
    between = chat.rpartition(_REPLY)[2].partition(_NEXT)[0]
    return ChatTemplate(head, tail, between, joiner="")


def plain_text() -> ChatTemplate:
    """Return the template of no template: nothing around a question, a space before an answer."""
    return _PLAIN
