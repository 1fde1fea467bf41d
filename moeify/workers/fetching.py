"""What a task gave, or why it gave nothing, in one line."""

from __future__ import annotations

from typing import Any

from moeify.errors import ConversionError, MoeifyError, one_line

#: How often a task is done again whose worker died.
RETRIES = 5


def fetched(task: Any) -> Any:
    """What the task gives. Raises the MoeifyError that it ended with; ConversionError for all else."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MoeifyError):
            raise cause from None
        raise ConversionError(f"a worker failed: {type(cause).__name__}: {one_line(str(cause))}") from error
    except RayError as error:
        raise ConversionError(
            f"a task was given up after {RETRIES} more tries, as its worker died each time ({type(error).__name__}); is there "
            "enough memory for so many workers?"
        ) from error
