"""Reasons in short, from the very lines that plans keep."""

import pytest

from bench.report.reasons import LONGEST, Reason, merged_reason, sentences, short_reason
from bench.store.missing import Missing, Obstacle


def line(name: str, fetch: str | None, licence: str | None = "BSD-3-Clause (torchvision)", size: int | None = 7) -> str:
    place = f"$TSD_WEIGHTS/{name} (or under --weights-root, else ./weights)"
    return Missing(name, place, f"https://x.org/a at b/{name}", size, licence, "BSRGAN", fetch).line()


@pytest.mark.parametrize("licence", [None, "MIT", "BSD-3-Clause (torchvision)", "research use (LIVE, UT Austin)"])
@pytest.mark.parametrize("size", [None, 244_408_911])
def test_a_file_that_can_be_fetched_is_named_by_the_command(licence: str | None, size: int | None) -> None:
    lines = [line("a.pth", "bsrgan", licence, size), line("b.pth", "bsrgan", licence, size)]
    reason = short_reason(lines, ["BSRGAN"])
    assert reason == Reason("files are missing", ("bsrgan",), complete=False)
    assert reason.phrase() == "files are missing: `bench fetch bsrgan`"
    assert short_reason([line("net+LDL.pth", None, licence, size)], ["BSRGAN"]) == Reason(
        "missing: net+LDL.pth", complete=False
    ), "a file that no command gets is named itself"


def test_an_obstacle_is_told_without_the_name_of_the_row() -> None:
    obstacle = Obstacle("SinSR", "needs an NVIDIA GPU, and none is here").line()
    assert short_reason([obstacle], ["SinSR"]) == Reason("needs an NVIDIA GPU, and none is here")
    for text in ("PSNR of A: x", "PSNR of A is x", "A: x"):
        assert short_reason([text], ["A", "PSNR", "PSNR of A"]) == Reason("x")
    assert short_reason(["A broken file"], ["A b", "PSNR"]) == Reason("A broken file"), "half a word is no subject"
    assert not short_reason([obstacle, "SinSR runs on Linux only"], ["SinSR"]).complete
    mixed = short_reason([obstacle, line("a.pth", "sinsr")], ["SinSR"])
    assert mixed == Reason("files are missing", ("sinsr",), complete=False)


def test_a_long_reason_is_cut_and_never_inside_a_command() -> None:
    short = short_reason([f"X failed: {'word ' * 21}and `a command that is cut`"], ["X"])
    assert len(short.text) <= LONGEST
    assert short.text.endswith("word and …")
    assert not short.complete
    assert short_reason(["X " + "y" * 3 * LONGEST], ["X"]).text == "…", "one word of that length is no word"


def test_like_reasons_make_one_sentence() -> None:
    found = [(name.upper(), Reason("files are missing", (name,), complete=False)) for name in ("lpips", "dists", "fid")]
    assert sentences(found) == ["LPIPS, DISTS and FID were not measured (files are missing: `bench fetch metrics`)."]
    assert sentences(found[:1]) == ["LPIPS was not measured (files are missing: `bench fetch lpips`)."]
    methods = [(name, Reason("files are missing", (name,), complete=False)) for name in ("bsrgan", "ldl")]
    gpu = Reason("needs a GPU")
    assert sentences([methods[0], ("SinSR", gpu), methods[1], ("PASD", gpu)]) == [
        "bsrgan and ldl were not measured (files are missing: `bench fetch bsrgan ldl`).",
        "SinSR and PASD were not measured (each needs a GPU).",
    ]


def test_different_reasons_for_one_column_stand_beside_each_other() -> None:
    found = merged_reason([Reason("x", ("a",)), Reason("y"), Reason("x", ("a", "b"), complete=False)])
    assert found == Reason("x; y", ("a", "b"), complete=False)
