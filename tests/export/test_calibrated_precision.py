"""Exports in 8 and 4 bits that are chosen by what the products get to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.errors import InputError, UsageError
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.interface import Interface
from moeify.export.onnx.lowering.lower import lower
from moeify.export.onnx.model_interface import model_interface
from moeify.export.onnx.precision.calibrated_inputs import calibrate
from moeify.export.onnx.precision.choices import check_calibration
from moeify.export.onnx.precision.moe_outputs import calibrate_outputs
from moeify.export.onnx.precision.product_inputs import ProductInput, product_inputs
from moeify.export.onnx.precision.rounding import rounded
from moeify.export.onnx.precision.router_nodes import router_nodes
from moeify.export.onnx.report import OnnxReport
from moeify.export.onnx.tracing import trace
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from moeify.runtime.session import session
from onnx_blocks import normal

#: They export whole models.
pytestmark = pytest.mark.slow

HIDDEN, NEURONS = 64, 160
#: A channel of the inputs that is so much larger than the others, as norms of language models have some.
OUTLIER, FACTOR = 5, 60.0


class Uneven(nn.Module):
    """x [batch, tokens, hidden] => y; two products and an MoE layer read inputs with one large channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        offsets = (32, 64, 96, 128, 160)
        self.moe = MoELayer(MoEConfig(HIDDEN, HIDDEN, "silu", True, offsets, RouterConfig("linear"), top_k=2, rank=4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.first(x)) + self.second(x) + self.moe(x)
        return y


def uneven() -> Uneven:
    """Weights that read the large channel are as much smaller."""
    model = Uneven()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed) * HIDDEN**-0.5)
            if parameter.shape[-1] == HIDDEN and parameter.ndim == 2 and not name.endswith(("down", "low_rank_out")):
                parameter[:, OUTLIER] /= FACTOR
    return model.eval()


def batch(seed: int, tokens: int = 40) -> Tensor:
    x = normal(2, tokens, HIDDEN, seed=seed)
    x[..., OUTLIER] *= FACTOR
    return x


EXAMPLE = (batch(1),)
CALIBRATION = [(batch(seed),) for seed in range(10, 14)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], OnnxReport]:
    folder, found = tmp_path_factory.mktemp("calibrated"), {}
    for precision in ("int8", "int4"):
        for given in (False, True):
            path = folder / f"{precision}-{given}.onnx"
            calibrate = CALIBRATION if given else ()
            found[precision, given] = export_onnx(uneven(), EXAMPLE, path, precision=precision, calibrate=calibrate)
    return found


def traced() -> tuple[Uneven, Interface, Any]:
    model = uneven()
    interface = model_interface(model, EXAMPLE)
    return model, interface, trace(interface, 20)


def distance(path: str, native: bool) -> float:
    """From the model, on tokens that nothing was chosen by and that choose the same experts in both."""
    x = batch(99)
    model = uneven()
    model.moe.top_k = 4
    exact = model(x).detach().numpy()
    built = session(path, native=native, replace={"moe.k": np.array(4)})
    found: NDArray[Any] = np.asarray(built.run(None, {"x": x.numpy()})[0])
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("native", [False, True])
def test_what_is_calibrated_is_nearer_to_the_model(reports: dict[tuple[str, bool], OnnxReport], native: bool) -> None:
    distances = {key: distance(report.path, native) for key, report in reports.items()}
    assert distances["int8", True] < 0.4 * distances["int8", False]
    assert distances["int4", True] < 0.7 * distances["int4", False]


def test_the_report_says_what_was_chosen(reports: dict[tuple[str, bool], OnnxReport]) -> None:
    assert reports["int8", False].calibrated == reports["int4", False].calibrated == ()
    for precision, how, rows in (("int8", "smoothed ", []), ("int4", "weighted, smoothed ", ["rows of moe.down"])):
        report = reports[precision, True]
        choice, *others = report.calibrated
        assert choice.name == "input of first"
        assert choice.how.startswith(how)
        assert choice.error < choice.nearest / 2
        assert [other.name for other in others] == rows
        count = 1 + len(rows)
        assert f"calibrated: {count} of {count} choices, squared error of products on held-out tokens " in str(report)
        assert report.to_json()["calibrated"][0]["how"] == choice.how


def test_rows_of_down_are_cut_off_where_that_is_nearer(reports: dict[tuple[str, bool], OnnxReport]) -> None:
    """The chosen errors are those of the layer's own hidden values and stored weights."""
    layer, held = uneven().moe, torch.cat([x.reshape(-1, HIDDEN)[70:] for (x,) in CALIBRATION])
    assert layer.gate is not None
    h = (nn.functional.silu(held @ layer.gate.T) * (held @ layer.up.T)).detach().numpy()
    down = layer.down.detach().numpy()
    ways = [rounded(down, 4, importance).restored for importance in (None, np.ones(HIDDEN, np.float32))]
    expected = [np.square(h @ (way - down)).sum() / np.square(h @ down).sum() for way in ways]
    choice = reports["int4", True].calibrated[1]
    assert choice.how == "weighted"
    assert (choice.nearest, choice.error) == pytest.approx(expected, rel=1e-3)
    assert choice.error < choice.nearest
    stored = {matrix.name: matrix.error for matrix in reports["int4", True].stored}
    whole = {matrix.name: matrix.error for matrix in reports["int4", False].stored}
    assert stored["moe.down"] < whole["moe.down"]


