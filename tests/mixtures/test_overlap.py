"""Rows without their image, and rows that show a test image, are dropped and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from encoder_bench.base.errors import DataError
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.overlap import coco_numbers
from encoder_bench.data.sample import Sample
from tests.mixtures.conftest import picture, turns

Opened = Callable[..., Mixture]
COCO, VG = "coco/train2017/000000000123.jpg", "vg/VG_100K/123.jpg"


def rows(*images: str | None) -> list[dict[str, object]]:
    return [
        {"image": name, "conversations": turns("What?", f"Answer {number}.")}
        for number, name in enumerate(images)
    ]


@pytest.fixture
def test_image(tmp_path: Path) -> Callable[..., dict[str, list[Sample]]]:
    def make(name: str, content: Image.Image | bytes) -> dict[str, list[Sample]]:
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
        return {"vqa": [Sample("vqa/1", "vqa", 1, path, "What?", ("This",), "This")]}

    return make


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/d/coco/train2017/000000000123.jpg", 123),
        ("coco/train2017/000000123.jpg", 123),
        ("train2014/COCO_train2014_000000000042.jpg", 42),
        ("flat/COCO_val2014_000000000042.png", 42),
        ("val2017/7.jpg", 7),
        ("coco/images/000000000009.jpg", 9),
        ("vg/VG_100K/2345.jpg", None),
        ("coco/vg/VG_100K/2345.jpg", None),
        ("textvqa/train_images/00abc.jpg", None),
        ("images/000000000009.jpg", None),
        ("coco/train2017/shot_9.jpg", None),
        ("gqa/images/99999999999999999999.jpg", None),
        ("coco/train2017/99999999999999999999.jpg", None),
    ],
)
def test_a_number_is_cocos_only_where_its_name_says_so(path: str, number: int | None) -> None:
    assert coco_numbers(pa.array([path])).to_pylist() == [number]


def test_a_source_may_say_that_its_numbers_are_cocos() -> None:
    paths = pa.array(["images/000000000009.jpg", "COCO_val2014_000000000042.jpg", "a9.jpg"])
    assert coco_numbers(paths, any_folder=True).to_pylist() == [9, 42, None]


def test_rows_without_their_image_are_counted(opened: Opened, root: Path, tmp_path: Path) -> None:
    (root / "vg/link.jpg").symlink_to(root / VG)
    picture(7).save(tmp_path / "beyond.jpg")
    (root / "vg/beyond.jpg").symlink_to(tmp_path / "beyond.jpg")
    names = [
        COCO,
        "coco/train2017/absent.jpg",
        "../beyond.jpg",
        "vg/link.jpg",
        "vg/beyond.jpg",
        None,
    ]
    mixture = opened(rows(*names, "", "a\0b.jpg", str(root / VG)))
    assert [row.row_id for row in mixture] == [
        "own/000000",
        "own/000003",
        "own/000005",
        "own/000008",
    ]
    [about] = mixture.description()["sources"].values()
    assert {reason: entry["count"] for reason, entry in about["skipped"].items()} == {
        "missing image": 2,
        "image outside its folder": 3,
    }
    assert (
        about["skipped"]["missing image"]["first"][0]
        == "rows.json: row 1: coco/train2017/absent.jpg"
    )
    assert (about["used"], about["images"]) == (4, 3)


def test_folders_that_are_links_are_followed_on_request(
    opened: Opened, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    picture(7).save(tmp_path / "disk/1.jpg")
    (root / "gqa").symlink_to(tmp_path / "disk")
    [about] = opened(rows("gqa/1.jpg", None)).description()["sources"].values()
    assert about["skipped"]["image outside its folder"]["first"] == [
        "rows.json: row 0: gqa/1.jpg (ENCODER_BENCH_FOLLOW_LINKS=1 follows links)"
    ]
    monkeypatch.setenv("ENCODER_BENCH_FOLLOW_LINKS", "1")
    assert len(opened(rows("gqa/1.jpg", None))) == 2


def test_an_image_that_comes_later_is_found(opened: Opened, root: Path) -> None:
    late = "coco/train2017/late.jpg"
    before = opened(rows(COCO, late))
    picture(9).save(root / late)
    after = opened(rows(COCO, late))
    assert (len(before), len(after)) == (1, 2)
    assert before.fingerprint() != after.fingerprint()
    assert after.fingerprint() == opened(rows(COCO, late)).fingerprint()


def test_no_image_at_all_names_the_first(opened: Opened) -> None:
    with pytest.raises(
        DataError, match=r"no row is left: 2 missing image \(rows.json: row 0: a.jpg\)"
    ):
        opened(rows("a.jpg", "b.jpg"))


def test_a_test_image_is_found_by_its_number(
    opened: Opened, test_image: Callable[..., dict]
) -> None:
    tests = test_image("val2014/COCO_val2014_000000000123.jpg", picture(5))
    mixture = opened(rows(COCO, COCO, VG, None), tests=tests)
    assert [row.row_id for row in mixture] == ["own/000002", "own/000003"]
    [about] = mixture.description()["sources"].values()
    shown = "tests/val2014/COCO_val2014_000000000123.jpg"
    assert about["overlap"] == {
        "rows": 2,
        "images": 1,
        "by": {"id": 2},
        "tests": {"vqa": 2},
        "first": [
            f"rows.json: row {row}: {COCO} is the test image {shown} (by id)" for row in (0, 1)
        ],
    }


def test_a_test_image_in_a_folder_of_another_name_is_found_by_its_number(
    opened: Opened, test_image: Callable[..., dict]
) -> None:
    [sample] = test_image("store/images/000000000123.jpg", picture(5))["vqa"]
    mixture = opened(rows(COCO, VG), tests={"vqa": [replace(sample, image_id=123)]})
    assert [row.row_id for row in mixture] == ["own/000001"]


def test_a_test_image_is_found_by_its_bytes(
    opened: Opened, root: Path, test_image: Callable[..., dict]
) -> None:
    content = (root / VG).read_bytes()
    other = bytearray(content)
    other[len(other) // 2] ^= 1  # as long, and the same in its last part
    (root / "vg/other.jpg").write_bytes(other)
    mixture = opened(rows(COCO, VG, "vg/other.jpg"), tests=test_image("any.jpg", content))
    assert [row.row_id for row in mixture] == ["own/000000", "own/000002"]


def test_a_test_image_is_found_by_what_it_shows(
    opened: Opened, root: Path, test_image: Callable[..., dict]
) -> None:
    with Image.open(root / VG) as image:
        tests = test_image("any.png", image.resize((96, 96)))
    assert len(opened(rows(COCO, VG), tests=tests)) == 2
    settings = '[[sources]]\nname = "b"\nformat = "llava"\npath = "rows.json"'
    both = opened(rows(COCO, VG), settings=settings, tests=tests)
    assert len(both) == 4
    pixels = opened(rows(COCO, VG), head='overlap = ["pixels"]', tests=tests)
    assert [row.row_id for row in pixels] == ["own/000000"]


def test_overlap_can_be_refused(opened: Opened, test_image: Callable[..., dict]) -> None:
    tests = test_image("val2014/COCO_val2014_000000000123.jpg", picture(5))
    with pytest.raises(DataError, match=r"1 rows show a test image, the first rows\.json: row 0"):
        opened(rows(COCO, VG), head='on_overlap = "refuse"', tests=tests)


def ids(mixture: Mixture) -> list[str]:
    return [row.row_id for row in mixture]


def test_weights_and_caps_choose_by_hash(opened: Opened) -> None:
    many = rows(*[None] * 40)
    whole, half = ids(opened(many)), ids(opened(many, settings="weight = 0.5"))
    quarter, capped = (
        ids(opened(many, settings="weight = 0.25")),
        ids(opened(many, settings="max_rows = 10")),
    )
    assert len(half) == 20
    assert half != whole[:20]
    assert set(quarter) < set(half) < set(whole)
    assert quarter == capped
    double = ids(opened(many, settings="weight = 2.25"))
    assert len(double) == len(set(double)) == 90
    assert {name for name in double if name.endswith("+2")} == {f"{name}+2" for name in quarter}
    assert ids(opened(many, settings="max_rows = 100")) == whole
    assert np.all(np.diff([whole.index(name) for name in half]) > 0)
