"""Which subject a command means: a domain of this package by name, or a model on disk."""

import importlib
from pathlib import Path

from bench.ablation.figures.stage import Subject
from tsd.errors import UserError


def open_subject(domain: str) -> Subject:
    """The subject of a domain: `open_subject()` of the module `bench.ablation.DOMAIN.subject`.

    Raises:
        UserError: no domain of that name can be drawn.
    """
    folder = Path(__file__).parents[1]
    known = sorted(path.parent.name for path in folder.glob("*/subject.py"))
    if domain not in known:
        raise UserError(f"no figures of the domain {domain!r}; expected {' or '.join(known)}")
    return importlib.import_module(f"bench.ablation.{domain}.subject").open_subject()
