"""Pictures of one colour each, conversations about them, and a tiny random model that sees them."""

from __future__ import annotations

import base64
import io
from typing import Any

from .token_world import make_tokenizer

SIDE = 28
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(colour: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


def shown(colour: str, url: str | None = None) -> list[dict[str, Any]]:
    """Somebody shows a picture, at `url` or in place, and is told its colour."""
    url = url or "data:image/png;base64," + base64.b64encode(png(colour)).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "which colour"}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": f"it is {colour}"}]


def tiny_llava() -> tuple[Any, Any]:
    """A random vision-language model of a few thousand parameters, and its processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = make_tokenizer(["user assistant which colour it is red green blue hello hi"] * 3, TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=SIDE, patch_size=14, projection_dim=16),
        text_config=LlamaConfig(**small, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor
