"""The Trainer of transformers: losses that need no subclass, and a callback that logs and balances."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import MissingExtraError, UsageError
from moeify.layers.budget import moe_layers
from moeify.training.selection_bias import update_selection_bias
from moeify.training.settings import auxiliary_loss, set_training
from moeify.training.trainer import trainer_callback
from training.trained_models import batches, llama

ACCUMULATED = 2
LOSSES: dict[str, Any] = {"load_balance": 0.05, "z_loss": 0.01, "bias_rate": 0.01}


def rows() -> list[dict[str, Tensor]]:
    """16 sequences of one length: a mean over tokens is then the mean over batches."""
    return [{name: value[i] for name, value in batch.items()} for batch in batches(4) for i in range(4)]


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings = {
        "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": ACCUMULATED, "logging_steps": 2,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0, "report_to": "none",
        "save_steps": 2, "use_cpu": True, "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **(settings | options))
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows()[:4], callbacks=[trainer_callback()])


def by_hand() -> nn.Module:
    """What the Trainer is to do: 4 steps of 2 accumulated batches of 2 sequences."""
    model: Any = llama()
    set_training(model, **LOSSES)
    optimizer, data = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0), rows()
    for step in range(4):
        for part in range(ACCUMULATED):
            first = 2 * (ACCUMULATED * step + part)
            batch = {name: torch.stack([row[name] for row in data[first : first + 2]]) for name in data[0]}
            torch.autograd.backward((model(**batch).loss + auxiliary_loss(model)) / ACCUMULATED)
        optimizer.step()
        optimizer.zero_grad()
        update_selection_bias(model)
    trained: nn.Module = model
    return trained


def assert_equal(model: nn.Module, truth: nn.Module) -> None:
    found = model.state_dict()
    for name, wanted in truth.state_dict().items():
        torch.testing.assert_close(found[name], wanted, msg=name, rtol=1e-4, atol=1e-5)


def test_it_trains_with_the_losses_and_logs_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llama()
    set_training(model, **LOSSES, attach=1 / ACCUMULATED)
    run = trainer(model, tmp_path)
    run.train()
    assert_equal(model, by_hand())
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    for entry in logs:
        assert 0.05 * 2 <= entry["moe/load_balance"] < 0.2
        assert entry["moe/z_loss"] > 0
        assert entry["moe/dead"] == 0
        for path in moe_layers(model):
            assert 1 / 3 <= entry[f"moe/{path}/max_share"] < 1
            assert 0 < entry[f"moe/{path}/entropy"] < 1.1
    assert "moe/dead" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_taken_up_again(tmp_path: Path) -> None:
    found = []
    for resumed in (False, True):
        model = llama()
        set_training(model, **LOSSES, attach=1 / ACCUMULATED)
        run = trainer(model, tmp_path)
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumed else None)
        found.append(model.state_dict())
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, msg=name)


def test_an_evaluation_between_steps_disturbs_nothing(tmp_path: Path) -> None:
    model = llama()
    set_training(model, **LOSSES, attach=1 / ACCUMULATED)
    run = trainer(model, tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="no")
    run.train()
    assert_equal(model, by_hand())


@pytest.mark.parametrize(
    ("attach", "options", "message"),
    [
        (True, {}, "attach is True and the Trainer accumulates 2 batches: attach=1 / 2"),
        (0.5, {"fp16": True}, "attached losses are not scaled with the Trainer's loss"),
    ],
)
def test_losses_that_it_would_weigh_wrongly_are_refused(
    attach: float, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = llama()
    set_training(model, z_loss=0.1, attach=attach)
    run = trainer(model, tmp_path)
    for name, value in options.items():
        setattr(run.args, name, value)
    with pytest.raises(UsageError, match=message):
        run.callback_handler.on_train_begin(run.args, run.state, run.control)


def test_accelerate(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model: Any = llama()
    set_training(model, **LOSSES)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    data: Any = torch.utils.data.DataLoader(rows(), batch_size=2)  # type: ignore[arg-type]  # a list is a data set
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    prepared, optimizer, data = accelerator.prepare(model, optimizer, data)
    for batch in data:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss + auxiliary_loss(prepared))
            optimizer.step()
            if accelerator.sync_gradients:
                update_selection_bias(prepared)
            optimizer.zero_grad()
    assert_equal(model, by_hand())


def test_without_transformers_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"a callback of its Trainer needs .* pip install 'moeify\[train\]'"):
        trainer_callback()
