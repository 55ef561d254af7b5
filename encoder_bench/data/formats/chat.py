"""Conversations in the shapes that data sets have, of JSON or of Arrow.

- LLaVA's: `{"image": "a.jpg" or [...] or absent, "conversations": [{"from", "value"}]}`
  (LLaVA at c121f04, docs/Finetune_Custom_Data.md);
- the_cauldron's and FineVision's: `{"images": [...], "texts": [{"user", "assistant"}]}`;
- `{"images": [...], "messages": [{"role", "content"}]}`, where content is text or a list of
  `{"type": "image"}` and `{"type": "text", "text"}` (ms-swift, LLaMA-Factory, TRL);
- parts that name their image: `{"type": "image", "image" (or "path", "url"): "a.jpg"}` as chat
  templates of transformers take them, `{"type": "image_url", "image_url": {"url"}}` as OpenAI's.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

from encoder_bench.data.formats.row import BadRow, Parsed, Place, conversation
from encoder_bench.data.sample import IMAGE

KEYS = ("conversations", "messages", "texts")


_QWEN_IMAGE = re.compile(r"<img>([^<>\n]+)</img>")
_REMOTE = re.compile(r"(https?|data|s3|gs|hf):")


class _Link(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image: str | None = None
    path: str | None = None
    url: str | None = None
    image_url: str | _Link | None = None

    def name(self) -> str | None:
        """Return the image's file, where the part says it."""
        link = self.image_url.url if isinstance(self.image_url, _Link) else self.image_url
        return self.image or self.path or self.url or link


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
    system: str | None = None
    video: object = None
    videos: object = None
    audio: object = None
    audios: object = None


def parse(content: object, place: Place) -> Parsed:
    """Return a row's images and turns.

    A source's `prompt` replaces the question of a row of one turn, as LLaVA's first stage does.

    Raises:
        BadRow: fields are missing or of another type, the turns do not alternate, or the row shows
            what is no image.
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
    if row.video or row.videos or row.audio or row.audios:
        raise BadRow("video or audio")
    shown = [row.image] if isinstance(row.image, str) else row.image or row.images or []
    named: list[str] = []
    messages = list(_messages(entries, named))
    if named and shown and len(named) != len(shown):
        raise BadRow("not in the format", "its messages name other images than the row")
    prompt = place.source.prompt
    if prompt is not None and len(messages) == 2:
        messages[0] = (messages[0][0], prompt)
    if row.system:
        messages.insert(0, ("system", row.system))
    return conversation(messages, [_local(name) for name in shown or named])


def _local(name: str) -> str:
    if _REMOTE.match(name):
        raise BadRow("image is not a file", f"{name[:40]}: fetch it first")
    return name.removeprefix("file://")


def _messages(entries: Sequence[_Entry], named: list[str]) -> Iterator[tuple[str, str]]:
    """Yield role and text of each message; `named` takes the images that the messages name."""
    for number, entry in enumerate(entries):
        role = entry.speaker or entry.role
        if role is None and entry.user is not None and entry.assistant is not None:
            yield "user", entry.user
            yield "assistant", entry.assistant
            continue
        text = entry.value if entry.content is None else entry.content
        if role is None or text is None:
            raise BadRow("not in the format", f"entry {number} has no role or no text")
        if isinstance(text, str):
            named += _QWEN_IMAGE.findall(text)
            yield role, _QWEN_IMAGE.sub(IMAGE, text)
        else:
            named += [name for part in text if (name := part.name())]
            yield role, "\n".join(map(_part_text, text))


def _part_text(part: _Part) -> str:
    if part.type in ("image", "image_url", "input_image"):
        return IMAGE
    if part.type not in ("text", "input_text", "output_text"):
        raise BadRow("not in the format", f"a part of type '{part.type}'")
    return part.text or ""
