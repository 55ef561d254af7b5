"""Caption sets besides COCO, for testing: NoCaps and Flickr30k, in their official files.

Reference: Agrawal et al. 2019 (arXiv 1812.08658), `nocaps_val_4500_captions.json`; Young et al.
2014, with the split of Karpathy and Fei-Fei 2015, `dataset_flickr30k.json`.
"""

from __future__ import annotations

from encoder_bench.base.errors import DataError
from encoder_bench.data.files import DataFiles, integer, numbered, rows_of, text, unique_ids
from encoder_bench.data.sample import Sample, Split

SOURCES = {
    "nocaps": ("nocaps/nocaps_val_4500_captions.json",),
    "flickr30k": ("flickr30k/dataset_flickr30k.json",),
}


def more_caption_samples(files: DataFiles, task: str, source: str, split: Split) -> list[Sample]:
    """Return one sample an image of the public test captions.

    Raises:
        DataError: files or images are missing or malformed, or no such split.
    """
    if split != "test":
        raise DataError(f"{files.root}: {source} is read for testing only; train on COCO captions")
    return _nocaps(files, task) if source == "nocaps" else _flickr30k(files, task)


def _nocaps(files: DataFiles, task: str) -> list[Sample]:
    path = files.require("nocaps", "nocaps_val_4500_captions.json")
    images = unique_ids(path, rows_of(path, "images"))
    captions: dict[int, list[str]] = {image_id: [] for image_id in images}
    for where, row in numbered(path, rows_of(path, "annotations")):
        image_id = integer(row, "image_id", where)
        if image_id not in captions:
            raise DataError(f"{where}: 'image_id' {image_id} is not among the file's images")
        captions[image_id].append(text(row, "caption", where))
    samples = []
    for image_id, lines in captions.items():
        where = f"{path}, image {image_id}"
        name = text(images[image_id], "file_name", where)
        domain = str(images[image_id].get("domain", ""))
        if lines:
            samples.append(_sample(files, task, f"nocaps/images/{name}", lines, where, domain))
    return samples


def _flickr30k(files: DataFiles, task: str) -> list[Sample]:
    path = files.require("flickr30k", "dataset_flickr30k.json")
    samples = []
    for where, row in numbered(path, rows_of(path, "images")):
        if text(row, "split", where) != "test":
            continue
        lines = [text(sentence, "raw", where) for sentence in row.get("sentences", [])]
        if not lines:
            raise DataError(f"{where}: no sentences")
        name = f"flickr30k/images/{text(row, 'filename', where)}"
        samples.append(_sample(files, task, name, lines, where, ""))
    return samples


def _sample(
    files: DataFiles, task: str, name: str, captions: list[str], where: str, domain: str
) -> Sample:
    return Sample(
        sample_id=f"{task}/{name.rsplit('/', 1)[-1]}",
        task=task,
        image_id=name,
        image_path=files.image(name, where),
        question="",
        references=tuple(captions),
        target=captions[0],
        facets={"domain": domain} if domain else {},
    )
