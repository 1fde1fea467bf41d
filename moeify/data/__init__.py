"""Text and tensors -> batches: one reader for calibration, alignment, evaluation and benchmarks."""

from moeify.data.data_set import DataSet, batch_rows, batch_tokens
from moeify.data.open_data import open_data

__all__ = ["DataSet", "batch_rows", "batch_tokens", "open_data"]
