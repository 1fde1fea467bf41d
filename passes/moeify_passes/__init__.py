"""The passes of moeify: analyses find facts, checks refuse bad results, rewrites write specs."""

from __future__ import annotations

from moeify.pipeline.contract import Pass
from moeify_passes.analyse.allocate_budget import AllocateBudget
from moeify_passes.analyse.calibrate import Calibrate
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.compensate import Compensate
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.insert_stochastic_experts import InsertStochasticExperts
from moeify_passes.rewrite.keep_neurons import KeepNeurons
from moeify_passes.rewrite.refit_outputs import RefitOutputs
from moeify_passes.rewrite.split_experts import SplitExperts
from moeify_passes.rewrite.upcycle_experts import UpcycleExperts
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.gain_regression import GainRegression
from moeify_passes.routers.norm_regression import NormRegression
from moeify_passes.routers.random_router import RandomRouter
from moeify_passes.upcycling.checkpoints import Checkpoints
from moeify_passes.upcycling.copies import Copies
from moeify_passes.upcycling.drop import Drop
from moeify_passes.upcycling.lora import Lora
from moeify_passes.upcycling.noise import Noise
from moeify_passes.upcycling.residual import Residual

#: Every pass there is; this is the only list.
PASSES: tuple[type[Pass], ...] = (
    FindFeedForward,
    AllocateBudget,
    Calibrate,
    ClusterNeurons,
    SplitExperts,
    KeepNeurons,
    UpcycleExperts,
    MatchDense,
    InsertRouter,
    InsertStochasticExperts,
    Compensate,
    RefitOutputs,
)

__all__ = [
    "PASSES",
    "ActivationMarkers",
    "AllocateBudget",
    "AverageKey",
    "BalancedKMeans",
    "Calibrate",
    "Checkpoints",
    "ClusterNeurons",
    "Compensate",
    "Copies",
    "Drop",
    "FindFeedForward",
    "GainRegression",
    "InsertRouter",
    "InsertStochasticExperts",
    "KeepNeurons",
    "Lora",
    "MatchDense",
    "Noise",
    "NormRegression",
    "Random",
    "RandomRouter",
    "RefitOutputs",
    "Residual",
    "SplitExperts",
    "UpcycleExperts",
]
