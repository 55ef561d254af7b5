"""Conversations in the shapes that data sets have, of JSON or of Arrow.

- LLaVA's: `{"image": "a.jpg" or [...] or absent, "conversations": [{"from", "value"}]}`
  (LLaVA at c121f04, docs/Finetune_Custom_Data.md);
- the_cauldron's and FineVision's: `{"images": [...], "texts": [{"user", "assistant"}]}`;
- `{"images": [...], "messages": [{"role", "content"}]}`, where content is text or a list of
  `{"type": "image"}` and `{"type": "text", "text"}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from encoder_bench.data.conversation import IMAGE
from encoder_bench.data.formats.row import BadRow, Parsed, Place, conversation

KEYS = ("conversations", "messages", "texts")


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Entry(msgspec.Struct):
    speaker: str | None = msgspec.field(name="from", default=None)
    value: str | None = None
    role: str | None = None
    content: str | list[_Part] | None = None
    user: str | None = None
    assistant: str | None = None


class _Row(msgspec.Struct):
    conversations: list[_Entry] | None = None
    messages: list[_Entry] | None = None
    texts: list[_Entry] | None = None
    image: str | list[str] | None = None
    images: list[str] | None = None


def parse(content: object, place: Place) -> Parsed:
    """Return a row's images and turns.

    A source's `prompt` replaces the question of a row of one turn, as LLaVA's first stage does.

    Raises:
        BadRow: fields are missing or of another type, or the turns do not alternate.
    """
    try:
        row = msgspec.convert(content, _Row)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRow("not in the format", str(error)) from None
    entries = row.conversations or row.messages or row.texts
    if entries is None:
        if row.conversations is row.messages is row.texts is None:
            raise BadRow("not in the format", f"none of {', '.join(KEYS)}")
        raise BadRow("no turns")
    shown = [row.image] if isinstance(row.image, str) else row.image or row.images or []
    messages = list(_messages(entries))
    prompt = place.source.prompt
    if prompt is not None and len(messages) == 2:
        messages[0] = (messages[0][0], prompt)
    return conversation(messages, shown)


def _messages(entries: Sequence[_Entry]) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(entries):
        role = entry.speaker or entry.role
        if role is None and entry.user is not None and entry.assistant is not None:
            yield "user", entry.user
            yield "assistant", entry.assistant
            continue
        text = entry.value if entry.content is None else entry.content
        if role is None or text is None:
            raise BadRow("not in the format", f"entry {number} has no role or no text")
        if not isinstance(text, str):
            text = "\n".join(IMAGE if part.type == "image" else part.text or "" for part in text)
        yield role, text
