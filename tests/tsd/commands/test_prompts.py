"""`tsd prompts` end to end: the folders it writes, what it keeps, what it refuses, what it says of other tensors."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsd.cli import main
from tsd.config import DEFAULT_PROMPT
from tsd.model.backbone import load_backbone
from tsd.model.prompt import PromptEmbeds
from tsd.prompts.encode import encode_texts
from tsd.prompts.folder import compare
from tsd.prompts.text_encoders import LoadedEncoder

# The tiny CLIP tokenizers spell nearly letter by letter, so the released prompt is cut; the real ones keep it whole.
pytestmark = pytest.mark.filterwarnings("ignore:1 of . texts are longer")


def run(*arguments: object) -> int:
    return main(["prompts", *map(str, arguments), "--device", "cpu"])


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture
def refuse_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(LoadedEncoder, "__enter__", refuse)


@pytest.fixture(scope="module")
def released(tiny_sd3_text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two prompts of the release, by the command. Read-only."""
    out = tmp_path_factory.mktemp("prompts") / "out"
    assert run("--model", tiny_sd3_text_dir, "--out", out) == 0
    return out


def test_the_backbone_reads_what_is_written(tiny_sd3_text_dir: Path, released: Path) -> None:
    backbone = load_backbone(tiny_sd3_text_dir, prompt_embeds=released)
    expected = encode_texts(tiny_sd3_text_dir, [DEFAULT_PROMPT, ""], progress=False)
    assert expected.pooled is not None
    for index, name in enumerate(("default", "null")):
        prompt = backbone.prompts[name]
        assert prompt.pooled is not None
        assert torch.equal(prompt.embeds[0], expected.embeds[index])
        assert torch.equal(prompt.pooled[0], expected.pooled[index])
    z_L = torch.randn(1, 4, 8, 8)
    assert not torch.equal(backbone.one_step(z_L), backbone.one_step(z_L, backbone.prompts["null"]))


