"""Installs what a method's process needs, its checkout and environment, for `bench install` or for a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Card
from bench.methods.external import environment, repository
from bench.store.store import missing_weights

if TYPE_CHECKING:
    from bench.options import RunOptions


@dataclass(frozen=True)
class Installed:
    """The work tree of the repository, and the interpreter of the environment."""

    checkout: Path
    python: Path


def install(card: Card, options: "RunOptions") -> Installed:
    """Makes checkout and environment where they are absent, and links the weights if all are in the store.

    Raises:
        UserError: one of them cannot be made; nothing half-done is left.
    """
    checkout = repository.checkout(card, options)
    python = environment.python_of(environment.build(card, options))
    if not missing_weights(card, options):
        repository.link(card, options, checkout)
    return Installed(checkout, python)


def is_installed(card: Card, options: "RunOptions") -> bool:
    """Whether checkout and environment are made. Looks at file names only."""
    return repository.is_checked_out(card, options) and environment.is_built(card, options)
