"""The report puts the paper's figures of each data set beside what was measured there."""

from bench.ablation.experiment import EXPERIMENTS, read_experiment
from bench.ablation.paper.call import opened
from bench.ablation.paper.files import Files
from bench.ablation.records import Row, SweepRecords
from bench.ablation.report.published import Published
from bench.ablation.report.results import find
from bench.ablation.report.tables import lay_out
from bench.report.markdown import to_markdown


def test_each_data_set_has_a_table_with_the_papers_figures() -> None:
    experiment, domain = opened(read_experiment(EXPERIMENTS / "paper-table4.toml"), Files())
    rows = tuple(
        Row(arm.name, None, 0, "key", {}, {measure.name: 0.5 for measure in domain.measures}, cpu_seconds=1.0)
        for arm in experiment.arms
    )
    records = SweepRecords(rows, {})
    published = Published(experiment, domain)
    text = to_markdown(lay_out(experiment, domain, records, find(experiment, domain, records, published), published))
    drealsr, realsr = text.index("**DRealSR**"), text.index("**RealSR**")
    assert drealsr < realsr
    first, second = text[drealsr:realsr], text[realsr : text.index("**Paired differences")]
    for part, figures, own in ((first, ("0.2967", "139.67"), "DRealSR"), (second, ("0.2743", "117.15"), "RealSR")):
        assert all(figure in part for figure in figures)
        assert f"The paper's figures are its own for {own}." in part
    assert "0.2743" not in first
    assert "paper's FID of RealSR" in second
    assert "1 seed cannot reach p < .05" in text
