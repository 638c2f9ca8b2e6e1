"""The time of one restoration: the released form against ours, and what each measure of `FastPath` gains alone.

`nox -s bench_restore` runs it on a tiny model, `nox -s bench_restore -- --shape sd3-medium` at SD3-medium's shape with
random weights, 512 x 512 pixels, rank 64, bf16: time depends on shapes, not on values. The released form has its
adapters beside the weights, the default memory layout and nothing folded. All forms hold the same weights, are shown
to compute the same, and run in turns in one process, so that their ratios hold on a busy machine. CPU seconds are the
process's own on one thread; on CUDA it is wall time between two synchronisations.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tsd.config import PLAIN, FastPath
from tsd.fast.loading import rewrite
from tsd.fast.mean import encode_mean
from tsd.fast.packing import pack_linears
from tsd.fast.projections import use_fused_projections
from tsd.fast.upsampling import use_fast_upsampling
from tsd.fast.winograd import use_winograd
from tsd.memory.public_configs import PUBLIC_CONFIGS
from tsd.model.backbone import Backbone, build_backbone
from tsd.model.groupnorm import use_two_pass_group_norm
from tsd.model.loading import FAMILIES
from tsd.model.lora import STUDENT, adapter_parameters, attach, denoiser_targets, vae_targets
from tsd.model.prompt import PromptEmbeds

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16
SD3 = PUBLIC_CONFIGS["stabilityai/stable-diffusion-3-medium-diffusers"]
RELEASED, MERGED, OURS = "released form", "merged", "ours"
Step = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Configurations as changes to SD3-medium's; side in pixels, tokens, rank, timed rounds of each form."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    side: int
    tokens: int
    rank: int
    pairs: int


SHAPES = {
    "tiny": Shape(
        {"num_layers": 3, "num_attention_heads": 4, "caption_projection_dim": 256, "joint_attention_dim": 256,
         "pooled_projection_dim": 128},
        {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}, 128, 77, 16, 7,
    ),
    "sd3-medium": Shape({}, {}, 512, 333, 64, 3),
}  # fmt: skip


class Weights:
    """Random tensors cut from one pool, the same for every form of the model, scaled by fan-in."""

    def __init__(self) -> None:
        self.pool = torch.randn(2**25, generator=torch.Generator().manual_seed(0)).to(DTYPE)
        self.tensors: dict[str, Tensor] = {}

    def fill(self, module: Any, prefix: str) -> Any:
        """The module of `meta` with tensors in its places, shared among all forms."""
        for name, like in module.state_dict().items():
            if f"{prefix}.{name}" not in self.tensors:
                self.tensors[f"{prefix}.{name}"] = self.draw(like, name)
        state = {name: self.tensors[f"{prefix}.{name}"] for name in module.state_dict()}
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)

    def draw(self, like: Tensor, name: str) -> Tensor:
        if like.ndim == 1:
            ones = name.endswith("weight")  # of a norm
            return (torch.ones if ones else torch.zeros)(like.shape, dtype=DTYPE, device=DEVICE)
        start = len(self.tensors) * 7919 % 2**24
        values = self.pool[start:].repeat(math.ceil(like.numel() / (len(self.pool) - start)))[: like.numel()]
        return (values / math.sqrt(math.prod(like.shape[1:]))).view(like.shape).to(DEVICE)


@pytest.fixture(scope="module")
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen, pairs = SHAPES[request.config.getoption("--shape")], request.config.getoption("--pairs")
    return chosen if pairs is None else dataclasses.replace(chosen, pairs=pairs)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, list[float]]]:
    """Seconds by stage and form, collected for the table at the end."""
    return {}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def denoising(shape: Shape, short: bool) -> tuple[dict[str, Step], dict[str, int]]:
    """The denoiser's step by form, and the bytes of its weights; `short` leaves out the measures alone."""
    weights, family = Weights(), FAMILIES["sd3"]
    config = SD3["transformer"] | shape.transformer
    draw = torch.Generator().manual_seed(1)
    prompt = PromptEmbeds(
        torch.randn(1, shape.tokens, config["joint_attention_dim"], generator=draw),
        torch.randn(1, config["pooled_projection_dim"], generator=draw),
    ).to(DEVICE, DTYPE)
    z = torch.randn(1, 16, shape.side // 8, shape.side // 8, generator=draw).to(DEVICE, DTYPE)
    measures = {
        MERGED: PLAIN,
        "fold": dataclasses.replace(PLAIN, fold=True),
        "text": dataclasses.replace(PLAIN, fold=True, text=True),
        "qkv": dataclasses.replace(PLAIN, qkv=True),
        "pack": dataclasses.replace(PLAIN, pack=True),
        "attention": dataclasses.replace(PLAIN, fold=True, attention=True),
        OURS: FastPath(),
    }
    steps: dict[str, Step] = {}
    size: dict[str, int] = {}
    for form in (RELEASED, MERGED, OURS) if short else (RELEASED, *measures):
        configs = {"denoiser": config, "vae": SD3["vae"], "scheduler": SD3["scheduler"]}
        backbone = build_backbone(family, configs, {"default": prompt}, "random")
        weights.fill(backbone.denoiser, "denoiser")
        if form == RELEASED:
            adapt(backbone.denoiser, denoiser_targets(backbone.denoiser, family.student_targets), shape.rank)
        else:
            rewrite(backbone, measures[form])
        size[form] = sum(tensor.nbytes for tensor in backbone.denoiser.state_dict().values())
        if form != RELEASED and measures[form].pack:
            pack_linears(backbone.denoiser)
        steps[form] = lambda backbone=backbone: backbone.one_step(z)
    return steps, size


def adapt(module: Any, targets: list[str], rank: int) -> None:
    """An adapter beside the weights, with B = 0: it costs what any adapter costs and changes nothing."""
    attach(module, STUDENT, targets, rank, seed=1)
    for parameter in adapter_parameters(module, STUDENT).values():
        parameter.data = parameter.data.to(DEVICE, DTYPE)


@torch.no_grad()
def vae_forms(shape: Shape) -> dict[str, Backbone]:
    """The VAE by form."""
    weights, forms = Weights(), {}
    for form in (RELEASED, MERGED, "channels_last", "qkv", "upsample", "mean", "winograd", OURS):
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(SD3["vae"] | shape.vae)
        weights.fill(vae, "vae")
        if form == RELEASED:
            adapt(vae, vae_targets(vae), shape.rank)
        if form in ("channels_last", OURS):
            vae.to(memory_format=torch.channels_last)
        if form in ("qkv", OURS):
            use_fused_projections(vae)
        if form in ("upsample", OURS):
            use_fast_upsampling(vae)
        if form in ("winograd", OURS):
            use_winograd(vae)
        if form != RELEASED:
            use_two_pass_group_norm(vae)
        forms[form] = Backbone(vae, None, FAMILIES["sd3"].process(SD3["scheduler"]), {}, FAMILIES["sd3"], "random")
    return forms


def encoding(shape: Shape) -> dict[str, Step]:
    x = (torch.rand(1, 3, shape.side, shape.side, generator=torch.Generator().manual_seed(2)) * 2 - 1).to(DEVICE, DTYPE)
    steps: dict[str, Step] = {}
    for form, backbone in vae_forms(shape).items():
        given = x.contiguous(memory_format=torch.channels_last) if form in ("channels_last", OURS) else x
        if form in ("mean", OURS):
            steps[form] = lambda backbone=backbone, given=given: encode_mean(backbone, given)
        elif form != "upsample":
            steps[form] = lambda backbone=backbone, given=given: backbone.encode(given, posterior="mode")
    return steps


def decoding(shape: Shape) -> dict[str, Step]:
    side = shape.side // 8
    z = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(3)).to(DEVICE, DTYPE)
    steps: dict[str, Step] = {}
    for form, backbone in vae_forms(shape).items():
        given = z.contiguous(memory_format=torch.channels_last) if form in ("channels_last", OURS) else z
        if form != "mean":
            steps[form] = lambda backbone=backbone, given=given: backbone.decode(given)
    return steps


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> Callable[[dict[str, Step]], dict[str, Step]]:
    """The forms that are measured, of all."""
    short = request.config.getoption("--short")
    return lambda steps: {form: step for form, step in steps.items() if not short or form in (RELEASED, OURS)}


