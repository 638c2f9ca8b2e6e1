"""The student that belongs to a model: found and checked before anything heavy is loaded.

A student is a LoRA folder, or a model folder with the LoRA merged into its weights (`tsd export`), which is recognised
by its `tsd_student.json`.
"""

import json
from pathlib import Path

from tsd.config import EXPORT_FILE
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.model.loading import SD3_MEDIUM, detect_family, resolve_model

STUDENT_FOLDER = Path("lora") / "tsdsr"


def is_merged(folder: str | Path) -> bool:
    """Whether a folder is a student with the LoRA already merged into the model's weights, as `tsd export` writes it.

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
    """The model and the student's folder; by default the mini model, and the LoRA inside the model folder.

    A merged student is both model and student: the same folder, which may be given as both.

    Raises:
        UserError: a model without LoRA (the message says what to give and where it comes from), or a LoRA for a merged
            student.
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


def student_prompts(lora: Path) -> Path | None:
    """The folder of prompts beside a student's weights, which it was trained with; None if there is none."""
    folder = lora / "prompts"
    return folder if (folder / "default").is_dir() else None


def check_parts(model: str | Path, lora: Path, prompt_embeds: str | Path | None) -> None:
    """Checks that the student's files and a prompt are there, before gigabytes are loaded.

    Raises:
        UserError: one of them is missing; the message says which, where it belongs and where it comes from.
    """
    folder = resolve_model(model)
    family = detect_family(folder)
    if not is_merged(lora):
        from tsd.model.lora import check_student

        check_student(lora, family)
    if prompt_embeds is None and not (folder / "prompts" / "default").is_dir():
        files = " and ".join(f"{name}.pt" for name in family.prompt_files)
        raise UserError(
            f"the model {model} carries no prompt in prompts/default/: name a folder (--prompt-embeds DIR) with "
            f"{files}, the student's fixed prompt. The TSD-SR authors publish SD3's as dataset/default/ beside their "
            f"LoRA files; `tsd prompts` makes it from the model's own text encoders."
        )
