"""Writes the findings of a study: figure8.md, .csv, .svg and .png, and figure8-images.csv with the votes by image.

The paper's own figures stand beside, from `bench/paper/user_study.csv`. What was made from simulated raters says so in
every file.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

from scipy import stats

from bench.paper.tables import printed_rows
from bench.report.csvs import csv_text
from bench.report.document import DASH, Chapter, Document, Entry, Grid
from bench.report.markdown import to_markdown
from bench.report.plots import COLORS, LITERAL, PAPER, STYLE, pyplot, save
from bench.study.analyse import PRIOR, Estimate, Findings
from bench.study.simulate import known_shares
from bench.study.study import ALL, Study
from bench.study.votes import Ballot, Box
from tsd.files import write_text

SIMULATED = (
    "SIMULATED raters of known preference: this shows that the analysis works, and says nothing about any method."
)
PAPER_VOTES = 250
"""Per category: our inference, from shares that are all multiples of 0.4 %."""
PAPER_METHOD = "TSD-SR, printed in the paper"
ALIASES = {"faces": "human faces", "text": "characters"}
"""Names of our categories that mean one of the paper's."""


@dataclass(frozen=True)
class Scored:
    """A study with its votes.

    Attributes:
        findings: of the raters that count; `of_all`: of all raters, flagged ones too, None if none is flagged.
        counted: the raters of `findings`.
        resamples: of the bootstrap of `findings`.
    """

    study: Study
    box: Box
    counted: list[Ballot]
    findings: Findings
    of_all: Findings | None
    resamples: int

    @property
    def known(self) -> list[float] | None:
        """The known share of each method, if the raters are simulated alike."""
        words = {ballot.simulated for ballot in self.counted}
        return known_shares(words.pop()) if len(words) == 1 and self.box.simulated else None

    def recovered(self) -> bool | None:
        """Whether the known share of every method is inside its interval; None where nothing is known."""
        shares = self.findings.shares[ALL]
        if self.known is None or shares is None:
            return None
        return all(share.holds(known) for share, known in zip(shares, self.known, strict=True))


def write_report(scored: Scored, out: Path) -> list[Path]:
    """Writes all files into `out`; returns them."""
    files = {
        "figure8.md": to_markdown(_document(scored)),
        "figure8.csv": csv_text([*_rows(scored)]),
        "figure8-images.csv": csv_text([*_image_rows(scored)]),
    }
    for name, text in files.items():
        write_text(out / name, text)
    return [*(out / name for name in files), *_draw(scored, out / "figure8")]


def printed_shares() -> dict[str, float]:
    """The paper's Figure 8: the share of TSD-SR by category, in its order, `ALL` first."""
    return {row["category"]: float(row["approval_percent"]) / 100 for row in printed_rows("figure8")[1]}


def _printed_of(category: str) -> float | None:
    printed = {name.casefold(): share for name, share in printed_shares().items()}
    name = category.casefold()
    return printed.get(ALIASES.get(name, name))


def _document(scored: Scored) -> Document:
    study, findings = scored.study, scored.findings
    simulated = scored.box.simulated
    refused = [f"{path.name}: {reason}" for path, reason in scored.box.refused]
    flagged = [_rater(ballot) for ballot in scored.box.ballots if ballot.flags]
    partial = [
        f"Rater {ballot.rater + 1}: {len(ballot.answers)} of {ballot.asked} questions, which count"
        for ballot in scored.counted
        if len(ballot.answers) < ballot.asked
    ]
    counted = [rater for rater in flagged if len(scored.counted) == len(scored.box.ballots)]
    lists = [
        ("Files refused", tuple(refused)),
        ("Raters flagged, who count" if counted else "Raters flagged, who do not count", tuple(flagged)),
        ("Raters who did not answer all", tuple(partial)),
        ("How it was measured", tuple(_evidence(scored))),
    ]
    return Document(
        title=f"Figure 8: user study{', simulated raters' if simulated else ''}",
        about=(f"**{SIMULATED}** " if simulated else "")
        + f"“{study.question}” {len(study.images)} images of {study.testset}, {len(study.methods)} methods, "
        f"{len(scored.counted)} raters, {findings.votes[ALL]} votes. Study `{study.id}`.",
        chapters=(Chapter(None, "", tuple(_grids(scored))),),
        lists=tuple((title, lines) for title, lines in lists if lines),
    )


