"""Asks the cards' repositories whether they moved on since the pinned commits."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.cards.card import Card
from bench.methods.external.git import git, git_program, last_message
from tsd.console.progress import Progress

SECONDS = 30.0


@dataclass(frozen=True)
class Update:
    """The head of a repository beside the commit that cards pin; `head` is None where `error` says why."""

    methods: tuple[str, ...]
    repository: str
    pinned: str
    head: str | None
    error: str | None = None

    def line(self) -> str:
        who = f"{', '.join(self.methods)}: {self.repository}"
        if self.error is not None:
            return f"{who}: not known: {self.error}"
        if self.head == self.pinned:
            return f"{who}: pinned at its head, {self.pinned[:7]}"
        return f"{who}: moved on: pinned {self.pinned[:7]}, its head is {(self.head or '')[:7]}"


def updates(cards: Iterable[Card]) -> Iterator[Update]:
    """One `Update` for each repository and pinned commit, in the order of `cards`.

    The head is what `git ls-remote` says of HEAD. Nothing is fetched.

    Raises:
        UserError: there is no git.
    """
    git_program()
    groups: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        groups.setdefault((card.repository, card.commit), []).append(card.name)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda key: _update(key[0], key[1], tuple(groups[key])), groups)
        yield from Progress(found, "repositories", total=len(groups), delay=2, leave=False)


def _update(repository: str, commit: str, methods: tuple[str, ...]) -> Update:
    here = Path.cwd()
    done = git(here, "ls-remote", repository, "HEAD", limit=SECONDS)
    if done.returncode:
        return Update(methods, repository, commit, None, last_message(done.stderr, here))
    if not done.stdout.strip():
        return Update(methods, repository, commit, None, "it has no HEAD")
    return Update(methods, repository, commit, done.stdout.split()[0])
