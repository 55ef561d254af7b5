"""Errors, hashes, atomic files, caches' place."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from encoder_bench.base import files as atomic
from encoder_bench.base.errors import EncoderBenchError, UnknownNameError
from encoder_bench.base.hardware import choose_device, hardware_facts
from encoder_bench.base.hashing import hash_file, hash_json, hash_parameters, hash_text
from encoder_bench.base.limits import left_in_cgroups
from encoder_bench.base.paths import CacheEntry, cache_dir, prune, remove_folder
from encoder_bench.training.batch_encoder import one_core_threads


def test_float32_convolutions_are_not_rounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_counts(version: int, tmp_path: Path) -> None:
    """A job's group without a limit of its own, in a parent that has one."""
    top = tmp_path / ("memory" if version == 1 else "")
    job = top / "slurm" / "job_7" / "step"
    job.mkdir(parents=True)
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    for folder, most in ((job, "max"), (job.parent, "16000")):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text("9000\n")
        cached = "total_inactive_file" if version == 1 else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5000\n{cached} 4000\n")
    groups = tmp_path / "cgroup"
    own = "4:memory:" if version == 1 else "0::"
    groups.write_text(f"5:cpuset:/\n{own}/slurm/job_7/step\n")
    assert left_in_cgroups(groups, tmp_path) == [11000]
    assert left_in_cgroups(tmp_path / "none", tmp_path) == []


def test_more_threads_than_are_allowed_end_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def few(thread: threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(EncoderBenchError, match="8 threads cannot be started"):
        one_core_threads(8)
    assert not any(thread.is_alive() for thread in started)


def test_unknown_name_suggests_the_nearest() -> None:
    error = UnknownNameError("encoder", "dinov2-xl", ["dinov2-l", "clip-l", "dinov2-b"])
    assert "did you mean 'dinov2-l'" in str(error)


def test_unknown_name_lists_all_where_nothing_is_near() -> None:
    assert "choose one of a, b" in str(UnknownNameError("part", "zzzzzz", ["b", "a"]))


def test_write_replaces_whole_files_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    atomic.write_text(target, "old")
    atomic.write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    atomic.write_text(target, "old")

    def fail_half_way() -> None:
        with atomic.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_is_named_with_a_way_out(tmp_path: Path) -> None:
    def fill_disk() -> None:
        with atomic.atomic_path(tmp_path / "file.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EncoderBenchError, match=r"no space left.*file\.txt.*--results"):
        fill_disk()


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with pytest.raises(EncoderBenchError, match="cannot write"):
        atomic.write_bytes(tmp_path / "blocked" / "file", b"x")


def test_hash_text_keeps_parts_apart() -> None:
    assert hash_text("ab", "c") != hash_text("a", "bc")


def test_hash_json_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_hash_parameters_sees_one_bit() -> None:
    module = nn.Linear(3, 2)
    before = hash_parameters(module)
    assert hash_parameters(module) == before
    with torch.no_grad():
        module.bias.view(torch.int32)[0] ^= 1
    assert hash_parameters(module) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hash_parameters_tells_dtypes_apart(dtype: torch.dtype) -> None:
    zeros = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(zeros.weight)
    reference = hash_parameters(zeros)
    assert (hash_parameters(zeros.to(dtype)) == reference) == (dtype is torch.float32)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path))
    assert cache_dir("scenes", "x") == tmp_path / "scenes" / "x"
    monkeypatch.delenv("ENCODER_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "encoder-bench"


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "file"
    kept.parent.mkdir()
    kept.touch()
    (tmp_path / "link").symlink_to(kept.parent)
    for _ in range(2):  # also where there is nothing
        remove_folder(tmp_path / "link")
    assert [*tmp_path.rglob("*")] == [kept.parent, kept]


def test_a_folder_goes_whole_though_another_process_takes_files_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for name in "ab":
        (folder / name).mkdir(parents=True)
    real = shutil.rmtree

    def interrupted(path: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        real(path / "a")
        raise FileNotFoundError

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    remove_folder(folder)
    assert not folder.exists()


def test_what_is_pruned_is_known_before_an_entry_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").touch()  # no folder
    entries = [CacheEntry(tmp_path / name, name, 1, 1, n) for n, name in enumerate(("old", "new"))]
    pruned = prune(entries, 0)
    assert next(pruned).of == "old"
    with pytest.raises(NotADirectoryError):
        next(pruned)


@pytest.mark.parametrize(
    ("script", "name"), [("echo Apple M3 Max", "Apple M3 Max"), ("exit 1", None)]
)
def test_a_macs_processor_has_its_name(
    script: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = hardware_facts(torch.device("cpu"))["processor"]
    (tmp_path / "sysctl").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hardware_facts(torch.device("cpu"))["processor"] == (name or usual)
