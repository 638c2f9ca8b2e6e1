"""Pinned commits beside the heads of real repositories."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import cli
from bench.cards.card import Card
from bench.methods.external.updates import updates


def test_a_repository_that_moved_on_is_told_from_one_that_did_not(
    make_card: Callable[..., Card], official: tuple[Path, str]
) -> None:
    card = make_card()
    (found,) = updates([card, dataclasses.replace(card, name="other")])
    assert found.methods == ("tiny", "other"), "one question for both"
    assert found.head is not None
    assert found.head != official[1]
    assert f"moved on: pinned {official[1][:7]}, its head is {found.head[:7]}" in found.line()
    (same,) = updates([make_card(commit=found.head)])
    assert f"pinned at its head, {found.head[:7]}" in same.line()


def test_a_repository_that_cannot_be_asked_is_said(make_card: Callable[..., Card], tmp_path: Path) -> None:
    (found,) = updates([make_card(repository=str(tmp_path / "gone"))])
    assert found.head is None
    assert "not known: " in found.line()
    assert str(tmp_path) not in (found.error or "")


def test_a_name_without_a_card_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "bicubic", "--updates"]) == 2
    assert "no card is called 'bicubic'" in capsys.readouterr().err
