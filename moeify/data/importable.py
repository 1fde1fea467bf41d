"""`package.module:attribute` -> the object. For data and for models that are Python callables."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeify.data.import_limit import import_limit
from moeify.errors import InputError, MoeifyError, UsageError, did_you_mean

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_importable_name(name: str) -> bool:
    """Does it read `package.module:attribute`? Nothing is imported."""
    return _NAME.fullmatch(name) is not None


def importable(name: str, what: str) -> Any:
    """The object named `package.module:attribute`; the module may also lie in the current directory.

    what: what it is to be ("a data set"), for the messages. Importing runs the module's code, within `import_limit`.
    Raises UsageError where the name is malformed or names nothing, InputError where the module fails while it is imported.
    """
    if not is_importable_name(name):
        raise UsageError(f"{what}: {name!r} is no importable name; write package.module:callable")
    module, _, attributes = name.partition(":")
    try:
        with current_directory_last(), import_limit(f"{what}: importing {module}"):
            found: Any = importlib.import_module(module)
    except MoeifyError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{what}: importing {module} failed: {error}") from error
        raise UsageError(f"{what}: no module {error.name!r} (from {name!r}); install it or run where it lies") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: importing {module} failed: {one_line(error)}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            hint = did_you_mean(attribute, [known for known in dir(found) if not known.startswith("_")])
            raise UsageError(f"{what}: {module} has no {attribute!r} (from {name!r}): {hint}")
        found = getattr(found, attribute)
    return found


def one_line(error: BaseException, length: int = 200) -> str:
    """`Type: message` of a foreign exception, on one line of at most about `length` characters."""
    text = " ".join(str(error).split())
    text = text if len(text) <= length else f"{text[:length]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def current_directory_last() -> Iterator[None]:
    """Lets modules of the current directory be found, after all installed ones, and only for so long."""
    here = str(Path.cwd())
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for index in range(len(sys.path) - 1, -1, -1):
            if sys.path[index] == here:
                del sys.path[index]
                break
