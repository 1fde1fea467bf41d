"""Converted decoders as folders that onnxruntime-genai opens."""
