"""Archives of torch.export that would leave a folder behind if anything of theirs ran."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frontend.pickle_traps import CANARY, Call

Members = dict[str, bytes]
_MODEL, _WEIGHTS = "m/models/model.json", "m/data/weights/model_weights_config.json"
_CONSTANTS, _SAMPLE = "m/data/constants/model_constants_config.json", "m/data/sample_inputs/model.pt"
_MKDIR = f"__import__('os').mkdir({CANARY!r})"


class Small(nn.Module):
    """Two residual FFNs, a buffer, a constant."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)) for _ in range(2))
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x * self.scale + torch.tensor([1.0] * 8)


def small() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model and an example, [batch, tokens, hidden]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval(), (torch.randn(2, 5, 8),)


@functools.cache
def _members() -> Mapping[str, bytes]:
    """The archive of the small model, with open sizes, by member."""
    model, example = small()
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    content = io.BytesIO()
    torch.export.save(torch.export.export(model, example, dynamic_shapes=(free,)), content)
    with zipfile.ZipFile(content) as archive:
        return {"m/" + name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write_archive(path: Path, change: Callable[[Members], object] | None = None) -> None:
    """The archive of the small model, changed."""
    members = dict(_members())
    if change is not None:
        change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.removesuffix("#"), content)


def _pickle() -> bytes:
    content = io.BytesIO()
    torch.save({"x": Call(eval, _MKDIR)}, content)
    return content.getvalue()


def _json(member: str, change: Callable[[Any], object]) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        found = json.loads(members[member])
        change(found)
        members[member] = json.dumps(found).encode()

    return apply


def _pickled_weight(members: Members) -> None:
    _json(_WEIGHTS, lambda c: next(iter(c["config"].values())).update(use_pickle=True))(members)
    members["m/data/weights/weight_0"] = _pickle()


def _object(kind: str, use_pickle: bool) -> Callable[[Members], None]:
    entry = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}

    def apply(members: Members) -> None:
        _json(_CONSTANTS, lambda c: c["config"].update(lifted_object=entry))(members)
        members[f"m/data/constants/{kind}_0"] = pickle.dumps(Call(eval, _MKDIR))

    return apply


def _object_by_another_name(members: Members) -> None:
    """The pickle stands where tensors do; the table says that it is an object."""
    _object("opaque_obj", False)(members)
    members["m/data/constants/tensor_7"] = members.pop("m/data/constants/opaque_obj_0")


def _node(change: Callable[[Any], object]) -> Callable[[Members], None]:
    return _json(_MODEL, lambda found: change(found["graph_module"]["graph"]["nodes"][0]))


def _call(target: str, argument: str) -> Callable[[Members], None]:
    """A node that calls something on a text."""
    inputs = [{"name": "path", "arg": {"as_string": argument}, "kind": 1}]
    return _node(lambda node: node.update(target=target, inputs=inputs))


def _renamed(old: str, new: str) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        for name in (_MODEL, _WEIGHTS):
            members[name] = members[name].replace(json.dumps(old).encode(), json.dumps(new).encode())

    return apply


def _size(text: str, value: str = "x") -> Callable[[Members], None]:
    def change(found: Any) -> None:
        values = found["graph_module"]["graph"]["tensor_values"]
        values[value]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return _json(_MODEL, change)


def _size_of_metadata(members: Members) -> None:
    """The table of values has a key that elsewhere holds what need not be looked at."""
    _renamed("x", "metadata")(members)
    _size(_MKDIR, "metadata")(members)