def _grids(scored: Scored) -> Iterator[Grid]:
    study, findings = scored.study, scored.findings
    categories = [*study.categories, *([ALL] if study.categories != [ALL] else [])]
    chance = 100 / len(study.methods)
    known = scored.known
    headers = ("Method", *categories, *(["Known"] if known else []))
    rows: list[tuple[Entry, ...]] = []
    for place, method in enumerate(study.methods):
        cells = [Entry(_share(findings.shares[category], place)) for category in categories]
        rows.append((Entry(method.display), *cells, *([Entry(f"{100 * known[place]:.1f}")] if known else [])))
    printed = [printed_shares().get(ALL) if category == ALL else _printed_of(category) for category in categories]
    cells = [Entry(DASH if share is None else f"{100 * share:.1f}") for share in printed]
    rows.append((Entry(PAPER_METHOD), *cells, *([Entry("")] if known else [])))
    counts = tuple(Entry(str(findings.votes[category])) for category in categories)
    rows.append((Entry("Votes"), *counts, *([Entry("")] if known else [])))
    how = "the share of the votes" if study.mode == "best" else "by the Bradley-Terry model, from votes on pairs"
    legend = (
        f"Shares in percent: how often a method is chosen out of all {len(study.methods)} ({how}; chance is "
        f"{chance:.1f}), with 95 % intervals over raters and images. {ALL} is the mean of the categories."
    )
    if known:
        inside = "inside" if scored.recovered() else "NOT inside"
        legend += f" The known preference is {inside} every interval of {ALL}."
    yield Grid(caption="", headers=headers, rows=tuple(rows), legend=legend)
    yield _scale(scored)
    if findings.metrics:
        yield Grid(
            caption="Metrics against votes",
            headers=("Metric", "Agrees with votes, %", "Spearman's ρ", "Votes"),
            rows=tuple(
                (
                    Entry(f"{metric.display} {'↑' if metric.higher_is_better else '↓'}"),
                    Entry(_percent(metric.agreement)),
                    Entry(DASH if metric.rho is None else f"{metric.rho:+.2f}"),
                    Entry(str(metric.votes)),
                )
                for metric in findings.metrics
            ),
            legend="How often the metric prefers the picture that was chosen (a coin: 50), and the correlation of its "
            "differences with those of the votes, over pairs of methods on images.",
        )
    yield _paper()


def _scale(scored: Scored) -> Grid:
    study, findings = scored.study, scored.findings
    wins, everyone = findings.wins[ALL], scored.of_all
    headers = ["Method", "Scale θ", "Chosen, %" if study.mode == "best" else "Wins, %"]
    if everyone is not None:
        headers.append("Share with flagged raters, %")
    rows: list[tuple[Entry, ...]] = []
    for place, method in enumerate(study.methods):
        theta = findings.scale[place]
        cells = [Entry(method.display), Entry(_interval(theta, 1, 2, signed=True))]
        cells.append(Entry(DASH if wins is None else _percent(wins[place])))
        if everyone is not None:
            cells.append(Entry(_share(everyone.shares[ALL], place)))
        rows.append(tuple(cells))
    what = "the share of the votes" if study.mode == "best" else "the share of its pairs that a method won"
    return Grid(
        caption="Scale",
        headers=tuple(headers),
        rows=tuple(rows),
        legend=f"Bradley and Terry's θ over all votes, mean zero: a difference of 1 is a preference of 73 to 27. "
        f"{headers[2].partition(',')[0]}: {what}, mean of the categories.",
    )


def _paper() -> Grid:
    """The printed shares with the intervals that they would have if all votes were independent."""
    rows: list[tuple[Entry, ...]] = []
    for category, share in printed_shares().items():
        votes = PAPER_VOTES * (5 if category == ALL else 1)
        low, high = stats.binomtest(round(share * votes), votes).proportion_ci(method="wilson")
        printed = f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        rows.append((Entry(category), Entry(printed), Entry(str(votes))))
    return Grid(
        caption=f"The paper's own figures ({PAPER_METHOD}, best of four by 50 participants)",
        headers=("Category", "Printed, %", "Votes"),
        rows=tuple(rows),
        legend="The paper states neither votes nor intervals. 250 votes for each category is our inference: all five "
        "shares are multiples of 0.4 %. The intervals are Wilson's, as if votes were independent; true ones are wider.",
    )


