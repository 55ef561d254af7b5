"""A row of a source: what every format reads, what is made of it, and what is wrong with one.

Conversations are taken in the shapes that data sets have, of JSON or of Arrow:

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.sample import IMAGE, Turn

MAX_EXAMPLES = 3
"""Rows that are named of those skipped for one reason."""
DEFAULT_PROMPT = "Describe the image in one sentence."
KEYS = ("conversations", "messages", "texts")
"""Under which a row has its messages."""
_USERS, _ASSISTANTS, _SYSTEMS = {"human", "user"}, {"gpt", "assistant"}, {"system"}
_QWEN_IMAGE = re.compile(r"<img>([^<>\n]+)</img>")
_REMOTE = re.compile(r"(https?|data|s3|gs|hf):")


class BadRow(ValueError):  # noqa: N818 (it ends a row, not a program)
    """A row that cannot be trained on.

    Attributes:
        reason: the kind of fault, by which rows are counted; `str()` says what it is in this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Parsed(NamedTuple):
    """A row that can be trained on; images are paths below the source's image folder."""

    images: Sequence[str]
    turns: Sequence[Turn]


class Dialogue(NamedTuple):
    """Messages, each a role and a text, and names of images; roles and texts may not fit."""

    messages: Sequence[tuple[str, str]]
    images: Sequence[str]


class RawRow(NamedTuple):
    """A row as its file has it: the file's name, its number there from 0, and its content.

    The content is a `Dialogue`, JSON in one of the shapes above, or, where it could not even be
    read, a `BadRow`.
    """

    file: str
    number: int
    content: object


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source's data is.

    Attributes:
        root: the folder that holds the training data.
        files: those that its path names, sorted.
        images: the folder below which its images' names are.
        trusted: whether those names were made or checked here, rather than read from a file.
        identity: the state of what is read, where it is not that of `files`.
    """

    source: SourceSettings
    root: Path
    files: tuple[Path, ...]
    images: Path
    trusted: bool = False
    identity: str = ""

    @property
    def label(self) -> str:
        """The source's path or name on the Hub, as its recipe has it."""
        return str(self.source.path or self.source.hub)


RawRows = Iterator[RawRow]


def caption(images: Sequence[str], text: object, prompt: str | None) -> Dialogue | BadRow:
    """Return an image's caption as the answer to a source's prompt."""
    if not images:
        return BadRow("missing image", "no image")
    if not isinstance(text, str):
        return BadRow("no caption", f"the caption is {text!r:.60}")
    if not text.strip():
        return BadRow("no caption")
    asked = DEFAULT_PROMPT if prompt is None else prompt
    return Dialogue([("user", asked), ("assistant", text)], images[:1])


def parse(content: object, prompt: str | None, *, image_first: bool = False) -> Parsed:
    """Return the images and turns of a row's content.

    A source's `prompt` replaces the question of JSON of one turn, as LLaVA's first stage does;
    `image_first` puts a row's one image before the text that marks it, wherever the mark stands.

    Raises:
        BadRow: fields are missing or of another type, the turns do not alternate, marks of images
            do not fit, or the row shows what is no image.
    """
    if isinstance(content, BadRow):
        raise content
    dialogue = content if isinstance(content, Dialogue) else _dialogue(content, prompt)
    return _conversation(dialogue, image_first=image_first)


def _conversation(dialogue: Dialogue, *, image_first: bool) -> Parsed:
    """Return the turns of messages that alternate.

    A system's text is put before the first question. Where no user's text marks a place of an
    image, all are put before the first question; an empty question is one only if it shows one.
    """
    messages, images = dialogue
    system = "\n\n".join(text.strip() for role, text in messages if role.lower() in _SYSTEMS)
    spoken = [(role.lower(), text.strip()) for role, text in messages if role.lower() != "system"]
    if not spoken:
        raise BadRow("no turns")
    for index, (role, _) in enumerate(spoken):
        if role not in (_ASSISTANTS if index % 2 else _USERS):
            raise BadRow("bad role order", f"turn {index} is of '{role}'")
    if len(spoken) % 2:
        raise BadRow("no answer", f"turn {len(spoken) - 1}, the last, is a question")
    users, answers = ([text for _, text in spoken[start::2]] for start in (0, 1))
    marks = sum(text.count(IMAGE) for text in users)
    if marks == 0 and images:
        users[0] = "\n".join([IMAGE] * len(images) + [users[0]] * bool(users[0]))
    elif marks != len(images):
        raise BadRow(f"{IMAGE} marks do not fit", f"{marks} {IMAGE} for {len(images)} images")
    elif image_first and marks == 1:
        users = [_before_its_text(text) if IMAGE in text else text for text in users]
    if system:
        users[0] = f"{system}\n\n{users[0]}"
    turns = [Turn(*pair) for pair in zip(users, answers, strict=True)]
    empty = [index for index, turn in enumerate(turns) if not (turn.user and turn.assistant)]
    if empty:
        raise BadRow("empty turn", f"turn {empty[0]} has no text")
    return Parsed(tuple(images), turns)


def _before_its_text(text: str) -> str:
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


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


def _dialogue(content: object, prompt: str | None) -> Dialogue:
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
    if prompt is not None and len(messages) == 2:
        messages[0] = (messages[0][0], prompt)
    if row.system:
        messages.insert(0, ("system", row.system))
    return Dialogue(messages, [_local(name) for name in shown or named])


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


def note_skipped(skipped: dict[str, dict[str, Any]], reason: str, example: str) -> None:
    """Count a row under the reason why it is skipped, and keep the first examples."""
    entry = skipped.setdefault(reason, {"count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < MAX_EXAMPLES:
        shown = example.encode(errors="replace").decode()
        entry["first"] = [*entry["first"], shown]
