"""Distilling a converted model block by block: see docs/distillation.md."""

from moeify.training.block_training import BlockReport, adamw
from moeify.training.layer_distillation import distill_layers
from moeify.training.module_distillation import distill_modules, teacher_loss

__all__ = ["BlockReport", "adamw", "distill_layers", "distill_modules", "teacher_loss"]
