"""One object of a kind at a model's forward, told when a call begins and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import nn


class Watcher(Protocol):
    """A plain object with methods as hooks, so that a model is copied and pickled together with it."""

    def __init__(self) -> None: ...

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None: ...

    def leave(self, model: nn.Module, args: Any, output: Any) -> None: ...


W = TypeVar("W", bound=Watcher)


def watcher_of(model: nn.Module, kind: type[W]) -> W:
    """The model's one of that kind, made and hooked at first use."""
    for hook in model._forward_pre_hooks.values():
        if isinstance(owner := getattr(hook, "__self__", None), kind):
            return owner
    found = kind()
    model.register_forward_pre_hook(found.enter, with_kwargs=True)
    model.register_forward_hook(found.leave, always_call=True)
    return found


def forget_watcher(model: nn.Module, kind: type[Watcher]) -> None:
    """Takes the hooks of the model's one of that kind away again, where there is one."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for number in [n for n, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), kind)]:
            del hooks[number]
            for flags in (model._forward_pre_hooks_with_kwargs, model._forward_hooks_always_called):
                flags.pop(number, None)
