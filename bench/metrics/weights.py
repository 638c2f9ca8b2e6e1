"""The files that metrics need: where each is published, its hash, and where pyiqa, torchvision and CLIP look for it.

All are under torch's hub folder ($TORCH_HOME/hub): `checkpoints` for torchvision's backbones, `pyiqa` for the
metrics' own weights, `clip` for OpenAI's CLIP. pyiqa opens any file with the right name, with an unpickler that can run
code. Here a file is hashed first, and it is opened only if the hash is the published one. NIQE's model, two small
tables of numbers, lies beside this module.

MANIQA's file holds the whole network, backbone included, so the ImageNet ViT that pyiqa would fetch first (and then
overwrite) is not needed: see `bench.metrics.per_image`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bench.provenance import cached_sha256
from bench.store.missing import Missing
from tsd.errors import UserError

PYIQA_HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
PYIQA_RELEASE = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights"


@dataclass(frozen=True)
class MetricFile:
    """One weight file of a metric.

    Attributes:
        name: file name that the loading library expects.
        folder: folder under $TORCH_HOME/hub: "checkpoints", "pyiqa" or "clip"; "" for a file of this package, which
            lies beside this module.
        urls: where it is published, mirrors after the original.
        size_bytes: size, only for the user's information; the hash decides.
        sha256: the published hash: 64 hex digits, or fewer where only the prefix in the file name is published.
        licence: licence of the weights.
    """

    name: str
    folder: str
    urls: tuple[str, ...]
    size_bytes: int | None
    sha256: str
    licence: str

    @property
    def shipped(self) -> bool:
        """Whether the file is part of this package."""
        return not self.folder

    def path(self) -> Path:
        return Path(__file__).parent / self.name if self.shipped else hub_dir() / self.folder / self.name

    @property
    def remedy(self) -> str:
        """What gets the right file, in words that follow what is wrong with it."""
        return "install this package again" if self.shipped else "delete it and run `bench fetch` again"

    @property
    def where(self) -> str:
        """The path, written with the variable that sets its root."""
        return f"bench/metrics/{self.name}" if self.shipped else f"$TORCH_HOME/hub/{self.folder}/{self.name}"

    def missing(self, display: str, fetch_name: str) -> Missing:
        """The entry for this file if it is absent; `fetch_name` is the argument of `bench fetch` that gets it."""
        return Missing(
            name=self.name,
            where=self.where,
            source=self.urls[0],
            size_bytes=self.size_bytes,
            licence=self.licence,
            needed_by=display,
            fetch=None if self.shipped else fetch_name,
        )


def hub_dir() -> Path:
    """`torch.hub.get_dir()` without importing torch: $TORCH_HOME, else $XDG_CACHE_HOME/torch, else ~/.cache/torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub"


def verified_sha256(file: MetricFile) -> str:
    """Hashes `file` on disk and compares it with the published hash.

    Raises:
        UserError: the file is absent, or its hash is not the published one.
    """
    path = file.path()
    if not path.is_file():
        raise UserError(f"{path} does not exist; {file.remedy}")
    found = cached_sha256(path)
    if not found.startswith(file.sha256):
        raise UserError(
            f"{path} has sha256 {found}, expected {file.sha256}{'…' if len(file.sha256) < 64 else ''}: the file is "
            f"damaged or another one, and is not opened; {file.remedy}"
        )
    return found


def _pyiqa(name: str, size_bytes: int | None, sha256: str, licence: str) -> MetricFile:
    urls = (f"{PYIQA_HUB}/{name}", f"{PYIQA_RELEASE}/{name}")
    return MetricFile(name, "pyiqa", urls, size_bytes, sha256, licence)


def _torchvision(name: str, size_bytes: int, sha256: str) -> MetricFile:
    urls = (f"https://download.pytorch.org/models/{name}",)
    return MetricFile(name, "checkpoints", urls, size_bytes, sha256, "BSD-3-Clause (torchvision)")


ALEXNET = _torchvision(
    "alexnet-owt-7be5be79.pth",
    244_408_911,
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)
VGG16 = _torchvision(
    "vgg16-397923af.pth",
    553_433_881,
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
LPIPS_HEADS = _pyiqa(
    "LPIPS_v0.1_alex-df73285e.pth",
    6_009,
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "BSD-2-Clause (PerceptualSimilarity)",
)
DISTS_HEADS = _pyiqa(
    "DISTS_weights-f5e65c96.pth",
    None,
    "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    "MIT (DISTS)",
)
INCEPTION = MetricFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "pyiqa",
    (
        f"{PYIQA_HUB}/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "Apache-2.0 (TensorFlow, pytorch-fid)",
)
# Mean (1, 36) and covariance (36, 36) of NIQE's features over pristine photographs. NIQE's authors (LIVE, UT Austin)
# published them in MATLAB's format, BasicSR distributes them as NumPy arrays. They equal the file that pyiqa downloads,
# bit by bit.
NIQE_MODEL = MetricFile(
    "niqe_pris_params.npz",
    "",
    ("https://github.com/XPixelGroup/BasicSR/blob/v1.4.2/basicsr/metrics/niqe_pris_params.npz",),
    11_850,
    "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
    "Apache-2.0 (BasicSR 1.4.2)",
)
MUSIQ = _pyiqa(
    "musiq_koniq_ckpt-e95806b9.pth",
    108_610_983,
    "e95806b9eae5f3814c410f574ba8e552362bd5bc63d758ed5b97860f5d6185aa",
    "Apache-2.0 (google-research/musiq)",
)
MANIQA = _pyiqa("MANIQA_PIPAL-ae6d356b.pth", 543_335_435, "ae6d356b", "Apache-2.0 (IIGROUP/MANIQA)")
CLIP_RN50 = MetricFile(
    "RN50.pt",
    "clip",
    (
        "https://openaipublic.azureedge.net/clip/models/"
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    ),
    255_827_503,
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "MIT (openai/CLIP)",
)
