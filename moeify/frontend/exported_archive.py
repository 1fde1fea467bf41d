"""A torch.export archive (.pt2), looked into before torch.export.load touches it.

What torch 2.13 reads with pickle (torch/export/pt2_archive/_package.py): weights and constants whose entry in
`data/weights/*_weights_config.json` or `data/constants/*_constants_config.json` says `use_pickle`;
`data/constants/custom_obj_*` and `opaque_obj_*` whatever it says; `data/weights/*.pt` and `data/constants/*.pt` of older
archives; and `data/sample_inputs/*.pt`, first with weights_only, and where that fails without. `data/aotinductor/` is
compiled code. All of those are refused but sample inputs that weights_only reads.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moeify.data.importable import one_line
from moeify.data.zip_sums import check_sums
from moeify.errors import InputError
from moeify.frontend.exported_text import ForeignTextError, check_names, check_program
from moeify.frontend.load_torch_file import only_these

_MODEL = r"[A-Za-z_]\w*"

#: All that an archive may hold, below its root folder.
_MEMBERS = re.compile(
    rf"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    rf"|models/{_MODEL}\.json|data/sample_inputs/{_MODEL}\.pt|data/weights/(weight_\d+|{_MODEL}_weights_config\.json)"
    rf"|data/constants/(tensor_\d+|{_MODEL}_constants_config\.json)",
    re.ASCII,
)
_PICKLED = re.compile(r"data/(weights|constants)/(custom_obj_|opaque_obj_|.*\.pt$).*")
_AGAIN = "export the model again with torch.export.save"


@dataclass(frozen=True, eq=False)
class Archive:
    """An archive that has passed: the names of its members below the root, and how to read one."""

    path: Path
    model: str
    members: tuple[str, ...]
    reader: Any

    def read(self, member: str) -> bytes:
        content: bytes = self.reader.get_record(member)
        return content

    @property
    def program(self) -> str:
        return f"models/{self.model}.json"


def open_archive(path: Path, *, sums: bool = True) -> Archive:
    """The archive, once nothing of it can run when it is loaded. Raises InputError for damage, and for what could run.

    sums: verify its checksums, which reads all of it."""
    if sums:
        check_sums(path)
    members = _members(path)
    models = [name.removeprefix("models/").removesuffix(".json") for name in members if name.startswith("models/")]
    if len(models) != 1:
        raise InputError(f"{path}: holds {len(models)} programs, not one; {_AGAIN}")
    try:
        archive = Archive(path, models[0], members, torch._C.PyTorchFileReader(str(path)))
        if sorted(archive.reader.get_all_records()) != sorted(members):
            raise ForeignTextError("other files for torch's reader of zip archives than for Python's")
        _check(archive)
    except ForeignTextError as error:
        raise InputError(f"{path}: is not loaded, as it could run code: it holds {error}; {_AGAIN}") from error
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:  # RecursionError is a RuntimeError
        raise InputError(f"{path}: is no whole archive of torch.export ({one_line(error)}); {_AGAIN}") from error
    return archive


def _members(path: Path) -> tuple[str, ...]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    root = names[0].partition("/")[0] + "/"
    members = tuple(name.removeprefix(root) for name in names)
    if "serialized_exported_program.json" in names:
        raise InputError(f"{path}: is an archive of before torch 2.8, whose weights are pickles; {_AGAIN}")
    if len(set(names)) != len(names) or not all(name.startswith(root) for name in names):
        raise InputError(f"{path}: holds files of the same name, or outside of its folder; {_AGAIN}")
    for member in members:
        if _PICKLED.fullmatch(member):
            raise InputError(f"{path}: is not loaded, as {member} in it is a pickle, which could run code; {_AGAIN}")
        if _MEMBERS.fullmatch(member) is None:
            raise InputError(f"{path}: is not loaded, as {member} in it is no part of an exported program; {_AGAIN}")
    return members


def _check(archive: Archive) -> None:
    for place, payload in (("weights", "weight"), ("constants", "tensor")):
        listed = json.loads(archive.read(f"data/{place}/{archive.model}_{place}_config.json"))
        check_names(listed)
        for name, entry in listed["config"].items():
            if entry["use_pickle"] is not False or re.fullmatch(rf"{payload}_\d+", entry["path_name"], re.ASCII) is None:
                raise ForeignTextError(f"the pickle {entry['path_name']} ({name})")
    check_program(json.loads(archive.read(archive.program)))
    sample = archive.read(f"data/sample_inputs/{archive.model}.pt")
    if sample:
        _check_sample(sample)


def _check_sample(content: bytes) -> None:
    try:
        with only_these(()):
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever it is: torch would try again, and let the pickle run
        raise ForeignTextError("sample inputs that are more than tensors, a pickle") from error
