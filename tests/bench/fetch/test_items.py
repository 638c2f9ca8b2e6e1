"""`bench fetch` against a server on the loopback: resuming, hashes, mirrors, licences; and what happens offline."""

import hashlib
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import bench.fetch.items
import bench.fetch.testsets
import bench.methods.published.published
import bench.store.download
import bench.store.hub
import bench.testsets.manifest
from bench.cards.card import Weight, assets, cards
from bench.cli import main
from bench.fetch.weights import get_weights
from bench.methods.published.published import absent_outputs, fetch_published
from bench.metrics import METRICS
from bench.metrics.weights import MetricFile
from bench.options import RunOptions
from bench.store.download import download
from bench.store.missing import Missing, Obstacle, brief, describe
from tsd.errors import UserError
from tsd.files import human_size

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any name that starts with `file`; keeps the requests it got.

    cut: bytes after which the next answers break off, one entry per answer.
    ranges: honours the Range header.
    etag: the entity tag it sends, and compares with If-Range.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut: list[int] = []
        self.ranges = True
        self.etag: str | None = None
        self.content = CONTENT
        self.content_type: str | None = None
        self.requests: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if "/file" not in self.path:
            self.send_error(404)
            return
        content, start = self.server.content, 0
        same = self.headers.get("If-Range") in (None, self.server.etag)
        if wanted is not None and self.server.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.server.etag is not None:
            self.send_header("ETag", self.server.etag)
        if self.server.content_type is not None:
            self.send_header("Content-Type", self.server.content_type)
        self.end_headers()
        end = start + self.server.cut.pop(0) if self.server.cut else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(bench.store.download, "PAUSE_SECONDS", 0.01)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_verified_and_named_last(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder" / "file.bin"
    download([server.url("file.bin")], target, SHA256)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_a_broken_transfer_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    """Every byte that came is kept, however few came before the connection broke."""
    server.cut = [300_000, 7, 200_000]
    download([server.url("file")], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=300007-", "bytes=500007-"]


def test_files_of_the_hub_come_from_the_mirror_that_the_variable_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url("file"))
    download(["https://huggingface.co/owner/name/resolve/main/net.bin"], tmp_path / "net.bin", SHA256)
    assert server.requests == [("/file/owner/name/resolve/main/net.bin", None)]
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=r"expected .*; the download was deleted"):
        download(["https://huggingface.co/owner/name/resolve/main/net.bin"], tmp_path / "other.bin", SHA256)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    server.content = CONTENT
    download(["http://nowhere.invalid/file"], tmp_path / "by-proxy.bin", SHA256)
    assert server.requests[-1] == ("http://nowhere.invalid/file", None)


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])
    download([server.url("file")], tmp_path / "file", SHA256)
    assert server.requests == [("/file", "bytes=123456-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_transfer(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download([server.url("file")], tmp_path / "file", SHA256)
    assert server.requests == [("/file", f"bytes={len(CONTENT)}-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_of_another_file_costs_one_more_transfer(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download([server.url("file")], tmp_path / "file", SHA256)
    assert server.requests == [("/file", "bytes=1000-"), ("/file", None)]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"x")
    download([server.url("file")], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_file_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    download([server.url("file")], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_a_hash_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download([server.url("file")], tmp_path / "file", None)
    assert server.requests == [("/file", None)]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sha256 [0-9a-f]{16}…, expected 0000"):
        download([server.url("file")], tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    download([server.url("gone"), server.url("file-mirror"), server.url("file-3")], tmp_path / "file", SHA256[:8])
    assert [path for path, _ in server.requests] == ["/gone", "/file-mirror"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_where_no_address_works_each_has_its_reason(server: Server, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:1/file"
    with pytest.raises(UserError) as caught:
        download([server.url("gone"), closed, "http://no-such-host.invalid/file"], tmp_path / "file", SHA256)
    lines = str(caught.value).splitlines()
    assert lines[0] == "file could not be fetched:"
    assert lines[1].endswith("/gone: 404 Not Found")
    assert "no connection" in lines[2]
    assert "no connection" in lines[3]


def test_a_transfer_that_makes_no_progress_ends(server: Server, tmp_path: Path) -> None:
    server.cut = [0] * 10
    with pytest.raises(UserError, match="could not be fetched"):
        download([server.url("file")], tmp_path / "file", SHA256)
    assert len(server.requests) == 1


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TSD_DATA", raising=False)
    monkeypatch.setenv("TSD_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "torch"


def test_fetch_puts_a_metrics_files_where_the_metric_looks(
    server: Server, torch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tuple(
        MetricFile(name, folder, (server.url("gone"), server.url(f"file-{name}")), len(CONTENT), SHA256, "MIT")
        for name, folder in (("backbone.pth", "checkpoints"), ("heads.pth", "pyiqa"))
    )
    spec = replace(METRICS["lpips"], weights=files)
    monkeypatch.setitem(METRICS, "lpips", spec)
    assert main(["fetch", "lpips"]) == 0
    assert (torch_home / "hub" / "checkpoints" / "backbone.pth").read_bytes() == CONTENT
    assert (torch_home / "hub" / "pyiqa" / "heads.pth").read_bytes() == CONTENT
    assert "lpips: here" in capsys.readouterr().out
    count = len(server.requests)
    assert main(["fetch", "lpips"]) == 0
    assert len(server.requests) == count


def test_fetch_names_what_it_knows(torch_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "lpisp"]) == 2
    assert "did you mean lpips?" in capsys.readouterr().err
    assert main(["fetch"]) == 2
    assert "metrics, lpips, dists" in capsys.readouterr().err
    for name in ("psnr", "niqe"):
        assert main(["fetch", name]) == 2
        assert f"{name} needs no weights" in capsys.readouterr().err


def test_list_shows_state_size_and_licence_and_opens_no_connection(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    musiq = METRICS["musiq"].weights[0].path()
    musiq.parent.mkdir(parents=True)
    musiq.touch()
    assert main(["fetch", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    metrics_and_sets = [
        "lpips", "dists", "fid", "musiq", "maniqa", "clipiqa", "kid", "realsr", "drealsr", "div2k-val",
        "realsrset", "realset65",
    ]  # fmt: skip
    assert list(lines)[: len(metrics_and_sets)] == metrics_and_sets
    assert set(lines) >= {*assets(), *(name for name, card in cards().items() if card.weights), "osediff-published"}
    assert lines["musiq"].split()[1] == "here"
    assert lines["sd3-medium"].split()[1] == "missing"


def test_restricted_content_waits_for_the_licence(torch_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "realsr", "sd3-medium"]) == 2
    error = capsys.readouterr().err
    assert "--accept-license" in error
    assert "realsr: S-Lab License 1.0" in error
    assert "sd3-medium: Stability AI Community License (gated: accept its licence on its page first)" in error
    assert main(["fetch", "sinsr"]) == 2
    error = capsys.readouterr().err
    assert "CC-BY-NC-SA-4.0 (noncommercial: academic research only); S-Lab License 1.0 (noncommercial)\n" in error


def test_what_has_to_be_done_by_hand_is_described(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.store.hub, "HUB", "http://hub.invalid")
    assert main(["fetch", "tsd-sr", "--accept-license"]) == 2  # the base cannot be had, the rest is still described
    drive = "https://drive.google.com/drive/folders/1XJY9Qxhz0mqjTtgDXr07oFy9eJr8jphI"
    assert f"default/: folder default/ of {drive}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["realsr", "div2k-val", "sd3-medium"])
def test_offline_ends_in_seconds_with_a_clear_message(
    name: str, torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.store.hub, "HUB", "http://hub.invalid")
    monkeypatch.setattr(bench.fetch.testsets, "OSEDIFF", "http://osediff.invalid")
    assert main(["fetch", name, "--accept-license", "--data-root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "http://hub.invalid cannot be reached: no network" in error
    assert "Traceback" not in error
    assert not (tmp_path / "data").exists(), "no empty folder is left behind"


def test_test_sets_need_a_place(torch_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "drealsr", "--accept-license"]) == 2
    assert "--data-root DIR, or the variable TSD_DATA" in capsys.readouterr().err


def archive(members: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)
    return file


def test_a_test_set_is_taken_out_of_the_archive_of_all(tmp_path: Path) -> None:
    file = archive(
        {
            "All/RealSRVal_crop128/": b"",
            "All/RealSRVal_crop128/test_LR/a.png": b"lr a",
            "All/RealSRVal_crop128/test_HR/a.png": b"hr a",
            "All/RealSRVal_crop128/test_SR/a.png": b"no",
            "All/RealSRVal_crop128/readme.txt": b"no",
            "All/DIV2K_V2_val/lq/x.png": b"lr x",
            "All/DIV2K_V2_val/gt/x.png": b"hr x",
            "../../RealSRVal_crop128/test_LR/../../evil.png": b"no",
        }
    )
    bench.fetch.testsets.extract_testset(file, "RealSRVal_crop128", tmp_path / "realsr")
    bench.fetch.testsets.extract_testset(file, "DIV2K_V2_val", tmp_path / "div2k")
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "realsr/test_LR/a.png": b"lr a",
        "realsr/test_HR/a.png": b"hr a",
        "div2k/test_LR/x.png": b"lr x",
        "div2k/test_HR/x.png": b"hr x",
    }


def test_extraction_keeps_what_is_there_and_refuses_what_is_damaged(tmp_path: Path) -> None:
    file = archive({"Set/test_LR/a.png": b"lr a", "Set/test_HR/a.png": b"hr a"})
    bench.fetch.testsets.extract_testset(file, "Set", tmp_path)
    before = (tmp_path / "test_LR" / "a.png").stat().st_mtime_ns
    (tmp_path / "test_HR" / "a.png").unlink()
    bench.fetch.testsets.extract_testset(file, "Set", tmp_path)
    assert (tmp_path / "test_LR" / "a.png").stat().st_mtime_ns == before
    assert (tmp_path / "test_HR" / "a.png").read_bytes() == b"hr a"
    with pytest.raises(UserError, match="no images in a folder Other/"):
        bench.fetch.testsets.extract_testset(file, "Other", tmp_path)
    damaged = io.BytesIO(file.getvalue().replace(b"lr a", b"xx a"))
    with pytest.raises(UserError, match="could not be read"):
        bench.fetch.testsets.extract_testset(damaged, "Set", tmp_path / "new")
    with pytest.raises(UserError, match="could not be read"):
        bench.fetch.testsets.extract_testset(io.BytesIO(b"<html>"), "Set", tmp_path)


def test_a_test_set_from_the_hub_lands_where_the_harness_looks(
    server: Server, torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive({f"All/DIV2K_V2_val/{side}/x.png": b"image" for side in ("lq", "gt")})
    monkeypatch.setattr(bench.store.hub, "HUB", server.url(""))
    monkeypatch.setattr(bench.fetch.testsets, "_open_hub_archive", lambda: file)
    assert main(["fetch", "div2k-val", "--accept-license", "--data-root", str(tmp_path / "data")]) == 0


def test_a_hub_that_breaks_off_is_an_error_without_traceback(
    server: Server,
    torch_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("peer closed connection")

    monkeypatch.setattr(bench.store.hub, "HUB", server.url(""))
    monkeypatch.setattr(bench.fetch.testsets, "_open_hub_archive", lambda: Broken(archive({"a": b"b"}).getvalue()))
    assert main(["fetch", "div2k-val", "--accept-license", "--data-root", str(tmp_path / "data")]) == 2
    assert "peer closed connection; the same command continues" in capsys.readouterr().err


def test_an_interrupted_base_model_is_still_missing(torch_home: Path, tmp_path: Path) -> None:
    item, options = bench.fetch.items.items()["sd3-medium"], RunOptions()
    folder = tmp_path / "weights" / "stable-diffusion-3-medium-diffusers"
    for part in ("transformer", "vae", "scheduler"):
        (folder / part).mkdir(parents=True)
        (folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")).write_text("{}")
    (missing,) = item.missing(options)
    assert isinstance(missing, Missing)
    assert missing.name.count("diffusion_pytorch_model.safetensors") == 2
    for part in ("transformer", "vae"):
        (folder / part / "diffusion_pytorch_model.safetensors").touch()
    assert item.missing(options) == []


def test_a_mirror_is_verified_image_by_image(
    server: Server, torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of two images whose manifest has the server's hashes; the hub is away."""
    folder = tmp_path / "datasets" / "realsr"
    folder.mkdir(parents=True)
    manifest = json.loads((bench.testsets.manifest.DATASETS / "realsr" / "manifest.json").read_text())
    manifest["images"] = [{"name": f"{n}.png", "lr_sha256": SHA256, "hr_sha256": SHA256} for n in "ab"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(bench.testsets.manifest, "DATASETS", tmp_path / "datasets")
    monkeypatch.setattr(bench.store.hub, "HUB", "http://hub.invalid")
    monkeypatch.setattr(bench.fetch.testsets, "OSEDIFF", server.url("file"))
    options = RunOptions(data_root=tmp_path / "data")
    bench.fetch.testsets._get_testset("realsr", options)
    images = sorted((tmp_path / "data").rglob("*.png"))
    assert [f"{path.parent.name}/{path.name}" for path in images] == [
        "test_HR/a.png", "test_HR/b.png", "test_LR/a.png", "test_LR/b.png",
    ]  # fmt: skip
    assert ("/file/benchmark_realsr/test_LR/a.png", None) in server.requests


def test_published_outputs_come_from_the_cards_commit_and_are_verified_as_a_whole(
    server: Server,
    torch_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """BSRGAN's card with a test set of two images and a server whose every file is the same picture."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    server.content = picture.getvalue()
    manifest = json.loads((bench.testsets.manifest.DATASETS / "realsrset" / "manifest.json").read_text())
    manifest |= {"count": 2, "images": [{"name": f"{n}.png", "lr_sha256": SHA256, "size": [8, 8]} for n in "ab"]}
    shutil.copytree(bench.testsets.manifest.DATASETS, tmp_path / "datasets", ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "datasets" / "realsrset" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(bench.testsets.manifest, "DATASETS", tmp_path / "datasets")
    monkeypatch.setattr(bench.methods.published.published, "RAW", server.url("file/"))
    options = RunOptions(data_root=tmp_path / "data")
    card = cards()["bsrgan"]
    with pytest.raises(UserError, match="not the published ones"):
        fetch_published(card, options)
    assert [path for path, _ in server.requests] == [
        f"/file/cszn/BSRGAN/{card.commit}/testsets/BSRGAN/{name}_BSRGAN.png" for name in "ab"
    ]
    assert absent_outputs(card, options), "nothing unverified has the folder's name"

    one = hashlib.sha256(server.content).hexdigest()
    digest = hashlib.sha256("".join(f"{one}  {n}\n" for n in "ab").encode()).hexdigest()
    card = replace(card, published=(replace(card.published[0], images_sha256=digest),))
    fetch_published(card, options)
    assert len(server.requests) == 2, "what was there is not fetched again"
    published = tmp_path / "data" / "realsrset" / "bsrgan"
    assert sorted(path.name for path in published.iterdir()) == ["a_BSRGAN.png", "b_BSRGAN.png"]
    assert absent_outputs(card, options) == []
    assert main(["fetch", "bsrgan-published", "--data-root", str(tmp_path / "data")]) == 0
    assert "bsrgan-published: here" in capsys.readouterr().out

    by_hand = replace(card, name="other", published=(replace(card.published[0], source="their drive"),))
    with pytest.raises(UserError, match="to be fetched by hand from their drive"):
        fetch_published(by_hand, options)


def test_a_set_without_ground_truth_comes_image_by_image(
    server: Server, torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((bench.testsets.manifest.DATASETS / "realsrset" / "manifest.json").read_text())
    manifest["address"] = server.url("file/set")
    manifest["images"] = [{"name": f"{n}.png", "lr_sha256": SHA256, "size": [8, 8]} for n in "ab"]
    (tmp_path / "datasets" / "realsrset").mkdir(parents=True)
    (tmp_path / "datasets" / "realsrset" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(bench.testsets.manifest, "DATASETS", tmp_path / "datasets")
    options = RunOptions(data_root=tmp_path / "data")
    bench.fetch.testsets._get_testset("realsrset", options)
    assert [path for path, _ in server.requests] == ["/file/set/a.png", "/file/set/b.png"]
    assert [image.name for image in bench.testsets.manifest.load_testset("realsrset", tmp_path / "data").images] == [
        "a",
        "b",
    ]
    bench.fetch.testsets._get_testset("realsrset", options)
    assert len(server.requests) == 2


def test_a_cards_file_goes_to_the_weights_folder(server: Server, torch_home: Path, tmp_path: Path) -> None:
    get_weights((Weight("net.pth", urls=(server.url("gone"), server.url("file")), sha256=SHA256),), RunOptions())
    assert (tmp_path / "weights" / "net.pth").read_bytes() == CONTENT


def test_a_missing_file_in_one_line() -> None:
    missing = Missing("net.pth", "$HOME/net.pth", "https://x/net.pth", 233_100_000, "MIT", "LPIPS", "lpips")
    assert missing.line() == (
        "LPIPS needs net.pth (233.1 MB, MIT) at $HOME/net.pth: `bench fetch lpips`, or by hand from https://x/net.pth"
    )
    by_hand = replace(missing, size_bytes=None, licence=None, fetch=None, source="their page")
    assert by_hand.line() == "LPIPS needs net.pth at $HOME/net.pth: from their page"
    assert describe([missing, by_hand, missing]).count("\n") == 1


def test_the_files_of_one_method_in_one_line() -> None:
    net = Missing("net.pth", "$W/net.pth", "https://x/net.pth", 233_100_000, "MIT", "Net", "net")
    tags = replace(net, name="tags.pth", size_bytes=None)
    by_hand = replace(net, name="base/", size_bytes=None, fetch=None, source="their page")
    gpu = Obstacle("Net", "needs an NVIDIA GPU")
    assert brief([net, by_hand, tags, net, gpu]) == [
        "Net needs net.pth (233.1 MB), tags.pth: `bench fetch net`",
        by_hand.line(),
        "Net needs an NVIDIA GPU",
    ]


@pytest.mark.parametrize(
    ("size", "text"), [(None, ""), (0, "0 B"), (6009, "6 kB"), (244_408_911, "244.4 MB"), (4.34e9, "4.3 GB")]
)
def test_human_size(size: int | None, text: str) -> None:
    assert human_size(size) == text


def test_a_file_without_a_hash_is_resumed_only_where_the_server_says_it_is_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.store.download, "CHUNK_BYTES", 1000)
    server.etag, server.cut = '"one"', [300_000, 0, 0, 0]
    with pytest.raises(UserError):
        download([server.url("file")], tmp_path / "file", None)
    assert (tmp_path / "file.part").stat().st_size == 300_000
    server.requests.clear()
    server.cut = []
    download([server.url("file")], tmp_path / "file", None)
    assert [wanted for _, wanted in server.requests] == ["bytes=300000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    server.cut = [300_000, 0, 0, 0]
    with pytest.raises(UserError):
        download([server.url("file")], tmp_path / "other", None)
    server.etag, server.content, server.cut = '"two"', CONTENT[::-1], []  # replaced meanwhile: it comes from the start
    download([server.url("file")], tmp_path / "other", None)
    assert (tmp_path / "other").read_bytes() == CONTENT[::-1]


def test_a_page_answered_with_200_is_no_file(server: Server, tmp_path: Path) -> None:
    """By its type, whatever its bytes are; by its bytes, whatever type is said. Where a hash is known, it decides."""
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(UserError, match=r"the server answered with a web page \(text/html"):
        download([server.url("file.pth")], tmp_path / "net.pth", None)
    server.content_type, server.content = "application/octet-stream", b"<!doctype html><html>Log in</html>"
    with pytest.raises(UserError, match=r"not the file but a web page .*; the download was deleted"):
        download([server.url("file.pth")], tmp_path / "net.pth", None)
    assert list(tmp_path.iterdir()) == []
    server.content_type, server.content = "text/html", CONTENT
    download([server.url("file")], tmp_path / "net.pth", SHA256)
