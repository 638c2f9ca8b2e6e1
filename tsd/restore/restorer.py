"""One-step restoration of one image: x_L → z_L → ẑ (one step) → image, with the release's rules of size and colour.

The arithmetic is the released script's, except for rounding. The release truncates to 8 bits after decoding and again
after colour alignment (and rounds where it resizes); here everything is float, and writing the file rounds once (only
AdaIN keeps the first truncation, see `truncate_to_8_bits`). Both agree within 3 levels at any pixel and 1 level on
average.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tsd.config import ADAPTER_CONFIG, FastPath, RestoreConfig, config_for, enlarged_size
from tsd.console.stages import DECODE, ENCODE, TILES, Progress, silent
from tsd.errors import UserError, is_out_of_memory
from tsd.fast.compiling import Sizes, compile_blocks
from tsd.fast.decoder import SmallDecoder, load_decoder
from tsd.fast.loading import load_fast
from tsd.fast.mean import encode_mean
from tsd.fast.packing import PackedLinear, pack_linears
from tsd.fast.projections import use_fused_projections
from tsd.fast.quantizing import Quantization, check_quantization, quantize
from tsd.fast.upsampling import use_fast_upsampling
from tsd.fast.winograd import use_winograd
from tsd.files import sha256_file
from tsd.images import Picture, enlarged, from_array, from_image, read_picture
from tsd.model.backbone import Backbone, require_prompt
from tsd.model.groupnorm import use_two_pass_group_norm
from tsd.model.loading import parts_of, resolve_model
from tsd.restore.color import adain, wavelet
from tsd.restore.student import check_parts, find_student, is_merged, student_prompts
from tsd.restore.tiling import blend_tiles
from tsd.seeds import seed_for

SMALLEST_SIDE = 8
SIDE_MULTIPLE = 8  # the release cuts target sides to multiples of 8 pixels
VAE_TILE_PIXELS = 1024


def processing_size(width: int, height: int, config: RestoreConfig, multiple: int) -> tuple[int, int]:
    """(width, height) in pixels at which the network works for an input of this size.

    The arithmetic is the release's with its integer truncations, but a side that would become 0 is set to `multiple`.
    """
    least = int(config.process_size // config.scale)
    if width < least or height < least:
        enlarge = least / min(width, height)
        width, height = int(enlarge * width), int(enlarge * height)
    width, height = enlarged_size(width, height, config.scale)
    return max(width - width % multiple, multiple), max(height - height % multiple, multiple)


class Restorer:
    """A loaded student: degraded images in, restored images out, `config.scale` times as large.

    >>> restorer = Restorer.load()                       # the mini model
    >>> restored = restorer(Image.open("photo.jpg"))     # Pillow image or NumPy array in, the same kind out
    """

    def __init__(
        self,
        backbone: Backbone,
        config: RestoreConfig,
        sources: dict[str, str],
        fast: FastPath | None = None,
        report: Callable[[str], None] = warnings.warn,
        decoder: SmallDecoder | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        """Wraps a backbone whose student is merged or active; `sources` names what it was loaded from.

        Of `fast`, by default all but compilation, only what concerns the VAE is done here; `load` rewrites the
        denoiser; `quantization` says what was done to it. `report` is called with one line where compilation fails or
        takes place.
        """
        self.backbone = backbone
        self.decoder, self.quantization = decoder, quantization
        fast = FastPath() if fast is None else fast
        packed = any(type(module) is PackedLinear for module in backbone.denoiser.modules())
        fast = replace(fast, fold=backbone.folded, text=fast.text and backbone.folded, pack=packed)
        self.config = config
        self.prompt = require_prompt(backbone, "default")
        self.sources = sources
        # Channels-last halves the VAE's time on the CPU in half precision; the mathematics is the same.
        if fast.channels_last:
            backbone.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        use_two_pass_group_norm(backbone.vae)
        if fast.qkv:
            use_fused_projections(backbone.vae)
        if fast.upsample:
            use_fast_upsampling(backbone.vae)
        compiled = fast.compile and compile_blocks(backbone, report)
        self.sizes = Sizes(report) if compiled else None
        networks = (backbone.vae, backbone.denoiser) if fast.winograd and not compiled else ()
        rewritten = [use_winograd(network) for network in networks]
        self.fast = replace(fast, winograd=any(rewritten), compile=compiled)
        if config.vae_tile:
            backbone.vae.enable_tiling()
            backbone.vae.tile_sample_min_size = VAE_TILE_PIXELS
            backbone.vae.tile_latent_min_size = VAE_TILE_PIXELS // backbone.vae_factor

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        lora: str | Path | None = None,
        prompt_embeds: str | Path | None = None,
        *,
        config: RestoreConfig | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        fast: FastPath | None = None,
        decoder: str | Path | None = None,
        quantization: Quantization | None = None,
        report: Callable[[str], None] = warnings.warn,
    ) -> "Restorer":
        """Loads model, prompts and student (merged into the weights).

        Args:
            model: folder in diffusers layout or hub id; the mini model by default.
            lora: folder with the student in the released layout; by default the model folder's `lora/tsdsr`. None for
                a merged student of `tsd export`.
            prompt_embeds: folder with `prompt_embeds.pt` and `pool_embeds.pt`; by default those beside the
                student's weights, else the model folder's own.
            config: by default the settings that the LoRA folder recommends (`restore.json`), else the release's.
            fast: exact rewrites, by default all but compilation; `tsd.config.PLAIN` for none.
            decoder: folder of an `AutoencoderTiny` that decodes in the VAE's place, nearly alike and faster.
            quantization: products of the denoiser in 8 bits (`tsd.fast.quantizing`), nearly alike.
            report: called with one line where compilation fails or takes place; by default a Python warning.

        Raises:
            UserError: a part is missing, damaged or does not fit the others; the message says what to give.
        """
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise UserError("the device is cuda but torch finds no CUDA device here; use cpu")
        if quantization is not None:
            check_quantization(quantization, device)
        model, lora = find_student(model, lora)
        config = config_for(lora) if config is None else config
        prompt_embeds = student_prompts(lora) if prompt_embeds is None else prompt_embeds
        check_parts(model, lora, prompt_embeds)
        fast = FastPath() if fast is None else fast
        merged = None if is_merged(lora) else lora
        backbone, fast = load_fast(model, merged, prompt_embeds, fast, device=device, dtype=dtype)
        if quantization is not None:
            quantize(backbone.denoiser, quantization)
        small = None
        if decoder is not None:
            small = load_decoder(decoder, backbone.vae.config, device=device, dtype=dtype)
        sources = {"model": str(model), "lora": str(lora)} | ({"decoder": str(decoder)} if small else {})
        if prompt_embeds is not None:
            sources["prompt_embeds"] = str(prompt_embeds)
        restorer = cls(backbone, config, sources, fast, report, small, quantization)
        if quantization is None and fast.pack and not restorer.fast.compile:  # a compiler packs by itself
            restorer.fast = replace(restorer.fast, pack=pack_linears(backbone.denoiser))
        return restorer

    def __call__(self, image: Image.Image | np.ndarray | str | Path, name: str = "") -> Image.Image | np.ndarray:
        """Restores one image and returns it as the kind that was given.

        Args:
            image: a Pillow image of any mode; a NumPy array (H, W) or (H, W, 1 to 4) of uint8, uint16 or floats in
                [0, 1]; or the path of a file, whose result is an 8-bit Pillow image (`restore_picture` keeps 16).
            name: seeds the posterior draw together with `config.seed`; the default for a path is its file name
                without suffix.
        """
        if isinstance(image, Image.Image):
            return self.restore_picture(from_image(image), name).to_image()
        if not isinstance(image, np.ndarray):
            return self.restore_picture(read_picture(image), name or Path(image).stem).to_image()
        restored = self.restore_picture(from_array(image), name)
        if np.issubdtype(image.dtype, np.floating):
            color = restored.color.mean(axis=2, keepdims=True) if restored.gray else restored.color
            layers = color if restored.alpha is None else np.dstack([color, restored.alpha])
            array = layers.astype(image.dtype)
        else:
            array = restored.to_uint(restored.depth)
        return array.reshape(*array.shape[:2], *image.shape[2:])

    def restore_picture(self, picture: Picture, name: str = "", progress: Progress = silent) -> Picture:
        """Restores a decoded picture at full depth (`tsd.images.enlarged`); `progress`: see `tsd.console.stages`."""
        lr = torch.from_numpy(picture.color).permute(2, 0, 1)[None]
        sr = self.restore_tensor(lr, seed_for(self.config.seed, "posterior", name), progress=progress)
        return enlarged(picture, sr[0].permute(1, 2, 0).contiguous().numpy())

    @torch.inference_mode()
    def restore_tensor(self, lr: Tensor, seed: int, *, progress: Progress = silent) -> Tensor:
        """Restores one image as a tensor; all other methods call this one.

        Args:
            lr: (1, 3, h, w) float in [0, 1], sides of 8 or more.
            seed: seeds the posterior draw, made on the CPU so that CPU and CUDA agree; unused with posterior `mode`.
            progress: called with (stage, done, total) for every stage but `write`, see `tsd.console.stages`.

        Returns:
            (1, 3, scale·h, scale·w) float32 in [0, 1], not rounded, on lr's device; a size that is no whole number is
            rounded (`tsd.config.enlarged_size`).

        Raises:
            UserError: an unusable shape, values that are NaN or infinite in the input or in the networks' output, or
                not enough memory (the message says what helps).
        """
        if lr.ndim != 4 or lr.shape[:2] != (1, 3) or min(lr.shape[-2:]) < SMALLEST_SIDE:
            raise UserError(f"an input is (1, 3, h, w) with sides of {SMALLEST_SIDE} or more; found {tuple(lr.shape)}")
        if not bool(lr.isfinite().all()):
            raise UserError("the input holds values that are NaN or infinite; expected [0, 1]")
        try:
            return self._restore(lr, seed, progress).to(lr.device)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise UserError(self._memory_advice(lr.shape[-1], lr.shape[-2])) from error
            raise

    def _restore(self, lr: Tensor, seed: int, progress: Progress) -> Tensor:
        config, backbone = self.config, self.backbone
        lr = lr.to(backbone.device, torch.float32)
        target = enlarged_size(lr.shape[-2], lr.shape[-1], config.scale)
        width, height = self.processing_size(lr.shape[-1], lr.shape[-2])
        if self.sizes is not None:
            self.sizes.meet((width, height))
        x_L = F.interpolate(lr, size=(height, width), mode="bicubic", align_corners=False)
        layout = torch.channels_last if self.fast.channels_last else torch.contiguous_format
        x_L = (2 * x_L - 1).clamp(-1, 1).to(backbone.dtype, memory_format=layout)
        progress(ENCODE, 0, 1)
        if self.fast.mean and config.posterior == "mode":
            z_L = encode_mean(backbone, x_L)
        else:
            generator = torch.Generator().manual_seed(seed)
            z_L = backbone.encode(x_L, posterior=config.posterior, generator=generator)
        progress(ENCODE, 1, 1)
        z_hat = self._one_step(z_L, progress)
        progress(DECODE, 0, 1)
        decode = backbone.decode if self.decoder is None else self.decoder
        decoded = decode(z_hat).float()
        self._require_finite(decoded)
        progress(DECODE, 1, 1)
        image = decoded.clamp(-1, 1) / 2 + 0.5
        if config.color == "adain":
            return adain(truncate_to_8_bits(image, target), lr).clamp(0, 1).contiguous()
        image = resize(image, target)
        if config.color == "wavelet":
            image = wavelet(image, resize(lr, target))
        return image.clamp(0, 1).contiguous()

    def _require_finite(self, decoded: Tensor) -> None:
        """Refuses an image that is partly or wholly NaN or infinite: clamped, it would look like a black or white one.

        Raises:
            UserError: says what to try.
        """
        broken = decoded.numel() - int(decoded.isfinite().sum())
        if broken:
            half = self.backbone.dtype != torch.float32
            advice = (
                "its range or precision is too small for these weights: try --dtype bf16 or fp32"
                if half
                else "the weights of the model or of the student are damaged, or its LoRA is far too strong"
            )
            name = str(self.backbone.dtype).removeprefix("torch.")
            raise UserError(
                f"the networks gave {broken:,} of {decoded.numel():,} values that are NaN or infinite in {name}; "
                f"{advice}"
            )

    def _one_step(self, z_L: Tensor, progress: Progress) -> Tensor:
        height, width = z_L.shape[-2:]
        tile = self.tile_side(height, width)
        if tile is not None:
            overlap, told = self.config.tile_overlap, partial(progress, TILES)
            return blend_tiles(self._one_step_padded, z_L, tile=tile, overlap=overlap, progress=told)
        longest = self.backbone.family.longest_side(self.backbone.denoiser)
        if max(height, width) > longest:
            raise UserError(
                f"the latent is {width}x{height} and this denoiser knows positions up to {longest:.0f}: without tiles "
                f"the image is too large. Use --tile {min(64, longest):.0f}."
            )
        progress(TILES, 0, 1)
        z_hat = self._one_step_padded(z_L)
        progress(TILES, 1, 1)
        return z_hat

    def tile_side(self, height: int, width: int) -> int | None:
        """The side of the denoiser's tiles for a latent of this size; None where it is taken whole."""
        tile, longest = self.config.tile, self.backbone.family.longest_side(self.backbone.denoiser)
        if tile and (height * width > tile**2 or max(height, width) > longest):
            return int(min(tile, longest))
        return None

    def _one_step_padded(self, z: Tensor) -> Tensor:
        """One step for any size: sides that the patch does not divide are padded with their last row or column."""
        patch, (height, width) = self.backbone.family.patch_size(self.backbone.denoiser), z.shape[-2:]
        padded = F.pad(z, (0, -width % patch, 0, -height % patch), mode="replicate")
        return self.backbone.one_step(padded, self.prompt)[..., :height, :width]

    def processing_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels at which the network works for an input of this size."""
        return processing_size(width, height, self.config, math.lcm(SIDE_MULTIPLE, self.backbone.vae_factor))

    def _memory_advice(self, width: int, height: int) -> str:
        work_width, work_height = self.processing_size(width, height)
        advice = ["--dtype bf16"] if self.backbone.dtype == torch.float32 else []
        advice += [] if self.config.vae_tile else ["--memory with fewer GB than are free", "--vae-tile"]
        if work_width * work_height > self.config.scale**2 * width * height:
            advice.append("--process-size 0 (this input is enlarged to the least processing size)")
        advice.append(f"--tile {max(self.config.tile // 2, 16)}" if self.config.tile else "--tile 64")
        return (
            f"not enough memory on {self.backbone.device} to restore {width}x{height} pixels (worked at "
            f"{work_width}x{work_height}). What helps: {', '.join(advice)}."
        )

    @cached_property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of every weight file used, by its part and name; reads them all (seconds for SD3-medium)."""
        model, lora = resolve_model(self.sources["model"]), Path(self.sources["lora"])
        prompt = Path(self.sources.get("prompt_embeds", model / "prompts")).expanduser()
        prompt = prompt / "default" if (prompt / "default").is_dir() else prompt
        parts = parts_of(self.backbone.family)
        files = {f"model/{part}/{path.name}": path for part in parts for path in (model / part).glob("*.safetensors")}
        files |= {f"lora/{path.name}": path for path in lora.glob("*.safetensors")}
        files |= {f"lora/{ADAPTER_CONFIG}": path for path in lora.glob(ADAPTER_CONFIG)}  # it may state alpha
        if "decoder" in self.sources:
            decoder = Path(self.sources["decoder"]).expanduser()
            files |= {f"decoder/{path.name}": path for path in decoder.glob("*.safetensors")}
        files |= {f"prompt/{path.name}": path for path in prompt.glob("*_embeds.*")}
        return {name: sha256_file(files[name]) for name in sorted(files)}

    def provenance(self) -> dict[str, object]:
        """Everything that fixes a result, ready for JSON: sources, hashes, settings, precision, device, versions."""
        import diffusers

        return {
            **self.sources,
            "sha256": self.weights_sha256,
            "settings": asdict(self.config),
            "fast": asdict(self.fast),
            "quantization": self.quantization,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "device": str(self.backbone.device),
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        }


def truncate_to_8_bits(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """The image as the release passes it to AdaIN: truncated to 8 bits, then resized by Pillow if the sizes differ.

    AdaIN multiplies by the ratio of the two contrasts, and so magnifies the truncation error: for a network whose
    output is flat, an untruncated image would differ from the release's by several levels. Wavelet alignment only adds,
    so nothing is truncated there.

    Args:
        image: (1, 3, H, W) in [0, 1].
        size: (height, width) of the result, (1, 3, height, width) in whole levels of 1/255.
    """
    levels = (image[0] * 255).permute(1, 2, 0).to("cpu", torch.uint8).numpy()
    picture = Image.fromarray(levels)
    if picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(image.device, torch.float32) / 255


def resize(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pillow's default resizing (bicubic, a = −0.5, antialiased when shrinking) in float.

    Args:
        image: (B, C, H, W) in [0, 1].
        size: (height, width) of the result, which is in [0, 1] as well.

    Pillow resizes rows first, then columns, and each of its passes ends in [0, 255]; so each is clamped here.
    """
    for shape in ((image.shape[-2], size[1]), (size[0], size[1])):
        if image.shape[-2:] != shape:
            image = F.interpolate(image, size=shape, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return image
