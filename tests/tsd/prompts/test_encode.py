"""Texts to embeddings: the same numbers as diffusers, one encoder in memory at a time, and every clear error."""

import gc
import gzip
import json
import shutil
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tsd.config import DEFAULT_PROMPT
from tsd.errors import UserError
from tsd.model.loading import resolve_model, resolve_text_model
from tsd.model.prompt import PromptEmbeds
from tsd.prompts import encode, text_encoders
from tsd.prompts.encode import content_sha256, encode_batches, encode_texts
from tsd.prompts.text_encoders import LoadedEncoder, load_tokenizer, text_side

TEXTS = ["the shining iron", "", "A photo, 4k", "the thing on the other shore", "x"]
LONG = "the ring " * 25 + "on the other shore " + "the ring " * 60  # three CLIP tokens per "the ring"


def sd3_pipeline(folder: Path, *, t5: bool = True) -> Any:
    """diffusers' own pipeline with the text encoders alone; with the denoiser only if T5's width must come from it."""
    from diffusers import SD3Transformer2DModel

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer"),
        scheduler=None,
        vae=None,
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(folder / "text_encoder_3") if t5 else None,
        tokenizer_3=T5TokenizerFast.from_pretrained(folder / "tokenizer_3") if t5 else None,
    )


@torch.no_grad()
def sd3_reference(folder: Path, texts: list[str], *, t5: bool = True) -> PromptEmbeds:
    pipeline = sd3_pipeline(folder, t5=t5)
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompt=texts, prompt_2=None, prompt_3=None, device="cpu", do_classifier_free_guidance=False
    )
    return PromptEmbeds(embeds, pooled)


def quiet(model: Path, texts: list[str], **options: Any) -> PromptEmbeds:
    return encode_texts(model, texts, progress=False, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_sd3_gives_what_diffusers_gives(tiny_sd3_text_dir: Path, batch_size: int) -> None:
    expected = sd3_reference(tiny_sd3_text_dir, TEXTS)
    found = quiet(tiny_sd3_text_dir, TEXTS, batch_size=batch_size)
    assert found.embeds.shape == (5, 77 + 256, 12)
    assert found.pooled is not None
    assert found.pooled.shape == (5, 10)
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-6)
    assert not torch.equal(found.embeds[0], found.embeds[3])
    assert found.embeds[:, :77, 10:].count_nonzero() == 0  # 4 + 6 of 12: the rest is zeros


def test_sd3_without_t5_gives_diffusers_zeros(tiny_sd3_text_dir: Path, tmp_path: Path) -> None:
    expected = sd3_reference(tiny_sd3_text_dir, TEXTS, t5=False)
    for name in ("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(tiny_sd3_text_dir / name, tmp_path / name)
    found = quiet(tmp_path, TEXTS, t5=False)
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-6)
    assert found.embeds[:, 77:].shape == (5, 256, 12)
    assert found.embeds[:, 77:].count_nonzero() == 0


@pytest.mark.parametrize("mask", [False, True])
def test_sd2_gives_what_diffusers_gives(tiny_sd2_text_dir: Path, tmp_path: Path, mask: bool) -> None:
    folder = shutil.copytree(tiny_sd2_text_dir, tmp_path / "sd2")
    edit(folder / "text_encoder" / "config.json", use_attention_mask=mask)
    pipeline: Any = StableDiffusionPipeline(
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(TEXTS, "cpu", 1, False)
    found = quiet(folder, TEXTS)
    assert found.pooled is None
    torch.testing.assert_close(found.embeds, expected, rtol=0, atol=1e-6)


def test_long_texts_are_cut_as_in_diffusers_and_named(tiny_sd3_text_dir: Path) -> None:
    expected = sd3_reference(tiny_sd3_text_dir, ["x", LONG])
    with pytest.warns(UserWarning, match="1 of 2 texts are longer") as caught:
        found = quiet(tiny_sd3_text_dir, ["x", LONG])
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-6)
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" reads")[0] for message in messages] == [
        f"1 of 2 texts are longer than the {tokens} tokens {name}"
        for tokens, name in ((77, "text_encoder"), (77, "text_encoder_2"), (256, "text_encoder_3"))
    ]
    assert "'the ring the ring the ring" in messages[0]
    assert "… loses 'on the other shore the ring" in messages[0]
    assert len(messages[0]) < 400


