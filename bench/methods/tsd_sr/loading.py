"""A student's networks in memory: from its folders, or at the shape of a published base with random weights."""

from typing import TYPE_CHECKING, Any

from bench.methods.random_weights import fill_randomly
from bench.methods.tsd_sr.weights import ModelFolders, Shape
from bench.options import RunOptions
from tsd.config import EXPORT_FILE, FastPath, RestoreConfig
from tsd.errors import UserError

if TYPE_CHECKING:
    from tsd.model.backbone import Backbone
    from tsd.restore import Restorer


def load_restorer(weights: ModelFolders | Shape, config: RestoreConfig, options: RunOptions) -> "Restorer":
    """The student as `tsd restore` loads it."""
    from tsd.fast.loading import rewrite
    from tsd.fast.packing import pack_linears
    from tsd.restore import Restorer

    options.require_device()
    if isinstance(weights, Shape):
        backbone = random_backbone(weights, options)
        fast = rewrite(backbone, FastPath())
        pack_linears(backbone.denoiser)
        return Restorer(backbone, config, {"model": weights.model}, fast)
    return Restorer.load(
        model=weights.model,
        lora=weights.lora,
        prompt_embeds=weights.prompts,
        config=config,
        device=options.device,
        dtype=options.torch_dtype(),
        decoder=weights.decoder,
        quantization=weights.quantization,
    )


def load_unmerged(weights: ModelFolders | Shape, options: RunOptions) -> "Backbone":
    """The student with its adapters beside the weights, in the weights' precision, as the released script loads it.

    Raises:
        UserError: it was exported with its adapters merged.
    """
    from tsd.model.backbone import load_backbone
    from tsd.model.lora import STUDENT, attach, denoiser_targets, load_student, vae_targets
    from tsd.restore.student import student_prompts

    options.require_device()
    device, dtype = options.device, options.torch_dtype()
    if isinstance(weights, Shape):
        backbone = random_backbone(weights, options)
        targets = denoiser_targets(backbone.denoiser, backbone.family.student_targets)
        attach(backbone.denoiser, STUDENT, targets, weights.rank, seed=0)
        attach(backbone.vae, STUDENT, vae_targets(backbone.vae), weights.rank, seed=0)
    elif weights.lora is None:
        raise UserError(f"{weights.model} has its adapters merged (its {EXPORT_FILE} says so); give base and LoRA")
    else:
        prompts = weights.prompts or student_prompts(weights.lora)
        backbone = load_backbone(weights.model, device=device, dtype=dtype, prompt_embeds=prompts)
        load_student(backbone, weights.lora, merge=False)
    for network in (backbone.denoiser, backbone.vae):  # the adapters, which are made in fp32
        _cast(network, device, dtype)
    return backbone


def random_backbone(shape: Shape, options: RunOptions) -> "Backbone":
    """The base without adapters: a merged student has its shape."""
    import torch

    from tsd.memory.plan import model_configs
    from tsd.model.backbone import PromptEmbeds, build_backbone

    family, configs = model_configs(shape.model)
    width, pooled = family.prompt_widths(configs["denoiser"])
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, family.prompt_tokens, width, generator=generator)
    prompt = PromptEmbeds(embeds, None if pooled is None else torch.randn(1, pooled, generator=generator))
    backbone = build_backbone(family, configs, {"default": prompt}, shape.model)
    for network in (backbone.denoiser, backbone.vae):
        fill_randomly(network, options.device, options.torch_dtype())
    return backbone.to(options.device, options.torch_dtype())


def _cast(network: Any, device: str, dtype: Any) -> None:
    from torch import nn

    nn.Module.to(network, device, dtype)  # diffusers' own `to` warns on every cast, needed or not
