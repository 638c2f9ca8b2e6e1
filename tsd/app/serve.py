"""Serves the page until it is interrupted: on this machine alone unless asked, and nothing stays on the disk."""

import os
import signal
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.errors import UserError
from tsd.files import is_mini_model, printable

if TYPE_CHECKING:
    from tsd.restore import Restorer

LOCAL = "127.0.0.1"
PORT = 7860
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Variables that keep Gradio from reporting to its makers; one that is set already stays as it is."""


@dataclass(frozen=True)
class Serving:
    """How the page is served.

    Attributes:
        host, port: where it is bound; the port None takes the first free one from `PORT` on.
        share: make a public link by Gradio's own servers.
        open: open the page in this machine's browser.
        max_file_mb: largest file that may be uploaded.
        memory_gb: memory of the whole process to plan for, in GB; by default what is free.
    """

    host: str = LOCAL
    port: int | None = None
    share: bool = False
    open: bool = False
    max_file_mb: float = 200
    memory_gb: float | None = None


def check_serving(serving: Serving) -> None:
    """Refuses what cannot be served, before anything heavy is imported.

    Raises:
        UserError: Gradio is not installed, the port is taken or the host is none of this machine's, or a size that is
            none.
    """
    if find_spec("gradio") is None:
        raise UserError("`tsd app` needs the package gradio: pip install 'tsd-sr-bench[app]'")
    if not 0 < serving.max_file_mb < float("inf"):
        raise UserError(f"--max-file-size is {serving.max_file_mb:g}; expected a number of MB above 0")
    if serving.memory_gb is not None and not serving.memory_gb > 0:
        raise UserError(f"--memory is {serving.memory_gb:g}; expected a number of GB above 0")
    if serving.port is not None and not 0 < serving.port < 65536:
        raise UserError(f"--port is {serving.port}; expected 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in serving.host else socket.AF_INET) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((serving.host, serving.port or 0))
        except OSError as error:
            raise UserError(
                f"{serving.host}:{serving.port or PORT} cannot be served from ({error}): choose another --port, or "
                f"--host {LOCAL}"
            ) from error


def serve(restorer: "Restorer", serving: Serving) -> None:
    """Serves the page until Ctrl-C, SIGTERM or the end of the terminal, and removes uploads and results."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="tsd-app-", ignore_cleanup_errors=True) as temporary:
        _serve(restorer, serving, Path(temporary))


def _serve(restorer: "Restorer", serving: Serving, folder: Path) -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # read when Gradio is imported, and after
    from tsd.app.page import HERE, build_page, theme
    from tsd.app.workshop import Workshop

    results = folder / "results"
    results.mkdir()
    workshop = Workshop(restorer, results, serving.memory_gb)
    page = build_page(workshop, describe(restorer)).queue(max_size=32, api_open=False)
    try:
        _, address, shared = page.launch(
            server_name=serving.host, server_port=serving.port, share=serving.share, inbrowser=serving.open,
            max_file_size=f"{serving.max_file_mb:g}mb", allowed_paths=[str(results)], prevent_thread_lock=True,
            quiet=True, theme=theme(), css_paths=HERE / "viewer.css", footer_links=[], run_history=False,
            ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        )  # fmt: skip
        print(f"the page is at {address} (Ctrl-C ends it, and removes uploads and results)", flush=True)
        if shared:
            print(f"and, for everyone who knows the address, at {shared}", flush=True)
        if serving.host != LOCAL and not serving.share:
            print(f"note: bound to {serving.host}, it is open to everyone who reaches this machine", file=sys.stderr)
        while not threading.Event().wait(1):
            pass
    finally:
        workshop.close()
        page.close(verbose=False)


def describe(restorer: "Restorer") -> str:
    """Which student restores, as HTML."""
    if is_mini_model(restorer.sources["model"]):
        return (
            "With the mini model, a test model for damaged photographs enlarged ×4: it removes noise, blur and "
            "compression and invents no texture. What is clean it hardly improves."
        )
    return f"With {escape(printable(Path(restorer.sources['model']).name))}."
