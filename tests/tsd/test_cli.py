"""The `tsd` command's help: every option is explained, and nothing is wider than a terminal of 100 columns."""

import argparse

import pytest

from tsd.cli import build_parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    top = build_parser()
    verbs = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return {"tsd": top, **verbs.choices}


@pytest.mark.parametrize("name", parsers())
def test_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = parsers()[name]
    assert [line for line in parser.format_help().splitlines() if len(line) > 100] == []
    assert [action.option_strings for action in parser._actions if not action.help and action.nargs != "A..."] == []
    assert parser.description
    assert "examples:\n  " in (parser.epilog or "")
