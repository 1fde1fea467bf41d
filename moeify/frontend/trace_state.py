"""The state in which a model is traced, and its return to the state in which it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import InputError


@contextmanager
def tracing_state(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no key-value cache, no fast path of nn.MultiheadAttention; all put back afterwards.

    Training flags are kept per module. `use_cache` is cleared on every submodule's config (encoder-decoder models copy
    their config), and each one's own value is put back. The fast path reads weights behind the graph's back.
    """
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        for config in _caching_configs(model):
            stack.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = False
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        stack.enter_context(torch.no_grad())
        yield


def _caching_configs(model: nn.Module) -> list[Any]:
    """The configs of all submodules that have a `use_cache`, each object once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if hasattr(config, "use_cache")}.values())


@contextmanager
def watch_modules(model: nn.Module) -> Iterator[Callable[[], frozenset[str]]]:
    """Gives a function that tells which modules took one positional tensor and gave one tensor at every call so far."""
    plain: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        fits = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        plain[module] = plain.get(module, True) and fits

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        names = model.named_modules(remove_duplicate=False)
        yield lambda: frozenset(name for name, module in names if plain.get(module, False))
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unchanged_weights(model: nn.Module) -> Iterator[None]:
    """Raises InputError where a parameter is written to inside (RWKV rescales its matrices): no MoE layer would follow."""
    before = {name: parameter._version for name, parameter in model.named_parameters() if not parameter.is_inference()}
    yield
    for name, parameter in model.named_parameters():
        if name in before and parameter._version != before[name]:
            raise InputError(
                f"{type(model).__name__} changes its own weights as it runs ({name}): "
                "an MoE layer in their place would not follow"
            )
