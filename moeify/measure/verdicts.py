"""What has to be said first about a conversion: that it is dearer than was asked for, or worth less than no routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moeify.measure.evaluation import Score

#: An active fraction so much above the budget, relative to it, makes an evaluation void.
SLACK = 0.01

#: Errors below this are rounding: the layer computes what the dense FFN computes.
EXACT = 1e-6

#: What a conversion that loses to the static mask may try.
WAYS_OUT = "try --recipe best, more calibration text, or --recipe static at the same --active"


def is_void(active_fraction: float | None, budget: float | None) -> bool:
    """Did the layers use more weights than they were meant to?"""
    return active_fraction is not None and budget is not None and active_fraction > budget * (1 + SLACK)


def verdicts(scores: Sequence[Score], active_fraction: float | None, budget: float | None) -> Iterator[str]:
    """One sentence each, the most important first; none where there is nothing to be ashamed of."""
    if is_void(active_fraction, budget):
        assert active_fraction is not None
        assert budget is not None
        yield (
            f"void: on this data a token uses {active_fraction:.1%} of the dense FFNs' weights,"
            f" {active_fraction / budget - 1:.1%} more than the recipe's budget of {budget:.1%}; convert with a smaller"
            " --active, choose by top-k, or calibrate on data of this kind"
        )
    found = {score.name: score for score in scores}
    if "converted" in found and "static-mask" in found:
        yield from _loss(found["converted"], found["static-mask"])


def _loss(converted: Score, static: Score) -> Iterator[str]:
    if converted.perplexity is not None and static.perplexity is not None:
        figures = [f"{score.perplexity.value:.4g}" for score in (converted, static) if score.perplexity is not None]
        name, lost = "perplexity", converted.perplexity.value > static.perplexity.value
    elif converted.divergence is not None and static.divergence is not None:
        errors = [converted.divergence.relative_error, static.divergence.relative_error]
        figures = [f"{error:.3g}" for error in errors]
        name, lost = "relative error", errors[0] > max(errors[1], EXACT)
    else:
        return
    if lost:
        shares = [f" at {s.active_fraction:.1%} active" if s.active_fraction is not None else "" for s in (converted, static)]
        yield (
            f"the conversion loses to a static mask, which routes nothing: {name} {figures[0]}{shares[0]} against "
            f"{figures[1]}{shares[1]}; {WAYS_OUT}"
        )
