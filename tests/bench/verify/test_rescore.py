"""The scores of a run that was really made, computed again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.records import Records
from bench.testsets.manifest import TestSet
from tsd.files import write_atomic

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny: TestSet, bench: Bench, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    assert bench("run", "--methods", "bicubic", "--metrics", "psnr", "ssim", "--no-figure", "--out", out)[0] == 0
    return out


def test_scores_that_come_out_again_are_recorded(run: Path, bench: Bench) -> None:
    handle = Records(run).of("mini", "bicubic")
    status, text, _ = bench("verify", "--rescore", run, "--metrics", "psnr", "--by", "Ada", "--limit", "2")
    assert status == 0
    assert "2 of 3" in text
    status, text, _ = bench("verify", "--rescore", run)
    assert status == 0
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("mini ")] == ["agrees", "agrees"]
    rows = handle.rescorings()
    assert {name: (row.n, row.total, row.by, row.agrees) for name, row in rows.items()} == {
        "psnr": (3, 3, None, True), "ssim": (3, 3, None, True),
    }  # fmt: skip
    assert len((handle.folder / "rescored.jsonl").read_text().splitlines()) == 3  # what was found before stays

    scores = handle.folder / "scores.psnr.jsonl"
    first = handle.scores("psnr")["photo0"].value
    scores.write_text(scores.read_text().replace(str(first), str(first + 0.01)))
    status, text, _ = bench("verify", "--rescore", run, "--metrics", "psnr")
    assert status == 1
    assert "DIFFERS, most on photo0" in text
    assert handle.rescorings()["psnr"].largest == pytest.approx(0.01)


def test_what_cannot_be_scored_again_is_said_and_not_recorded(run: Path, bench: Bench, tiny: TestSet) -> None:
    path = Records(run).of("mini", "bicubic").image_path("photo1")
    original = path.read_bytes()
    write_atomic(path, b"another")
    status, text, _ = bench("verify", "--rescore", run)
    assert status == 2
    assert "of its 3 images 1 are not the recorded files" in text
    path.unlink()
    assert "1 are not on this machine" in bench("verify", "--rescore", run)[1]
    write_atomic(path, original)
    assert Records(run).of("mini", "bicubic").rescorings() == {}
    for arguments, message in (
        (["--rescore", run.parent / "nothing"], "no records in"),
        (["--rescore", run, "--metrics", "fid"], "has no scores of fid; it has psnr, ssim"),
        (["--rescore", "hub:me/mini"], "`hf download --repo-type dataset me/mini --local-dir DIR`"),
        (["--by", "Ada"], "--by belongs to --rescore"),
        (["--rescore", run, "--drift"], "--rescore goes with"),
    ):
        status, _, error = bench("verify", *arguments)
        assert status == 2
        assert message in error
