"""Everything that can be measured about a converted model on a data set, in one pass over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from moeify.data.data_set import DataSet
from moeify.data.fitting import check_values
from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.layers.moe_layer import MoELayer
from moeify.measure.candidates import Candidate, Progress, converted, nulled, run_all, score
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.evaluation import Evaluation, Score
from moeify.measure.greedy import Greedy, greedy_agreement
from moeify.measure.load import LayerLoad, LoadMeter, whole_active_fraction
from moeify.measure.null_models import null_models
from moeify.measure.nulls import Null
from moeify.measure.outputs import evaluating, is_causal_language_model, vocabulary_of
from moeify.measure.verdicts import is_void, verdicts

#: Null models are fitted on the leading 1/10 of the batches.
_TENTH = 10


def evaluate_model(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    dense: nn.Module | None = None,
    tokenizer: Any = None,
    nulls: bool = False,
    neurons: Mapping[str, int] | None = None,
    ffns: Mapping[str, DenseFFN] | None = None,
    layers: Mapping[str, MoELayer] | None = None,
    budget: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates a converted model on re-iterable batches.

    dense: the model before conversion, for divergence and greedy agreement. tokenizer: names the end-of-text token.
    nulls: also scores null models; they are fitted on the leading tenth of the batches, which is left out of all scores.
    neurons: of each dense FFN by layer path; what the layer's config says where it says nothing. ffns: the dense FFNs
    themselves, which the nulls are made of. layers: the model's MoE layers by their paths; None: by those of their modules.
    budget: the active fraction that was asked for. seed: of the random partition.
    progress: receives (task, done, total or None).

    Weights, budgets and training flags stay as they were. At most two outputs are in memory at a time.
    Raises InputError for data that does not fit the model, ConversionError for outputs that are not finite.
    """
    batches = list(data) if isinstance(data, Iterator) else data
    layers = moe_layers(model) if layers is None else layers
    meter, sizes, judge = LoadMeter(), neurons or {}, dense or model
    notes: list[str] = []
    with evaluating(model, dense):
        language = is_causal_language_model(judge, _first(batches, judge))
        found, skipped, total = _nulls(model, layers, batches, ffns or {}, seed, notes) if nulls else ((), 0, None)
        others = [converted(model, layers, meter), *(nulled(model, layers, null) for null in found)]
        reference = None if dense is None else Candidate("dense", "the model before conversion", dense)

        def report(done: int) -> None:
            if progress is not None:
                progress("evaluate", done, total)

        scored = run_all(reference, others, _checked(batches, judge, skipped), language, report)
        greedy = _greedy(dense, model, islice(iter(batches), skipped, None), tokenizer) if dense and language else None
    loads = meter.results(layers, sizes)
    active = whole_active_fraction(loads)
    fractions = {"converted": active, **{null.name: _fraction(null, layers, loads, sizes) for null in found}}
    before = () if reference is None else (score(reference, language, False, 1.0),)
    scores = _against(*before, *(score(each, language, dense is not None, fractions[each.name]) for each in others))
    return Evaluation(
        model=type(model).__name__,
        data=data.describe() if isinstance(data, DataSet) else {"kind": "batches", "name": type(data).__name__},
        batches=scored,
        scores=scores,
        active_fraction=active,
        layers=loads,
        greedy=greedy,
        notes=(*_notes(layers, dense, language, greedy), *notes),
        budget=budget,
        void=is_void(active, budget),
        verdicts=tuple(verdicts(scores, active, budget)),
    )


def _first(batches: Iterable[Batch], model: nn.Module) -> Batch:
    first = next(iter(batches), None)
    if first is None:
        raise InputError("the data holds no batch to evaluate on")
    check_values(first, ("input_ids",), vocabulary_of(model), "the data")
    return first


def _nulls(
    model: nn.Module,
    layers: Mapping[str, MoELayer],
    batches: Iterable[Batch],
    ffns: Mapping[str, DenseFFN],
    seed: int,
    notes: list[str],
) -> tuple[tuple[Null, ...], int, int]:
    """The null models, how many leading batches are spent on them, and how many are left. Raises InputError for too few."""
    total = sum(1 for _ in batches)
    if total < 2:
        raise InputError("null models need at least two batches of data: they are fitted on one, the rest is scored")
    leading = max(total // _TENTH, 1)
    found = null_models(model, layers, islice(iter(batches), leading), ffns, seed, notes)
    if not any(null.name == "static-mask" for null in found):
        return found, 0, total
    notes.append(f"null models were fitted on the first {leading} of {total} batches, which are left out of all scores")
    return found, leading, total - leading


def _checked(batches: Iterable[Batch], model: nn.Module, skipped: int) -> Iterator[Batch]:
    vocabulary = vocabulary_of(model)
    for batch in islice(iter(batches), skipped, None):
        check_values(batch, ("input_ids",), vocabulary, "the data")
        yield batch


def _fraction(
    null: Null, layers: Mapping[str, MoELayer], loads: tuple[LayerLoad, ...], neurons: Mapping[str, int]
) -> float | None:
    """The active fraction of the whole model under the null; None without layers."""
    metered = {} if null.meter is None else {load.path: load for load in null.meter.results(layers, neurons)}

    def of(load: LayerLoad) -> LayerLoad:
        routed = metered.get(load.path, load).active_fraction
        return replace(load, active_fraction=null.fractions.get(load.path, routed) + null.extra.get(load.path, 0.0))

    return whole_active_fraction(map(of, loads))


def _against(*scores: Score) -> tuple[Score, ...]:
    """The scores with their perplexities / that of the dense model, where there is one."""
    dense = next((score.perplexity.value for score in scores if score.name == "dense" and score.perplexity), None)
    return tuple(
        replace(score, ratio=score.perplexity.value / dense) if dense and score.perplexity is not None else score
        for score in scores
    )


def _greedy(dense: nn.Module, model: nn.Module, batches: Iterable[Batch], tokenizer: Any) -> Greedy | None:
    end = getattr(tokenizer, "eos_token_id", None)
    end = getattr(getattr(dense, "config", None), "eos_token_id", None) if end is None else end
    return greedy_agreement(dense, model, batches, end=end if isinstance(end, int) else None)


def _notes(layers: Mapping[str, MoELayer], dense: nn.Module | None, language: bool, greedy: Greedy | None) -> Iterator[str]:
    """Why something is absent."""
    if not layers:
        yield "no active fraction and no load: the model has no MoE layer"
    if dense is None:
        yield "no divergence and no greedy agreement: no dense model was given"
    if not language:
        yield "no perplexity and no greedy agreement: the model is no causal language model on this data"
    if dense is not None and language and greedy is None:
        yield "no greedy agreement: no row of the data is long enough for a prompt, or the model's positions leave no room"
