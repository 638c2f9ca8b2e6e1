"""`tsd export`: a trained student as a folder to use elsewhere, or to publish."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.console.imports import QUANTIZERS, without
from tsd.errors import UserError

if TYPE_CHECKING:
    from tsd.export.model_card import RunFacts

DESCRIPTION = """\
Writes a student as a model folder with its LoRA merged in (diffusers layout), as LoRA files (the
layout of the TSD-SR authors), or both, with a model card. Without --model, --lora and --run the
student is the mini model shipped in the package.
"""
EPILOG = """\
examples:
  tsd export --out mini-merged/        then: tsd restore photo.png --model mini-merged/
  tsd export --model sd3/ --lora tsdsr/ --prompt-embeds default/ --out student/ --dtype fp16
  tsd export --run run/ --model sd3/ --prompt-embeds prompts/ --what lora --out adapters/
  tsd export --run run/ --model sd3/ --what both --out student/ \\
             --base-model stabilityai/stable-diffusion-3-medium-diffusers \\
             --training-data "LSDIR, first 10,000 of FFHQ" --push-to-hub me/student --private

what is written:
  merged   transformer/ or unet/, vae/, scheduler/, prompts/: loads by
           from_pretrained(..., subfolder="transformer"). pipeline.py restores with diffusers alone:
             DiffusionPipeline.from_pretrained(OUT, custom_pipeline=OUT,
                                               trust_remote_code=True)(image)
           gives the image of `tsd restore`, by the settings of restore.json, which the file lists.
           --text-encoders copies those of the base, for its own pipeline.
  lora     transformer.safetensors or unet.safetensors, vae.safetensors, prompts/, and
           adapter_config.json with the strength of the adapters.
  both     the merged model, with the two LoRA files in lora/.
  --space  app.py, requirements.txt, and a head of README.md with which the hub runs the folder as a
           Space: `python OUT/app.py` here, `hf upload OWNER/SPACE OUT . --repo-type space` there.
  restore.json holds the settings that the student restores with, where they are known: from its own
  restore.json, or from the settings of --run.
  Every export has tsd_student.json, which says what it is, its ranks and precisions, and the hashes
  of what it was made from.

memory:
  Merging holds the base model in memory once. SD3-medium takes 4.2 GB if --dtype is the precision
  of its files (fp16), otherwise 8.4 GB.
"""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = verbs.add_parser(
        "export",
        help="write a student as a model folder or LoRA files, with a model card",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="folder to write; it appears when it is complete"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an earlier export")
    parser.add_argument(
        "--what", choices=("merged", "lora", "both"), default="merged", help="what to write (default: merged)"
    )
    parser.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), help="precision to write (default: that of the files read)"
    )
    parser.add_argument(
        "--fold", action="store_true",
        help="write a merged student folded for its prompt: a third smaller for SD3, and only tsd restore loads it",
    )  # fmt: skip
    parser.add_argument(
        "--text-encoders", action="store_true", help="also copy the base's text encoders and model_index.json"
    )
    parser.add_argument(
        "--space", action="store_true",
        help="also write app.py and requirements.txt: the page of tsd app, here or as a Space of Hugging Face",
    )  # fmt: skip
    source = parser.add_argument_group("the student")
    source.add_argument(
        "--model", metavar="DIR",
        help="base model in diffusers layout, or hub id (default: the mini model shipped in the package)",
    )  # fmt: skip
    source.add_argument(
        "--lora", type=Path, metavar="DIR",
        help="folder of its LoRA files (default: that of --run, or lora/tsdsr of the model folder)",
    )  # fmt: skip
    source.add_argument("--run", type=Path, metavar="DIR", help="training run: its best student, settings and numbers")
    source.add_argument(
        "--prompt-embeds", type=Path, metavar="DIR",
        help="folder with the prompt embeddings (default: the student's own)",
    )  # fmt: skip
    card = parser.add_argument_group("model card (README.md); facts neither given nor known are listed as unknown")
    card.add_argument(
        "--card", action=argparse.BooleanOptionalAction, default=True, help="write the card (default: yes)"
    )
    card.add_argument("--title", help="heading (default: the name of OUT)")
    card.add_argument("--base-model", metavar="OWNER/NAME", help="hub id of the base model, if --model is a folder")
    card.add_argument("--license", metavar="ID", help="the hub's identifier (default: that of a known base model)")
    card.add_argument("--training-data", metavar="TEXT", help="what it was trained on, in words")
    hub = parser.add_argument_group("hub")
    hub.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload OUT when it is complete")
    hub.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Exports; returns 0, or 1 if the export is complete but was not uploaded."""
    if args.private and args.push_to_hub is None:
        raise UserError("--private says how to upload; give --push-to-hub OWNER/NAME as well")
    if args.space and (args.what == "lora" or not args.card):
        raise UserError("a Space runs a merged student, and its card says how: --what merged or both, and no --no-card")

    from tsd.export.hub import check_repo_id
    from tsd.export.model_card import below_bicubic, read_run
    from tsd.export.target import check_target
    from tsd.model.loading import resolve_model
    from tsd.restore.student import find_student

    for repo_id in (args.push_to_hub, args.base_model):
        if repo_id is not None:
            check_repo_id(repo_id)
    check_target(args.out.expanduser(), (), args.overwrite)
    facts = read_run(args.run) if args.run is not None else None
    lora = args.lora if args.lora is not None or facts is None else facts.student
    model, found = find_student(args.model, lora)
    resolve_model(model)
    for folder in (found, args.prompt_embeds):
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise UserError(f"no such folder: {folder}")
    if (warning := below_bicubic(facts)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    with without(*QUANTIZERS):
        return _work(args, facts, lora)


def _work(args: argparse.Namespace, facts: "RunFacts | None", lora: Path | None) -> int:
    """What needs torch: opens the student, and writes and uploads it."""
    from tsd.export.hub import upload
    from tsd.export.model_card import CardFacts, licence_of, settings_of_run
    from tsd.export.student import open_student
    from tsd.export.write import export
    from tsd.precision import torch_dtype

    settings = None if facts is None else settings_of_run(facts)
    student = open_student(args.model, lora, args.prompt_embeds, base_model=args.base_model, settings=settings)
    card = CardFacts(
        title=args.title or (args.push_to_hub or args.out.resolve().name).rpartition("/")[2],
        repo_id=args.push_to_hub,
        licence=args.license,
        training_data=args.training_data,
        run=facts,
    )
    if args.push_to_hub is not None and not args.private and licence_of(card, student.base) is None:
        raise UserError(
            f"the licence of {student.model} is not known, and an upload is public without --private: state it by "
            f"--license ID, or the base model by --base-model OWNER/NAME"
        )
    out = export(
        student,
        args.out,
        what=args.what,
        dtype=torch_dtype(args.dtype) if args.dtype else None,
        fold=args.fold,
        text_encoders=args.text_encoders,
        space=args.space,
        card=card if args.card else None,
        overwrite=args.overwrite,
        report=lambda message: print(message, file=sys.stderr),
    )
    option = f"--model {out}" if args.what != "lora" else f"--model {student.model} --lora {out}"
    prompts = f" --prompt-embeds {out / 'prompts'}" if args.what == "lora" else ""
    print(f"student written to {out}; try: tsd restore photo.png -o restored/ {option}{prompts}")
    if args.push_to_hub is not None:
        print(f"uploading to {args.push_to_hub}", file=sys.stderr)
        try:
            print(f"uploaded to {upload(out, args.push_to_hub, private=args.private)}")
        except UserError as error:
            print(f"tsd export: {error}", file=sys.stderr)
            return 1
    return 0
