"""The manifests of training sets: complete, consistent in themselves, and no hash without a source."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.testsets.manifest import DATASETS, TESTSETS

COUNTS = {"lsdir": 84991, "div2k": 800, "flickr2k": 2650, "ffhq-10k": 10000}
KEYS = (
    "schema", "kind", "name", "display", "description", "count", "of", "first", "last", "source", "hub", "licence",
    "terms", "get", "citation", "bytes", "folders", "files",
)  # fmt: skip
FILE_KEYS = ("name", "url", "bytes", "sha256", "md5", "hash_source")


def manifest(name: str) -> dict[str, Any]:
    return json.loads((DATASETS / name / "manifest.json").read_text(encoding="utf-8"))


def test_these_are_the_training_sets_and_no_test_set_is_among_them() -> None:
    training = {
        path.parent.name
        for path in DATASETS.glob("*/manifest.json")
        if json.loads(path.read_text(encoding="utf-8")).get("kind") == "training"
    }
    assert training == set(COUNTS)
    assert training.isdisjoint(TESTSETS)


@pytest.mark.parametrize("name", COUNTS)
def test_manifests_are_complete(name: str) -> None:
    found = manifest(name)
    assert tuple(found) == KEYS
    assert (found["schema"], found["kind"], found["name"]) == (1, "training", name)
    assert found["count"] == COUNTS[name] <= found["of"]
    assert all(found[key] for key in ("display", "description", "source", "licence", "citation", "folders", "get"))
    for file in found["files"]:
        assert tuple(file) == FILE_KEYS
        assert file["url"].startswith("https://")
        assert file["bytes"] is None or file["bytes"] > 0


@pytest.mark.parametrize("name", COUNTS)
def test_names_and_count_agree(name: str) -> None:
    found = manifest(name)
    if found["first"] is None:
        assert found["last"] is None
        return
    first, last = (int(Path(found[end]).stem) for end in ("first", "last"))
    assert last - first + 1 == found["count"]


@pytest.mark.parametrize("name", COUNTS)
def test_every_hash_has_a_source_and_every_source_a_hash(name: str) -> None:
    hashes: list[str] = []
    for file in manifest(name)["files"]:
        given = [file[kind] for kind in ("sha256", "md5") if file[kind] is not None]
        assert file["sha256"] is None or re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
        assert file["md5"] is None or re.fullmatch(r"[0-9a-f]{32}", file["md5"])
        assert bool(given) == bool(file["hash_source"])
        hashes += given
    assert len(hashes) == len(set(hashes))


@pytest.mark.parametrize("name", COUNTS)
def test_gated_sets_say_how_to_accept_their_terms(name: str) -> None:
    terms = manifest(name)["terms"]
    assert terms["gated"] == (name == "lsdir")
    if terms["gated"]:
        page = f"https://huggingface.co/{manifest(name)['hub']['repository']}"
        assert page in terms["accept"]
        assert "hf auth login" in terms["accept"]
        assert page in (DATASETS / "README.md").read_text(encoding="utf-8")
    else:
        assert terms["accept"] is None


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_readme_tells_the_same(name: str, count: int) -> None:
    readme = (DATASETS / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
    assert f"{count:,}" in row
    assert ("gated" in row) == manifest(name)["terms"]["gated"]
    for url in (file["url"] for file in manifest(name)["files"] if name in ("div2k", "flickr2k")):
        assert url in readme
