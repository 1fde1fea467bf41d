"""Importing this module runs a tiny conversion, so that a process forked afterwards finds all that one needs imported."""

from __future__ import annotations

import moeify
from cli.tiny_models import batches, example, stack

moeify.convert(stack(), recipe="markers", experts=4, top_k=2, example=example(), calibrate=batches)