def test_denoise(
    benchmark: Any, shape: Shape, results: Any, chosen: Any, capsys: Any, request: pytest.FixtureRequest
) -> None:
    steps, size = denoising(shape, request.config.getoption("--short"))
    results["denoise"] = in_turns(benchmark, chosen(steps), shape.pairs)
    saved = 1 - size[OURS] / size[MERGED]
    benchmark.extra_info["denoiser_bytes"] = size
    with capsys.disabled():
        print(
            f"\ndenoiser: {size[MERGED] / 1e9:.3f} GB of weights merged, {size[OURS] / 1e9:.3f} ours, {saved:.1%} less"
        )


def test_encode(benchmark: Any, shape: Shape, results: Any, chosen: Any) -> None:
    results["encode"] = in_turns(benchmark, chosen(encoding(shape)), shape.pairs)


def test_decode(benchmark: Any, shape: Shape, results: Any, chosen: Any) -> None:
    results["decode"] = in_turns(benchmark, chosen(decoding(shape)), shape.pairs)


def test_the_whole(benchmark: Any, results: Any, capsys: Any, request: pytest.FixtureRequest) -> None:
    """Adds the stages round by round. A measure that does not touch a stage has the merged form's time there."""
    if set(results) != {"encode", "denoise", "decode"}:
        pytest.skip("a stage was not measured")
    stages = ("encode", "denoise", "decode")
    forms = list(dict.fromkeys(form for stage in stages for form in results[stage]))
    forms = [*(form for form in forms if form != OURS), OURS]
    rows = []
    for form in forms:
        taken = [results[stage][form if form in results[stage] else MERGED] for stage in stages]
        total = [sum(parts) for parts in zip(*taken, strict=True)]
        against = {
            other: statistics.median(
                sum(parts) / mine
                for mine, *parts in zip(total, *(results[stage][other] for stage in stages), strict=True)
            )
            for other in (RELEASED, MERGED)
            if other in forms
        }
        rows.append(
            [form, *(statistics.median(values) for values in taken), statistics.median(total), *against.values()]
        )
    benchmark.extra_info["rows"] = rows
    benchmark.pedantic(lambda: None, rounds=1)
    with capsys.disabled():
        unit = "s" if CUDA else "CPU s, one thread"
        print(f"\n{request.config.getoption('--shape')}, bf16, {unit}")
        columns = ["form", *stages, "sum", *(f"{other} / this" for other in (RELEASED, MERGED) if other in forms)]
        print(f"| {' | '.join(columns)} |\n|:--|{'--:|' * (len(columns) - 1)}")
        for form, *cells in rows:
            numbers = [f"{cell:.3f}" for cell in cells[:4]] + [f"{ratio:.2f}x" for ratio in cells[4:]]
            print(f"| {form} | {' | '.join(numbers)} |")


def in_turns(benchmark: Any, steps: dict[str, Step], pairs: int) -> dict[str, list[float]]:
    """Seconds of every form, run in turns whose order rotates; first all forms are shown to compute the same."""
    with torch.inference_mode():
        expected = steps[RELEASED]().float()
        for form, step in list(steps.items())[1:]:  # also warms them up
            difference = (step().float() - expected).square().mean().sqrt() / expected.std()
            assert difference < 0.05, f"{form} differs by {difference:.3f} of the result's deviation"
    taken: dict[str, list[float]] = {form: [] for form in steps}
    turn = 0

    def rotate() -> None:
        nonlocal turn
        names = list(steps)
        shift = turn % len(names)
        turn += 1
        for form in names[shift:] + names[:shift]:
            taken[form].append(seconds(steps[form]))

    benchmark.pedantic(rotate, rounds=pairs)
    benchmark.extra_info["seconds"] = taken
    return taken


@torch.inference_mode()
def seconds(step: Step) -> float:
    if CUDA:
        torch.cuda.synchronize()
    clock = time.perf_counter if CUDA else time.process_time
    start = clock()
    step()
    if CUDA:
        torch.cuda.synchronize()
    return clock() - start