def _evidence(scored: Scored) -> Iterator[str]:
    study, findings = scored.study, scored.findings
    same, repeats = findings.consistency
    total = findings.votes[ALL] + findings.unsure[ALL]
    times = [answer.seconds for ballot in scored.counted for answer in ballot.answers]
    shown = {"hr": "the ground truth", "lr": "the input"}
    beside = " and ".join(shown[side] for side in study.show) or "nothing"
    yield (
        f"Asked: {'best of all methods' if study.mode == 'best' else 'pairs of methods'}, criterion {study.criterion}, "
        f"beside them {beside}; a balanced design of {len(study.trials)} raters, seed {study.seed}."
    )
    yield f"Not sure: {findings.unsure[ALL]} of {total} answers, which are no votes."
    if repeats:
        yield f"Repeated questions answered as before: {same} of {repeats} ({same / repeats:.0%})."
    if findings.alpha is not None:
        yield f"Krippendorff's alpha of the raters: {findings.alpha:.2f} (1 is agreement, 0 is chance)."
    if findings.left is not None:
        yield f"The left picture was chosen in {findings.left:.0%} of the votes."
    yield f"Half of the answers took less than {median_high(times):.1f} s."
    yield (
        f"Intervals: {scored.resamples} resamples of raters and, within categories, of images, both at once. {PRIOR} "
        "of a vote is added to each side of a comparison, so that a method that won all has a place."
    )
    slots = [ballot.rater for ballot in scored.counted]
    twice = len(slots) - len(set(slots))
    unused = len(study.trials) - len(set(slots))
    if twice or unused:
        yield f"Of the {len(study.trials)} places of the design {unused} are empty and {twice} are taken twice or more."
    yield (
        f"Images of the run {study.run}; the study was made by version {study.made_by} of bench. Checksums show damage "
        "and careless edits of votes, not forgeries."
    )


def _rater(ballot: Ballot) -> str:
    return f"Rater {ballot.rater + 1} ({ballot.path.name}): {'; '.join(ballot.flags)}"


def _share(shares: list[Estimate] | None, place: int) -> str:
    return DASH if shares is None else _percent(shares[place])


def _percent(estimate: Estimate) -> str:
    return _interval(estimate, 100, 1)


def _interval(estimate: Estimate, factor: float, decimals: int, signed: bool = False) -> str:
    form = f"{'+' if signed else ''}.{decimals}f"
    if math.isnan(estimate.value):
        return DASH
    text = f"{factor * estimate.value:{form}}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"


def _rows(scored: Scored) -> Iterator[dict[str, Any]]:
    """One number a line, unrounded; shares and agreements lie between 0 and 1."""
    study, findings = scored.study, scored.findings
    source = "simulated" if scored.box.simulated else "measured"

    def row(quantity: str, category: str, subject: str, display: str, estimate: Estimate, votes: int) -> dict[str, Any]:
        value = None if math.isnan(estimate.value) else estimate.value
        return {
            "source": source, "study": study.id, "quantity": quantity, "category": category, "subject": subject,
            "display": display, "value": value, "ci95_low": estimate.low, "ci95_high": estimate.high, "votes": votes,
        }  # fmt: skip

    for place, method in enumerate(study.methods):
        for quantity, values in (("share", findings.shares), ("win_rate", findings.wins)):
            for category, estimates in values.items():
                if estimates is not None:
                    votes = findings.votes[category]
                    yield row(quantity, category, method.name, method.display, estimates[place], votes)
        yield row("scale", ALL, method.name, method.display, findings.scale[place], findings.votes[ALL])
        if scored.known is not None:
            yield row("known_share", ALL, method.name, method.display, Estimate(scored.known[place]), 0)
    for metric, fit in zip(study.metrics, findings.metrics, strict=True):
        yield row("metric_agreement", ALL, metric.name, metric.display, fit.agreement, fit.votes)
        if fit.rho is not None:
            yield row("metric_rho", ALL, metric.name, metric.display, Estimate(fit.rho), fit.votes)
    for quantity, value in (("alpha", findings.alpha), ("left", findings.left)):
        if value is not None:
            yield row(quantity, ALL, "", "", Estimate(value), findings.votes[ALL])
    for category, share in printed_shares().items():
        votes = PAPER_VOTES * (5 if category == ALL else 1)
        printed = row("share", category, "tsd-sr", PAPER_METHOD, Estimate(share), votes)
        yield printed | {"source": "paper (votes inferred)", "study": ""}


