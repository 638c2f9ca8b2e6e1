"""Writes a trained student as a folder for others: merged into its base model, as LoRA files, or both.

`merged` is a model folder in diffusers layout whose weights already contain the LoRA of VAE encoder and denoiser;
`lora` is the released layout of LoRA files. Every export describes itself in `tsd_student.json`, from which
`tsd restore --model` knows that no LoRA is needed. Equal inputs give equal bytes.

A weight is merged in fp32 and rounded once. If base and export have the same precision, the base is held once in that
precision (SD3-medium in fp16: 2.11 billion parameters, 4.2 GB), otherwise once in fp32 (8.4 GB). The LoRA in fp32 and
one layer's product B·A come on top. Writing needs no more, since files are written from the weights' own memory.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tsd import __version__
from tsd.config import EXPORT_FILE, FOLDED_FILE, RECOMMENDED_FILE, FastPath, RestoreConfig
from tsd.errors import UserError
from tsd.export.model_card import CardFacts, model_card
from tsd.export.space import front_matter, write_space
from tsd.export.student import Student
from tsd.export.target import check_target
from tsd.fast.loading import rewrite
from tsd.files import atomic_folder, require_room, sha256_file, write_safetensors
from tsd.model.backbone import load_backbone
from tsd.model.loading import read_config, weight_files
from tsd.model.lora import load_student, read_lora, write_adapter_config
from tsd.precision import PRECISIONS, torch_dtype
from tsd.prompts.folder import write_prompt

What = Literal["merged", "lora", "both"]
Report = Callable[[str], None]
SHARD = "5GB"  # largest weight file, the hub's recommendation
METADATA_KEY = "tsd_student"  # of LoRA files
LORA_FOLDER = "lora"  # of the LoRA files beside a merged student
PIPELINE = "pipeline.py"
PIPELINE_CLASS = "OneStepPipeline"


def export(
    student: Student,
    out: str | Path,
    *,
    what: What = "merged",
    dtype: torch.dtype | None = None,
    fold: bool = False,
    text_encoders: bool = False,
    space: bool = False,
    card: CardFacts | None = None,
    overwrite: bool = False,
    report: Report = lambda message: None,
) -> Path:
    """Writes a student to `out`, which appears complete or not at all; returns `out`.

    Args:
        what: `merged`: a model folder with the LoRA merged in; `lora`: LoRA files; `both`: the model folder with the
            LoRA files in `lora/`.
        dtype: precision of the weights written; by default that of the base's files, and for LoRA files their own.
        fold: write the denoiser of a merged student folded for its prompt (`tsd.fast`): a third less for SD3, loaded by
            `tsd restore` alone.
        text_encoders: also copy the base's text encoders and tokenizers, and its `model_index.json`, with which the
            base's own pipeline loads. Without them the index names the pipeline that is written beside the weights.
        space: also write the page of `tsd app` as a program, which the hub runs as a Space; the card says how.
        card: facts for the model card that the weights do not contain; None writes no card.
        overwrite: replace an `out` that is an earlier export.
        report: called with one line per stage.

    Raises:
        UserError: see `check_target`; too little disk space; or weights that `dtype` cannot hold.
    """
    out = Path(out).expanduser()
    if what not in get_args(What):
        raise UserError(f"cannot export {what!r}; expected one of {', '.join(get_args(What))}")
    if fold and what == "lora":
        raise UserError("only a merged student can be folded; LoRA files have nothing to fold")
    if fold and text_encoders:
        raise UserError("a folded student has its prompt inside and no use for text encoders; leave one of them away")
    if text_encoders and what == "lora":
        raise UserError("text encoders belong to a merged student; LoRA files have no place for them")
    if space and (what == "lora" or card is None):
        raise UserError("a Space runs a merged student, and its card says how: take --what merged or both, and a card")
    check_target(out, (student.folder, student.lora), overwrite)
    merged, lora = what != "lora", what != "merged"
    dtypes = {part: dtype or stored for part, stored in student.dtypes.items()}
    lora_dtypes = {part: dtype or stored for part, stored in student.lora_dtypes.items()}
    components = _text_components(student) if text_encoders else []
    _check_room(out, student, dtypes if merged else {}, lora, components)
    with atomic_folder(out) as folder:
        if merged:
            _write_merged(student, folder, dtypes, fold, report)
            _copy_components(student, folder, components, report)
            if not fold:
                _write_pipeline(student, folder, indexed=bool(components))
        if lora:
            report("writing the LoRA files")
            place = folder / LORA_FOLDER if merged else folder
            _write_lora(student, place, lora_dtypes)
            write_adapter_config(place, *(student.ranks[part] for part in student.parts))
        for name, prompt in student.prompts.items():
            write_prompt(folder / "prompts" / name, prompt.to(dtype=torch.float32), "safetensors")
        if student.settings:
            for place in (folder, folder / LORA_FOLDER) if what == "both" else (folder,):
                (place / RECOMMENDED_FILE).write_text(json.dumps(student.settings, indent=2) + "\n")
        for path in sorted(student.folder.iterdir()):
            if path.is_file() and path.name.upper().startswith(("LICENSE", "NOTICE")):
                shutil.copyfile(path, folder / path.name)  # the base's terms also hold for derived weights
        if space and card is not None:
            write_space(folder, card.repo_id)
        report("hashing the files")
        description = _describe(student, what, dtypes if merged else {}, lora_dtypes if lora else {})
        description |= {"folded": True} if fold else {}
        (folder / EXPORT_FILE).write_text(json.dumps(description, indent=2) + "\n")
        if card is not None:
            hashes = {
                path.relative_to(folder).as_posix(): sha256_file(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            head = front_matter() if space else {}
            model_card(student.base, description, student.settings, hashes, card, head).save(folder / "README.md")
    return out


def _check_room(
    out: Path, student: Student, merged: Mapping[str, torch.dtype], lora: bool, components: list[Path]
) -> None:
    needed = sum(student.sizes[part] * dtype.itemsize for part, dtype in merged.items())
    needed += sum(file.stat().st_size for file in student.lora_files.values()) if lora else 0
    needed += sum(path.stat().st_size for folder in components for path in folder.rglob("*") if path.is_file())
    require_room(out, needed, "choose another --out, or --dtype fp16")


def _write_merged(
    student: Student, folder: Path, dtypes: Mapping[str, torch.dtype], fold: bool, report: Report
) -> None:
    same = {*student.dtypes.values()} == {*dtypes.values()} and len({*dtypes.values()}) == 1
    held = next(iter(dtypes.values())) if same else torch.float32
    report(f"loading {student.model} in {_name(held)}")
    backbone = load_backbone(student.folder, dtype=held)
    report("merging the LoRA")
    load_student(backbone, student.lora, merge=True)
    if fold:
        report("folding")
        backbone.prompts = {name: prompt.to(dtype=held) for name, prompt in student.prompts.items()}
        rewrite(backbone, FastPath(upsample=False))
    for part, module in zip(student.parts, (backbone.denoiser, backbone.vae), strict=True):
        report(f"writing {part}/ in {_name(dtypes[part])}")
        if dtypes[part] != held:
            module.to(dtypes[part])
        _check_finite(module.state_dict(), part, dtypes[part])
        if fold and module is backbone.denoiser:
            state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
            write_safetensors(folder / part / FOLDED_FILE, state)
            module.save_config(folder / part)
        else:
            module.save_pretrained(folder / part, max_shard_size=SHARD)
        config = read_config(folder / part / "config.json")
        config.pop("_name_or_path", None)  # the base's path on this machine is private
        (folder / part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "scheduler").mkdir()
    name = "scheduler_config.json"
    shutil.copyfile(student.folder / "scheduler" / name, folder / "scheduler" / name)


def _write_lora(student: Student, folder: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    for part, path in student.lora_files.items():
        state = {
            f"{student.family.denoiser_folder}.{name}": tensor.to(dtypes[part])
            for name, tensor in read_lora(path, student.family).items()
        }
        _check_finite(state, path.name, dtypes[part])
        facts = {
            "format": "pt",
            "family": student.family.name,
            "part": part,
            "rank": student.ranks[part],
            "alpha": student.ranks[part],
            "base_model": student.base.name or "unknown",
        }
        # One key: safetensors writes several keys in an order that differs from run to run.
        metadata = {METADATA_KEY: json.dumps(facts)}
        write_safetensors(folder / path.name, state, metadata)


def _text_components(student: Student) -> list[Path]:
    """The folders that the base's `model_index.json` names besides those of the student."""
    path = student.folder / "model_index.json"
    if not path.is_file():
        raise UserError(
            f"--text-encoders: {student.folder} has no model_index.json; fetch the whole pipeline "
            f"(`hf download {student.family.example} --local-dir DIR`) and give that folder as --model"
        )
    entries = {name: entry for name, entry in read_config(path).items() if isinstance(entry, list)}
    named = [
        name for name, entry in entries.items() if entry[:1] != [None] and name not in (*student.parts, "scheduler")
    ]
    missing = [name for name in named if not (student.folder / name).is_dir()]
    if missing:
        raise UserError(f"--text-encoders: {student.folder} has no {', '.join(f'{name}/' for name in missing)}")
    return [student.folder / name for name in named]


