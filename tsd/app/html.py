"""The parts of the page that are ours: the list of results, and the two pictures to compare. Names stay text."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from tsd.app.workshop import Result
from tsd.files import human_size, printable

VIEWER = """\
<section class="tsd-viewer" aria-label="Compare" hidden>
<div class="tsd-bar">
<label>input <input type="range" min="0" max="100" step="0.5" value="50" aria-label="Where the input ends and the
result begins, in percent"> result</label>
<span role="group" aria-label="Zoom">
<button type="button" data-zoom="fit">Fit</button>
<button type="button" data-zoom="1">1:1</button>
<button type="button" data-zoom="2">2×</button>
<button type="button" data-zoom="4">4×</button>
<button type="button" data-zoom="8">8×</button>
</span>
<output aria-live="polite"></output>
</div>
<div class="tsd-pane" tabindex="0" role="group" aria-label="The two pictures: arrows move them, + and − zoom, 0 is 1:1">
<img class="tsd-after" alt="" draggable="false"><img class="tsd-before" alt="" draggable="false"><i></i>
</div>
</section>
"""


def status(text: str, error: bool = False) -> str:
    """A line about the batch, which screen readers read out."""
    kind, role = ("tsd-status tsd-error", "alert") if error else ("tsd-status", "status")
    return f'<p class="{kind}" role="{role}">{_text(text)}</p>'


def result_list(results: Sequence[Result], archive: Path | None) -> str:
    """The list of what became of each photograph, with links to the files; `archive` holds them all."""
    rows = "".join(_failed(result) if result.error else _restored(result) for result in results)
    done = sum(not result.error for result in results)
    link = "" if archive is None else f"<p>{_link(archive, 'restored.zip', f'All {done} as a zip')}</p>"
    return f'<ul class="tsd-results">{rows}</ul>{link}' if rows else ""


def _restored(result: Result) -> str:
    width, height = result.size
    compare = ""
    if result.before is not None:
        facts = {"before": _url(result.before), "after": _url(result.target), "name": result.name}
        data = " ".join(f'data-{key}="{_text(value)}"' for key, value in facts.items())
        compare = f'<button type="button" {data} aria-label="Compare {_text(result.name)}">Compare</button>'
    notes = list(result.notes)
    if result.before is None:
        notes.append("too large to be compared in a browser")
    return (
        f'<li><span class="tsd-name">{_text(result.name)}</span> '
        f"<span>{width}×{height}, {result.seconds:.1f} s</span> {compare} "
        f"{_link(result.target, result.target.name, f'PNG, {human_size(result.target.stat().st_size)}')}"
        f"{''.join(f'<small>{_text(note)}</small>' for note in notes)}</li>"
    )


def _failed(result: Result) -> str:
    return (
        f'<li class="tsd-error"><span class="tsd-name">{_text(result.name)}</span> '
        f'<span role="alert">{_text(result.error)}</span></li>'
    )


def _link(path: Path, name: str, text: str) -> str:
    label = f"Download {_text(name)}"
    return f'<a href="{_text(_url(path))}" download="{_text(name)}" aria-label="{label}">{_text(text)}</a>'


def _url(path: Path) -> str:
    """Where the page finds a file, relative to its own address, which a proxy may put anywhere."""
    return f"gradio_api/file={quote(str(path))}"


def _text(text: str) -> str:
    return escape(printable(text))
