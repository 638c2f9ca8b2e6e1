"""The weight store: who states a file's hash, and that nothing else is loaded. `bench fetch` of cards."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cards.card import CARDS, Card, Weight, cards, read_card
from bench.cards.schema import LEDGER
from bench.cli import main
from bench.fetch.weights import record_first_hashes
from bench.options import RunOptions
from bench.store.download import GIT
from bench.store.store import FIRST_USE, KnownHash, Store, missing_weights, verified_weights
from tsd.errors import UserError

NUMBERS = b"\x80\x02numbers."  # begins as a checkpoint does
SHA256 = hashlib.sha256(NUMBERS).hexdigest()
FITTING = {".json": b"{}", ".safetensors": struct.pack("<Q", 2) + b"{}"}
"""Contents that are what the suffix of a file says."""


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    (tmp_path / "weights").mkdir()
    return RunOptions(weights_root=tmp_path / "weights")


def card(*weights: Weight) -> Card:
    return replace(cards()["tsd-sr"], name="net", display="Net", licence="MIT", weights=weights)


def put(options: RunOptions, name: str, content: bytes = NUMBERS) -> None:
    path = options.weights() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_file_with_the_published_hash_is_loaded(options: RunOptions) -> None:
    net = card(Weight("net.pth", sha256=SHA256, sha256_source="its authors"))
    put(options, "net.pth")
    assert verified_weights(net, options) == {"net.pth": SHA256}
    put(options, "net.pth", b"other numbers")
    with pytest.raises(UserError, match=r"weights of Net are not used:\n  net.pth: sha256 .* \(its authors\): damaged"):
        verified_weights(net, options)


def test_a_file_with_the_blob_id_of_the_pinned_commit_is_loaded(options: RunOptions) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(NUMBERS) + NUMBERS).hexdigest()
    net = card(Weight("net.pkl", git_sha1=blob))
    put(options, "net.pkl")
    assert verified_weights(net, options) == {"net.pkl": SHA256}
    with pytest.raises(UserError, match=r"expected git blob 0000.*the repository at the card's commit"):
        verified_weights(card(Weight("net.pkl", git_sha1="0" * 40)), options)


def test_a_file_of_unknown_hash_is_not_loaded_until_fetch_has_recorded_it(options: RunOptions) -> None:
    weight = Weight("drive/net.pth", manual="their drive, folder a")
    net = card(weight)
    (missing,) = missing_weights(net, options)
    assert missing.line().endswith(
        "drive/net.pth (or under --weights-root, else ./weights): from their drive, folder a"
    )
    put(options, "drive/net.pth")
    with pytest.raises(UserError, match=r"its hash is not known yet; `bench fetch card:net\.toml` records it"):
        verified_weights(net, options)
    assert record_first_hashes(net.weights, "net", options) == [
        f"drive/net.pth: sha256 {SHA256} recorded in the store; nobody publishes one to compare it with"
    ]
    assert Store(options).known(weight) == {"drive/net.pth": KnownHash(SHA256, FIRST_USE)}
    assert verified_weights(net, options) == {"drive/net.pth": SHA256}
    assert record_first_hashes(net.weights, "net", options) == []
    put(options, "drive/net.pth", b"another version")
    with pytest.raises(UserError, match="damaged, or another version"):
        verified_weights(net, options)
    with pytest.raises(UserError, match="damaged, or another version"):  # and fetch does not record it either
        record_first_hashes(net.weights, "net", options)


def test_every_file_of_a_folder_counts(options: RunOptions) -> None:
    weight = Weight("base/", manual="x", contains=("unet/config.json",), hashes={"unet/net.bin": SHA256})
    net = card(weight)
    assert [item.name for item in missing_weights(net, options)] == ["base/"]
    put(options, "base/unet/net.bin")
    assert [item.name for item in missing_weights(net, options)] == ["base/unet/config.json"]
    with pytest.raises(UserError, match=r"base/unet/config.json \(MIT\)"):
        verified_weights(net, options)
    put(options, "base/unet/config.json", b"{}")
    put(options, "base/.cache/left-by-the-hub", b"")
    record_first_hashes(net.weights, "net", options)
    assert sorted(verified_weights(net, options)) == ["base/unet/config.json", "base/unet/net.bin"]
    put(options, "base/unet/smuggled.bin")  # a loader might pick it up
    with pytest.raises(UserError, match=r"base/unet/smuggled\.bin: its hash is not known"):
        verified_weights(net, options)


@pytest.mark.parametrize("name", cards())
def test_nothing_is_missing_once_every_file_that_a_card_names_is_there(name: str, options: RunOptions) -> None:
    named = cards()[name]
    for weight in named.weights:
        for file in [f"{weight.file}{part}" for part in weight.contains] or [weight.file]:
            put(options, file.replace("*", ".safetensors"))
    assert missing_weights(named, options) == []


def test_a_name_that_is_not_quite_known_is_a_pattern(options: RunOptions) -> None:
    weight = Weight("net/", manual="x", contains=("unet/model*",))
    put(options, "net/unet/other.bin")
    (options.weights() / "net/unet/model_folder").mkdir()
    assert Store(options).absent(weight) == ["net/unet/model*"]
    put(options, "net/unet/model.bin")
    assert Store(options).absent(weight) == []


def test_an_alternative_that_is_there_is_taken_and_verified(options: RunOptions) -> None:
    other = hashlib.sha256(b"other numbers").hexdigest()
    net = card(Weight("net.pth", sha256=SHA256, alternatives={"small.pth": other}))
    (missing,) = missing_weights(net, options)
    assert missing.where == "$TSD_WEIGHTS/net.pth (or under --weights-root, else ./weights); small.pth serves too"
    put(options, "net.pth")
    assert verified_weights(net, options) == {"net.pth": SHA256}
    put(options, "small.pth", b"other numbers")
    assert verified_weights(net, options) == {"small.pth": other}
    (options.weights() / "net.pth").unlink()
    assert verified_weights(net, options) == {"small.pth": other}
    put(options, "small.pth")
    with pytest.raises(UserError, match=r"small\.pth: sha256 .*, expected .* \(the card\): damaged"):
        verified_weights(net, options)


def test_a_damaged_ledger_is_an_error_that_says_what_to_do(options: RunOptions) -> None:
    put(options, LEDGER, b'{"net.pth": {"hash"')
    with pytest.raises(UserError, match=r"hashes.json is damaged .*: delete it"):
        Store(options).known(Weight("net.pth"))


def test_a_hash_of_the_card_comes_before_the_ledgers(options: RunOptions) -> None:
    Store(options).record({"net.pth": KnownHash("f" * 64, FIRST_USE)})
    put(options, "net.pth")
    assert verified_weights(card(Weight("net.pth", sha256=SHA256)), options) == {"net.pth": SHA256}


def test_fetch_picks_up_what_a_browser_put_into_the_store(
    options: RunOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    """TSD-SR's adapters lie on a drive; a restricted base beside them must be accepted."""
    root = str(options.weights())
    assert main(["fetch", "tsd-sr", "--weights-root", root]) == 2
    assert "read these licences, then repeat the command with --accept-license" in capsys.readouterr().err
    for weight in cards()["tsd-sr"].weights:
        for name in weight.contains:
            put(options, f"{weight.file}{name}", FITTING.get(Path(name).suffix, NUMBERS))
    assert main(["fetch", "tsd-sr", "--weights-root", root]) == 2  # still to be accepted before it is picked up
    assert not (options.weights() / LEDGER).exists()
    assert main(["fetch", "tsd-sr", "--weights-root", root, "--accept-license"]) == 0
    said = capsys.readouterr().out
    assert f"default/prompt_embeds.pt: sha256 {SHA256} recorded" in said
    assert len(json.loads((options.weights() / LEDGER).read_text())) == 9
    assert main(["fetch", "tsd-sr", "--weights-root", root]) == 0  # nothing is left to accept
    put(options, "default/prompt_embeds.pt", b"changed")
    assert main(["fetch", "tsd-sr", "--weights-root", root]) == 2
    assert "default/prompt_embeds.pt: sha256" in capsys.readouterr().err


def test_a_card_by_path_is_fetched_like_any_other(
    options: RunOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes((CARDS / "ldl.toml").read_bytes())
    fetch = ["fetch", f"card:{path}", "--weights-root", str(options.weights())]
    assert main(fetch) == 1
    file = "net_g_RealESRGAN+LDL.pth"
    put(options, file)
    mine = read_card(path)
    with pytest.raises(UserError, match=r"`bench fetch card:mine\.toml` records it"):
        verified_weights(mine, options)
    assert main(fetch) == 0
    assert verified_weights(mine, options) == {file: SHA256}
    put(options, file, b"other")
    assert main(fetch) == 2
    said = capsys.readouterr()
    assert "delete its entry in hashes.json" in said.err
    assert said.out.splitlines()[-1] == "card:mine.toml: not to be used as it is"


def test_a_git_digest_is_marked(options: RunOptions) -> None:
    weight = Weight("a", git_sha1="1" * 40)
    assert Store(options).known(weight)["a"].digest == f"{GIT}{'1' * 40}"
