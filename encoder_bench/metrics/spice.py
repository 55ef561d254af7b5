"""SPICE, by its authors' Java program, once `install` has fetched the jars that it lacks.

Reference: Anderson et al. 2016 (arXiv 1607.08822); coco-caption's `spice.py`.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError, MissingDependencyError
from encoder_bench.base.files import atomic_folder
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.metrics.java import find_java, known_rows, run_java, scorer_folder
from encoder_bench.metrics.statistics import Measure, References, mean_percent

ARCHIVE = "stanford-corenlp-full-2015-12-09"
SOURCE = f"https://nlp.stanford.edu/software/{ARCHIVE}.zip"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
RHINO = ("rhino-1.7.15.jar", "rhino-engine-1.7.15.jar")
"""The JavaScript engine with which SPICE writes its output; Java brings none from 15 on."""
ARTIFACTS = {
    CORENLP[0]: (
        "edu.stanford.nlp:stanford-corenlp:3.6.0",
        "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742",
    ),
    CORENLP[1]: (
        "edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models",
        "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd",
    ),
    RHINO[0]: (
        "org.mozilla:rhino:1.7.15",
        "2427fdcbc149ca0a25ccfbb7c71b01f39ad42708773a47816cd2342861766b63",
    ),
    RHINO[1]: (
        "org.mozilla:rhino-engine:1.7.15",
        "b7bbb6724812a8ba6c650cf4a1e655a24af4d73a321add5a64a54c2d5963ce00",
    ),
}
"""Jar -> its Maven coordinates and the sha256 of the published file, which never changes."""
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
MAVEN_TIMEOUT = 3600.0
OPENED = (
    *(f"java.base/java.{name}" for name in ("io", "lang", "math", "net", "nio", "text", "util")),
    "java.base/java.util.concurrent", "java.base/sun.nio.ch", "java.sql/java.sql",
)  # fmt: skip
"""Packages into which its parser and its cache reflect, closed from Java 17 on."""
START_SECONDS = 900.0
CAPTION_SECONDS = 3.0


def spice(predictions: Sequence[str], references: References) -> Measure:
    """Return the mean SPICE F-score; raises as `spice_scores`."""
    return mean_percent(known_rows(spice_scores, predictions, references))


def spice_scores(predictions: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return the SPICE F-score of each caption, from 0 to 1.

    Raises:
        MissingDependencyError: not installed, changed since, or the program fails, runs out of
            memory or takes too long.
    """
    jars = check_installed()
    with tempfile.TemporaryDirectory(prefix="encoder-bench-spice-") as temporary:
        asked, answered = Path(temporary) / "input.json", Path(temporary) / "output.json"
        rows = [
            {"image_id": index, "test": text, "refs": list(truths)}
            for index, (text, truths) in enumerate(zip(predictions, references, strict=True))
        ]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        opened = OPENED if find_java()[1] >= 9 else ()
        cache: list[str] = []
        if platform.machine().lower() in ("x86_64", "amd64"):  # as its native library
            cache = ["-cache", str(spice_folder() / "parsed")]
            (spice_folder() / "parsed").mkdir(parents=True, exist_ok=True)
        run_java(
            "SPICE",
            [f"-Djava.io.tmpdir={temporary}",
             *(f"--add-opens={name}=ALL-UNNAMED" for name in opened),
             "-cp", os.pathsep.join(jars), "edu.anu.spice.SpiceScorer", str(asked),
             *cache, "-out", str(answered), "-silent"],
            spice_folder() / "lib", heap=8192, seconds=START_SECONDS + CAPTION_SECONDS * len(rows),
        )  # fmt: skip
        try:  # the file is there, empty, from the start on
            found = json.loads(answered.read_text(encoding="utf-8"))
            scores = {int(row["image_id"]): float(row["scores"]["All"]["f"]) for row in found}
            result = np.array([scores[index] for index in range(len(rows))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MissingDependencyError("SPICE's output lacks scores or is not whole") from error
    if not np.isfinite(result).all():
        raise MissingDependencyError("SPICE's output holds a score that is not a number")
    return result


def spice_folder() -> Path:
    """Return where SPICE and what it needs are installed; it may not exist."""
    return cache_dir("spice")


def check_installed() -> list[str]:
    """Return the names of SPICE's jars, in `spice_folder() / "lib"`.

    Raises:
        MissingDependencyError: it is not installed, or a jar has changed since.
    """
    library = spice_folder() / "lib"
    try:
        installed: dict[str, str] = json.loads((library / "sha256.json").read_text("utf-8"))
        for name, sha256 in installed.items():
            if hash_file(library / name) != sha256:
                raise MissingDependencyError(
                    f"{name} is another file than was installed; run `encoder-bench setup spice`"
                )
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            "SPICE needs the Stanford CoreNLP 3.6.0 jars (385 MB): `encoder-bench setup spice`, "
            "or with `--from FILE|DIR`"
        ) from error
    return list(installed)


def install(
    source: Path | None, reporter: Reporter, *, sha256: str | None = None
) -> dict[str, str]:
    """Install SPICE into the cache, whole or not at all; return the sha256 of each jar.

    They are kept, and compared before every use. What the source lacks comes through `mvn`, as it
    is set up here, which compares it with the checksum that its repository publishes.

    Args:
        source: the CoreNLP archive, or a folder with it or its jars; None for `mvn`, and without
            `mvn` the authors' archive, whose download resumes if interrupted.
        reporter: shows the progress.
        sha256: what the archive must have; nobody publishes it, but a site may know its own.

    Raises:
        DataError: the source lacks the jars, or is no archive, or a jar is not the published one.
        MissingDependencyError: no network, no JavaScript engine, or pycocoevalcap brings no SPICE.
    """
    own = scorer_folder("spice")
    with atomic_folder(spice_folder() / "lib", replace=True) as library:
        shutil.copyfile(next(iter(own.glob("spice-*.jar"))), library / "spice.jar")
        for jar in sorted((own / "lib").glob("*.jar")):
            shutil.copyfile(jar, library / jar.name)
        if source is not None:
            _copy(source, library, sha256)
        missing = [name for name in ARTIFACTS if not (library / name).is_file()]
        if shutil.which("mvn"):
            for name in missing:
                _fetch(name, library, reporter)
        elif set(missing) & set(RHINO) and find_java()[1] >= 15:
            raise MissingDependencyError(
                f"SPICE needs {' and '.join(RHINO)} on Java from 15 on (Maven artifacts of "
                "org.mozilla): install Maven, or pass a folder that also holds them: --from DIR"
            )
        elif set(missing) & set(CORENLP):
            archive = _download(reporter)
            _unpack(archive, library, sha256)
            archive.unlink()
        hashes = {path.name: hash_file(path) for path in sorted(library.glob("*.jar"))}
        (library / "sha256.json").write_text(json.dumps(hashes, indent=1) + "\n", "utf-8")
    return hashes


def _copy(source: Path, library: Path, sha256: str | None) -> None:
    archive = source if source.is_file() else next(iter(source.rglob(f"{ARCHIVE}.zip")), None)
    if source.is_dir():
        for name in ARTIFACTS:
            for found in sorted(source.rglob(name))[:1]:
                shutil.copyfile(found, library / name)
    for name in CORENLP:
        if not (library / name).is_file():
            if archive is None:
                raise DataError(f"--from {source}: no {name} in it")
            return _unpack(archive, library, sha256)
    return None


def _unpack(archive: Path, library: Path, sha256: str | None) -> None:
    own_hash = hash_file(archive)
    if sha256 is not None and own_hash != sha256.lower():
        raise DataError(f"{archive}: its sha256 is {own_hash}, --sha256 {sha256} was expected")
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {Path(name).name: name for name in packed.namelist()}
            for name in CORENLP:
                if name not in inside:
                    raise DataError(
                        f"{archive}: no {name} in it; {ARCHIVE}.zip is what SPICE needs"
                    )
                with packed.open(inside[name]) as stream, (library / name).open("wb") as target:
                    shutil.copyfileobj(stream, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def _fetch(name: str, library: Path, reporter: Reporter) -> None:
    """Copy one artifact through `mvn`, which fails where the repository's checksum differs."""
    coordinates, sha256 = ARTIFACTS[name]
    command = [str(shutil.which("mvn")), "--batch-mode", "--strict-checksums", COPY,
               f"-Dartifact={coordinates}", f"-DoutputDirectory={library}"]  # fmt: skip
    try:
        with reporter.phase(f"{coordinates} through mvn", 1, "file") as phase:
            ended = subprocess.run(
                command, cwd=library, capture_output=True, text=True, timeout=MAVEN_TIMEOUT,
                check=False,
            )  # fmt: skip
            phase.advance()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"mvn could not copy {coordinates}: {error}") from error
    if ended.returncode or not (library / name).is_file():
        lines = [line for line in ended.stdout.splitlines() if "ERROR" in line] or ["no message"]
        raise MissingDependencyError(
            f"mvn could not copy {coordinates}: {lines[0]}; or pass the jars: --from FILE|DIR"
        )
    found = hash_file(library / name)
    if found != sha256:
        raise DataError(f"{coordinates}: its sha256 is {found}, {sha256} was published")


def _download(reporter: Reporter) -> Path:
    from encoder_bench.base.network import download

    target = spice_folder() / f"{ARCHIVE}.zip"
    try:
        download(SOURCE, target, reporter)
    except DataError as error:
        raise MissingDependencyError(
            f"{error}; or install Maven, or pass it: encoder-bench setup spice --from FILE"
        ) from error
    return target
