"""Guards pyiqa: it is imported late, prints nothing to stdout, and cannot download files or execute what it loads."""

import contextlib
import io
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from typing import NoReturn

from bench.metrics.weights import hub_dir
from tsd.errors import UserError


@contextlib.contextmanager
def guarded_pyiqa() -> Iterator[None]:
    """Keeps pyiqa from printing, downloading, and calling `torch.load` without `weights_only=True`.

    pyiqa prints to stdout (which is for results), downloads missing files, and unpickles with `weights_only=False`. It
    also sets its cache folder at import; here it is set to the current $TORCH_HOME.

    Raises:
        UserError: pyiqa asked for a file that is not in `bench.metrics.weights`, or a file holds more than tensors.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.hub

        # transformers, which pyiqa imports, announces an optional package at import.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        import pyiqa.utils.download_util as pyiqa_download

        logging.getLogger("pyiqa").setLevel(logging.WARNING)

        def refuse(url: str, *args: object, **kwargs: object) -> NoReturn:
            raise UserError(
                f"the installed pyiqa or torchvision wants to download {url}, which bench does not list; nothing is "
                "downloaded unasked. Install the versions in constraints.txt"
            )

        before = (
            torch.hub.download_url_to_file,
            pyiqa_download.download_url_to_file,
            pyiqa_download.DEFAULT_CACHE_DIR,
            os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"),
        )
        torch.hub.download_url_to_file = refuse
        pyiqa_download.download_url_to_file = refuse
        pyiqa_download.DEFAULT_CACHE_DIR = str(hub_dir() / "pyiqa")
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            yield
        except pickle.UnpicklingError as error:
            raise UserError(f"a weight file holds more than tensors, and is not loaded: {error}") from error
        finally:
            torch.hub.download_url_to_file = before[0]
            pyiqa_download.download_url_to_file = before[1]
            pyiqa_download.DEFAULT_CACHE_DIR = before[2]
            if before[3] is None:
                del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            else:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before[3]
