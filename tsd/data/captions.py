"""Captions by an image-to-text model of `transformers`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tsd.errors import UserError

MAX_NEW_TOKENS = 64  # CLIP reads 77 tokens, including its start and end tokens
INSTRUCTION = "Describe this photograph in one sentence."


class Captioner:
    """Any model of transformers' `AutoModelForImageTextToText`: BLIP, GIT, ViT-GPT2, and chat models such as LLaVA.

    Chat models are asked `INSTRUCTION`. Decoding is greedy, so that a caption depends on the image alone; nothing from
    the model's repository is executed.
    """

    def __init__(self, model: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: hub id or folder.

        Raises:
            UserError: no such model, or one that does not turn images into text.
        """
        from transformers import (
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            ProcessorMixin,
        )

        try:
            processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
            if not isinstance(processor, ProcessorMixin):  # models such as ViT-GPT2 store the two parts separately
                processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
                self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            else:
                self.tokenizer = processor.tokenizer
            network: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"the caption model {model!r} could not be loaded: {error}") from error
        self.network = network.to(device).eval()
        self.dtype = dtype
        self.processor: Any = processor
        self.chat = bool(getattr(processor, "chat_template", None))

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[str]:
        """(H, W, 3) uint8 images → one line of text each."""
        pictures = [Image.fromarray(image) for image in images]
        inputs = self._inputs(pictures).to(self.network.device, self.dtype)
        tokens = self.network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
        if self.chat:  # a chat model repeats the question
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _inputs(self, pictures: list[Image.Image]) -> Any:
        if not self.chat:
            return self.processor(images=pictures, return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": INSTRUCTION}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        self.tokenizer.padding_side = "left"
        return self.processor(images=pictures, text=[text] * len(pictures), padding=True, return_tensors="pt")
