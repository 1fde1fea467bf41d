"""A LoRA adapter of a causal language model in a folder, as PEFT writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn


def adapt(base: Path, adapter: Path, **options: Any) -> nn.Module:
    """Saves an adapter with random weights; gives the merged model, as PEFT makes it."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    options = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    } | options
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    wrapped.save_pretrained(adapter)
    merged: nn.Module = wrapped.merge_and_unload().eval()
    return merged
