"""Matrix products of an ONNX graph whose one factor is a weight: which there are, and which must stay as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NARROW, SMALL = 16, 256
"""Fewer inputs or outputs, or fewer weights, are not worth the rounding of what comes in."""
EMBEDS = "reads raw values, which have no bounds"
FORECASTS = "gives the forecast"
ROUTES = "chooses experts"
FLOAT = 1
"""The number of float32 among the types of ONNX."""


@dataclass
class Product:
    """One weight and the nodes that multiply by it.

    Attributes:
        name: the tensor's public name, else that of its first node.
        weight: `[inputs, outputs]`.
        nodes: names of the nodes.
        inputs: for each node the name of what comes in.
        fixed: why it stays in float32 whatever its error is; "" where it need not.
    """

    name: str
    weight: Floats
    nodes: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    fixed: str = ""


class Graph:
    """A float32 graph and its products.

    Args:
        model: an `onnx.ModelProto` with its weights inside; left as it is.
        names: public names by `digest` of the weight as `[inputs, outputs]`.

    Attributes:
        products: in the order of the graph; nodes that multiply by equal weights, such as those of several passes, are
            one.
    """

    def __init__(self, model: Any, names: Mapping[str, str] | None = None) -> None:
        self.model = model
        self._tensors = {one.name: one for one in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output}
        self.products = self._found(names or {})

    def _found(self, names: Mapping[str, str]) -> list[Product]:
        found: dict[str, Product] = {}
        every: set[str] = set()
        for node in self.model.graph.node:
            weight = self._weight(node)
            if weight is None:
                continue
            every.add(node.name)
            if min(weight.shape) < NARROW or weight.size < SMALL:
                continue
            key = digest(weight)
            product = found.setdefault(key, Product(names.get(key, node.name), weight))
            product.nodes.append(node.name)
            product.inputs.append(node.input[0])
        before, behind = self._alone(every, forwards=True), self._alone(every, forwards=False)
        routers = self._routers(every)
        for product in found.values():
            own = set(product.nodes)
            product.fixed = EMBEDS if own & before else FORECASTS if own & behind else ROUTES if own & routers else ""
        return list(found.values())

    def _weight(self, node: Any) -> Floats | None:
        """The weight of a product, None where the node is no product by a weight."""
        from onnx import numpy_helper

        if node.op_type not in ("MatMul", "Gemm"):
            return None
        given = {one.name: one.f if one.name in ("alpha", "beta") else one.i for one in node.attribute}
        if given.get("transA") or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            return None
        turned = bool(given.get("transB"))
        name = node.input[1]
        while name not in self._tensors:
            maker = self._maker.get(name)
            if maker is None or maker.op_type not in ("Transpose", "Identity"):
                return None
            turned ^= maker.op_type == "Transpose"
            name = maker.input[0]
        tensor = self._tensors[name]
        if tensor.data_type != FLOAT or len(tensor.dims) != 2:
            return None
        array = numpy_helper.to_array(tensor)
        return np.ascontiguousarray(array.T if turned else array)

    def _alone(self, products: Collection[str], *, forwards: bool) -> set[str]:
        """Names of the nodes that no other product comes before, or behind."""
        reached: set[str] = set()
        found: set[str] = set()
        nodes = self.model.graph.node
        for node in nodes if forwards else reversed(nodes):
            near, far = (node.input, node.output) if forwards else (node.output, node.input)
            beyond = any(name in reached for name in near)
            if node.name in products and not beyond:
                found.add(node.name)
            if beyond or node.name in products:
                reached.update(far)
        return found

    def _routers(self, products: Collection[str]) -> set[str]:
        """Names of the nodes whose largest outputs say which expert a token is sent to."""
        asked = [node.input[0] for node in self.model.graph.node if node.op_type == "TopK"]
        seen: set[str] = set()
        found: set[str] = set()
        while asked:
            maker = self._maker.get(asked.pop())
            if maker is None or maker.name in seen:
                continue
            seen.add(maker.name)
            if maker.name in products:
                found.add(maker.name)
            else:
                asked.extend(maker.input)
        return found

    @property
    def inputs(self) -> list[str]:
        """What comes into the products, each once."""
        return list(dict.fromkeys(name for product in self.products for name in product.inputs))

    def watched(self) -> Any:
        """The graph with what comes into its products among its outputs."""
        from onnx import helper

        model = copied(self.model)
        model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in self.inputs)
        return model


def digest(array: NDArray[Any]) -> str:
    """What two arrays of the same shape and values have in common."""
    values = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def copied(model: Any) -> Any:
    """A graph of its own."""
    made = type(model)()
    made.CopyFrom(model)
    return made
