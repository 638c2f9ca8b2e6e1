"""The table of methods and the forms that make one from a path."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.methods import FORMS, METHODS, get_method
from bench.methods.base import MethodSpec, nothing_missing
from bench.options import RunOptions
from tsd.errors import UserError


def test_every_name_is_its_specs_own_and_can_name_a_folder():
    assert list(METHODS) == [spec.name for spec in METHODS.values()]
    assert list(METHODS)[:11] == [
        "bicubic", "lanczos", "teacher-20", "osediff-mini", "tsd-sr-mini", "osediff-mini-sd2", "tsd-sr-mini-sd2",
        "tsd-sr-mini-small-decoder", "tsd-sr-sd2", "tsd-sr-sd21", "realesrgan-compact",
    ]  # fmt: skip
    for name, spec in METHODS.items():
        assert Path(name).name == name
        assert get_method(name) is spec
        assert spec.display
        assert spec.summary
        assert spec.licence


def test_specs_import_no_network_library():
    code = "import sys, bench.methods; print({'torch', 'spandrel', 'diffusers', 'tsd.model'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_missing_imports_no_network_library(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from bench.methods import METHODS\n"
        "from bench.options import RunOptions\n"
        f"options = RunOptions(data_root=Path({str(tmp_path)!r}), weights_root=Path({str(tmp_path)!r}))\n"
        "for spec in METHODS.values(): [item.line() for item in spec.missing(options)]\n"
        "print({'torch', 'spandrel', 'diffusers', 'tsd.model'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("bicubik", "'bicubic'"), ("tsdsr-mini", "'tsd-sr-mini'"), ("sprandrel:x.pth", "'spandrel:PATH'")],
)
def test_unknown_name_suggests_and_lists(wrong: str, meant: str):
    with pytest.raises(UserError) as caught:
        get_method(wrong)
    message = str(caught.value)
    assert f"Did you mean {meant}?" in message
    assert "lanczos" in message
    assert "folder:PATH" in message


def test_a_bare_path_is_told_the_form_it_was_meant_to_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(
        "raise SystemExit\ndef enlarge(lr, seed): ...\ndef restore(lr, seed): ...\ndef one(x): ...\n"
    )
    Path("outputs").mkdir()
    (Path("model") / "vae").mkdir(parents=True)
    (Path("model") / "vae" / "config.json").write_text("{}")
    for wrong, meant in (
        ("my.py", "python:my.py:restore or python:my.py:enlarge"),
        ("mine=my.py", "mine=python:my.py:restore or mine=python:my.py:enlarge"),
        ("my.py:restore", "python:my.py:restore"),
        ("none.py", "python:none.py:FUNCTION"),
        ("weights/net.pth", "spandrel:weights/net.pth"),
        ("outputs", "folder:outputs"),
        ("model", "tsd-sr:model"),
        ("mine.toml", "card:mine.toml"),
    ):
        with pytest.raises(UserError) as caught:
            get_method(wrong)
        assert str(caught.value) == f"no method is called {wrong!r}. Did you mean {meant}?"


def test_unknown_name_far_from_all_gets_no_suggestion():
    with pytest.raises(UserError, match="no method is called 'zzzz'") as caught:
        get_method("zzzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "name", "display", "kind"),
    [
        ("spandrel:nets/my net.pth", "spandrel-my-net", "my net", "gan"),
        ("mine=spandrel:nets/net.pth", "mine", "mine", "gan"),
        ("folder:outputs/StableSR", "folder-StableSR", "StableSR", "published"),
        ("python:dir/mine.py:upscale", "mine-upscale", "upscale", "function"),
        ("tsd-sr:models/base,runs/lora-3", "tsd-sr-lora-3", "lora-3", "diffusion"),
        ("teacher-8", "teacher-8", "Mini teacher, 8 steps", "diffusion"),
        ("teacher-1", "teacher-1", "Mini teacher, 1 step", "diffusion"),
        ("published:net", "net-published", "net (published)", "published"),
        ("mine=published:net", "mine", "mine", "published"),
        ("teacher:steps=4,strength=0.5", "teacher-4-s0.5-g1", "Mini teacher (σ 0.5, guidance 1)", "diffusion"),
        ("teacher:model=models/base", "teacher-20-s0.3-g1-base", "base teacher (σ 0.3, guidance 1)", "diffusion"),
    ],
)
def test_forms_name_themselves(form: str, name: str, display: str, kind: str):
    spec = get_method(form)
    assert (spec.name, spec.display, spec.kind) == (name, display, kind)


def test_a_path_with_an_equals_sign_is_a_path():
    assert get_method("spandrel:a=b.pth").name == "spandrel-a-b"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("spandrel:", "no path given; expected spandrel:PATH"),
        ("python:file.py", "names no function"),
        ("python:file.py:two words", "names no function"),
        ("tsd-sr:a,b,c,d", "names 4 folders; expected tsd-sr:MODEL[,LORA"),
        ("tsd-sr:a,b,quantize=int4", "quantizes to 'int4'"),
        ("tsd-sr:models/base,runs/mini", "would be called 'tsd-sr-mini', a method already"),
        ("bicubic=spandrel:x.pth", "would be called 'bicubic', a method already"),
        ("a/b=spandrel:x.pth", "cannot name a folder"),
        ("=spandrel:x.pth", "cannot name a folder"),
        ("teacher:speed=3", "'speed=3' is no setting of the teacher"),
        ("teacher:steps=many", "many"),
        ("teacher:steps=0", "at least 1"),
        ("teacher:strength=2", "0 < strength <= 1"),
        ("teacher-0", "no method is called"),
    ],
)
def test_wrong_forms_say_what_was_expected(form: str, message: str):
    with pytest.raises(UserError) as caught:
        get_method(form)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "form", ["spandrel:no.pth", "folder:no", "python:no.py:f", "tsd-sr:no,nor", "teacher:model=no"]
)
def test_absent_paths_are_missing_not_errors(form: str):
    spec = get_method(form)
    missing = spec.missing(RunOptions())
    assert missing
    assert missing[0].name in ("no", "no.pth", "no.py")
    assert missing[0].needed_by == spec.display
    with pytest.raises(UserError):
        spec.load(RunOptions())


def test_forms_describe_themselves():
    for form, (text, _) in FORMS.items():
        assert text.startswith(f"{form}:")


def test_roots_come_from_options_then_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSD_WEIGHTS", "/env/weights")
    monkeypatch.setenv("TSD_DATA", "/env/data")
    assert RunOptions().weights() == Path("/env/weights")
    assert RunOptions().data() == Path("/env/data")
    assert RunOptions(weights_root=Path("mine"), data_root=Path("too")).weights() == Path("mine")
    assert RunOptions(data_root=Path("too")).data() == Path("too")
    monkeypatch.delenv("TSD_WEIGHTS")
    assert RunOptions().weights() == Path("weights")


def test_absent_gpu_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        RunOptions(device="cuda").require_device()
    RunOptions().require_device()


def test_nothing_missing_is_for_methods_that_need_no_file():
    free = [spec.name for spec in METHODS.values() if spec.missing is nothing_missing]
    assert free == ["bicubic", "lanczos"]
    assert all(isinstance(spec, MethodSpec) for spec in METHODS.values())
