"""What a sweep of the domain `paper` reads: the base, prompts, training data, finished students; and what is missing.

Only file names are looked at and no network library is imported, so that everything missing is listed within a second.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cards.card import assets
from bench.device import resolve_device
from bench.metrics import get_metric, missing_metric
from bench.metrics.per_image import LPIPS
from bench.options import RunOptions
from bench.provenance import sha256_json
from bench.store.missing import Missing, Obstacle
from bench.store.store import missing_files
from bench.testsets.manifest import DATASETS, missing_testset
from tsd.config import ADAPTER_CONFIG, TrainConfig
from tsd.errors import UserError
from tsd.files import sha256_file

SD3 = "sd3-medium"
PUBLIC_SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
TRAINING_SETS = ("lsdir", "div2k", "flickr2k", "ffhq-10k")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PREPARED = "prepared.json"
VAE_LORA = "vae.safetensors"
DIGITS = 16


@dataclass(frozen=True)
class Files:
    """The paths of a call, as `bench sweep` takes them.

    Attributes:
        model: base in diffusers layout, or a hub id whose files are in the hub's cache; None for SD3-medium in the
            folder of weights.
        data: a folder that `tsd prepare` wrote.
        prompt_embeds: folder with `default/` and `null/`; None for the model's own.
        teacher_lora: folder of a tuned teacher.
        students: (arm, folder) of finished students.
        data_root, weights_root: as in `RunOptions`.
    """

    model: str | None = None
    data: Path | None = None
    prompt_embeds: Path | None = None
    teacher_lora: Path | None = None
    students: tuple[tuple[str, Path], ...] = ()
    data_root: Path | None = None
    weights_root: Path | None = None

    def options(self) -> RunOptions:
        return RunOptions(data_root=self.data_root, weights_root=self.weights_root)

    def student(self, arm: str) -> Path | None:
        """The finished student of an arm; None if it is trained."""
        return dict(self.students).get(arm)

    def model_folder(self) -> Path:
        """The folder of the base, which need not exist; that of a hub id is its snapshot in the cache."""
        if self.model is None:
            return self.options().weights() / assets()[SD3].file
        folder = Path(self.model).expanduser()
        return folder if folder.is_dir() else _cached_snapshot(self.model) or folder

    def planned_model(self) -> str:
        """The base for a plan without weights: its folder, else the hub id, else SD3-medium's published
        configuration."""
        folder = self.model_folder()
        if folder.is_dir():
            return str(folder)
        return PUBLIC_SD3 if self.model is None else self.model

    def prompts(self, student: Path) -> Path | None:
        """The folder of the prompts that a student restores with; None where its own or the model's serve."""
        return None if (student / "prompts").is_dir() else self.prompt_embeds

    def missing(
        self, trained: Sequence[TrainConfig], measures: Sequence[tuple[str, str]], device: str
    ) -> list[Missing | Obstacle]:
        """Everything that training and scoring need and that is not here.

        Args:
            trained: the runs that are to be trained.
            measures: (test set, metric).
            device: as given, "auto" included.
        """
        found: list[Missing | Obstacle] = [*self._missing_model(), *self._missing_students()]
        if trained:
            found += [*self._missing_prompts(trained), *self._missing_data(), *self._missing_for(trained, device)]
        for testset in dict.fromkeys(testset for testset, _ in measures):
            found += missing_testset(testset, self.data_root)
        for metric in dict.fromkeys(metric for _, metric in measures):
            found += missing_metric(get_metric(metric))
        return list(dict.fromkeys(found))

    def _missing_model(self) -> Iterator[Missing]:
        if self.model is None:
            yield from missing_files(
                (assets()[SD3],), self.options(), licence="", needed_by="training and scoring", fetch=SD3
            )
            return
        folder = self.model_folder()
        absent = absent_parts(folder)
        if absent:
            source = "a model folder in diffusers layout"
            if HUB_ID.fullmatch(self.model):
                source = f"`hf download {self.model} --local-dir DIR`, then --model DIR"
            yield Missing(", ".join(absent), str(folder), source, None, None, "training and scoring")

    def _missing_students(self) -> Iterator[Missing]:
        for arm, folder in self.students:
            names = [name for name in ("transformer.safetensors", "unet.safetensors") if (folder / name).is_file()]
            absent = [] if names else ["transformer.safetensors (or unet.safetensors)"]
            absent += [] if (folder / VAE_LORA).is_file() else [VAE_LORA]
            if absent:
                source = "`tsd train`, the folder student/ of its output (`bench sweep --dry-run` prints the command)"
                yield Missing(", ".join(absent), str(folder), source, None, None, f"the arm {arm}")

    def _missing_prompts(self, trained: Sequence[TrainConfig]) -> Iterator[Missing]:
        places = [self.model_folder() / "prompts"] + ([self.prompt_embeds] if self.prompt_embeds else [])
        needed = ["default"]
        needed += ["null"] if any(phase.gamma2 > 0 for config in trained for phase in config.phases) else []
        absent = [name for name in needed if not any(has_prompt(place, name) for place in places)]
        if absent:
            where = str(self.prompt_embeds) if self.prompt_embeds else "a folder of your choice, --prompt-embeds DIR"
            source = f"`tsd prompts --model {self.model or self.model_folder()} --out DIR`, which needs text encoders"
            yield Missing(", ".join(f"{name}/" for name in absent), where, source, None, None, "training")

    def _missing_data(self) -> Iterator[Missing]:
        if self.data is not None and (self.data / PREPARED).is_file():
            return
        where = f"{self.data}/" if self.data else "a folder of your choice, --data DIR"
        command = (
            f"`tsd prepare LSDIR/ DIV2K/ Flickr2K/ FFHQ/ --out DIR --model {self.model or self.model_folder()} --usm "
            "--caption-files` (killed or unfinished, the same command continues)"
        )
        yield Missing(f"{PREPARED}, a prepared training set,", where, command, None, None, "training")
        for name in TRAINING_SETS:
            manifest = json.loads((DATASETS / name / "manifest.json").read_text(encoding="utf-8"))
            yield Missing(
                manifest["display"], "a folder of your choice (datasets/README.md says more)", manifest["source"],
                manifest.get("bytes"), manifest.get("licence"), "`tsd prepare`, to make the paper's training set,",
            )  # fmt: skip

    def _missing_for(self, trained: Sequence[TrainConfig], device: str) -> Iterator[Missing | Obstacle]:
        """What training needs besides base, prompts and data: a teacher's LoRA, LPIPS, a GPU."""
        if self.teacher_lora is not None and not any(self.teacher_lora.glob("*.safetensors")):
            source = "`tsd train --stage teacher …`, the folder teacher/ of its output"
            yield Missing("*.safetensors", str(self.teacher_lora), source, None, None, "training (--teacher-lora)")
        if any(config.has_pixel_loss and config.pixel_loss == "lpips" for config in trained):
            yield from missing_metric(LPIPS)
        half = any("fp16" in (config.mixed_precision, config.base_dtype) for config in trained)
        if half and resolve_device(device) == "cpu":
            yield Obstacle("training in fp16", "needs a GPU, and there is none here (on a CPU: bf16, or no with fp32)")


