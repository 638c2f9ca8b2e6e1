"""`tsd prompts`: the student's fixed prompt and the null prompt of guidance, computed from their texts."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.console.imports import QUANTIZERS, without
from tsd.errors import UserError
from tsd.files import require_writable
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tsd.model.prompt import PromptEmbeds
    from tsd.prompts.text_encoders import TextSide

DESCRIPTION = """\
Computes prompt embeddings from text with the model's own text encoders and writes them to
OUT/default/ and OUT/null/, for --prompt-embeds of `tsd restore` and `tsd train`. Without --text
these are the two prompts of the TSD-SR release: its fixed prompt and the empty one.
OUT/prompts.json records texts, hashes of tensors and encoders, and versions.
"""
EPILOG = """\
examples:
  tsd prompts --model stabilityai/stable-diffusion-3-medium-diffusers --out prompts/
  tsd prompts --model sd3/ --out prompts/ --device cuda --dtype bf16
  tsd prompts --model sd3/ --out prompts/ --format pt \\
              --compare released/                            which holds default/ and null/
  tsd prompts --model sd3/ --out mine/ --text "a sharp photograph" --no-null --no-t5
  tsd restore photo.png -o out/ --model sd3/ --lora tsdsr/ --prompt-embeds prompts/

model:
  A folder in diffusers layout with the text encoders (SD3: text_encoder, text_encoder_2,
  text_encoder_3; SD2: text_encoder), their tokenizers and the denoiser's config.json, or a hub id.
  Only these files are fetched. The weights of denoiser and VAE are not needed.

memory:
  Each encoder is loaded, used and freed in turn, so the largest one decides. That is T5-XXL with
  4.76 billion parameters: 9.5 GB in bf16, 11.5 GB in fp16 (some layers stay in fp32), 19 GB in
  fp32. A GPU of 24 GB holds any of them. --no-t5 leaves it out and puts zeros in its place, as
  diffusers does. The embeddings then differ from the release's, and 1.4 to 2.8 GB are enough.
  SD2's encoder takes 1.4 GB in fp32.

--compare:
  Says for every tensor whether it is equal to the one in another folder, close to it (relative
  difference at most 5 %, as between precisions) or different from it. The exit status is 1 if any
  is different.
"""


def add_parser(subparsers: Any) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "prompts",
        help="compute the default and null prompt embeddings from text",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder in diffusers layout, or hub id")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="folder for the prompts")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="TEXT", help="text of the default prompt (default: the release's)")
    text.add_argument(
        "--text-file", type=Path, metavar="FILE", help="read the text of the default prompt from a UTF-8 file"
    )
    parser.add_argument(
        "--null", action=argparse.BooleanOptionalAction, default=True,
        help="write null/, the empty prompt, beside default/ (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--t5", action=argparse.BooleanOptionalAction, default=True,
        help="use SD3's third text encoder, T5-XXL (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("safetensors", "pt"), default="safetensors",
        help="file format of the tensors (default: safetensors)",
    )  # fmt: skip
    parser.add_argument("--compare", type=Path, metavar="DIR", help="compare with the prompts of another folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace prompts in OUT that were made from other texts or settings"
    )
    parser.add_argument("--device", metavar="cpu|cuda", help="where to run (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="fp32",
        help="precision of the text encoders (default: fp32)",
    )  # fmt: skip
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Writes the prompts; returns 0, or 1 if --compare found a different one."""
    texts = _texts(args)
    _check(args)
    with without(*QUANTIZERS):
        return _work(args, texts)


def _check(args: argparse.Namespace) -> None:
    """Refuses what is wrong with the paths and the device before torch is imported."""
    from tsd.model.loading import is_hub_id, resolve_text_model

    if args.device is not None and args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"the device is {args.device!r}; expected cpu, cuda or cuda:N")
    if args.compare is not None and not args.compare.is_dir():
        raise UserError(f"--compare {args.compare}: no such folder")
    require_writable(args.out)
    if not is_hub_id(args.model):
        resolve_text_model(args.model, t5=args.t5)


