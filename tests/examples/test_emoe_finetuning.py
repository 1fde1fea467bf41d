"""The experts of a fine-tuned model, put together again, are the dense model that it computes with all of them on."""

from __future__ import annotations

import pytest
import torch

import moeify
from emoe_finetuning import concatenated, pretrained


@pytest.mark.slow
@pytest.mark.xdist_group("minilm")
def test_concatenated_is_the_model_with_all_experts_on() -> None:
    model = moeify.convert(pretrained(0), recipe="emoe", experts=16, top_k=8, layers="last-half").model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # as training would
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    dense = concatenated(model)
    assert not moeify.moe_layers(dense)
    ids = torch.randint(1000, 20_000, (4, 12), generator=generator)
    with torch.no_grad():
        half = model.eval()(input_ids=ids).logits
        moeify.set_top_k(model, None)
        torch.testing.assert_close(dense(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(half, dense(input_ids=ids).logits, atol=1e-3)
