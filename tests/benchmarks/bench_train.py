"""One training iteration (both turns, both optimiser steps): ours against the release's layout, on the same weights.

`nox -s bench_train` runs it. Per setting the two layouts are built on one random model, shown to compute the same
gradients, metered for peak memory one after the other, and timed in alternation (ours, release, release, ours, …),
because a busy machine drifts. The model is a scaled SD3 denoiser with a small VAE: the denoiser dominates the step as
it does in SD3-medium. CUDA is used where there is one, and then the shapes are SD3-medium's at a third of its depth.

The share of memory saved is that of the second copy of the weights, so it falls as activations grow: with four times
the latents and eight layers (74 million parameters, bf16) it was 33 % at batch 1 and 30 % at batch 2.
"""

import dataclasses
import gc
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tsd.algorithm.objective import (
    critic_loss,
    in_residual_form,
    reconstruction_loss,
    student_loss,
    surrogate_loss,
    time_weight,
)
from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, ground_truth_latents, noise_for, student_turn, times_for
from tsd.config import Phase
from tsd.memory.live_bytes import LiveBytes
from tsd.model.backbone import Backbone
from tsd.model.lora import Role, adapter_parameters, attach, denoiser_targets, vae_targets
from tsd.model.process import FlowMatching
from tsd.model.prompt import PromptEmbeds
from tsd.model.sd3 import SD3
from tsd.presets import PAPER
from tsd.seeds import generator_for, seed_for

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MIB = 2**20
DASM = (1.0, 0.3, 0.3, 0.3)  # four points, as the release evaluates
CONFIG = dataclasses.replace(PAPER, lr=1e-6)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: `layers` x `heads` (of 64 channels) blocks, `latent`² latents, `tokens` of text."""

    layers: int
    heads: int
    latent: int
    tokens: int
    width: int  # of a text token
    batch: int
    rank: int
    dtype: torch.dtype
    point_weights: tuple[float, ...]
    pairs: int  # timed iterations of each layout

    @property
    def phase(self) -> Phase:
        return Phase(steps=1, latent_mse=1.0, gamma2=1.0, point_weights=self.point_weights)


if CUDA:
    BASE = Setting(8, 24, 64, 333, 4096, 1, 64, torch.bfloat16, DASM, 12)
else:
    BASE = Setting(6, 8, 16, 77, 1024, 1, 32, torch.bfloat16, DASM, 5)
SETTINGS = {
    "bf16, 4 points, batch 1": BASE,
    "bf16, 1 point, batch 1": dataclasses.replace(BASE, point_weights=(1.0,)),
    "fp32, 4 points, batch 1": dataclasses.replace(BASE, dtype=torch.float32),
}


def build_base(setting: Setting) -> Backbone:
    """A backbone with random weights, the same at every call, its base in the setting's precision."""
    torch.manual_seed(0)
    denoiser = SD3Transformer2DModel(
        sample_size=setting.latent,
        patch_size=2,
        in_channels=16,
        num_layers=setting.layers,
        attention_head_dim=64,
        num_attention_heads=setting.heads,
        joint_attention_dim=setting.width,
        caption_projection_dim=64 * setting.heads,
        pooled_projection_dim=setting.width // 2,
        out_channels=16,
        pos_embed_max_size=96,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
    )
    prompts = {
        name: PromptEmbeds(torch.randn(1, setting.tokens, setting.width), torch.randn(1, setting.width // 2))
        for name in ("default", "null")
    }
    for module in (denoiser, vae):
        module.eval().requires_grad_(False)
    backbone = Backbone(vae, denoiser, FlowMatching(shift=3.0), prompts, SD3(), "random")
    return backbone.to(DEVICE, setting.dtype)


def adapt(module: Any, active: Role, targets: list[str], rank: int) -> list[nn.Parameter]:
    """An adapter whose B is random too, so that every gradient is alive."""
    attach(module, active, targets, rank, seed=1)
    generator = generator_for("bench_train", active)
    for name, parameter in adapter_parameters(module, active).items():
        scale = 1 / rank if "lora_A" in name else 1e-3
        parameter.data = (scale * torch.randn(parameter.shape, generator=generator)).to(DEVICE)
    return list(adapter_parameters(module, active).values())


def batch_for(setting: Setting, step: int) -> Batch:
    """A batch as a prepared data set gives it: images, captions, stored moments of x_H."""
    generator = torch.Generator().manual_seed(seed_for("bench_train", step))
    side = 4 * setting.latent

    def normal(*shape: int) -> Tensor:
        return torch.randn(setting.batch, *shape, generator=generator)

    texts = PromptEmbeds(normal(setting.tokens, setting.width), normal(setting.width // 2))
    moments = torch.cat([normal(16, setting.latent, setting.latent), normal(16, setting.latent, setting.latent) - 4], 1)
    return Batch(
        x_L=normal(3, side, side).clamp(-1, 1).to(DEVICE, setting.dtype),
        x_H=normal(3, side, side).clamp(-1, 1).to(DEVICE, setting.dtype),
        indices=[step * setting.batch + i for i in range(setting.batch)],
        prompt=texts.to(DEVICE, setting.dtype),
        posterior=moments.to(DEVICE),
    )


class Ours:
    """One base, three roles: `tsd.algorithm.turns` as the training loop calls it."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.backbone = setting, build_base(setting)
        denoiser, vae, family = self.backbone.denoiser, self.backbone.vae, self.backbone.family
        self.modules: list[nn.Module] = [denoiser, vae]
        student = adapt(denoiser, "student", denoiser_targets(denoiser, family.student_targets), setting.rank)
        student += adapt(vae, "student", vae_targets(vae), setting.rank)
        self.adapt_critic(denoiser, student)

    def adapt_critic(self, denoiser: Any, student: list[nn.Parameter]) -> None:
        targets = denoiser_targets(denoiser, self.backbone.family.critic_targets)
        critic = adapt(denoiser, "critic", targets, self.setting.rank)
        self.groups = [student, critic]
        self.optimizers = [torch.optim.AdamW(group, lr=CONFIG.lr, weight_decay=1e-4) for group in self.groups]

    def student_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        turn = student_turn(self.backbone, batch, CONFIG, self.setting.phase, 1.0, charbonnier)
        return turn.loss, turn.z_hat

    def critic_turn(self, z_hat: Tensor, batch: Batch) -> Tensor:
        return critic_turn(self.backbone, z_hat, batch.indices, CONFIG, batch.prompt).loss

    def iterate(self, batch: Batch, keep: bool = False) -> list[Tensor]:
        """Both turns with their optimiser steps; with `keep`, copies of all gradients."""
        with self.autocast():
            loss, z_hat = self.student_turn(batch)
        kept = self.update(0, loss, keep)
        del loss
        with self.autocast():
            loss = self.critic_turn(z_hat, batch)
        return kept + self.update(1, loss, keep)

    def update(self, group: int, loss: Tensor, keep: bool) -> list[Tensor]:
        parameters, optimizer = self.groups[group], self.optimizers[group]
        loss.backward()
        kept = [p.grad.clone() for p in parameters if keep and p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return kept

    def autocast(self) -> AbstractContextManager[Any]:
        half = self.setting.dtype != torch.float32
        return torch.autocast(DEVICE.type, self.setting.dtype) if half else nullcontext()


class Release(Ours):
    """The layout of the released training script (commit e901821), in our own words.

    Kept of it: a second copy of the denoiser, which is the teacher while its adapter is off and the critic while it is
    on; one guided pass of 2B for each of ψ(ẑ_t), ψ(z_t), φ(ẑ_t); prompts copied out to the whole batch; every point
    evaluated for every sample; the student's graph held all the while; z from stored moments.

    Left out: its faults that change numbers (sample 0's time for the whole batch, squeezed strides, `nan_to_num`,
    unseeded draws), so that the same gradients must come out of the same draws; and its per-step copies for logging
    and two `empty_cache()`, which would only make it slower.
    """

    def adapt_critic(self, denoiser: Any, student: list[nn.Parameter]) -> None:
        self.regulariser = build_base(self.setting).denoiser
        self.modules.append(self.regulariser)
        super().adapt_critic(self.regulariser, student)

    def guided(self, z_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        prompt, null = batch.prompt, self.backbone.prompts["null"]
        assert prompt is not None
        count = len(z_t)
        assert null.pooled is not None
        both = PromptEmbeds.cat(PromptEmbeds(null.embeds.repeat(count, 1, 1), null.pooled.repeat(count, 1)), prompt)
        unconditional, conditional = self.predict(torch.cat([z_t] * 2), torch.cat([t] * 2), both).chunk(2)
        return (unconditional + CONFIG.guidance_scale * (conditional - unconditional)).float()

    def predict(self, z_t: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
        timestep = self.backbone.process.timestep(t)
        return self.backbone.family.predict(self.regulariser, z_t, timestep, prompt)

    def student_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        backbone, phase, seed, indices = self.backbone, self.setting.phase, CONFIG.seed, batch.indices
        process = backbone.process
        generators = [generator_for(seed, "posterior of x_L", index) for index in indices]
        z_L = backbone.encode(batch.x_L, posterior=CONFIG.posterior, generator=generators)
        z = ground_truth_latents(backbone, batch, CONFIG)
        z_hat = backbone.one_step(z_L).float()

        noise = noise_for(seed, "noise of TSD", indices, z)
        start = times_for(seed, "t of TSD", indices, *CONFIG.t_range, DEVICE)
        gradient = torch.zeros_like(z)
        with torch.no_grad():
            z_hat_t, z_t = process.add_noise(z_hat, noise, start), process.add_noise(z, noise, start)
            for index, point_weight in enumerate(phase.point_weights):
                t = start - index * CONFIG.stride
                inside, t_next = (t > 0).view(-1, 1, 1, 1), (t - CONFIG.stride).clamp(min=0)
                t = t.clamp(min=0)
                self.regulariser.disable_adapters()
                teacher_hat, teacher_z = self.guided(z_hat_t, t, batch), self.guided(z_t, t, batch)
                self.regulariser.enable_adapters()
                critic_hat = self.guided(z_hat_t, t, batch)
                eps_hat, eps_z, eps_critic = (
                    in_residual_form(process, prediction, at, t, CONFIG.residual)
                    for prediction, at in ((teacher_hat, z_hat_t), (teacher_z, z_t), (critic_hat, z_hat_t))
                )
                w = point_weight * time_weight(process, t, CONFIG.weighting) * inside
                vsd, tsm = w * (eps_hat - eps_critic), w * (eps_hat - eps_z)
                gradient += CONFIG.lambda_tsd * vsd + (1 - CONFIG.lambda_tsd) * tsm
                z_hat_t, z_t = (
                    process.step(z_hat_t, critic_hat, t, t_next),
                    process.step(z_t, teacher_z, t, t_next),
                )

        x_hat = backbone.decode(z_hat.to(z_L.dtype))
        loss, _ = reconstruction_loss(charbonnier(x_hat, batch.x_H), z_hat, z, 1.0, phase.latent_mse)
        return student_loss(loss, surrogate_loss(z_hat, gradient), phase.gamma2), z_hat.detach()

    def critic_turn(self, z_hat: Tensor, batch: Batch) -> Tensor:
        process, indices, prompt = self.backbone.process, batch.indices, batch.prompt
        assert prompt is not None
        noise = noise_for(CONFIG.seed, "noise of the critic", indices, z_hat)
        t = times_for(CONFIG.seed, "t of the critic", indices, *CONFIG.t_range, DEVICE)
        prediction = self.predict(process.add_noise(z_hat, noise, t), t, prompt)
        return critic_loss(prediction, process.target(z_hat, noise, t))


def peak_mib(layout: type[Ours], setting: Setting) -> float:
    """Peak of tensors alive over an iteration, weights and optimiser state included, nothing else held."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
    built = layout(setting)
    for group, optimizer in zip(built.groups, built.optimizers, strict=True):  # so that its state exists
        for parameter in group:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    batch = batch_for(setting, 1)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        built.iterate(batch)
        return torch.cuda.max_memory_allocated() / MIB
    state = [x for o in built.optimizers for s in o.state.values() for x in s.values() if isinstance(x, Tensor)]
    with LiveBytes(*built.modules, *state) as meter:
        built.iterate(batch)
    return meter.peak / MIB


def seconds(layout: Ours, batch: Batch) -> float:
    """Seconds of one iteration: wall clock on CUDA; on the CPU the process's own time, which neighbours do not take."""
    if CUDA:
        torch.cuda.synchronize()
    clock = time.perf_counter if CUDA else time.process_time
    start = clock()
    layout.iterate(batch)
    if CUDA:
        torch.cuda.synchronize()
    return clock() - start


def compare(setting: Setting) -> tuple[float, float]:
    """What the layouts compute, in fp32.

    Returns:
        The largest relative L2 difference of any parameter's gradient, and the release's floating-point operations
        in matrix products, attention and convolutions as a multiple of ours.
    """
    setting = dataclasses.replace(setting, dtype=torch.float32)
    gradients, flops = [], []
    for layout in (Ours, Release):
        built = layout(setting)
        with FlopCounterMode(display=False) as counter:
            gradients.append(built.iterate(batch_for(setting, 0), keep=True))
        flops.append(counter.get_total_flops())
        del built
    assert len(gradients[0]) == len(gradients[1]) > 0
    worst = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(*gradients, strict=True))
    return worst, flops[1] / flops[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_iteration(name: str, benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    setting = SETTINGS[name]
    difference, flops_ratio = compare(setting)
    assert difference < 1e-4, "the two layouts do not compute the same gradients: the comparison would be void"
    peak = {"ours": peak_mib(Ours, setting), "release": peak_mib(Release, setting)}

    layouts: dict[str, Ours] = {"ours": Ours(setting), "release": Release(setting)}
    taken: dict[str, list[float]] = {"ours": [], "release": []}
    step = 0

    def pair() -> None:
        """One iteration of each on the same batch, the order swapped every time."""
        nonlocal step
        step += 1
        batch = batch_for(setting, step)
        for which in sorted(layouts, reverse=step % 2 == 0):
            taken[which].append(seconds(layouts[which], batch))

    benchmark.pedantic(pair, rounds=setting.pairs, warmup_rounds=1)
    taken = {which: values[1:] for which, values in taken.items()}
    parameters = sum(p.numel() for n, p in layouts["ours"].backbone.denoiser.named_parameters() if "lora_" not in n)
    median = {which: statistics.median(values) for which, values in taken.items()}
    result = {
        "setting": name,
        "device": torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads",
        "denoiser_parameters": parameters,
        "seconds_ours": median["ours"],
        "seconds_release": median["release"],
        "time_ratio": statistics.median(r / o for o, r in zip(taken["ours"], taken["release"], strict=True)),
        "peak_mib_ours": peak["ours"],
        "peak_mib_release": peak["release"],
        "peak_saved": 1 - peak["ours"] / peak["release"],
        "flops_ratio": flops_ratio,
        "worst_gradient_difference": difference,
    }
    benchmark.extra_info.update(result, seconds=taken)
    with capsys.disabled():
        if name == next(iter(SETTINGS)):
            clock = "s" if CUDA else "CPU s"
            columns = [result["device"], f"ours, {clock}", f"release, {clock}", "time", "FLOP"]
            columns += ["ours, MiB", "release, MiB", "saved"]
            print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print(table_row(result))


def table_row(result: dict[str, Any]) -> str:
    cells = (
        result["setting"],
        f"{result['seconds_ours']:.2f}",
        f"{result['seconds_release']:.2f}",
        f"{result['time_ratio']:.2f}x",
        f"{result['flops_ratio']:.2f}x",
        f"{result['peak_mib_ours']:.0f}",
        f"{result['peak_mib_release']:.0f}",
        f"{result['peak_saved']:.0%}",
    )
    return f"| {' | '.join(cells)} |"
