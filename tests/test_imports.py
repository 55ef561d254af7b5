"""Imports run one way, the scoring side never imports torch, and no modules import in a cycle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.timeout(900)  # imports take ten times as long on a busy machine
ROOT = Path(__file__).resolve().parent.parent
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `pyproject.toml` on the package in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_contracts_are_kept() -> None:
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("data/sample.py", "from encoder_bench.base.record import RunRecord", None),
        ("data/sample.py", "import encoder_bench.cli.app", "Imports run one way"),
        ("metrics/vqa.py", "def f():\n    import torch", "Scoring never imports torch"),
        ("tasks/controls.py", "import encoder_bench.tasks.evaluate", "No cycle between modules"),
    ],
)
def test_a_planted_import_is_seen(
    tmp_path: Path, module: str, line: str, contract: str | None
) -> None:
    ignored = shutil.ignore_patterns("bundled", "__pycache__")
    shutil.copytree(ROOT / "encoder_bench", tmp_path / "encoder_bench", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "encoder_bench" / module
    file.write_text(file.read_text() + f"\n{line}\n")
    found = lint(tmp_path)
    assert (found.returncode == 0) == (contract is None), found.stdout
    assert contract is None or f"{contract} BROKEN" in found.stdout


COMMANDS = [
    *(f"{name} --help" for name in ("run", "sweep", "predict", "export", "cache build")),
    "encoders",
    "table --results results",
    "compare --results results/baseline tiny-deit/frozen tiny-clip/frozen",
    "recommend --results results/baseline --tasks oc",
    "cache ls",
    "data check",
    "run --data /nowhere",
]
START = """
import sys
from importlib import metadata
import encoder_bench.api
print("pandas" in sys.modules)
from in_process import encoder_bench
for command in sys.argv[1:]:
    status = encoder_bench(*command.split()).returncode
    print(command, status, "torch" in sys.modules or "transformers" in sys.modules, sep=": ")
"""


def test_commands_that_compute_no_features_start_without_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    said = subprocess.check_output(
        [sys.executable, "-c", START, *COMMANDS], cwd=ROOT, env=environment, text=True
    )
    expected = [f"{command}: {int('nowhere' in command)}: False" for command in COMMANDS]
    assert said.splitlines() == ["False", *expected]  # pandas takes half a second


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_spin_shortly_unless_a_person_says_otherwise(
    given: dict[str, str], spins: str
) -> None:
    ours = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import os, encoder_bench; print(os.environ.get('GOMP_SPINCOUNT'))"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=ours | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == spins


def test_every_package_that_is_installed_for_the_tests_is_pinned() -> None:
    """Walks from this package along what is installed; another version than the pin ends a path."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [Requirement("encoder-bench[dev]")]
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != "encoder-bench" and name not in pins:
            missing.add(name)
        elif name == "encoder-bench" or Version(found.version) == Version(pins[name]):
            needs = map(Requirement, found.requires or [])
            left += [n for n in needs if n.marker is None or _holds(n.marker, extras)]
    assert not missing
    assert len(seen) > 50


def _holds(marker: Marker, extras: frozenset[str]) -> bool:
    return any(marker.evaluate({"extra": extra}) for extra in extras or {""})
