"""Where a number comes from: seeds, hashes, versions, the commit, and that none of it needs torch."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import provenance
from bench.provenance import image_seed


def test_a_file_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert provenance.cached_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_json_hash_ignores_the_order_of_keys_and_sees_every_value() -> None:
    assert provenance.sha256_json({"a": 1, "b": [1, 2]}) == provenance.sha256_json({"b": [1, 2], "a": 1})
    assert provenance.sha256_json({"a": 1}) != provenance.sha256_json({"a": 1.5})
    assert provenance.sha256_json([1, 2]) != provenance.sha256_json([2, 1])


def test_versions_are_those_installed_and_what_is_absent_is_left_out() -> None:
    found = provenance.versions(("numpy", "no-such-distribution"))
    import numpy

    assert found == {"numpy": numpy.__version__}


def test_an_environment_is_json_and_names_device_threads_and_versions() -> None:
    import torch

    found = provenance.environment("cpu", "fp32")
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu"
    assert found["dtype"] == "fp32"
    assert found["accelerator"] is None
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"]
    assert found["processor"]
    key = provenance.environment_key(found)
    assert len(key) == 12
    assert key == provenance.environment_key(dict(reversed(found.items())))
    assert key != provenance.environment_key(found | {"threads": -1})


def test_the_commit_is_that_of_the_repository_the_package_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(bench, "__file__", str(package / "__init__.py"))
    assert provenance.git_commit() is None, "outside git"
    git("init", "-q")
    assert provenance.git_commit() is None, "a file that git does not know"
    git("add", ".")
    git("commit", "-qm", "x")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "+changes"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit() is None


def test_a_seed_depends_on_run_and_name_and_on_nothing_else() -> None:
    assert image_seed(42, "Canon_001_LR4") == 5395856664894531862, "recorded results depend on this number"
    seeds = {image_seed(seed, name) for seed in range(20) for name in ("a", "b", "1", "12")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_records_summaries_and_tables_need_no_torch() -> None:
    code = """
import sys
import bench.cli, bench.records.records, bench.provenance, bench.paper.tables
import bench.report.summarize, bench.report.render, bench.report.compare, bench.report.figures
import bench.run.plan, bench.run.restore, bench.run.score, bench.run.pipeline
bench.cli.build_parser()
heavy = {'torch', 'diffusers', 'pyiqa', 'transformers', 'spandrel'} & set(sys.modules)
sys.exit(f'imported {heavy}' if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