def _structure(kind: str, context: Any) -> Callable[[Members], None]:
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])
    return _json(_MODEL, lambda found: found["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=spec))


def _added(name: str, content: bytes = b"x") -> Callable[[Members], None]:
    return lambda members: members.update({name: content})


def _older(members: Members) -> None:
    """The form of before torch 2.8."""
    program = members[_MODEL]
    members.clear()
    members["version"] = b"8.20"
    members["serialized_exported_program.json"] = program
    for name in ("state_dict", "constants", "example_inputs"):
        members[f"serialized_{name}.pt"] = _pickle()


_ENUM = json.dumps([{"__enum__": True, "fqn": "trap_module:Kind", "name": "A"}])
_DEFAULT = {"default_factory_module": "trap_module", "default_factory_name": "make", "dict_context": []}

#: Caption, what is done to the archive, what the message says.
TRAPS: list[tuple[str, Callable[[Members], object], str]] = [
    ("a weight that is a pickle", _pickled_weight, r"the pickle weight_0 \(blocks"),
    ("an object of TorchScript", _object("custom_obj", True), "custom_obj_0 in it is a pickle"),
    ("an object", _object("opaque_obj", True), "opaque_obj_0 in it is a pickle"),
    ("an object that says it is no pickle", _object("opaque_obj", False), "opaque_obj_0 in it is a pickle"),
    ("an object by another name", _object_by_another_name, "the pickle opaque_obj_0"),
    ("weights as older archives had them", _added("m/data/weights/model.pt", _pickle()), "model.pt in it is a pickle"),
    ("constants as older archives had them", _added("m/data/constants/model.pt", _pickle()), "model.pt in it is a pickle"),
    ("sample inputs that call", _added(_SAMPLE, _pickle()), "sample inputs that are more than tensors"),
    ("sample inputs of garbage", _added(_SAMPLE, b"garbage"), "sample inputs that are more than tensors"),
    ("compiled code", _added("m/data/aotinductor/model/x.so"), "no part of an exported program"),
    ("a file of another kind", _added("m/code/x.py"), "no part of an exported program"),
    ("a file outside of its folder", _added("n/data/weights/weight_0"), "outside of its folder"),
    ("two files of one name", _added(f"{_MODEL}#"), "files of the same name"),
    ("an archive of before torch 2.8", _older, "before torch 2.8"),
    ("an operator that is os.mkdir", _call("torch.os.mkdir", CANARY), "the operator torch.os.mkdir"),
    ("an operator that loads a library", _call("torch.ops.load_library", CANARY), "the operator torch.ops.load_library"),
    ("an operator that loads a pickle", _call("torch.load", CANARY), "the operator torch.load"),
    (
        "an operator that writes a file",
        _call("torch.ops.aten.from_file.default", CANARY),
        r"the operator torch\.ops\.aten\.from",
    ),
    ("an operator of TorchScript", _call("torch.ops.aten.save.default", CANARY), "the operator torch.ops.aten.save"),
    ("an operator behind an operator", _call("torch.ops.aten.relu.default.__globals__", CANARY), "the operator torch.ops.aten"),
    ("an operator of its own package", _call("torch.ops.mine.relu.default", CANARY), "the operator torch.ops.mine"),
    ("a call in operator's module", _call("_operator.methodcaller", CANARY), "the operator _operator.methodcaller"),
    (
        "an operator for an argument",
        _node(lambda n: n["inputs"].append({"name": "f", "arg": {"as_operator": "torch.os.mkdir"}, "kind": 1})),
        "the operator torch.os.mkdir",
    ),
    ("a size that is a call", _size(_MKDIR), "a size that is none"),
    ("a size that is a call, of a value called metadata", _size_of_metadata, "a size that is none"),
    ("a size that is an attribute", _size("Symbol.__class__"), "a size that is none"),
    ("a size that is no expression", _size("s0 +"), "a size that is none"),
    ("a size of a text", _size(f"Symbol('{CANARY}')"), "a size that is none"),
    (
        "a structure that imports a module",
        _structure("collections.defaultdict", _DEFAULT),
        "that is none|defaultdict",
    ),
    ("a structure with an enumeration", _structure("builtins.dict", _ENUM), "that is none"),
    ("a structure of elsewhere", _structure("trap_module.Output", '["x"]'), "of the type trap_module.Output"),
    ("an input whose name is code", _renamed("x", f"x={_MKDIR}"), "a name that is none"),
    ("an input whose name is two lines", _renamed("x", f"x\n{_MKDIR}"), "a name that is none"),
    ("a weight whose name is code", _renamed("blocks.0.0.weight", f'blocks", {_MKDIR}, "'), "a name that is none"),
    ("an object of a class", _node(lambda n: n["inputs"].append({"name": "f", "arg": {"as_custom_obj": {}}})), "its own"),
]

#: Caption -> what is done to the archive: it loads, and what looks like code is not run.
HARMLESS: Mapping[str, Callable[[Members], object]] = {
    "guards that are code": _json(_MODEL, lambda found: found.update(guards_code=[_MKDIR])),
    "a trace that is code": _node(lambda n: n["metadata"].update(stack_trace=f"File\n{_MKDIR}\n")),
    "a module's name that is code": _node(lambda n: n["metadata"].update(nn_module_stack=f"L__self__,,{CANARY}.M")),
    "extra files": _added("m/extra/notes.py", _MKDIR.encode()),
}
