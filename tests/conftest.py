"""Fixtures shared by all tests: offline, seeded, and built from real library classes in tiny configurations."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real test sets and weights beside the repository; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared/data beside the repository: real test sets and weights are not redistributable")
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The distribution's Chromium, driven by playwright. Skips where one of them is not installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser is installed: `apt-get install chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Warm:
    """Runs commands in processes of their own, forked from one that has imported torch and what commands need of it.

    A fresh interpreter would spend most of its time on imports. The processes are those of `multiprocessing`'s fork
    server, which has computed nothing; `atexit` does not run in them.
    """

    IMPORTED = (
        "torch", "accelerate", "bitsandbytes", "diffusers", "peft", "transformers", "datasets", "pyiqa", "pandas",
        "matplotlib.pyplot", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.transformers.transformer_sd3", "tsd.cli", "tsd.data.prepare", "tsd.restore.restorer",
        "tsd.train.student", "bench.cli", "bench.run.pipeline", "bench.run.score", "bench.report.figures",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the server reads it with torch, before any command
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(list(self.IMPORTED))

    def start(
        self, *argv: object, cwd: Path, env: Mapping[str, str] | None = None, before: str = ""
    ) -> tuple[BaseProcess, list[Path]]:
        """Starts `tsd …`, `bench …`, `-c CODE` or `FILE.py …`; returns the process and the files of its output."""
        self.count += 1
        output = [self.folder / f"{self.count}.{stream}" for stream in ("out", "err")]
        request = {
            "argv": [str(word) for word in argv], "cwd": str(cwd), "output": [str(path) for path in output],
            "environment": dict(os.environ if env is None else env), "before": before,
        }  # fmt: skip
        program = str(Path(__file__).with_name("warm_process.py"))
        process = self.context.Process(target=runpy.run_path, args=(program, {"REQUEST": request}, "warm"))
        process.start()
        return process, output

    def run(self, *argv: object, cwd: Path, timeout: float = 900, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, as `subprocess.run` with captured text; what overruns the time is killed."""
        process, output = self.start(*argv, cwd=cwd, **options)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        printed = [path.read_text(errors="replace") for path in output]
        return subprocess.CompletedProcess(argv, process.exitcode or 0, *printed)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Warm:
    """See `Warm`. Where a test is about what is imported, or about the script itself, it starts an interpreter."""
    if sys.platform == "win32":
        pytest.skip("fork")
    return Warm(tmp_path_factory.mktemp("warm"))


def build_tiny_sd3(folder: Path, *, vae_channels: tuple[int, ...] = (8, 8, 8, 8), shift: float = 3.0) -> Path:
    """A random SD3-family model in diffusers layout: the real classes, a few thousand parameters.

    Like SD3-medium it has 8 pixels per latent, patch 2, a shift factor that must be ignored, and shift 3.0.
    """
    torch.manual_seed(1234)
    SD3Transformer2DModel(
        sample_size=64,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=64,
    ).save_pretrained(folder / "transformer")
    save_tiny_vae(folder, vae_channels, quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    for name in ("default", "null"):
        prompt = folder / "prompts" / name
        prompt.mkdir(parents=True)
        save_file({"prompt_embeds": torch.randn(1, 5, 12)}, prompt / "prompt_embeds.safetensors")
        save_file({"pool_embeds": torch.randn(1, 10)}, prompt / "pool_embeds.safetensors")
    return folder


def save_tiny_vae(folder: Path, channels: tuple[int, ...], *, quant_conv: bool, **factors: float) -> None:
    blocks = len(channels)
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
        **factors,
    ).save_pretrained(folder / "vae")


