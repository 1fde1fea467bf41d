"""ONNX operators that may stand in or around a feed-forward network, in the words of torch: what the matcher reads.

Everything else stays opaque.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from moeify.frontend.onnx.opaque import Inputs, Writer, opaque

aten = torch.ops.aten


def written(write: Writer, inputs: Inputs) -> list[fx.Node]:
    """The fx nodes of the outputs."""
    translate = _TABLE.get((write.node.domain, write.node.op_type))
    found = None if translate is None or inputs[0] is None else translate(write, inputs)
    if found is None:
        return opaque(write, inputs)
    return found if isinstance(found, list) else [found]


def _plain(target: Callable[..., Any], count: int = 1) -> Callable[[Writer, Inputs], Any]:
    return lambda write, inputs: write(target, *inputs[:count])


def _float(target: Callable[..., Any], **defaults: float) -> Callable[[Writer, Inputs], Any]:
    return lambda write, inputs: write(target, inputs[0], *(write.number(name, value) for name, value in defaults.items()))


def _gemm(write: Writer, inputs: Inputs) -> Any:
    """A scaled product, or what is added and is no vector, is written out: the matcher says what is in its way."""
    flags = write.node.attributes
    x, matrix, bias = (*inputs, None)[:3]
    alpha, beta = write.number("alpha", 1.0), write.number("beta", 1.0)
    if flags.get_int("transA", 0) == 1:
        return None
    turned = flags.get_int("transB", 0) == 1
    if bias is not None and alpha == beta == 1.0 and _is_vector(bias, write.values[0].shape[-1]):
        return write(aten.linear.default, x, matrix, bias) if turned else write(aten.addmm.default, bias, x, matrix)
    product = write(aten.linear.default if turned else aten.mm.default, x, matrix)
    product = product if alpha == 1.0 else write(aten.mul.Scalar, product, alpha)
    if bias is None:
        return product
    scaled = bias if beta == 1.0 else write(aten.mul.Scalar, bias, beta, value=bias.meta.get("val"))
    return write(aten.add.Tensor, product, scaled)


def _is_vector(bias: fx.Node, size: int) -> bool:
    """But for leading dims of 1."""
    value = bias.meta.get("val")
    return value is not None and value.ndim > 0 and value.numel() == value.shape[-1] == size


def _gelu(write: Writer, inputs: Inputs) -> Any:
    return write(aten.gelu.default, inputs[0], approximate=write.node.attributes.get_string("approximate", "none"))


def _fast_gelu(write: Writer, inputs: Inputs) -> Any:
    return write(aten.gelu.default, _biased(write, inputs), approximate="tanh")


def _bias_gelu(write: Writer, inputs: Inputs) -> Any:
    return write(aten.gelu.default, _biased(write, inputs))


def _biased(write: Writer, inputs: Inputs) -> Any:
    bias = (*inputs, None)[1]
    return inputs[0] if bias is None else write(aten.add.Tensor, inputs[0], bias)


def _swish(default: float) -> Callable[[Writer, Inputs], Any]:
    def translate(write: Writer, inputs: Inputs) -> Any:
        scaled = write(aten.mul.Scalar, inputs[0], write.number("alpha", default))
        return write(aten.mul.Tensor, inputs[0], write(aten.sigmoid.default, scaled))

    return translate


def _hard_sigmoid(write: Writer, inputs: Inputs) -> Any:
    line = write(aten.mul.Scalar, inputs[0], write.number("alpha", 0.2))
    return write(aten.clamp.default, write(aten.add.Scalar, line, write.number("beta", 0.5)), 0.0, 1.0)


def _softsign(write: Writer, inputs: Inputs) -> Any:
    return write(aten.div.Tensor, inputs[0], write(aten.add.Scalar, write(aten.abs.default, inputs[0]), 1.0))


def _clip(write: Writer, inputs: Inputs) -> Any:
    low, high = (*inputs, None, None)[1:3]
    return write(aten.clamp.Tensor, inputs[0], low, high) if low is not None or high is not None else _same(write, inputs)


def _several(target: Callable[..., Any]) -> Callable[[Writer, Inputs], Any]:
    """Min and Max of two."""
    return lambda write, inputs: write(target, *inputs) if len(inputs) == 2 else None


def _sum(write: Writer, inputs: Inputs) -> Any:
    """Of two; more are no bias."""
    if len(inputs) == 2:
        return write(aten.add.Tensor, *inputs)
    return _same(write, inputs) if len(inputs) == 1 else None


def _selu(write: Writer, inputs: Inputs) -> Any:
    return None if write.node.attributes else write(aten.selu.default, inputs[0])


def _dropout(write: Writer, inputs: Inputs) -> Any:
    return None if len(write.constants) > 2 and write.constants[2] is not False else _same(write, inputs)


def _same(write: Writer, inputs: Inputs) -> Any:
    return write(aten.alias.default, inputs[0])


def _cast(write: Writer, inputs: Inputs) -> Any:
    return write(aten._to_copy.default, inputs[0], dtype=write.values[0].dtype)


def _reshape(write: Writer, inputs: Inputs) -> Any:
    return write(aten.reshape.default, inputs[0], list(write.values[0].shape))


def _transpose(write: Writer, inputs: Inputs) -> Any:
    perm = write.integers("perm") or list(range(write.values[0].ndim))[::-1]
    return write(aten.permute.default, inputs[0], perm)


def _split(write: Writer, inputs: Inputs) -> Any:
    axis = write.node.attributes.get_int("axis", 0) % write.values[0].ndim
    whole = write(aten.split_with_sizes.default, inputs[0], [v.shape[axis] for v in write.values], axis, value=write.values)
    return [write(operator.getitem, whole, i, value=value) for i, value in enumerate(write.values)]


def _slice(write: Writer, inputs: Inputs) -> Any:
    starts, ends, axes, steps = (*write.constants, None, None)[1:5]
    if starts is None or ends is None or len(starts) != 1 or (steps or [1]) != [1] or (axes is None and len(inputs) > 3):
        return None
    axis = (axes or [0])[0] % write.values[0].ndim
    return write(aten.slice.Tensor, inputs[0], axis, starts[0], min(ends[0], 1 << 62))


def _einsum(write: Writer, inputs: Inputs) -> Any:
    return write(aten.einsum.default, write.node.attributes.get_string("equation", ""), list(inputs))


def _conv(write: Writer, inputs: Inputs) -> Any:
    x, kernel, bias = (*inputs, None)[:3]
    pads = write.integers("pads") or []
    dims = write.values[0].ndim - 2
    if any(pads) or write.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    steps, spread = (write.integers(name) or [1] * dims for name in ("strides", "dilations"))
    groups = write.node.attributes.get_int("group", 1)
    return write(aten.convolution.default, x, kernel, bias, steps, [0] * dims, spread, False, [0] * dims, groups)


_ONNX: Mapping[str, Callable[[Writer, Inputs], Any]] = {
    "MatMul": _plain(aten.matmul.default, 2), "Gemm": _gemm, "Einsum": _einsum, "Conv": _conv,
    "Add": _plain(aten.add.Tensor, 2), "Sum": _sum, "Sub": _plain(aten.sub.Tensor, 2), "Mul": _plain(aten.mul.Tensor, 2),
    "Div": _plain(aten.div.Tensor, 2), "Pow": _plain(aten.pow.Tensor_Tensor, 2), "Where": _plain(aten.where.self, 3),
    "Max": _several(aten.maximum.default), "Min": _several(aten.minimum.default), "Clip": _clip,
    "Greater": _plain(aten.gt.Tensor, 2), "GreaterOrEqual": _plain(aten.ge.Tensor, 2), "Less": _plain(aten.lt.Tensor, 2),
    "LessOrEqual": _plain(aten.le.Tensor, 2), "Neg": _plain(aten.neg.default), "Abs": _plain(aten.abs.default),
    "Exp": _plain(aten.exp.default), "Log": _plain(aten.log.default), "Sqrt": _plain(aten.sqrt.default),
    "Reciprocal": _plain(aten.reciprocal.default), "Erf": _plain(aten.erf.default), "Tanh": _plain(aten.tanh.default),
    "Sigmoid": _plain(aten.sigmoid.default), "Relu": _plain(aten.relu.default), "Selu": _selu,
    "Elu": _float(aten.elu.default, alpha=1.0), "LeakyRelu": _float(aten.leaky_relu.default, alpha=0.01),
    "Softplus": _plain(aten.softplus.default), "Softsign": _softsign, "Mish": _plain(aten.mish.default),
    "HardSwish": _plain(aten.hardswish.default), "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "Swish": _swish(1.0),
    "Identity": _same, "Dropout": _dropout, "Cast": _cast, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape,
    "Unsqueeze": _reshape, "Transpose": _transpose, "Split": _split, "Slice": _slice,
}  # fmt: skip
_MICROSOFT: Mapping[str, Callable[[Writer, Inputs], Any]] = {
    "Gelu": _gelu, "FastGelu": _fast_gelu, "BiasGelu": _bias_gelu, "QuickGelu": _swish(1.702),
}  # fmt: skip
_TABLE = {("", name): made for name, made in _ONNX.items()} | {("com.microsoft", n): made for n, made in _MICROSOFT.items()}
