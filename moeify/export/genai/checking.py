"""The folder in onnxruntime-genai: opened, and computing at each token what ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import ConversionError
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Tokens that are generated, at most: the end of a text may come before.
TOKENS = 16

#: How far its logits may be from those of ONNX Runtime with the same file: largest difference / largest value. They are equal.
_BOUND = 1e-3


def installed() -> str | None:
    """The version of onnxruntime-genai; None without it."""
    try:
        import onnxruntime_genai
    except ImportError:
        return None
    return str(onnxruntime_genai.__version__)


def check_generation(folder: Path, ids: NDArray[Any], *, context: int, native: bool, compare: bool = True) -> int | None:
    """How many tokens were generated from ids [1, tokens], with the logits of ONNX Runtime at each; None without `compare`,
    where two runs are not alike. context: tokens that a text may have: ids that leave no room to it are left out. native: the
    file needs the native library.

    Raises ConversionError where onnxruntime-genai does not open the folder, or computes something else than the same file in
    ONNX Runtime.
    """
    ids = ids[:, : max(1, context - TOKENS)]
    try:
        chosen, seen = _generated(folder, ids, min(ids.shape[1] + TOKENS, context))
    except Exception as error:  # its exceptions have no common class of their own
        raise ConversionError(f"onnxruntime-genai cannot run the folder: {error}; nothing was written") from error
    if not compare:
        return None
    decoder = Decoder(session(folder / "model.onnx", native=native))
    given = ids
    for place, (token, logits) in enumerate(zip(chosen, seen, strict=True)):
        expected = decoder.step(given)[0, -1].astype(np.float32)
        distance = float(np.abs(logits - expected).max() / max(np.abs(expected).max(), 1e-30))
        if not distance <= _BOUND:
            raise ConversionError(
                f"onnxruntime-genai, token {place}: its logits are {distance:.1e} of the largest away from those of ONNX "
                f"Runtime with the same file, more than {_BOUND:.0e}; nothing was written"
            )
        given = np.array([[token]])
    return len(chosen)


def _generated(folder: Path, ids: NDArray[Any], length: int) -> tuple[list[int], list[NDArray[Any]]]:
    """The tokens up to a length, ids included, and the logits [vocabulary] that each was chosen by."""
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=length, do_sample=False, batch_size=1, repetition_penalty=1.0)
    generator = genai.Generator(model, settings)
    generator.append_tokens(ids.astype(np.int32))
    tokens: list[int] = []
    logits: list[NDArray[Any]] = []
    while not generator.is_done():
        logits.append(np.array(generator.get_logits(), dtype=np.float32).reshape(-1))
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens, logits