def _copy_components(student: Student, folder: Path, components: list[Path], report: Report) -> None:
    for component in components:
        report(f"copying {component.name}/")
        shutil.copytree(component, folder / component.name)
    if components:
        index = read_config(student.folder / "model_index.json")
        index.pop("_name_or_path", None)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_pipeline(student: Student, folder: Path, *, indexed: bool) -> None:
    """Writes `pipeline.py`, with which diffusers alone restores, and an index that names it if there is none yet."""
    settings = asdict(RestoreConfig(**student.settings))  # pyright: ignore[reportArgumentType]
    source = Path(__file__).with_name(PIPELINE).read_text(encoding="utf-8")
    for name, value in settings.items():
        line = re.compile(rf'^(    "{name}": )[^,]+,', re.MULTILINE)
        assert len(line.findall(source)) == 1, f"{PIPELINE} has no setting {name}"
        source = line.sub(lambda found, value=value: f"{found[1]}{_literal(value)},", source)
    (folder / PIPELINE).write_text(source, encoding="utf-8")
    if indexed:
        return
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")["_class_name"]
    parts = {student.parts[0]: student.family.denoiser_class, "vae": "AutoencoderKL", "scheduler": scheduler}
    index = {"_class_name": [Path(PIPELINE).stem, PIPELINE_CLASS], "_diffusers_version": version("diffusers")}
    index |= {part: ["diffusers", name] for part, name in sorted(parts.items())}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _literal(value: object) -> str:
    """A setting as Python source."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _describe(
    student: Student,
    what: What,
    dtypes: Mapping[str, torch.dtype],
    lora_dtypes: Mapping[str, torch.dtype],
) -> dict[str, Any]:
    """The content of `tsd_student.json`: the kind of export and what it was made from."""
    base = {f"{part}/{path.name}": path for part in student.parts for path in weight_files(student.folder / part)}
    return {
        "format": 1,
        "what": what,
        "family": student.family.name,
        "base_model": student.base.name,
        "rank": student.ranks,
        "dtype": {part: _name(dtype) for part, dtype in dtypes.items()},
        "lora_dtype": {part: _name(dtype) for part, dtype in lora_dtypes.items()},
        "made_from_sha256": {
            "base": {name: sha256_file(path) for name, path in base.items()},
            "lora": {path.name: sha256_file(path) for path in student.lora_files.values()},
        },
        "versions": {"tsd": __version__, **{name: version(name) for name in ("torch", "diffusers", "peft")}},
    }


def _check_finite(tensors: Mapping[str, Tensor], label: str, dtype: torch.dtype) -> None:
    odd = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise UserError(
            f"{label}: {odd[0]} has values that are not finite in {_name(dtype)}"
            + (f", and {len(odd) - 1} more" if len(odd) > 1 else "")
            + ("; choose --dtype bf16 or fp32" if dtype == torch.float16 else "; the LoRA or the base is damaged")
        )


def _name(dtype: torch.dtype) -> str:
    return next(name for name in PRECISIONS if torch_dtype(name) == dtype)
