"""Networks with one thing that no convertible feed-forward network has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo_modules import HIDDEN, NEURONS


class FeedForward(nn.Module):
    """Two linears with room for something odd between: the subclasses say what."""

    def __init__(self, hidden: int = HIDDEN, neurons: int = NEURONS, output: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, neurons)
        self.down = nn.Linear(neurons, hidden if output is None else output)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class Tied(FeedForward):
    """An autoencoder's weights: one parameter going in and, transposed, going out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.up(x)), self.up.weight.T)


class TiedToEmbedding(nn.Module):
    """The second matrix is the embedding table too."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = FeedForward()
        self.table = nn.Embedding(HIDDEN, NEURONS)
        self.ffn.down.weight = self.table.weight

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.ffn(x), self.table(ids)


class Leaking(FeedForward):
    """The hidden value is handed out."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x))
        y: Tensor = self.down(h) + h.sum(-1, keepdim=True)
        return y


class NormInside(FeedForward):
    """BitNet's FFN: a normalisation of the hidden value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.norm(F.relu(self.up(x)).square()))
        return y


class NormWrittenOut(FeedForward):
    """The same, written out, with its learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(NEURONS))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x))
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        y: Tensor = self.down(self.scale * h)
        return y


class ConvolutionInside(FeedForward):
    """SegFormer's FFN: a depthwise convolution over the picture. [batch, tokens, hidden], 9 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(NEURONS, NEURONS, 3, padding=1, groups=NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).transpose(1, 2).reshape(x.shape[0], NEURONS, 3, 3)
        h = self.depthwise(h).flatten(2).transpose(1, 2)
        y: Tensor = self.down(F.gelu(h))
        return y


class TwoInputs(FeedForward):
    """A receptance gate that reads the token before (in the manner of RWKV)."""

    def __init__(self) -> None:
        super().__init__()
        self.receptance = nn.Linear(HIDDEN, NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        y: Tensor = self.down(torch.sigmoid(self.receptance(before)) * F.relu(self.up(x)).square())
        return y


class ThreeBranches(FeedForward):
    """A hidden value of three projections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, NEURONS), nn.Linear(HIDDEN, NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.first(x)) * self.up(x) + self.second(x))
        return y


class UnknownActivation(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.sin(self.up(x)))
        return y


class SumOfBranches(FeedForward):
    """Two branches that are added, not multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) + self.up(x))
        return y


class NoActivation(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x))
        return y


class EarlyDropout(FeedForward):
    """Dropout in front of an activation that does not let it pass."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(F.dropout(self.up(x), 0.1, self.training)))
        return y


class LearnedScale(FeedForward):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(NEURONS))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.scale * F.relu(self.up(x)))
        return y


class LoRA(FeedForward):
    """A low-rank branch beside the first matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Linear(HIDDEN, 2, bias=False), nn.Linear(2, NEURONS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.relu(self.up(x) + self.lora_b(self.lora_a(x))))
        return y


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, figure 2): a bottleneck that weighs channels."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(HIDDEN, 4), nn.Linear(4, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(1)))))
        return x * weights[:, None]


class OwnExperts(nn.Module):
    """A hand-written layer of experts, all on."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([FeedForward(), FeedForward()])
        self.shared = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shared(x) + sum(expert(x) for expert in self.experts)
        return y
