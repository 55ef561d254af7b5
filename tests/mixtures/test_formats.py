"""Every format that training sets come in, in files as their own tools write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.images import load_image, read_image_bytes
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.sample import Sample, Turn
from encoder_bench.data.scenes.build import SceneSizes, write_scenes
from tests.mixtures.conftest import COCO, VG, picture, turns

Read = Callable[..., Mixture]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def read(root: Path) -> Read:
    """Return a function that opens a mixture of one source with the given keys."""

    def make(kind: str, lines: str, **arguments: Any) -> Mixture:
        recipe = root / "mix.toml"
        recipe.write_text(
            f'description = "d"\n[[sources]]\nname = "s"\nformat = "{kind}"\n{lines}\n'
        )
        return open_mixture(str(recipe), root, QuietReporter(), **arguments)

    return make


def skipped(mixture: Mixture) -> dict[str, int]:
    [about] = mixture.description()["sources"].values()
    return {reason: entry["count"] for reason, entry in about["skipped"].items()}


CAULDRON = [
    {"images": [COCO], "texts": [{"user": "What?", "assistant": "A dog.", "source": "vqa"}] * 2},
    {"images": [COCO, VG], "texts": [{"user": "Same?", "assistant": "No.", "source": "n"}]},
    {"images": [], "texts": [{"user": "Two and two?", "assistant": "Four.", "source": "t"}]},
    {"images": [VG], "texts": []},
]
_TEXTS = datasets.List({name: datasets.Value("string") for name in ("user", "assistant", "source")})


def embedded(root: Path, name: str) -> dict[str, Any]:
    return {"bytes": (root / name).read_bytes(), "path": Path(name).name}


def cauldron(root: Path) -> datasets.Dataset:
    rows = [{**row, "images": [embedded(root, name) for name in row["images"]]} for row in CAULDRON]
    features = datasets.Features({"images": datasets.List(datasets.Image()), "texts": _TEXTS})
    return datasets.Dataset.from_list(rows, features=features)


def check_cauldron(mixture: Mixture, root: Path) -> None:
    assert [row.turns for row in mixture] == [
        (Turn("<image>\nWhat?", "A dog."), Turn("What?", "A dog.")),
        (Turn("<image>\n<image>\nSame?", "No."),),
        (Turn("Two and two?", "Four."),),
    ]
    shown = [[read_image_bytes(path) for path in row.images] for row in mixture]
    files = [(root / name).read_bytes() for name in (COCO, VG)]
    assert shown == [files[:1], files, []]
    assert load_image(mixture[1].images[1]).size == (48, 48)
    assert skipped(mixture) == {"no turns": 1}


def test_parquet_with_bytes(read: Read, root: Path) -> None:
    (root / "set").mkdir()
    cauldron(root).to_parquet(root / "set/train-00000-of-00001.parquet")
    cauldron(root).select([0]).to_parquet(root / "set/validation-00000-of-00001.parquet")
    (root / "set/about.json").write_text("{}")
    check_cauldron(read("chat", 'path = "set"'), root)
    assert len(read("chat", 'path = "set"\nsplit = "validation"')) == 1


def test_a_folder_of_save_to_disk_and_one_of_its_splits(read: Read, root: Path) -> None:
    whole = cauldron(root)
    whole.save_to_disk(root / "saved", num_shards=2)
    one = read("chat", 'path = "saved"')
    check_cauldron(one, root)
    assert {path.parents[2].suffix for path in one.images()} == {".arrow"}
    own = sorted((root / "saved").glob("*.arrow"))
    (root / "saved" / "cache-0123456789abcdef.arrow").write_bytes(own[0].read_bytes())
    check_cauldron(read("chat", 'path = "saved"'), root)
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(root / "splits")
    check_cauldron(read("chat", 'path = "splits"'), root)
    assert len(read("chat", 'path = "splits"\nsplit = "test"')) == 1


def _parquet(rows: datasets.Dataset, root: Path) -> str:
    rows.to_parquet(root / "rows.parquet")
    return str(root / "rows.parquet")


def test_the_fingerprint_is_of_the_content(read: Read, root: Path) -> None:
    cauldron(root).to_parquet(root / "a.parquet")
    first = read("chat", 'path = "a.parquet"').fingerprint()
    (root / "a.parquet").rename(root / "b.parquet")
    assert read("chat", 'path = "b.parquet"').fingerprint() == first


def test_messages_with_parts_and_files_beside(read: Read, root: Path) -> None:
    parts = [
        {"type": "text", "text": "Which of"},
        {"type": "image", "text": None},
        {"type": "image", "text": None},
    ]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
    ]
    rows = [
        {"images": [COCO, VG], "messages": messages},
        {"images": ["a.jpg"], "messages": messages},
    ]
    datasets.Dataset.from_list(rows).to_parquet(root / "rows.parquet")
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("rows.parquet", "rows.jsonl"):
        [row] = read("chat", f'path = "{name}"')
        assert row.images == (root / COCO, root / VG)
        assert row.turns == (Turn("Be brief.\n\nWhich of\n<image>\n<image>", "The first."),)


def test_a_hub_data_set_without_a_network(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for more in ("", "streaming = true\nmax_rows = 2"):
        with pytest.raises(DataError, match=r"some/thing: split 'train' cannot be read"):
            read("chat", f'hub = "some/thing"\n{more}')


def test_the_first_rows_of_a_stream_are_kept(
    read: Read, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet, load = _parquet(cauldron(root), root), datasets.load_dataset
    asked: list[Any] = []

    def of_hub(name: str, config: str | None, **arguments: Any) -> Any:
        asked.append((name, config, arguments["revision"]))
        arguments.update(data_files=[parquet], revision=None)
        return load("parquet", **arguments)

    monkeypatch.setattr(datasets, "load_dataset", of_hub)
    lines = 'hub = "some/thing"\nconfig = "vqa"\nrevision = "abc"\nstreaming = true\nmax_rows = 2'
    mixture = read("chat", lines)
    assert [row.row_id for row in mixture] == ["s/000000", "s/000001"]
    assert [len(read_image_bytes(path)) for path in mixture.images()] == [
        (root / name).stat().st_size for name in (COCO, COCO, VG)
    ]
    assert read("chat", lines).fingerprint() == mixture.fingerprint()
    assert asked == [("some/thing", "vqa", "abc")]


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for ending, data in sample.items():
                entry = tarfile.TarInfo(f"{number:09}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def test_shards_of_img2dataset(read: Read, root: Path) -> None:
    jpg = (root / COCO).read_bytes()
    about = json.dumps({"caption": "From JSON.", "key": "000000001", "url": "u"}).encode()
    chat = json.dumps({"image": "x.jpg", "conversations": turns("What?", "That.")}).encode()
    (root / "cc3m").mkdir()
    write_shard(
        root / "cc3m/00000.tar",
        [
            {"jpg": jpg, "txt": b"A dog.\n", "json": about},
            {"jpg": jpg, "json": about},
            {"txt": b"No image.", "json": about},
            {"png": jpg, "txt": b"  "},
            {"jpg": jpg, "json": b"{"},
            {"jpg": jpg, "txt": b"\xff"},
        ],
    )
    write_shard(root / "cc3m/00001.tar", [{"JPG": jpg, "json": chat}])
    (root / "cc3m/00000_stats.json").write_text("{}")
    for path in ("cc3m", "cc3m/{00000..00001}.tar", "cc3m/*.tar"):
        mixture = read("webdataset", f'path = "{path}"\nprompt = "Say it."')
        assert [row.turns[0] for row in mixture] == [
            Turn("<image>\nSay it.", "A dog."),
            Turn("<image>\nSay it.", "From JSON."),
            Turn("<image>\nSay it.", "That."),
        ]
        assert mixture[2].images == (root / "cc3m/00001.tar/000000000.JPG",)
        assert read_image_bytes(mixture[2].images[0]) == jpg
        assert skipped(mixture) == {"missing image": 1, "no caption": 1, "unreadable row": 2}
    with pytest.raises(DataError, match=r"00002\.tar: no such shard \(1 of 3"):
        read("webdataset", 'path = "cc3m/{00000..00002}.tar"')


def test_images_in_archives_are_compared_with_test_images(read: Read, root: Path) -> None:
    tests = {"vqa": [Sample("vqa/1", "vqa", 1, root / VG, "What?", ("This",), "This")]}
    data = [{"jpg": (root / name).read_bytes(), "txt": b"A."} for name in (COCO, VG)]
    write_shard(root / "a.tar", data)
    assert [row.row_id for row in read("webdataset", 'path = "a.tar"', tests=tests)] == ["s/000000"]
    cauldron(root).to_parquet(root / "a.parquet")
    mixture = read("chat", 'path = "a.parquet"', tests=tests)
    assert [row.row_id for row in mixture] == ["s/000000", "s/000002"]


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_captions_in_a_table(read: Read, root: Path, ending: str) -> None:
    tab = "\t" if ending == "tsv" else ","
    cells = [
        ("file_name", "caption", "score"),
        (COCO, '"A dog, and\na ""cat""."', "1"),
        (VG, "", "2"),
        ("absent.jpg", "None", "3"),
        (VG, "null"),
        (VG, "nan", "4"),
    ]
    (root / f"rows.{ending}").write_text("\n".join(tab.join(row) for row in cells) + "\n")
    mixture = read("captions", f'path = "rows.{ending}"')
    assert [row.turns[0].assistant for row in mixture] == ['A dog, and\na "cat".', "nan"]
    assert skipped(mixture) == {"no caption": 1, "missing image": 1, "unreadable row": 1}
    with pytest.raises(
        DataError, match="no column title among file_name, caption, score; set text_col"
    ):
        read("captions", f'path = "rows.{ending}"\ntext_column = "title"')


def test_captions_in_parquet(read: Read, root: Path) -> None:
    rows = [{"picture": embedded(root, name), "alt": f"Alt {name}."} for name in (COCO, VG)]
    rows.append({"picture": None, "alt": "None."})
    features = datasets.Features({"picture": datasets.Image(), "alt": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(root / "rows.parquet")
    lines = 'path = "rows.parquet"\nimage_column = "picture"\ntext_column = "alt"\nprompt = ""'
    mixture = read("captions", lines)
    assert [row.turns[0] for row in mixture] == [Turn("<image>", f"Alt {n}.") for n in (COCO, VG)]
    assert [read_image_bytes(p) for p in mixture.images()] == [
        (root / n).read_bytes() for n in (COCO, VG)
    ]
    assert skipped(mixture) == {"missing image": 1}
    paths = [{"path": name, "text": "T."} for name in (COCO, VG)]
    datasets.Dataset.from_list(paths).to_parquet(root / "paths.parquet")
    assert list(read("captions", 'path = "paths.parquet"').images()) == [root / COCO, root / VG]


def test_tasks_of_a_folder(read: Read, tmp_path: Path) -> None:
    write_scenes(tmp_path / "drawn", SceneSizes(seed=3, train=6, val=2, test=2), QuietReporter())
    mixture = read("folder", f'path = "{tmp_path / "drawn"}"\ntasks = ["vqa", "oc"]')
    questions = [row for row in mixture if row.turns[0].user.startswith("<image>\nQuestion: ")]
    assert 0 < len(questions) < len(mixture)
    assert {len(row.turns) for row in mixture} == {1}
    assert all(path.is_file() and "train2017" in path.parts for path in mixture.images())
    images = list(mixture.images())
    assert len(images) == 6
    images[0].unlink()
    (tmp_path / "link").symlink_to(tmp_path / "drawn")
    fewer = read("folder", f'path = "{tmp_path / "link"}"\ntasks = ["vqa", "oc"]')
    assert [path.name for path in fewer.images()] == [path.name for path in images[1:]]
    assert skipped(fewer)["missing image"] == len(mixture) - len(fewer) > 0


def test_images_of_a_set_that_come_later_are_found(read: Read, root: Path) -> None:
    own = root / "own"
    (own / "gqa" / "images").mkdir(parents=True)
    rows = {str(n): {"imageId": f"{n}", "question": "What?", "answer": "a dog"} for n in (1, 2)}
    (own / "gqa" / "train_balanced_questions.json").write_text(json.dumps(rows))
    picture(1).save(own / "gqa" / "images" / "1.jpg")
    source = f'path = "{own}"\ntasks = ["gqa"]'
    assert len(read("folder", source)) == 1
    picture(2).save(own / "gqa" / "images" / "2.jpg")
    assert len(read("folder", source)) == 2


@pytest.mark.parametrize(
    ("kind", "name", "data", "said"),
    [
        ("webdataset", "a.tar", b"no tar at all" * 99, "not a whole tar file"),
        ("chat", "a.parquet", b"PAR1 no more", r"a\.parquet: cannot be read"),
        ("chat", "a.arrow", b"no arrow", "not an Arrow file"),
        ("captions", "a.csv", b"path,text\n\xff,a\n", "not UTF-8"),
        ("captions", "a.csv", b"", "no column image"),
        ("captions", "a.csv", b"path,text\n", "no rows"),
        ("llava", "a.json", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    read: Read, root: Path, kind: str, name: str, data: bytes, said: str
) -> None:
    (root / name).write_bytes(data)
    with pytest.raises(DataError, match=said) as error:
        read(kind, f'path = "{name}"')
    assert "\n" not in str(error.value)


def test_no_file_and_no_folder(read: Read) -> None:
    with pytest.raises(DataError, match=r"source 's': no file .*absent\.json.*--train-data"):
        read("llava", 'path = "absent.json"')
    with pytest.raises(DataError, match=r"images = 'absent': no folder"):
        read("llava", 'path = "a.json"\nimages = "absent"')
