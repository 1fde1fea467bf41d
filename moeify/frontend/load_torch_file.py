"""Files of torch.save: tensors, and what stands for modules of torch.nn. Nothing else is built, and none of its code runs."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moeify.data.zip_sums import check_sums
from moeify.errors import InputError
from moeify.frontend.load_checks import some
from moeify.frontend.pickle_names import foreign_names
from moeify.frontend.sniff import Kind

SAVE_HINT = "save its weights with torch.save(model.state_dict(), FILE) and name a factory that builds it"

#: So many names of classes are listed before "and N more".
_LISTED = 12


class ForeignPickleError(InputError):
    """The file wants classes that are not built without the user's word, or is a pickle of a form that torch does not check."""


def read_torch_file(path: Path, kind: Kind, records: Sequence[tuple[Any, str]] = (), *, sums: bool = True) -> Any:
    """What torch.save wrote, in plain containers and tensors; zip files are mapped rather than copied.

    kind: "torch" (a zip, whose checksums are verified where `sums` says so) or "pickle" (before torch 1.6). records: (object,
    name in the pickle) that may stand in it besides. Raises InputError for damage, ForeignPickleError for files that hold
    objects of other classes.
    """
    if kind == "torch" and sums:
        check_sums(path)
    with warnings.catch_warnings(), only_these(records):
        warnings.simplefilter("ignore")  # torch's advice for pickles that it did not write
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
            # A pickle may give an OrderedDict attributes, such as another `items`.
            return dict(dict.items(found)) if isinstance(found, dict) else found
        except pickle.UnpicklingError as error:
            raise ForeignPickleError(_refusal(path)) from error
        except Exception as error:  # torch.load raises OSError, KeyError, EOFError, RuntimeError, ... for damaged files
            raise InputError(f"{path}: is no whole file of torch.save; copy it again, or {SAVE_HINT}") from error


@contextmanager
def only_these(records: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Lets torch's weights-only unpickler build these and nothing that other code has declared safe; then as before."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(list(records)):
            yield
    finally:
        torch.serialization.add_safe_globals(before)


def _refusal(path: Path) -> str:
    if classes := foreign_names(path):
        return (
            f"{path}: is a pickle of the classes {some(classes, _LISTED)}, which could run code, not a state_dict or a module "
            f"of torch.nn alone; {SAVE_HINT}"
        )
    return f"{path}: is a pickle of a form that cannot be read safely, or a damaged one; {SAVE_HINT}"
