"""The settings of a restoration, and where they come from: explicit ones, the weights' own, the release's.

Which student goes with which model, and which settings a student was trained for (`restore.json` beside its weights),
is decided here, before anything heavy is loaded. A student is a LoRA folder, or a model folder into whose weights the
LoRA is merged (`tsd export`), told by its `tsd_student.json`.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from tsd.backbone import Posterior
from tsd.color import ALIGNMENTS, Alignment
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.loading import SD3_MEDIUM, detect_family, resolve_model
from tsd.lora import check_student

RECOMMENDED_FILE = "restore.json"
STUDENT_FOLDER = Path("lora") / "tsdsr"
EXPORT_FILE = "tsd_student.json"


@dataclass(frozen=True)
class RestoreConfig:
    """Everything beside weights, prompt, device and precision that changes the result. The defaults are the release's.

    Attributes:
        scale: output size over input size, an integer.
        color: colour alignment with the input, see `tsd.color`.
        posterior: `sample` draws the latent from the encoder's Gaussian, `mode` takes its mean.
        process_size: inputs whose short side times `scale` is less are processed at this short side (in output
            pixels) and resized back; 0 switches that off.
        seed: with the image's name, seeds the posterior draw.
        tile, tile_overlap: side and overlap of the denoiser's tiles in latent positions, used where the latent has
            more than tile² positions; tile 0 switches tiling off.
        vae_tile: the VAE too works in tiles (1024 pixels, diffusers' own blending). Saves memory on very large
            images; results change a little, since its group normalisation then sees tiles instead of the image.
    """

    scale: int = 4
    color: Alignment = "wavelet"
    posterior: Posterior = "sample"
    process_size: int = 512
    seed: int = 42
    tile: int = 64
    tile_overlap: int = 8
    vae_tile: bool = False

    def __post_init__(self) -> None:
        for field, least in (("scale", 1), ("process_size", 0), ("seed", 0), ("tile", 0), ("tile_overlap", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{field} is {value!r}; expected an integer of {least} or more")
        if self.color not in ALIGNMENTS:
            raise UserError(f"color is {self.color!r}; expected one of {', '.join(ALIGNMENTS)}")
        if self.posterior not in get_args(Posterior):
            raise UserError(f"posterior is {self.posterior!r}; expected sample or mode")
        if not isinstance(self.vae_tile, bool):
            raise UserError(f"vae_tile is {self.vae_tile!r}; expected true or false")
        if self.tile and self.tile_overlap >= self.tile:
            raise UserError(f"tile_overlap is {self.tile_overlap}; expected less than the tile, {self.tile}")


def is_merged(folder: str | Path) -> bool:
    """Whether a folder is a student whose LoRA is in the model's weights already, as `tsd export` writes it.

    Raises:
        UserError: its `tsd_student.json` is damaged.
    """
    path = Path(folder).expanduser() / EXPORT_FILE
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_text())["what"] in ("merged", "both")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no description of an exported student ({error!r}); export it anew") from error


def find_student(model: str | Path | None, lora: str | Path | None) -> tuple[str | Path, Path]:
    """The model and the student's folder: the mini model where none is named, and the LoRA a model folder carries.

    A merged student is a model and its own student: both are the same folder, and may be named as both.

    Raises:
        UserError: a model without LoRA, with what to give and where it comes from; or a LoRA for a merged student.
    """
    model = mini_model_dir() if model is None else model
    if is_merged(model):
        if lora is not None and Path(lora).expanduser().resolve() != Path(model).expanduser().resolve():
            raise UserError(
                f"{model} is an exported student, its LoRA is in the weights already: leave the LoRA {lora} away, or "
                f"name the base model it was trained on"
            )
        return model, Path(model).expanduser()
    if lora is not None:
        return model, Path(lora).expanduser()
    carried = Path(model).expanduser() / STUDENT_FOLDER
    if carried.is_dir():
        return model, carried
    raise UserError(
        f"the model {model} carries no student in {STUDENT_FOLDER}/: name a LoRA folder (--lora DIR) with "
        f"transformer.safetensors (SD2: unet.safetensors) and vae.safetensors. For {SD3_MEDIUM} that is a folder "
        f"tsdsr/ or tsdsr-mse/ of the TSD-SR authors' drive (linked from github.com/Microtreei/TSD-SR), with its "
        f"prompt tensors as --prompt-embeds."
    )


def own_prompts(lora: Path) -> Path | None:
    """The prompts that lie beside a student's weights, which it was trained with; None where there are none."""
    folder = lora / "prompts"
    return folder if (folder / "default").is_dir() else None


def check_parts(model: str | Path, lora: Path, prompt_embeds: str | Path | None) -> None:
    """Refuses what cannot work before gigabytes are loaded: no student files, or no prompt.

    Raises:
        UserError: names what is missing, where it belongs and where it comes from.
    """
    folder = resolve_model(model)
    family = detect_family(folder)
    if not is_merged(lora):
        check_student(lora, family)
    if prompt_embeds is None and not (folder / "prompts" / "default").is_dir():
        files = " and ".join(f"{name}.pt" for name in family.prompt_files)
        raise UserError(
            f"the model {model} carries no prompt in prompts/default/: name a folder (--prompt-embeds DIR) with "
            f"{files}, the student's fixed prompt. The TSD-SR authors publish SD3's as dataset/default/ beside their "
            f"LoRA files; `tsd prompts` makes it from the model's own text encoders."
        )


def recommended_settings(lora: Path) -> dict[str, object]:
    """What `restore.json` in a LoRA folder recommends for these weights; empty, so the release's rules, without one.

    Raises:
        UserError: not a JSON object, or a key that is no setting.
    """
    path = lora / RECOMMENDED_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    known = [field.name for field in fields(RestoreConfig)]
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds a {type(settings).__name__}; expected an object with keys of {', '.join(known)}")
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"{path} has the unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    return settings


def config_for(lora: Path, overrides: dict[str, object] | None = None) -> RestoreConfig:
    """The settings recommended for a LoRA folder, below explicit `overrides` (by field name)."""
    return RestoreConfig(**(recommended_settings(lora) | (overrides or {})))  # pyright: ignore[reportArgumentType]
