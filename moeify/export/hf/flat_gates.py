"""Experts that are added up, in classes whose gates sum up to 1: routers made so small that all gates are nearly 1 / top-k.

Scores s become c s, c a power of two, so that their order stays. An FFN of these models reads x = w * n, n = v / rms(v) and
w the weight of its norm, so that |n| <= sqrt(hidden). For any two experts

    |s_e(x) - s_f(x)|  =  |((r_e - r_f) * w) . n|  <=  sqrt(hidden) |(r_e - r_f) * w|   =: B at most, for every input

With c B <= FLAT, each gate is within a factor exp(FLAT) of 1 / top-k on whatever is read. Real inputs reach a third to an
eighth of B (SmolLM2, experts of `emoe`), and the experts that are chosen lie closer together than all of them do.

Why not smaller: most engines, and most classes of transformers, choose by softmax(c s) in float32, whose steps are 2^-24 of a
value. Two scores nearer to each other than 2^-24 / c are one there, and the choice is left to chance. A larger c moves gates,
thus what later layers read, by about c times the difference of two scores. benchmarks/router_scale.py measures both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The largest difference between two scores of a token.
FLAT = 2.0**-10


def router_scale(weight: Tensor, norm: Tensor) -> float:
    """The power of two to multiply a router with. weight: [experts, hidden]; norm: weight [hidden] of the norm before it."""
    rows = weight.detach().double() * norm.detach().double()
    widest = math.sqrt(rows.shape[1]) * float(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").max())
    return 2.0 ** math.floor(math.log2(FLAT / widest)) if widest > 0 else 1.0
