"""All that a method's process needs, made before it starts: by `bench install`, or by the run that comes to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.card import Card
from bench.external import environment, repository
from bench.store import missing_weights

if TYPE_CHECKING:
    from bench.options import RunOptions


@dataclass(frozen=True)
class Prepared:
    """The work tree of the repository, and the interpreter of the environment."""

    checkout: Path
    python: Path


def prepare(card: Card, options: "RunOptions") -> Prepared:
    """Checkout and environment, made where they are not there, and the links to weights where these are.

    Raises:
        UserError: one of them cannot be made; nothing half-done is left.
    """
    checkout = repository.checkout(card, options)
    python = environment.python_of(environment.build(card, options))
    if not missing_weights(card, options):
        repository.link(card, options, checkout)
    return Prepared(checkout, python)


def is_prepared(card: Card, options: "RunOptions") -> bool:
    """Whether checkout and environment are there; looks at files only."""
    return repository.is_made(card, options) and environment.ready(card, options)
