"""Files of torch.save: tensors only. A pickle that wants to build anything else is refused, and none of its code runs."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from moeify.data.zip_sums import check_sums
from moeify.errors import InputError
from moeify.frontend.load_checks import some
from moeify.frontend.sniff import Kind

_SAVE_HINT = "save its weights with torch.save(model.state_dict(), FILE) and name a factory that builds it"


def read_torch_file(path: Path, kind: Kind) -> Any:
    """What torch.save wrote, in plain containers and tensors; zip files are mapped rather than copied.

    kind: "torch" (a zip, whose checksums are verified) or "pickle" (before torch 1.6). Raises InputError for damage, and for
    files that hold objects of classes: only a state_dict loads.
    """
    if kind == "torch":
        check_sums(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice for pickles that it did not write
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
        except pickle.UnpicklingError as error:
            raise InputError(_refusal(path, str(error))) from error
        except Exception as error:  # torch.load raises OSError, KeyError, EOFError, RuntimeError, ... for damaged files
            raise InputError(f"{path}: is no whole file of torch.save; copy it again, or {_SAVE_HINT}") from error


def _refusal(path: Path, message: str) -> str:
    classes = _classes(path) or re.findall(r"GLOBAL ([\w.]+) was not an allowed global", message)
    if not classes:
        return f"{path}: is a pickle that torch.save did not write, or a damaged one; {_SAVE_HINT}"
    return f"{path}: is a pickle of the classes {some(classes)}, which could run code, not a state_dict; {_SAVE_HINT}"


def _classes(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the listing understands zip files only
        return []
