"""The model card of a stock checkpoint."""

from __future__ import annotations

from moeify.export.hf.report import HfReport

CARD = "README.md"


def card(report: HfReport, recipe: str | None) -> str:
    """Markdown with the header that model hubs read."""
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [mixture-of-experts, moeify]", "---", "",
        f"# A dense model as a Mixture-of-Experts ({report.model_type})", "",
        f"Made by moeify of a trained dense model{f' with the recipe `{recipe}`' if recipe else ''}: {report.shape}.", "",
        "```python", "from transformers import AutoModelForCausalLM", "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")  # no code beside transformers', "```", "",
        f"Compared with the converted model: {report.agreement}.",
    ]  # fmt: skip
    if "added up" in report.shape:
        lines += [
            "",
            "The experts of this model are added up, while its class weighs them. So the router's weights were made so small "
            "that the gates are nearly equal, and the experts were scaled up. Train moeify's own folder, not this one.",
        ]
    lines += ["", *(f"Left out of it: {what}." for what in report.lost)]
    return "\n".join(lines).rstrip() + "\n"
