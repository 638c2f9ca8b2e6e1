"""Where a run lies: in a folder, or as a data set on the hub, of which this machine gets a copy in the hub's cache.

A data set has the layout of a run's folder, so whatever reads a run reads a copy of it:

    README.md         the card: who measured, on what, under which licences
    records/          as in the run, with one line more in publications.jsonl
    TABLE.md, …       the tables
    images/           only where they were asked for, and where their licences allow it
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.store.download import HUB, mirrored
from bench.store.hub import check_online
from tsd.errors import UserError
from tsd.files import human_size

HUB_RUN = "hub:"
RECORDS = ("records/*.json", "records/*.jsonl")
"""What is read of a data set, in any folder below; nothing else of it comes to this machine but images."""
IMAGES = ("images/*.png",)
T = TypeVar("T")


@dataclass(frozen=True)
class RunPlace:
    """The folder of a run, and what it is called: its own name, or that of its data set."""

    folder: Path
    label: str


def find_run(place: str | Path, images: bool = False) -> RunPlace:
    """The run at `place`: a folder, or `hub:OWNER/NAME`, with `@REVISION` for a commit of it.

    Without a network the copy in the hub's cache is taken, and that is said.

    Args:
        images: whether restored images come too, where the data set has some.

    Raises:
        UserError: no name of a data set, none there, one without records, or neither a network nor a copy.
    """
    text = str(place)
    if not text.startswith(HUB_RUN):
        return RunPlace(Path(place), Path(place).resolve().name)
    name, _, revision = text.removeprefix(HUB_RUN).partition("@")
    check_repo_id(name, text)
    folder = _copy(name, revision or None, (*RECORDS, *IMAGES) if images else RECORDS)
    if not any((folder / "records").glob("*.json")):
        raise _no_records(text)
    return RunPlace(folder, name)


def _no_records(place: str) -> UserError:
    return UserError(f"{place} holds no records of a run; `bench publish RUN --to OWNER/NAME --by NAME` sends them")


def check_repo_id(name: str, shown: str) -> None:
    """Refuses what is no name of a data set.

    Raises:
        UserError: not of the form OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{shown}: {name!r} is no name of a data set on the hub, OWNER/NAME: {error}") from None
    if "/" not in name:
        raise UserError(f"{shown}: {name!r} names no owner; expected OWNER/NAME")


def _copy(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The newest copy of a data set, or without a network the one that is here."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    api = HfApi(endpoint=mirrored(HUB))
    try:
        if constants.HF_HUB_OFFLINE:
            raise UserError("HF_HUB_OFFLINE is set")
        check_online()
    except UserError as offline:
        for kept in dict.fromkeys((patterns, RECORDS)):  # a copy without images serves too
            try:
                folder = api.snapshot_download(
                    name, repo_type="dataset", revision=revision, allow_patterns=list(kept), local_files_only=True
                )
            except LocalEntryNotFoundError:
                continue
            print(
                f"hub:{name}: the copy in the hub's cache, commit {Path(folder).name[:9]}; {offline}", file=sys.stderr
            )
            return Path(folder)
        cache = constants.HF_HUB_CACHE
        raise UserError(f"hub:{name} is not in the hub's cache of this machine ({cache}), and {offline}") from None
    size = asked(name, lambda: _size_bytes(api, name, revision, patterns))
    if not size:
        raise _no_records(f"{HUB_RUN}{name}")
    print(f"hub:{name}: {human_size(size)}, of which the hub's cache keeps a copy", file=sys.stderr)
    allowed = list(patterns)
    found = asked(
        name, lambda: api.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=allowed)
    )
    return Path(found)


def _size_bytes(api, name: str, revision: str | None, patterns: tuple[str, ...]) -> int:
    from huggingface_hub.utils import filter_repo_objects

    info = api.dataset_info(name, revision=revision, files_metadata=True)
    files = filter_repo_objects(info.siblings or [], allow_patterns=list(patterns), key=lambda file: file.rfilename)
    return sum(file.size or 0 for file in files)


def asked(name: str, question: Callable[[], T]) -> T:
    """The hub's answer about a data set; what its client raises becomes a sentence.

    Raises:
        UserError: no such data set or revision, a gated one, or a broken connection.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return question()
    except GatedRepoError as error:
        raise UserError(
            f"hub:{name} is gated: accept its licence on {HUB}/datasets/{name}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"hub:{name}: no such data set, or none without `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UserError(f"hub:{name} has no such revision") from error
    except Exception as error:  # the client's own network errors differ from version to version
        raise UserError(f"hub:{name}: {error}; the same command continues the download") from error
