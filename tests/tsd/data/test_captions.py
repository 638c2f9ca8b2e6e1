import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from tsd.data.captions import INSTRUCTION, MAX_NEW_TOKENS, Captioner
from tsd.errors import UserError


def build_vit_gpt2(folder: Path, tokenizer: Any) -> Path:
    """A random ViT-GPT2: image processor and tokenizer side by side, without a processor class of its own."""
    torch.manual_seed(3)
    words = tokenizer()
    vision = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        initializer_range=1.0,
    )  # fmt: skip
    text = GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=128, add_cross_attention=True,
        initializer_range=1.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    network = VisionEncoderDecoderModel(config)
    network.generation_config.decoder_start_token_id = 1
    network.generation_config.pad_token_id = 0
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def build_llava(folder: Path, tokenizer: Any) -> Path:
    """A random LLaVA, which answers a question in a chat."""
    torch.manual_seed(3)
    words = tokenizer(("<image>",))
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=8,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=1.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    image = words.convert_tokens_to_ids("<image>")
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, vision_feature_layer=-1)
    )
    network.save_pretrained(folder)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else ' ' + c['text'] }}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [None, build_vit_gpt2, build_llava], ids=["blip", "vit-gpt2", "llava"])
def test_images_become_one_line_each_whatever_their_company(
    build: Callable | None, word_tokenizer: Any, tiny_blip_dir: Path, tmp_path: Path
):
    folder = tiny_blip_dir if build is None else build(tmp_path / "model", word_tokenizer)
    captioner = Captioner(str(folder))
    images = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(3)]
    captions = captioner(images)
    assert captions == [captioner([image])[0] for image in images]
    known = set(word_tokenizer().get_vocab())
    for caption in captions:
        words = caption.split()
        assert 0 < len(words) <= MAX_NEW_TOKENS
        assert set(words) <= known
        assert INSTRUCTION.split()[0] not in words[:1]  # the question is not repeated
    assert captions == Captioner(str(folder))(images)  # greedy: no lottery


def test_captions_are_of_the_image(tiny_blip_dir: Path):
    captioner = Captioner(str(tiny_blip_dir))
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, (32, 32, 1), dtype=np.uint8) for _ in range(10)]
    images = [np.full((32, 32, 3), 25 * i, np.uint8) * mask for i, mask in enumerate(masks)]
    assert len(set(captioner(images))) > 1


def test_a_wrong_caption_model_is_explained(tmp_path: Path):
    with pytest.raises(UserError, match="caption model 'nobody/no-such-captioner' could not be loaded"):
        Captioner("nobody/no-such-captioner")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="could not be loaded"):
        Captioner(str(tmp_path))