def test_rows_that_are_no_nearer_for_it_are_rounded_to_the_nearest() -> None:
    """Weights that are integers times a scale lose nothing as they are."""
    model = uneven()
    with torch.no_grad():
        model.moe.down.copy_(torch.randint(-8, 8, model.moe.down.shape, generator=torch.Generator().manual_seed(0)))
        model.moe.down[:, ::32] = -8
    interface = model_interface(model, EXAMPLE)
    graph = trace(interface, 20)
    [choice], importance = calibrate_outputs(graph, product_inputs(graph, interface, CALIBRATION))
    assert (choice.name, choice.how, importance) == ("rows of moe.down", "nearest", {})
    assert choice.nearest == choice.error < 1e-10


def test_inputs_are_those_of_the_model() -> None:
    """All tokens but the last eighth of each batch, which is held out; the graph stays as it was."""
    _, interface, graph = traced()
    before = [node.op_type for node in graph.graph], [value.name for value in graph.graph.outputs]
    seen = product_inputs(graph, interface, CALIBRATION)
    assert ([node.op_type for node in graph.graph], [value.name for value in graph.graph.outputs]) == before
    tokens = torch.cat([x.reshape(-1, HIDDEN)[:70] for (x,) in CALIBRATION])
    held = torch.cat([x.reshape(-1, HIDDEN)[70:] for (x,) in CALIBRATION])
    [found] = seen.values()
    assert found.tokens == len(tokens)
    np.testing.assert_allclose(found.largest, tokens.abs().amax(0))
    np.testing.assert_allclose(found.mean_square, tokens.square().mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found.held, held)


@pytest.mark.parametrize("bits", [8, 4])
def test_smoothing_leaves_the_function_as_it_is(bits: int, tmp_path: Path) -> None:
    """Also where a low-rank term, which stays float32, reads the same input; the router reads it as it was."""
    import onnx_ir as ir

    model, interface, graph = traced()
    [choice], importance = calibrate(graph, bits, router_nodes(graph), product_inputs(graph, interface, CALIBRATION))
    assert "smoothed" in choice.how
    assert len(importance) == (1 if bits == 4 else 0)
    lower(graph, "portable")
    ir.save(graph, tmp_path / "m.onnx")
    x = batch(99)
    found = session(tmp_path / "m.onnx", native=False).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert sum(str(name).endswith(".smooth") for name in graph.graph.initializers) == 1


def test_a_matrix_that_two_products_read_by_other_inputs_is_left_alone(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(torch.tanh(self.linear(x)))
            return y

    model = Shared()
    with torch.no_grad():
        model.linear.weight.copy_(normal(HIDDEN, HIDDEN) * HIDDEN**-0.5)
        model.linear.bias.zero_()
    report = export_onnx(model.eval(), EXAMPLE, tmp_path / "m.onnx", precision="int8", calibrate=CALIBRATION)
    assert report.calibrated == ()


def test_a_product_that_reads_too_little_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.tanh(self.linear(x))[:, 0])
            return y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Pooled().eval()
    path = tmp_path / "m.onnx"
    report = export_onnx(model, EXAMPLE, path, precision="int8", calibrate=CALIBRATION[:1])
    assert [choice.name for choice in report.calibrated] == ["input of linear"]
    assert len(report.stored) == 2


def test_padding_is_not_seen() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y: Tensor = self.linear(2 * x) * attention_mask[..., None]
            return y

    x, mask = batch(3), torch.ones(2, 40, dtype=torch.int64)
    x[1, 20:], mask[1, 20:] = 1e6, 0
    given = {"x": x, "attention_mask": mask}
    interface = model_interface(Masked().eval(), given)
    [found] = product_inputs(trace(interface, 20), interface, [given]).values()
    assert found.tokens + len(found.held) == 60
    assert max(found.largest.max(), np.abs(found.held).max()) < 1e4


def test_single_tokens_are_held_out_now_and_then() -> None:
    seen = ProductInput(np.zeros(2, np.float32), np.zeros(2))
    for number in range(24):
        seen.see(np.full((1, 2), number, np.float32))
    assert (seen.tokens, len(seen.held)) == (21, 3)
    seen.see(np.ones((8000, 2), np.float32))
    assert (seen.tokens, len(seen.held)) == (24 + 8000 - 512, 512)
    seen.see(np.ones((8000, 2), np.float32))
    assert len(seen.held) == 512


def test_every_token_is_seen_or_held_out() -> None:
    seen = ProductInput(np.zeros(2, np.float32), np.zeros(2))
    for number in range(24):
        seen.see(np.full((1, 2), number, np.float32))
    assert seen.squares[0] + np.square(seen.held[:, 0]).sum() == sum(n * n for n in range(24))


def test_refusals(tmp_path: Path) -> None:
    check_calibration("int8", True)
    check_calibration("fp16", False)
    with pytest.raises(
        UsageError, match=r"^calibrate is for precision int8 and int4, and this is fp16: leave one of them out$"
    ):
        check_calibration("fp16", True)
    with pytest.raises(InputError, match=r"^calibrate: there is no batch in it"):
        export_onnx(uneven(), EXAMPLE, tmp_path / "m.onnx", precision="int8", calibrate=[])
    with pytest.raises(InputError, match=r"^calibrate: no product reads more than 3 tokens of the data: give more than 4$"):
        export_onnx(uneven(), EXAMPLE, tmp_path / "m.onnx", precision="int8", calibrate=[(normal(1, 3, HIDDEN),)])
    with pytest.raises(InputError, match=r"^calibrate: ONNX Runtime does not take the data: "):
        export_onnx(uneven(), EXAMPLE, tmp_path / "m.onnx", precision="int8", calibrate=[(normal(2, 3, 5),)])
    assert list(tmp_path.iterdir()) == []
