"""Records of modules become modules, once everything that could run something is known to be absent."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from moeify.data.importable import one_line
from moeify.frontend.module_records import FunctionRecord, ModuleRecord
from moeify.frontend.torch_nn import functions

#: What a bare nn.Module holds: its registers of parameters, buffers and submodules, its hooks and flags.
_OWN = frozenset(vars(nn.Module()))

_PLAIN = (type(None), bool, int, float, complex, bytes, torch.dtype, torch.device, torch.Size)


class RefusedError(Exception):
    """A record holds what no plain module holds; the text says which and where."""


class Builder:
    """Builds each record once, so that what was shared is shared again.

    Refused: hooks, an attribute that would take the place of one that its class defines (`forward`, a property), values that
    are neither numbers, texts, tensors, torch.nn's activations nor containers of those, and a module inside itself. Tensors
    come back bare, without attributes or hooks of their own.
    """

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module | None] = {}
        self._tensors: dict[int, Tensor] = {}

    def value(self, found: Any, where: str = "") -> Any:
        """Anything that the unpickler gave. Raises RefusedError."""
        if isinstance(found, ModuleRecord):
            return self._module(found, where)
        if isinstance(found, FunctionRecord):
            return functions()[found.name]
        if isinstance(found, Tensor):
            return self._tensor(found, where)
        if type(found) is str:
            return sys.intern(found)  # equal texts are one object, so that equal modules have equal pickles
        if type(found) in _PLAIN:
            return found
        if type(found) in (dict, OrderedDict):
            return {_key(key, where): self.value(item, _below(where, key)) for key, item in dict.items(found)}
        if type(found) in (list, tuple, set):
            return type(found)(self.value(item, f"{where}[{i}]") for i, item in enumerate(found))
        raise RefusedError(f"{where or 'the file'} is an object of type {type(found).__name__}")

    def _module(self, record: ModuleRecord, where: str) -> nn.Module:
        if id(record) in self._modules:
            done = self._modules[id(record)]
            if done is None:
                raise RefusedError(f"{where} is inside itself")
            return done
        self._modules[id(record)] = None
        name = f"{where} ({record.of.__name__})" if where else f"the {record.of.__name__}"
        state = getattr(record, "state", None)
        if type(state) is not dict:
            raise RefusedError(f"{name} has no attributes")
        checked = {_key(key, name): self._attribute(record.of, key, item, where, name) for key, item in state.items()}
        module = record.of.__new__(record.of)
        nn.Module.__init__(module)
        try:
            module.__setstate__(checked)  # type: ignore[no-untyped-call]  # torch's own, without types
        except Exception as error:  # the class's own code on attributes that are missing or of the wrong type
            raise RefusedError(f"{name} cannot be given its attributes: {one_line(error)}") from error
        self._modules[id(record)] = module
        return module

    def _attribute(self, cls: type[nn.Module], key: str, value: Any, where: str, name: str) -> Any:
        if key in _OWN:
            return self._own(key, value, where, name)
        if hasattr(cls, key) or key.startswith("__"):
            raise RefusedError(f"{name} brings a {key} of its own in place of the class's")
        return self.value(value, _below(where, key))

    def _own(self, key: str, value: Any, where: str, name: str) -> Any:
        """One of the registers, hooks and flags that every nn.Module has."""
        if "hook" in key:
            if value is None or type(value) is bool:
                return value
            if type(value) not in (dict, OrderedDict) or len(value):
                raise RefusedError(f"{name} has hooks ({key})")
            return OrderedDict()
        kinds = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}
        if key in kinds:
            if type(value) not in (dict, OrderedDict):
                raise RefusedError(f"{name} has a {key} that is no table")
            return self._register(value, kinds[key], where, name)
        wanted: type = set if key == "_non_persistent_buffers_set" else bool
        if type(value) is not wanted:
            raise RefusedError(f"{name} has a {key} of type {type(value).__name__}")
        return value

    def _register(self, held: dict[Any, Any], kind: type, where: str, name: str) -> dict[str, Any]:
        built = {_key(key, name): self.value(item, _below(where, key)) for key, item in dict.items(held)}
        for key, item in built.items():
            if "." in key or not key:
                raise RefusedError(f"{name} holds something under the name {key!r}")
            if item is not None and not isinstance(item, kind):
                raise RefusedError(f"{name} holds a {type(item).__name__} as {key}, not a {kind.__name__}")
        return built

    def _tensor(self, found: Tensor, where: str) -> Tensor:
        if type(found) not in (Tensor, nn.Parameter) or found.layout is not torch.strided or found.is_quantized:
            raise RefusedError(f"{where} is a tensor of another kind ({type(found).__name__}, {found.layout})")
        if found._backward_hooks:
            raise RefusedError(f"{where} has hooks")
        if id(found) not in self._tensors:
            bare = Tensor.detach(found)
            self._tensors[id(found)] = nn.Parameter(bare, found.requires_grad) if isinstance(found, nn.Parameter) else bare
        return self._tensors[id(found)]


def _key(key: Any, where: str) -> str:
    if type(key) is not str:
        raise RefusedError(f"{where or 'the file'} has a key of type {type(key).__name__}")
    return sys.intern(key)


def _below(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
