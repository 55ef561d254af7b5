"""SPICE, by its authors' Java program, where Stanford CoreNLP 3.6.0 has been installed for it.

What belongs here: installing the two CoreNLP jars beside SPICE's own in the cache, and running the
program outside site-packages, with the options that today's Java needs.

Reference: Anderson et al. 2016 (arXiv 1607.08822); coco-caption's `spice.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.download import download
from encoder_bench.base.errors import DataError, MissingDependencyError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.metrics.caption import Captions
from encoder_bench.metrics.java import find_java, heap_mebibytes, scorer_folder

ARCHIVE = "stanford-corenlp-full-2015-12-09"
SOURCE = f"https://nlp.stanford.edu/software/{ARCHIVE}.zip"
JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

_PIECE = 1 << 20
_SECONDS_FOR_A_START = 300.0
_SECONDS_A_CAPTION = 3.0


def spice_folder() -> Path:
    """Return where SPICE and what it needs are installed; it may not exist."""
    return cache_dir("spice")


def missing_reason() -> str | None:
    """Return why SPICE cannot run here; None where it can be tried."""
    missing = [name for name in JARS if not (spice_folder() / "lib" / name).is_file()]
    if missing:
        return (
            "SPICE needs the Stanford CoreNLP 3.6.0 jars (a 385 MB download): "
            "`encoder-bench setup spice`, or with `--from FILE`"
        )
    return None


def install(
    source: Path | None, reporter: Reporter, *, sha256: str | None = None
) -> dict[str, str]:
    """Install SPICE's jars into the cache, and return the sha256 of each CoreNLP jar.

    They are kept, and compared before every use.

    Args:
        source: the CoreNLP archive, or a folder that holds its jars; None to download.
        reporter: told the progress of the download, which resumes where an earlier one stopped.
        sha256: what the archive must have; nobody publishes it, but a site may know its own.

    Raises:
        DataError: the file lacks the jars, or is no archive.
        MissingDependencyError: no network, or pycocoevalcap brings no SPICE.
    """
    own = scorer_folder("spice")
    library = spice_folder() / "lib"
    library.mkdir(parents=True, exist_ok=True)
    if source is not None and source.is_dir():
        for name in JARS:
            found = next(iter(sorted(source.rglob(name))), None)
            if found is None:
                raise DataError(f"--from {source}: no {name} in it")
            with atomic_path(library / name) as temporary:
                shutil.copyfile(found, temporary)
    else:
        archive = source or _download(reporter)
        own_hash = hash_file(archive)
        if sha256 is not None and own_hash != sha256.lower():
            raise DataError(f"{archive}: its sha256 is {own_hash}, --sha256 {sha256} was expected")
        _unpack(archive, library)
    for jar in sorted((own / "lib").glob("*.jar")):
        if jar.name not in JARS:
            shutil.copyfile(jar, library / jar.name)
    shutil.copyfile(next(iter(own.glob("spice-*.jar"))), spice_folder() / "spice.jar")
    hashes = {name: hash_file(library / name) for name in JARS}
    write_text(spice_folder() / "sha256.json", json.dumps(hashes, indent=1) + "\n")
    return hashes


def spice(predictions: Sequence[str], references: Captions) -> NDArray[np.float64]:
    """Return the SPICE F-score of each image, in percent; their mean is the corpus score.

    Raises:
        MissingDependencyError: not installed, changed since, or the program fails or takes too
            long.
    """
    reason = missing_reason() or _changed()
    if reason is not None:
        raise MissingDependencyError(reason)
    parsed = spice_folder() / "parsed"
    parsed.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="encoder-bench-spice-") as temporary:
        asked, answered = Path(temporary) / "input.json", Path(temporary) / "output.json"
        rows = [
            {"image_id": index, "test": guess, "refs": list(truths)}
            for index, (guess, truths) in enumerate(zip(predictions, references, strict=True))
        ]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        limit = _SECONDS_FOR_A_START + _SECONDS_A_CAPTION * len(predictions)
        try:
            ended = subprocess.run(
                [*_java(temporary), str(asked), "-cache", str(parsed), "-out", str(answered),
                 "-silent"],
                cwd=spice_folder(), capture_output=True, text=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MissingDependencyError(f"SPICE took more than {limit:.0f} s") from error
        if ended.returncode or not answered.is_file():
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingDependencyError(f"SPICE's Java program failed: {last}")
        rows = json.loads(answered.read_text(encoding="utf-8"))
    scores = {int(row["image_id"]): row["scores"]["All"]["f"] for row in rows}
    found = [scores.get(index) for index in range(len(predictions))]
    return np.array([100.0 * float(score or 0.0) for score in found])


def _java(temporary: str) -> list[str]:
    """Return the command up to SPICE's own arguments.

    Java 17 and later close `java.lang`, into which the parser reflects, unless told otherwise; what
    Java unpacks goes into the private temporary folder.
    """
    java, version = find_java()
    opened = ["--add-opens", "java.base/java.lang=ALL-UNNAMED"] if version >= 9 else []
    heap = f"-Xmx{heap_mebibytes(8192)}m"
    return [java, heap, f"-Djava.io.tmpdir={temporary}", *opened, "-jar", "spice.jar"]


def _changed() -> str | None:
    """Return why the installed jars are not those that were installed; None where they are."""
    note = spice_folder() / "sha256.json"
    if not note.is_file():
        return f"{note} is missing; run `encoder-bench setup spice` again"
    kept = json.loads(note.read_text(encoding="utf-8"))
    for name in JARS:
        if hash_file(spice_folder() / "lib" / name) != kept.get(name):
            return f"{name} is another file than was installed; run `encoder-bench setup spice`"
    return None


def _unpack(archive: Path, library: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {Path(name).name: name for name in packed.namelist()}
            for name in JARS:
                if name not in inside:
                    raise DataError(
                        f"{archive}: no {name} in it; {ARCHIVE}.zip is what SPICE needs"
                    )
                with (
                    packed.open(inside[name]) as stream,
                    atomic_path(library / name) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(stream, target, _PIECE)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def _download(reporter: Reporter) -> Path:
    """Fetch the archive into the cache; a part that is there already is gone on from."""
    target = spice_folder() / f"{ARCHIVE}.zip"
    try:
        download(SOURCE, target, reporter)
    except DataError as error:
        raise MissingDependencyError(
            f"{error}; or pass it: encoder-bench setup spice --from FILE"
        ) from error
    return target
