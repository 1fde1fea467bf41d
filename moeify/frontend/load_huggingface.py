"""A Hugging Face folder or a GGUF file, through transformers: from disk alone, no pickle, no code of the model's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeify.data.importable import one_line
from moeify.errors import InputError, MissingExtraError, MoeifyError
from moeify.frontend.default_dtype import default_dtype
from moeify.frontend.load_checks import check_finite, some
from moeify.frontend.load_gguf_header import GgufHeader, read_gguf_header
from moeify.frontend.load_huggingface_files import check_config, read_json, weight_files
from moeify.frontend.load_plausible import check_floats, check_layers, check_parameters
from moeify.frontend.load_quietly import quiet_transformers
from moeify.frontend.load_safetensors import safetensors_contents
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest

#: Files that make a tokenizer; without one of them there is none, whatever transformers would make up.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt",
    "vocab.json",
)  # fmt: skip
#: As safetensors names them.
_FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_COMPANIONS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def load_huggingface(path: Path, dtype: torch.dtype, *, weights: bool = True) -> LoadedModel:
    """The model of a folder with config.json and safetensors, without example inputs.

    weights: without them the files' headers are read alone, and every tensor is on the meta device.
    Raises InputError for a folder that lacks or contradicts something, MissingExtraError without transformers.
    """
    config = read_json(path / "config.json")
    stored = weight_files(path)
    held = safetensors_contents(stored)
    check_layers(config, held.tensors, str(path / "config.json"))
    with quiet_transformers("a Hugging Face model") as transformers:
        check_config(config, path, transformers)
        parsed = _or_input_error(path, lambda: transformers.AutoConfig.from_pretrained(path, **_SAFE))
        cls = model_class(transformers, parsed)
        outline = _or_input_error(path, lambda: _outline(cls, parsed, dtype))
        check_parameters(outline, held.elements, str(path / "config.json"))
        model, notes = _load(cls, path, path, dtype, {"use_safetensors": True}) if weights else (outline, ())
        tokenizer, remark = (
            tokenizer_in(transformers, path, path) if any((path / n).is_file() for n in TOKENIZER_FILES) else (None, None)
        )
    check_floats(model, held.others, str(path))
    if weights:
        check_finite(model, str(path))
    source = SourceInfo(
        kind="huggingface",
        name=path.resolve().name,
        model_class=f"transformers.{type(model).__name__}",
        digests={file.name: file_digest(file) for file in (path / "config.json", *(stored if weights else ()))},
    )
    files = {name: (path / name).read_bytes() for name in _COMPANIONS if (path / name).is_file()}
    mapped = held.floats == {_FLOATS.get(dtype)} and not held.others
    return LoadedModel(model, (), source, tokenizer, path, files, tuple(n for n in (*notes, remark) if n), mapped)


def load_gguf(path: Path, dtype: torch.dtype, *, weights: bool = True) -> LoadedModel:
    """The model of a GGUF file, dequantized, without example inputs. weights, and what it raises: as `load_huggingface`."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "hf", "a GGUF model")
    header = _gguf_header(path)
    elements = sum(tensor.elements for tensor in header.tensors)
    folder, file = path.parent, {"gguf_file": path.name}
    with quiet_transformers("a GGUF model") as transformers:
        config = _or_input_error(path, lambda: transformers.AutoConfig.from_pretrained(folder, **file, **_SAFE))
        cls = model_class(transformers, config)
        outline = _or_input_error(path, lambda: _outline(cls, config, dtype))
        check_parameters(outline, elements, str(path))
        model, notes = _load(cls, path, folder, dtype, file) if weights else (outline, ())
        tokenizer, remark = tokenizer_in(transformers, path, folder, file)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain numbers now, and may be saved as such
    model.hf_quantizer = None
    if weights:
        check_finite(model, str(path))
    digests = {path.name: file_digest(path)} if weights else {}
    source = SourceInfo("gguf", path.name, f"transformers.{type(model).__name__}", digests)
    return LoadedModel(model, (), source, tokenizer, path, notes=tuple(n for n in (*notes, remark) if n))


def _gguf_header(path: Path) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES

    return read_gguf_header(path, GGML_QUANT_SIZES)


_SAFE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def model_class(transformers: Any, config: Any) -> Any:
    """The class that the config names, else the causal language model or the plain model of its type."""
    for name in config.architectures if isinstance(config.architectures, list) else ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple | list) else found
    raise InputError(f"transformers has no model class for the type {config.model_type!r}: give a state_dict and a factory")


def _outline(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model without values: parameters and buffers on the meta device."""
    with default_dtype(dtype), torch.device("meta"), torch.random.fork_rng(devices=[]):
        return cls(config)


def _load(cls: Any, where: Path, folder: Path, dtype: torch.dtype, options: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The model and notes. Weights that the file lacks would be random: that is an error."""
    model, info = _or_input_error(
        where,
        lambda: cls.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **_SAFE, **options
        ),
    )
    unfit = [
        f"{name} is {list(got)} in the file, {list(own)} in the model" for name, got, own in sorted(info["mismatched_keys"])
    ]
    missing = sorted(info["missing_keys"])
    if unfit or missing or info["error_msgs"]:
        faults = [f"missing: {some(missing)}"] if missing else []
        faults += [f"unfit: {some(unfit)}"] if unfit else []
        faults += [f"failed: {some([' '.join(str(e).split()) for e in info['error_msgs']])}"] if info["error_msgs"] else []
        raise InputError(
            f"{where}: the weights do not make a {cls.__name__} ({'; '.join(faults)}); mend config.json or the weights"
        )
    unexpected = sorted(info["unexpected_keys"])
    note = f"{where.name}: tensors that {cls.__name__} has no use for were left out: {some(unexpected)}"
    assert isinstance(model, nn.Module)
    return model, (note,) if unexpected else ()


def tokenizer_in(
    transformers: Any, where: Path, folder: Path, options: Mapping[str, Any] | None = None
) -> tuple[Any | None, str | None]:
    """The tokenizer, or None and the reason: a conversion may do without, text may not."""
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **_SAFE, **(options or {})), None
    except Exception as error:  # tokenizers raise errors of every kind
        return None, f"{where.name}: the tokenizer cannot be read, so no text can be used: {one_line(error)}"


def _or_input_error(where: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (MoeifyError, MemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(error.name or one_line(error), "hf", f"reading {where}") from error
    except Exception as error:  # transformers and gguf raise errors of every kind for damaged files
        raise InputError(f"{where}: transformers cannot read it: {one_line(error)}") from error
