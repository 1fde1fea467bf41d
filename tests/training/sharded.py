"""One of two processes that train a sharded model: what test_fully_sharded.py starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from moeify.training.selection_bias import update_selection_bias
from moeify.training.settings import auxiliary_loss, set_training
from training.trained_models import batches, llama

STEPS, PROCESSES = 3, 2
OPTIONS: dict[str, Any] = {"load_balance": 0.05, "z_loss": 0.01, "bias_rate": 0.01}


def prepared() -> Any:
    model = llama()
    set_training(model, **OPTIONS)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def part(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The rows of one process."""
    return {name: value.chunk(PROCESSES)[rank] for name, value in batch.items()}


def train(rank: int, folder: str) -> None:
    """Trains with its part of each batch, and writes its losses and, the first process, the whole model."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    model = prepared()
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    optimizer, losses = optimizer_of(model), []
    for batch in batches(STEPS):
        loss = model(**part(batch, rank)).loss + auxiliary_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_selection_bias(model)
        losses.append(loss.item())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    torch.save({"losses": losses, "model": state}, Path(folder) / f"{rank}.pt")
    distributed.barrier()  # neither takes its connections down while the other still waits for them
    distributed.destroy_process_group()
