"""Checks the flags, patches and links of a card against the files of its repository at the pinned commit.

The files are read out of the git directory; nothing is checked out, installed or run. Whether the command does what the
card's settings claim cannot be checked here: that takes the weights and a GPU.
"""

import argparse
import ast
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.cards.card import Card, Command
from bench.methods.external.commit import Commit, Declaration, declarations_in
from bench.methods.external.git import git, last_message
from bench.methods.external.repository import Origin, apply_patch, find_origin
from bench.options import RunOptions
from tsd.errors import UserError

PLACEHOLDER = re.compile(r"\{\w+\}")


@dataclass(frozen=True)
class CardCheck:
    """One thing a card claims about its repository.

    Attributes:
        what: the claim, in words.
        fault: what is wrong with it; empty where nothing is.
    """

    what: str
    fault: str = ""

    @property
    def passed(self) -> bool:
        return not self.fault

    def line(self) -> str:
        return f"pass  {self.what}" if self.passed else f"FAIL  {self.what}: {self.fault}"


def check_card(card: Card, repo_dir: Path) -> list[CardCheck]:
    """Checks everything that the card claims about the files of its repository.

    Args:
        card: of a method with `run = "external"`.
        repo_dir: a clone, a bare repository or a bundle of the card's repository, or a folder that holds it.

    Raises:
        UserError: the card runs no repository, or there is none at that path.
    """
    if card.command is None or card.environment is None:
        raise UserError(f"{card.name} runs in process: its card has no command to check against a repository")
    origin = find_origin(card, RunOptions(repo_dir=repo_dir))
    with _repository(origin) as repository:
        commit = Commit(repository, card.commit)
        if not commit.is_there():
            return [CardCheck(f"commit {card.commit}", f"not in {origin.shown}; `git fetch` there, or name another")]
        return [CardCheck(f"commit {card.commit}"), *_checks(card, card.command, commit)]


@contextmanager
def _repository(origin: Origin) -> Iterator[Path]:
    """Yields a repository that git can read; a bundle is unpacked into a temporary one."""
    if origin.kind == "clone":
        done = git(Path(origin.place), "rev-parse", "--git-dir")
        if done.returncode:
            raise UserError(f"{origin.shown} cannot be read by git: {last_message(done.stderr, Path(origin.place))}")
        yield Path(origin.place)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        git(target, "init", "--quiet", "--bare", "--template=")
        done = git(target, "bundle", "unbundle", origin.place)
        if done.returncode:
            raise UserError(
                f"{origin.shown} is no bundle that git can read: {last_message(done.stderr, Path(origin.place))}"
            )
        yield target


def _checks(card: Card, command: Command, commit: Commit) -> Iterator[CardCheck]:
    script = command.arguments[0]
    yield CardCheck(f"script {script}", "" if commit.text(script) is not None else "no such file")
    files = dict.fromkeys(place.rpartition(":")[0] for place in command.flags.values())
    declarations = {file: declarations_in(commit.text(file)) for file in files}
    for flag, place in command.flags.items():
        yield CardCheck(f"flag {flag} at {place}", _flag_fault(flag, place, declarations))
    yield CardCheck("command as the parser takes it", _command_fault(command, declarations))
    for link in command.links:
        yield CardCheck(f"link {link}", _link_fault(link, commit))
    yield from _patch_checks(card, commit)


def _flag_fault(flag: str, place: str, declarations: Mapping[str, list[Declaration] | None]) -> str:
    file, _, number = place.rpartition(":")
    declared = declarations[file]
    if declared is None:
        return f"no Python file {file}"
    lines = [declaration.lines[flag] for declaration in declared if flag in declaration.lines]
    if int(number) in lines:
        return ""
    return f"declared on line {', '.join(map(str, lines))}" if lines else f"{file} declares no such flag"


def _command_fault(command: Command, declarations: Mapping[str, list[Declaration] | None]) -> str:
    """Gives the command to argparse with the types and choices that the script declares; returns its error."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    used = [declaration for found in declarations.values() for declaration in found or []]
    for declaration in used:
        if any(flag in command.flags for flag in declaration.lines):
            parser.add_argument(*declaration.lines, **declaration.keywords)
    arguments = [PLACEHOLDER.sub("1", argument) for argument in command.arguments[1:]]
    try:
        _, rest = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit) as error:
        return str(error)
    return f"not taken: {' '.join(rest)}" if rest else ""


def _link_fault(link: str, commit: Commit) -> str:
    if commit.holds(link):
        return "a file of this name is part of the repository"
    for parent in list(PurePosixPath(link).parents)[:-1]:
        if commit.holds(str(parent)) and not commit.is_folder(str(parent)):
            return f"{parent} is a file in the repository"
    return ""


def _patch_checks(card: Card, commit: Commit) -> Iterator[CardCheck]:
    """Checks that each patch, applied after the ones before, finds its text once, and that the results are Python."""
    texts: dict[str, str | None] = {}
    for number, patch in enumerate(card.patches, 1):
        text = texts[patch.file] if patch.file in texts else commit.text(patch.file)
        fault = "no such file"
        if text is not None:
            content, count = apply_patch(text.encode(), patch)
            text = content.decode()
            fault = "" if count == 1 else f"{patch.find[:60]!r} stands there {count} times, expected once"
        texts[patch.file] = text
        yield CardCheck(f"patch {number} of {patch.file}", fault)
    assert card.environment is not None
    major, minor = (int(part) for part in card.environment.python.split(".")[:2])
    for file, text in texts.items():
        if file.endswith(".py") and text is not None:
            what = f"{file} parses as Python {card.environment.python} with the patches"
            yield CardCheck(what, _syntax_fault(text, (major, minor)))


def _syntax_fault(text: str, version: tuple[int, int]) -> str:
    try:
        ast.parse(text, feature_version=version)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    return ""
