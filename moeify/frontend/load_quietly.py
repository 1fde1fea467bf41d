"""transformers without a word and without a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from moeify.errors import MissingExtraError

#: Above logging.CRITICAL: what goes wrong arrives as an exception.
_SILENT = 60


@contextmanager
def quiet_transformers(purpose: str) -> Iterator[Any]:
    """Yields the module transformers; while the block runs it logs nothing, draws no progress and asks no server.

    Everything is put back afterwards. Raises MissingExtraError where the package is absent.
    """
    try:
        import huggingface_hub.constants
        import transformers
        from transformers import modeling_gguf_pytorch_utils as gguf
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", purpose) from error
    verbosity = logging.get_verbosity()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for module, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            (logging, "_tqdm_active", False),
            (gguf, "tqdm", partial(gguf.tqdm, disable=True)),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        stack.callback(logging.set_verbosity, verbosity)
        logging.set_verbosity(_SILENT)
        yield transformers
