"""A card against a small repository that the test makes, and the harness's own cards against theirs where they are."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cards.card import Card, Patch, cards, read_card
from bench.cli import main
from bench.methods.external.check import check_card
from tsd.errors import UserError

SCRIPT = """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("-i", "--input", type=str)
parser.add_argument(
    "--output",
    type=str,
)
# parser.add_argument("--seed", type=int)
parser.add_argument("--steps", type=int, choices=[1, 4])
parser.add_argument("--half", action="store_true")
args = parser.parse_args()
for path in args.input:
    restore(path)
"""

CARD = """\
display = "Own"
steps = 1
kind = "diffusion"
run = "external"
summary = "a network"
licence = "MIT"
citation = "nobody"
repository = "https://example.org/owner/Own"
commit = "{commit}"
verified = "in a test"
seeding = "image"
weights = [{{ file = "own.pth", manual = "by hand" }}]

[environment]
python = "3.8"
requirements = ["numpy==1.24.4"]

[command]
arguments = ["scripts/test.py", "-i", "{{lr}}", "--output", "{{sr}}", "--steps", "4", "--half"]
outputs = "{{name}}.png"
flags.-i = "scripts/test.py:4"
flags.--output = "scripts/test.py:6"
flags.--steps = "scripts/test.py:10"
flags.--half = "scripts/test.py:11"
links."weights/own.pth" = "own.pth"

[[patches]]
file = "scripts/test.py"
find = "    restore(path)"
replace = "    import bench_seed; bench_seed.seed(path)\\n    restore(path)"
reason = "a seed of its own for every image"
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "clones" / "Own"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "test.py").write_text(SCRIPT)
    (folder / "README").write_text("a file\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all of it")
    return folder


@pytest.fixture
def card_file(tmp_path, repository) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(CARD.format(commit=git(repository, "rev-parse", "HEAD")))
    return path


@pytest.fixture
def card(card_file) -> Card:
    return read_card(card_file)


def faults(card: Card, repository: Path) -> list[str]:
    return [check.line() for check in check_card(card, repository) if not check.passed]


def with_command(card: Card, **changes) -> Card:
    assert card.command is not None
    return replace(card, command=replace(card.command, **changes))


def with_patch(card: Card, **changes) -> Card:
    return replace(card, patches=(replace(card.patches[0], **changes),))


def test_a_true_card_passes(card, repository):
    lines = [check.line() for check in check_card(card, repository)]
    assert lines == [
        f"pass  commit {card.commit}",
        "pass  script scripts/test.py",
        "pass  flag -i at scripts/test.py:4",
        "pass  flag --output at scripts/test.py:6",
        "pass  flag --steps at scripts/test.py:10",
        "pass  flag --half at scripts/test.py:11",
        "pass  command as the parser takes it",
        "pass  link weights/own.pth",
        "pass  patch 1 of scripts/test.py",
        "pass  scripts/test.py parses as Python 3.8 with the patches",
    ]


def test_the_pinned_commit_counts_and_not_what_lies_in_the_folder(card, repository):
    (repository / "scripts" / "test.py").write_text("# all gone\n")
    git(repository, "commit", "--quiet", "-am", "later")
    assert faults(card, repository) == []


def test_a_flag_on_another_line(card, repository):
    moved = with_command(card, flags={**card.command.flags, "--output": "scripts/test.py:5"})
    assert faults(moved, repository) == ["FAIL  flag --output at scripts/test.py:5: declared on line 6"]


def test_a_flag_that_only_a_comment_declares(card, repository):
    seeded = with_command(card, flags={**card.command.flags, "--seed": "scripts/test.py:9"})
    assert faults(seeded, repository) == [
        "FAIL  flag --seed at scripts/test.py:9: scripts/test.py declares no such flag"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2"], "invalid choice: 2"),
        (["--steps", "few"], "invalid int value: 'few'"),
        (["--half", "yes"], "not taken: yes"),
        (["--steps"], "expected one argument"),
    ],
)
def test_a_value_that_the_parser_would_not_take(card, repository, arguments, message):
    command = with_command(card, arguments=("scripts/test.py", "-i", "{lr}", "--output", "{sr}", *arguments))
    (fault,) = faults(command, repository)
    assert fault.startswith("FAIL  command as the parser takes it: ")
    assert message in fault


