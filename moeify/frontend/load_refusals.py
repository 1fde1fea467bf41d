"""What cannot come in, and what to do instead."""

from __future__ import annotations

from pathlib import Path

from moeify.errors import InputError
from moeify.frontend.sniff import Kind

_INSTEAD: dict[Kind, str] = {
    "converted": "is a converted model already; give the dense model, or open it with moeify.load",
    "torchscript": "is a TorchScript archive, which cannot be converted; save model.state_dict() of the Python model instead",
    "zip": "is a zip archive that torch.save did not write; give a state_dict, a GGUF file or a Hugging Face folder",
}


#: Suffixes that promise a model: what does not keep the promise is probably damaged.
_MODEL_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".safetensors", ".gguf", ".pt2", ".onnx"})


def refusal(path: Path, kind: Kind) -> InputError:
    """The error for something of that kind."""
    if kind == "folder":
        return InputError(f"{path}: {_folder(path)}")
    if kind == "unknown":
        known = path.suffix.lower() in _MODEL_SUFFIXES
        claim = f"is no {path.suffix} file that can be read (damaged or truncated?)" if known else "is of no known kind"
        return InputError(
            f"{path}: {claim}; models come as a Hugging Face folder, or a GGUF, .pt, .pt2, .safetensors or .onnx file"
        )
    return InputError(f"{path}: {_INSTEAD[kind]}")


def _folder(path: Path) -> str:
    names = {file.name for file in path.iterdir()}
    if found := sorted(name for name in names if name.endswith(".gguf")):
        return f"is a folder without config.json; give the file {path / found[0]}"
    if any(name.endswith(".safetensors") for name in names):
        return "is a folder without config.json; copy it beside the weights, or give the weights' file and a factory"
    return "is a folder without config.json: no Hugging Face model"
