"""The paper's GANs from their cards: random weights under exactly the official names, in the official wrappers."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from torch import Tensor

from bench.cards.card import Card, cards
from bench.methods.base import Method
from bench.methods.check import check_method
from bench.methods.spandrel.gan import GanMethod
from bench.methods.spandrel.row import gan_spec
from bench.options import RunOptions
from bench.store.missing import Obstacle
from bench.store.store import KnownHash, Store
from tsd.errors import UserError

RRDB_CARDS = ("bsrgan", "realesrgan", "ldl")
# What the authors' definitions call the same layers, in their order: cszn/BSRGAN models/network_rrdbnet.py, and
# BasicSR's rrdbnet_arch.py, which Real-ESRGAN and LDL use.
NAMES = {
    "bsrgan": ("conv_first", "RRDB_trunk.{}.RDB{}.conv{}", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    "realesrgan": ("conv_first", "body.{}.rdb{}.conv{}", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
}
NAMES["ldl"] = NAMES["realesrgan"]
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("spandrel_extra_arches") is None,
    reason="spandrel_extra_arches is not installed: its architectures have restrictive licences",
)


def rrdb(name: str, features: int = 64, blocks: int = 23) -> dict[str, Tensor]:
    """RRDBNet x4 by the authors' names. Its layers pass their first channels on: an image stays one."""
    first, dense, *rest, last = NAMES[name]
    growth = 32
    shapes = {first: (features, 3)}
    for block in range(blocks):
        for part in (1, 2, 3):
            for conv in range(1, 6):
                out = features if conv == 5 else growth
                shapes[dense.format(block, part, conv)] = (out, features + growth * (conv - 1))
    shapes |= dict.fromkeys(rest, (features, features)) | {last: (3, features)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, shape in shapes.items():
        weight = 0.003 * torch.randn(*shape, 3, 3, generator=generator)
        if layer in (first, *rest[1:], last):  # not in the trunk, which is added to what the first layer gives
            weight += torch.nn.init.dirac_(torch.empty_like(weight))
        state[f"{layer}.weight"], state[f"{layer}.bias"] = weight, torch.zeros(shape[0])
    return state


def straight(name: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """RRDBNet's forward pass as its authors define it, from the state dict alone."""
    first, dense, trunk, up1, up2, high, last = NAMES[name]

    def conv(layer: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=1)

    def bent(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)

    features = conv(first, x)
    y = features
    for block in range(sum(".conv1.weight" in key for key in state) // 3):
        z = y
        for part in (1, 2, 3):
            layers = [z]
            for number in range(1, 5):
                layers.append(bent(conv(dense.format(block, part, number), torch.cat(layers, 1))))
            z = z + 0.2 * conv(dense.format(block, part, 5), torch.cat(layers, 1))
        y = y + 0.2 * z
    y = features + conv(trunk, y)
    for layer in (up1, up2):
        y = bent(conv(layer, F.interpolate(y, scale_factor=2, mode="nearest")))
    return conv(last, bent(conv(high, y)))


def wrapped(card: Card, state: dict[str, Tensor]) -> dict[str, object]:
    key = card.network.key if card.network else ""
    return {key: state} if key else dict(state)


def store(card: Card, content: object, root: Path) -> tuple[Card, RunOptions]:
    """`content` in the card's file, its hash recorded; and the card without the hash of the real file."""
    options = RunOptions(weights_root=root)
    path = root / card.weights[0].file
    root.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Store(options).record({path.name: KnownHash(digest, "this test")})
    return replace(card, weights=(replace(card.weights[0], sha256=None),)), options


def tiny(name: str, root: Path, **changes: object) -> tuple[Card, RunOptions]:
    """The card of `name` for a network of the same kind, but small."""
    state = rrdb(name, features=8, blocks=1)
    card, options = store(cards()[name], wrapped(cards()[name], state), root)
    assert card.network is not None
    count = sum(value.numel() for value in state.values())
    return replace(card, network=replace(card.network, **({"parameters": count} | changes))), options


def load(card: Card, options: RunOptions) -> GanMethod:
    method = gan_spec(card).load(options)
    assert isinstance(method, GanMethod)
    return method


@pytest.mark.parametrize("name", RRDB_CARDS)
def test_official_names_and_shapes_load_and_are_the_official_network(name: str, tmp_path: Path):
    state = rrdb(name)
    assert sum(value.numel() for value in state.values()) == 16_697_987
    method = load(*store(cards()[name], wrapped(cards()[name], state), tmp_path))
    lr = torch.rand(1, 3, 16, 16)
    sr = method.restore(lr, 0)
    assert sr.shape == (1, 3, 64, 64)
    assert torch.allclose(sr, straight(name, state, lr).clamp(0, 1), atol=1e-5)
    assert sr.std() > 0.1
    assert not sr.is_inference()
    facts = method.provenance()
    assert facts["settings"] == {"key": {"bsrgan": "", "realesrgan": "params_ema", "ldl": "params"}[name],
                                 "dropped": [], "padding": ""}  # fmt: skip
    assert facts["parameters"] == sum(p.numel() for p in method.network.model.parameters())
    assert str(tmp_path) not in str(facts)


@pytest.mark.parametrize("padding", ["", "femasr"])
@pytest.mark.parametrize("name", RRDB_CARDS)
def test_keeps_the_contract(name: str, padding: str, tmp_path: Path):
    """FeMaSR's padding too, around a network whose two dozen calls take less than its own 40 s."""
    method = load(*tiny(name, tmp_path, padding=padding))
    assert isinstance(method, Method)
    assert [finding.line() for finding in check_method(method) if finding.passed is False] == []


@pytest.mark.parametrize("name", [*RRDB_CARDS, "femasr"])
def test_the_row_says_what_the_card_says(name: str, tmp_path: Path):
    card = cards()[name]
    spec = gan_spec(card)
    assert (spec.name, spec.kind, spec.steps, spec.how) == (name, "gan", 1, "in process")
    assert spec.card is card
    assert card.seeding == "deterministic"
    missing = [item for item in spec.missing(RunOptions(weights_root=tmp_path)) if not isinstance(item, Obstacle)]
    (item,) = missing
    assert item.name == card.weights[0].file
    assert item.fetch == (None if name == "ldl" else name)  # LDL's lie where only a browser gets them
    assert spec.restriction == ("noncommercial, share alike" if name == "femasr" else "")


def test_the_entry_is_the_cards_whatever_else_the_file_holds(tmp_path: Path):
    """LDL: spandrel alone would take params_ema, the authors' script reads params."""
    card, options = tiny("ldl", tmp_path)
    plain, average = rrdb("ldl", 8, 1), rrdb("ldl", 8, 1)
    average["conv_last.bias"] = average["conv_last.bias"] + 0.25
    store(card, {"params_ema": average, "params": plain}, tmp_path)
    lr = torch.full((1, 3, 16, 16), 0.4)
    assert card.network is not None
    results = {}
    for key in ("params", "params_ema"):
        method = load(replace(card, network=replace(card.network, key=key)), options)
        results[key] = method.restore(lr, 0)
        assert method.provenance()["settings"]["key"] == key
    assert torch.allclose(results["params_ema"] - results["params"], torch.tensor(0.25), atol=1e-6)


def test_an_absent_entry_is_an_error_that_lists_what_is_there(tmp_path: Path):
    card, options = tiny("realesrgan", tmp_path)
    store(card, {"params": rrdb("realesrgan", 8, 1), "iteration": 5}, tmp_path)
    with pytest.raises(UserError, match=r"no entry 'params_ema', which the card names; it has params, iteration"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)


def test_an_entry_that_is_no_state_dict_is_refused(tmp_path: Path):
    card, options = tiny("ldl", tmp_path)
    store(card, {"params": torch.zeros(3)}, tmp_path)
    with pytest.raises(UserError, match=r"the entry 'params' of .* is a Tensor; expected parameters by name"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)
    card, options = tiny("bsrgan", tmp_path)
    store(card, {"params": rrdb("bsrgan", 8, 1)}, tmp_path)
    with pytest.raises(UserError, match=r"does not hold tensors alone: params; one of them may be the entry"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)


def test_another_size_or_architecture_than_the_cards_is_refused(tmp_path: Path):
    card, options = tiny("ldl", tmp_path, parameters=16_697_987)
    with pytest.raises(UserError, match=r"not the network in the card of LDL: parameters \d+, expected 16697987"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)
    compact = SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4, act_type="prelu")
    store(card, {"params": compact.state_dict()}, tmp_path)
    with pytest.raises(UserError, match=r"the card of LDL: architecture Compact, expected ESRGAN; parameters"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)


def test_a_state_dict_with_a_gap_is_refused(tmp_path: Path):
    card, options = tiny("ldl", tmp_path)
    state = rrdb("ldl", 8, 1)
    del state["conv_hr.weight"]
    store(card, {"params": state}, tmp_path)
    with pytest.raises(UserError, match=r"cannot build it|does not recognise"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)


def test_weights_of_another_hash_and_absent_ones_are_not_loaded(tmp_path: Path):
    card = cards()["bsrgan"]
    with pytest.raises(UserError, match=r"BSRGAN needs BSRGAN\.pth \(67\.0 MB.*bench fetch bsrgan"):
        load(card, RunOptions(weights_root=tmp_path))
    _, options = store(card, rrdb("bsrgan", 8, 1), tmp_path)
    with pytest.raises(UserError, match=r"BSRGAN\.pth: sha256 \w+…, expected sha256 5d505a0766160921…"):
        load(card, options)


def test_without_the_package_of_restrictive_licences_femasr_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None):
        return None if name == "spandrel_extra_arches" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    spec, options = gan_spec(cards()["femasr"]), RunOptions(weights_root=tmp_path)
    (obstacle,) = [item for item in spec.missing(options) if isinstance(item, Obstacle)]
    assert "pip install spandrel_extra_arches" in obstacle.line()
    with pytest.raises(UserError, match="FeMASR needs the package spandrel_extra_arches"):
        spec.load(options)
    assert not [item for item in gan_spec(cards()["ldl"]).missing(options) if isinstance(item, Obstacle)]


@pytest.fixture(scope="module")
def femasr(tmp_path_factory: pytest.TempPathFactory) -> GanMethod:
    """The whole network, random, with surplus parameters as the official file has them."""
    from spandrel_extra_arches.architectures.FeMaSR import FeMaSR

    torch.manual_seed(0)
    network = FeMaSR(
        codebook_params=[[32, 1024, 512]], gt_resolution=256, LQ_stage=True, scale_factor=4, act_type="silu"
    )
    surplus = {"conv_semantic.0.weight": torch.zeros(2, 2, 1, 1), "vgg_feat_extractor.mean": torch.zeros(3)}
    content = {"params": network.state_dict() | surplus}
    return load(*store(cards()["femasr"], content, tmp_path_factory.mktemp("femasr")))


@needs_extra
@pytest.mark.parametrize(("size", "fed"), [((16, 16), (32, 32)), ((20, 33), (32, 48))])
def test_femasr_is_fed_with_the_official_mirror_padding(femasr: GanMethod, size: tuple[int, int], fed: tuple[int, int]):
    """The next multiple of 16 on both sides, also where the size is one; the mirror repeats the edge."""
    received: list[Tensor] = []
    hook = femasr.network.model.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0].clone()))
    lr = torch.rand(1, 3, *size)
    sr = femasr.restore(lr, 0)
    hook.remove()
    (image,) = received
    assert tuple(image.shape[-2:]) == fed
    for y, x in ((0, 0), (size[0] - 1, size[1] - 1), (size[0], 0), (0, size[1]), (fed[0] - 1, fed[1] - 1)):
        mirrored = (min(y, 2 * size[0] - 1 - y), min(x, 2 * size[1] - 1 - x))
        assert torch.equal(image[..., y, x], lr[..., mirrored[0], mirrored[1]]), (y, x)
    assert tuple(sr.shape[-2:]) == (4 * size[0], 4 * size[1])
    assert not torch.allclose(sr, femasr.network(lr.clone()), atol=0.01), "spandrel alone pads otherwise"