def _image_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    study, findings = scored.study, scored.findings
    for place, image in enumerate(study.images):
        for number, method in enumerate(study.methods):
            yield {
                "source": "simulated" if scored.box.simulated else "measured",
                "study": study.id,
                "testset": study.testset,
                "image": image.name,
                "category": image.category,
                "method": method.name,
                "sr_sha256": image.sr_sha256[number],
                "chosen": findings.chosen[place][number],
                "votes": findings.decided[place],
            }


def _draw(scored: Scored, stem: Path) -> list[Path]:
    """The radar of shares by category, where there are three or more, and the shares of all; with intervals."""
    study, plt = scored.study, pyplot()
    categories = study.categories
    radar = len(categories) >= 3
    with plt.rc_context(STYLE | LITERAL):
        figure = plt.figure(figsize=(10, 4.8) if radar else (6.4, 4.2), layout="constrained")
        grid = figure.add_gridspec(1, 2 if radar else 1, width_ratios=[1.15, 1] if radar else None)
        if radar:
            _radar(figure.add_subplot(grid[0, 0], projection="polar"), scored, categories)
        _bars(figure.add_subplot(grid[0, -1]), scored)
        title = f"{study.question} {len(scored.counted)} raters, {len(study.images)} images"
        if scored.box.simulated:
            title = "SIMULATED raters of known preference: says nothing about any method"
        figure.suptitle(title, fontsize=10, color="#B00020" if scored.box.simulated else "black")
        paths = save(figure, stem, (".svg", ".png"))
        plt.close(figure)
    return paths


def _radar(axis: Any, scored: Scored, categories: Sequence[str]) -> None:
    angles = [2 * math.pi * place / len(categories) for place in range(len(categories))]
    closed = [*angles, angles[0]]
    shares = scored.findings.shares
    for number, method in enumerate(scored.study.methods):
        estimates = [of_all[number] if (of_all := shares[category]) is not None else None for category in categories]
        color = COLORS[number % len(COLORS)]
        values = [math.nan if estimate is None else estimate.value for estimate in estimates]
        axis.plot(closed, [*values, values[0]], color=color, linewidth=1.6, label=method.display)
        low, high = (
            [math.nan if e is None or (edge := getattr(e, side)) is None else edge for e in estimates]
            for side in ("low", "high")
        )
        axis.fill_between(closed, [*low, low[0]], [*high, high[0]], color=color, alpha=0.13, linewidth=0)
    printed = [_printed_of(category) for category in categories]
    known = [(angle, share) for angle, share in zip(angles, printed, strict=True) if share is not None]
    if len(known) == len(categories):
        known.append(known[0])
    if known:
        axis.plot(*zip(*known, strict=True), color=PAPER, linestyle="--", marker="s", markersize=4, label=PAPER_METHOD)
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, categories)
    axis.set_ylim(0, 1)
    axis.set_rlabel_position(180 / len(categories))
    axis.set_yticks([0.25, 0.5, 0.75, 1.0], ["25 %", "50 %", "75 %", "100 %"], fontsize=7, color="#6b6b6b")
    axis.grid(color="#DDDDDD")
    axis.spines["polar"].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8, ncols=2)


def _bars(axis: Any, scored: Scored) -> None:
    study, shares = scored.study, scored.findings.shares[ALL]
    assert shares is not None  # there are votes
    for place, estimate in enumerate(shares):
        color = COLORS[place % len(COLORS)]
        axis.barh(place, 100 * estimate.value, color=color, height=0.62)
        if estimate.low is not None and estimate.high is not None:
            axis.plot([100 * estimate.low, 100 * estimate.high], [place, place], color="#1c1f23", linewidth=1.4)
        end = 100 * (estimate.high if estimate.high is not None else estimate.value)
        axis.annotate(
            f"{100 * estimate.value:.1f} %", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
        if scored.known is not None:
            axis.plot(100 * scored.known[place], place, "D", color="white", markeredgecolor="#1c1f23", markersize=6)
    printed = printed_shares()[ALL]
    place = len(study.methods)
    axis.barh(place, 100 * printed, color=PAPER, height=0.62)
    axis.annotate(
        f"{100 * printed:.1f} %", (100 * printed, place), (4, 0), textcoords="offset points", va="center", fontsize=8
    )
    axis.set_yticks(range(place + 1), [*(method.display for method in study.methods), PAPER_METHOD])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    note = "\ndiamonds: the known preference" if scored.known is not None else ""
    axis.set_xlabel(f"share in %; lines: 95 % intervals{note}", fontsize=8)
