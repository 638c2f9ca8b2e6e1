"""Downloads files and folders from the Hugging Face hub and checks them against the hashes that it states.

A place on the hub is "owner/name" for a folder and "owner/name:path" for a file, with "@revision" after the name where
it is pinned. While it is incomplete a download has ".part" after its name, and the same call continues it.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from bench.cards.card import Weight
from bench.store.download import CONNECT_SECONDS, GIT, digest_of
from tsd.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

HUB = "https://huggingface.co"


def check_online() -> None:
    """Raises UserError within seconds where the hub cannot be reached; its own client would retry for minutes."""
    import requests

    try:
        requests.head(HUB, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise UserError(f"{HUB} cannot be reached: no network, or a firewall") from error


def get(place: str, weight: Weight, target: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Fetches what `target` lacks of `weight` from `place`.

    Args:
        known: hashes that are known already, by name in the store ("git:" before a blob id). They take precedence
            over the hub's own.

    Returns:
        The hash of each file that is what the hub states, or what `known` says, by its name in the store: those that
        were fetched, and those that were there already.

    Raises:
        UserError: no connection, a gated or absent repository, or another content than expected: such a file is
            deleted, and nothing unverified lies at `target`.
    """
    check_online()
    repository, _, path = place.partition(":")
    name, _, revision = repository.partition("@")
    part = target.with_name(f"{target.name}.part")
    destinations = {file: target / file for file in weight.contains} if weight.is_folder else {path: target}
    info = _fetch(
        name, revision or None, [file for file, destination in destinations.items() if not destination.is_file()], part
    )
    stated = _stated(info)
    hashes = {}
    for file, destination in tqdm(
        destinations.items(), f"verifying {target.name}", unit="file", delay=2, file=sys.stderr
    ):
        in_store = f"{weight.file}{file}" if weight.is_folder else weight.file
        expected = known.get(in_store) or stated.get(file)
        if destination.is_file():
            if digest_of(destination, expected) == expected:
                hashes[in_store] = expected
            continue
        if not (part / file).is_file():
            raise UserError(f"hf:{place} has no {file}")
        hashes[in_store] = digest_of(part / file, expected)
        if expected is not None and hashes[in_store] != expected:
            (part / file).unlink()
            raise UserError(f"hf:{place}: {file} has {hashes[in_store][:20]}…, expected {expected[:20]}…; deleted")
    for file, destination in destinations.items():  # only now that all of them are right
        if not destination.is_file():
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / file, destination)
    shutil.rmtree(part)
    return hashes


def _fetch(name: str, revision: str | None, files: list[str], part: Path) -> "ModelInfo":
    """Downloads files of one commit of a repository into `part`. Files that are there are not transferred again."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = HfApi(endpoint=HUB.rstrip("/"))
    try:
        info = api.model_info(name, revision=revision, files_metadata=True)
        api.snapshot_download(name, revision=info.sha, local_dir=part, allow_patterns=files)
        return info
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: log in at {HUB}/{name}, accept its licence there, then `hf auth login` (or set "
            "HF_TOKEN) on this machine and run the same command again"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"hf:{name}: no such repository, or none without `hf auth login`") from error
    except Exception as error:  # while it reads, the client raises whatever its transport raises
        raise UserError(f"hf:{name}: {error}; the same command continues the download") from error


def _stated(info: "ModelInfo") -> dict[str, str]:
    """Returns the hashes that the hub states: sha256 of large files, git's blob id of the others."""
    found = {}
    for file in info.siblings or []:
        if file.lfs is not None:
            found[file.rfilename] = file.lfs.sha256
        elif file.blob_id is not None:
            found[file.rfilename] = GIT + file.blob_id
    return found
