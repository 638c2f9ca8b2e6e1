"""The work behind the page, which needs no Gradio."""

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tsd.app.html import result_list, status
from tsd.app.serve import Serving, check_serving
from tsd.app.workshop import STOPPED, Result, Workshop, target_of, write_zip
from tsd.cli import main
from tsd.config import RestoreConfig
from tsd.errors import UserError
from tsd.restore import Restorer


@pytest.fixture
def workshop(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> Workshop:
    config = RestoreConfig(process_size=0, posterior="mode")
    (tmp_path / "results").mkdir()
    return Workshop(Restorer.load(tiny_sd3_dir, tiny_lora_dir, config=config), tmp_path / "results")


def photograph(path: Path, side: int = 12) -> tuple[Path, str]:
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path, path.name


def test_a_batch_goes_on_after_a_bad_photograph(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    given = [(tmp_path / "bad.png", "<b>.png"), photograph(tmp_path / "a.png")]
    told: list[tuple[Any, ...]] = []
    bad, good = workshop.restore(given, {"scale": 2}, "batch", lambda *what: told.append(what))
    assert str(tmp_path) not in bad.error
    assert good.size == (24, 24)
    assert good.before is not None
    assert Image.open(good.before).size == (12, 12)
    assert [stage for number, stage, done, _ in told if done == 0 and number == 1] == [
        "encode", "tiles", "decode", "write",
    ]  # fmt: skip
    assert workshop.restorer.config.scale == 4  # what one visitor chooses is nobody else's
    shown = result_list([bad, good], None)
    assert "<b>" not in shown
    assert "&lt;b&gt;.png" in shown


def test_impossible_settings_are_told_before_any_work(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scale is 0; expected"):
        list(workshop.restore([photograph(tmp_path / "a.png")], {"scale": 0}, "batch", lambda *what: None))
    assert list(workshop.folder.iterdir()) == []


def test_a_batch_can_be_stopped(workshop: Workshop, tmp_path: Path) -> None:
    given = [photograph(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    batch = workshop.restore(
        given, {"scale": 2}, "mine", lambda number, stage, *_: workshop.stop("mine") if number == 1 else None
    )
    assert [result.error for result in batch] == ["", STOPPED]
    assert len(list(workshop.folder.rglob("*.png"))) == 3  # one result, and what it and its neighbour are compared with
    again = workshop.restore(given[:1], {"scale": 2}, "mine", lambda *what: None)
    assert [result.error for result in again] == [""]
    workshop.close()
    assert not workshop.folder.exists()


def test_results_have_the_names_of_their_uploads(tmp_path: Path) -> None:
    names = {"a.jpg": "a.png", "a.b.tif": "a.b.png", "..": "photograph.png", "": "photograph.png", "é" * 200: None}
    for name, expected in names.items():
        made = target_of(name, tmp_path)
        assert made.parent == tmp_path
        assert len(made.name.encode()) < 255
        assert expected in (made.name, None)


def test_equal_names_are_numbered_in_the_archive(tmp_path: Path) -> None:
    results = []
    for number, name in enumerate(("a.png", "A.png", "b.png")):
        target = tmp_path / str(number) / name
        target.parent.mkdir()
        target.write_bytes(bytes([number]))
        results.append(Result(name, target=target))
    write_zip(results, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a.png": b"\0", "A (2).png": b"\1", "b.png": b"\2",
        }  # fmt: skip


def test_old_results_are_removed(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [photograph(tmp_path / "a.png")]
    (first,) = workshop.restore(given, {"scale": 1}, "one", lambda *what: None)
    monkeypatch.setattr("tsd.app.workshop.KEPT_SECONDS", -1)
    (second,) = workshop.restore(given, {"scale": 1}, "two", lambda *what: None)
    assert not first.target.exists()
    assert second.target.exists()


def test_messages_are_text() -> None:
    assert "<script>" not in status("<script>", error=True)


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == "tsd app: `tsd app` needs the package gradio: pip install 'tsd-sr-bench[app]'\n"


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (Serving(port=70000), "--port is 70000; expected 1 to 65535"),
        (Serving(max_file_mb=0), "--max-file-size is 0; expected"),
        (Serving(memory_gb=-1), "--memory is -1; expected"),
        (Serving(host="192.0.2.1"), "192.0.2.1:7860 cannot be served from"),
    ],
)
def test_what_cannot_be_served(serving: Serving, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsd.app.serve.find_spec", lambda name: True)
    with pytest.raises(UserError, match=message):
        check_serving(serving)


def test_a_disk_without_room(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [photograph(tmp_path / "a.png")]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("tsd.files.shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError, match="are free there"):
        list(workshop.restore(given, {"scale": 1}, "batch", lambda *what: None))
