"""The folders of this project's models: their hashes, and what of them is missing.

The real model is three folders under the weights folder: the base as published by Stability AI (gated), and from the
TSD-SR authors' drive the adapters `tsdsr-mse/` behind the paper's numbers and the fixed prompt `default/`. On SD2-base
and SD2.1-base (Table 5) the authors published no students: whoever trains one puts it beside its base.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Weight, assets
from bench.options import RunOptions
from bench.provenance import cached_sha256
from bench.store.missing import Missing
from bench.store.store import missing_files
from tsd.config import RestoreConfig
from tsd.console.progress import Progress

if TYPE_CHECKING:
    from tsd.fast.quantizing import Quantization

SD3_BASE = "sd3-medium"
SD3_HUB_ID = "stabilityai/stable-diffusion-3-medium-diffusers"
ADAPTERS = "tsdsr-mse"
PROMPT = "default"
SD3_PARTS = ("transformer", "vae", "scheduler")
SD2_PARTS = ("unet", "vae", "scheduler")
MODEL_FILES = (".safetensors", ".bin", ".pt", ".json")

RELEASE_SETTINGS: dict[str, object] = {key: value for key, value in asdict(RestoreConfig()).items() if key != "seed"}
"""The released script's settings, all of them, so that a record states every one. The harness seeds each image itself.

`restore.json` in the LoRA folder may replace some of them, and a row may replace those.
"""


@dataclass(frozen=True)
class SD2Base:
    """A base of the SD2 family, by its key in `bench/cards/assets.toml`, and the folder of a student of this project.

    Stability AI's own repositories left the hub; the asset names copies.
    """

    name: str
    display: str

    @property
    def asset(self) -> str:
        return f"{self.name}-base"

    @property
    def weight(self) -> Weight:
        return assets()[self.asset]

    @property
    def hub_id(self) -> str:
        """The base's name among the published configurations."""
        return f"sd2-community/{self.weight.file.rstrip('/')}"

    @property
    def student(self) -> str:
        return f"tsdsr-{self.name}"


SD2_BASES = {base.name: base for base in (SD2Base("sd2", "SD2-base"), SD2Base("sd21", "SD2.1-base"))}


@dataclass(frozen=True)
class ModelFolders:
    """The folders one student or teacher is made of; `lora` and `prompts` may be part of the model or absent.

    Attributes:
        decoder: a small decoder in the VAE's place.
        quantization: "int8" or "fp8" for the denoiser's products, as `tsd restore --quantize`.
    """

    model: Path
    lora: Path | None = None
    prompts: Path | None = None
    decoder: Path | None = None
    quantization: "Quantization | None" = None

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
        if self.decoder is not None:
            files |= _files(self.decoder, "decoder")
        bar = Progress(files.items(), desc="hashing weights", unit="file", delay=2, leave=False)
        return {name: cached_sha256(path) for name, path in bar}


@dataclass(frozen=True)
class Shape:
    """A student of a published base, with random weights in place of its files.

    Attributes:
        model: key of `tsd.memory.public_configs.PUBLIC_CONFIGS`.
        rank: of its adapters, where they are not merged; the release's.
    """

    model: str
    rank: int = 64

    def sha256(self) -> dict[str, str]:
        """What a record states in place of hashes."""
        return {self.model: "random"}


def release_folders(options: RunOptions) -> ModelFolders:
    """The folders in which the real model is looked for."""
    root = options.weights()
    return ModelFolders(root / assets()[SD3_BASE].file, root / ADAPTERS, root / PROMPT)


def sd2_student_folders(base: SD2Base, options: RunOptions) -> ModelFolders:
    """The folders in which a base and its student are looked for."""
    root = options.weights()
    return ModelFolders(root / base.weight.file, root / base.student, root / base.student / "prompts")


def missing_sd2_base(base: SD2Base, options: RunOptions) -> list[Missing]:
    """Names the files of the base that are not in the store."""
    return missing_files((base.weight,), options, licence="", needed_by=f"TSD-SR ({base.display})", fetch=base.asset)


def missing_sd2_student(base: SD2Base, options: RunOptions) -> list[Missing]:
    """Names the absent files of the base and of the student, which has to be trained: none was published."""
    absent, folder = missing_sd2_base(base, options), options.weights() / base.student
    lacking = [name for name in ("unet.safetensors", "vae.safetensors") if not (folder / name).is_file()]
    if not any((folder / "prompts" / "default").glob("prompt_embeds.*")):
        lacking.append("prompts/default/prompt_embeds.safetensors")
    if lacking:
        model = base.weight.file.rstrip("/")
        command = f"`tsd train --preset paper --model {model} …` and its student/ (no such student was published)"
        names = ", ".join(f"{base.student}/{name}" for name in lacking)
        place = options.weights_place(base.student)
        absent.append(Missing(names, place, command, None, None, f"TSD-SR ({base.display})"))
    return absent


def _files(folder: Path, role: str) -> dict[str, Path]:
    """Weight and configuration files under `folder`, by "<role>/<relative path>", in sorted order."""
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    return {f"{role}/{path.relative_to(folder).as_posix()}": path for path in paths}
