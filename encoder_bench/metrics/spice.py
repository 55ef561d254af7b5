"""SPICE, by its authors' Java program, once Stanford CoreNLP 3.6.0 has been installed for it.

Reference: Anderson et al. 2016 (arXiv 1607.08822); coco-caption's `spice.py`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError, MissingDependencyError
from encoder_bench.base.files import atomic_path, write_text
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.metrics.java import find_java, known_rows, run_java, scorer_folder
from encoder_bench.metrics.statistics import Measure, References, mean_percent

ARCHIVE = "stanford-corenlp-full-2015-12-09"
SOURCE = f"https://nlp.stanford.edu/software/{ARCHIVE}.zip"
JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
START_SECONDS = 300.0
CAPTION_SECONDS = 3.0


def spice(predictions: Sequence[str], references: References) -> Measure:
    """Return the mean SPICE F-score.

    Raises:
        MissingDependencyError: not installed, changed since, or the program fails or takes too
            long.
    """
    return mean_percent(known_rows(spice_scores, predictions, references))


def spice_scores(predictions: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return the SPICE F-score of each caption, from 0 to 1.

    Raises:
        MissingDependencyError: not installed, changed since, or the program fails or takes too
            long.
    """
    check_installed()
    parsed = spice_folder() / "parsed"
    parsed.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="encoder-bench-spice-") as temporary:
        asked, answered = Path(temporary) / "input.json", Path(temporary) / "output.json"
        rows = [
            {"image_id": index, "test": text, "refs": list(truths)}
            for index, (text, truths) in enumerate(zip(predictions, references, strict=True))
        ]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        # Java 17 and later close java.lang, into which the parser reflects, unless opened
        opened = ["--add-opens", "java.base/java.lang=ALL-UNNAMED"] if find_java()[1] >= 9 else []
        run_java(
            "SPICE",
            [f"-Djava.io.tmpdir={temporary}", *opened, "-jar", "spice.jar", str(asked),
             "-cache", str(parsed), "-out", str(answered), "-silent"],
            spice_folder(), heap=8192, seconds=START_SECONDS + CAPTION_SECONDS * len(rows),
        )  # fmt: skip
        try:
            found = json.loads(answered.read_text(encoding="utf-8"))
        except OSError as error:
            raise MissingDependencyError("SPICE's Java program failed: no output") from error
    scores = {int(row["image_id"]): row["scores"]["All"]["f"] for row in found}
    return np.array([float(scores.get(index) or 0.0) for index in range(len(rows))])


def spice_folder() -> Path:
    """Return where SPICE and what it needs are installed; it may not exist."""
    return cache_dir("spice")


def check_installed() -> None:
    """Check that SPICE can be tried here.

    Raises:
        MissingDependencyError: it is not installed, or its jars have changed since.
    """
    jars = [spice_folder() / "lib" / name for name in JARS]
    note = spice_folder() / "sha256.json"
    if not all(file.is_file() for file in (*jars, note)):
        raise MissingDependencyError(
            "SPICE needs the Stanford CoreNLP 3.6.0 jars (a 385 MB download): "
            "`encoder-bench setup spice`, or with `--from FILE`"
        )
    installed = json.loads(note.read_text(encoding="utf-8"))
    for jar in jars:
        if hash_file(jar) != installed.get(jar.name):
            raise MissingDependencyError(
                f"{jar.name} is another file than was installed; run `encoder-bench setup spice`"
            )


def install(
    source: Path | None, reporter: Reporter, *, sha256: str | None = None
) -> dict[str, str]:
    """Install SPICE's jars into the cache, and return the sha256 of each CoreNLP jar.

    They are kept, and compared before every use.

    Args:
        source: the CoreNLP archive, or a folder that holds its jars; None to download.
        reporter: shows the progress of the download, which resumes if interrupted.
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
        _unpack(source or _download(reporter), library, sha256)
    for jar in sorted((own / "lib").glob("*.jar")):
        if jar.name not in JARS:
            shutil.copyfile(jar, library / jar.name)
    shutil.copyfile(next(iter(own.glob("spice-*.jar"))), spice_folder() / "spice.jar")
    hashes = {name: hash_file(library / name) for name in JARS}
    write_text(spice_folder() / "sha256.json", json.dumps(hashes, indent=1) + "\n")
    return hashes


def _unpack(archive: Path, library: Path, sha256: str | None) -> None:
    own_hash = hash_file(archive)
    if sha256 is not None and own_hash != sha256.lower():
        raise DataError(f"{archive}: its sha256 is {own_hash}, --sha256 {sha256} was expected")
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
                    shutil.copyfileobj(stream, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def _download(reporter: Reporter) -> Path:
    from encoder_bench.base.download import download

    target = spice_folder() / f"{ARCHIVE}.zip"
    try:
        download(SOURCE, target, reporter)
    except DataError as error:
        raise MissingDependencyError(
            f"{error}; or pass it: encoder-bench setup spice --from FILE"
        ) from error
    return target
