"""The multi-step teacher as an image-to-image sampler, the reference for one-step distillation.

The encoded input is noised to the level σ_0 = `strength` and integrated back to 0 by Euler steps (Eq. 6), with
classifier-free guidance. This is SDEdit with the teacher's own process, not a method of the paper.
"""

import torch
from torch import Tensor

from tsd.model.backbone import Backbone, require_prompt
from tsd.model.prompt import PromptEmbeds


def guided(
    backbone: Backbone, z_t: Tensor, t: Tensor, prompt: PromptEmbeds, null: PromptEmbeds, guidance_scale: float
) -> Tensor:
    """Classifier-free guidance in one batch: v_null + scale · (v_prompt − v_null); scale 1 needs only the prompt."""
    batch = z_t.shape[0]
    if guidance_scale == 1:
        return backbone.predict(z_t, t, prompt)
    both = PromptEmbeds.cat(prompt.expand(batch), null.expand(batch))
    conditional, unconditional = backbone.predict(z_t.repeat(2, 1, 1, 1), t.expand(batch).repeat(2), both).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


@torch.inference_mode()
def image_to_image(
    backbone: Backbone,
    z_L: Tensor,
    *,
    steps: int,
    strength: float,
    guidance_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Restores latents in `steps` network evaluations (twice as many with guidance).

    Args:
        z_L: encoded degraded images, (B, C, h, w).
        steps: Euler steps, ≥ 1, at times evenly spaced from that of `strength` down to 0.
        strength: the noise level σ_0 in (0, 1] that the input is noised to; 1 forgets the input.
        guidance_scale: 1 is no guidance.
        generator: source of the noise, drawn on the generator's device.

    Returns:
        Latents of the same shape and dtype.
    """
    if steps < 1 or not 0 < strength <= 1:
        raise ValueError(f"steps is {steps} and strength {strength}; expected steps >= 1 and 0 < strength <= 1")
    process = backbone.process
    prompt = require_prompt(backbone, "default")
    null = prompt if guidance_scale == 1 else require_prompt(backbone, "null")
    start = process.time_from_sigma(torch.tensor(float(strength)))
    times = torch.linspace(float(start), 0.0, steps + 1, device=z_L.device)
    source = generator.device if generator is not None else z_L.device
    noise = torch.randn(z_L.shape, generator=generator, device=source).to(z_L)
    z_t = process.add_noise(z_L.float(), noise.float(), times[:1])  # fp32 between the networks, see `DDPM.x0`
    for t, t_next in zip(times[:-1, None], times[1:, None], strict=True):
        prediction = guided(backbone, z_t.to(z_L.dtype), t, prompt, null, guidance_scale)
        z_t = process.step(z_t, prediction.float(), t, t_next)
    return z_t.to(z_L.dtype)
