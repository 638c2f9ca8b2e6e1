"""The page of `tsd app` for an exported student, as a program: here, or as a Space of Hugging Face."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tsd import __version__
from tsd.config import EXPORT_FILE

PROGRAM = "app.py"
REQUIREMENTS = "requirements.txt"
SOURCE = '''"""Restores photographs in a page: `python app.py` here, or as a Space of Hugging Face."""

import os
import sys
from pathlib import Path

from tsd.cli import main

HUB_ID = {hub_id!r}
"""The student's repository, where its files do not lie beside this one."""
# A Space is open to everyone: few and small photographs.
PUBLIC = ["--host", "0.0.0.0", "--port", "7860", "--max-file-size", "20", "--max-megapixels", "4"]


def student() -> str:
    here = Path(__file__).resolve().parent
    if (here / "{export_file}").is_file():
        return str(here)
    if HUB_ID is None:
        sys.exit(f"{{here}} has no {export_file}: put the exported student beside this file, or name it in HUB_ID")
    from huggingface_hub import snapshot_download

    return snapshot_download(HUB_ID)


if __name__ == "__main__":
    sys.exit(main(["app", "--model", student(), *(PUBLIC if "SPACE_ID" in os.environ else []), *sys.argv[1:]]))
'''


def write_space(folder: Path, hub_id: str | None) -> None:
    """Writes the program and what it needs into an export.

    Args:
        hub_id: the repository that the export will be uploaded to, if it is known.
    """
    source = SOURCE.format(hub_id=hub_id, export_file=EXPORT_FILE)
    (folder / PROGRAM).write_text(source, encoding="utf-8")
    (folder / REQUIREMENTS).write_text(f"tsd-sr-bench[app]=={__version__}\n", encoding="utf-8")


def front_matter() -> dict[str, str]:
    """What the head of the card says so that the hub runs the folder as a Space."""
    try:
        known = {"sdk_version": version("gradio")}
    except PackageNotFoundError:
        known = {}  # the hub takes its newest
    return {"sdk": "gradio", **known, "app_file": PROGRAM}
