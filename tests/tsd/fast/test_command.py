import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tsd.cli import main
from tsd.config import FastPath, RestoreConfig
from tsd.fast.compiling import Sizes
from tsd.precision import native_precision
from tsd.restore import Restorer


def test_restores_fast_by_default_and_plain_when_asked(
    student_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = student_of("sd3")
    values = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    images, records = [], []
    for name, extra in (("ours", []), ("plain", ["--plain"])):
        command = ["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / name), "--process-size", "0", *extra]
        command += ["--model", str(student.model), "--lora", str(student.lora), "--device", "cpu"]
        assert main([*command, "--report", str(tmp_path / f"{name}.json")]) == 0
        images.append(np.asarray(Image.open(tmp_path / name / "a.png")).astype(int))
        records.append(json.loads((tmp_path / f"{name}.json").read_text())["fast"])
    assert np.abs(images[0] - images[1]).max() <= 1  # a value that rounding moves over a half level
    assert (records[0]["fold"], records[1]["fold"]) == (True, False)
    assert "on cpu in fp32 (as asked)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_auto_takes_bf16_where_the_processor_has_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if "flags" not in flags:
        pytest.skip("not an x86 processor")
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert native_precision("cpu")[0] == expected


def test_without_a_compiler_the_student_stays_uncompiled(
    student_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # elsewhere lies what was compiled before
    student, said = student_of("sd3"), []
    settings = RestoreConfig(process_size=0, posterior="mode")
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):  # what CXX sets
        restorer = Restorer.load(
            student.model, student.lora, config=settings, fast=FastPath(compile=True), report=said.append
        )
        lr = torch.rand(1, 3, 12, 16)
        image = restorer.restore_tensor(lr, 0)
    assert [line.split(" (")[0] for line in said] == ["not compiled: torch.compile does not work here"]
    assert not restorer.fast.compile
    torch.testing.assert_close(image, student.load(FastPath()).restore_tensor(lr, 0), rtol=1e-4, atol=2e-5)


def test_a_new_size_is_announced_before_it_is_compiled() -> None:
    said: list[str] = []
    sizes = Sizes(said.append)
    for size in ((512, 512), (512, 512), (640, 512)):
        sizes.meet(size)
    assert [line.split(":")[0] for line in said] == [
        "compiling for 512x512 pixels",
        "compiling again for 640x512 pixels",
    ]
