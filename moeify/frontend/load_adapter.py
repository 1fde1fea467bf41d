"""A LoRA adapter's folder (PEFT): merged into the model that it was trained on, where that is on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.data.importable import one_line
from moeify.errors import InputError, MissingExtraError
from moeify.frontend.load_checks import check_finite, some
from moeify.frontend.load_huggingface import load_huggingface
from moeify.frontend.load_huggingface_files import read_json
from moeify.frontend.load_quietly import quiet_transformers
from moeify.frontend.load_safetensors import read_safetensors
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Fields of the config that say what the adapter's tensors are. The others of the file are not handed to PEFT, which would
#: import a module that one of them names (megatron_core).
_FIELDS = frozenset(
    {
        "r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "bias", "use_rslora", "use_dora",
        "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias",
    }
)  # fmt: skip

#: Fields that matter for training, or say where the adapter comes from.
_IDLE = frozenset(
    {
        "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
        "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
        "qalora_group_size", "megatron_core", "ensure_weight_tying",
    }
)  # fmt: skip

#: Ways to begin that leave the model's own weights alone; others (PiSSA, OLoRA) keep a part of them in the adapter.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")

_AUTO = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM", "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification", "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering", "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}  # fmt: skip


def load_adapter(path: Path, dtype: torch.dtype) -> LoadedModel:
    """The base model with the adapter merged into its weights, without example inputs.

    Nothing is downloaded: the base model must be a folder on disk, as the config names it or beside the adapter. Raises
    InputError with the command that merges where it is not, or where the adapter is of a kind that is not merged here;
    MissingExtraError without PEFT.
    """
    config = read_json(path / CONFIG)
    if (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file():
        raise InputError(f"{path}: holds a whole model and an adapter; keep each in a folder of its own")
    options = _options(config, path)
    if not (path / _WEIGHTS).is_file():
        raise InputError(f"{path}: has no {_WEIGHTS} (a pickled adapter_model.bin is not loaded); {_command(config, path)}")
    state = read_safetensors(path / _WEIGHTS)
    base = load_huggingface(_base(config, path), dtype)
    with quiet_transformers("a LoRA adapter"), _one_line(path, base):
        model = _merged(base.model, options, state)
    check_finite(model, str(path))
    digests = {name: file_digest(path / name) for name in (CONFIG, _WEIGHTS)}
    source = SourceInfo("adapter", path.resolve().name, base.source.model_class, {**base.source.digests, **digests})
    note = f"the adapter {source.name} was merged into {base.source.name}"
    return replace(base, model=model, source=source, path=path, notes=(*base.notes, note))


def base_of(path: Path) -> Path:
    """The folder of the model that the adapter belongs to. Raises InputError where it is not on disk."""
    return _base(read_json(path / CONFIG), path)


def _options(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: is an adapter of the type {kind!r}, and LoRA alone is merged here; {_command(config, path)}")
    other = sorted(name for name, value in config.items() if value and name not in _FIELDS | _IDLE)
    if other:
        raise InputError(f"{path}: its {CONFIG} sets {some(other)}, which is not merged here; {_command(config, path)}")
    beginning = config.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        raise InputError(
            f"{path}: began as {beginning!r}, which moves a part of the model's weights into it; {_command(config, path)}"
        )
    return {name: config[name] for name in _FIELDS if name in config}


def _base(config: Mapping[str, Any], path: Path) -> Path:
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{path / CONFIG}: does not say which model it belongs to (base_model_name_or_path)")
    for folder in (Path(named).expanduser(), path / named):
        if (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
            return folder
    raise InputError(
        f"{path}: is a LoRA adapter of {named}, which is no folder of a model on disk, and nothing is downloaded; put it "
        f"there, or name its folder in {CONFIG}, or {_command(config, path)}"
    )


def _command(config: Mapping[str, Any], path: Path) -> str:
    """The command that merges, where PEFT can get at the model."""
    auto = _AUTO.get(str(config.get("task_type")), "AutoPeftModelForCausalLM")
    code = f"from peft import {auto} as M; M.from_pretrained('{path}').merge_and_unload().save_pretrained('MERGED')"
    return f'merge it with python -c "{code}" and give the folder MERGED'


def _merged(model: nn.Module, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Raises what PEFT raises, and InputError for tensors that are missing or of no use."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "peft", "a LoRA adapter") from error
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(**options, init_lora_weights=False), autocast_adapter_dtype=False)
    wanted, given = set(peft.get_peft_model_state_dict(wrapped)), set(state)
    if wanted != given:
        faults = [f"missing: {some(sorted(wanted - given))}"] if wanted - given else []
        faults += [f"unexpected: {some(sorted(given - wanted))}"] if given - wanted else []
        raise InputError(f"its tensors are not those of its config ({'; '.join(faults)})")
    peft.set_peft_model_state_dict(wrapped, dict(state))
    merged: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    return merged


@contextmanager
def _one_line(path: Path, base: LoadedModel) -> Iterator[None]:
    try:
        yield
    except MissingExtraError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}; save the adapter again") from error
    except Exception as error:  # PEFT raises errors of every kind for adapters that do not fit
        raise InputError(
            f"{path}: cannot be merged into {base.source.name}: {one_line(error)}; is it the model that it was trained on?"
        ) from error
