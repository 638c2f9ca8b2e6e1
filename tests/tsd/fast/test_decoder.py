import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from tsd.cli import main
from tsd.data.crops import decode, to_tensor
from tsd.errors import UserError
from tsd.fast.decoder import SmallDecoder, load_decoder
from tsd.files import mini_model_dir
from tsd.restore import Restorer

SD3 = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "shift_factor": 0.0609, "scaling_factor": 1.5305}


def save_tiny(folder: Path, channels: int = 4, levels: int = 4) -> Path:
    torch.manual_seed(9)
    AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(4,) * levels, decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels, num_decoder_blocks=(1,) * levels,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_gets_latents_as_a_pipeline_passes_them(tmp_path: Path) -> None:
    """diffusers' SD3 pipeline holds (z_vae − shift) · scaling; ours, z_vae · scaling, are 0.0932 above."""
    folder = save_tiny(tmp_path)
    z_vae = torch.randn(1, 4, 6, 5)
    pipelines = (z_vae - SD3["shift_factor"]) * SD3["scaling_factor"]
    expected = AutoencoderTiny.from_pretrained(folder).decode(pipelines).sample
    torch.testing.assert_close(load_decoder(folder, SD3)(z_vae * SD3["scaling_factor"]), expected, rtol=1e-5, atol=1e-5)
    assert load_decoder(folder, SD3).shift == pytest.approx(0.0932, abs=5e-5)


def test_decodes_in_the_vaes_place_and_is_in_the_record(student_of: Any, tmp_path: Path) -> None:
    student, folder = student_of("sd3"), save_tiny(tmp_path / "small")
    whole = student.load()
    small = Restorer.load(student.model, student.lora, config=whole.config, decoder=folder)
    assert isinstance(small.decoder, SmallDecoder)
    lr = torch.rand(1, 3, 12, 16)
    assert (small.restore_tensor(lr, 0) - whole.restore_tensor(lr, 0)).abs().max() > 0.01
    record = small.provenance()
    assert record["decoder"] == str(folder)
    assert "decoder/diffusion_pytorch_model.safetensors" in record["sha256"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: save_tiny(folder, channels=5), r"latents of 5 channels; this model's have 4"),
        (lambda folder: save_tiny(folder, levels=3), r"enlarges latents 4 times; this model's need 8"),
        (lambda folder: folder / "nowhere", "no decoder folder"),
        (lambda folder: folder, "no config.json"),
    ],
)
def test_decoders_that_do_not_fit_are_refused(tmp_path: Path, build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_decoder(build(tmp_path), SD3)


def test_the_shipped_one_is_small_and_near_the_frozen_decoder() -> None:
    """On a picture that it was not trained on; reports/mini/table1.md has what it costs."""
    folder = mini_model_dir() / "decoder"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10**6
    lr = to_tensor(decode(Path(__file__).parents[3] / "datasets" / "mini" / "test_LR" / "coffee-spoon.png"))[None]
    frozen, small = (Restorer.load(decoder=chosen).restore_tensor(lr, 0) for chosen in (None, folder))
    assert 0 < (frozen - small).square().mean() < 10**-3.3  # 33 dB


def test_a_pool_of_crops_and_another_number_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "photos" / "a.png")
    settings = ["--batch-size", "2", "--crop", "32", "--width", "8", "--blocks", "1", "--pool", "3"]
    command = ["distill-decoder", str(tmp_path / "photos"), "--output", str(tmp_path / "run"), *settings]
    command += ["--mixed-precision", "bf16", "--steps"]
    assert main([*command, "2"]) == 0
    assert main([*command, "3", "--resume"]) == 0
    written = tmp_path / "run" / "decoder"
    facts = json.loads((written / "distilled.json").read_text())
    assert (facts["config"]["steps"], facts["made_from"]["replanned"]) == (3, [[2, 2]])
    weights = load_file(written / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert main([*command, "1", "--resume"]) == 2
    assert "has 3 steps and --steps is 1" in capsys.readouterr().err
    assert main([*command, "3", "--resume", "--pool", "4"]) == 2
    assert "pool: 3 then, 4 now" in capsys.readouterr().err


def test_distilled_resumes_to_the_same_weights_and_restores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
        (tmp_path / "photos").mkdir(exist_ok=True)
        smooth.save(tmp_path / "photos" / f"{name}.png")
    settings = ["--steps", "6", "--batch-size", "2", "--crop", "32", "--width", "8", "--blocks", "1"]
    command = ["distill-decoder", str(tmp_path / "photos"), *settings, "--checkpoint-every", "3", "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert "dB from the frozen decoder" in capsys.readouterr().out

    from tsd.config import DecoderConfig
    from tsd.train import decoder as module

    class Killed(Exception):
        pass

    batch = module.Crops.batch

    def until_step_four(self: Any, step: int) -> torch.Tensor:
        if step == 4:
            raise Killed
        return batch(self, step)

    config = DecoderConfig(steps=6, batch_size=2, crop=32, width=8, blocks=1, checkpoint_every=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Crops, "batch", until_step_four)
        with pytest.raises(Killed):
            module.distill_decoder(mini_model_dir(), [tmp_path / "photos"], tmp_path / "parts", config)
    assert main([*command, str(tmp_path / "parts")]) == 2  # a run lies there, and --resume was not given
    assert main([*command, str(tmp_path / "parts"), "--resume"]) == 0
    weights = "decoder/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "parts" / weights).read_bytes()
    assert json.loads((tmp_path / "whole" / "decoder" / "distilled.json").read_text())["config"]["steps"] == 6
    small = Restorer.load(decoder=tmp_path / "whole" / "decoder")
    assert small.restore_tensor(torch.rand(1, 3, 8, 8), 0).shape == (1, 3, 32, 32)
