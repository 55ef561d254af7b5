"""Images in archives are read as files are."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from encoder_bench.base.errors import DataError
from encoder_bench.data.images import fingerprint, load_image, read_image_bytes

COCO = "coco/train2017/000000000123.jpg"


@pytest.fixture
def shard(root: Path) -> Path:
    with tarfile.open(root / "00000.tar", "w") as tar:
        for name in ("b.jpg", "a.jpg"):
            tar.add(root / COCO, name)
        tar.add(root / COCO, f"deep/{'long' * 40}.jpg")
    return root / "00000.tar"


@pytest.mark.parametrize("name", ["a.jpg", "b.jpg", f"deep/{'long' * 40}.jpg"])
def test_a_member_of_a_shard(shard: Path, root: Path, name: str) -> None:
    assert read_image_bytes(shard / name) == (root / COCO).read_bytes()
    assert load_image(shard / name).tobytes() == load_image(root / COCO).tobytes()
    assert fingerprint(shard / name).digest == fingerprint(root / COCO).digest


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
def test_a_cell_of_an_arrow_table(root: Path, write: object) -> None:
    data = (root / COCO).read_bytes()
    columns = {"one": [{"bytes": data}], "several": [[b"", data]], "none": [{"bytes": None}]}
    table = pa.table(columns)
    with write(str(root / "rows.arrow"), table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table)
    for name in ("one/0", "several/0/1"):
        assert read_image_bytes(root / "rows.arrow" / name) == data
    for name in ("one/1", "two/0", "several/0/2", "none/0", "one"):
        with pytest.raises(DataError, match=r"rows.arrow: .*holds no"):
            load_image(root / "rows.arrow" / name)


def test_what_is_not_there_is_named(shard: Path, root: Path) -> None:
    with pytest.raises(DataError, match=r"holds no c\.jpg"):
        load_image(shard / "c.jpg")
    with pytest.raises(DataError, match="no such image file"):
        load_image(root / "absent.tar" / "c.jpg")
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"not a whole tar file|cut short"):
        load_image(shard / "b.jpg")
