"""The text domain: students of a small model of lettering, trained by `tsd.train` and scored on unseen lines.

Torch is imported when a cell runs.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.ablation.cells import read_lines, write_lines
from bench.ablation.domain import Cell, Measure
from bench.ablation.flat_settings import typed
from tsd.config import Phase, TrainConfig
from tsd.errors import UserError
from tsd.files import sha256_file, write_text
from tsd.presets import MINI

if TYPE_CHECKING:
    from bench.ablation.text.measures import TextScorer, TextScores

MODEL = Path(__file__).with_name("model")
"""The shipped base, start and classifier; `nox -s train_text` makes them."""

TEST_LINES, REFERENCE_LINES = 384, 1024
SHARPENED = (0.15, 0.3, 0.45, 0.6, 0.8)
"""Amounts of the unsharp masks that every distilled arm is held against."""

CURVE_POINTS = 3
"""The start, half of the student's steps, and the end."""
PHASE_SETTINGS = ("latent_mse", "gamma2", "point_weights", "steps")
RUN_SETTINGS = ("seed", "checkpoint_every", "validate_every", "crop", "usm", "degradation", "degrade_anew", "phases")
"""Fields of `TrainConfig` that no experiment sets: the sweep sets them, or this domain has no use for them."""

BASE = dataclasses.replace(
    MINI,
    gamma1=(0.0, 0.0),
    crop=32,
    rank=32,
    vae_rank=8,
    lr_schedule="cosine",
    weight_decay=0.0,
    posterior="mode",
    mixed_precision="bf16",
    abort_grad_norm=1e4,
)
"""What the common start and all arms share: no pixel term, and the ranks of the student."""

DEFAULTS = dataclasses.replace(
    BASE,
    phases=(Phase(steps=300, latent_mse=0.1, gamma2=2.5, point_weights=(1.0, 0.3, 0.3, 0.3)),),
    batch_size=8,
    lr=1e-4,
    warmup_steps=20,
    critic_rank=32,
    critic_layers="student",
    critic_lr=5e-4,
    critic_warmup_steps=150,
    critic_steps=2,
    critic_ema_decay=0.9,
    lambda_tsd=0.7,
    residual="epsilon",
    guidance_scale=1.0,
    ema_decay=0.98,
)
"""The full arm."""


