"""Killed at any moment, the same command ends with the same bytes and does nothing twice but the image in hand."""

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.records.records import Records

# Every write to disk ends in fsync; so a process that is killed in its k-th fsync stops at every point in turn.
# "torn" cuts the line that is being written in half first. Each run is a process of its own, forked from one that has
# imported everything and computed nothing.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch, pyiqa
from bench import cli
from bench.testsets import manifest
import bench.run.restore, bench.run.score, bench.report.render, bench.report.figures

manifest.DATASETS = Path(sys.argv[2])
real_fsync = os.fsync

def run(out, kill_at, torn):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0
    def fsync(handle):
        nonlocal count
        count += 1
        if count == kill_at:
            if torn:
                os.ftruncate(handle, os.fstat(handle).st_size - 40)
            os.kill(os.getpid(), signal.SIGKILL)
        real_fsync(handle)
    os.fsync = fsync
    sys.stdout = open(os.devnull, "w")
    methods = ["bicubic", "lanczos"]
    status = cli.main(["run", "--methods", *methods, "--metrics", "psnr", "ssim", "--no-timing", "--out", out])
    if kill_at is None:
        Path(out, "fsyncs").write_text(str(count))
    os._exit(status)

assert run("whole", None, False) == 0
total = int(Path("whole/fsyncs").read_text())
points = sorted({*range(1, total + 1, int(sys.argv[3])), total})
for point in points:
    out = f"killed{point}"
    assert run(out, point, point % 2 == 0) == signal.SIGKILL, (point, total)
    for name in ("bicubic", "lanczos"):
        rows = Path(out, "records/mini", name, "images.jsonl")
        if rows.exists():
            Path(out, name).write_bytes(rows.read_bytes())
    assert run(out, None, False) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")
def test_killed_anywhere_and_run_again_the_table_is_the_same_byte_for_byte(
    datasets: Path, tmp_path: Path, warm: Any
) -> None:
    done = warm.run("-c", PROGRAM, datasets, "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, killed = tmp_path / "whole", sorted(tmp_path.glob("killed*"))
    assert len(killed) > 6
    for out in killed:
        for name in ("table1.md", "table1.csv", "table1.tex", "table1.png"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (out.name, name)
        assert not [path for folder in ("images", "records") for path in (out / folder).rglob(".*.tmp*")]
        for method in ("bicubic", "lanczos"):
            rows = Records(out).of("mini", method).images()
            assert list(rows) == ["photo0", "photo1", "photo2"]
            before = (out / method).read_text().split("\n")[:-1] if (out / method).exists() else []
            after = (out / "records" / "mini" / method / "images.jsonl").read_text().splitlines()
            assert after[: len(before)] == before, "what was restored before the kill was not restored again"
