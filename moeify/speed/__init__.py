"""How fast files run in ONNX Runtime, what work that takes, and what the machine could do at best (docs/benchmarking.md)."""
