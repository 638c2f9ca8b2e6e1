"""`bench list`: one line for every method, and everything about one method or metric."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.cards.card import cards
from bench.cli import main
from bench.fetch.weights import record_first_hashes
from bench.methods import METHODS, get_method
from bench.methods.describe import HEADERS, description, overview
from bench.metrics import EXTRA_METRICS, METRICS
from bench.metrics.per_image import LPIPS
from bench.options import RunOptions
from bench.paper.tables import TABLES


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_one_line_for_every_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = listed(capsys, "methods", "--weights-root", str(tmp_path)).splitlines()
    assert lines[0].split() == " ".join(HEADERS).split()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    for name, table in (("tsd-sr", "1 2 7"), ("bicubic", "1 2 5 7")):
        row = overview(name, METHODS[name], RunOptions(weights_root=tmp_path))
        assert len(row) == len(HEADERS)
        assert row[1] == table
    assert overview("tsd-sr", METHODS["tsd-sr"], RunOptions(weights_root=tmp_path))[4] == "3/3 missing"


@pytest.mark.parametrize("columns", [120, 160, 200])
def test_in_a_terminal_a_line_is_a_line(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Short facts stay whole; the longest texts alone are cut, and not where no terminal asks for it."""
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = listed(capsys, "methods", "--weights-root", str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(columns))
    cut = listed(capsys, "methods", "--weights-root", str(tmp_path)).splitlines()
    assert len(cut) == len(METHODS) + 1
    assert max(map(len, cut)) <= columns
    assert "…" not in whole
    supir = next(line for line in cut if line.startswith("supir"))
    for fact in ("own env, not built", "4/4 missing", "SUPIR Softw", "noncommerci", "never run"):
        assert fact in supir


def test_what_the_files_forbid_is_said_with_the_method(tmp_path: Path) -> None:
    row = overview("sinsr", METHODS["sinsr"], RunOptions(weights_root=tmp_path))
    assert row[6] == "noncommercial: academic research only; noncommercial (autoencoder_vq_f4.pth)"
    said = description("tsd-sr", METHODS["tsd-sr"], RunOptions(weights_root=tmp_path))
    assert "forbids: gated: accept its licence on its page first (stable-diffusion-3-medium-diffusers/)" in said


def test_published_outputs_are_described_as_images_not_as_the_method_that_we_run(tmp_path: Path) -> None:
    options = RunOptions(weights_root=tmp_path, data_root=tmp_path)
    spec = METHODS["osediff-published"]
    assert overview(spec.name, spec, options)[4] == "2/2 missing"
    assert "cannot run: OSEDiff (published) needs realsr/osediff/" in description(spec.name, spec, options)
    (tmp_path / "realsr" / "osediff").mkdir(parents=True)
    assert overview(spec.name, spec, options)[4] == "1/2 missing"
    said = description(spec.name, spec, options)
    assert said.endswith("for realsr")
    assert "osediff.pkl" not in said
    assert "seed" not in said
    assert description("x", get_method("published:sinsr"), options).endswith("for none of the test sets")


def test_weights_are_here_once_they_are_picked_up(tmp_path: Path) -> None:
    options = RunOptions(weights_root=tmp_path)
    weights = cards()["tsd-sr"].weights
    for weight in weights:
        for name in weight.contains:
            (tmp_path / weight.file / name).parent.mkdir(parents=True, exist_ok=True)
            path = tmp_path / weight.file / name
            if path.suffix == ".safetensors":
                save_file({"weight": torch.zeros(2)}, path)
            elif path.suffix == ".pt":
                torch.save(torch.zeros(2), path)
            else:
                path.write_text("{}")
    assert overview("tsd-sr", METHODS["tsd-sr"], options)[4] == "to be picked up"
    first = "cannot run: `bench fetch tsd-sr` has to pick up the weights first"
    assert first in description("tsd-sr", METHODS["tsd-sr"], options)
    record_first_hashes(weights, "tsd-sr", options)
    assert overview("tsd-sr", METHODS["tsd-sr"], options)[4] == "here"
    said = description("tsd-sr", METHODS["tsd-sr"], options)
    assert "hashes of 2 files known" in said
    assert "can run" in said


def test_everything_about_one_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = listed(capsys, "tsd-sr", "--weights-root", str(tmp_path))
    card = cards()["tsd-sr"]
    for fact in (card.citation, card.repository, card.commit, *card.settings, card.verified, "default/", "4.3 GB"):
        assert fact in said
    assert TABLES["table7"].title in said
    assert "cannot run: TSD-SR needs tsdsr-mse/" in said


def test_a_file_with_a_known_hash_shows_it(tmp_path: Path) -> None:
    options = RunOptions(weights_root=tmp_path)
    known = [(card, weight) for card in cards().values() for weight in card.weights if weight.sha256]
    for card, weight in known:
        assert f"sha256 {weight.sha256}" in description(card.name, METHODS[card.name], options)
    assert all(len(weight.sha256 or "") == hashlib.sha256().digest_size * 2 for _, weight in known)


def test_kinds_and_methods_may_be_mixed_and_a_wrong_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "dists" in listed(capsys, "metrics", "bicubic")
    assert main(["list", "tsd-srr"]) == 2
    assert "tsd-sr" in capsys.readouterr().err


def test_everything_about_one_metric(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, spec in (METRICS | EXTRA_METRICS).items():
        said = listed(capsys, name)
        assert said.startswith(f"{name}: {spec.display}\n")
        assert spec.protocol in said
        assert ("higher is better" in said) == spec.higher_is_better
        for file in spec.weights:
            state = "here" if file.shipped else "missing"
            for fact in (f"{file.name}: {state}", file.licence, file.sha256, file.where, *file.urls):
                assert fact in said
        assert (f"`bench fetch {name}`" in said) == any(not file.shipped for file in spec.weights)
    said = listed(capsys, "lpips", "bicubic")
    assert "244.4 MB" in said
    assert said.index("lpips: LPIPS") < said.index("bicubic: Bicubic")
    path = LPIPS.weights[0].path()
    path.parent.mkdir(parents=True)
    path.touch()
    assert f"{path.name}: here" in listed(capsys, "lpips")
    assert str(tmp_path) not in said


def test_a_misspelt_metric_is_answered_with_the_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "lpisp"]) == 2
    assert "did you mean lpips?" in capsys.readouterr().err
