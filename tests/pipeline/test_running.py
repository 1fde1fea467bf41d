from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moeify.errors import ConversionError, InputError
from moeify.ir.facts import CalibrationData, Experts, FeedForwards, NeuronGroups
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify.pipeline.running import run_passes
from passes.tiny import graph_of, random_site
from pipeline.steps import Step, nothing

GROUPS = NeuronGroups((), torch.empty(0, dtype=torch.int64))
EXPERTS = Experts((1,), True)


def graph() -> ModelGraph:
    return graph_of(random_site())


def specify(g: ModelGraph, context: PassContext) -> bool:
    """Writes a new spec for every site."""
    for site in g.sites:
        g.specs[site.path] = MoESpec((torch.arange(site.neurons),))
    return True


def specify_silently(g: ModelGraph, context: PassContext) -> bool:
    specify(g, context)
    return False


def boast(g: ModelGraph, context: PassContext) -> bool:
    return True


def stumble(g: ModelGraph, context: PassContext) -> bool:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("caption", "step", "message"),
    [
        ("an analysis that rewrites", Step("look", does=specify),
         "pass look is an analysis but changed a spec; set rewrites = True or leave specs alone"),
        ("a rewrite that keeps quiet about it", Step("split", rewrites=True, does=specify_silently),
         "pass split returned False but a spec changed"),
        ("a rewrite that did nothing", Step("split", rewrites=True, does=boast),
         "pass split returned True but no spec changed"),
        ("a foreign exception", Step("count", does=stumble),
         "pass count failed after find, group: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_pass_is_held_to_its_word(caption: str, step: Step, message: str) -> None:
    with pytest.raises(ConversionError) as error:
        run_passes((Step("find"), Step("group"), step), graph(), PassContext())
    assert str(error.value) == message, caption


def test_errors_of_our_own_pass_through_as_they_are() -> None:
    ours = InputError("the file is empty")

    def fail(g: ModelGraph, context: PassContext) -> bool:
        raise ours

    with pytest.raises(InputError) as error:
        run_passes((Step("read", does=fail),), graph(), PassContext())
    assert error.value is ours


def test_a_rewrite_drops_the_facts_that_it_does_not_keep_or_give() -> None:
    def left(step: Step) -> set[type]:
        g, context = graph(), PassContext()
        context.put(None, FeedForwards(1, 0))
        for fact in (GROUPS, EXPERTS):
            context.put(g.sites[0], fact)
        run_passes((step,), g, context)
        assert context.find(None, FeedForwards) is not None
        return {kind for kind in (NeuronGroups, Experts) if context.find(g.sites[0], kind) is not None}

    assert left(Step("look")) == {NeuronGroups, Experts}
    assert left(Step("split", rewrites=True, does=specify)) == set()
    assert left(Step("split", rewrites=True, does=specify, gives=(Experts,))) == {Experts}
    assert left(Step("split", rewrites=True, does=specify, keeps=(NeuronGroups,))) == {NeuronGroups}


def test_a_pass_sees_what_later_passes_want() -> None:
    seen: list[frozenset[type]] = []

    def note(g: ModelGraph, context: PassContext) -> bool:
        seen.append(frozenset(context.wanted))
        return False

    look = Step("look", does=note)
    run_passes((look, Step("group", needs=(NeuronGroups,)), look, Step("route", uses=(Experts,)), look), graph(), PassContext())
    assert seen == [{NeuronGroups, Experts}, {Experts}, frozenset()]


def test_a_pass_that_takes_data_is_left_out_without_and_time_is_kept_by_name() -> None:
    def outcome(context: PassContext) -> list[str]:
        run_passes((Step("look"), Step("calibrate", needs=(CalibrationData,)), Step("look")), graph(), context)
        return sorted(context.seconds)

    assert outcome(PassContext()) == ["look"]
    assert outcome(PassContext(batches=[])) == ["calibrate", "look"]


def test_what_a_generator_draws_hangs_on_seed_purpose_and_site_alone() -> None:
    def draw(seed: int, purpose: str, path: str | None) -> list[float]:
        context = PassContext(seed=seed)
        context.generator("something else")
        site = None if path is None else random_site(path=path)
        return torch.rand(3, generator=context.generator(purpose, site)).tolist()

    cases: list[Callable[[], list[float]]] = [
        lambda: draw(0, "cluster", "a"),
        lambda: draw(1, "cluster", "a"),
        lambda: draw(0, "route", "a"),
        lambda: draw(0, "cluster", "b"),
        lambda: draw(0, "cluster", None),
    ]
    drawn = [case() for case in cases]
    assert drawn == [case() for case in cases], "the same again"
    assert len({tuple(values) for values in drawn}) == len(cases), "each its own"


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    torch.rand(3, generator=PassContext(seed=3).generator("cluster", random_site()))
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_changes_where_nothing_is_done() -> None:
    assert not run_passes((Step("look", does=nothing),), graph(), PassContext())
    assert run_passes((Step("split", rewrites=True, does=specify), Step("look")), graph(), PassContext())
