"""Networks of the cards with `run = "spandrel"`: spandrel loads the authors' weights, and nothing is guessed.

The card says which entry of the checkpoint holds the parameters, which network they must turn out to be, and how the
authors' own test code pads. If a checkpoint has parameters with and without moving average, spandrel takes the average;
LDL's authors do not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Card, Network
from bench.methods.spandrel.network import SpandrelMethod, architecture_facts
from bench.options import SCALE, RunOptions
from bench.store.store import Store, verified_weights
from tsd.errors import UserError, some

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor
    from torch import Tensor

FOUND_BY_SPANDREL = "*"  # a card's `network.key`
NO_SIZE_RULES = {"minimum": 0, "multiple_of": 1, "square": False}


class GanMethod(SpandrelMethod):
    """The network of a card, under the method contract.

    The weights are verified at once; the network is built when it is first needed.

    Raises:
        UserError: weights that are missing or not verified.
    """

    def __init__(self, card: Card, options: RunOptions) -> None:
        assert card.network is not None  # `bench.cards.faults` checks it for run = "spandrel"
        options.require_dtype()
        self.card = card
        self.card_network: Network = card.network
        self.hashes = verified_weights(card, options)
        store = Store(options)
        (file,) = store.files(next(weight for weight in card.weights if weight.file == self.card_network.file))
        super().__init__(store.root / file, options, self.hashes[file])

    def parameters(self, state_dict: dict[str, object]) -> dict[str, object]:
        if self.card_network.key == FOUND_BY_SPANDREL:
            return super().parameters(state_dict)
        return select_parameters(state_dict, self.card_network, self.path)

    def check(self, network: "ImageModelDescriptor") -> None:
        found = architecture_facts(network)
        wrong = [f"{name} {found[name]}, expected {fact}" for name, fact in self.facts().items() if found[name] != fact]
        if wrong:
            raise UserError(f"{self.path} is not the network in the card of {self.card.display}: {'; '.join(wrong)}")

    def enlarge(self, image: "Tensor") -> "Tensor":
        if self.card_network.padding == "femasr":
            from bench.methods.spandrel.femasr import enlarge

            return enlarge(self.network, image, SCALE)
        return super().enlarge(image)

    def facts(self) -> dict[str, object]:
        """What spandrel must find in the file, as `architecture_facts` names it, from the card alone."""
        described = self.card_network
        counted = {"parameters": described.parameters, "scale": SCALE}
        if described.key == FOUND_BY_SPANDREL:
            counted = {"tags": list(described.tags), **counted, "size_rules": NO_SIZE_RULES}
        return {"architecture": described.architecture, **counted}

    def provenance(self) -> dict[str, object]:
        described = self.card_network
        settings = {"key": described.key, "dropped": list(described.drop), "padding": described.padding}
        read_as = {} if described.key == FOUND_BY_SPANDREL else {"settings": settings}
        return {"weights": self.hashes, **self.facts(), **read_as, "dtype": self.options.dtype}


def select_parameters(state_dict: dict[str, object], network: Network, path: Path) -> dict[str, object]:
    """Takes the network's parameters out of a checkpoint: the entry the card names, without the prefixes it drops.

    Raises:
        UserError: no such entry, or it holds something else than tensors; lists what is there.
    """
    from torch import Tensor

    part: object = state_dict
    if network.key:
        if network.key not in state_dict:
            raise UserError(f"{path} has no entry {network.key!r}, which the card names; it has {some(state_dict, 8)}")
        part = state_dict[network.key]
    what = f"the entry {network.key!r} of {path}" if network.key else f"{path}"
    if not isinstance(part, dict):
        raise UserError(f"{what} is a {type(part).__name__}; expected parameters by name")
    odd = [name for name, value in part.items() if not isinstance(value, Tensor)]
    if odd or not part:
        hint = "; one of them may be the entry that `network.key` should name" if not network.key else ""
        raise UserError(f"{what} does not hold tensors alone: {some(odd, 8) or 'it is empty'}{hint}")
    return {name: value for name, value in part.items() if not name.startswith(network.drop)}
