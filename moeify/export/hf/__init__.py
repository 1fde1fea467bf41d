"""Converted decoders as stock Mixture-of-Experts checkpoints of transformers."""
