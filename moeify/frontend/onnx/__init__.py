"""How a dense ONNX file gets in: read, its feed-forward networks found, run piece by piece through ONNX Runtime."""
