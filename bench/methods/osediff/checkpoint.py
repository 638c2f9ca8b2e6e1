"""Reads OSEDiff's checkpoint `osediff.pkl` without running anything in it, and puts it onto SD2.1-base strictly.

Layout (cswry/OSEDiff at fcc4f09, `OSEDiff_gen.save_model` and `OSEDiff_test.load_ckpt`): for each of four adapters the
list of modules it adapts, the two ranks, and two state dicts by peft's own names. Three adapters sit on the UNet, split
by place, `default_encoder` (down blocks and conv_in), `default_decoder` (up blocks and conv_out) and `default_others`;
one sits on the VAE's encoder and quant_conv. conv_in itself was trained too: its base layer is in the file.

The authors left `lora_alpha` at peft's default of 8: at rank 4 an adapter counts twice.
"""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.errors import UserError, some

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = 8
UNET_ADAPTERS = {
    "default_encoder": "unet_lora_encoder_modules",
    "default_decoder": "unet_lora_decoder_modules",
    "default_others": "unet_lora_others_modules",
}
VAE_ADAPTERS = {"default_encoder": "vae_lora_encoder_modules"}
KINDS = {
    **dict.fromkeys((*UNET_ADAPTERS.values(), *VAE_ADAPTERS.values()), list),
    "rank_unet": int,
    "rank_vae": int,
    "state_dict_unet": dict,
    "state_dict_vae": dict,
}


@dataclass(frozen=True)
class Part:
    """What the checkpoint holds for one network.

    Attributes:
        adapters: modules by the adapter's name; a module may be listed twice.
        state: tensors by the network's parameter names once the adapters are attached.
        trained: parameters whose names contain one of these are in the checkpoint.
    """

    adapters: Mapping[str, list[str]]
    rank: int
    state: Mapping[str, "Tensor"]
    trained: tuple[str, ...]


def read_checkpoint(path: Path) -> dict[str, Part]:
    """Reads the parts "unet" and "vae" of a checkpoint file.

    Raises:
        UserError: no such file, not a checkpoint of tensors, names and numbers, or not of OSEDiff's layout.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is no checkpoint of tensors, names and numbers ({reason:.200})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected OSEDiff's checkpoint, a dict")
    found = {str(key) for key in content}
    if found != set(KINDS):
        raise UserError(
            f"{path} is not of OSEDiff's layout: missing {some(sorted(set(KINDS) - found), 5) or 'nothing'}, unknown "
            f"{some(sorted(found - set(KINDS)), 5) or 'nothing'}"
        )
    odd = [f"{key} is a {type(content[key]).__name__}" for key, kind in KINDS.items() if type(content[key]) is not kind]
    if odd:
        raise UserError(f"{path} is not of OSEDiff's layout: {'; '.join(odd)}")
    return {
        name: Part(
            {adapter: content[key] for adapter, key in adapters.items()},
            content[f"rank_{name}"],
            content[f"state_dict_{name}"],
            trained,
        )
        for name, adapters, trained in (("unet", UNET_ADAPTERS, ("lora", "conv_in")), ("vae", VAE_ADAPTERS, ("lora",)))
    }


def attach(network: Any, part: Part, where: str) -> None:
    """Adds the adapters to a diffusers network and fills them. Every parameter and every tensor must find its match.

    Args:
        network: `UNet2DConditionModel` or `AutoencoderKL`; on torch's meta device only names and shapes are checked.
        where: names the file and its part in errors.

    Raises:
        UserError: a module the network does not have, a tensor without a parameter, a parameter without a tensor, or
            another shape.
    """
    from peft import LoraConfig
    from torch import nn

    from bench.methods.global_random import preserved_random_states

    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    for adapter, modules in part.adapters.items():
        _refuse(where, f"adapts in {adapter} what this base does not have", set(modules) - layers)
    with preserved_random_states(), warnings.catch_warnings():  # the random weights are overwritten below
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for adapter, modules in part.adapters.items():
            config = LoraConfig(r=part.rank, lora_alpha=ALPHA, target_modules=sorted(set(modules)))
            network.add_adapter(config, adapter_name=adapter)
    network.set_adapter(list(part.adapters))
    parameters = {
        name: parameter
        for name, parameter in network.named_parameters()
        if any(fragment in name for fragment in part.trained)
    }
    _refuse(where, "lacks", set(parameters) - set(part.state))
    _refuse(where, "holds what has no place in this base", set(part.state) - set(parameters))
    for name, parameter in parameters.items():
        tensor = part.state[name]
        if tensor.shape != parameter.shape:
            raise UserError(f"{where}: {name} is {tuple(tensor.shape)}; this base needs {tuple(parameter.shape)}")
        parameter.data.copy_(tensor)
    network.requires_grad_(False)


def merge(network: Any, part: Part) -> None:
    """Adds alpha / rank · B A of every adapter to the weights and takes the adapters off again."""
    network.fuse_lora(adapter_names=list(part.adapters))
    network.unload_lora()


def _refuse(where: str, what: str, names: set[str]) -> None:
    if names:
        raise UserError(f"{where} {what}: {some(sorted(names), 5)}")
