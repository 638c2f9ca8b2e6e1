"""Tags as a prompt: RAM with SeeSR's degradation-aware DAPE weights, through the authors' own package `ram`.

The package is the folder `ram/` of the OSEDiff and SeeSR repositories; it is not on the package index and not part of
this project. To get tags, put that folder on the path (PYTHONPATH) with its packages loralib, fairscale and timm, point
`init_tokenizer` in `ram/models/utils.py` at a copy of bert-base-uncased (it names a folder of the authors' own
machine), and put `ram_swin_large_14m.pth` and `DAPE.pth` into the store. The package can be imported up to transformers
4.55 (4.54 was tried, with random weights: the tags were those of the authors' script), and not from 4.56 on.
"""

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cards.card import Card, assets
from bench.errors import one_line
from bench.options import RunOptions
from bench.store.store import Store, verified_files
from tsd.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PACKAGE = "ram"
RAM, DAPE = "ram_swin_large_14m.pth", "DAPE.pth"
SIDE = 384
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_installed(options: RunOptions) -> bool:
    """Whether the package and its weights are on this machine; looks at names only, imports and hashes nothing."""
    return _package_is_there() and all((options.weights() / name).is_file() for name in (RAM, DAPE))


def _package_is_there() -> bool:
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return False
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any((Path(folder) / "models" / "ram_lora.py").is_file() for folder in folders)


def prepared(image: "Tensor", device: str) -> "Tensor":
    """(1, 3, h, w) in [0, 1] → (1, 3, 384, 384) as the network takes it.

    It is resized bilinearly without antialiasing, as torchvision does with tensors in the authors' version.
    """
    import torch
    from torch.nn.functional import interpolate

    image = interpolate(image.to(device), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (image - mean) / std


class Tagger:
    """Names what is in an image.

    Args:
        card: of the method that uses the tags, for messages.

    Raises:
        UserError: weights that are not what they should be.
    """

    def __init__(self, card: Card, options: RunOptions) -> None:
        files = [asset for asset in assets().values() if asset.file in (RAM, DAPE)]
        self.hashes = verified_files(files, options, licence="", needed_by=f"{card.display}'s tagger", fetch=card.name)
        self.root = Store(options).root
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The network; there is none before the first image."""
        return self._model

    def tags(self, image: "Tensor", device: str, dtype: "torch.dtype") -> str:
        """The tags of an image as one text, "cat, dog, table"; empty where none is recognised.

        Args:
            image: (1, 3, h, w) float in [0, 1]: the enlarged input, which the authors tag too.
        """
        self._model = self._model or self._load(device, dtype)
        captions = importlib.import_module(PACKAGE).inference_ram(prepared(image, device).to(dtype), self._model)
        return captions[0].replace(" | ", ", ")

    def _load(self, device: str, dtype: "torch.dtype") -> Any:
        from bench.methods.global_random import preserved_random_states

        # The package prints while it loads; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr), preserved_random_states():
            try:
                ram = importlib.import_module(f"{PACKAGE}.models.ram_lora").ram
                model = ram(
                    pretrained=str(self.root / RAM),
                    pretrained_condition=str(self.root / DAPE),
                    image_size=SIDE,
                    vit="swin_l",
                )
            except Exception as error:  # the authors' code: anything from ImportError to a tokenizer's OSError
                raise UserError(
                    f"the tagger's package `{PACKAGE}` is on the path but cannot be used here "
                    f"({one_line(error)}). bench/methods/osediff/tagger.py says what it needs; take it off the path to "
                    "run with the empty prompt"
                ) from error
            return model.eval().requires_grad_(False).to(device, dtype)
