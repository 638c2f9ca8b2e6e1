"""The text encoders of a model folder: checked against the denoiser, then loaded one at a time.

SD3 has three (`text_encoder`, `text_encoder_2`, `text_encoder_3`), SD2 one (`text_encoder`), each with its tokenizer's
folder. The checks read only small files, before any weights. The encoders' sizes are:

| encoder | parameters | bf16 | fp16 | fp32 |
|---|---|---|---|---|
| CLIP-L (SD3) | 0.12 B | 0.25 GB | 0.25 GB | 0.49 GB |
| OpenCLIP-bigG (SD3) | 0.69 B | 1.39 GB | 1.39 GB | 2.78 GB |
| T5-XXL (SD3) | 4.76 B | 9.52 GB | 11.54 GB | 19.05 GB |
| OpenCLIP-H (SD2) | 0.34 B | 0.68 GB | 0.68 GB | 1.36 GB |

T5 takes more memory in fp16 than in bf16, because transformers keeps its `wo` layers (1.01 B parameters), which would
overflow, in fp32. Only one encoder is loaded at a time, so the largest one sets the peak, and even fp32 fits a GPU of
24 GB: the activations of 8 texts of 256 tokens add less than 1 GB.
"""

import gc
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from tsd.errors import UserError
from tsd.model.loading import detect_family, read_config

T5_TOKENS = 256  # diffusers' `max_sequence_length`, and what the release's embeddings were made with

PARTS = ("text_encoder", "tokenizer")

Kind = Literal["clip", "clip-projection", "t5"]
MODEL_TYPES = {"clip": "clip_text_model", "clip-projection": "clip_text_model", "t5": "t5"}
TOKENIZER_FILES = {"clip": ("vocab.json", "merges.txt"), "clip-projection": ("vocab.json", "merges.txt"), "t5": ()}


@dataclass(frozen=True)
class TextEncoder:
    """One encoder on disk.

    Attributes:
        kind: `clip` gives the last hidden state (SD2), `clip-projection` the last but one and a pooled vector (SD3's
            two CLIPs), `t5` the last hidden state of 256 tokens.
        folder, tokenizer: the two folders.
        tokens: length every text is padded or cut to.
        width: of the token embeddings.
        pooled: width of the pooled vector, None where there is none.
        uses_mask: whether padding is masked, as its own configuration asks (SD2's does not).
    """

    kind: Kind
    folder: Path
    tokenizer: Path
    tokens: int
    width: int
    pooled: int | None
    uses_mask: bool

    def files(self) -> list[Path]:
        """The files that loading reads: configuration, weights, tokenizer; sorted."""
        return sorted(
            [self.folder / "config.json", *_weights(self.folder), *filter(Path.is_file, self.tokenizer.iterdir())]
        )


@dataclass(frozen=True)
class TextSide:
    """A model's text encoders in order, and the shapes they give together: (L, D) = (`tokens`, `width`), (P,)."""

    family: str
    encoders: tuple[TextEncoder, ...]
    tokens: int
    width: int
    pooled: int | None


