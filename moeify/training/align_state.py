"""Where an alignment stands: kept in a file from time to time, so that one that was ended early goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_PARTS = ("now", "best", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AlignState:
    """Figures of a run. done: the part of it that is over, 0 .. 1. worse: looks at the held-out data in a row that were no
    better than the best. before, best: distances on them. kind: what these are."""

    before: float
    best: float
    kind: str
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0
    done: float = 0.0
    worse: int = 0

    def judged(self, distance: float) -> AlignState:
        """After a look."""
        if distance < self.best:
            return replace(self, best=distance, best_step=self.steps, worse=0)
        return replace(self, worse=self.worse + 1)


@dataclass(frozen=True)
class StateFile:
    """A .safetensors file with the weights now and at their best, and the states of AdamW."""

    path: Path

    def keep(
        self, state: AlignState, trained: Sequence[nn.Parameter], best: Sequence[Tensor], optimizer: torch.optim.AdamW
    ) -> None:
        """Replaces the file as a whole."""
        tensors: dict[str, Tensor] = {}
        for i, (p, value) in enumerate(zip(trained, best)):
            moments = optimizer.state[p]
            kept = (p.detach(), value, moments["exp_avg"], moments["exp_avg_sq"])
            tensors |= {f"{part}.{i}": tensor.contiguous() for part, tensor in zip(_PARTS, kept)}
        part = self.path.with_name(self.path.name + ".part")
        save_file(tensors, part, {"state": json.dumps(asdict(state))})
        part.replace(self.path)

    def take_up(self, trained: Sequence[nn.Parameter], optimizer: torch.optim.AdamW) -> tuple[AlignState, list[Tensor]] | None:
        """Puts weights and optimizer back where the file left them; None, and nothing changed, where there is no such file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                state = AlignState(**json.loads(file.metadata()["state"]))
                found = {part: [file.get_tensor(f"{part}.{i}") for i in range(len(trained))] for part in _PARTS}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if any(a.shape != p.shape for part in _PARTS for a, p in zip(found[part], trained)):
            return None
        with torch.no_grad():
            for i, p in enumerate(trained):
                p.copy_(found["now"][i])
                moments = {name: found[name][i].to(p.dtype, copy=True) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = moments | {"step": torch.tensor(float(state.steps))}
        return state, [value.to(p.dtype, copy=True) for p, value in zip(trained, found["best"])]
