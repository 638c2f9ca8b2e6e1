"""The base models from the Hugging Face hub: SD3-medium, which is gated, and the copies of SD2-base and SD2.1-base."""

import os

from bench.download import CONNECT_SECONDS
from bench.errors import UserError
from bench.methods.base import MethodOptions
from bench.methods.tsd_weights import SD2_PARTS, SD3, SD3_HUB_ID, SD3_PARTS, SD2Base, base_is_there
from bench.metrics.weights import file_sha256
from bench.missing import Missing

HUB = "https://huggingface.co"


def check_online() -> None:
    """Raises UserError within seconds where the hub cannot be reached; its own client would retry for minutes."""
    import requests

    try:
        requests.head(HUB, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise UserError(f"{HUB} cannot be reached: no network, or a firewall") from error


def missing_sd3(options: MethodOptions) -> list[Missing]:
    if base_is_there(options.weights() / SD3, SD3_PARTS):
        return []
    return [
        Missing(
            name=f"{SD3}/",
            where=options.weights_place(SD3),
            source=f"hf:{SD3_HUB_ID}",
            size_bytes=4_340_000_000,
            licence="Stability AI Community License",
            needed_by="TSD-SR",
            fetch="sd3-medium",
        )
    ]


def get_sd3(options: MethodOptions) -> None:
    check_online()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        snapshot_download(
            SD3_HUB_ID,
            local_dir=options.weights() / SD3,
            allow_patterns=["model_index.json", *(f"{part}/*" for part in SD3_PARTS)],
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{SD3_HUB_ID} is gated: log in at {HUB}/{SD3_HUB_ID}, accept its licence there, then `hf auth login` (or "
            "set HF_TOKEN) on this machine and run the same command again"
        ) from error
    except Exception as error:  # while it reads, the client raises whatever its transport raises
        raise UserError(f"{SD3_HUB_ID}: {error}; the same command continues the download") from error


def get_sd2_base(base: SD2Base, options: MethodOptions) -> None:
    """The base from the first mirror that has it: weights once, in safetensors, with text encoder and tokenizer.

    It goes into a folder beside its place, whose name it gets once all weights are there and the known hashes right.

    Raises:
        UserError: no mirror has it, or something incomplete lies in its place.
    """
    check_online()
    from huggingface_hub import snapshot_download

    target = options.weights() / base.folder
    part = target.with_name(f"{base.folder}.part")
    if target.exists():
        raise UserError(f"{target} exists but is incomplete: move it away, and `bench fetch` gets the whole base")
    weights = [f"{folder}/diffusion_pytorch_model.safetensors" for folder in ("unet", "vae")]
    weights.append("text_encoder/model.safetensors")
    faults = []
    for mirror in base.mirrors:
        try:
            snapshot_download(
                mirror,
                local_dir=part,
                allow_patterns=[
                    "model_index.json",
                    *(f"{folder}/*.json" for folder in (*SD2_PARTS, "text_encoder", "tokenizer")),
                    "tokenizer/*.txt",
                    *weights,
                ],
            )
        except Exception as error:  # as in get_sd3
            faults.append(f"{mirror}: {error}")
            continue
        absent = [name for name in weights if not (part / name).is_file()]
        wrong = [] if absent else [name for name, digest in base.sha256 if file_sha256(part / name) != digest]
        if not absent and not wrong:
            os.replace(part, target)
            return
        if absent:
            faults.append(f"{mirror}: has no {', '.join(absent)}")
        else:
            faults.append(f"{mirror}: other contents than expected in {', '.join(wrong)}")
    raise UserError(
        f"{base.display} could not be had; the same command continues a download that broke off:\n  "
        + "\n  ".join(faults)
        + f"\nBy hand: put unet/, vae/, scheduler/, text_encoder/ and tokenizer/ of a copy into {target}"
    )