@dataclasses.dataclass(frozen=True)
class TextDomain:
    """Rendered strings, reduced fourfold until letters are ambiguous.

    Attributes:
        model: the folder with base, `lora/start` and classifier.
        captions: whether teacher and critic are told the string.
    """

    model: Path = MODEL
    captions: bool = False
    name: str = "text"
    measures: tuple[Measure, ...] = (
        Measure("fd", "FD", "", False, False, 3),
        Measure("kid", "KID", "", False, False, 3),
        Measure("lp", "LP", "", False, True, 4),
        Measure("psnr", "PSNR", "dB", True, True, 3),
        Measure("letters", "Letters", "", True, True, 3),
        Measure("faces", "Faces", "", True, True, 3),
        Measure("sharpness", "Sharpness", "", None, False, 3),
    )

    @property
    def start(self) -> Path:
        """The student that all arms start from."""
        return self.model / "lora" / "start"

    @property
    def references(self) -> tuple[str, ...]:
        return ("bicubic", "start", *(f"start unsharp {amount:g}" for amount in SHARPENED))

    def settings(self) -> dict[str, Any]:
        flat = dataclasses.asdict(DEFAULTS)
        (phase,) = DEFAULTS.phases
        flat = {name: value for name, value in flat.items() if name not in RUN_SETTINGS}
        return flat | {name: getattr(phase, name) for name in PHASE_SETTINGS}

    def check(self, settings: Mapping[str, Any]) -> None:
        self.config(settings, seed=0)
        if not (self.model / "unet").is_dir():
            raise UserError(f"no base at {self.model}; `nox -s train_text` makes it")
        if self.model == MODEL and (settings["rank"], settings["vae_rank"]) != (DEFAULTS.rank, DEFAULTS.vae_rank):
            raise UserError(
                f"rank {settings['rank']} and vae_rank {settings['vae_rank']} do not fit the start student, "
                f"whose ranks are {DEFAULTS.rank} and {DEFAULTS.vae_rank}"
            )

    def config(self, settings: Mapping[str, Any], seed: int) -> TrainConfig:
        """The settings as the training takes them."""
        values = typed(settings, self.settings(), self.name)
        phase = Phase(**{name: values.pop(name) for name in PHASE_SETTINGS})
        # Only what is distilled needs a critic: a data-only arm spends no step on its warm-up.
        if phase.gamma2 == 0:
            values["critic_warmup_steps"] = 0
        config = dataclasses.replace(DEFAULTS, **values, phases=(phase,), seed=seed)
        return dataclasses.replace(config, checkpoint_every=max(config.total_steps // CURVE_POINTS, 1))

    def fingerprint(self) -> str:
        from bench.ablation.text.glyphs import font_hashes

        files = sorted(path for path in self.model.rglob("*") if path.suffix in (".safetensors", ".json"))
        listed = {path.relative_to(self.model).as_posix(): sha256_file(path) for path in files}
        listed.pop("recipe.json", None)
        return json.dumps([listed, font_hashes(), self.captions], sort_keys=True)

    def code(self) -> Sequence[Path]:
        folder = Path(__file__).parent
        own = [folder / f"{name}.py" for name in ("glyphs", "data", "classifier", "measures", "domain")]
        return [*own, folder.with_name("flat_settings.py")]

    def run(self, cell: Cell, folder: Path, *, device: str, stop: Callable[[], bool]) -> None:
        from bench.ablation.text.data import TextPairs
        from tsd.train.checkpoint import checkpoint_folder, latest
        from tsd.train.settings import RunSettings
        from tsd.train.student import train

        config = self.config(cell.settings, cell.seed)
        length = config.total_steps * config.batch_size
        data = TextPairs(cell.seed, length, captions=self.captions)
        curve = folder / "curve.jsonl"
        if latest(checkpoint_folder(folder / "run")) is None:  # killed before its first, or after its last
            shutil.rmtree(folder / "run", ignore_errors=True)
            curve.unlink(missing_ok=True)
        rows = {row["step"]: row for row in read_lines(curve)}
        # Counted without the critic's warm-up, which not every arm has: equal steps are equally trained students.
        ends = sorted({round(config.student_steps * part / (CURVE_POINTS - 1)) for part in range(CURVE_POINTS)})
        scores = None
        for end in ends:
            if end in rows and end != ends[-1]:
                continue
            if stop():
                return
            if end == 0:
                rows[end] = {"step": end, **scorer(self.model)(self.restore(self.start, device)).of_set}
                write_lines(curve, list(rows.values()))
                continue
            run = train(
                RunSettings(
                    model=self.model, data=data, output=folder / "run", resume=(folder / "run").exists(),
                    init_lora=self.start, stop_after=config.critic_warmup_steps + end, keep=1, tracker="none",
                    cpu=device == "cpu",
                ),
                config,
            )  # fmt: skip
            if run.stopped_by is not None:
                return
            images = self.restore(run.lora, device)
            scores = scorer(self.model)(images)
            rows[end] = {"step": end, **scores.of_set}
            write_lines(curve, [rows[step] for step in sorted(rows)])
            if end == ends[-1]:
                write_text(folder / "log.jsonl", run.log.read_text())
                if config.phases[0].gamma2 == 0:
                    self._sharpen(images, folder / "references")
        assert scores is not None
        write_scores(scores, folder)
        shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # 40 MB; the student stays

    def score_references(self, seed: int, folder: Path) -> None:
        """Scores the enlarged input, the common start, and the start sharpened; none depends on the seed."""
        from bench.ablation.text.measures import gray_of, unsharp

        start = self.restore(self.start, "cpu")
        sharpened = [unsharp(start, amount) for amount in SHARPENED]
        for name, images in zip(self.references, [gray_of(enlarged_inputs()), start, *sharpened], strict=True):
            write_scores(scorer(self.model)(images), folder / name)

    def _sharpen(self, images: Any, folder: Path) -> None:
        """Scores the sharpened outputs of a student that was trained on the data terms alone."""
        from bench.ablation.text.measures import unsharp

        for amount in SHARPENED:
            write_scores(scorer(self.model)(unsharp(images, amount)), folder / f"unsharp {amount:g}")

    def restore(self, lora: Path, device: str) -> Any:
        """The test lines restored by a student, (N, 1, H, W) in [0, 1] on the CPU."""
        import torch

        from bench.ablation.text.measures import gray_of
        from tsd.model.backbone import load_backbone
        from tsd.model.lora import load_student

        backbone = load_backbone(self.model, device=device)
        load_student(backbone, lora)
        parts = []
        with torch.no_grad():
            for x in enlarged_inputs().split(128):
                z = backbone.one_step(backbone.encode(x.to(device), posterior="mode"))
                parts.append(gray_of(backbone.decode(z)).cpu())
        return torch.cat(parts)


def open_domain(argument: str) -> TextDomain:
    """`text`, or `text:captions`, where teacher and critic are told the string."""
    if argument not in ("", "captions"):
        raise UserError(f"the text domain takes no argument, or 'captions'; got {argument!r}")
    return TextDomain(captions=argument == "captions")


@lru_cache(maxsize=1)
def enlarged_inputs() -> Any:
    """The test lines' inputs, enlarged fourfold: (TEST_LINES, 3, H, W) in [-1, 1]."""
    import torch

    from bench.ablation.text.data import TextPairs

    data = TextPairs(0, TEST_LINES, split="test")
    return torch.stack([data[number]["lr_up"] for number in range(TEST_LINES)])  # pyright: ignore


@lru_cache(maxsize=1)
def scorer(model: Path, count: int | None = None) -> "TextScorer":
    """The scorer of the first `count` test lines (of all for None), made once in a process."""
    from bench.ablation.text.classifier import load_classifier
    from bench.ablation.text.data import TextPairs
    from bench.ablation.text.measures import TextScorer

    count = count or TEST_LINES
    test, other = TextPairs(0, count, split="test"), TextPairs(0, REFERENCE_LINES, split="reference")
    return TextScorer(
        load_classifier(model),
        [test.line(number) for number in range(count)],
        [other.line(number) for number in range(REFERENCE_LINES)],
    )


def write_scores(scores: "TextScores", folder: Path) -> None:
    """Writes `scores.jsonl`: a row for each image, then the set's."""
    names = list(scores.per_image)
    rows: list[dict[str, Any]] = [
        {"image": f"{number:04d}", **dict(zip(names, map(float, values), strict=True))}
        for number, values in enumerate(zip(*scores.per_image.values(), strict=True))
    ]
    rows.append({"image": None, **scores.of_set})
    write_lines(folder / "scores.jsonl", rows)
