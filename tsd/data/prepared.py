"""Reads the folders of `tsd prepare`: training items with captions' embeddings and the target's latent distribution.

A prepared folder is

    prepared.json         settings, counts, versions, file sizes; written last, so a folder with it is complete
    data-00000.arrow …    one row per crop: name, crop, top, left, hr, lr, caption, caption_id, posterior
    prompts/              one row per distinct caption: caption, prompt_embeds, pool_embeds (where there are captions)
    skipped.csv           images that were left out, with reasons

The folder and `prompts/` are data sets of Hugging Face `datasets` (`load_from_disk`): Arrow files, memory-mapped, so
that opening costs nothing and the processes of one machine share what they read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tsd.data.crops import decode, to_tensor
from tsd.data.degrade import DegradationConfig, degrade
from tsd.data.hf import import_datasets
from tsd.data.pairs import shuffled_index, training_item
from tsd.data.prepared_record import other_degradation, read_record, require_settings, require_vae
from tsd.errors import UserError
from tsd.model.loading import detect_family, read_config, resolve_model
from tsd.seeds import seed_for

PROMPTS = "prompts"


class PreparedDataset(Dataset[dict[str, Tensor | int]]):
    """Training items from a prepared folder; a drop-in for `PairDataset`.

    An item is a function of (folder, seed, index) alone and holds

        hr, lr_up       (3,S,S) float32 in [-1,1], as `PairDataset`'s; not mirrored or turned, since `posterior` is not
        index           the running count of samples
        posterior       (2C,h,w) float32: mean and logvar of the VAE's Gaussian of hr, as diffusers'
                        `DiagonalGaussianDistribution` takes them; unscaled, rounded to fp16 in storage
        prompt_embeds   (L,D) float32, and pool_embeds (P,) where the family has one: only where there are captions

    Every crop is visited once per round, in a shuffled order that differs from round to round.

    Attributes:
        settings: the settings of the run that made the folder (`crop`, `model_sha256`, ...).
        record: all of prepared.json.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        seed: int,
        length: int | None = None,
        degradation: DegradationConfig | None = None,
    ) -> None:
        """
        length: number of samples in all; by default one round through the crops.
        degradation: makes a new low-quality image at every visit, instead of reading the stored one.

        Raises UserError: not a prepared folder, a half-written, incomplete or empty one.
        """
        self.path, self.seed, self.degradation = Path(path), seed, degradation
        self.record = read_record(path)
        self.settings: dict[str, Any] = self.record["settings"]
        pairs = _open(self.path, self.record["counts"]["crops"])
        undecoded = import_datasets().Image(decode=False)
        files = pairs.select_columns(["hr", "lr", "caption_id"])
        self._files = files.cast_column("hr", undecoded).cast_column("lr", undecoded)
        self._posteriors = pairs.select_columns(["posterior"]).with_format("numpy")
        self._prompts = None
        if self.settings["prompt_shapes"]:
            prompts = _open(self.path / PROMPTS, self.record["counts"]["captions"])
            self._prompts = prompts.select_columns(list(self.settings["prompt_shapes"])).with_format("numpy")
        self.length = len(pairs) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        row = shuffled_index(self.seed, index, len(self._files))
        stored = self._files[row]
        hr = to_tensor(decode(stored["hr"]))
        if self.degradation is None:
            lr = to_tensor(decode(stored["lr"]))
        else:
            lr = degrade(hr, self.degradation, seed_for(self.seed, "degrade", index), scale=self.settings["scale"])
        item = training_item(lr, hr, index)
        item["posterior"] = _tensor(self._posteriors[row]["posterior"])
        if self._prompts is not None:
            item |= {name: _tensor(value) for name, value in self._prompts[stored["caption_id"]].items()}
        return item

    def require(
        self,
        model: str | Path,
        *,
        crop: int | None = None,
        usm: bool | None = None,
        degradation: DegradationConfig | None = None,
        scale: int | None = None,
    ) -> None:
        """Refuses training data made for another model or with other settings, before anything heavy loads.

        Args:
            model: folder or hub id of the model to be trained; its configuration is read and its VAE hashed.
            crop, usm, degradation, scale: the values that training expects; None accepts any.

        Raises:
            UserError: another setting, another VAE, another latent shape, or embeddings of another width.
        """
        label = str(self.path)
        require_settings(self.record, label, usm=usm, scale=scale)
        if degradation is not None and json.loads(json.dumps(asdict(degradation))) != self.settings["degradation"]:
            raise other_degradation(label)
        require_model(self.record, model, crop=crop, label=label)


def require_model(
    record: Mapping[str, Any], model: str | Path, *, crop: int | None = None, label: str = "the data"
) -> None:
    """See `PreparedDataset.require`; `record` is the content of prepared.json."""
    settings = record["settings"]
    require_settings(record, label, crop=crop)
    folder = resolve_model(model)
    shape = latent_shape(folder, settings["crop"])
    if shape != settings["latent_shape"]:
        raise UserError(
            f"{label} holds latents of shape {settings['latent_shape']} (mean and logvar), {model} makes {shape}: "
            f"prepare the images again with --model {model}"
        )
    require_vae(record, label, folder, model)
    shapes = settings["prompt_shapes"]
    if shapes:
        family = detect_family(folder)
        widths = family.prompt_widths(read_config(folder / family.denoiser_folder / "config.json"))
        stored = (shapes["prompt_embeds"][-1], shapes["pool_embeds"][-1] if "pool_embeds" in shapes else None)
        if stored != tuple(widths):
            raise UserError(
                f"{label} holds embeddings of widths {stored} (tokens, pooled), {model} reads {tuple(widths)}: prepare "
                f"the images again with --model {model}"
            )


def latent_shape(folder: Path, crop: int) -> list[int]:
    """[2C, h, w] of the VAE's distribution parameters for a square crop, from its configuration."""
    config = read_config(folder / "vae" / "config.json")
    side = crop // 2 ** (len(config["block_out_channels"]) - 1)
    return [2 * config["latent_channels"], side, side]


def _open(folder: Path, rows: int) -> Any:
    datasets = import_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} could not be opened: {error}; remove it and prepare the images again") from error
    if len(found) != rows:
        raise UserError(f"{folder} has {len(found)} rows, its record says {rows}; remove it and prepare it again")
    return found


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
