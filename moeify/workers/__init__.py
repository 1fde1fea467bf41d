"""Analyses of the dense model, and layers that do not hang on each other, as tasks of Ray (docs/many-machines.md)."""