def test_the_record_says_how_the_tensors_came_about(
    tiny_sd3_text_dir: Path, released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = record(released)
    assert written["prompts"]["default"]["text"] == DEFAULT_PROMPT
    assert written["prompts"]["null"]["text"] == ""
    tensor = written["prompts"]["default"]["tensors"]["prompt_embeds"]
    assert (tensor["shape"], tensor["dtype"]) == ([1, 333, 12], "float32")
    values = load_file(released / "default" / tensor["file"])["prompt_embeds"]
    assert tensor["sha256"] == hashlib.sha256(values.numpy().tobytes()).hexdigest()
    hashes = written["settings"]["encoders_sha256"]
    assert len(hashes) == 3 * 2 + 3 + 3 + 2  # configuration and weights; vocabulary, merges, settings; T5's two files
    weights = tiny_sd3_text_dir / "text_encoder_3" / "model.safetensors"
    assert hashes["text_encoder_3/model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert written["origin"]["versions"]["torch"] == torch.__version__

    assert run("--model", tiny_sd3_text_dir, "--out", released) == 0
    assert f"default/prompt_embeds.safetensors  1x333x12 float32  sha256 {tensor['sha256']}" in capsys.readouterr().out


@pytest.mark.usefixtures("refuse_encoders")
def test_the_same_command_again_computes_nothing(tiny_sd3_text_dir: Path, released: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in released.rglob("*.*")}
    assert run("--model", tiny_sd3_text_dir, "--out", released) == 0
    assert {path: path.stat().st_mtime_ns for path in released.rglob("*.*")} == before


def test_what_was_lost_is_made_again(tiny_sd3_text_dir: Path, released: Path, tmp_path: Path) -> None:
    out = shutil.copytree(released, tmp_path / "out")
    shutil.rmtree(out / "null")
    kept = (out / "default" / "prompt_embeds.safetensors").stat().st_mtime_ns
    assert run("--model", tiny_sd3_text_dir, "--out", out) == 0
    assert (out / "default" / "prompt_embeds.safetensors").stat().st_mtime_ns == kept
    again = load_file(out / "null" / "prompt_embeds.safetensors")["prompt_embeds"]
    first = load_file(released / "null" / "prompt_embeds.safetensors")["prompt_embeds"]
    torch.testing.assert_close(again, first, rtol=0, atol=1e-6)
    assert record(out)["prompts"].keys() == {"default", "null"}


def test_sd2_has_no_pooled_vector_and_takes_over_an_sd3_folder(
    tiny_sd2_text_dir: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(released, tmp_path / "out")
    assert run("--model", tiny_sd2_text_dir, "--out", out) == 2
    assert "other settings: family (sd3, now sd2)" in capsys.readouterr().err
    assert run("--model", tiny_sd2_text_dir, "--out", out, "--overwrite") == 0
    assert sorted(path.name for path in out.rglob("*.safetensors")) == ["prompt_embeds.safetensors"] * 2
    backbone = load_backbone(tiny_sd2_text_dir, prompt_embeds=out)
    assert backbone.prompts["default"].pooled is None
    assert backbone.prompts["default"].embeds.shape == (1, 77, 12)


def test_own_text_pt_files_and_no_t5(tiny_sd3_text_dir: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("a sharp photograph\n", encoding="utf-8")
    assert run("--model", tiny_sd3_text_dir, "--out", out, "--text-file", text, "--no-null", "--no-t5",
               "--format", "pt", "--dtype", "fp16") == 0  # fmt: skip
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "default/pool_embeds.pt", "default/prompt_embeds.pt", "prompts.json",
    ]  # fmt: skip
    embeds = torch.load(out / "default" / "prompt_embeds.pt", weights_only=True)
    expected = encode_texts(
        tiny_sd3_text_dir, ["a sharp photograph"], dtype=torch.float16, t5=False, progress=False
    ).embeds
    assert embeds.dtype == torch.float16
    assert torch.equal(embeds, expected)
    assert embeds.untyped_storage().nbytes() == embeds.nbytes  # no view of a larger batch
    assert load_backbone(tiny_sd3_text_dir, prompt_embeds=out).prompts["default"].embeds.shape == (1, 333, 12)

    assert run("--model", tiny_sd3_text_dir, "--out", out, "--text", "a sharp photograph", "--no-t5", "--dtype", "fp16",
               "--overwrite") == 0  # fmt: skip
    assert sorted(path.name for path in (out / "default").iterdir()) == [
        "pool_embeds.safetensors", "prompt_embeds.safetensors",
    ]  # fmt: skip
    assert record(out)["settings"]["t5"] is False


@pytest.mark.usefixtures("refuse_encoders")
def test_what_is_there_is_not_replaced_unasked(
    tiny_sd3_text_dir: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(released, tmp_path / "out")

    def message(*more: str) -> str:
        assert run("--model", tiny_sd3_text_dir, "--out", out, *more) == 2
        return capsys.readouterr().err

    assert "exists for another text ('Cinematic, High Contrast" in message("--text", "mine")
    assert "other settings: t5 (True, now False), dtype (fp32, now bf16)" in message("--no-t5", "--dtype", "bf16")
    values = load_file(out / "default" / "pool_embeds.safetensors")["pool_embeds"]
    save_file({"pool_embeds": values + 1}, out / "default" / "pool_embeds.safetensors")
    assert "but not as prompts.json records it" in message()
    (out / "prompts.json").unlink()
    assert "without a record of how it was made; give --overwrite" in message()
    (out / "prompts.json").write_text("[]")
    assert "is not a record of `tsd prompts`" in message()


@pytest.mark.usefixtures("refuse_encoders")
def test_bad_input_is_one_clear_line(
    tiny_sd3_text_dir: Path, tiny_sd2_text_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def message(*arguments: object) -> str:
        assert run("--out", out, *arguments) == 2
        assert not out.exists()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "no hub id of the form owner/name" in message("--model", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is a model of neither family" in message("--model", tmp_path / "empty")
    assert "default prompt is empty" in message("--model", tiny_sd3_text_dir, "--text", " ")
    assert "could not be read as UTF-8" in message("--model", tiny_sd3_text_dir, "--text-file", tmp_path / "no.txt")
    assert message("--model", tiny_sd3_text_dir, "--compare", tmp_path / "no").endswith("/no: no such folder")
    wrong = message("--model", tiny_sd2_text_dir, "--compare", tmp_path / "empty")
    assert "holds neither prompt_embeds.pt" in wrong
    assert main(["prompts", "--model", str(tiny_sd3_text_dir), "--out", str(out), "--device", "tpu"]) == 2
    assert "expected cpu, cuda or cuda:N" in capsys.readouterr().err


def test_compare_says_equal_close_or_different(
    tiny_sd3_text_dir: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for name in ("default", "null"):  # as the release has them: bare .pt files
        (other / name).mkdir(parents=True)
        for tensor in ("prompt_embeds", "pool_embeds"):
            (values,) = load_file(released / name / f"{tensor}.safetensors").values()
            torch.save(values.half() if name == "null" else values, other / name / f"{tensor}.pt")
    assert run("--model", tiny_sd3_text_dir, "--out", released, "--compare", other) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "sha256" not in line]
    assert [line.split(" (")[0] for line in lines] == [
        "default prompt_embeds, CLIP rows: equal",
        "default prompt_embeds, T5 rows: equal",
        "default pool_embeds: equal",
        "null prompt_embeds, CLIP rows: close",
        "null prompt_embeds, T5 rows: close",
        "null pool_embeds: close",
    ]
    embeds = torch.load(other / "null" / "prompt_embeds.pt", weights_only=True)
    embeds[:, 77:] = 0
    torch.save(embeds, other / "null" / "prompt_embeds.pt")
    assert run("--model", tiny_sd3_text_dir, "--out", released, "--compare", other) == 1
    assert "null prompt_embeds, T5 rows: different (zeros there (T5 left out?)" in capsys.readouterr().out
    shutil.rmtree(other / "null")
    assert run("--model", tiny_sd3_text_dir, "--out", released, "--compare", other / "default") == 0
    assert f"null: not in {other / 'default'}" in capsys.readouterr().out


def test_differences_are_measured() -> None:
    here = PromptEmbeds(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0]]))
    there = PromptEmbeds(torch.tensor([[[3.0, 3.0]]]), torch.tensor([[1.0, 2.0]]))
    embeds, pooled = compare(there, here, None)
    assert (embeds.verdict, embeds.detail) == ("different", "largest absolute difference 1, relative 0.2")
    assert (pooled.verdict, pooled.detail) == ("different", "(1, 2) here, (1, 1) there")
    near = PromptEmbeds(torch.tensor([[[3.0, 4.25]]]))
    (only,) = compare(near, here, None)
    assert (only.name, only.verdict) == ("prompt_embeds", "close")  # 0.25 / 5, at the limit
