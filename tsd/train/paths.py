"""Checks of a run's paths and settings that need no torch: what is wrong is told in a moment.

`tsd.train.preflight` checks the rest, models and weights against each other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsd.config import RunConfig, TrainConfig
from tsd.data.prepared_record import is_prepared, read_record, require_settings, require_vae
from tsd.errors import UserError
from tsd.files import READABLE, find_images, require_writable
from tsd.model.loading import is_hub_id, resolve_model
from tsd.train.checkpoint import checkpoint_folder, latest
from tsd.train.settings import RunSettings

SCALE = 4
"""How many times smaller the low-quality images of the training are."""


def check_paths(settings: RunSettings, config: RunConfig) -> None:
    """Checks what a command line names: folders that are read, the folder that is written, prepared data.

    Raises:
        UserError: names the first fault.
    """
    if settings.cpu:
        require_cpu_precision(config)
    if settings.output is not None:
        newest_checkpoint(settings.output, resume=settings.resume)
        require_writable(Path(settings.output))
    folders = {"init-lora": settings.init_lora, "teacher-lora": settings.teacher_lora}
    folders |= {"prompt-embeds": settings.prompt_embeds}
    for flag, folder in folders.items():
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise UserError(f"--{flag} {folder}: no such folder")
    if settings.val_data is not None:
        folder = Path(settings.val_data)
        if not folder.is_dir() or not find_images(folder).images:
            raise UserError(f"no images in the validation folder {folder}; expected {', '.join(READABLE)}")
    model = Path(settings.model).expanduser()
    if not is_hub_id(settings.model):
        resolve_model(settings.model)
    data: Any = settings.data
    _check_data([data] if isinstance(data, str | Path) else data, config, model, settings.output)


def _check_data(sources: Sequence[Any], config: RunConfig, model: Path, output: str | Path | None) -> None:
    for source in sources:
        if not isinstance(source, str | Path):
            continue
        path = Path(source)
        if is_prepared(path):
            _check_prepared(path, config, model)
        elif path.is_dir():
            if not find_images(path, exclude=None if output is None else Path(output)).images:
                raise UserError(f"no images in {path} or its sub-folders; looked for {', '.join(READABLE)}")
        elif not path.is_file():
            raise UserError(f"no such file or folder: {path}")


def _check_prepared(path: Path, config: RunConfig, model: Path) -> None:
    record, distils = read_record(path), isinstance(config, TrainConfig)
    stored = config.degradation if isinstance(config, TrainConfig) and not config.degrade_anew else None
    scale = SCALE if distils else None
    require_settings(record, str(path), crop=config.crop, usm=config.usm, degradation=stored, scale=scale)
    if model.is_dir():
        require_vae(record, str(path), model, model)


def newest_checkpoint(output: str | Path, *, resume: bool) -> Path | None:
    """The newest checkpoint of an output folder.

    Raises:
        UserError: there is one, and it is not to be resumed; says how to go on.
    """
    newest = latest(checkpoint_folder(output))
    if newest is not None and not resume:
        raise UserError(f"{output} already holds {newest.name}; add --resume to continue, or choose another --output")
    return newest


def require_cpu_precision(config: RunConfig) -> None:
    """Refuses fp16 for a run on the CPU.

    Raises:
        UserError: says what to give.
    """
    if "fp16" in (config.mixed_precision, config.base_dtype):
        raise UserError(
            "fp16 cannot be trained on a CPU: give --mixed-precision bf16 --base-dtype bf16 (or no and fp32)"
        )
