"""From a run to a study and its report, through the command line: what raters get, what is refused, what is written."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.records.records import Records
from bench.records.schema import Verification
from bench.study.study import read_study

MAKE = ("--methods", "bicubic", "lanczos", "--raters", "12", "--traps", "2", "--duplicates", "0.4")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(run: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; returns exit status, stdout, stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


def data_of(page: Path) -> dict:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S
    )
    assert found is not None
    return json.loads(found[1])


def test_raters_learn_nothing_from_the_page(run: Path, bench: Command, tmp_path: Path) -> None:
    out = tmp_path / "study"
    title = "<script>alert(1)</script>"
    status, printed, _ = bench("study", "make", run, *MAKE, "--title", title, "--send-to", title, "--out", out)
    assert status == 0
    assert printed == f"{(out / 'page' / 'index.html').as_uri()}#rater=1\n"
    text = (out / "page" / "index.html").read_text(encoding="utf-8")
    study = read_study(out)
    for secret in (*(image.name for image in study.images), "bicubic", "lanczos", "Bicubic", "trap", "repeat"):
        assert secret not in json.dumps(data_of(out / "page" / "index.html"))
    assert title not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert sorted(path.name for path in out.iterdir()) == ["page", "study.json"]
    numbers = [number for image in study.images for number in image.pictures]
    assert numbers != sorted(numbers)
    for image in study.images:
        for method, number in zip(study.methods, image.pictures, strict=True):
            shown = np.asarray(Image.open(out / "page" / "images" / f"{number}.webp").convert("RGB"))
            recorded = Image.open(run / "images" / "mini" / method.name / f"{image.name}.png").convert("RGB")
            assert np.array_equal(shown, np.asarray(recorded))
    trapped = next(image for image in study.images if image.bad is not None)
    blocks = np.asarray(Image.open(out / "page" / "images" / f"{trapped.bad}.webp").convert("RGB"))
    assert np.unique(blocks.reshape(4, 16, 5, 16, 3).swapaxes(1, 2).reshape(20, 256, 3), axis=1).shape[1] < 30
    assert bench("study", "make", run, *MAKE, "--title", title, "--send-to", title, "--out", out)[0] == 0
    status, _, error = bench("study", "make", run, *MAKE, "--seed", "1", "--out", out)
    assert (status, "holds another study" in error) == (2, True)
    (out / "votes").mkdir()
    error = bench("study", "make", run, *MAKE, "--title", title, "--send-to", title, "--out", out)[2]
    assert "holds votes besides the study" in error


def test_one_file_holds_the_same(run: Path, bench: Command, tmp_path: Path) -> None:
    assert bench("study", "make", run, *MAKE, "--single-file", "--out", tmp_path / "one")[0] == 0
    text = (tmp_path / "one" / "page.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["page.html", "study.json"]
    study = read_study(tmp_path / "one")
    for number in study.images[0].pictures:
        assert f'id="picture-{number}">data:image/webp;base64,' in text
    assert "connect-src" not in text
    assert bench("study", "make", run, *MAKE, "--post", "https://example.org/a", "--out", tmp_path / "post")[0] == 0
    assert "connect-src https://example.org;" in (tmp_path / "post" / "page" / "index.html").read_text()


def test_categories_and_a_number_of_images(run: Path, bench: Command, tmp_path: Path) -> None:
    names = [image.stem for image in (run / "images" / "mini" / "bicubic").iterdir()]
    table = tmp_path / "categories.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("image", "category"), *zip(names, ("Animals", "Animals", "<b>"), strict=True)])
    make = ("study", "make", run, *MAKE, "--categories", table)
    assert bench(*make, "--images", 2, "--out", tmp_path / "two")[0] == 0
    assert sorted(image.category for image in read_study(tmp_path / "two").images) == ["<b>", "Animals"]
    assert "<b> has 1 of 2" in bench(*make, "--images", 4, "--out", tmp_path / "four")[2]
    assert "at least one for each" in bench(*make, "--images", 1, "--out", tmp_path / "four")[2]
    for text, message in (
        ("name,kind\n", "expected the columns image and category"),
        ("image,category\nno-such,A\n", "does not have: no-such"),
        ("image,category\n__proto__,\n", "line 2"),
        ("image,category\n__proto__,A\n__proto__,B\n", "is in A and in B"),
        ("image,category\n__proto__,All\n", "choose another"),
    ):
        table.write_text(text)
        status, _, error = bench(*make, "--out", tmp_path / "four")
        assert status == 2
        assert message in error
    assert not (tmp_path / "four").exists()


def test_images_must_be_the_recorded_ones(run: Path, bench: Command, tmp_path: Path) -> None:
    make = ("study", "make", run, *MAKE, "--out", tmp_path / "study")
    path = run / "images" / "mini" / "lanczos" / "__proto__.png"
    good = path.read_bytes()
    Image.new("RGB", (80, 64)).save(path)
    status, _, error = bench(*make)
    assert status == 2
    assert "__proto__: the image of lanczos is not the recorded file" in error
    path.write_bytes(good)
    rows = run / "records" / "mini" / "lanczos" / "images.jsonl"
    kept = rows.read_text(encoding="utf-8")
    rows.write_text(kept.replace('"width": 80', '"width": 40', 1), encoding="utf-8")
    assert "images of different sizes (40x64, 80x64)" in bench(*make)[2]
    rows.write_text(kept, encoding="utf-8")
    shutil.rmtree(run / "images" / "mini")
    assert "holds no images, only records" in bench(*make)[2]
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "bicubic", "no-such"), "the run has no no-such on mini; it has bicubic, lanczos"),
        (("--methods", "bicubic", "bicubic"), "names bicubic twice"),
        (("--methods", "bicubic"), "at least two methods"),
        (("--trials", "4"), "1 to 3"),
        (("--criterion", "structure", "--show", "hr"), "add lr to --show"),
        (("--post", "ftp://x"), "expected an address"),
        (("--post", "https://x;script-src *"), "expected an address"),
        (("--testset", "realsr"), "the run has mini"),
    ],
)
def test_bad_requests(run: Path, bench: Command, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    status, _, error = bench("study", "make", run, *MAKE, *arguments, "--out", tmp_path / "study")
    assert status == 2
    assert message in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "is no study" in bench("study", "make", run, *MAKE, "--out", tmp_path / "mine")[2]


def test_simulated_raters_are_called_so_everywhere(run: Path, bench: Command, tmp_path: Path) -> None:
    study, votes, out = (tmp_path / name for name in ("study", "votes", "figure8"))
    Records(run).write_verification(Verification("2026-11-30", {}, {}, []))  # beside the tables, and none itself
    assert bench("study", "make", run, *MAKE, "--out", study)[0] == 0
    assert bench("study", "simulate", study, "--preference", 3, 1, "--careless", 2, "--out", votes)[0] == 0
    (votes / "other.json").write_text("{}")
    score = ("study", "score", votes, "--study", study, "--resamples", 60, "--out", out)
    status, printed, error = bench(*score)
    assert status == 1  # a file was refused
    assert "refused: other.json: not a file of the voting page" in error
    assert "flagged: rater 12" in error
    assert "SIMULATED" in error
    names = ["figure8.md", "figure8.csv", "figure8-images.csv", "figure8.svg", "figure8.png"]
    assert [Path(line).name for line in printed.splitlines()] == names
    report = (out / "figure8.md").read_text(encoding="utf-8")
    assert report.startswith("# Figure 8: user study, simulated raters\n\n**SIMULATED")
    for text in ("other.json", "Rater 12", "69.2 [66.6, 71.7]", "84.4", "our inference", "60 resamples"):
        assert text in report
    assert r"window.hacked = 1</script> $\frac{ \| x" in report
    assert "SIMULATED" in (out / "figure8.svg").read_text(encoding="utf-8")
    for name in names[1:3]:
        rows = list(csv.DictReader(io.StringIO((out / name).read_text(encoding="utf-8"))))
        assert {row["source"] for row in rows} <= {"simulated", "paper (votes inferred)"}
    shares = {
        row["subject"]: float(row["value"])
        for row in csv.DictReader(io.StringIO((out / "figure8.csv").read_text(encoding="utf-8")))
        if row["quantity"] == "share" and row["source"] == "simulated"
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["bicubic"] > 0.5
    before = {name: (out / name).read_bytes() for name in names[1:]}
    (votes / "other.json").unlink()
    assert bench(*score)[0] == 0
    assert {name: (out / name).read_bytes() for name in names[1:]} == before
