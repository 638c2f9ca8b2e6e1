"""Where an export may be written; checked before torch is imported."""

from pathlib import Path

from tsd.config import EXPORT_FILE
from tsd.errors import UserError
from tsd.files import require_writable


def check_target(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    """Refuses an output folder that would overwrite something else.

    Raises:
        UserError: `out` is a file, holds one of the `sources`, exists (without `overwrite`), is no earlier export, or
            lies where nothing can be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"the output {out} is a file; expected a folder, or a name that is free")
    place = out.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            raise UserError(f"the output {out} holds {source}, which is exported from; choose another --out")
    require_writable(out.parent)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace an earlier export, or choose another --out")
    if not (out / EXPORT_FILE).is_file():
        raise UserError(f"{out} has no {EXPORT_FILE}, so it is no earlier export and is not replaced")
