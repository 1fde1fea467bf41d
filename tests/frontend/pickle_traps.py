"""Pickles that would leave a folder behind if anything of theirs ran, in the shapes that are known."""

from __future__ import annotations

import functools
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: The folder that a sprung trap leaves, in the current directory.
CANARY = "sprung"

_LINEAR = b"ctorch.nn.modules.linear\nLinear\n"


class Call:
    """Unpickled, it calls the function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class SetStateTrap(nn.Linear):
    """A module whose class runs code when it is given its state, and when it is called."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.mkdir(CANARY)
        self.__dict__.update(state)

    def forward(self, x: Tensor) -> Tensor:
        os.mkdir(CANARY)
        return super().forward(x)


def sprung_hook(*_: object) -> None:
    os.mkdir(CANARY)


def sprung_activation(x: Tensor) -> Tensor:
    os.mkdir(CANARY)
    return x


def _linear(**attributes: Any) -> nn.Module:
    """A module of torch.nn with attributes that its class never gives it."""
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    module[0].__dict__.update(attributes)
    return module


def _hooked(register: str) -> nn.Module:
    module = _linear()
    getattr(module, register)(sprung_hook)
    return module


def _with_activation() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    layer.activation = sprung_activation
    return layer


def _with_tensor_hook(hook: object) -> nn.Module:
    module = _linear()
    weight = Call(torch._utils._rebuild_parameter, torch.ones(8, 4), True, OrderedDict({0: hook}))
    module.get_submodule("0")._parameters["weight"] = weight  # type: ignore[assignment]  # it becomes one
    return module


def _inside_itself() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4))
    module._modules["1"] = module
    return module


def _of_other_file(module: str, name: str) -> bytes:
    return f"\x80\x02c{module}\n{name}\nX".encode() + len(CANARY).to_bytes(4, "little") + CANARY.encode() + b"\x85R."


_EMPTY = b"}"  # an empty dict
_MODULE = _LINEAR + b")\x81" + _EMPTY + b"b"

#: Caption -> the object that is saved.
OBJECTS: Mapping[str, Callable[[], Any]] = {
    "a call of os.mkdir": lambda: {"x": Call(os.mkdir, CANARY)},
    "a call of os.system": lambda: {"x": Call(os.system, f"mkdir {CANARY}")},
    "a call of eval": lambda: {"x": Call(eval, f"__import__('os').mkdir({CANARY!r})")},
    "a call of exec": lambda: {"x": Call(exec, f"import os; os.mkdir({CANARY!r})")},
    "a call of getattr": lambda: {"x": Call(getattr, nn.Linear, "__init__")},
    "a partial": lambda: {"x": functools.partial(os.mkdir, CANARY)},
    "a call of torch.load": lambda: {"x": Call(torch.load, CANARY)},
    "a call of torch.hub.load": lambda: {"x": Call(torch.hub.load, CANARY, "x")},
    "a subclass of a module": lambda: nn.Sequential(SetStateTrap(4, 8), nn.ReLU(), nn.Linear(8, 4)),
    "a forward hook": lambda: _hooked("register_forward_hook"),
    "a forward pre-hook": lambda: _hooked("register_forward_pre_hook"),
    "a backward hook": lambda: _hooked("register_full_backward_hook"),
    "a state_dict hook": lambda: _hooked("register_state_dict_post_hook"),
    "a hook that is a function of torch": lambda: _linear(_forward_hooks=OrderedDict({0: nn.functional.relu})),
    "a hook on a parameter": lambda: _with_tensor_hook(sprung_hook),
    "a hook on a parameter that is a class of torch": lambda: _with_tensor_hook(torch.Size),
    "an activation of its own": _with_activation,
    "a forward of its own": lambda: _linear(forward=sprung_activation),
    "a forward that is a function of torch": lambda: _linear(forward=nn.functional.relu),
    "a _call_impl that is a function of torch": lambda: _linear(_call_impl=nn.functional.relu),
    "a __setstate__ of its own": lambda: _linear(__setstate__=nn.functional.relu),
    "a __class__ of its own": lambda: _linear(__class__=nn.functional.relu),
    "an attribute that is a call": lambda: _linear(note=Call(os.mkdir, CANARY)),
    "a module inside itself": _inside_itself,
}

#: Caption -> a pickle put together by hand.
PICKLES: Mapping[str, bytes] = {
    "a call of a module's class": b"\x80\x02" + _LINEAR + b"K\x04K\x08\x86R.",
    "a module with arguments of its own": b"\x80\x02" + _LINEAR + b"K\x04K\x08\x86\x81.",
    "a module without attributes": b"\x80\x02" + _LINEAR + b")\x81.",
    "a module that is given its attributes twice": b"\x80\x02" + _LINEAR + b")\x81" + _EMPTY + b"b" + _EMPTY + b"b.",
    "a module whose attributes are no table": b"\x80\x02" + _LINEAR + b")\x81]b.",
    "a class of modules, not a module": b"\x80\x02" + _LINEAR + b".",
    "a compiled call that is a function of torch": (
        b"\x80\x02" + _LINEAR + b")\x81}X\x13\x00\x00\x00_compiled_call_implctorch.nn.functional\nrelu\nsb."
    ),
    "a call of an activation": b"\x80\x02ctorch.nn.functional\nrelu\nK\x01\x85R.",
    "a module that is called while it is read": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n"
        + _LINEAR
        + b")\x81"
        + _EMPTY
        + b"bctorch\nTensor\n)"
        + _EMPTY
        + b"tR."
    ).replace(b"_rebuild_from_type_v2\n", b"_rebuild_from_type_v2\n("),
    "a name behind a name": _of_other_file("torch.nn.modules.module", "torch.os.mkdir"),
    "a name of a module's module": _of_other_file("torch.nn.modules.linear", "math.sqrt"),
    "a lazy module": b"\x80\x02ctorch.nn.modules.linear\nLazyLinear\n)\x81" + _EMPTY + b"b.",
    "os.mkdir in protocol 4": pickle.dumps({"x": Call(os.mkdir, CANARY)}, 4),
    "os.mkdir in protocol 0": pickle.dumps({"x": Call(os.mkdir, CANARY)}, 0),
}


def save_pickle(content: bytes, path: Path) -> None:
    """A file such as torch.save writes, around that pickle."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", content, len(content))
    writer.write_record("byteorder", b"little", 6)
    writer.write_end_of_file()
