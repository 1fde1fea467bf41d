"""genai_config.json: what onnxruntime-genai has to know of a model that the ONNX file does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from moeify.export.onnx.report import OnnxReport

#: Tokens of a text at most, where neither the model nor its tokenizer knows a limit.
CONTEXT = 2048

#: Beyond it a tokenizer's limit says that there is none.
_NO_LIMIT = 10**9

#: Settings of generation that mean the same in both.
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def genai_config(model: nn.Module, tokenizer: Any, report: OnnxReport, library: str | None) -> dict[str, Any]:
    """report: of the ONNX file. library: the name of an operator library beside it, or None.

    Keys and values go in and out in buffers of their own (`past_present_share_buffer` false): the graph appends to them.
    """
    config: Any = model.config
    context = _context(config, tokenizer)
    return {
        "model": {
            "type": "decoder",
            "vocab_size": report.outputs[0].dims[-1],
            "context_length": context,
            **_special_tokens(model, tokenizer),
            "decoder": _decoder(config, report, library),
        },
        "search": {"max_length": context, "past_present_share_buffer": False} | _search(model),
    }


def _decoder(config: Any, report: OnnxReport, library: str | None) -> dict[str, Any]:
    past = [port for port in report.inputs if port.name.startswith("past_key_values.")]
    _, heads, _, width = past[0].dims
    names = {port.name: port.name for port in report.inputs if not port.name.startswith("past_key_values.")}
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    return {
        "filename": "model.onnx",
        "session_options": session | ({"custom_ops_library": library} if library else {}),
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": heads,
        "head_size": width,
        "num_hidden_layers": len(past) // 2,
        "inputs": names | {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {
            "logits": report.outputs[0].name,
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _context(config: Any, tokenizer: Any) -> int:
    found = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    return next((value for value in found if isinstance(value, int) and 0 < value < _NO_LIMIT), CONTEXT)


def _search(model: nn.Module) -> dict[str, Any]:
    settings = getattr(model, "generation_config", None)
    found = {name: getattr(settings, name, None) for name in _SEARCH}
    return {"do_sample": False} | {name: value for name, value in found.items() if value is not None}


def _special_tokens(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Where nothing says which token ends a text, generation goes on to the length that is asked for."""
    config: Any = model.config
    sources = (getattr(model, "generation_config", None), config, tokenizer)

    def told(name: str) -> Any:
        return next((value for source in sources if (value := getattr(source, name, None)) is not None), None)

    start, end = told("bos_token_id"), told("eos_token_id")
    ends = list(end) if isinstance(end, (list, tuple)) else [] if end is None else [end]
    used = tuple(token for token in (start, *ends) if token is not None)
    found: dict[str, Any] = {"pad_token_id": padding(told("pad_token_id"), used, config.vocab_size, tokenizer)}
    if start is not None:
        found["bos_token_id"] = start
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return found


def padding(pad: int | None, used: Sequence[int], vocabulary: int, tokenizer: Any) -> int:
    """onnxruntime-genai takes such tokens at the end of a prompt for padding and does not let them be read. So it is a token
    that prompts do not end with: the model's own if it is for this alone; else a row of the vocabulary that the tokenizer does
    not use, its unknown token, or the last resort, the end of a text.

    used: the tokens that begin and end texts.
    """
    spare = vocabulary - 1 if tokenizer is not None and len(tokenizer) < vocabulary else None
    own = (pad, spare, getattr(tokenizer, "unk_token_id", None))
    last = used[-1] if used else 0
    return next((token for token in own if token is not None and 0 <= token < vocabulary and token not in used), last)
