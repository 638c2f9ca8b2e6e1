"""Texts to prompt embeddings: each encoder is loaded, run over all texts and freed before the next one is loaded.

SD3 (L, D, P) = (77 + 256, 4096, 2048): rows 0–76 are CLIP-L's and OpenCLIP-bigG's last but one hidden states side by
side (768 + 1280) and zeros up to T5's width; the other rows are T5-XXL's last hidden state; the pooled vector is the
two CLIPs' projections side by side. SD2 (L, D) = (77, 1024): OpenCLIP's last hidden state; no pooled vector. The
numbers are those of diffusers' `encode_prompt` of the two pipelines, which hold all encoders at once.

Memory: the largest encoder (`tsd.prompts.text_encoders`) and one batch; for `encode_texts` also its result, which is
333 · 4096 values per text (2.7 MB in fp16), 259 GB for 95,000 texts. For so many use `encode_batches`, which yields one
batch after the other. It keeps the CLIPs' part of every text (0.3 MB in fp16, 30 GB for 95,000) until T5 has been
loaded: in memory up to 256 MiB per encoder, beyond that in unnamed temporary files.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.model.loading import resolve_text_model
from tsd.model.prompt import PromptEmbeds
from tsd.prompts.text_encoders import (
    T5_TOKENS,
    LoadedEncoder,
    TextEncoder,
    TextSide,
    load_tokenizer,
    text_side,
    warn_about_truncation,
)

SPOOL_BYTES = 256 * 2**20


def encode_texts(
    model: str | Path,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    t5: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> PromptEmbeds:
    """Encodes texts and holds all results in memory: for prompts and small data sets; see `encode_batches` for more.

    Returns:
        embeds (n, L, D) and pooled (n, P), or None where the family has none; on the CPU, in `dtype`.
    """
    embeds, pooled, start = None, None, 0
    for batch in encode_batches(
        model, texts, device=device, dtype=dtype, t5=t5, batch_size=batch_size, progress=progress
    ):
        if embeds is None:
            embeds = batch.embeds.new_empty(len(texts), *batch.embeds.shape[1:])
            pooled = None if batch.pooled is None else batch.pooled.new_empty(len(texts), *batch.pooled.shape[1:])
        stop = start + len(batch.embeds)
        embeds[start:stop] = batch.embeds
        if pooled is not None and batch.pooled is not None:
            pooled[start:stop] = batch.pooled
        start = stop
    assert embeds is not None  # there is at least one text
    return PromptEmbeds(embeds, pooled)


def encode_batches(
    model: str | Path,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    t5: bool = True,
    batch_size: int = 8,
    progress: bool = True,
    spool_dir: Path | None = None,
) -> Iterator[PromptEmbeds]:
    """The texts' embeddings in their order, at most `batch_size` at a time, in bounded memory.

    The call itself checks and warns; the first encoder is loaded when the first batch is requested. The last encoder
    stays loaded until the iterator is exhausted or closed.

    Args:
        model: a folder in diffusers layout with the text encoders and the denoiser's `config.json`, or a hub id.
        texts: encoded as they are; pass each distinct text once.
        device, dtype: where and in what precision the encoders run; results are in `dtype`.
        t5: False leaves T5 out (SD3): zeros in its rows, as in diffusers.
        batch_size: texts per forward pass.
        progress: show a bar per encoder on stderr.
        spool_dir: folder for temporary files (default: the system's).

    Yields:
        `PromptEmbeds` on the CPU: embeds (b, L, D), pooled (b, P) or None.

    Raises:
        UserError: see `text_side`; no texts; a text encoder that cannot be loaded or overflows.
    """
    if not texts:
        raise UserError("no texts to encode")
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}")
    side = text_side(resolve_text_model(model, t5=t5), t5=t5)
    tokenizers = [load_tokenizer(encoder) for encoder in side.encoders]
    for encoder, tokenizer in zip(side.encoders, tokenizers, strict=True):
        warn_about_truncation(encoder, tokenizer, texts)
    encoders = [LoadedEncoder(*pair, device, dtype) for pair in zip(side.encoders, tokenizers, strict=True)]
    return _encode(side, encoders, texts, batch_size, progress, spool_dir)


def _encode(
    side: TextSide,
    encoders: list[LoadedEncoder],
    texts: Sequence[str],
    batch_size: int,
    progress: bool,
    spool_dir: Path | None,
) -> Iterator[PromptEmbeds]:
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    with ExitStack() as stack:
        spools: list[_Spool] = []
        for loaded in encoders[:-1]:
            spool = _Spool(loaded.encoder, loaded.dtype, spool_dir)
            stack.callback(spool.close)
            with loaded as encode, _bar(loaded.encoder, len(texts), progress) as bar:
                for batch in batches:
                    spool.write(*encode(batch))
                    bar.update(len(batch))
            spool.rewind()
            spools.append(spool)
        with encoders[-1] as encode, _bar(encode.encoder, len(texts), progress) as bar:
            for batch in batches:
                yield _assemble(side, [*(spool.read(len(batch)) for spool in spools), encode(batch)])
                bar.update(len(batch))


def _assemble(side: TextSide, parts: list[tuple[Tensor, Tensor | None]]) -> PromptEmbeds:
    """Joins the encoders' results for the same texts in the form the denoiser reads."""
    if side.family == "sd2":
        return PromptEmbeds(parts[0][0], None)
    clip = torch.cat([parts[0][0], parts[1][0]], dim=-1)
    clip = pad(clip, (0, side.width - clip.shape[-1]))
    t5 = parts[2][0] if len(parts) > 2 else clip.new_zeros(len(clip), T5_TOKENS, side.width)
    pooled = torch.cat([vector for _, vector in parts if vector is not None], dim=-1)
    return PromptEmbeds(torch.cat([clip, t5], dim=-2), pooled)


class _Spool:
    """One encoder's results in the order of the texts: in memory while small, in an unnamed file beyond that."""

    def __init__(self, encoder: TextEncoder, dtype: torch.dtype, folder: Path | None) -> None:
        self._file: Any = SpooledTemporaryFile(max_size=SPOOL_BYTES, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._dtype = dtype
        self._shapes = [(encoder.tokens, encoder.width), *([(encoder.pooled,)] if encoder.pooled is not None else [])]
        self.close = self._file.close

    def write(self, embeds: Tensor, pooled: Tensor | None) -> None:
        for tensor in (embeds, pooled):
            if tensor is not None:
                self._file.write(_content(tensor))

    def rewind(self) -> None:
        self._file.seek(0)

    def read(self, count: int) -> tuple[Tensor, Tensor | None]:
        tensors = [self._next(count, *shape) for shape in self._shapes]
        return tensors[0], tensors[1] if len(tensors) > 1 else None

    def _next(self, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=self._dtype)
        data = self._file.read(tensor.nbytes)
        return torch.frombuffer(bytearray(data), dtype=self._dtype).view(shape)


def content_sha256(tensor: Tensor) -> str:
    """The sha256 of a tensor's values, their bytes in C order; it does not depend on the file format."""
    return hashlib.sha256(_content(tensor)).hexdigest()


def _content(tensor: Tensor) -> bytes:
    # The bits are viewed as uint8, since numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _bar(encoder: TextEncoder, count: int, progress: bool) -> Progress:
    return Progress(total=count, desc=encoder.folder.name, unit="text", disable=not progress)
