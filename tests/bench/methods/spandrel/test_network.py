"""Networks from a file: a tiny Compact through spandrel's own classes, saved, loaded and run."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio
from spandrel import ModelLoader
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

from bench.cards.card import cards
from bench.methods import METHODS, get_method
from bench.methods.base import Method
from bench.methods.check import check_method
from bench.methods.spandrel.gan import NO_SIZE_RULES
from bench.methods.spandrel.network import SpandrelMethod, architecture_facts
from bench.methods.spandrel.row import gan_spec
from bench.options import RunOptions
from tsd.errors import UserError

COMPACT = METHODS["realesrgan-compact"]


def tiny(upscale: int = 4, channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return SRVGGNetCompact(
        num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=upscale, act_type="prelu"
    ).eval()


def save(network: torch.nn.Module, path: Path) -> Path:
    torch.save({"params": network.state_dict()}, path)
    return path


def load(path: Path, **options: str) -> SpandrelMethod:
    method = get_method(f"spandrel:{path}").load(RunOptions(**options))
    assert isinstance(method, SpandrelMethod)
    return method


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_result_is_the_networks_own(tmp_path: Path, suffix: str):
    network, path = tiny(), tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    else:
        save(network, path)
    lr = torch.rand(1, 3, 17, 23)
    with torch.no_grad():
        expected = network(lr).clamp(0, 1)
    sr = load(path).restore(lr, 0)
    assert torch.equal(sr, expected)
    assert not sr.is_inference()


def test_keeps_the_contract(tmp_path: Path):
    method = load(save(tiny(), tmp_path / "net.pth"))
    assert isinstance(method, Method)
    assert [finding for finding in check_method(method) if finding.passed is False] == []


def test_provenance_names_file_hash_and_architecture_but_no_folder(tmp_path: Path):
    path = save(tiny(), tmp_path / "net.pth")
    facts = load(path).provenance()
    assert facts["weights"] == {"net.pth": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert facts["architecture"] == "Compact"
    assert facts["parameters"] == sum(p.numel() for p in tiny().parameters())
    assert facts["size_rules"] == {"minimum": 0, "multiple_of": 1, "square": False}
    assert str(tmp_path) not in str(facts)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_runs_in_it_and_returns_fp32(tmp_path: Path, dtype: str):
    path, lr = save(tiny(), tmp_path / "net.pth"), torch.rand(1, 3, 16, 16)
    method = load(path, dtype=dtype)
    assert method.network.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    sr, full = method.restore(lr, 0), load(path).restore(lr, 0)
    assert sr.dtype == torch.float32
    assert 0 < (sr - full).abs().max() < 0.05


def test_precision_a_network_cannot_run_in_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no precision is named 'fp8'; expected one of fp32, bf16, fp16"):
        load(save(tiny(), tmp_path / "net.pth"), dtype="fp8")
    method = load(save(tiny(), tmp_path / "net.pth"), dtype="fp16")
    single = ModelLoader().load_from_file(tmp_path / "net.pth")
    single.supports_half = single.supports_bfloat16 = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.methods.spandrel.network.build", lambda path, state_dict, scale: single)
        with pytest.raises(UserError, match=r"Compact \(net\.pth\) cannot run in fp16, only in fp32"):
            method.restore(torch.rand(1, 3, 16, 16), 0)


@pytest.mark.parametrize(("upscale", "channels", "found"), [(2, 3, "scale x2"), (4, 1, "1 input and 1 output")])
def test_other_scales_and_channels_are_refused(tmp_path: Path, upscale: int, channels: int, found: str):
    method = load(save(tiny(upscale, channels), tmp_path / "net.pth"))
    with pytest.raises(UserError, match=f"{found}.*expected x4 from RGB to RGB"):
        method.provenance()


class Payload:
    def __reduce__(self):
        return (print, ("code in a weight file was run",))


def test_files_that_are_no_state_dict_are_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"params": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Payload()))
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    (tmp_path / "torn.pth").write_bytes(save(tiny(), tmp_path / "net.pth").read_bytes()[:500])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not tensors")
    for name in ("evil.pth", "raw.pth", "script.pt", "torn.pth", "empty.pth", "text.safetensors"):
        with pytest.raises(UserError, match=rf"{name} is not a plain state dict"):
            load(tmp_path / name).provenance()
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="holds a Tensor; expected a state dict"):
        load(tmp_path / "tensor.pth").provenance()
    assert "was run" not in capsys.readouterr().out


def test_unknown_network_absent_file_and_folder_are_named(tmp_path: Path):
    torch.save({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not recognise the network"):
        load(tmp_path / "other.pth").provenance()
    with pytest.raises(UserError, match="no weights at"):
        load(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="could not be read"):
        load(tmp_path)


def test_a_known_file_with_another_hash_is_refused_before_loading(tmp_path: Path):
    path = save(tiny(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"has sha256 \w+, expected 0000"):
        SpandrelMethod(path, RunOptions(), sha256="0000")
    save(tiny(), tmp_path / "realesr-general-x4v3.pth")
    with pytest.raises(UserError, match=r"realesr-general-x4v3\.pth: .* expected sha256 8dc7edb9ac80ccdc…"):
        COMPACT.load(RunOptions(weights_root=tmp_path))


def test_compact_is_missing_with_name_place_and_source(tmp_path: Path):
    options = RunOptions(weights_root=tmp_path)
    (missing,) = COMPACT.missing(options)
    assert missing.line() == (
        "Real-ESRGAN (compact) needs realesr-general-x4v3.pth (4.9 MB, BSD-3-Clause) at "
        "$TSD_WEIGHTS/realesr-general-x4v3.pth (or under --weights-root, else ./weights); realesrgan-compact-x4.pth "
        "serves too: `bench fetch realesrgan-compact`, or by hand from "
        "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesr-general-x4v3.pth"
    )
    with pytest.raises(UserError, match=r"realesr-general-x4v3\.pth"):
        COMPACT.load(options)


@pytest.mark.parametrize("name", ["realesrgan-compact-x4.pth", "realesr-general-x4v3.pth"])
def test_the_card_of_compact_takes_both_files_and_states_what_spandrel_finds(tmp_path: Path, name: str):
    card = cards()["realesrgan-compact"]
    digest = hashlib.sha256(save(tiny(), tmp_path / name).read_bytes()).hexdigest()
    weight = replace(card.weights[0], sha256=digest, alternatives={"realesrgan-compact-x4.pth": digest})
    count = sum(p.numel() for p in tiny().parameters())
    assert card.network is not None
    network = replace(card.network, parameters=count, tags=("8nf", "2nc"))
    method = gan_spec(replace(card, weights=(weight,), network=network)).load(RunOptions(weights_root=tmp_path))
    assert isinstance(method, SpandrelMethod)
    facts = {"weights": {name: digest}, **architecture_facts(method.network), "dtype": "fp32"}
    assert json.dumps(method.provenance()) == json.dumps(facts), "in the same order too: records are not written again"


def test_the_card_of_compact_still_says_what_is_recorded():
    """Records of rows that ran before there was the card do not become stale."""
    card = cards()["realesrgan-compact"]
    recorded = [
        json.loads(path.read_text())["provenance"]
        for path in Path(__file__).parents[4].glob("reports/*/records/*/realesrgan-compact/run.json")
    ]
    assert recorded
    assert card.network is not None
    for facts in recorded:
        assert facts == {
            "weights": dict(card.weights[0].alternatives),
            "architecture": card.network.architecture,
            "tags": list(card.network.tags),
            "parameters": card.network.parameters,
            "scale": 4,
            "size_rules": NO_SIZE_RULES,
            "dtype": "fp32",
        }


def test_compact_realesrgan_restores_a_real_photograph(shared_dir: Path):
    options = RunOptions(weights_root=shared_dir / "weights")
    if COMPACT.missing(options):
        pytest.skip("no compact Real-ESRGAN in ../shared/weights")
    lr, hr = (
        np.array(Image.open(shared_dir / "data" / "realsr" / folder / "Canon_001_LR4.png").convert("RGB"))
        for folder in ("test_LR", "test_HR")
    )
    method = COMPACT.load(options)
    assert isinstance(method, SpandrelMethod)
    assert method.provenance() == method.provenance() | architecture_facts(method.network)
    sr = method.restore(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255, 0)
    assert sr.shape == (1, 3, 512, 512)
    assert peak_signal_noise_ratio(hr / 255, sr[0].permute(1, 2, 0).double().numpy(), data_range=1) > 23
