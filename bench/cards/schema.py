"""The keys of a competitor's card. `bench/cards/card.py` reads one.

CONTRIBUTING.md walks through a card. Keys are checked strictly, since a misspelt key would be a setting that silently
does not apply.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LEDGER = "hashes.json"
"""The store's own file, which lies among the weights (bench/store/store.py); no weight may have its name."""


@dataclass(frozen=True)
class Weight:
    """One file of the weight store, or one folder of it (a name that ends in "/").

    Attributes:
        file: where it lies under the store, with "/" as separator; a folder's name ends in "/".
        urls: addresses in the order to be tried.
        hub: places on the Hugging Face hub in the order to be tried: "owner/name" for a folder, "owner/name:path" for
            a file, both with "@revision" after the name where it is pinned.
        manual: for what only a browser can fetch: where it is and what to do with it; empty where a program can.
        contains: of a folder, the files that must be there; from the hub only these are fetched. If only a browser can
            fetch them, "*" may stand for an unknown part of a name.
        size_bytes, sha256: as published, or as found by others (`sha256_source` says by whom); None where nobody
            states them: then the first fetch records the hash in the store, and any other content is refused later.
        git_sha1: of a file that lies in a git repository, its blob's id there, instead of `sha256`.
        hashes: of a folder, sha256 by the file's path inside.
        alternatives: other files of the store that serve as well, sha256 by name. One that is there is used.
        licence: where it differs from the card's.
        restriction: what that licence forbids, or that the file is gated; empty where nothing.
    """

    file: str
    urls: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    manual: str = ""
    contains: tuple[str, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_source: str = ""
    git_sha1: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    alternatives: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    restriction: str = ""

    @property
    def is_folder(self) -> bool:
        return self.file.endswith("/")


@dataclass(frozen=True)
class Network:
    """How spandrel loads the network (`run = "spandrel"`).

    Attributes:
        file: the weight file, one of the card's.
        key: the entry of the checkpoint that holds the parameters ("params", "params_ema"); "" where the file is the
            state dict itself; "*" where spandrel finds the entry, and the record says what else it found.
        architecture, parameters: what spandrel must find.
        tags: with key "*", how spandrel describes the network's form ("64nf").
        padding: "" or "femasr", the mirror padding of FeMaSR's own test code.
        drop: prefixes of parameters in the file that the network does not have, as its authors leave them out too.
    """

    file: str
    architecture: str
    parameters: int
    key: str = ""
    padding: str = ""
    drop: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """The pins that `uv` builds an environment from.

    Attributes:
        python: version of the interpreter, "3.10".
        requirements: as for `uv pip install`, every direct dependency pinned.
        before: "2024-02-01": packages without a pin are taken from those published before that day
            (`uv --exclude-newer`), so that the environment stays the one its authors had; empty for no bound.
        note: where the pins differ from the repository's own statement, and why.
    """

    python: str
    requirements: tuple[str, ...]
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class Command:
    """How the repository's own script is run over a folder, with the checkout as working directory.

    In `arguments` and `variables`, {lr} is the folder of inputs (PNG), {sr} an empty folder for outputs, {weights} the
    weight store, {seed} the run's seed. The script is run by the environment's Python.

    Attributes:
        arguments: script and arguments.
        outputs: pattern of an image's output under {sr}, with {name} for the stem of its input: "{name}.png",
            "sample00/{name}.png", "{name}_0.png"; "*" may stand for what cannot be known before.
        flags: where the repository's parser declares each flag of `arguments`: "--seed" = "test.py:31".
        ignore: patterns of further files that the script leaves under {sr}.
        variables: environment variables.
        links: path in the checkout -> file or folder of the store that must lie there.
        upscale: "" where the script takes the input as it is, "bicubic" where it expects it already enlarged x4.
        lr_size: the only input size (width, height) it handles; None for any.
        cuda: whether it needs an NVIDIA GPU.
        startup_seconds, seconds_per_image: generous bounds, from which the time limit is made.
    """

    arguments: tuple[str, ...]
    outputs: str
    flags: Mapping[str, str]
    ignore: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    upscale: str = ""
    lr_size: tuple[int, ...] | None = None
    cuda: bool = True
    startup_seconds: int = 900
    seconds_per_image: int = 60


@dataclass(frozen=True)
class Patch:
    """A small change to the checkout: `find`, which must stand in `file` exactly once, becomes `replace`."""

    file: str
    find: str
    replace: str
    reason: str


@dataclass(frozen=True)
class Published:
    """Outputs that the authors published for one test set.

    Attributes:
        source: a folder of the repository at the card's commit, or where they are, as an address or in words.
        suffix: what follows the image's name in their file names ("_BSRGAN").
        images_sha256: over the lines "<sha256>  <name>" of all images; None where it is not known.
    """

    testset: str
    source: str
    suffix: str = ""
    images_sha256: str | None = None


@dataclass(frozen=True)
class Card:
    """One method.

    Attributes:
        name: on the command line and in records; the card's file name.
        display, steps, kind, summary: as in `bench.methods.base.MethodSpec`.
        run: "tsd-sr", "osediff", "spandrel" (these three in process) or "external" (the official repository in an
            environment of its own).
        licence: of the code and, where nothing else is said, of the weights.
        restriction: what the licence forbids ("noncommercial"); empty where nothing. Weights of such a method are
            fetched only with `--accept-license`.
        citation: authors, title, venue, arXiv number.
        repository, commit: the official code.
        settings: the settings that make it the paper's row, and those that the tables leave open; one line each.
        verified: how the card was last checked, with the date.
        seeding: "image" where every image is made from a seed of its own (by the script, or by a patch that calls
            `bench_seed`), "deterministic" where no random number is drawn, "none" where the seed cannot be set.
        timing: what the patches with `bench_time` count, in words that follow "counts"; empty where there are none.
        assets: keys of `assets.toml`; `weights` holds those files too once the card is read.
    """

    name: str
    display: str
    steps: int
    kind: str
    run: str
    summary: str
    licence: str
    citation: str
    repository: str
    commit: str
    verified: str
    seeding: str
    timing: str = ""
    restriction: str = ""
    settings: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()
    network: Network | None = None
    environment: Environment | None = None
    command: Command | None = None
    patches: tuple[Patch, ...] = ()
    published: tuple[Published, ...] = ()
