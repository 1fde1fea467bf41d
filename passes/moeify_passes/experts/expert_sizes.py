"""How many neurons each expert gets."""

from __future__ import annotations

import re

from moeify.errors import UsageError
from moeify.ir.feed_forward import FeedForward

_SIZE = re.compile(r"(?:([1-9]\d*) )?neurons?")


def expert_sizes(site: FeedForward, experts: int, shared_experts: int, unequal: bool) -> tuple[int, tuple[int, ...]]:
    """The neurons of the shared expert, and those of each routed one.

    Equal parts of the FFN; with `unequal` the routed ones differ by at most one where the division leaves a rest.
    Raises UsageError, naming the nearest counts that divide, where the neurons cannot be cut in equal parts.
    """
    neurons, parts = site.neurons, experts + shared_experts
    if parts > neurons:
        raise UsageError(
            f"experts is {experts} (and {shared_experts} shared) but {site.path} has only {neurons} neurons: choose fewer"
        )
    if not unequal and neurons % parts:
        counts = [n - shared_experts for n in range(shared_experts + 1, neurons + 1) if neurons % n == 0]
        near = [*[n for n in counts if n < experts][-1:], *[n for n in counts if n > experts][:1]]
        also = f" and {shared_experts} shared" if shared_experts else ""
        raise UsageError(
            f"experts is {experts}{also}: the {neurons} neurons of {site.path} do not divide by {parts}; "
            f"choose {' or '.join(map(str, near))} experts, or parts that differ by one (cluster-neurons.unequal=true)"
        )
    shared = round(neurons * shared_experts / parts)
    size, rest = divmod(neurons - shared, experts)
    return shared, tuple(size + (expert < rest) for expert in range(experts))


def sizes_beside(site: FeedForward, experts: int, shared: float, unequal: bool) -> tuple[int, tuple[int, ...]]:
    """The neurons of a shared expert that takes about that part of the FFN, and those of each routed one.

    Routed experts are equal, at the size that comes nearest; with `unequal` the shared expert takes exactly its part, rounded,
    and they differ by at most one. Raises UsageError where a routed expert would be left without a neuron.
    """
    rest = site.neurons - round(site.neurons * shared)
    if not unequal:
        rest = experts * min(max(round(rest / experts), 1), site.neurons // experts)
    if not experts <= rest <= site.neurons:
        raise UsageError(
            f"experts is {experts} beside a shared part of {shared:g}, but {site.path} has only {site.neurons} neurons: "
            "choose fewer experts or a smaller cluster-neurons.shared"
        )
    size, more = divmod(rest, experts)
    return site.neurons - rest, tuple(size + (expert < more) for expert in range(experts))


def size_named(text: str) -> int:
    """16 of "16 neurons", 1 of "neurons". Raises UsageError for other texts."""
    if (found := _SIZE.fullmatch(text)) is None:
        raise UsageError(f"cluster-neurons.experts is {text!r}: choose a number, neurons, or a size such as 16 neurons")
    return int(found[1] or 1)


def sizes_of(site: FeedForward, size: int, shared: int) -> tuple[int, tuple[int, ...]]:
    """The neurons of a shared expert of about `shared`, and as many routed experts of `size` as the others make.

    What does not divide goes to the shared expert; where there is none, routed ones differ by at most one.
    """
    experts = max((site.neurons - shared) // size, 1)
    routed = min(experts * size, site.neurons) if shared else site.neurons
    each, more = divmod(routed, experts)
    return site.neurons - routed, tuple(each + (expert < more) for expert in range(experts))
