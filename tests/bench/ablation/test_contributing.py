"""The question and the loss of one's own that CONTRIBUTING.md shows are trained as they stand there."""

import re
import threading
import tomllib
from pathlib import Path

import pytest

from bench.ablation.cells import Identity, jobs_of
from bench.ablation.domain import open_domain
from bench.ablation.experiment import check_experiment, experiment_from
from bench.ablation.report.write import write_report
from bench.ablation.sweep import load_records
from bench.ablation.worker import Worker

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_worked_example_answers_its_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n# mine.py\n(.+?)```", text, re.DOTALL)
    (question,) = re.findall(r"```toml\n(.+?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(source)
    raw = tomllib.loads(question)
    raw["settings"] = {"steps": 20}
    experiment = experiment_from(raw)
    domain = open_domain(experiment.domain)
    check_experiment(experiment, domain)
    worker = Worker(domain, "cpu", 1, threading.Event())  # pyright: ignore[reportArgumentType]
    for job in jobs_of(experiment, domain, Identity.of(domain), Path("out"), experiment.arms, range(6)):
        ended = worker.run(job)
        assert ended.status == "done", ended.error
    records = load_records(experiment, domain, Path("out"))
    report = write_report(experiment, domain, records, Path("out"))
    distance, mse = report.findings.results
    assert [distance.paired.n, mse.paired.n] == [6, 6]
    assert abs(distance.paired.mean) > 1e-4  # the function was used
    assert "λ = t / 1000 against λ = .7: Distance to mode" in report.markdown
