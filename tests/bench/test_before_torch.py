"""What can be checked without torch is checked before it is imported, as `tests/tsd/commands` tests it for `tsd`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import contextlib, io, json, sys
from bench.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    heavy = [name for name in ("torch", "pyiqa", "diffusers", "transformers", "datasets") if name in sys.modules]
    found.append([status, said.getvalue(), heavy])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_wrong_calls_need_no_torch(tmp_path: Path) -> None:
    photos, text = tmp_path / "photos", tmp_path / "text.txt"
    photos.mkdir()
    Image.new("RGB", (16, 16)).save(photos / "a.png")
    text.write_text("no folder")
    nowhere, below, mini = tmp_path / "nowhere", text / "below", ROOT / "reports" / "mini"
    study = ["study", "make", mini, "--out", tmp_path / "study", "--methods"]
    cases = [
        (["run", "--out", below], "is a file"),
        (["run", "--out", tmp_path / "run", "--table", "table9"], "table9"),
        (["run", "--out", tmp_path / "run", "--methods", "nobody"], "nobody"),
        (["run", "--out", tmp_path / "run", "--metrics", "nothing"], "nothing"),
        (["run", "--out", tmp_path / "run", "--testsets", "none"], "none"),
        (["run", "--out", tmp_path / "run", "--device", "tpu"], "no device is called 'tpu'"),
        (["run", "--out", tmp_path / "run", "--redo", "bicubic", "--methods", "lanczos"], "--redo bicubic"),
        (["run", "--out", tmp_path / "run", "--images", "nobody"], "--images nobody"),
        (["run", "--out", tmp_path / "run", "--limit", "0"], "expected 1 or more"),
        (["score", nowhere], "nowhere"),
        (["score", photos, "--hr", nowhere], "nowhere"),
        (["score", photos, "--metrics", "nothing"], "nothing"),
        (["score", photos, "--limit", "0"], "expected 1 or more"),
        (["score", photos, "--device", "tpu"], "no device is called 'tpu'"),
        (["apply", "nobody", photos / "a.png"], "nobody"),
        (["apply", "bicubic", nowhere], "no such file or folder"),
        (["apply", "bicubic", photos / "a.png", "--scale", "0"], "expected a number above 0"),
        (["apply", "bicubic", photos / "a.png", "-o", below], "is a file"),
        (["sweep"], "expected FILE"),
        (["sweep", nowhere], "nowhere"),
        (["sweep", "mixture-ci", "--out", below], "is a file"),
        (["sweep", "mixture-ci", "--out", tmp_path / "sweep", "--arms", "nobody"], "nobody"),
        (["sweep", "mixture-ci", "--out", tmp_path / "sweep", "--seeds", "x"], "--seeds"),
        (["sweep", "mixture-ci", "--out", tmp_path / "sweep", "--device", "tpu"], "no device is called 'tpu'"),
        (["latency", "--out", below], "is a file"),
        (["latency", "--sizes", "60"], "multiple of 32"),
        (["latency", "--rounds", "0"], "rounds=0"),
        (["latency", "--methods", "nobody", "--out", tmp_path / "latency"], "nobody"),
        (["latency", "--device", "tpu", "--out", tmp_path / "latency"], "no device is called 'tpu'"),
        (["site", nowhere, "--out", tmp_path / "site"], "nowhere"),
        (["site", mini, "--out", photos], "is not a site"),
        (["site", mini, "--out", below], "is a file"),
        (["verify", "nothing"], "nothing"),
        (["verify", "--metrics", "nothing"], "nothing"),
        (["verify", "--attach", nowhere], "no records there"),
        (["verify", "--drift", "--out", text], "is a file"),
        (["verify", "--device", "tpu"], "no device is called 'tpu'"),
        ([*study, "bicubic", "nobody"], "nobody"),
        (["study", "make", nowhere, "--methods", "a", "b", "--out", tmp_path / "study"], "nowhere"),
        (["study", "make", mini, "--methods", "bicubic", "lanczos", "--out", below], "is a file"),
        (["study", "score", nowhere, "--study", nowhere, "--out", tmp_path / "figure8"], "nowhere"),
        (["study", "score", nowhere, "--study", nowhere, "--out", below], "is a file"),
        (["study", "simulate", nowhere, "--preference", "1", "--out", tmp_path / "votes"], "nowhere"),
    ]
    calls = json.dumps([[str(word) for word in arguments] for arguments, _ in cases])
    done = subprocess.run([sys.executable, "-c", SCRIPT, calls], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = [
        (arguments, status, said, heavy)
        for (arguments, message), (status, said, heavy) in zip(cases, json.loads(done.stdout), strict=True)
        if (status, heavy) != (2, []) or message not in said
    ]
    assert wrong == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "text.txt"]
