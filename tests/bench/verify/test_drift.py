"""What moves between versions of the libraries."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.verify.drift import MOVING, PICTURES, STUDENT, Drift, moves, read, tabulated, write
from tsd.errors import UserError

Bench = Callable[..., tuple[int, str, str]]
IMAGES = ("a.png", "b.png")
ROOT = Path(__file__).resolve().parents[3]


def drift(torch: str, pyiqa: str, psnr: tuple[float, float] = (20.0, 30.0), sha: str = "0") -> Drift:
    """Scores of two images. `psnr` and `sha` are those of the student's pictures."""
    hashes = {kind: dict.fromkeys(IMAGES, sha if kind == STUDENT else "0") for kind in PICTURES}
    scores = {
        kind: {"psnr": dict(zip(IMAGES, psnr if kind == STUDENT else (20.0, 30.0), strict=True))} for kind in PICTURES
    }
    return Drift({"torch": torch, "pyiqa": pyiqa, "numpy": "2"}, "a processor", hashes, scores)


def test_moves_are_counted_against_the_newest_versions(tmp_path: Path) -> None:
    for made in (
        drift("2.9.1", "0.1.16", (20.5, 29.0), "1"),
        drift("2.15.0", "0.1.16"),
        drift("2.15.0", "0.1.15.post2"),
    ):
        assert write(made, tmp_path).name == f"{made.name}.json"
    found = read(tmp_path)
    assert [one.name for one in found] == [
        "torch-2.15.0_pyiqa-0.1.16",
        "torch-2.15.0_pyiqa-0.1.15.post2",
        "torch-2.9.1_pyiqa-0.1.16",  # 2.9 is older than 2.15
    ]
    *still, moved = moves(found)
    assert all((move.pictures, move.largest, move.mean) == (0, 0, 0) for move in still)
    assert (moved.kind, moved.metric, moved.n, moved.pictures) == (STUDENT, "psnr", 2, 2)
    assert (moved.largest, moved.image, moved.mean) == (1.0, "b", -0.25)
    table, values = tabulated(found)
    assert "| 2.9.1   | 0.1.16       | tsd-sr-mini | PSNR     | 2 of 2        | 1.0e+00" in table
    last = [*csv.DictReader(values.splitlines())][-1]
    assert (last["torch"], last["largest"], last["mean_change"]) == ("2.9.1", "1.0", "-0.25")


def test_what_is_not_of_one_kind_is_refused(tmp_path: Path) -> None:
    write(drift("2.15.0", "0.1.16"), tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json: expected what `bench verify --drift` writes"):
        read(tmp_path)
    (tmp_path / "other.json").unlink()
    fewer = json.loads((tmp_path / "torch-2.15.0_pyiqa-0.1.16.json").read_text())
    del fewer["hashes"][STUDENT]["a.png"]
    fewer["versions"]["torch"] = "2.14.0"
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    with pytest.raises(UserError, match="is about other images than"):
        read(tmp_path)


def test_this_environment_is_measured(bench: Bench, tmp_path: Path) -> None:
    """The mini student on one tiny image; a second call replaces the first one's file and finds equal values."""
    status, text, _ = bench("verify", "--drift", "--limit", "1", "--device", "cpu", "--out", tmp_path / "drift")
    assert status == 0
    assert "One environment only" in text
    (path,) = (tmp_path / "drift").glob("*.json")
    first = json.loads(path.read_text())
    assert {kind: sorted(metrics) for kind, metrics in first["scores"].items()} == {
        kind: ["psnr", "ssim"] for kind in PICTURES
    } or "niqe" in first["scores"][STUDENT]
    assert bench("verify", "--drift", "--limit", "1", "--device", "cpu", "--out", tmp_path / "drift")[0] == 0
    assert json.loads(path.read_text()) == first


def test_the_committed_table_is_about_the_locked_versions() -> None:
    """Who moves a lock measures again (`nox -s drift`), so that the table never speaks of other versions."""
    locked = dict(
        line.partition(" ")[0].split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    folder = ROOT / "reports" / "drift"
    found = read(folder)
    assert [found[0].versions[library] for library in MOVING] == [locked[library] for library in MOVING]
    assert len(found) == 4, "two versions of each"
    assert {"psnr", "ssim", "niqe"} <= set(found[0].scores[STUDENT])
    assert len(found[0].hashes[STUDENT]) == 18
    table, values = tabulated(found)
    assert (folder / "drift.md").read_text(encoding="utf-8") == table
    assert (folder / "drift.csv").read_text(encoding="utf-8") == values


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--drift", "osediff-realsr"), "only --out, --limit and --device go with it"),
        (("--drift", "--metrics", "psnr"), "only --out, --limit and --device go with it"),
        (("--out", "here"), "--out belongs to --drift"),
    ],
)
def test_what_does_not_go_together_is_said(bench: Bench, arguments: tuple[str, ...], says: str) -> None:
    status, _, error = bench("verify", *arguments)
    assert status == 2
    assert says in error