def text_side(folder: Path, *, t5: bool = True) -> TextSide:
    """Reads a model folder's text side from its small files; no weights are loaded.

    Args:
        folder: needs the denoiser's `config.json` and the encoders' and tokenizers' folders, nothing else.
        t5: False leaves SD3's third encoder out; its rows are then zeros, as in diffusers.

    Raises:
        UserError: the folder is of neither family, folders or files are missing (the message names them and the
            command that fetches them), or the encoders do not fit the denoiser.
    """
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}")
    family = detect_family(folder)
    width, pooled = family.prompt_widths(read_config(folder / family.denoiser_folder / "config.json"))
    suffixes = ("",) if family.name == "sd2" else ("", "_2", "_3")[: 3 if t5 else 2]
    _check_folders(folder, [f"{part}{suffix}" for suffix in suffixes for part in PARTS], family.example)
    if family.name == "sd2":
        encoders = (_text_encoder(folder, "", "clip"),)
        _check_width(folder, "text_encoder", encoders[0].width, width)
        return TextSide(family.name, encoders, encoders[0].tokens, width, None)
    encoders = tuple(
        _text_encoder(folder, suffix, "t5" if suffix == "_3" else "clip-projection") for suffix in suffixes
    )
    first, second = encoders[:2]
    if first.tokens != second.tokens:
        raise UserError(f"{folder}: tokenizer pads to {first.tokens} tokens but tokenizer_2 to {second.tokens}")
    if first.width + second.width > width:
        raise UserError(
            f"{folder}: text_encoder and text_encoder_2 together are {first.width} + {second.width} wide, more than "
            f"the {width} the denoiser reads; encoders and denoiser are of different models"
        )
    if t5:
        _check_width(folder, "text_encoder_3", encoders[2].width, width)
    if (found := (first.pooled or 0) + (second.pooled or 0)) != pooled:
        raise UserError(
            f"{folder}: the pooled vectors of text_encoder and text_encoder_2 are {found} wide but the denoiser reads "
            f"{pooled}; encoders and denoiser are of different models"
        )
    return TextSide(family.name, encoders, first.tokens + T5_TOKENS, width, pooled)


def _check_folders(folder: Path, names: list[str], hub_id: str) -> None:
    absent = [name for name in names if not (folder / name).is_dir()]
    if not absent:
        return
    only_t5 = all(name.endswith("_3") for name in absent)
    raise UserError(
        f"{folder} has no {' and no '.join(f'{name}/' for name in absent)}. Fetch: hf download {hub_id} --include "
        f"{' '.join(repr(f'{name}/*') for name in absent)} --exclude '*fp16*' '*.bin' --local-dir {folder}"
        + ("; or leave T5 out (--no-t5: zeros in its place, as diffusers does)" if only_t5 else "")
    )


def _text_encoder(folder: Path, suffix: str, kind: Kind) -> TextEncoder:
    encoder, tokenizer = (folder / f"{part}{suffix}" for part in PARTS)
    config = read_config(encoder / "config.json")
    if config.get("model_type") != MODEL_TYPES[kind]:
        raise UserError(f"{encoder} is a {config.get('model_type')!r} model; expected {MODEL_TYPES[kind]!r}")
    _weights(encoder)
    _check_tokenizer(tokenizer, kind)
    if kind == "t5":
        return TextEncoder(kind, encoder, tokenizer, T5_TOKENS, config["d_model"], None, False)
    # Some configurations leave out defaults; these are transformers' own for CLIPTextConfig.
    positions = config.get("max_position_embeddings", 77)
    tokens = read_config(tokenizer / "tokenizer_config.json").get("model_max_length", positions)
    if tokens > positions:
        raise UserError(f"{tokenizer} pads to {tokens} tokens but {encoder} has {positions} positions")
    pooled = config.get("projection_dim", 512) if kind == "clip-projection" else None
    uses_mask = bool(config.get("use_attention_mask", False))
    return TextEncoder(kind, encoder, tokenizer, tokens, config.get("hidden_size", 512), pooled, uses_mask)


def _check_width(folder: Path, name: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{folder}: {name} gives embeddings {found} wide but the denoiser reads {expected}; encoders and denoiser "
            f"are of different models"
        )


def _check_tokenizer(folder: Path, kind: Kind) -> None:
    names = TOKENIZER_FILES[kind] or ("spiece.model",)
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in names):
        raise UserError(f"{folder} has neither tokenizer.json nor {' and '.join(names)}; the tokenizer is incomplete")
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} has no tokenizer_config.json; the tokenizer is incomplete")


