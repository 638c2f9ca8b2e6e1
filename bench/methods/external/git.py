"""Calls git so that it asks nothing, fetches no large files, and sees no repository but the one meant."""

import os
import shutil
import subprocess
from pathlib import Path

from bench.errors import without_paths
from tsd.errors import UserError

GIT_SECONDS = 600.0
OTHER_REPOSITORY = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
)  # fmt: skip


def git(place: Path, *arguments: str, limit: float = GIT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs git in `place`; a call that takes longer than `limit` seconds counts as failed."""
    argv = [git_program(), *arguments]
    try:
        return subprocess.run(
            argv,
            cwd=place,
            env=variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"no answer within {limit:.0f} s")


def git_program() -> str:
    """Returns the path of git. Raises UserError if there is none."""
    program = shutil.which("git")
    if program is None:
        raise UserError("git is not installed here, and a method's repository cannot be checked out without it")
    return program


def variables() -> dict[str, str]:
    """Git's environment variables: no questions, no large files, English messages, no other repository."""
    kept = {key: value for key, value in os.environ.items() if key not in OTHER_REPOSITORY}
    ssh = os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=5")
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    return {**kept, **quiet, "GIT_SSH_COMMAND": ssh}


def last_message(stderr: str, place: Path) -> str:
    """The last line of git's messages, without the path of `place`."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return without_paths(lines[-1] if lines else "no message", {place: place.name})
