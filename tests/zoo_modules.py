"""Small networks of our own for the zoo: FFNs that Hugging Face models do not show."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, NEURONS = 16, 48


class CausalAttention(nn.Module):
    """One-headed causal attention with a fused projection. [batch, tokens, hidden] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(HIDDEN, dim=2)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return y


class InlineMLP(nn.Module):
    """nanoGPT's MLP: the activation is written inline, dropout after the second matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(HIDDEN, NEURONS)
        self.c_proj = nn.Linear(NEURONS, HIDDEN)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.c_proj(F.gelu(self.c_fc(x))))
        return y


class NanoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(HIDDEN)
        self.attn = CausalAttention()
        self.ln_2 = nn.LayerNorm(HIDDEN)
        self.mlp = InlineMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class InlineBlock(nn.Module):
    """A block that holds its two matrices itself and writes the whole FFN inline."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.attn = CausalAttention()
        self.fc1 = nn.Linear(HIDDEN, NEURONS)
        self.fc2 = nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        h = self.fc1(self.norm(x))
        y: Tensor = x + self.fc2(h * torch.sigmoid(1.702 * h))
        return y


class NanoGPT(nn.Module):
    """Token and position embeddings, blocks, a head tied to the token embeddings. ids [batch, tokens] -> logits."""

    def __init__(self, block: type[nn.Module] = NanoBlock, blocks: int = 2, vocabulary: int = 40) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, HIDDEN)
        self.wpe = nn.Embedding(32, HIDDEN)
        self.h = nn.ModuleList([block() for _ in range(blocks)])
        self.ln_f = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        y: Tensor = self.lm_head(self.ln_f(x))
        return y


class Residual(nn.Module):
    """x + inner(norm(x))."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(self.norm(x))
        return y


class BareFeedForward(nn.Module):
    """Gated FFN whose matrices are bare parameters, [hidden, neurons] and [neurons, hidden]; relu squared."""

    def __init__(self) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.zeros(HIDDEN, NEURONS))
        self.w_up = nn.Parameter(torch.zeros(HIDDEN, NEURONS))
        self.w_down = nn.Parameter(torch.zeros(NEURONS, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return (F.relu(x @ self.w_gate) ** 2 * (x @ self.w_up)) @ self.w_down


class BareBlock(nn.Module):
    """A block that owns its FFN's bare parameters beside a norm: no module of its own computes the FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.w1 = nn.Parameter(torch.zeros(NEURONS, HIDDEN))
        self.b1 = nn.Parameter(torch.zeros(NEURONS))
        self.w2 = nn.Parameter(torch.zeros(HIDDEN, NEURONS))
        self.b2 = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(F.linear(self.norm(x), self.w1, self.b1))
        return x + F.linear(h, self.w2, self.b2)


class MixerBlock(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021, figure 1): one FFN over patches, one over channels. [batch, patches, channels]."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(HIDDEN)
        self.mlp_tokens = mlp(patches, 2 * patches)
        self.norm2 = nn.LayerNorm(HIDDEN)
        self.mlp_channels = mlp(HIDDEN, NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.mlp_channels(self.norm2(x))
        return y


def mlp(hidden: int = HIDDEN, neurons: int = NEURONS) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(hidden, neurons), nn.GELU(), nn.Linear(neurons, hidden))
