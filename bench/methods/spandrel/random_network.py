"""The networks of the cards at their real shape, with random weights, for time and memory alone."""

import functools
from typing import TYPE_CHECKING, Any

from bench.cards.card import Card
from bench.methods.random_weights import REMARK, fill_randomly
from bench.methods.spandrel.gan import GanMethod
from bench.methods.spandrel.network import build, require_spandrel
from bench.options import RunOptions
from tsd.console.stages import silent

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


class RandomGan(GanMethod):
    """The network of a card, made without its file. It must come out as the card describes it."""

    def __init__(self, card: Card, options: RunOptions) -> None:
        assert card.network is not None  # `bench.cards.faults` checks it for run = "spandrel"
        options.require_dtype()
        self.card, self.card_network, self.options = card, card.network, options
        self.path = options.weights() / card.network.file  # for messages; it need not exist
        self.hashes = {card.network.file: "random"}
        self.progress = silent

    def provenance(self) -> dict[str, object]:
        return {**super().provenance(), "remarks": [REMARK]}

    @functools.cached_property
    def network(self) -> "ImageModelDescriptor":
        import torch

        self.options.require_device()
        require_spandrel()
        with torch.device("meta"):
            module = _module(self.card_network.architecture)
        weights = fill_randomly(module, "cpu", torch.float32).state_dict()
        network = build(self.path, weights)
        self.check(network)
        return self.placed(network)


def _module(architecture: str) -> Any:
    if architecture == "Compact":
        from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

        return SRVGGNetCompact(num_feat=64, num_conv=32, upscale=4)
    if architecture == "ESRGAN":
        from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

        return RRDBNet(num_filters=64, num_blocks=23, scale=4)
    from spandrel_extra_arches.architectures.FeMaSR.__arch.femasr import (  # pyright: ignore[reportMissingImports]
        FeMaSRNet,
    )

    return FeMaSRNet(codebook_params=[[32, 1024, 512]], LQ_stage=True, scale_factor=4)
