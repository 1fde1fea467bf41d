"""The passes of moeify: analyses find facts, checks refuse bad results, rewrites write specs."""

from __future__ import annotations

from moeify.pipeline.contract import Pass
from moeify_passes.analyse.allocate_budget import AllocateBudget
from moeify_passes.analyse.calibrate import Calibrate
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.analyse.measure_co_activation import MeasureCoActivation
from moeify_passes.analyse.measure_importance import MeasureImportance
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.experts.activation_markers import ActivationMarkers
from moeify_passes.experts.balanced_k_means import BalancedKMeans
from moeify_passes.experts.co_activation_graph import CoActivationGraph
from moeify_passes.experts.gradient_importance import GradientImportance
from moeify_passes.experts.predicted_gain import PredictedGain
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.add_low_rank import AddLowRank
from moeify_passes.rewrite.compensate import Compensate
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.insert_stochastic_experts import InsertStochasticExperts
from moeify_passes.rewrite.keep_neurons import KeepNeurons
from moeify_passes.rewrite.refit_outputs import RefitOutputs
from moeify_passes.rewrite.scale_experts import ScaleExperts
from moeify_passes.rewrite.split_experts import SplitExperts
from moeify_passes.rewrite.upcycle_experts import UpcycleExperts
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.gain_regression import GainRegression
from moeify_passes.routers.mlp_classifier import MlpClassifier
from moeify_passes.routers.norm_regression import NormRegression
from moeify_passes.routers.random_router import RandomRouter
from moeify_passes.routers.representative_neuron import RepresentativeNeuron
from moeify_passes.routers.similarity import Similarity
from moeify_passes.routers.spectral import Spectral
from moeify_passes.routers.text_centres import TextCentres
from moeify_passes.upcycling.checkpoints import Checkpoints
from moeify_passes.upcycling.copies import Copies
from moeify_passes.upcycling.drop import Drop
from moeify_passes.upcycling.lora import Lora
from moeify_passes.upcycling.noise import Noise
from moeify_passes.upcycling.residual import Residual

#: Every pass there is; this is the only list.
PASSES: tuple[type[Pass], ...] = (
    FindFeedForward,
    MeasureImportance,
    AllocateBudget,
    Calibrate,
    MeasureCoActivation,
    ClusterNeurons,
    SplitExperts,
    KeepNeurons,
    UpcycleExperts,
    MatchDense,
    InsertRouter,
    InsertStochasticExperts,
    ScaleExperts,
    Compensate,
    AddLowRank,
    RefitOutputs,
)

__all__ = [
    "PASSES",
    "ActivationMarkers",
    "AddLowRank",
    "AllocateBudget",
    "AverageKey",
    "BalancedKMeans",
    "Calibrate",
    "Checkpoints",
    "ClusterNeurons",
    "CoActivationGraph",
    "Compensate",
    "Copies",
    "Drop",
    "FindFeedForward",
    "GainRegression",
    "GradientImportance",
    "InsertRouter",
    "InsertStochasticExperts",
    "KeepNeurons",
    "Lora",
    "MatchDense",
    "MeasureCoActivation",
    "MeasureImportance",
    "MlpClassifier",
    "Noise",
    "NormRegression",
    "PredictedGain",
    "Random",
    "RandomRouter",
    "RefitOutputs",
    "RepresentativeNeuron",
    "Residual",
    "ScaleExperts",
    "Similarity",
    "Spectral",
    "SplitExperts",
    "TextCentres",
    "UpcycleExperts",
]
