"""The memory that a training run will need, computed before any weight is loaded.

The real modules are built from their `config.json` on tensors without data (torch's fake tensors: the meta device,
with the CPU's or CUDA's choice of kernels kept), and the two turns of `tsd.algorithm.turns` are run on them, forward
and backward, under the meter of `tsd.memory.live_bytes`. So activations are counted and not estimated by formula. Only
the size of the adapters' optimiser state is computed, since that needs no iteration.

Kernels' own allocations (cuDNN's workspaces), the CUDA context and fragmentation are not counted. `RESERVE` stands for
them in the verdict.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, student_turn
from tsd.config import Phase, TrainConfig
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.memory.live_bytes import LiveBytes
from tsd.memory.public_configs import PUBLIC_CONFIGS
from tsd.memory.table import RESERVE, Iteration, MemoryPlan, gib
from tsd.model.backbone import Backbone, build_backbone
from tsd.model.family import Family
from tsd.model.gradient_checkpointing import enable_gradient_checkpointing
from tsd.model.loading import FAMILIES, read_configs
from tsd.model.lora import Role, adapter_parameters, attach_roles
from tsd.model.prompt import PromptEmbeds
from tsd.precision import torch_dtype


def memory_plan(
    model: str | Path,
    config: TrainConfig,
    *,
    processes: int = 1,
    batch_sizes: Sequence[int] = (1, 2, 4),
    checkpointing: Sequence[bool] = (False, True),
    cuda: bool = True,
    tokens: int | None = None,
) -> MemoryPlan:
    """Plans the memory of distilling `model` under `config`; reads configurations only, takes seconds to minutes.

    Args:
        model: a folder in diffusers layout (the `config.json` files are enough), or one of `PUBLIC_CONFIGS`.
        processes: how many processes share the work (DDP replicates the weights, FSDP shards them).
        batch_sizes, checkpointing: the iterations to run.
        cuda: follow CUDA's autocast rules, which keep normalisations in fp32, instead of the CPU's.
        tokens: length of the prompts in tokens; by default the family's.

    Raises:
        UserError: the model's configuration is neither on disk nor known; or the crop does not fit the model.
    """
    family, configs = model_configs(model)
    backbone = build_planned(family, configs, config, str(model), tokens or family.prompt_tokens)
    parameters, fixed = _held(backbone, config)
    if cuda and config.mixed_precision != "no":
        _normalise_in_fp32(backbone.denoiser, backbone.vae)
    iterations = []
    wanted = [(ckpt, batch) for ckpt in sorted(checkpointing) for batch in batch_sizes]
    with FakeTensorMode(allow_non_fake_inputs=True), Progress(wanted, desc="plan", unit="run") as bar:
        make_fake(backbone)
        for ckpt, batch in bar:
            if ckpt:
                enable_gradient_checkpointing(backbone.denoiser, backbone.vae)
            iterations.append(_iterate(backbone, config, batch, ckpt))
    notes = [
        f"totals include {gib(RESERVE)} for the CUDA context, workspaces and fragmentation",
        "z is taken from stored moments; encoding x_H during training is smaller than what follows it",
    ]
    if config.pixel_loss == "lpips":
        notes.append("LPIPS' own network and graph (AlexNet, 2.5 million weights) are not counted")
    optimizer = getattr(config, "optimizer", "adamw")
    return MemoryPlan(
        str(model), config.base_dtype, optimizer, processes, parameters, fixed, tuple(iterations), tuple(notes)
    )


def parameters_of(
    family: Family, configs: Mapping[str, Mapping[str, Any]], config: TrainConfig
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the parameter counts and the bytes held for the whole run, both by name; runs nothing."""
    return _held(build_planned(family, configs, config, "", tokens=1), config)


