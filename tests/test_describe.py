"""`bench list`: one line for every method, and everything about one."""

import hashlib
from pathlib import Path

import pytest

from bench.card import cards
from bench.cli import main
from bench.describe import HEADERS, description, overview
from bench.fetch_weights import settle
from bench.methods import METHODS, MethodOptions
from bench.tables import TABLES


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_one_line_for_every_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = listed(capsys, "methods", "--weights-root", str(tmp_path)).splitlines()
    assert lines[0].split() == " ".join(HEADERS).split()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    for name, table in (("tsd-sr", "1, 2, 7"), ("bicubic", "1, 2, 5, 7")):
        row = overview(name, METHODS[name], MethodOptions(weights_root=tmp_path))
        assert len(row) == len(HEADERS)
        assert row[1] == table
    assert overview("tsd-sr", METHODS["tsd-sr"], MethodOptions(weights_root=tmp_path))[6] == "3 of 3 missing"


def test_weights_are_here_once_they_are_picked_up(tmp_path: Path) -> None:
    options = MethodOptions(weights_root=tmp_path)
    weights = cards()["tsd-sr"].weights
    for weight in weights:
        for name in weight.contains:
            (tmp_path / weight.file / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / weight.file / name).write_bytes(b"x")
    assert "not yet picked up" in overview("tsd-sr", METHODS["tsd-sr"], options)[6]
    settle(weights, "tsd-sr", options)
    assert overview("tsd-sr", METHODS["tsd-sr"], options)[6] == "here"
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
    options = MethodOptions(weights_root=tmp_path)
    known = [(card, weight) for card in cards().values() for weight in card.weights if weight.sha256]
    for card, weight in known:
        assert f"sha256 {weight.sha256}" in description(card.name, METHODS[card.name], options)
    assert all(len(weight.sha256 or "") == hashlib.sha256().digest_size * 2 for _, weight in known)


def test_kinds_and_methods_may_be_mixed_and_a_wrong_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "dists" in listed(capsys, "metrics", "bicubic")
    assert main(["list", "tsd-srr"]) == 2
    assert "tsd-sr" in capsys.readouterr().err