def test_short_texts_warn_of_nothing(tiny_sd3_text_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quiet(tiny_sd3_text_dir, TEXTS)


def test_one_encoder_is_in_memory_at_a_time(tiny_sd3_text_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    born: list[weakref.ref[torch.nn.Module]] = []
    alive_at_birth: list[int] = []
    enter = LoadedEncoder.__enter__

    def counting(self: LoadedEncoder) -> LoadedEncoder:
        alive_at_birth.append(sum(reference() is not None for reference in born))
        entered = enter(self)
        born.append(weakref.ref(self._module))
        return entered

    monkeypatch.setattr(LoadedEncoder, "__enter__", counting)
    collecting = gc.isenabled()
    gc.disable()  # only what the code itself frees shall count
    try:
        quiet(tiny_sd3_text_dir, TEXTS)
    finally:
        if collecting:
            gc.enable()
    assert alive_at_birth == [0, 0, 0]
    assert [reference() for reference in born] == [None, None, None]


def test_batches_come_in_order_and_the_encoder_goes_when_the_iterator_is_closed(tiny_sd3_text_dir: Path) -> None:
    whole = quiet(tiny_sd3_text_dir, TEXTS)
    batches = encode_batches(tiny_sd3_text_dir, TEXTS, batch_size=2, progress=False)
    first = next(batches)
    torch.testing.assert_close(first.embeds, whole.embeds[:2], rtol=0, atol=1e-6)
    modules = [module for module in gc.get_objects() if isinstance(module, T5EncoderModel)]
    assert modules
    references = [weakref.ref(module) for module in modules]
    del modules
    batches.close()  # type: ignore[attr-defined]
    assert [reference() for reference in references] == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_on_disk_are_those_in_memory(
    tiny_sd3_text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    in_memory = quiet(tiny_sd3_text_dir, TEXTS, dtype=dtype, batch_size=2)
    monkeypatch.setattr(encode, "SPOOL_BYTES", 1)
    batches = encode_batches(tiny_sd3_text_dir, TEXTS, dtype=dtype, batch_size=2, progress=False, spool_dir=tmp_path)
    on_disk = PromptEmbeds.cat(*batches)
    assert in_memory.embeds.dtype == on_disk.embeds.dtype == dtype
    assert torch.equal(in_memory.embeds, on_disk.embeds)
    assert torch.equal(in_memory.pooled, on_disk.pooled)
    assert list(tmp_path.iterdir()) == []


def test_t5_keeps_the_layers_that_overflow_in_fp32(tiny_sd3_text_dir: Path) -> None:
    encoder = text_side(tiny_sd3_text_dir).encoders[2]
    with LoadedEncoder(encoder, load_tokenizer(encoder), "cpu", torch.float16) as loaded:
        dtypes = {name: parameter.dtype for name, parameter in loaded._module.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        f"encoder.block.{block}.layer.1.DenseReluDense.wo.weight" for block in (0, 1)
    }


def test_the_memory_table_is_counted_on_the_real_sizes() -> None:
    """Configurations of the published encoders, on the meta device: no memory, exact counts."""
    clip = {"CLIP-L": (768, 12, 12), "OpenCLIP-bigG": (1280, 32, 20), "OpenCLIP-H": (1024, 23, 16)}
    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {}
        for name, (width, layers, heads) in clip.items():
            config = CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                projection_dim=width,
            )
            models[name] = (CLIPTextModel if name == "OpenCLIP-H" else CLIPTextModelWithProjection)(config)
        models["T5-XXL"] = T5EncoderModel(
            T5Config(
                vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
            )
        )  # fmt: skip
    table = text_encoders.__doc__ or ""
    for name, model in models.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        in_fp32 = sum(parameter.numel() for key, parameter in model.named_parameters() if ".wo." in key)
        bf16, fp16, fp32 = 2 * count, 2 * count + 2 * in_fp32, 4 * count
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        assert cells == [f"{count / 1e9:.2f} B", *(f"{size / 1e9:.2f} GB" for size in (bf16, fp16, fp32))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_and_is_left_empty(tiny_sd3_text_dir: Path) -> None:
    expected = quiet(tiny_sd3_text_dir, TEXTS)
    quiet(tiny_sd3_text_dir, TEXTS, device="cuda")  # cuBLAS keeps a workspace of its own
    before = torch.cuda.memory_allocated()
    found = quiet(tiny_sd3_text_dir, TEXTS, device="cuda")
    assert torch.cuda.memory_allocated() == before
    assert found.embeds.device.type == "cpu"
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=1e-3, atol=1e-4)


def test_results_can_take_part_in_training(tiny_sd3_text_dir: Path) -> None:
    found = quiet(tiny_sd3_text_dir, ["x"]).embeds
    weight = torch.ones(12, requires_grad=True)
    (found * weight).sum().backward()  # inference-mode tensors would refuse
    assert weight.grad is not None


def test_content_hash_is_of_the_values() -> None:
    import hashlib

    values = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    expected = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    assert content_sha256(values) == expected
    assert content_sha256(values.t().contiguous().t()) == expected  # another layout in memory
    assert content_sha256(values.t()) != expected
    assert len(content_sha256(values.bfloat16())) == 64


def test_the_released_prompt_has_openai_clips_tokens(tmp_path: Path) -> None:
    """With CLIP's real vocabulary, against OpenAI's own tokenizer: 55 of 77 tokens, so nothing is truncated."""
    clip = pytest.importorskip("clip")
    from clip.simple_tokenizer import SimpleTokenizer, default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines[1:48895]) + "\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(SimpleTokenizer().encoder), encoding="utf-8")
    settings = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = CLIPTokenizer.from_pretrained(tmp_path)([DEFAULT_PROMPT, ""], padding="max_length", max_length=77)
    expected = clip.tokenize([DEFAULT_PROMPT, ""])
    assert found["input_ids"] == expected.tolist()
    assert (expected != 0).sum(dim=1).tolist() == [55, 2]


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


@pytest.fixture
def sd3(tiny_sd3_text_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(tiny_sd3_text_dir, tmp_path / "sd3")


def test_errors_before_anything_is_loaded(sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(LoadedEncoder, "__enter__", refuse)

    def message(t5: bool = True) -> str:
        with pytest.raises(UserError) as caught:
            quiet(sd3, ["x"], t5=t5)
        return str(caught.value)

    with pytest.raises(UserError, match="no texts"):
        quiet(sd3, [])
    with pytest.raises(UserError, match="batch size must be at least 1, got 0"):
        quiet(sd3, ["x"], batch_size=0)

    edit(sd3 / "transformer" / "config.json", joint_attention_dim=13)
    assert "text_encoder_3 gives embeddings 12 wide but the denoiser reads 13" in message()
    edit(sd3 / "transformer" / "config.json", joint_attention_dim=8)
    assert "4 + 6 wide, more than the 8" in message(t5=False)
    edit(sd3 / "transformer" / "config.json", joint_attention_dim=12, pooled_projection_dim=11)
    assert "are 10 wide but the denoiser reads 11" in message()
    edit(sd3 / "transformer" / "config.json", pooled_projection_dim=10)

    edit(sd3 / "tokenizer_2" / "tokenizer_config.json", model_max_length=64)
    assert "tokenizer pads to 77 tokens but tokenizer_2 to 64" in message()
    edit(sd3 / "tokenizer_2" / "tokenizer_config.json", model_max_length=128)
    assert "pads to 128 tokens but" in message()
    edit(sd3 / "tokenizer_2" / "tokenizer_config.json", model_max_length=77)

    edit(sd3 / "text_encoder" / "config.json", model_type="t5")
    assert "is a 't5' model; expected 'clip_text_model'" in message()
    (sd3 / "text_encoder" / "config.json").write_text("{")
    assert "is not valid JSON" in message()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        (
            "text_encoder_3",
            "has no text_encoder_3/. Fetch: hf download stabilityai/stable-diffusion-3-medium-diffusers",
        ),
        ("tokenizer", "has no tokenizer/. Fetch: hf download"),
        ("text_encoder*", "has no text_encoder/ and no text_encoder_2/ and no text_encoder_3/. Fetch: hf download"),
        ("transformer", "is a model of neither family"),
        ("text_encoder/config.json", "text_encoder has no config.json"),
        ("text_encoder_2/model.safetensors", "text_encoder_2 has no model.safetensors (found: config.json)"),
        ("tokenizer/merges.txt", "tokenizer has neither tokenizer.json nor vocab.json and merges.txt"),
        ("tokenizer_3/tokenizer.json", "tokenizer_3 has neither tokenizer.json nor spiece.model"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_2 has no tokenizer_config.json"),
    ],
)
def test_what_is_missing_is_named(sd3: Path, removed: str, expected: str) -> None:
    for path in sd3.glob(removed):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with pytest.raises(UserError) as caught:
        quiet(sd3, ["x"])
    assert expected in str(caught.value)
    assert ("--no-t5" in str(caught.value)) == (removed == "text_encoder_3")


def test_shards_are_read_and_a_missing_one_is_named(sd3: Path) -> None:
    expected = quiet(sd3, ["the ring"])
    single = sd3 / "text_encoder_3" / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, single.with_name(shard), metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    single.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    found = quiet(sd3, ["the ring"])
    assert torch.equal(found.embeds, expected.embeds)
    assert len(text_side(sd3).encoders[2].files()) == 1 + 3 + 2
    single.with_name("model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        quiet(sd3, ["x"])


def test_incomplete_weights_are_no_random_encoder(sd3: Path) -> None:
    path = sd3 / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    dropped = tensors.pop("text_projection.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of a CLIPTextModelWithProjection.*text_projection.weight"):
        quiet(sd3, ["x"])
    save_file({**tensors, "text_projection.weight": dropped[:2]}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors|could not be loaded"):
        quiet(sd3, ["x"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="could not be loaded"):
        quiet(sd3, ["x"])


def test_values_that_overflow_are_an_error(sd3: Path) -> None:
    path = sd3 / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["text_projection.weight"] *= 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"text_encoder gives values that are not finite in torch.float16"):
        quiet(sd3, ["x"], dtype=torch.float16)


def test_hub_ids_are_looked_up_in_the_cache(
    tiny_sd3_text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--owner--model", "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_sd3_text_dir / "transformer", snapshot / "transformer")
    with pytest.raises(
        UserError, match=r"owner/model is not in the local hub cache, or not whole.*'text_encoder_3/\*'"
    ):
        resolve_text_model("owner/model")
    for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
        shutil.copytree(tiny_sd3_text_dir / name, snapshot / name)
    assert resolve_text_model("owner/model", t5=False) == snapshot
    with pytest.raises(UserError, match="is not in the local hub cache"):
        resolve_text_model("owner/model")
    with pytest.raises(UserError, match="is not in the local hub cache, or not whole"):
        resolve_model("owner/model")  # the text side alone restores nothing
    for name in ("vae", "scheduler"):
        shutil.copytree(tiny_sd3_text_dir / name, snapshot / name)
    assert resolve_model("owner/model") == snapshot
    with pytest.raises(UserError, match="no hub id of the form owner/name"):
        resolve_text_model(tmp_path / "nowhere")