@needs_extra
def test_femasr_drops_what_the_authors_drop_and_nothing_else(femasr: GanMethod, tmp_path: Path):
    assert femasr.provenance()["settings"]["dropped"] == list(femasr.card_network.drop)
    content = torch.load(femasr.path, weights_only=True)
    content["params"]["another.weight"] = torch.zeros(1)
    card, options = store(femasr.card, content, tmp_path)
    with pytest.raises(UserError, match=r"cannot build it .*another\.weight"):
        load(card, options).restore(torch.rand(1, 3, 16, 16), 0)


def counted(scale: int, seen: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    def network(image: Tensor) -> Tensor:
        seen.append((image.shape[-2], image.shape[-1]))
        return F.interpolate(image, scale_factor=scale, mode="nearest")

    return network


def test_femasr_goes_in_tiles_from_600_pixels_square():
    from bench.methods.spandrel import femasr

    for size, expected in (((599, 600), 1), ((600, 600), 9), ((245, 1500), 14)):
        seen: list[tuple[int, int]] = []
        image = torch.rand(1, 1, *size)
        output = femasr.enlarge(counted(2, seen), image, 2)
        assert len(seen) == expected
        assert all(height % 16 == 0 and width % 16 == 0 for height, width in seen)
        assert torch.equal(output, F.interpolate(image, scale_factor=2, mode="nearest"))
    assert seen[0] == (256, 272)  # 240 + 5 and 240 + 16, each to the next multiple of 16


@pytest.mark.parametrize("name", ["realesrgan", "realesrgan-compact"])
def test_with_random_weights_it_is_the_network_of_the_card(name: str, tmp_path: Path):
    spec = gan_spec(cards()[name])
    assert spec.random_weights
    method = spec.load(RunOptions(weights_root=tmp_path, random_weights=True))
    assert isinstance(method, GanMethod)
    assert sum(p.numel() for p in method.networks()["network"].parameters()) == cards()[name].network.parameters
    assert method.restore(torch.rand(1, 3, 16, 16), 0).isfinite().all()
    assert method.provenance()["weights"] == {cards()[name].network.file: "random"}
