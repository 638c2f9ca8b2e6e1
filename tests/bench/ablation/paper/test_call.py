"""The command line: everything missing within seconds, flags, a whole sweep that is stopped and continued."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from bench import cli
from bench.ablation.experiment import EXPERIMENTS, read_experiment
from bench.ablation.paper.call import missing, opened
from bench.ablation.paper.files import Files
from bench.store.missing import describe
from tsd.config import TrainConfig

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without weights, data or test sets."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("TSD_DATA", "TSD_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment_text() -> str:
    """The experiment of the fixture `raw_paper` as a file; conftest cannot be imported by its name here."""
    return CONFTEST.read_text().split('MINI = """')[1].split('"""')[0]


FORKED = """
import pathlib
import bench.ablation.sweep
from bench.testsets import manifest

manifest.DATASETS = pathlib.Path("{datasets}")
real = bench.ablation.sweep.get_context
bench.ablation.sweep.get_context = lambda method: real("fork")
"""
"""The test set of the fixture `datasets`, and workers that take it over and need not import torch again."""

EVERYTHING = (
    "`bench fetch sd3-medium`", "`tsd prompts --model", "`tsd prepare LSDIR/", "LSDIR", "DIV2K", "Flickr2K", "FFHQ",
    "`bench fetch drealsr`", "`bench fetch realsr`",
    *(f"`bench fetch {metric}`" for metric in ("lpips", "dists", "fid", "musiq", "maniqa", "clipiqa")),
)  # fmt: skip


@pytest.mark.parametrize("table", ["table4", "table6"])
def test_everything_missing_is_listed_without_torch(nowhere: Path, table: str) -> None:
    code = (
        "import sys; from bench import cli; "
        f"status = cli.main(['sweep', '{table}', '--profile', 'paper', '--device', 'cpu']); "
        "print(status, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=nowhere)
    assert done.stdout == "2 False False\n", done.stderr
    for words in EVERYTHING:
        if table == "table4" or words != "`bench fetch realsr`":
            assert words in done.stderr, words
    assert "training in fp16 needs a GPU" in done.stderr
    assert not (nowhere / "sweeps").exists()


def test_what_is_there_is_not_listed(nowhere: Path, tiny_sd3_dir: Path, tiny_prepared: Path) -> None:
    experiment = read_experiment(EXPERIMENTS / "paper-table4.toml")
    model = nowhere / "model"
    for part in ("transformer", "vae", "scheduler"):
        model.mkdir(exist_ok=True)
        (model / part).symlink_to(tiny_sd3_dir / part)

    def listed(files: Files, testsets: list[str] | None = None) -> str:
        found = opened(experiment, files, testsets=testsets)
        return describe(missing(*found, found[0].arms, "cpu"))

    text = listed(Files(model=str(model), data=tiny_prepared), ["mini"])
    assert "default/, null/" in text
    for words in ("sd3-medium", "tsd prepare", "DRealSR"):
        assert words not in text
    prompts = nowhere / "prompts"
    save_file({}, nowhere / "nothing")
    for name in ("default", "null"):
        (prompts / name).mkdir(parents=True)
        (prompts / name / "prompt_embeds.safetensors").touch()
    assert "tsd prompts" not in listed(Files(model=str(model), prompt_embeds=prompts))
    assert "owner/name" in listed(Files(model="owner/name"))
    assert "transformer/config.json" in listed(Files(model="owner/name"))
    domain = opened(experiment, Files(model="owner/name"))[1]
    assert pickle.loads(pickle.dumps(domain)) == domain  # so it travels to workers
    text = listed(Files(teacher_lora=nowhere / "tuned", students=(("full", nowhere / "full"),)))
    assert "training (--teacher-lora) needs" in text
    assert "the arm full needs transformer.safetensors (or unet.safetensors), vae.safetensors" in text
    students = tuple((arm, nowhere / arm) for arm in ("full", "no-tsm", "no-dasm"))
    text = listed(Files(students=students))  # nothing is trained
    for words in ("tsd prepare", "tsd prompts", "fp16"):
        assert words not in text
    assert "bench fetch sd3-medium" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mixture-table4", "--model", "x", "--dry-run"],
            "--model, --dry-run: only for experiments of the domain paper",
        ),
        (["table4"], "no experiment 'table4'"),
        (["table5", "--profile", "paper"], "no experiment 'paper-table5'"),
        (["table4", "--profile", "paper", "--student", "full"], "expected ARM=DIR"),
        (["table4", "--profile", "paper", "--student", "full=a", "full=b"], "each arm once"),
        (["table4", "--profile", "paper", "--time-limit", "soon"], "a time limit is HH:MM"),
        (["table4", "--profile", "paper", "--testsets", "moon"], "unknown test set 'moon'"),
        (["table4", "--profile", "paper", "--arms", "ful"], "did you mean 'full'"),
        (["paper-table4", "--report-only", "--dry-run"], "exclude each other"),
        (["paper-table4", "--report-only"], "no records of a sweep"),
    ],
)
def test_wrong_calls_are_refused(
    nowhere: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_profile_before_a_whole_name_changes_nothing(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "paper-table6", "--profile", "paper", "--device", "cpu"]) == 2
    assert "paper-table6 needs what is not on this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_plans_writes_settings_and_lists_what_is_missing(
    nowhere: Path, tiny_sd3_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "tiny.toml").write_text(experiment_text())
    command = ["sweep", "tiny.toml", "--device", "cpu", "--model", str(tiny_sd3_dir), "--arms", "no-tsm", "--dry-run"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "nothing of it measured" in shown
    assert "Missing on this machine:\ntraining needs prepared.json" in shown
    config = nowhere / "sweeps/tiny-paper/configs/no-tsm.json"
    assert f"--config {config.relative_to(nowhere)}" in shown
    assert TrainConfig.from_dict(json.loads(config.read_text())).lambda_tsd == 1
    assert [path.name for path in (nowhere / "sweeps/tiny-paper").iterdir()] == ["configs"]


@pytest.mark.slow
def test_a_sweep_is_stopped_in_time_continued_and_reported(
    nowhere: Path, tiny_sd3_dir: Path, tiny_prepared: Path, datasets: Path, warm: Any
) -> None:
    """In processes of their own, on three small images. `tests/bench/ablation/test_sweep.py` has spawned workers."""
    for path in (Path(__file__).parents[4] / "datasets").glob("*/manifest.json"):
        if path.parent.name != "mini":
            (datasets / path.parent.name).mkdir()
            shutil.copy(path, datasets / path.parent.name)
    (nowhere / "tiny.toml").write_text(experiment_text())
    command = ["sweep", "tiny.toml", "--device", "cpu", "--jobs", "1", "--model", tiny_sd3_dir, "--data", tiny_prepared]

    def call(*arguments: str) -> tuple[int, str, str]:
        done = warm.run("bench", *command, *arguments, cwd=nowhere, before=FORKED.format(datasets=datasets))
        return done.returncode, done.stdout, done.stderr

    status, shown, errors = call("--time-limit", "0.001")
    assert (status, shown) == (3, ""), errors
    assert "not done in time, the same command continues: full, seed 0" in errors
    status, shown, errors = call()
    assert status == 0, errors
    assert "1 seed cannot reach p < .05" in shown
    assert shown == (nowhere / "sweeps/tiny-paper/table.md").read_text()
    assert (nowhere / "sweeps/tiny-paper/cells/no-tsm/seed-0000/done.json").is_file()
    assert call("--report-only") == (0, shown, "")