def absent_parts(folder: Path) -> list[str]:
    """What a model folder in diffusers layout lacks; its denoiser is `transformer/` or `unet/`."""
    denoiser = "unet" if (folder / "unet").is_dir() else "transformer"
    absent = [
        f"{part}/{wanted}"
        for part in (denoiser, "vae")
        for wanted in ("config.json", "*.safetensors")
        if not any((folder / part).glob(wanted))
    ]
    return absent + ([] if (folder / "scheduler" / "scheduler_config.json").is_file() else ["scheduler/"])


def has_prompt(folder: Path, name: str) -> bool:
    """Whether a folder of prompts has one of this name; tensors in the folder itself are the default prompt."""
    own = name == "default" and any(folder.glob("prompt_embeds.*"))
    return own or any((folder / name).glob("prompt_embeds.*"))


def student_hashes(folder: Path) -> str:
    """The files of a student that decide about its images, each with its hash, as one line.

    Raises:
        UserError: there are none.
    """
    decisive = (".safetensors", ".pt")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in decisive or path.name == ADAPTER_CONFIG)
    if not paths:
        raise UserError(f"{folder} holds no student; expected the folder student/ of a run of `tsd train`")
    return ", ".join(f"{path.relative_to(folder).as_posix()} {sha256_file(path)[:DIGITS]}" for path in paths)


def prepared_hash(folder: Path | None) -> str | None:
    """The hash of a prepared set's record, which names the sizes of its files; None where there is none."""
    path = None if folder is None else folder / PREPARED
    return sha256_json(json.loads(path.read_text(encoding="utf-8"))) if path is not None and path.is_file() else None


def _cached_snapshot(hub_id: str) -> Path | None:
    """The snapshot of a model in the hub's cache; None if it is not there or no hub id."""
    if not HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import try_to_load_from_cache

    for denoiser in ("transformer", "unet"):
        found = try_to_load_from_cache(hub_id, f"{denoiser}/config.json")
        if isinstance(found, str):
            return Path(found).parents[1]
    return None
