"""What a folder for onnxruntime-genai holds, and how it was checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moeify.export.onnx.report import OnnxReport


@dataclass(frozen=True)
class GenaiReport:
    """path: the folder; files: in it, the checked ones; model: of the ONNX file; version: of the onnxruntime-genai that has
    generated with it, None where that is not installed; tokens: compared with ONNX Runtime's, None where none were, as
    that is not installed or experts are drawn at random; size: of the folder in bytes."""

    path: str
    files: tuple[str, ...]
    model: OnnxReport
    version: str | None
    tokens: int | None
    size: int
    seconds: float

    def __str__(self) -> str:
        compared = (
            "run; it draws its experts"
            if self.tokens is None
            else f"{self.tokens} greedy tokens with the logits of ONNX Runtime"
        )
        checked = (
            f"onnxruntime-genai {self.version}: opened, {compared}"
            if self.version
            else "not opened in onnxruntime-genai, which is not installed: pip install 'moeify[genai]'"
        )
        return "\n".join(
            [
                f"{self.path}: a model for onnxruntime-genai, {self.size / 1e6:.1f} MB in {self.seconds:.0f} s",
                f"  files: {', '.join(self.files)}",
                f"  {checked}",
                str(self.model),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "files": list(self.files),
            "model": self.model.to_json(),
            "version": self.version,
            "tokens": self.tokens,
            "size": self.size,
            "seconds": self.seconds,
        }
