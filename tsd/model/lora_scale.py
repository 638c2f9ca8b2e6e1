"""The scale of a LoRA adapter, alpha / rank (alpha / √rank for rsLoRA), wherever its file states alpha.

    header                 diffusers: `lora_adapter_metadata`, a JSON object with `<part>.lora_alpha` and `<part>.r`;
                           kohya: `ss_network_alpha`; `tsd export`: `tsd_student`
    `<module>.alpha`       a tensor of one value for every module, as kohya writes them
    adapter_config.json    peft's configuration, beside the file

Two that contradict each other are refused, and so is everything that would make the adapter something other than
W + scale · B·A: DoRA, biases, adapters that need another base (PiSSA and its kin).
"""

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsd.config import ADAPTER_CONFIG
from tsd.errors import UserError
from tsd.model.loading import read_config

_HEADER_KEYS = ("lora_adapter_metadata", "tsd_student")
_OTHER_BASES = ("pissa", "olora", "loftq", "corda")


@dataclass(frozen=True)
class StatedScale:
    """What a source says about the strength of a file's adapters.

    Attributes:
        where: the source, for messages.
        alpha, rank: for all modules; None where nothing is said.
        alphas, ranks: exceptions, by peft's patterns of module names.
        rank_stabilised: whether alpha is divided by the root of the rank.
    """

    where: str
    alpha: float | None
    rank: float | None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def scale(self, module: str, rank: int) -> float | None:
        """The scale for a module whose tensors have this rank; None if this source does not say."""
        alpha = _matching(self.alphas, module, self.alpha)
        if alpha is None:
            return None
        said = _matching(self.ranks, module, self.rank)
        if said is not None and said != rank:
            warnings.warn(
                f"{self.where} says rank {said:g}, and the tensors have {rank}: alpha {alpha:g} is divided by {rank}",
                stacklevel=4,
            )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def stated_scale(path: Path, header: Mapping[str, str]) -> list[StatedScale]:
    """What the header of a LoRA file and an `adapter_config.json` beside it state; empty if nothing.

    Raises:
        UserError: damaged, or of a kind of adapter that is not supported.
    """
    found: list[StatedScale] = []
    for key in _HEADER_KEYS:
        if key in header:
            where = f"the header of {path} ({key})"
            try:
                content = json.loads(header[key])
            except ValueError as error:
                raise UserError(f"{where} is no JSON: {error}; the strength of the adapter is unknown") from error
            found.append(_read(where, _without_part(content) if isinstance(content, dict) else {}))
    plain = {name: header[name] for name in ("lora_alpha", "alpha", "r", "rank", "use_rslora") if name in header}
    if "ss_network_alpha" in header:
        plain |= {"alpha": header["ss_network_alpha"]}
    if plain:
        found.append(_read(f"the header of {path}", plain))
    config = path.with_name(ADAPTER_CONFIG)
    if config.is_file():
        content = read_config(config)
        found.append(_read(str(config), content))
    return [source for source in found if source.alpha is not None or source.alphas]


def scale_of(path: Path, module: str, rank: int, stated: list[StatedScale], own: float | None) -> float:
    """The scale of one module; 1 where nothing states it, as in the release.

    Args:
        own: alpha in the module's own tensor.

    Raises:
        UserError: two sources contradict each other.
    """
    scales = {source.where: source.scale(module, rank) for source in stated}
    if own is not None:
        scales[f"{module}.alpha in {path}"] = own / rank
    said = {where: scale for where, scale in scales.items() if scale is not None}
    if any(not math.isclose(scale, next(iter(said.values())), rel_tol=1e-4) for scale in said.values()):
        listed = "; ".join(f"{where}: {scale:g}" for where, scale in said.items())
        raise UserError(f"the strength of {path} is unknown: the scales of {module} contradict each other ({listed})")
    scale = next(iter(said.values()), 1.0)
    if not math.isfinite(scale):
        raise UserError(f"{path}: the scale of {module} is {scale}; expected a finite number")
    return scale


def _read(where: str, content: Mapping[str, Any]) -> StatedScale:
    """Reads peft's keys, and `alpha` and `rank` in their place."""
    kind = content.get("peft_type")
    init = str(content.get("init_lora_weights", "")).lower()
    unsupported = [
        f"peft_type {kind}" if kind not in (None, "LORA") else "",
        "DoRA" if _truth(content.get("use_dora")) else "",
        f"bias {content['bias']}" if content.get("bias") not in (None, "none") else "",
        "lora_bias" if _truth(content.get("lora_bias")) else "",
        "modules_to_save" if content.get("modules_to_save") else "",
        f"init_lora_weights {init}" if init.startswith(_OTHER_BASES) else "",
    ]
    if any(unsupported):
        raise UserError(
            f"{where} describes an adapter that is not supported ({', '.join(filter(None, unsupported))}); expected a "
            f"plain LoRA, W + alpha / rank · B·A"
        )
    return StatedScale(
        where,
        _number(where, content.get("lora_alpha", content.get("alpha"))),
        _number(where, content.get("r", content.get("rank"))),
        {name: _value(where, value) for name, value in (content.get("alpha_pattern") or {}).items()},
        {name: _value(where, value) for name, value in (content.get("rank_pattern") or {}).items()},
        _truth(content.get("use_rslora")),
    )


def _without_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers puts the name of the part before every key: `transformer.lora_alpha`."""
    return {key.rpartition(".")[2]: value for key, value in content.items()}


def _truth(value: object) -> bool:
    return str(value).lower() in ("true", "1")


def _number(where: str, value: Any) -> float | None:
    return None if value is None else _value(where, value)


def _value(where: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {value!r} is no number; the strength of the adapter is unknown") from error


def _matching(patterns: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
    """The value of the first of peft's patterns that matches the module's name, or of the name's end."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
