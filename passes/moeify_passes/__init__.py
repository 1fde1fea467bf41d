"""The passes of moeify: analyses find facts, checks refuse bad results, rewrites write specs."""

from __future__ import annotations

from moeify.pipeline.contract import Pass
from moeify_passes.analyse.calibrate import Calibrate
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.compensate import Compensate
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.norm_regression import NormRegression

#: Every pass there is; this is the only list.
PASSES: tuple[type[Pass], ...] = (
    FindFeedForward,
    Calibrate,
    ClusterNeurons,
    SplitExperts,
    MatchDense,
    InsertRouter,
    Compensate,
)

__all__ = [
    "PASSES",
    "ActivationMarkers",
    "AverageKey",
    "BalancedKMeans",
    "Calibrate",
    "ClusterNeurons",
    "Compensate",
    "FindFeedForward",
    "InsertRouter",
    "MatchDense",
    "NormRegression",
    "Random",
    "SplitExperts",
]