def _work(args: argparse.Namespace, texts: dict[str, str]) -> int:
    """Writes and compares the prompts with torch."""
    import diffusers
    import torch
    import transformers

    from tsd import __version__
    from tsd.console.progress import Progress
    from tsd.model.loading import resolve_text_model
    from tsd.model.prompt import read_prompts
    from tsd.precision import torch_dtype
    from tsd.prompts.encode import encode_texts
    from tsd.prompts.folder import encoder_hashes, is_intact, read_record, tensor_files, write_prompt, write_record
    from tsd.prompts.text_encoders import text_side

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {device}, but this machine has no CUDA device; leave it out or give --device cpu")
    folder = resolve_text_model(args.model, t5=args.t5)
    side = text_side(folder, t5=args.t5)
    others = read_prompts(args.compare, (side.width, side.pooled)) if args.compare is not None else {}
    if args.compare is not None and not others.keys() & texts.keys():
        raise UserError(f"{args.compare} has the prompts {sorted(others)}; expected one of {sorted(texts)} to compare")
    old = read_record(args.out)
    settings = {
        "family": side.family,
        "t5": args.t5 if side.family == "sd3" else None,
        "dtype": args.dtype,
        "format": args.format,
        "encoders_sha256": encoder_hashes(side, lambda paths: Progress(paths, "hash encoders", unit="file", delay=1)),
    }

    kept: dict[str, Any] = {}
    if old is not None and old["settings"] == settings:
        for name, entry in old["prompts"].items():
            if texts.get(name, entry["text"]) == entry["text"] and is_intact(args.out / name, entry):
                kept[name] = entry
    todo = [name for name in texts if name not in kept]
    if not args.overwrite:
        _refuse_to_replace(args.out, old, settings, {name: tensor_files(args.out / name) for name in todo}, texts)
    if todo:
        found = encode_texts(
            folder, [texts[name] for name in todo], device=device, dtype=torch_dtype(args.dtype), t5=args.t5
        )
        libraries = {library.__name__: str(library.__version__) for library in (torch, transformers, diffusers)}
        origin = {"model": args.model, "device": device, "versions": {"tsd-sr-bench": __version__, **libraries}}
        for index, name in enumerate(todo):
            tensors = write_prompt(args.out / name, _one(found, index), args.format)
            kept[name] = {"text": texts[name], "tensors": tensors}
            write_record(args.out, settings, origin, kept)
        for name in (old["prompts"] if old is not None else {}).keys() - kept.keys():
            print(f"warning: {args.out / name} was made with other settings and is no longer recorded", file=sys.stderr)
    for name in texts:
        if name not in todo:
            print(f"{args.out / name} is there with the same settings and left as it is", file=sys.stderr)
        for tensor in kept[name]["tensors"].values():
            shape = "x".join(map(str, tensor["shape"]))
            print(f"{name}/{tensor['file']}  {shape} {tensor['dtype']}  sha256 {tensor['sha256']}")
    return _compare(args, side, others, list(texts)) if args.compare is not None else 0


def _texts(args: argparse.Namespace) -> dict[str, str]:
    """The prompts to make, by name."""
    from tsd.config import DEFAULT_PROMPT

    text = DEFAULT_PROMPT if args.text is None else args.text
    if args.text_file is not None:
        try:
            text = args.text_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{args.text_file} could not be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise UserError(
            "the text of the default prompt is empty; the empty prompt is null/, which is written beside it"
        )
    return {"default": text, **({"null": ""} if args.null else {})}


def _refuse_to_replace(
    out: Path,
    old: dict[str, Any] | None,
    settings: dict[str, Any],
    existing: dict[str, list[Path]],
    texts: dict[str, str],
) -> None:
    advice = "; give --overwrite to replace what is there, or another folder (--out)"
    if old is not None and old["settings"] != settings:
        differing = [key for key in settings if old["settings"].get(key) != settings[key]]
        shown = ", ".join(
            key if key == "encoders_sha256" else f"{key} ({old['settings'].get(key)}, now {settings[key]})"
            for key in differing
        )
        raise UserError(f"{out} holds prompts made with other settings: {shown}{advice}")
    for name, files in existing.items():
        if files:
            entry = old["prompts"].get(name) if old is not None else None
            reason = (
                "without a record of how it was made"
                if entry is None
                else f"for another text ({entry['text'][:60]!r})"
                if entry["text"] != texts[name]
                else "but not as prompts.json records it (changed or damaged)"
            )
            raise UserError(f"{files[0]} exists {reason}{advice}")


def _compare(args: argparse.Namespace, side: "TextSide", others: "dict[str, PromptEmbeds]", names: list[str]) -> int:
    from tsd.model.prompt import read_prompts
    from tsd.prompts.folder import compare

    written = read_prompts(args.out, (side.width, side.pooled))
    clip_tokens = side.encoders[0].tokens if side.family == "sd3" else None
    different = False
    for name in names:
        if name not in others:
            print(f"{name}: not in {args.compare}")
            continue
        for difference in compare(written[name], others[name], clip_tokens):
            print(f"{name} {difference.name}: {difference.verdict} ({difference.detail})")
            different |= difference.verdict == "different"
    return int(different)


def _one(prompts: "PromptEmbeds", index: int) -> "PromptEmbeds":
    from tsd.model.prompt import PromptEmbeds

    pooled = None if prompts.pooled is None else prompts.pooled[index : index + 1]
    return PromptEmbeds(prompts.embeds[index : index + 1], pooled)
