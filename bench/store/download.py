"""Downloads one file: resumes after an interruption, verifies the hash, and only then gives the file its name.

An incomplete file is called `<name>.part`, in the folder of the final file. The last step is an atomic rename, so a
reader never sees half a file.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from bench.provenance import cached_sha256
from bench.store.content import content_fault, is_web_page
from tsd.errors import UserError

if TYPE_CHECKING:
    import requests

HUB = "https://huggingface.co"
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
ATTEMPTS = 5
PAUSE_SECONDS = 1.0
CHUNK_BYTES = 1 << 20
GIT = "git:"


class BrokenTransferError(OSError):
    """The connection ended before the file did."""


class NotTheFileError(OSError):
    """The server answered with something else."""


def mirrored(url: str) -> str:
    """The address at the mirror that HF_ENDPOINT names, for addresses of the hub; others stay.

    Raises:
        UserError: HF_ENDPOINT is no address.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if not endpoint or (url != HUB and not url.startswith(f"{HUB}/")):
        return url
    if not endpoint.startswith(("https://", "http://")):
        raise UserError(f"HF_ENDPOINT is {endpoint!r}; expected the address of a mirror of the hub, https://…")
    return endpoint + url.removeprefix(HUB)


def download(
    urls: Sequence[str],
    target: Path,
    digest: str | None,
    title: str | None = None,
    *,
    size_bytes: int | None = None,
) -> None:
    """Fetches `target` from the first of `urls` that has it.

    An earlier `.part` is continued. If the hash is known, it decides whether the continued file is right; if it is
    not, the file is transferred once more from the start. Without a known hash the server must confirm, by its entity
    tag, that its file is still the one that the part was taken from, and the file must be what its name says
    (`bench.store.content`).

    Args:
        digest: the sha256 or its first digits, or "git:" and the blob id; None where none is published.
        title: the text of the progress bar; the file name by default.
        size_bytes: the stated size, which counts where no hash is known.

    Raises:
        UserError: no address gave the file; the message gives the reason for each. Without a network this takes
            seconds, not minutes.
    """
    import requests

    part = target.with_name(f"{target.name}.part")
    failures: list[str] = []
    for url in map(mirrored, urls):
        for start_again in (False, True):
            tag = _tag(part, url)
            resumed = not start_again and part.is_file() and (digest is not None or tag is not None)
            if not resumed:
                _discard(part)
            try:
                with requests.Session() as session:
                    _transfer(session, url, part, title or target.name, only_if_same=digest is None)
            except (requests.RequestException, OSError) as error:
                failures.append(f"{url}: {_reason(error)}")
                break
            if digest is None and (fault := content_fault(part, target.name, size_bytes)):
                _discard(part)
                failures.append(f"{url}: not the file but {fault}; the download was deleted")
                break
            found = digest_of(part, digest)
            if digest is None or found.startswith(digest):
                os.replace(part, target)
                _discard(part)
                return
            _discard(part)
            if not resumed:
                failures.append(f"{url}: sha256 {found[:16]}…, expected {digest[:16]}…; the download was deleted")
                break
    raise UserError("\n  ".join([f"{target.name} could not be fetched:", *failures]))


def digest_of(path: Path, like: str | None) -> str:
    """Hashes a file in the form of the hash `like`: sha256 in hex, or "git:" and the id of the file as a git blob."""
    if like is None or not like.startswith(GIT):
        return cached_sha256(path)
    total = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
    return GIT + total.hexdigest()


def _transfer(session: "requests.Session", url: str, part: Path, title: str, *, only_if_same: bool) -> None:
    """Appends to `part` until it is complete. Reconnects after a broken connection if that one transferred anything."""
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            return _receive(session, url, part, title, only_if_same)
        except OSError:  # requests' own exceptions are OSErrors too
            if _size(part) == before or attempt == ATTEMPTS - 1:
                raise
            sleep(PAUSE_SECONDS)
    return None


def _receive(session: "requests.Session", url: str, part: Path, title: str, only_if_same: bool) -> None:
    from tsd.console.progress import Progress

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a compressed body could neither be resumed nor counted
    if have:
        headers["Range"] = f"bytes={have}-"
        if only_if_same:
            headers["If-Range"] = _tag(part, url) or '"none"'
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
        if answer.status_code == 416 and have:
            return  # the server has nothing beyond the part; the hash says whether that is the whole file
        answer.raise_for_status()
        if only_if_same and is_web_page(answer.headers.get("Content-Type")):
            raise NotTheFileError(f"the server answered with a web page ({answer.headers['Content-Type']})")
        part.parent.mkdir(parents=True, exist_ok=True)  # only now, so that a failed request leaves no empty folder
        if answer.status_code != 206:
            have = 0  # the server does not resume: it sends the file from the start
            _remember_tag(part, url, answer.headers.get("ETag"))
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            part.open("ab" if have else "wb") as file,
            Progress(total=total, initial=have, desc=title, unit="B", unit_scale=True) as bar,
        ):
            while piece := _next_piece(answer):
                file.write(piece)
                bar.update(len(piece))
    if total is not None and _size(part) < total:
        raise BrokenTransferError(f"connection closed after {_size(part)} of {total} bytes")


def _next_piece(answer: "requests.Response") -> bytes:
    """What has arrived, one byte or more; empty at the end.

    `iter_content` gathers whole chunks, and loses what it has gathered when the connection breaks.
    """
    from urllib3.exceptions import HTTPError

    try:
        return answer.raw.read1(CHUNK_BYTES, decode_content=True)
    except HTTPError as error:
        raise BrokenTransferError(f"connection broken ({error})") from error


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _tag(part: Path, url: str) -> str | None:
    """The strong entity tag under which `part` was begun at `url`."""
    try:
        begun = json.loads(_tag_file(part).read_text(encoding="utf-8"))
        return begun["etag"] if begun["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember_tag(part: Path, url: str, etag: str | None) -> None:
    if etag is None or etag.startswith("W/"):  # a weak tag says nothing about bytes
        _tag_file(part).unlink(missing_ok=True)
    else:
        _tag_file(part).write_text(json.dumps({"url": url, "etag": etag}), encoding="utf-8")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: Exception) -> str:
    """One readable line for an exception, instead of urllib3's nested ones."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time (no network, or a firewall)"
    if isinstance(error, requests.ConnectionError):
        return "no connection (no network, or a name that cannot be resolved)"
    return str(error)
