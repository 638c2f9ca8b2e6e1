"""Downloads files and folders from the Hugging Face hub and checks them against the hashes that it states.

HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy. A mirror is not trusted more than the hub: hashes that a card or an
earlier fetch knows decide.

A place on the hub is "owner/name" for a folder and "owner/name:path" for a file; a pinned one has "@revision" after the
name. An incomplete download has ".part" after its name, and the same call continues it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Weight
from bench.store.content import content_fault
from bench.store.download import CONNECT_SECONDS, GIT, HUB, digest_of, mirrored
from tsd.console.progress import Progress
from tsd.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def check_online() -> None:
    """Raises UserError within seconds where the hub cannot be reached; its own client would retry for minutes."""
    import requests

    try:
        requests.head(mirrored(HUB), timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise UserError(f"{mirrored(HUB)} cannot be reached: no network, or a firewall") from error


def get(place: str, weight: Weight, target: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Fetches what `target` lacks of `weight` from `place`.

    Args:
        known: hashes that are already known, by name in the store ("git:" before a blob id). They take precedence
            over those of the hub.

    Returns:
        The hash of each verified file by its name in the store. These are the fetched files, and those that were
        already at `target` with the expected hash.

    Raises:
        UserError: no connection, a gated or absent repository, or a file with another hash than expected. Such a file
            is deleted; no unverified file is moved to `target`.
    """
    check_online()
    repository, _, path = place.partition(":")
    name, _, revision = repository.partition("@")
    part = target.with_name(f"{target.name}.part")
    final_paths = {file: target / file for file in weight.contains} if weight.is_folder else {path: target}
    info = _fetch(name, revision or None, [file for file, final in final_paths.items() if not final.is_file()], part)
    stated = _stated(info)
    hashes = {}
    for file, final in Progress(final_paths.items(), f"verifying {target.name}", unit="file", delay=2):
        in_store = f"{weight.file}{file}" if weight.is_folder else weight.file
        expected = known.get(in_store) or stated.get(file)
        if final.is_file():
            if digest_of(final, expected) == expected:
                hashes[in_store] = expected
            continue
        if not (part / file).is_file():
            raise UserError(f"hf:{place} has no {file}")
        if expected is None and (fault := content_fault(part / file, file)):
            (part / file).unlink()
            raise UserError(f"hf:{place}: {file} is {fault}; deleted")
        hashes[in_store] = digest_of(part / file, expected)
        if expected is not None and hashes[in_store] != expected:
            (part / file).unlink()
            raise UserError(f"hf:{place}: {file} has {hashes[in_store][:20]}…, expected {expected[:20]}…; deleted")
    for file, final in final_paths.items():  # only now that all of them are right
        if not final.is_file():
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / file, final)
    shutil.rmtree(part)
    return hashes


def _fetch(name: str, revision: str | None, files: list[str], part: Path) -> "ModelInfo":
    """Downloads files of one commit of a repository into `part`. Files already in `part` are not fetched again."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = HfApi(endpoint=mirrored(HUB))
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
    except Exception as error:  # during a transfer the client passes on whatever its transport raises
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