def model_configs(model: str | Path) -> tuple[Family, dict[str, dict[str, Any]]]:
    """Returns the family and the configurations of `denoiser`, `vae` and `scheduler`."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return read_configs(folder)
    if str(model) in PUBLIC_CONFIGS:
        known = PUBLIC_CONFIGS[str(model)]
        family = next(family for family in FAMILIES.values() if family.denoiser_folder in known)
        return family, {
            "denoiser": known[family.denoiser_folder], "vae": known["vae"], "scheduler": known["scheduler"]
        }  # fmt: skip
    raise UserError(
        f"no folder at {model}, and its configuration is not built in (known: {', '.join(PUBLIC_CONFIGS)}). "
        f"Give a folder with the config.json files of denoiser, vae and scheduler; weights are not needed."
    )


def build_planned(
    family: Family, configs: Mapping[str, Mapping[str, Any]], config: TrainConfig, source: str, tokens: int
) -> Backbone:
    """Builds the backbone with its adapters on the meta device."""
    dtype = torch_dtype(config.base_dtype)
    width, pooled = family.prompt_widths(configs["denoiser"])
    with torch.device("meta"):
        prompt = PromptEmbeds(torch.zeros(1, tokens, width), None if pooled is None else torch.zeros(1, pooled))
    prompt = prompt.to(dtype=dtype)
    backbone = build_backbone(family, configs, {"default": prompt, "null": prompt}, source)
    for module in (backbone.denoiser, backbone.vae):
        nn.Module.to(module, dtype)  # diffusers' own `to` warns on every cast, needed or not
    if config.crop % backbone.pixel_multiple:
        raise UserError(f"crop is {config.crop}; this model needs a multiple of {backbone.pixel_multiple}")
    attach_roles(backbone, config)
    return backbone


def make_fake(backbone: Backbone) -> None:
    """Turns meta tensors into fake CPU tensors (inside `FakeTensorMode`), so that the CPU's kernels are chosen.

    On the meta device attention would fall back to the formula that stores the full attention matrix.
    """
    for model in (backbone.denoiser, backbone.vae):
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
            for name, old in module._buffers.items():
                if old is not None:
                    module._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device="cpu")
    backbone.prompts = {
        name: PromptEmbeds(_zeros_like(prompt.embeds), None if prompt.pooled is None else _zeros_like(prompt.pooled))
        for name, prompt in backbone.prompts.items()
    }


def _zeros_like(meta: Tensor) -> Tensor:
    return torch.zeros(meta.shape, dtype=meta.dtype, device="cpu")


def _normalise_in_fp32(*models: nn.Module) -> None:
    """Makes normalisations run in fp32 with fp32 outputs, as under CUDA's autocast; fake tensors follow the CPU's."""
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.float()
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def _held(backbone: Backbone, config: TrainConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the parameter counts and the bytes held for the whole run, both by name."""
    denoiser, vae = backbone.denoiser, backbone.vae
    roles: tuple[tuple[str, Any, Role], ...] = (
        ("student's adapter, denoiser", denoiser, "student"),
        ("student's adapter, VAE encoder", vae, "student"),
        ("critic's adapter", denoiser, "critic"),
    )
    adapters = {name: list(adapter_parameters(module, active).values()) for name, module, active in roles}
    base = {name: [p for n, p in module.named_parameters() if ".lora_" not in n]
            for name, module in (("denoiser", denoiser), ("VAE", vae))}  # fmt: skip
    counts = {name: sum(p.numel() for p in group) for name, group in (base | adapters).items()}
    fixed = {f"{name}, {config.base_dtype}": _bytes(group) for name, group in base.items()}
    fixed |= {f"{name}, fp32": _bytes(group) for name, group in adapters.items()}
    everything = [p for group in adapters.values() for p in group]
    students = [p for name, group in adapters.items() if name.startswith("student") for p in group]
    eight_bit = getattr(config, "optimizer", "adamw") == "adamw8bit"
    fixed[f"AdamW's state, {'8-bit' if eight_bit else 'fp32'}"] = sum(_state_bytes(p, eight_bit) for p in everything)
    if config.ema_decay:
        fixed["EMA of the student, fp32"] = _bytes(students)
    if config.critic_ema_decay:
        fixed["EMA of the critic, fp32"] = _bytes(adapters["critic's adapter"])
    return counts, fixed


def _state_bytes(parameter: nn.Parameter, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments: fp32, or 8 bits with an fp32 scale per block of 256 (small tensors stay fp32)."""
    count = parameter.numel()
    if eight_bit and count >= 4096:
        return 2 * (count + 4 * -(-count // 256))
    return 8 * count


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Metered(Backbone):
    """A backbone that records the live bytes at the end of each part of the student's turn."""

    meter: LiveBytes
    encoded = stepped = teacher = before_decoder = 0

    def encode(self, *args: Any, **options: Any) -> Tensor:
        z = super().encode(*args, **options)
        self.encoded = self.meter.live
        return z

    def one_step(self, *args: Any) -> Tensor:
        z = super().one_step(*args)
        self.stepped = self.meter.live
        self.meter.reset_peak()
        return z

    def decode(self, z: Tensor) -> Tensor:
        self.teacher, self.before_decoder = self.meter.peak - self.stepped, self.meter.live
        return super().decode(z)


class WithoutData(TorchDispatchMode):
    """Replaces operations that need data: every sample is inside the trajectory, and draws need no generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return torch.arange(len(args[0]), device=args[0].device)[:, None]
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"generator": None} if "generator" in kwargs else kwargs))


def _iterate(backbone: Backbone, config: TrainConfig, batch: int, checkpointing: bool) -> Iteration:
    """Runs both turns on fake tensors; all points of the trajectory need the same memory, so one is enough."""
    dtype, side = torch_dtype(config.base_dtype), config.crop // backbone.vae_factor
    channels = backbone.vae.config["latent_channels"]
    x = torch.zeros(batch, 3, config.crop, config.crop, dtype=dtype)
    moments = torch.zeros(batch, 2 * channels, side, side)
    data = Batch(x, x.clone(), list(range(batch)), backbone.prompts["default"].expand(batch), moments)
    phase = Phase(steps=1, latent_mse=1.0, gamma2=1.0, point_weights=(1.0,))
    autocast = config.mixed_precision != "no"
    cast = torch.autocast("cpu", torch_dtype(config.mixed_precision)) if autocast else contextlib.nullcontext()
    metered = _Metered(
        backbone.vae, backbone.denoiser, backbone.process, backbone.prompts, backbone.family, backbone.source
    )
    with WithoutData(), LiveBytes(backbone.denoiser, backbone.vae, data.x_L, data.x_H, moments) as meter:
        metered.meter, held = meter, meter.live
        with cast:
            turn = student_turn(metered, data, config, phase, max(config.gamma1), charbonnier)
        decoded = meter.live
        if not config.has_pixel_loss:
            metered.teacher, metered.before_decoder = meter.peak - metered.stepped, decoded
        turn.loss.backward()
        student_peak, z_hat = meter.peak, turn.z_hat
        del turn
        for module in (backbone.denoiser, backbone.vae):
            for parameter in module.parameters():
                parameter.grad = None
        meter.reset_peak()
        with cast:
            loss = critic_turn(backbone, z_hat, data.indices, config, data.prompt).loss
        loss.backward()
        critic_peak = meter.peak
    return Iteration(
        batch,
        checkpointing,
        encoder_graph=metered.encoded - held,
        student_graph=metered.stepped - metered.encoded,
        decoder_graph=decoded - metered.before_decoder,
        teacher=metered.teacher,
        student_turn=student_peak - held,
        critic_turn=critic_peak - held,
    )
