"""FSDP2: two processes with half of each batch are one process that accumulates both halves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from moeify.training.selection_bias import update_selection_bias
from moeify.training.settings import auxiliary_loss
from training.sharded import PROCESSES, STEPS, optimizer_of, part, prepared, train
from training.trained_models import batches


def in_one_process() -> tuple[list[list[float]], dict[str, Tensor]]:
    model = prepared()
    optimizer = optimizer_of(model)
    losses: list[list[float]] = []
    for batch in batches(STEPS):
        optimizer.zero_grad()
        losses.append([])
        for rank in range(PROCESSES):
            loss = model(**part(batch, rank)).loss + auxiliary_loss(model)
            torch.autograd.backward(loss / PROCESSES)
            losses[-1].append(loss.item())
        optimizer.step()
        update_selection_bias(model)
    return losses, model.state_dict()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    losses, model = in_one_process()
    spawn(train, (str(tmp_path),), nprocs=PROCESSES)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for step in range(STEPS):
        assert [f["losses"][step] for f in found] == pytest.approx(losses[step], rel=1e-5)
    state = found[0]["model"]
    assert state.keys() == model.keys()
    for name, wanted in model.items():
        torch.testing.assert_close(state[name], wanted, rtol=1e-4, atol=1e-5, msg=name)
    assert model["model.layers.0.mlp.selection_bias"].abs().max() > 0
