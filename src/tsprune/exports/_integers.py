"""The same ONNX graph with some of its products in int8."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.exports._products import Floats, Graph, Product, copied

MOST_CODE = 64
"""Largest code of a weight. Two products of codes up to 255 and 64 fit into 16 bits, so that processors without
instructions of their own for int8, which add pairs in 16 bits, cut nothing off."""
DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Grid:
    """Codes 0 to 255 of what comes into a product: value = scale * (code - zero)."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Grid:
        """The grid from low to high, 0 among its values."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255))
        return cls(scale, int(np.clip(round(-low / scale), 0, 255))) if scale > 0 else cls(1.0, 0)

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as they come out of the grid; what lies beyond becomes its end."""
        codes = np.clip(np.rint(values / np.float32(self.scale)) + self.zero, 0, 255)
        found: NDArray[Any] = np.float32(self.scale) * (codes - self.zero)
        return found


def codes_of(weight: Floats, per_channel: bool = True) -> tuple[NDArray[np.int8], Floats]:
    """Codes `[inputs, outputs]` to the nearest and their scales `[outputs]`; one for all if not per channel."""
    largest = np.abs(weight).max(0) if per_channel else np.full(weight.shape[1], np.abs(weight).max())
    scale = np.where(largest > 0, largest / MOST_CODE, 1.0).astype(np.float32)
    return np.clip(np.rint(weight / scale), -MOST_CODE, MOST_CODE).astype(np.int8), scale


def in_int8(
    graph: Graph,
    chosen: Collection[str],
    grids: Mapping[str, Grid],
    shifts: Mapping[str, Floats] | None = None,
    *,
    per_channel: bool = True,
) -> Any:
    """The graph with some of its products in int8.

    Grids are fixed, so a row's forecast does not hang on the rows beside it. Biases become part of the product.

    Args:
        graph: left as it is.
        chosen: names of products.
        grids: by name of what comes into them.
        shifts: by name of the product, what is added to its outputs `[outputs]`.
        per_channel: one scale for each output of a weight; one for all where false.
    """
    from onnx import helper

    made = _Writer(graph, {one.name: one for one in graph.products if one.name in chosen})
    for node in graph.model.graph.node:
        product = made.by_node.get(node.name)
        if product is not None:
            made.product(node, product, grids[node.input[0]], (shifts or {}).get(product.name), per_channel)
        elif node.name not in made.merged:
            made.nodes.append(node)
    model = copied(graph.model)
    del model.graph.node[:]
    model.graph.node.extend(made.nodes)
    model.graph.initializer.extend(made.tensors.values())
    _without_unused(model.graph)
    if made.by_node and not any(one.domain == DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


class _Writer:
    """Nodes and tensors of the new graph, in order."""

    def __init__(self, graph: Graph, products: Mapping[str, Product]) -> None:
        from onnx import numpy_helper

        self.by_node = {node: product for product in products.values() for node in product.nodes}
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.merged: set[str] = set()
        self._given = {one.name: one for one in graph.model.graph.initializer}
        self._users = defaultdict(list)
        for node in graph.model.graph.node:
            for name in node.input:
                self._users[name].append(node)
        self._outputs = {one.name for one in graph.model.graph.output}
        self._to_array, self._from_array = numpy_helper.to_array, numpy_helper.from_array
        self._rounded: set[str] = set()

    def product(self, node: Any, product: Product, grid: Grid, shift: Floats | None, per_channel: bool) -> None:
        """One node in int8."""
        from onnx import helper

        x, key = node.input[0], f"int8.{product.nodes[0]}"
        codes, scale = codes_of(product.weight, per_channel)
        of_x = self._store(f"{x}.scale", np.float32(grid.scale)), self._store(f"{x}.zero", np.uint8(grid.zero))
        if x not in self._rounded:
            self._rounded.add(x)
            self.nodes.append(helper.make_node("QuantizeLinear", [x, *of_x], [f"{x}.codes"], f"{x}.codes"))
        weight = self._store(f"{key}.codes", codes), self._store(f"{key}.scale", scale)
        zero = self._store(f"{key}.zero", np.zeros(len(scale), np.int8))
        bias, out = self._bias(node, len(scale))
        if shift is not None:
            bias = shift if bias is None else bias + shift
        given = [f"{x}.codes", weight[0], of_x[0], weight[1], of_x[1], zero]
        if bias is not None:
            given.append(self._store(f"int8.{node.name}.bias", bias.astype(np.float32)))
        self.nodes.append(helper.make_node("MatMulIntegerToFloat", given, [out], node.name, domain=DOMAIN))

    def _bias(self, node: Any, outputs: int) -> tuple[Floats | None, str]:
        """What is added to the outputs next, and the name of the sum; the node that adds it is merged."""
        out = node.output[0]
        if len(node.input) > 2 and node.input[2] in self._given:
            return np.broadcast_to(self._to_array(self._given[node.input[2]]), (outputs,)).copy(), out
        users = self._users[out]
        if len(users) != 1 or users[0].op_type != "Add" or out in self._outputs:
            return None, out
        (other,) = [name for name in users[0].input if name != out] or [""]
        tensor = self._given.get(other)
        if tensor is None or list(tensor.dims) != [outputs]:
            return None, out
        self.merged.add(users[0].name)
        return self._to_array(tensor).copy(), users[0].output[0]

    def _store(self, name: str, array: Any) -> str:
        """The name of a tensor, stored once."""
        if name not in self.tensors:
            self.tensors[name] = self._from_array(np.asarray(array), name)
        return name


def _without_unused(graph: Any) -> None:
    """Remove nodes, tensors and shapes that nothing uses any more."""
    while True:
        used = {name for node in graph.node for name in _reads(node)} | {one.name for one in graph.output}
        stay = [node for node in graph.node if any(name in used for name in node.output)]
        if len(stay) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(stay)
    known = {name for node in graph.node for name in node.output}
    for part, names in ((graph.initializer, used), (graph.value_info, known)):
        kept = [one for one in part if one.name in names]
        del part[:]
        part.extend(kept)


def _reads(node: Any) -> list[str]:
    """Names that a node uses, also inside of the graphs that it holds."""
    inner = [one for given in node.attribute for part in (given.g, *given.graphs) for one in part.node]
    return [*node.input, *(name for one in inner for name in _reads(one))]