def test_a_script_that_is_not_there(card, repository):
    other = with_command(card, arguments=("test.py", *card.command.arguments[1:]))
    assert faults(other, repository) == ["FAIL  script test.py: no such file"]


@pytest.mark.parametrize("find", ["path", "nowhere"])
def test_a_patch_whose_text_stands_there_not_once(card, repository, find):
    count = SCRIPT.count(find)
    assert faults(with_patch(card, find=find), repository) == [
        f"FAIL  patch 1 of scripts/test.py: {find!r} stands there {count} times, expected once"
    ]


def test_a_patch_of_a_file_that_is_not_there(card, repository):
    assert faults(with_patch(card, file="gone.py"), repository) == ["FAIL  patch 1 of gone.py: no such file"]


def test_patches_are_applied_one_after_another(card, repository):
    second = Patch("scripts/test.py", "import bench_seed; ", "import bench_seed as b; ", "a reason")
    assert faults(replace(card, patches=(*card.patches, second)), repository) == []


@pytest.mark.parametrize("text", ["    restore(path", "    match path:\n        case 1: pass"])
def test_a_patch_that_breaks_the_syntax_of_the_cards_python(card, repository, text):
    (fault,) = faults(with_patch(card, replace=f"import bench_seed\n{text}"), repository)
    assert fault.startswith("FAIL  scripts/test.py parses as Python 3.8 with the patches: line 1")


@pytest.mark.parametrize(
    ("link", "message"),
    [("scripts", "a file of this name is part of the repository"), ("README/own.pth", "README is a file")],
)
def test_a_link_where_the_repository_has_something(card, repository, link, message):
    (fault,) = faults(with_command(card, links={link: "own.pth"}), repository)
    assert message in fault


def test_an_absent_commit_is_the_only_finding(card, repository):
    absent = replace(card, commit="0" * 40)
    (fault,) = faults(absent, repository)
    assert fault.startswith(f"FAIL  commit {'0' * 40}: not in ")
    assert len(check_card(absent, repository)) == 1


@pytest.mark.parametrize("form", ["clone", "bare", "bundle", "itself"])
def test_the_repository_is_found_in_each_form(card, repository, tmp_path, form):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    expected = {
        "clone": folder / "Own",
        "bare": folder / "Own.git",
        "bundle": folder / "Own.bundle",
        "itself": repository,
    }[form]
    if form == "bundle":
        git(repository, "bundle", "create", "--quiet", str(expected), "--all")
    elif form != "itself":
        bare = [] if form == "clone" else ["--bare"]
        git(tmp_path, "clone", "--quiet", *bare, str(repository), str(expected))
    assert faults(card, expected if form == "itself" else folder) == []


def test_no_repository(card, tmp_path):
    with pytest.raises(UserError, match=r"no repository of Own; expected a clone Own/ or Own\.git/, or a bundle"):
        check_card(card, tmp_path)
    (tmp_path / "Own.bundle").write_text("no bundle")
    with pytest.raises(UserError, match="no bundle that git can read"):
        check_card(card, tmp_path)


def test_a_card_that_runs_in_process(card, repository):
    with pytest.raises(UserError, match="runs in process"):
        check_card(replace(card, command=None), repository)


def test_the_command_prints_a_line_per_check(card_file, repository, capsys):
    assert main(["check", f"card:{card_file}", "--repo-dir", str(repository.parent)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10
    assert all(line.startswith("pass  ") for line in printed)

    card_file.write_text(card_file.read_text().replace("test.py:11", "test.py:12"))
    assert main(["check", f"card:{card_file}", "--repo-dir", str(repository), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [check["fault"] for check in content["checks"] if check["fault"]] == ["declared on line 11"]
    assert content["passed"] is False


def test_the_command_says_what_it_needs(card_file, capsys):
    assert main(["check", f"card:{card_file}"]) == 2
    assert "--repo-dir" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card.run == "external"])
def test_the_harness_cards_against_their_repositories(name):
    if "TSD_REPOS" not in os.environ:
        pytest.skip("no clones of the competitors' repositories: $TSD_REPOS is not set")
    card = cards()[name]
    assert faults(card, Path(os.environ["TSD_REPOS"])) == []
