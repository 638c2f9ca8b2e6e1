"""Uploads a finished folder to the hub. Checks come first, and a failed upload leaves the folder on disk as it is."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from tsd.errors import UserError
from tsd.model.loading import probe_hub


def check_repo_id(repo_id: str) -> None:
    """Refuses a wrong repository name before any work.

    Raises:
        UserError: not of the form owner/name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a hub repository: {error}") from error
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} names no owner; expected OWNER/NAME")


def upload(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Creates the model repository if there is none, uploads the folder as one commit, and returns its address.

    Raises:
        UserError: no token, no network, or the hub refuses; says that `folder` is complete and how to upload it later.
    """
    later = f"hf upload {repo_id} {shlex.quote(str(folder))} .{' --private' if private else ''}"
    kept = f"Everything is in {folder}; upload it later with `{later}`."
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"nothing was uploaded, since HF_HUB_OFFLINE is set. {kept}")
    if get_token() is None:
        raise UserError(f"nothing was uploaded: no hub token on this machine, run `hf auth login` first. {kept}")
    try:
        probe_hub(constants.ENDPOINT)
    except OSError as error:
        raise UserError(f"the hub at {constants.ENDPOINT} could not be reached ({error}). {kept}") from error
    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Export by tsd")
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused: {error}. {kept}") from error
    except Exception as error:  # the client's own network errors differ from version to version
        raise UserError(f"uploading to {constants.ENDPOINT} failed ({error!r}). {kept}") from error
    return str(url)
