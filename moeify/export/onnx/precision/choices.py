"""The precisions of an export."""

from __future__ import annotations

from moeify.errors import UsageError

#: Name -> bits of a weight.
PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


def check_calibration(precision: str, given: bool) -> None:
    """Raises UsageError for data where nothing is chosen by it."""
    if given and PRECISIONS.get(precision, 32) > 8:
        raise UsageError(f"calibrate is for precision int8 and int4, and this is {precision}: leave one of them out")


def check_precision(precision: str, dtype: str = "float32") -> None:
    """Raises UsageError for a name that is not in the table, and for a model of that dtype which has nothing to round."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and dtype != "float32":
        raise UsageError(
            f"precision {precision} starts from a float32 model, and this one is {dtype}: convert it first: model.float()"
        )