def _weights(folder: Path) -> list[Path]:
    """The weight files of a transformers model: one safetensors file, or an index and the shards it names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserError(
            f"{folder} has no model.safetensors (found: {found}); fetch the safetensors files, pickles are not loaded"
        )
    shards = [folder / name for name in sorted(set(read_config(index)["weight_map"].values()))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}, which {index.name} names; fetch them again")
    return [index, *shards]


def load_tokenizer(encoder: TextEncoder) -> Any:
    """The tokenizer of an encoder (light: no weights).

    Raises:
        UserError: damaged files.
    """
    from transformers import CLIPTokenizer, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    tokenizer = T5TokenizerFast if encoder.kind == "t5" else CLIPTokenizer
    try:
        return tokenizer.from_pretrained(str(encoder.tokenizer), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"the tokenizer in {encoder.tokenizer} could not be loaded: {error}") from error


def warn_about_truncation(encoder: TextEncoder, tokenizer: Any, texts: Sequence[str]) -> None:
    """Warns once if texts are longer than the encoder reads; says how many, and what the first of them loses."""
    longer, example = 0, ""
    for start in range(0, len(texts), 1024):  # token lists of 95,000 captions need not be held at once
        batch = list(texts[start : start + 1024])
        for text, ids in zip(batch, tokenizer(batch, verbose=False)["input_ids"], strict=True):
            if len(ids) > encoder.tokens:
                longer += 1
                cut = tokenizer.decode(ids[encoder.tokens - 1 : -1]).strip()
                example = example or f"{text[:60]!r}… loses {cut[:200]!r}{'…' if len(cut) > 200 else ''}"
    if longer:
        warnings.warn(
            f"{longer} of {len(texts)} texts are longer than the {encoder.tokens} tokens {encoder.folder.name} reads "
            f"and are cut: {example}",
            stacklevel=4,
        )


class LoadedEncoder:
    """A context in which one encoder is in memory: `with LoadedEncoder(...) as encode: encode(texts)`.

    Leaving the context frees the module, even if this object is still referenced, and empties CUDA's cache.

    Raises:
        UserError: on entering, if the weights are damaged or incomplete (transformers would fill gaps at random).
    """

    def __init__(self, encoder: TextEncoder, tokenizer: Any, device: torch.device | str, dtype: torch.dtype) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.dtype = dtype
        self._module: Any = None

    def __enter__(self) -> "LoadedEncoder":
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

        classes = {"clip": CLIPTextModel, "clip-projection": CLIPTextModelWithProjection, "t5": T5EncoderModel}
        try:
            module, info = classes[self.encoder.kind].from_pretrained(
                str(self.encoder.folder),
                torch_dtype=self.dtype,
                device_map={"": self.device},  # read straight to its device: main memory need not hold it too
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(f"the text encoder in {self.encoder.folder} could not be loaded: {error}") from error
        absent = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
        if absent:
            raise UserError(
                f"the weights in {self.encoder.folder} lack {len(absent)} tensors of a "
                f"{type(module).__name__}, the first being {absent[0]}"
            )
        self._module = module.eval().requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        module, self._module = weakref.ref(self._module), None
        if module() is not None:  # a reference cycle holds it; a collection takes a second, so it is not always run
            gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token embeddings (n, tokens, width) and pooled vectors (n, pooled) or None: on the CPU, in `dtype`.

        Raises:
            UserError: a value is not finite (fp16 overflows).
        """
        inputs = self.tokenizer(
            list(texts), padding="max_length", max_length=self.encoder.tokens, truncation=True, return_tensors="pt"
        )
        ids = inputs.input_ids.to(self.device)
        pooled = None
        if self.encoder.kind == "clip-projection":
            output = self._module(ids, output_hidden_states=True)
            embeds, pooled = output.hidden_states[-2], output.text_embeds
        elif self.encoder.kind == "clip":
            mask = inputs.attention_mask.to(self.device) if self.encoder.uses_mask else None
            embeds = self._module(ids, attention_mask=mask)[0]
        else:
            embeds = self._module(ids)[0]
        embeds = embeds.to("cpu", self.dtype)
        pooled = None if pooled is None else pooled.to("cpu", self.dtype)
        if not embeds.isfinite().all() or (pooled is not None and not pooled.isfinite().all()):
            raise UserError(f"{self.encoder.folder.name} gives values that are not finite in {self.dtype}; use bf16")
        return embeds, pooled
