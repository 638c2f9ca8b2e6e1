"""The page: what is asked of the visitor, and what comes back. It is Gradio's, without anything from the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.app.html import VIEWER, result_list, status
from tsd.app.workshop import Result, Workshop, write_zip
from tsd.console.stages import DECODE, ENCODE, TILES, WRITE
from tsd.errors import UserError

if TYPE_CHECKING:
    import gradio  # pyright: ignore[reportMissingImports], it is in the extra `app` alone

TITLE = "Restore photographs"
HERE = Path(__file__).parent
STAGES = {
    ENCODE: "reading it into the model",
    TILES: "restoring",
    DECODE: "making the picture",
    WRITE: "writing",
}


def build_page(workshop: Workshop, note: str) -> "gradio.Blocks":
    """The page of a workshop.

    Args:
        note: says under the title which student restores, and what it is good for.
    """
    import gradio as gr  # pyright: ignore[reportMissingImports]

    config = workshop.restorer.config
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        gr.HTML(f"<p>{note}</p>", container=False)
        files = gr.File(label="Photographs", file_count="multiple", height=200)
        files.preprocess = _with_names  # the sanitised names of Gradio would give other seeds and other files
        with gr.Row():
            scale = gr.Number(config.scale, label="Enlargement", minimum=1, maximum=16, step=0.5, min_width=120)
            color = gr.Dropdown(
                ["wavelet", "adain", "none"], value=config.color, label="Colours taken from the photograph by",
                min_width=200,
            )  # fmt: skip
            tile = gr.Number(
                config.tile, label="Side of tiles (0: none)", minimum=0, precision=0, step=8, min_width=160
            )
        with gr.Row():
            start = gr.Button("Restore", variant="primary")
            stop = gr.Button("Stop")
        told = gr.HTML(status(""), container=False)
        results = gr.HTML("", container=False)
        gr.HTML(VIEWER, js_on_load=(HERE / "viewer.js").read_text(encoding="utf-8"), container=False)

        def restore(
            photographs: list[tuple[Path, str]] | None,
            scale: float | None,
            color: str,
            tile: float | None,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio's way of handing it over
        ) -> Iterator[tuple[str, str]]:
            if not photographs:
                yield status("there are no photographs yet: drop some into the field above", error=True), ""
                return
            count = len(photographs)

            def show(number: int, stage: str, done: int, total: int) -> None:
                name = f"{number + 1} of {count}: {photographs[number][1]}"
                progress((done, total), desc=f"{name}, {STAGES[stage]}", unit="parts")

            done: list[Result] = []
            settings = {"scale": _whole(scale), "color": color, "tile": _whole(tile)}
            try:
                for result in workshop.restore(photographs, settings, str(request.session_hash), show):
                    done.append(result)
                    yield status(f"{len(done)} of {count}"), result_list(done, None)
            except UserError as error:
                yield status(str(error), error=True), result_list(done, None)
                return
            restored, archive = [result for result in done if not result.error], None
            if len(restored) > 1:
                archive = restored[0].target.parent.parent / "restored.zip"
                write_zip(restored, archive)
            failed = len(done) - len(restored)
            yield (
                status(f"{len(restored)} of {count} restored" + (f", {failed} failed" if failed else ""), bool(failed)),
                result_list(done, archive),
            )

        def end(request: gr.Request) -> None:
            workshop.stop(str(request.session_hash))

        start.click(
            restore, [files, scale, color, tile], [told, results], show_progress_on=told, concurrency_limit=1,
            concurrency_id="networks", api_visibility="private",
        )  # fmt: skip
        stop.click(end, None, None, queue=False, api_visibility="private")
    return page


def theme() -> "gradio.themes.Base":
    """Gradio's plain theme with more contrast, and in the system's fonts: its own come from a server of Google's."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    states = ("", "_dark", "_hover", "_hover_dark")
    button = {f"button_primary_background_fill{state}": "*primary_700" for state in states}
    return plain.set(**button, link_text_color_dark="*secondary_300")


def _whole(value: float | None) -> object:
    """A number from a field, as a whole one where it is: the settings say what they expect."""
    return int(value) if value is not None and value == int(value) else value


def _with_names(payload: Any) -> list[tuple[Path, str]]:
    """Where uploaded files lie, which Gradio has checked, and what the visitor calls them."""
    files = [] if payload is None else payload.root
    return [(Path(file.path), Path(file.orig_name or file.path).name) for file in files]
