"""Settings of prepared data: every value that changes the result, its record, and the check of an existing folder."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsd.data.crops import CropConfig
from tsd.data.prepared import latent_shape
from tsd.data.prepared_record import IN_PROGRESS, RECORD, read_record, vae_sha256
from tsd.data.sources import Source
from tsd.errors import UserError
from tsd.model.loading import detect_family, read_config, resolve_model


@dataclass(frozen=True)
class CaptionConfig:
    """Where captions come from: the source's own first, then the model, then the fixed text.

    An image that none of them has a caption for is left out. With none of them there are no captions at all, and
    training uses the model's default prompt.

    Attributes:
        from_source: use `.txt` files or a column of the data set.
        model: hub id or folder of an image-to-text model; it sees the crop.
        text: one fixed prompt.
        t5: whether SD3's third text encoder is used; zeros stand in its place otherwise.
    """

    from_source: bool = False
    model: str | None = None
    text: str | None = None
    t5: bool = True

    @property
    def wanted(self) -> bool:
        return self.from_source or self.model is not None or self.text is not None


@dataclass(frozen=True)
class PrepareConfig:
    """Everything that changes the result, except the source and the model.

    Attributes:
        dtype: precision in which VAE, caption model and text encoders compute (`PRECISIONS`); results are kept in fp16.
        shard_images, shard_captions: number of source images, or captions, in one file.
        batch_size: number of crops captioned, or captions embedded, at a time.
    """

    crops: CropConfig
    captions: CaptionConfig = CaptionConfig()
    dtype: str = "fp32"
    shard_images: int = 128
    shard_captions: int = 256
    batch_size: int = 8


def settings_of(source: Source, model: str | Path, config: PrepareConfig) -> dict[str, Any]:
    """The settings to record and compare, as JSON gives them back. Reads configurations and hashes the VAE.

    Raises:
        UserError: the crop does not fit the model or the scale, or captions are wanted and the model has no text
            encoder.
    """
    folder = resolve_model(model)
    family = detect_family(folder)
    _check(folder, family.denoiser_folder, config)
    crops = asdict(config.crops)
    settings = {
        "crop": crops.pop("crop"),
        "model_sha256": vae_sha256(folder),
        "latent_shape": latent_shape(folder, config.crops.crop),
        "model": folder.name if Path(model).is_dir() else str(model),
        "family": family.name,
        "prompt_shapes": _prompt_shapes(model, config.captions) if config.captions.wanted else {},
        **crops,
        **asdict(config),
        "source": source.describe(),
    }
    settings.pop("crops")
    captioner = config.captions.model
    if captioner is not None and Path(captioner).is_dir():
        settings["captions"]["model"] = Path(captioner).resolve().name
    return json.loads(json.dumps(settings))  # tuples become lists


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `out` is complete for these `settings`; False if it is empty, missing or unfinished.

    Raises:
        UserError: it holds something else.
    """
    if (out / RECORD).is_file():
        old, state = read_record(out)["settings"], "holds data"
    elif (out / IN_PROGRESS / "settings.json").is_file():
        old, state = read_config(out / IN_PROGRESS / "settings.json"), "was begun"
    elif out.is_file():
        raise UserError(f"the output {out} is a file; give a folder (--out)")
    elif out.is_dir() and any(entry.name != IN_PROGRESS for entry in out.iterdir()):
        raise UserError(
            f"the output {out} is not empty and `tsd prepare` did not write it; give another folder (--out)"
        )
    else:
        return False
    if changed := list(_differences(old, settings)):
        raise UserError(
            f"{out} {state} with other settings: {'; '.join(changed)}. Give the same settings to continue, another "
            f"folder (--out), or remove {out}"
        )
    return (out / RECORD).is_file()


def _prompt_shapes(model: str | Path, captions: CaptionConfig) -> dict[str, list[int]]:
    """Shape of one caption's embeddings by column; reads the small files of the model's text encoders."""
    from tsd.model.loading import resolve_text_model
    from tsd.prompts.text_encoders import text_side

    side = text_side(resolve_text_model(model, t5=captions.t5), t5=captions.t5)
    shapes = {"prompt_embeds": [side.tokens, side.width]}
    return shapes if side.pooled is None else shapes | {"pool_embeds": [side.pooled]}


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} {old!r} there, {new!r} here"


def _check(folder: Path, denoiser: str, config: PrepareConfig) -> None:
    crop, scale = config.crops.crop, config.crops.scale
    factor = 2 ** (len(read_config(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    patch = read_config(folder / denoiser / "config.json").get("patch_size") or 1
    multiple = math.lcm(factor * patch, scale)
    if crop <= 0 or crop % multiple:
        raise UserError(f"the crop must be a positive multiple of {multiple} for this model and scale, got {crop}")
    numbers = {"crops per image": config.crops.per_image, "batch size": config.batch_size}
    for name, value in (numbers | {"number of images per file": config.shard_images}).items():
        if value < 1:
            raise UserError(f"the {name} must be 1 or more, got {value}")
