"""An exported program without its weights: placeholders that know where in the model their values are."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from moeify.frontend.traced import Traced, live_tensor
from moeify.ir.model_graph import Batch

_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def lifted_program(program: ExportedProgram, model: nn.Module, example: Batch) -> Traced:
    """The program without its weights. Writes to buffers that it returned beside the outputs are dropped."""
    lifted: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind not in _LIFTED or spec.target is None:
            continue
        if live_tensor(model, spec.target) is not None:
            lifted[spec.arg.name] = spec.target
        else:
            constants[spec.arg.name] = program.constants[spec.target]
    specs = program.graph_signature.input_specs
    graph = program.graph_module
    _keep_user_outputs(graph, program)
    return Traced(
        graph=graph,
        lifted=lifted,
        constants=constants,
        user_inputs=tuple(spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT),
        keys=tuple(example) if isinstance(example, dict) else None,
        batch_spec=pytree.tree_structure(example),
        output_spec=program.call_spec.out_spec,
    )


def _keep_user_outputs(graph: fx.GraphModule, program: ExportedProgram) -> None:
    output = graph.graph.output_node()
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    values = output.args[0]
    assert isinstance(values, tuple | list)
    output.args = (tuple(value for value, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT),)
    _merge_sizes(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _merge_sizes(graph: fx.Graph) -> None:
    """Every size is read from the user's inputs where it stands there, so that none hangs on a value that may be cut out."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    places = {str(size): (node, dim) for node in placeholders for dim, size in enumerate(_shape(node))}
    start = next(node for node in graph.nodes if node.op != "placeholder")
    known: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if str(node.target) != "aten.sym_size.int" or not isinstance(node.meta.get("val"), torch.SymInt):
            continue
        size = str(node.meta["val"])
        if size not in known and size in places:
            with graph.inserting_before(start):
                known[size] = graph.call_function(torch.ops.aten.sym_size.int, places[size])
            known[size].meta["val"] = node.meta["val"]
        node.replace_all_uses_with(known.setdefault(size, node))


def _shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