def build_tiny_sd2(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """A random SD2-family model in diffusers layout: the real classes, a few thousand parameters.

    Like SD2-base it has four levels in VAE and UNet, linear projections around attention, head counts by level, and
    PNDM's scheduler configuration with the scaled linear betas.
    """
    torch.manual_seed(4321)
    UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=12,
        norm_num_groups=4,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    save_tiny_vae(folder, (8, 8, 8, 8), quant_conv=True, scaling_factor=0.18215)
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    for name in ("default", "null"):
        prompt = folder / "prompts" / name
        prompt.mkdir(parents=True)
        save_file({"prompt_embeds": torch.randn(1, 5, 12)}, prompt / "prompt_embeds.safetensors")
    return folder


def save_random_student(model: Path, folder: Path) -> Path:
    """A random rank-4 student of `model` in the released layout, large enough to change the result."""
    from tsd.model.backbone import load_backbone
    from tsd.model.lora import STUDENT, adapter_parameters, attach, denoiser_targets, save_student, vae_targets

    backbone = load_backbone(model)
    attach(backbone.denoiser, STUDENT, denoiser_targets(backbone.denoiser, backbone.family.student_targets), 4, seed=1)
    attach(backbone.vae, STUDENT, vae_targets(backbone.vae), 4, seed=2)
    torch.manual_seed(5)
    for module in (backbone.denoiser, backbone.vae):
        for parameter in adapter_parameters(module, STUDENT).values():
            parameter.data.normal_(std=0.1)
    save_student(backbone, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd3`. Session-wide: treat as read-only."""
    return build_tiny_sd3(tmp_path_factory.mktemp("tiny") / "sd3")


@pytest.fixture(scope="session")
def tiny_sd2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd2`; epsilon prediction. Session-wide: treat as read-only."""
    return build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2")


@pytest.fixture(scope="session")
def tiny_sd2_v_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd2`; v prediction. Session-wide: treat as read-only."""
    return build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_lora_dir(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student for `tiny_sd3_dir`, see `save_random_student`."""
    return save_random_student(tiny_sd3_dir, tmp_path_factory.mktemp("tiny") / "lora")


@pytest.fixture(scope="session")
def tiny_sd2_lora_dir(tiny_sd2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student for `tiny_sd2_dir`, see `save_random_student`."""
    return save_random_student(tiny_sd2_dir, tmp_path_factory.mktemp("tiny") / "lora-sd2")


def build_clip_tokenizer(folder: Path, *, pad: str, tokens: int = 77) -> int:
    """A CLIP tokenizer in the hub's files: every byte, a few merges, special tokens; returns its vocabulary's size."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("t", "h"), ("th", "e</w>"), ("i", "n"), ("in", "g</w>"), ("s", "h"), ("o", "n</w>"), ("e", "r</w>")]
    symbols = sorted(ByteLevel.alphabet())  # "!" comes first: padding with it is padding with 0, as in OpenCLIP
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "pad_token": pad, "model_max_length": tokens, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocabulary)


def build_t5_tokenizer(folder: Path) -> int:
    """A T5 tokenizer of single letters and a few pieces, in the `tokenizers` library's file; its vocabulary's size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-", "▁the", "ing", "tion"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512).save_pretrained(folder)
    return len(vocabulary)


def _clip_config(vocabulary: int, width: int, projection: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=projection,
        max_position_embeddings=77,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=1,
    )


def add_sd3_text(folder: Path) -> Path:
    """Three random text encoders and their tokenizers in SD3's folders, fitting `build_tiny_sd3`: 4 + 6 wide of 12."""
    torch.manual_seed(77)
    for name, width, pad in (("", 4, "<|endoftext|>"), ("_2", 6, "!")):
        vocabulary = build_clip_tokenizer(folder / f"tokenizer{name}", pad=pad)
        encoder = CLIPTextModelWithProjection(_clip_config(vocabulary, width, width, layers=3))
        encoder.save_pretrained(folder / f"text_encoder{name}")
    t5 = T5Config(
        vocab_size=build_t5_tokenizer(folder / "tokenizer_3"),
        d_model=12,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_3")
    return folder


def add_sd2_text(folder: Path, width: int = 12) -> Path:
    """A random OpenCLIP-like text encoder and its tokenizer in SD2's folders, fitting `build_tiny_sd2`."""
    torch.manual_seed(78)
    vocabulary = build_clip_tokenizer(folder / "tokenizer", pad="!")
    CLIPTextModel(_clip_config(vocabulary, width, 4, layers=3)).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def tiny_sd3_text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`build_tiny_sd3` with its three text encoders. Session-wide: treat as read-only."""
    return add_sd3_text(build_tiny_sd3(tmp_path_factory.mktemp("tiny") / "sd3-text"))


@pytest.fixture(scope="session")
def tiny_sd2_text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`build_tiny_sd2` with its text encoder. Session-wide: treat as read-only."""
    return add_sd2_text(build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2-text"))


@pytest.fixture(scope="session")
def mini_sd2_text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained mini SD2 model with a random text encoder of its width. Session-wide: treat as read-only."""
    from tsd.files import mini_model_dir

    folder = tmp_path_factory.mktemp("mini") / "sd2-text"
    shutil.copytree(mini_model_dir("mini-sd2"), folder)
    return add_sd2_text(folder, width=64)


CAPTION_WORDS = "[PAD] [CLS] [SEP] [UNK] a photo of the sea cat at night two dogs"


def build_word_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """One token per word: those a caption may hold and those of the question to chat models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tsd.data.captions import INSTRUCTION

    words = dict.fromkeys([*CAPTION_WORDS.split(), *extra, *INSTRUCTION.replace(".", " .").split()])
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", additional_special_tokens=list(extra), **special
    )


def build_tiny_blip(folder: Path) -> Path:
    """A random BLIP in transformers' layout: the real classes, a few thousand parameters."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(3)
    words = build_word_tokenizer()
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8, "max_position_embeddings": 128}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "initializer_range": 1.0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 8, "initializer_range": 1.0}
    network = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    network.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    return folder


@pytest.fixture
def word_tokenizer() -> Any:
    """`build_word_tokenizer`, for tests that build an image-to-text model."""
    return build_word_tokenizer


@pytest.fixture(scope="session")
def tiny_blip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_blip`. Session-wide: treat as read-only."""
    return build_tiny_blip(tmp_path_factory.mktemp("tiny") / "blip")
