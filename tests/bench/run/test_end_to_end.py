"""The command line on three small images: the exact table, what a second run does, what goes wrong and how it ends.

The golden files change only by `BENCH_REGENERATE_GOLDEN=1 pytest tests/bench/run/test_end_to_end.py`.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.records import Records
from bench.testsets.manifest import TESTSETS

GOLDEN = Path(__file__).parents[2] / "golden"
Bench = Callable[..., tuple[int, str, str]]
TABLE = ("run", "--methods", "bicubic", "lanczos", "--metrics", "psnr", "ssim", "--out", "out")
SCRIPT = Path(sys.executable).with_name("bench")


def without_versions(text: str) -> str:
    text = re.sub(r"^- Versions: .*$", "- Versions: …", text, flags=re.M)
    return re.sub(r"pyiqa \d[\w.]*", "pyiqa …", text)


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BENCH_REGENERATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


def test_the_whole_way_gives_exactly_this_table(bench: Bench) -> None:
    status, out, err = bench(*TABLE, "--no-timing")
    assert status == 0
    assert out == Path("out/table1.md").read_text()
    check_golden("table1.md", without_versions(out))
    assert Path("out/table1.png").exists()
    assert "written: out/table1.md, out/table1.csv, out/table1.tex, out/table1.reasons.csv, out/table1.png" in err


def test_a_second_run_changes_nothing_and_the_records_alone_give_the_same_table(bench: Bench) -> None:
    _, first, _ = bench(*TABLE)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out/records").rglob("*.json*")}
    status, second, _ = bench(*TABLE)
    assert (status, second) == (0, first)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    for name in ("table1.md", "table1.csv", "images"):
        path = Path("out", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert bench("table", "--out", "out") == (0, first, "")
    assert Path("out/table1.md").read_text() == first


def test_methods_metrics_and_images_are_added_to_what_is_there(bench: Bench) -> None:
    bench("run", "--methods", "lanczos", "--metrics", "ssim", "--out", "out", "--no-figure")
    scores = Path("out/records/mini/lanczos/scores.ssim.jsonl").read_bytes()
    bench("run", "--methods", "bicubic", "--metrics", "psnr", "--out", "out", "--no-figure")
    _, table, _ = bench("table", "--out", "out")
    assert "- [1] not scored yet; `bench run` does the rest\n" in table, "PSNR was asked for bicubic alone"
    status, table, _ = bench(*TABLE, "--no-timing")
    assert status == 0
    assert Path("out/records/mini/lanczos/scores.ssim.jsonl").read_bytes() == scores
    assert without_versions(table) == (GOLDEN / "table1.md").read_text()


def test_a_table_that_the_new_records_left_behind_is_named(bench: Bench) -> None:
    options = ("--methods", "bicubic", "--metrics", "psnr", "--out", "out", "--no-figure")
    bench("run", "--table", "table2", *options)
    table = Path("out/table2.md")
    table.write_text(table.read_text().replace("2", "3", 1))
    _, _, err = bench("run", *options)
    assert (
        "table2 there is not what its records give now: `bench table --table table2 --out out` renders it anew" in err
    )
    bench("table", "--table", "table2", "--out", "out")
    _, _, err = bench("run", *options)
    assert "is not what its records give" not in err


def test_trouble_of_another_table_does_not_end_a_run(bench: Bench) -> None:
    options = ("--metrics", "psnr", "--out", "out", "--no-figure")
    bench("run", "--table", "table2", "--methods", "lanczos", *options)
    Path("out/records/mini/lanczos/run.json").write_text("[]")
    status, out, err = bench("run", "--methods", "bicubic", *options)
    assert status == 0
    assert "| Bicubic" in out
    assert "table2 there cannot be checked against its records: " in err


def test_a_test_set_is_added_to_what_is_there(bench: Bench, datasets: Path) -> None:
    shutil.copytree(datasets / "mini", datasets / "realsr")
    manifest = datasets / "realsr" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"mini"', '"realsr"').replace('"Mini"', '"RealSR"'))
    bench(*TABLE)
    picture = Path("out/table1.png").read_bytes()
    status, out, _ = bench(*TABLE, "--testsets", "realsr")
    assert status == 0
    assert "measured on Mini (N = 3), RealSR (N = 3)" in out
    assert out.count("Paired difference to Bicubic") == 2
    assert "| DRealSR" not in out, "the paper's figures for the sets of the table alone"
    assert Path("out/table1.png").read_bytes() == picture
    assert Path("out/table1-realsr.png").exists()


def test_a_limited_run_is_a_table_of_its_own(bench: Bench) -> None:
    status, out, _ = bench("run", "--methods", "bicubic", "--metrics", "psnr", "--limit", 2, "--no-figure")
    assert status == 0
    assert "measured on Mini (N = 2 of 3)" in out
    assert Path("reports/mini-first2/table1.md").exists()
    assert not Path("reports/mini").exists()


def test_a_fresh_clone_with_records_and_no_images_restores_them_and_ends_with_the_same_table(bench: Bench) -> None:
    _, first, _ = bench(*TABLE, "--no-timing")
    shutil.rmtree("out/images")
    status, second, err = bench(*TABLE, "--no-timing")
    assert (status, second) == (0, first)
    assert "bicubic on mini: 3 recorded images are not on disk as recorded, restored again" in err
    assert not Path("out/superseded").exists()


def test_missing_weights_are_a_sentence_each_at_mini_scale(bench: Bench) -> None:
    status, out, _ = bench(
        "run", "--methods", "bicubic", "realesrgan-compact", "--metrics", "psnr", "lpips", "--out", "out", "--no-figure"
    )
    assert status == 0
    assert "| Bicubic" in out
    assert "| Real-ESRGAN" not in out
    assert "LPIPS ↓ |" not in out.split("The paper's own figures")[0]
    assert "- LPIPS was not measured (files are missing: `bench fetch lpips`).\n" in out
    assert "- Real-ESRGAN (compact) was not measured (files are missing: `bench fetch realesrgan-compact`).\n" in out
    with open("out/table1.csv", newline="") as file:
        codes = {line["method"]: line["not_measured"] for line in csv.DictReader(file) if line["method"]}
    assert codes["bicubic"] == "lpips: files-1"
    assert codes["realesrgan-compact"] == "psnr: files-2 | lpips: files-2 | seconds: files-2"
    with open("out/table1.reasons.csv", newline="") as file:
        reasons = {line["code"]: line["reason"] for line in csv.DictReader(file)}
    assert re.search(r"LPIPS needs alexnet-owt-7be5be79\.pth .*\$TORCH_HOME/hub/checkpoints", reasons["files-1"])
    assert re.search(r"Real-ESRGAN \(compact\) needs realesr-general-x4v3\.pth .*https://", reasons["files-2"])


def failing(tmp_path: Path) -> str:
    """A method that fails on the second of the three images."""
    code = """
        def restore(lr, seed):
            if abs(float(lr.mean()) - MEAN) < 1e-6:
                raise RuntimeError("cannot do this one")
            return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
    """
    from bench.pixels import read_image

    mean = float(read_image(tmp_path / "datasets/mini/test_LR/photo1.png").mean())
    path = tmp_path / "own.py"
    path.write_text(f"MEAN = {mean!r}\n" + re.sub(r"^ {8}", "", code, flags=re.M))
    return f"own=python:{path}:restore"


def test_a_failing_method_costs_its_row_and_the_exit_status_tells(bench: Bench, tmp_path: Path) -> None:
    arguments = ("run", "--methods", "bicubic", failing(tmp_path), "--metrics", "psnr", "--out", "out", "--no-figure")
    status, out, err = bench(*arguments)
    assert status == 1
    assert "failed: own on mini: 1 images, first photo1: RuntimeError: cannot do this one" in err
    assert "| own" not in out
    said = "- own was not measured (failed on 1 of 3 images, first on photo1: RuntimeError: cannot do this one).\n"
    assert said in out
    assert "| Bicubic" in out
    rows = Records(Path("out")).of("mini", "own").images()
    assert [row.error is None for row in rows.values()] == [True, False, True]


def test_changed_settings_need_redo_and_keep_the_old_records(bench: Bench, tmp_path: Path) -> None:
    name = failing(tmp_path)
    arguments = ("run", "--methods", name, "--metrics", "psnr", "--out", "out", "--no-figure")
    bench(*arguments)
    path = tmp_path / "own.py"
    path.write_text(path.read_text().replace("RuntimeError", "ValueError"))
    status, _, err = bench(*arguments)
    assert status == 2
    assert "were made otherwise" in err
    assert "--redo own" in err
    status, _, err = bench(*arguments[:2], "bicubic", *arguments[2:])
    assert (status, "--redo own" in err) == (2, True)
    assert not Path("out/images/mini/bicubic").exists(), "it is said before the rows above it are restored"
    for given in ("own", name):
        status, _, err = bench(*arguments, "--redo", given)
        assert status == 1, "the method still fails on one image"
        assert "old records moved to out/superseded/mini/own." in err
    status, _, err = bench(*arguments, "--redo", "bicubic")
    assert status == 2
    assert "--redo bicubic: not among the rows of this run (own)" in err


def test_restore_alone_then_run_scores_what_is_there(bench: Bench) -> None:
    status, out, _ = bench("restore", "--methods", "bicubic", "lanczos", "--out", "out")
    assert status == 0
    assert out.splitlines()[0] == "bicubic on mini: 3 restored, 0 there already, 0 failed"
    assert not Path("out/records/table1.json").exists()
    images = Path("out/records/mini/bicubic/images.jsonl").read_bytes()
    assert bench(*TABLE)[0] == 0
    assert Path("out/records/mini/bicubic/images.jsonl").read_bytes() == images


def test_another_reference_row(bench: Bench) -> None:
    _, out, _ = bench(*TABLE, "--no-figure", "--reference", "lanczos")
    assert "Paired difference to Lanczos" in out
    _, out, _ = bench("table", "--out", "out", "--reference", "bicubic")
    assert "Paired difference to Bicubic" in out
    for verb in (("table", "--out", "out"), TABLE):
        status, _, err = bench(*verb, "--reference", "tsd-sr")
        assert status == 2
        assert "no row 'tsd-sr'" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--table", "tabel1"), "Did you mean 'table1'?"),
        (("run", "--testsets", "relsr"), "unknown test set 'relsr'"),
        (("run", "--methods", "bicubi"), "bicubic"),
        (("run", "--methods", "spandrel:typo.pth"), "--methods spandrel:typo.pth: not there"),
        (("run", "--seed", "7", "--out", "made"), "choose another --out"),
        (("table", "--out", "nowhere"), "no records of table1 in nowhere"),
        (("list", "metric"), "choose from methods, testsets, metrics, tables"),
    ],
)
def test_bad_input_is_one_message_and_status_2(bench: Bench, arguments: tuple[str, ...], says: str) -> None:
    if "made" in arguments:
        bench("run", "--methods", "bicubic", "--metrics", "psnr", "--out", "made", "--no-figure")
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_limit_of_nothing_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench("run", "--limit", "0")
    assert "expected 1 or more" in capsys.readouterr().err


def test_listing_says_what_is_available_and_what_is_missing(bench: Bench, datasets: Path) -> None:
    for name in TESTSETS[1:]:
        shutil.copytree(Path(__file__).parents[3] / "datasets" / name, datasets / name)
    status, out, _ = bench("list")
    assert status == 0
    assert re.search(r"^bicubic +1 2 5 7 .* in process +here +none needed +- ", out, flags=re.M)
    assert re.search(r"^  realsr .* · missing: the test set RealSR needs", out, flags=re.M)
    assert re.search(r"^  psnr +PSNR ↑ \(full reference\) · available$", out, flags=re.M)
    assert re.search(r"^  lpips +LPIPS ↓ .* · missing: LPIPS needs alexnet", out, flags=re.M)
    assert re.search(r"^  table4 .* · missing: no row of it can be measured", out, flags=re.M)
    status, out, _ = bench("list", "metrics")
    assert "bicubic" not in out
    assert len(out.splitlines()) >= 9


def test_the_paper_profile_names_what_to_fetch_before_anything_heavy(tmp_path: Path) -> None:
    """Through the installed command, on a machine that has nothing: everything named, status 2, in seconds."""
    environment = {**os.environ, "TORCH_HOME": str(tmp_path)}
    for name in ("TSD_DATA", "TSD_WEIGHTS"):
        environment.pop(name, None)
    start = time.process_time()
    done = subprocess.run(
        [SCRIPT, "run", "--profile", "paper", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert time.process_time() - start < 10
    assert done.returncode == 2
    assert done.stdout == ""
    for fact in (
        "DrealSRVal_crop128",
        "RealSRVal_crop128",
        "DIV2K_V2_val",
        "Iceclear/StableSR-TestSets",
        "TSD-SR needs stable-diffusion-3-medium-diffusers/ (4.3 GB): `bench fetch tsd-sr`",
        "S-Lab License 1.0",
        "alexnet-owt-7be5be79.pth (244.4 MB",
        "bench fetch",
    ):
        assert fact in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_run_costs_its_row_and_never_the_table(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    run = ("run", "--profile", "paper", "--testset", "mini", "--metrics", "psnr", "--out", "out", "--no-figure")
    status, out, err = bench(*run, "--methods", "bicubic", "tsd-sr")
    assert status == 0, "nothing that ran failed"
    (line,) = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert "TSD-SR needs stable-diffusion-3-medium" in line
    assert "TSD-SR needs default/" in line, "all of it in one line"
    assert re.search(r"^\| Bicubic .* \d\d\.\d\d", out, flags=re.M)
    assert "- TSD-SR was not measured (files are missing: `bench fetch tsd-sr`).\n" in out
    full = Path("out/table1.reasons.csv").read_text()
    assert re.search(r"TSD-SR needs .*stable-diffusion-3-medium.*Stability AI Community License", full)
    assert len(line) < 600, "in the terminal stands what has a line's room"

    status, _, err = bench(*run, "--methods", "bicubic", "tsd-sr", "--no-allow-missing")
    assert (status, "TSD-SR needs stable-diffusion-3-medium" in err) == (2, True)
    status, _, err = bench(*run[:-3], "--out", "other", "--methods", "tsd-sr")
    assert status == 2
    assert "nothing to measure, none of the methods can run here:\nTSD-SR needs " in err
    assert not Path("other").exists()
    status, _, err = bench(*run, "--methods", "bicubic", "tsd-sr", "--metrics", "lpips")
    assert status == 2, "what a metric needs is required"
    assert "LPIPS needs alexnet" in err.split("costs its row alone")[0]
    assert "TSD-SR needs" in err.split("costs its row alone")[1]


def test_methods_run_in_the_order_of_the_table(bench: Bench) -> None:
    _, out, _ = bench("restore", "--methods", "lanczos", "bicubic", "--out", "out")
    assert [line.split()[0] for line in out.splitlines()] == ["bicubic", "lanczos"]


def test_a_gpu_that_is_not_there_is_named_before_anything_begins(bench: Bench) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    status, _, err = bench(*TABLE, "--device", "cuda")
    assert status == 2
    assert "--device cuda: torch finds no CUDA device on this machine" in err
    assert not Path("out").exists()


def test_what_the_paper_profile_lacks_may_be_left_out(bench: Bench, datasets: Path) -> None:
    for name in TESTSETS[1:]:
        shutil.copytree(Path(__file__).parents[3] / "datasets" / name, datasets / name)
    status, _, err = bench("run", "--profile", "paper", "--allow-missing", "--out", "out")
    assert status == 2
    assert "test sets that are not on this machine" in err
    status, out, err = bench(
        "run", "--profile", "paper", "--allow-missing", "--testset", "mini", "--metrics", "psnr", "--out", "out"
    )
    assert status == 0
    missing = "(files are missing: `bench fetch osediff addsr sinsr tsd-sr`)"
    assert f"- OSEDiff, AddSR, SinSR and TSD-SR were not measured {missing}.\n" in out
    full = Path("out/table1.reasons.csv").read_text()
    assert "SinSR needs SinSR_v1.pth (CC-BY-NC-SA-4.0)" in full
    assert "TSD-SR needs stable-diffusion-3-medium" in full


def test_help_is_quick_and_has_commands_to_paste() -> None:
    for verb in ((), ("run",), ("table",), ("list",), ("restore",), ("compare",)):
        start = os.times()
        done = subprocess.run([SCRIPT, *verb, "--help"], capture_output=True, text=True)
        used = os.times()
        assert done.returncode == 0
        assert re.search(r"^  bench \w+", done.stdout, flags=re.M)
        assert used.children_user - start.children_user < 1
    version = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("tsd-sr-bench ")


def test_an_interrupt_says_how_to_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.run import pipeline

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Stages, "score", interrupt)
    status, _, err = bench(*TABLE)
    assert status == 130
    assert "the same command continues" in err
