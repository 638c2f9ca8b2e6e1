"""`measure`, the Python entry point, and `Request`, what it is asked for."""

import math
from pathlib import Path
from statistics import mean

import pytest

from bench.cli import build_parser
from bench.commands.run import request_of
from bench.records.records import Records
from bench.run.pipeline import measure
from bench.run.request import Request
from tsd.errors import UserError


def test_the_frame_holds_the_means_of_the_records(datasets: Path) -> None:
    measured = measure(Request(methods=["bicubic", "lanczos"], metrics=["psnr"], limit=2, out=Path("out")))
    frame = measured.frame
    assert list(frame.columns) == ["testset", "method", "display", "steps", "psnr", "seconds"]
    assert list(frame["method"]) == ["bicubic", "lanczos"]
    assert set(frame["testset"]) == {"mini"}
    for row in frame.itertuples():
        found = Records(Path("out")).of("mini", row.method)
        assert list(found.images()) == ["photo0", "photo1"]
        assert row.psnr == mean(score.value for score in found.scores("psnr").values() if score.value is not None)
        assert row.seconds == pytest.approx(mean(image.seconds or 0 for image in found.images().values()))
    assert frame["steps"].isna().all()
    assert measured.failed == ()
    assert measured.markdown == Path("out/table1.md").read_text()
    assert Path("out/table1.csv") in measured.paths
    assert Path("out/table1.png") in measured.paths
    assert all(path.is_file() for path in measured.paths)


def test_what_fails_is_told_and_is_no_number(datasets: Path) -> None:
    Path("own.py").write_text("def restore(lr, seed):\n    raise RuntimeError('no')\n")
    methods = ["bicubic", "own=python:own.py:restore"]
    measured = measure(Request(methods=methods, metrics=["psnr"], out=Path("out"), timing=False, figure=False))
    first, second = measured.frame["psnr"]
    assert first > 0
    assert math.isnan(second)
    assert measured.failed == ("own on mini: 3 images, first photo0: RuntimeError: no",)
    assert not Path("out/table1.png").exists()


def test_a_request_without_arguments_is_the_command_without_options() -> None:
    assert request_of(build_parser().parse_args(["run"])) == Request()
    assert request_of(build_parser().parse_args(["restore"])) == Request()
    options = ["--cache", "c", "--time-limit", "9", "--redo", "bicubic", "--no-allow-missing", "--no-timing"]
    asked = Request(cache_root=Path("c"), time_limit_seconds=9.0, redo=["bicubic"], allow_missing=False, timing=False)
    assert request_of(build_parser().parse_args(["run", *options])) == asked


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"methods": "bicubic"}, "methods='bicubic': expected a list"),
        ({"limit": 0}, "limit=0: expected 1 or more"),
        ({"time_limit_seconds": 0.0}, "expected seconds above 0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_at_once(wrong: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Request(**wrong)


def test_a_precision_that_is_none_is_refused(datasets: Path) -> None:
    with pytest.raises(UserError, match="no precision is named 'int8'"):
        measure(Request(dtype="int8"))
