"""Cells of the text domain: they resume, they are paired, and what does not fit is refused."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.ablation.text.domain as domain_module
from bench.ablation.domain import Cell
from bench.ablation.text.domain import MODEL, SHARPENED, TextDomain, open_domain
from tsd.errors import UserError
from tsd.train.settings import FinishedRun, RunSettings

LINES = 48
SHORT = {"steps": 4, "batch_size": 2, "critic_warmup_steps": 2, "warmup_steps": 1, "mixed_precision": "no"}


@pytest.fixture(autouse=True)
def few_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scores on few test lines: what is tested is the bookkeeping."""
    monkeypatch.setattr(domain_module, "TEST_LINES", LINES)
    monkeypatch.setattr(domain_module, "REFERENCE_LINES", 3 * LINES)
    caches = (domain_module.enlarged_inputs, domain_module.scorer)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def cell(domain: TextDomain, arm: str, seed: int = 0, **overrides: object) -> Cell:
    return Cell("test", arm, seed, domain.settings() | SHORT | overrides, arm)


def run(domain: TextDomain, folder: Path, asked: Cell) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    domain.run(asked, folder, device="cpu", stop=lambda: False)
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_settings_are_those_of_the_training_and_are_checked() -> None:
    domain = open_domain("")
    config = domain.config(domain.settings(), seed=3)
    assert (config.seed, config.phases[0].gamma2) == (3, domain.settings()["gamma2"])
    domain.check(domain.settings())
    with pytest.raises(UserError, match="lambda_tsd"):
        domain.check(domain.settings() | {"lambda_tsd": 2.0})
    with pytest.raises(UserError, match="lr = 'fast'; expected float, found str"):
        domain.check(domain.settings() | {"lr": "fast"})
    with pytest.raises(UserError, match=r"rank 8 .*start student.*32"):
        domain.check(domain.settings() | {"rank": 8})
    with pytest.raises(UserError, match="train_text"):
        TextDomain(model=Path("nowhere")).check(domain.settings())
    with pytest.raises(UserError, match="captions"):
        open_domain("something")
    assert open_domain("captions").fingerprint() != domain.fingerprint()
    # A data-only arm has no critic to warm up.
    assert domain.config(domain.settings() | {"gamma2": 0.0}, 0).critic_warmup_steps == 0


def test_a_cell_leaves_scores_curve_and_log_and_resumes_to_the_same(tmp_path: Path, monkeypatch) -> None:
    domain = open_domain("")
    whole = run(domain, tmp_path / "whole", cell(domain, "full"))
    assert whole[-1]["image"] is None
    assert set(whole[-1]) == {"image", *(measure.name for measure in domain.measures)}
    assert len(whole) == LINES + 1
    curve = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [0, 2, 4]  # of the student: the critic's warm-up is none of them
    assert {name: curve[-1][name] for name in whole[-1] if name != "image"} == {
        name: value for name, value in whole[-1].items() if name != "image"
    }
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 6
    assert any("critic_gain" in row for row in log)

    import tsd.train.student as student

    trained = student.train

    def killed(settings: RunSettings, config) -> FinishedRun:
        if settings.stop_after == 6:  # the last stretch is never begun
            raise KeyboardInterrupt
        return trained(settings, config)

    monkeypatch.setattr(student, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(domain, tmp_path / "killed", cell(domain, "full"))
    monkeypatch.setattr(student, "train", trained)
    assert run(domain, tmp_path / "killed", cell(domain, "full")) == whole


def test_a_data_only_cell_leaves_its_sharpened_outputs_as_references(tmp_path: Path) -> None:
    domain = open_domain("")
    scores = run(domain, tmp_path, cell(domain, "data", gamma2=0.0))[-1]
    found = {}
    for amount in SHARPENED:
        path = tmp_path / "references" / f"unsharp {amount:g}" / "scores.jsonl"
        found[amount] = json.loads(path.read_text().splitlines()[-1])
    sharpness = [scores["sharpness"], *(found[amount]["sharpness"] for amount in SHARPENED)]
    assert sharpness == sorted(sharpness)
    assert not (tmp_path / "references" / "start").exists()
    # Its curve has the steps of arms whose critic is warmed up, and begins where all begin.
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [0, 2, 4]
    domain.score_references(0, tmp_path / "untrained")
    start = json.loads((tmp_path / "untrained" / "start" / "scores.jsonl").read_text().splitlines()[-1])
    assert {name: curve[0][name] for name in start if name != "image"} == {
        name: value for name, value in start.items() if name != "image"
    }


def test_references_need_no_training(tmp_path: Path) -> None:
    domain = open_domain("")
    domain.score_references(0, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(domain.references)
    rows = {
        name: json.loads((tmp_path / name / "scores.jsonl").read_text().splitlines()[-1]) for name in domain.references
    }
    assert rows["start"]["psnr"] > rows["bicubic"]["psnr"] + 0.5
    assert rows["start"]["lp"] < rows["bicubic"]["lp"]


def test_the_shipped_model_is_small_and_complete() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16e6
    assert dataclasses.asdict(open_domain(""))["model"] == MODEL
