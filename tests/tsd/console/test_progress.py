"""Progress where stderr is no terminal: whole lines, some seconds apart."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from tsd.console import progress
from tsd.console.progress import Progress, Stages

LINE = re.compile(r"^train: step (\d+) of 5, 0:00:00(, about 0:00:00 left)?, loss=0\.(\d+)$")


def test_lines_and_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with Progress(total=5, desc="train", unit="step", mininterval=0) as bar:
        for step in range(1, 6):
            bar.update()
            bar.set_postfix_str(f"loss=0.{step}")
            bar.write(f"note {step}", file=sys.stderr)
    told = capsys.readouterr()
    assert told.out == ""
    assert "\r" not in told.err
    lines = told.err.splitlines()
    assert [line for line in lines if line.startswith("note")] == [f"note {step}" for step in range(1, 6)]
    found = [match for line in lines if (match := LINE.match(line))]
    assert [int(match[1]) for match in found if match[1] == match[3]] == [1, 2, 3, 4, 5]
    assert found[-1][2] is None  # nothing is left at the end
    assert len([line for line in lines if line == found[-1][0]]) == 1


def test_seldom_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(range(1000), "images", unit="image")) == list(range(1000))
    assert capsys.readouterr().err.splitlines() == ["images: image 1000 of 1000, 0:00:00"]
    for silent in (
        Progress(range(9), delay=60), Progress(range(9), leave=False), Progress(range(9), disable=True),
        Progress([], "nothing"),
    ):  # fmt: skip
        list(silent)
    assert capsys.readouterr().err == ""


def test_a_resumed_run_is_not_estimated_by_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(total=100, initial=90, desc="train", unit="step") as bar:
        bar.update(5)
        monkeypatch.setattr(bar, "start_t", bar.start_t - 50)  # ten seconds for each of the five
        assert bar.status().endswith("step 95 of 100, 0:00:50, about 0:00:50 left")
    capsys.readouterr()


def test_somebody_else_knows_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(total=4, desc="sweep", unit="cell", estimates=False) as bar:
        bar.update()
        bar.set_postfix_str("about 3 min left")
        monkeypatch.setattr(bar, "start_t", bar.start_t - 50)
        assert bar.status() == "sweep: cell 1 of 4, 0:00:50, about 3 min left"
    capsys.readouterr()


def test_bytes_are_told_in_their_size(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=3_400_000, desc="net.pth", unit="B", unit_scale=True) as bar:
        bar.update(1_200_000)
        assert bar.status().startswith("net.pth: 1.20MB of 3.40MB, 0:00:00")
    capsys.readouterr()


def test_processes_that_are_not_the_first_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    list(Progress(range(3), "images"))
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal() -> None:
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 80))
    code = "from tsd.console.progress import Progress\nfor _ in Progress(range(3), 'images', unit='image'): pass"
    subprocess.run([sys.executable, "-c", code], stderr=secondary, check=True)
    os.close(secondary)
    assert "images: 100%|" in os.read(primary, 4096).decode()
    os.close(primary)


def test_the_stages_of_an_image(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That a stage begins is told too, since it may be one long piece; a total may grow."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with Stages("photo") as stages:
        stages.mininterval = 0
        for stage, done, total in (("encode", 0, 1), ("encode", 1, 1), ("decode", 0, 4), ("decode", 4, 8)):
            stages(stage, done, total)
            monkeypatch.setattr(stages, "start_t", stages.start_t - 10)
    assert capsys.readouterr().err.splitlines() == [
        "photo, encode: piece 0 of 1, 0:00:00",
        "photo, encode: piece 1 of 1, 0:00:10",
        "photo, decode: piece 0 of 4, 0:00:00",
        "photo, decode: piece 4 of 8, 0:00:10, about 0:00:10 left",
    ]
    with Stages("quick") as stages:
        monkeypatch.setattr(progress, "SECONDS", 10.0)
        stages("encode", 0, 1)
        stages("encode", 1, 1)
    assert capsys.readouterr().err == ""
