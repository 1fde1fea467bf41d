from __future__ import annotations

import pytest

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, CalibrationData, Experts, Fact, FeedForwards, NeuronGroups, Routing
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.order import check_order
from moeify.pipeline.pipeline import Pipeline, flatten
from pipeline.steps import Step

FIND = Step("find", gives=(FeedForwards,))
CALIBRATE = Step("calibrate", needs=(FeedForwards, CalibrationData), gives=(ActivationSample,))
GROUP = Step("group", needs=(FeedForwards,), gives=(NeuronGroups,))
GROUP_BY_DATA = Step("group", needs=(FeedForwards, ActivationSample), gives=(NeuronGroups,))
SPLIT = Step("split", needs=(NeuronGroups,), gives=(Experts,), rewrites=True)
ROUTE = Step("route", needs=(Experts,), gives=(Routing,), keeps=(Experts,), rewrites=True)

WITH_DATA = frozenset({CalibrationData})
WITHOUT = frozenset[type[Fact]]()


@pytest.mark.parametrize(
    ("caption", "passes", "message"),
    [
        ("the giver stands later", (GROUP, FIND), "group needs FeedForwards, which find gives: put find before it"),
        ("there is no giver", (FIND, SPLIT), "split needs NeuronGroups, which no earlier pass gives"),
        (
            "a rewrite made the fact untrue", (FIND, GROUP, SPLIT, SPLIT),
            "split needs NeuronGroups, which group gives: put group before it",
        ),
        ("the order inside each-layer", (FIND, EachLayer((SPLIT, GROUP))),
         "split needs NeuronGroups, which group gives: put group before it"),
        ("each-layer comes first", (EachLayer((GROUP, SPLIT)), FIND),
         "each-layer needs FeedForwards, which find gives: put find before it"),
        ("what is no pass", (FIND, "group"), "step 2 of the pipeline is 'group', which is not a pass"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused_when_the_pipeline_is_built(caption: str, passes: tuple[Pass, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Pipeline(passes)
    assert str(error.value) == message, caption


def test_facts_of_the_whole_model_outlive_a_rewrite_and_others_only_where_kept() -> None:
    assert check_order((FIND, GROUP, SPLIT), WITHOUT) == {FeedForwards, Experts}
    assert check_order((FIND, GROUP, SPLIT, ROUTE), WITHOUT) == {FeedForwards, Experts, Routing}
    assert check_order((FIND, EachLayer((GROUP, SPLIT, ROUTE))), WITH_DATA) == {
        CalibrationData, FeedForwards, Experts, Routing,
    }  # fmt: skip


def test_without_data_a_pass_that_takes_data_is_left_out() -> None:
    pipeline = Pipeline((FIND, EachLayer((CALIBRATE, GROUP, SPLIT))))
    pipeline.check(with_data=True)
    pipeline.check(with_data=False)
    assert pipeline.left_out(with_data=True) == []
    note = f"no calibration data: {CALIBRATE.name} was left out, the conversion goes by the weights alone"
    assert pipeline.left_out(with_data=False) == [note]


def test_without_data_a_pass_that_hangs_on_data_is_refused() -> None:
    pipeline = Pipeline((FIND, EachLayer((CALIBRATE, GROUP_BY_DATA, SPLIT))))
    pipeline.check(with_data=True)
    with pytest.raises(UsageError) as error:
        pipeline.check(with_data=False)
    expected = "group, as it is set, needs calibration data: pass --calibrate FILE, or choose another strategy"
    assert str(error.value) == expected


def test_passes_are_listed_with_those_inside_each_layer() -> None:
    loop = EachLayer((GROUP, SPLIT))
    assert flatten((FIND, loop, ROUTE)) == [FIND, loop, GROUP, SPLIT, ROUTE]
