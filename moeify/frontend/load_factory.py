"""A factory: the user's callable without arguments that builds the module which a state_dict belongs to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from moeify.data.importable import importable, one_line
from moeify.errors import InputError

Factory = str | Callable[[], nn.Module]


def build(factory: Factory) -> nn.Module:
    """The module that the factory returns, with its own random weights; the global generator is left as it was.

    Raises UsageError for a name that names nothing, InputError where the factory raises or returns something else.
    """
    module = _made(factory)
    _check_built(module, factory_name(factory) or "the factory")
    return module


def build_outline(factory: Factory) -> nn.Module:
    """The same module without values, on the meta device. Raises InputError where it is built elsewhere, or cannot be so."""
    with torch.device("meta"):
        module = _made(factory)
    if not all(parameter.is_meta for parameter in module.parameters()):
        raise InputError(f"factory {factory_name(factory)}: builds a module that has values, whatever device is asked for")
    return module


def _made(factory: Factory) -> nn.Module:
    name = factory_name(factory) or "the factory"
    make = importable(factory, "the factory") if isinstance(factory, str) else factory
    if isinstance(make, nn.Module):
        return make
    if not callable(make):
        raise InputError(f"factory {name}: is a {type(make).__name__}; give a callable that returns an nn.Module")
    try:
        with torch.random.fork_rng(devices=[]):
            module = make()
    except (Exception, SystemExit) as error:
        raise InputError(f"factory {name}: failed: {one_line(error)}; it is called without arguments") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"factory {name}: returned a {type(module).__name__}; it must return an nn.Module")
    return module


def _check_built(module: nn.Module, name: str) -> None:
    for path, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
            raise InputError(f"factory {name}: {path} has no values yet (lazy, or on the meta device); build it on the CPU")


def factory_name(factory: Factory | None) -> str | None:
    """`package.module:name`, by which the factory can be named again; None for one that has no such name."""
    if factory is None or isinstance(factory, str):
        return factory
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    return f"{module}:{name}" if module and name and "<" not in name else None
