"""What stands for modules while a pickle is read: records that only keep what the file says of them.

torch's weights-only unpickler is given these in place of the classes of torch.nn, so while a file is read no class of torch.nn
is called, no `__setstate__` of theirs, no hook and no `forward`. `module_build` makes modules of the records once it has
looked at all of them.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import nn

from moeify.frontend.torch_nn import functions, module_classes


class ModuleRecord:
    """One module: the class that it is to be of, and the attributes that the file gives it."""

    __slots__ = ("state",)
    of: ClassVar[type[nn.Module]]
    state: Any

    def __setstate__(self, state: Any) -> None:
        if hasattr(self, "state"):
            raise pickle.UnpicklingError(f"a {self.of.__name__} is given its attributes twice")
        self.state = state


@dataclass(frozen=True)
class FunctionRecord:
    """A function of torch.nn.functional by its name in a pickle. It cannot be called."""

    name: str


@cache
def nn_records() -> tuple[tuple[Any, str], ...]:
    """(record, name in a pickle) for everything on the list of `torch_nn`."""
    modules = [
        (type(cls.__name__, (ModuleRecord,), {"__slots__": (), "of": cls}), name) for name, cls in module_classes().items()
    ]
    return (*modules, *((FunctionRecord(name), name) for name in functions()))
