"""What an export made, and how near it is to the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type and dims (a name where it is free)."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Check:
    """One comparison of ONNX Runtime with the eager model.

    distance: largest difference / largest value, over the tokens that chose the same experts in both. bound: what it may be.
    flipped: the share of tokens (0 to 1) beyond the bound because a near tie between experts fell the other way.
    """

    name: str
    distance: float
    bound: float
    flipped: float = 0.0


@dataclass(frozen=True)
class Lowered:
    """An MoE layer in the file. lowering: portable, standard, contrib or native (docs/onnx.md); form: how its experts are
    computed without the native library, empty where that is needed; reason: why so."""

    layer: str
    lowering: str
    form: str
    reason: str


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in a lower precision. form: the type or the operator that holds it. bits: of a weight. error: the norm of what
    rounding changed / the norm of the matrix."""

    name: str
    form: str
    bits: int
    error: float


@dataclass(frozen=True)
class Calibrated:
    """What calibration chose for an input of products, or for rows that products add up over. how: "nearest" where nothing else
    was better on held-out tokens, else "smoothed" or "weighted" and how strongly (docs/quantisation.md). nearest, error: of the
    products on those tokens, squared error / squared products, a mean over matrices, rounded to the nearest and as chosen."""

    name: str
    how: str
    nearest: float
    error: float


@dataclass(frozen=True)
class OnnxReport:
    """path: the file. size: its bytes, external data included. moe_layers: names of the MoE nodes. seconds: all of it.
    lowered: what became of each MoE layer, in the order of moe_layers. precision: as asked for; stored: the matrices that are
    not as they were; calibrated: what calibration data chose."""

    path: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    moe_layers: tuple[str, ...]
    size: int
    checks: tuple[Check, ...]
    seconds: float
    lowered: tuple[Lowered, ...] = ()
    precision: str = "fp32"
    stored: tuple[StoredMatrix, ...] = ()
    calibrated: tuple[Calibrated, ...] = ()

    @property
    def native_library(self) -> str:
        """Is the native library needed for the file, faster, or unused?"""
        ways = {layer.lowering for layer in self.lowered}
        return "needed" if "native" in ways else "faster" if "portable" in ways else "unused"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"native_library": self.native_library}

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.nodes} nodes, {len(self.moe_layers)} MoE layers, {self.size / 1e6:.1f} MB"]
        for title, ports in (("input", self.inputs), ("output", self.outputs)):
            shown = [str(port) for port in ports if ".key" not in port.name and ".value" not in port.name]
            lines += [f"  {title} {text}" for text in shown]
            if cache := len(ports) - len(shown):
                lines.append(f"  {title} cache: {cache} tensors, {ports[-1]}")
        lines += self._lowerings()
        if self.stored:
            worst, bits = max(self.stored, key=lambda m: m.error), sorted({m.bits for m in self.stored})
            lines.append(
                f"  {self.precision}: {len(self.stored)} matrices in {' and '.join(map(str, bits))} bits, relative error of "
                f"the weights at most {worst.error:.1e} ({worst.name})"
            )
        if every := self.calibrated:
            before, after = (sum(values) / len(every) for values in ([c.nearest for c in every], [c.error for c in every]))
            lines.append(
                f"  calibrated: {sum(c.how != 'nearest' for c in every)} of {len(every)} choices, squared error of "
                f"products on held-out tokens {before:.1e} -> {after:.1e} on average"
            )
        for check in self.checks:
            flipped = f", {check.flipped:.2%} of tokens on other experts (near ties)" if check.flipped else ""
            lines.append(f"  {check.name}: distance {check.distance:.1e} (bound {check.bound:.0e}){flipped}")
        lines.append(f"  {self.seconds:.1f} s")
        return "\n".join(lines)

    def _lowerings(self) -> list[str]:
        """A line for each choice, with the layers that it was made for; what the native library does."""
        same: dict[tuple[str, str, str], list[str]] = {}
        for layer in self.lowered:
            same.setdefault((layer.lowering, layer.form, layer.reason), []).append(layer.layer)
        lines = []
        for (lowering, form, reason), layers in same.items():
            named = layers[0] if len(layers) == 1 else f"{len(layers)} layers ({layers[0]} to {layers[-1]})"
            lines.append(f"  {named}: {lowering}{form and ', '}{form}: {reason}")
        words = {"needed": "needed to run the file", "faster": "runs these layers where it is registered", "unused": ""}
        if words[self.native_library]:
            lines.append(f"  native library: {words[self.native_library]}")
        return lines
