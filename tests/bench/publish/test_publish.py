"""A run goes to a small hub on the loopback and comes back, by the hub's own client."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image

from bench import cli
from bench.publish.places import find_run
from bench.records.records import Records
from bench.records.schema import ImageRow, Plan, PlanMethod, PlanMetric, PlanSet, Restoration, ScoreRow
from bench.report.render import write_table
from tsd.errors import UserError

COMMIT = "c" * 40
NAMES = ["one", "<two>"]


@dataclass
class Hub:
    """Data sets by name, with their files."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)

    def siblings(self, name: str) -> list[dict[str, Any]]:
        return [
            {"rfilename": path, "path": path, "type": "file", "size": len(content), "oid": digest(content),
             "blobId": digest(content)}
            for path, content in self.files[name].items()
        ]  # fmt: skip


def digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """As much of the hub's interface as data sets of small files take."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        parts = path.split("/")
        if parts[:2] == ["api", "datasets"]:
            name = "/".join(parts[2:4])
            if name not in self.hub.files:
                self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            elif "tree" in parts:
                self.answer(json.dumps(self.hub.siblings(name)).encode())
            else:
                info = {"id": name, "sha": COMMIT, "siblings": self.hub.siblings(name), "tags": [], "private": False}
                self.answer(json.dumps(info).encode())
        elif "resolve" in parts:
            content = self.hub.files["/".join(parts[1:3])]["/".join(parts[5:])]
            self.answer(content, 200, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://127.0.0.1:{self.server.server_address[1]}/datasets/me/mini"
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self.hub.files.setdefault("me/mini", {})
            answer = {"url": address}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif "/commit/" in self.path:
            files = self.hub.files["me/mini"]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/commit/{COMMIT}"}
        self.answer(json.dumps(answer).encode())

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this machine has a token for, and an empty cache of it."""
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    content = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": content})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield content
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two methods on the set `mini`, whose images may be handed on, and on `realsr`, whose may not."""
    records = Records(tmp_path / "run")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    for testset in ("mini", "realsr"):
        for method in ("bicubic", "lanczos"):
            handle = records.of(testset, method)
            environment = {"processor": "A CPU", "accelerator": None, "bench": "0.1.0", "threads": 1, "dtype": "fp32"}
            environment["versions"] = {}
            handle.write_run(Restoration(method, testset, "0" * 64, 42, {}, {"key": environment}))
            for name in NAMES:
                handle.add_image(ImageRow(name, None, "1" * 64, "2" * 64, sha256, 8, 8, 0.1, "key", None))
                handle.add_score(ScoreRow("psnr", name, 20.0, sha256, "2" * 64, 1, "psnr", {}, {}, None))
                handle.image_path(name).parent.mkdir(parents=True, exist_ok=True)
                handle.image_path(name).write_bytes(data)
    plan = Plan(
        "table1", "Table 1: methods", "mini", 42, None, "bicubic",
        [PlanSet(testset, testset, NAMES, 2) for testset in ("mini", "realsr")],
        [PlanMethod(name, name, None, {}) for name in ("bicubic", "lanczos")],
        [PlanMetric("psnr", "PSNR", "image", True, True, 2, "psnr", [])],
    )  # fmt: skip
    records.write_plan(plan)
    write_table(records, plan)
    (records.out / "notes.txt").write_text("nobody's business")
    return records.out


def test_a_run_goes_to_the_hub_and_comes_back(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["publish", str(run), "--to", "me/mini", "--by", " Ada  Lovelace ", "--license", "cc0-1.0"]) == 0
    assert capsys.readouterr().out.endswith("/datasets/me/mini\n")
    sent = hub.files["me/mini"]
    assert {path.split("/")[0] for path in sent} == {
        "README.md", "records", "table1.md", "table1.csv", "table1.tex", "table1.reasons.csv",
    }  # and no image  # fmt: skip
    card = sent["README.md"].decode()
    for expected in (
        "license: cc0-1.0",
        "measured by Ada Lovelace",
        "A CPU",
        "S-Lab License",
        "No images are included",
    ):
        assert expected in card
    (note,) = Records(run).publications()
    assert (note.by, note.to, note.images) == ("Ada Lovelace", "me/mini", False)

    found = find_run("hub:me/mini")
    assert found.label == "me/mini"
    for pair in Records(run).measured():
        theirs, ours = Records(found.folder).of(*pair), Records(run).of(*pair)
        assert (theirs.images(), theirs.scores("psnr"), theirs.run()) == (
            ours.images(), ours.scores("psnr"), ours.run(),
        )  # fmt: skip
    assert Records(found.folder).publications() == [note]
    assert cli.main(["compare", "hub:me/mini", str(run)]) == 0
    assert "0 failures" in capsys.readouterr().out

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_run("hub:me/mini", images=True).folder == found.folder
    assert "the copy in the hub's cache, commit ccccccccc" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"hub:me/other is not in the hub's cache .*HF_HUB_OFFLINE is set"):
        find_run("hub:me/other")


def test_the_data_set_becomes_what_the_run_is(run: Path, hub: Hub) -> None:
    arguments = ["publish", str(run), "--to", "me/mini", "--by", "Ada", "--images"]
    assert cli.main(arguments) == 0
    pictures = {path for path in hub.files["me/mini"] if path.endswith(".png")}
    assert pictures == {f"images/mini/{method}/{name}.png" for method in ("bicubic", "lanczos") for name in NAMES}
    Records(run).of("mini", "lanczos").set_aside()
    assert cli.main(arguments[:-1]) == 0
    assert not any("mini/lanczos" in path or path.endswith(".png") for path in hub.files["me/mini"])
    assert len(Records(run).publications()) == 2


def test_what_is_no_run_is_refused(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hub.files["me/mini"] = {"model.bin": b"precious"}
    to = ["--to", "me/mini", "--by", "Ada"]
    assert cli.main(["publish", str(run), *to]) == 2
    assert "holds something else (model.bin)" in capsys.readouterr().err
    assert hub.files["me/mini"] == {"model.bin": b"precious"}
    for place, message in (
        ("hub:me/mini", "holds no records of a run"),
        ("hub:me/gone", "no such data set"),
        ("hub:mini", "names no owner"),
        ("hub:../../etc", "is no name of a data set"),
    ):
        with pytest.raises(UserError, match=message):
            find_run(place)
    for arguments, message in (
        ([str(tmp_path / "no-run"), *to], "no records in"),
        ([str(run), "--to", "mini", "--by", "Ada"], "names no owner"),
        ([str(run), "--to", "me/mini", "--by", " "], "--by says who measured"),
    ):
        assert cli.main(["publish", *arguments]) == 2
        assert message in capsys.readouterr().err
    Records(run).of("mini", "bicubic").image_path("one").write_bytes(b"another")
    assert cli.main(["publish", str(run), *to, "--images"]) == 2
    told = capsys.readouterr().err
    assert "1 images are absent or not the recorded ones" in told
    assert "images of realsr are not sent: licence: S-Lab" in told


def test_a_dry_run_needs_no_hub_and_leaves_no_trace(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", str(run), "--to", "me/mini", "--by", "Ada", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "records/mini/bicubic/images.jsonl" in told
    assert "nothing was sent" in told
    assert Records(run).publications() == []


@pytest.mark.parametrize("missing", ["offline", "token", "network"])
def test_without_a_hub_nothing_is_noted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, missing: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", missing == "offline")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if missing == "network":
        monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert cli.main(["publish", str(run), "--to", "me/mini", "--by", "Ada"]) == 2
    messages = {"offline": "HF_HUB_OFFLINE is set", "token": "hf auth login", "network": "cannot be reached"}
    assert messages[missing] in capsys.readouterr().err
    assert Records(run).publications() == []
