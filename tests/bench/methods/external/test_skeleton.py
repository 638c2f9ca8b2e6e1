"""The skeleton of a card, from a repository that the test makes."""

import subprocess
from pathlib import Path

import pytest

from bench.cards.card import read_card
from bench.cli import main
from bench.methods.external.check import check_card
from bench.methods.external.skeleton import skeleton
from tsd.errors import UserError

SCRIPT = """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("-i", "--input", type=str, default="in")
parser.add_argument(
    "--output_dir",
    type=str,
)
parser.add_argument("--pretrained_model", required=True)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--mode", required=True)
parser.add_argument("--half", action="store_true")
args = parser.parse_args()
"""
REQUIREMENTS = """\
--extra-index-url https://download.pytorch.org/whl/cu118
torch == 2.1.0  # the newest that works
numpy<2,>=1.24
git+https://github.com/owner/other.git
einops
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clones" / "Own-SR"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "test_own.py").write_text(SCRIPT)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "model.py").write_text("pass\n")
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "README.md").write_text("conda create -n own python=3.9\n")
    (folder / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free\nof charge, to any person\n")
    git(folder, "init", "--quiet")
    git(folder, "remote", "add", "origin", "git@github.com:owner/Own-SR.git")
    git(folder, "add", ".")
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "all"],
        check=True, env={"GIT_COMMITTER_DATE": "2024-02-28T12:00:00Z", "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )  # fmt: skip
    return folder


def test_what_the_repository_says_is_filled_in_and_the_rest_is_asked_for(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (clone / "scripts" / "test_own.py").write_text("changed since\n")
    assert main(["new-card", str(clone)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "own-sr.toml\n"
    assert f"bench check card:own-sr.toml --repo-dir {clone}" in captured.err
    assert main(["check", "card:own-sr.toml", "--repo-dir", str(clone)]) == 2
    asked = capsys.readouterr().err
    assert "still to be written: summary, citation, weights 1, file, weights 1, urls 1, command, arguments 7" in asked
    path = tmp_path / "own-sr.toml"
    path.write_text(path.read_text().replace("TODO", "own.pth"))
    card = read_card(path)
    assert (card.display, card.licence, card.repository) == ("Own-SR", "MIT", "https://github.com/owner/Own-SR")
    assert card.commit == git(clone, "rev-parse", "HEAD")
    assert card.environment is not None
    assert (card.environment.python, card.environment.before) == ("3.9", "2024-02-29")
    assert card.environment.requirements == ("torch==2.1.0", "numpy<2,>=1.24", "einops")
    assert "# left out: git+https://github.com/owner/other.git" in path.read_text()
    assert card.command is not None
    assert card.command.arguments == (
        "scripts/test_own.py", "--input", "{lr}", "--output_dir", "{sr}", "--pretrained_model", "{weights}/own.pth",
        "--seed", "{seed}", "--mode", "own.pth",
    )  # fmt: skip
    assert card.command.flags == {
        "--input": "scripts/test_own.py:4",
        "--output_dir": "scripts/test_own.py:6",
        "--pretrained_model": "scripts/test_own.py:9",
        "--seed": "scripts/test_own.py:10",
        "--mode": "scripts/test_own.py:11",
    }
    assert '# flags.--half = "scripts/test_own.py:12"' in path.read_text()
    assert [check.line() for check in check_card(card, clone) if not check.passed] == []
    assert main(["new-card", str(clone)]) == 2
    assert "own-sr.toml exists" in capsys.readouterr().err


def test_another_script_and_what_is_no_clone(clone: Path, tmp_path: Path) -> None:
    assert 'arguments = ["train.py"' in skeleton(clone, "train.py")
    assert "# other scripts with flags (--script): train.py" in skeleton(clone)
    with pytest.raises(UserError, match=r"none\.py is no Python file of .*; those with flags are scripts/test_own\.py"):
        skeleton(clone, "none.py")
    with pytest.raises(UserError, match="no such folder"):
        skeleton(tmp_path / "none")
    with pytest.raises(UserError, match="is no clone with a commit"):
        skeleton(tmp_path)
