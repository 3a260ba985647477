"""Small ONNX graphs: products one behind the other, with a Relu between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, LEVELS = 24, 3
STEPS = WIDTH // LEVELS


def random_weight(seed: int) -> NDArray[np.float32]:
    """`[WIDTH, WIDTH]` that keeps the size of what comes in."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5).astype(np.float32)


def chain(weights: Sequence[NDArray[np.float32]], ways: Sequence[str] = (), *, any_length: bool = False) -> Any:
    """From `context` `[batch, WIDTH]` to `quantiles` `[batch, LEVELS, STEPS]`.

    Args:
        weights: `[inputs, outputs]` of each product.
        ways: how each is written: MatMul, Gemm (with a turned weight and a bias), or turned (by a Transpose).
        any_length: contexts of any length; 0 stands for what is missing.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, x = [], [], "context"
    if any_length:
        sizes = {"none": [0.0], "front": [0, WIDTH, 0, 0], "start": [-WIDTH], "end": [1 << 40], "axis": [1]}
        for name, values in sizes.items():
            tensors.append(numpy_helper.from_array(np.array(values, np.float32 if name == "none" else np.int64), name))
        nodes += [
            helper.make_node("IsNaN", [x], ["missing"], "missing"),
            helper.make_node("Where", ["missing", "none", x], ["filled"], "filled"),
            helper.make_node("Pad", ["filled", "front"], ["longer"], "longer"),
            helper.make_node("Slice", ["longer", "start", "end", "axis"], ["newest"], "newest"),
        ]
        x = "newest"
    for place, weight in enumerate(weights):
        way = ways[place] if ways else "MatMul"
        bias = np.random.default_rng(100 + place).standard_normal(weight.shape[1]).astype(np.float32)
        name, out = f"product_{place}", f"product_{place}.out"
        stored = weight if way == "MatMul" else np.ascontiguousarray(weight.T)
        tensors += [numpy_helper.from_array(stored, f"weight_{place}"), numpy_helper.from_array(bias, f"bias_{place}")]
        if way == "Gemm":
            nodes.append(helper.make_node("Gemm", [x, f"weight_{place}", f"bias_{place}"], [out], name, transB=1))
        else:
            factor = f"weight_{place}"
            if way == "turned":
                factor = f"turned_{place}"
                nodes.append(helper.make_node("Transpose", [f"weight_{place}"], [factor], factor, perm=[1, 0]))
            nodes.append(helper.make_node("MatMul", [x, factor], [f"{name}.bare"], name))
            nodes.append(helper.make_node("Add", [f"{name}.bare", f"bias_{place}"], [out], f"{name}.add"))
        x = out
        if place + 1 < len(weights):
            x = f"relu_{place}"
            nodes.append(helper.make_node("Relu", [out], [x], x))
    tensors.append(numpy_helper.from_array(np.array([-1, LEVELS, STEPS], np.int64), "shape"))
    nodes.append(helper.make_node("Reshape", [x, "shape"], ["quantiles"], "reshape"))
    given = helper.make_tensor_value_info("context", TensorProto.FLOAT, ["batch", "length" if any_length else WIDTH])
    found = helper.make_tensor_value_info("quantiles", TensorProto.FLOAT, ["batch", LEVELS, STEPS])
    graph = helper.make_graph(nodes, "chain", [given], [found], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
