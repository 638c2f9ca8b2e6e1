"""What SECURITY.md promises: nothing that is loaded runs code, nothing is written outside its folder, no bombs."""

import ast
import json
import stat
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from bench.cards.card import CARDS, read_card
from bench.fetch.testsets import extract_testset
from bench.records.records import Records
from bench.store.content import content_fault
from bench.store.download import HUB, mirrored
from bench.testsets import manifest
from tsd.errors import UserError
from tsd.files import is_plain_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "tsd").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])
OUTSIDE = ("../a", "/etc/a", "a/b", "..", ".", "", "a\\b", "a\0b")
OWN_CODE = {"tsd/files.py"}
"""Runs the file of the user's own that `python:FILE.py:FUNCTION` names."""


# -- code in files -----------------------------------------------------------------------------------------------------


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str | None, str], ast.Call]]:
    """Every call: the name as written, and the keywords as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node


def unsafe(text: str) -> list[str]:
    """The calls of a module that could run what a file holds."""
    found = []
    for name, keywords, node in calls(ast.parse(text)):
        last = name.rpartition(".")[2]
        wrong = (
            (name == "torch.load" and keywords.get("weights_only") != "True")
            or name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load")
            or name in ("joblib.load", "dill.load", "marshal.loads", "shelve.open", "yaml.load", "eval", "exec")
            or (name == "np.load" and "allow_pickle" in keywords)
            or (last in ("extractall", "unpack_archive", "_extract_member"))
            or keywords.get("trust_remote_code", "False") != "False"
            or (last == "from_pretrained" and keywords.get("use_safetensors") != "True" and not is_text(name))
            or (last == "exec_module")
        )  # fmt: skip
        found += [f"line {node.lineno}: {ast.unparse(node)[:80]}"] if wrong else []
    return found


def is_text(name: str) -> bool:
    """Tokenizers and processors have no weights."""
    return any(word in name.lower() for word in ("tokenizer", "processor"))


def test_no_module_loads_what_could_run_code() -> None:
    found = {str(path.relative_to(ROOT)): unsafe(path.read_text()) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines and path not in OWN_CODE} == {}
    assert len(found["tsd/files.py"]) == 1


def test_what_could_run_code_is_found() -> None:
    for text in (
        "torch.load(path)", "torch.load(path, weights_only=False)", "pickle.loads(a)", "np.load(p, allow_pickle=True)",
        "archive.extractall(folder)", "AutoModel.from_pretrained(x, trust_remote_code=True, use_safetensors=True)",
        "AutoencoderKL.from_pretrained(folder)", "exec(text)", "spec.loader.exec_module(module)",
    ):  # fmt: skip
        assert unsafe(text), text
    for text in ("torch.load(path, weights_only=True)", "np.load(path)", "AutoTokenizer.from_pretrained(x)"):
        assert not unsafe(text), text


# -- archives ----------------------------------------------------------------------------------------------------------


def archive(members: dict[str, bytes], *, link: str | None = None, method: int = zipfile.ZIP_STORED) -> BytesIO:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as content:
        for name, data in members.items():
            content.writestr(name, data)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            content.writestr(info, "/etc/passwd")
    return file


def test_an_archive_writes_into_its_folder_alone(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "set"
    names = (
        "../../Set/test_LR/a.png",
        "/Set/test_LR/b.png",
        "Set/test_LR/..",
        "Set/test_LR/../../c.png",
        "Set/test_LR/d\\e",
    )
    extract_testset(archive(dict.fromkeys(names, b"data") | {"Set/test_HR/f.png": b"data"}), "Set", out)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == [f"deep/set/{name}" for name in ("test_HR/f.png", "test_LR/a.png", "test_LR/b.png")]


def test_links_and_bombs_in_an_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_LR/link\.png is a link"):
        extract_testset(archive({}, link="Set/test_LR/link.png"), "Set", tmp_path / "a")
    bomb = archive({"Set/test_LR/a.png": bytes(10_000_000)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"not unpacked: an archive of 10 kB that unpacks to 10\.0 MB"):
        extract_testset(bomb, "Set", tmp_path / "a")
    mixed = archive({"Set/test_LR/a.png": bytes(10_000_000)}, method=zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(mixed, "a") as content:
        content.writestr("Set/test_LR/b.png", bytes(range(256)) * 1000, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"an archive whose Set/test_LR/a\.png unpacks to 10\.0 MB"):
        extract_testset(mixed, "Set", tmp_path / "a")
    assert not list(tmp_path.rglob("*.*"))


def test_a_checkpoint_that_is_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(archive({"net/data.pkl": bytes(10_000_000)}, method=zipfile.ZIP_DEFLATED).getvalue())
    assert content_fault(path, path.name) == "an archive of 10 kB that unpacks to 10.0 MB"


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_no_names(name: str) -> None:
    assert not is_plain_name(name)


def test_plain_names_may_be_anything_else() -> None:
    for name in ("a.png", "...", "..a", "*", "ü b.png", "a:b", ".hidden"):
        assert is_plain_name(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_names_nothing_outside(name: str, tmp_path: Path) -> None:
    source = ROOT / "reports" / "mini" / "records" / "mini" / "bicubic"
    folder = tmp_path / "records" / "mini" / "bicubic"
    folder.mkdir(parents=True)
    for file in ("images.jsonl", "scores.psnr.jsonl"):
        row = json.loads((source / file).read_text().splitlines()[0])
        (folder / file).write_text(json.dumps(row | {"name": name}) + "\n")
    records = Records(tmp_path)
    for read in (records.of("mini", "bicubic").images, lambda: records.of("mini", "bicubic").scores("psnr")):
        with pytest.raises(UserError, match=r"line 1: .* is no image's name"):
            read()
    with pytest.raises(UserError, match="leads out of the folder"):
        records.of("mini", "bicubic").image_path(name)
    run = json.loads((source / "run.json").read_text())
    for key in ("testset", "method"):
        (folder / "run.json").write_text(json.dumps(run | {key: name}))
        ((testset, method),) = records.measured()
        with pytest.raises(UserError, match="cannot name a folder"):
            records.of(testset, method)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_names_nothing_outside(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((ROOT / "datasets" / "mini" / "manifest.json").read_text())
    (tmp_path / "mini").mkdir()
    monkeypatch.setattr(manifest, "DATASETS", tmp_path)
    entry = content["images"][0] | {"name": name}
    for change in ({"images": [entry, *content["images"][1:]]}, {"folders": [name]}, {"name": name}):
        (tmp_path / "mini" / "manifest.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="leads out of its folder"):
            manifest.load_testset("mini")


@pytest.mark.parametrize("name", ["../a.pth", "/etc/a.pth", "a/../../b.pth", "a\\b.pth", "hashes.json"])
@pytest.mark.parametrize("key", ["file", "contains", "suffix"])
def test_a_card_names_nothing_outside(name: str, key: str, tmp_path: Path) -> None:
    text = (CARDS / "bsrgan.toml").read_text()
    if key == "contains":
        text += f'\n[[weights]]\nfile = "folder/"\nmanual = "x"\ncontains = [{json.dumps(name)}]\n'
    elif key == "file":
        text += f'\n[[weights]]\nfile = {json.dumps(name)}\nmanual = "x"\n'
    else:
        text = text.replace('suffix = "_BSRGAN"', f"suffix = {json.dumps(name)}")
    (tmp_path / "net.toml").write_text(text)
    if name == "hashes.json" and key != "file":
        read_card(tmp_path / "net.toml")
        return
    with pytest.raises(UserError, match=r"does not lie in|leads out of"):
        read_card(tmp_path / "net.toml")


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_a_mirror_takes_the_place_of_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert mirrored(f"{HUB}/a/b") == f"{HUB}/a/b"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert mirrored(f"{HUB}/a/b") == "https://mirror.example/a/b"
    assert mirrored(HUB) == "https://mirror.example"
    assert mirrored("https://huggingface.co.example/a") == "https://huggingface.co.example/a"
    assert mirrored("https://github.com/a") == "https://github.com/a"
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(UserError, match="expected the address of a mirror"):
        mirrored(HUB)
