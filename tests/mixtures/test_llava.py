"""Rows in LLaVA's format: which become conversations, and what is said of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.formats import json_files
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.sample import Turn
from tests.mixtures.conftest import turns

COCO = "coco/train2017/000000000123.jpg"
Opened = Callable[..., Mixture]


def test_rows_become_conversations(opened: Opened, root: Path) -> None:
    rows = [
        {
            "id": "a",
            "image": COCO,
            "conversations": turns("<image>\nWhat?", "A dog.", "Where?", "Here."),
        },
        {"id": "b", "image": COCO, "conversations": turns("Describe it.\n<image>", "Grass.")},
        {"id": "c", "image": COCO, "conversations": turns("No mark.", "Yes.")},
        {"id": "d", "conversations": turns("Two and two?", "Four.")},
        {"id": "e", "image": [COCO, "vg/VG_100K/123.jpg"], "conversations": turns("Same?", "No.")},
    ]
    mixture = opened(rows)
    assert [row.turns for row in mixture] == [
        (Turn("<image>\nWhat?", "A dog."), Turn("Where?", "Here.")),
        (Turn("<image>\nDescribe it.", "Grass."),),  # as LLaVA's own code moves the mark
        (Turn("<image>\nNo mark.", "Yes."),),
        (Turn("Two and two?", "Four."),),
        (Turn("<image>\n<image>\nSame?", "No."),),
    ]
    assert mixture[4].images == (root / COCO, root / "vg/VG_100K/123.jpg")
    assert mixture[3].images == ()
    assert mixture[-1].row_id == "own/000004"
    assert list(mixture.images()) == [root / COCO, root / "vg/VG_100K/123.jpg"]


BAD: dict[str, Any] = {
    "no turns": [],
    "bad role order": [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Hi."}],
    "no answer": turns("What?", "That.", "And?"),
    "empty turn": turns("What?", "  "),
    "<image> marks do not fit": turns("<image> and <image>", "Two."),
    "not in the format": [{"from": "human", "value": 5}],
    "not Unicode": turns("\ud800", "Half."),
    "image is not a file": turns("<img>https://example.org/a.jpg</img> What?", "That."),
}
WHAT, THAT = {"type": "text", "text": "What?"}, {"role": "assistant", "content": "That."}
OTHER_TOOLS: dict[str, dict[str, Any]] = {
    "MiniMind-V": {
        "image": COCO,
        "conversations": [{"role": "user", "content": "<image>\nWhat?"}, THAT],
    },
    "ms-swift": {
        "images": [COCO],
        "messages": [{"role": "user", "content": "<image>\nWhat?"}, THAT],
    },
    "LLaMA-Factory": {
        "images": [COCO],
        "conversations": turns("<image>\nWhat?", "That."),
        "videos": [],
    },
    "Qwen-VL": {
        "conversations": [
            {"from": "user", "value": f"<img>{COCO}</img>\nWhat?"},
            {"from": "assistant", "value": "That."},
        ]
    },
    "chat template": {
        "messages": [{"role": "user", "content": [{"type": "image", "path": COCO}, WHAT]}, THAT]
    },
    "file:// and a list": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": f"file://{COCO}"}, WHAT]},
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
        ]
    },
    "OpenAI": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": COCO}}, WHAT]},
            THAT,
        ]
    },
    "image and its name": {
        "images": [COCO],
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, WHAT]},
            THAT,
        ],
    },
}


@pytest.mark.parametrize("tool", OTHER_TOOLS)
def test_rows_of_other_tools(opened: Opened, root: Path, tool: str) -> None:
    [row] = opened([OTHER_TOOLS[tool]])
    assert row.images == (root / COCO,)
    assert row.turns == (Turn("<image>\nWhat?", "That."),)


def test_a_system_text_beside_the_messages(opened: Opened) -> None:
    [row] = opened([{"system": "Be brief.", "conversations": turns("What?", "That.")}])
    assert row.turns == (Turn("Be brief.\n\nWhat?", "That."),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"video": "a.mp4", "conversations": turns("<video>\nWhat?", "That.")}, "video or audio"),
        ({"audios": ["a.wav"], "conversations": turns("What?", "That.")}, "video or audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}, WHAT]}, THAT]},
            "not in the format",
        ),
        (
            {
                "images": [COCO, COCO],
                "messages": [{"role": "user", "content": [{"type": "image", "path": "b"}]}, THAT],
            },
            "not in the format",
        ),
        ({"image": "data:image/png;base64,AA", "conversations": turns("?", "!")}, "not a file"),
    ],
)
def test_what_is_no_image_is_not_taken_for_text(
    opened: Opened, row: dict[str, Any], reason: str
) -> None:
    mixture = opened([row, {"conversations": turns("Good?", "Yes.")}])
    [about] = mixture.description()["sources"].values()
    assert len(mixture) == 1
    assert [reason in key for key in about["skipped"]] == [True]


def test_what_cannot_be_trained_on_is_counted_by_its_reason(opened: Opened) -> None:
    rows = [{"conversations": value} for value in BAD.values()]
    mixture = opened([*rows, *rows, {"conversations": turns("Good?", "Yes.")}])
    [about] = mixture.description()["sources"].values()
    assert (len(mixture), about["read"]) == (1, 17)
    assert {reason: entry["count"] for reason, entry in about["skipped"].items()} == dict.fromkeys(
        BAD, 2
    )
    assert about["skipped"]["no answer"]["first"] == [
        "rows.json: row 2: turn 2, the last, is a question",
        "rows.json: row 10: turn 2, the last, is a question",
    ]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_array_is_read_in_pieces(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK_CHARACTERS", chunk)
    mixture = opened([{"conversations": turns(f'Question {i} ü"]', "[{")} for i in range(9)])
    assert [row.turns[0].user for row in mixture] == [f'Question {i} ü"]' for i in range(9)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"conversations": []}, {"conv', "row 1 .*cut short"),
        ('[{"conversations": []} what', "row 1"),
        ("[]", "no rows"),
        ('{"annotations": [1]}', "row 0: .*conversations"),
        ("<html>", "row 0"),
        ("", "no rows"),
    ],
)
def test_a_file_of_another_form_is_an_error(root: Path, text: str, said: str) -> None:
    (root / "other.json").write_text(text)
    with pytest.raises(DataError, match=said):
        _open(root)


def _open(root: Path) -> Mixture:
    recipe = root / "other.toml"
    recipe.write_text(
        'description = "d"\n[[sources]]\nname = "o"\nformat = "llava"\npath = "other.json"\n'
    )
    return open_mixture(str(recipe), root, QuietReporter())


def test_json_lines_with_a_broken_one(root: Path) -> None:
    good = json.dumps({"conversations": turns("Good?", "Yes.")})
    (root / "other.json").write_text(f"{good}\n\n{good[:-4]}\n{good}\n")
    mixture = _open(root)
    assert [row.row_id for row in mixture] == ["o/000000", "o/000002"]
    assert mixture.description()["sources"]["o"]["skipped"]["not JSON"]["count"] == 1
