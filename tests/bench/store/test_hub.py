"""The real client of the Hugging Face hub against a small hub on the loopback: folders, files, hashes, refusals."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

import bench.store.hub
from bench.cards.card import Weight
from bench.fetch.weights import get_weights, record_first_hashes
from bench.options import RunOptions
from bench.store.download import GIT, digest_of
from bench.store.store import Store, verified_files
from tsd.errors import UserError

COMMIT = "c" * 40
LARGE = b"many numbers " * 5000
CONFIG = b'{"hidden": 4}\n'


def blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Hub:
    """Repositories by name: their files, which of them are stored as large, and the hash stated instead of the true."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    stated: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def info(self, name: str) -> dict[str, object]:
        siblings = []
        for path, content in self.files[name].items():
            entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
            if len(content) > 1000:
                sha256 = self.stated.get(path, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "private": False}

    def tree(self, name: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            for path, content in self.files[name].items()
        ]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        parts = urlparse(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name in self.hub.gated:
                self.refuse(403, "GatedRepo")
            elif name not in self.hub.files:
                self.refuse(404, "RepoNotFound")
            else:
                self.send(json.dumps(self.hub.tree(name) if "tree" in parts else self.hub.info(name)).encode(), head)
            return
        if "resolve" not in parts:
            self.send(b"", head)
            return
        name, path = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.hub.files[name][path]
        if not head:
            self.hub.sent.append(path)
        self.send(content, head, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": COMMIT})

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", False, {"X-Error-Code": code}, status)

    def send(self, content: bytes, head: bool, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub is on the loopback
    content = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": content})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(bench.store.hub, "HUB", f"http://127.0.0.1:{server.server_address[1]}")
        yield content
        server.shutdown()


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(weights_root=tmp_path / "weights")


BASE = Weight("base/", hub=("gone/base", "me/base"), contains=("unet/config.json", "unet/net.safetensors"))
FILES = {"unet/config.json": CONFIG, "unet/net.safetensors": LARGE, "unet/net.fp16.safetensors": b"unasked for"}


def test_a_folder_comes_from_the_first_mirror_that_has_it_with_the_hashes_the_hub_states(
    hub: Hub, options: RunOptions
) -> None:
    hub.files["me/base"] = FILES
    get_weights((BASE,), options)
    folder = options.weights() / "base"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "unet/config.json", "unet/net.safetensors",
    ]  # fmt: skip
    assert sorted(hub.sent) == ["unet/config.json", "unet/net.safetensors"]
    known = Store(options).known(BASE)
    assert known["base/unet/net.safetensors"].digest == hashlib.sha256(LARGE).hexdigest()
    assert known["base/unet/config.json"].digest == GIT + blob_id(CONFIG)
    assert {entry.by for entry in known.values()} == {"hf:me/base"}
    hashes = verified_files((BASE,), options, licence="", needed_by="Net", fetch="base")
    assert hashes["base/unet/config.json"] == hashlib.sha256(CONFIG).hexdigest()
    assert record_first_hashes((BASE,), "base", options) == []  # the hub has stated every hash
    (folder / "unet" / "config.json").write_bytes(b'{"hidden": 8}\n')
    with pytest.raises(UserError, match=r"base/unet/config.json: git blob .*, expected git blob .*hf:me/base"):
        verified_files((BASE,), options, licence="", needed_by="Net", fetch="base")


def test_one_file_of_a_repository(hub: Hub, options: RunOptions) -> None:
    hub.files["me/net"] = {"weights/v2.pth": LARGE}
    weight = Weight("diffbir/v2.pth", hub=("me/net@main:weights/v2.pth",))
    get_weights((weight,), options)
    assert (options.weights() / "diffbir" / "v2.pth").read_bytes() == LARGE
    assert [path.name for path in (options.weights() / "diffbir").iterdir()] == ["v2.pth"]


def test_other_contents_than_the_card_knows_are_deleted_and_the_next_place_is_tried(
    hub: Hub, options: RunOptions
) -> None:
    hub.files |= {"changed/net": {"net.pth": LARGE + b"!"}, "me/net": {"net.pth": LARGE}}
    weight = Weight("net.pth", hub=("changed/net:net.pth", "me/net:net.pth"), sha256=hashlib.sha256(LARGE).hexdigest())
    get_weights((weight,), options)
    assert (options.weights() / "net.pth").read_bytes() == LARGE
    (options.weights() / "net.pth").unlink()
    del hub.files["me/net"]
    with pytest.raises(UserError, match=r"(?s)net.pth has .*, expected .*deleted.*me/net: no such repository"):
        get_weights((weight,), options)
    assert not (options.weights() / "net.pth").exists()


def test_what_the_hub_sends_must_be_what_it_states(hub: Hub, options: RunOptions) -> None:
    hub.files["me/base"], hub.stated = FILES, {"unet/net.safetensors": "0" * 64}
    with pytest.raises(UserError, match=r"unet/net.safetensors has [0-9a-f]+…, expected 0000.*deleted"):
        get_weights((BASE,), options)
    assert not (options.weights() / "base").exists()


def test_a_gated_repository_says_how_to_get_access(hub: Hub, options: RunOptions) -> None:
    hub.gated.add("me/base")
    with pytest.raises(UserError, match=r"me/base is gated: log in at .*`hf auth login`"):
        get_weights((Weight("base/", hub=("me/base",), contains=("a",)),), options)


def test_only_what_a_folder_lacks_is_fetched(hub: Hub, options: RunOptions) -> None:
    hub.files["me/base"] = FILES
    config = options.weights() / "base" / "unet" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_bytes(CONFIG)
    get_weights((BASE,), options)
    assert hub.sent == ["unet/net.safetensors"]
    assert record_first_hashes((BASE,), "base", options) == []  # the hub states the hash of what was there too
    config.write_bytes(b"of one's own")
    (options.weights() / "base" / "unet" / "net.safetensors").unlink()
    get_weights((BASE,), options)
    assert config.read_bytes() == b"of one's own"
    with pytest.raises(UserError, match="damaged, or another version"):
        record_first_hashes((BASE,), "base", options)


def test_a_repository_without_one_of_the_files(hub: Hub, options: RunOptions) -> None:
    hub.files["me/base"] = {"unet/config.json": CONFIG}
    with pytest.raises(UserError, match=r"hf:me/base has no unet/net\.safetensors"):
        get_weights((BASE,), options)


def test_no_network_is_an_error_within_seconds(options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.store.hub, "HUB", "http://hub.invalid")
    with pytest.raises(UserError, match="cannot be reached: no network"):
        get_weights((BASE,), options)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models that `tsd` names on the hub. Nobody, not even root, makes a folder in /sys."""
    from tsd.model.loading import resolve_model

    if not Path("/sys").is_dir():
        pytest.skip("no /sys")
    hub.files["me/base"] = {"vae/config.json": CONFIG}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", bench.store.hub.HUB)
    template = f"{bench.store.hub.HUB}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/sys/hub")
    with pytest.raises(UserError, match=r"/sys/hub, and that folder cannot be written .*set HF_HUB_CACHE"):
        resolve_model("me/base")
    hub.gated.add("me/base")
    with pytest.raises(UserError, match="me/base is gated: accept its licence"):
        resolve_model("me/base")


def test_behind_a_proxy_the_proxy_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsd.model.loading import probe_hub

    with pytest.raises(socket.gaierror):
        probe_hub("https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", bench.store.hub.HUB)
    probe_hub("https://hub.invalid")
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    with pytest.raises(socket.gaierror):
        probe_hub("https://hub.invalid")


def test_a_git_blob_id_is_gits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"what is up, doc?")  # the example of the Git book, chapter 10.2
    assert digest_of(tmp_path / "a", GIT) == "git:bd9dbf5aae1a3862dd1526723246b20206e5fc37"
