"""Products of graphs in int8: which are found, how they are rounded, and that rows stay by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.graphs import WIDTH, chain, random_weight
from tsprune.exports._integers import MOST_CODE, Grid, codes_of, in_int8
from tsprune.exports._products import EMBEDS, FORECASTS, ROUTES, Graph, digest
from tsprune.exports._ranges import FEWEST_TOKENS, observe
from tsprune.exports.onnx import outputs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Floats = NDArray[np.float32]


def rows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def run(model: Any, context: Floats) -> Floats:
    found: Floats = outputs(model.SerializeToString(), ["quantiles"])(context)[0].reshape(len(context), -1)
    return found


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e4, 1e4, width=32), high=st.floats(-1e4, 1e4, width=32),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=20),
)  # fmt: skip
def test_a_grid_holds_zero_and_is_half_a_step_off_at_most(low: float, high: float, shares: list[float]) -> None:
    low, high = sorted((low, high))
    grid = Grid.of(low, high)
    assert 0 <= grid.zero <= 255 and grid.rounded(np.zeros(1)) == 0
    values = np.array([low + share * (high - low) for share in shares])
    # The zero is rounded too, by which the ends may be half a step outside.
    assert np.abs(grid.rounded(values) - values).max() <= (1.01 * grid.scale if high > 0 > low else 0.51 * grid.scale)


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_are_nearest_and_small_enough_to_be_added_in_pairs(per_channel: bool) -> None:
    weight = random_weight(0) * np.linspace(0.01, 30, WIDTH, dtype=np.float32)
    weight[:, 3] = 0
    codes, scale = codes_of(weight, per_channel)
    assert codes.dtype == np.int8 and np.abs(codes).max() == MOST_CODE
    assert 2 * 255 * MOST_CODE < 2**15
    assert (np.abs(codes * scale - weight) <= 0.501 * scale).all()
    assert len(np.unique(scale)) == (WIDTH if per_channel else 1)


def test_products_are_found_in_every_way_that_a_graph_writes_them() -> None:
    weights = [random_weight(seed) for seed in range(5)]
    made = chain(weights, ways=("MatMul", "Gemm", "turned", "MatMul", "MatMul"))
    graph = Graph(made, {digest(weights[1]): "blocks.1.weight"})
    assert [len(one.nodes) for one in graph.products] == [1] * 5
    for one, weight in zip(graph.products, weights, strict=True):
        np.testing.assert_array_equal(one.weight, weight)
    assert [one.fixed for one in graph.products] == [EMBEDS, "", "", "", FORECASTS]
    assert graph.products[1].name == "blocks.1.weight"
    assert graph.products[2].name == "product_2"


def test_equal_weights_are_one_product_and_thin_ones_none() -> None:
    shared = random_weight(1)
    graph = Graph(chain([random_weight(0), shared, shared, random_weight(2)]))
    assert [one.nodes for one in graph.products] == [["product_0"], ["product_1", "product_2"], ["product_3"]]
    narrow = Graph(chain([random_weight(0), random_weight(1)[:, :8], random_weight(2)[:8], random_weight(3)]))
    assert [one.nodes for one in narrow.products] == [["product_0"], ["product_3"]]


def test_what_chooses_experts_is_known() -> None:
    made = chain([random_weight(seed) for seed in range(4)])
    scores = onnx.helper.make_node("Softmax", ["product_1.out"], ["scores"], "softmax")
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "k"))
    best = onnx.helper.make_node("TopK", ["scores", "k"], ["best", "which"], "best")
    made.graph.node.extend([scores, best])
    assert [one.fixed for one in Graph(made).products] == [EMBEDS, ROUTES, "", FORECASTS]


def by_hand(graph: Graph, chosen: set[str], observed: Any, context: Floats) -> Floats:
    """The chain in numpy: Relu between products, a bias behind each."""
    x = context
    biases = {one.name: onnx.numpy_helper.to_array(one) for one in graph.model.graph.initializer if "bias" in one.name}
    for place, product in enumerate(graph.products):
        given_, weight = x, product.weight
        shift = np.zeros(weight.shape[1])
        if product.name in chosen:
            codes, scale = codes_of(weight)
            given_, weight = observed.grids[product.inputs[0]].rounded(x), codes * scale
            shift = observed.shifts[product.name]
        x = given_ @ weight + biases[f"bias_{place}"] + shift
        if place + 1 < len(graph.products):
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("ways", [("MatMul", "MatMul", "MatMul", "MatMul"), ("MatMul", "Gemm", "turned", "Gemm")])
def test_the_file_computes_what_it_says(ways: tuple[str, ...]) -> None:
    graph = Graph(chain([random_weight(seed) for seed in range(4)], ways=ways))
    observed = observe(graph, [rows(100)])
    chosen = {one.name for one in graph.products if not one.fixed}
    made = in_int8(graph, chosen, observed.grids, observed.shifts)
    context = rows(7, seed=5)
    np.testing.assert_allclose(run(made, context), by_hand(graph, chosen, observed, context), rtol=0, atol=2e-4)
    np.testing.assert_allclose(run(graph.model, context), by_hand(graph, set(), observed, context), rtol=0, atol=1e-4)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2
    # Their biases went into the products, and the float32 weights are gone.
    assert kinds.count("Add") == sum(ways[place] != "Gemm" for place in (0, 3))
    assert made.ByteSize() < graph.model.ByteSize() - 2 * 2 * graph.products[1].weight.size
    assert graph.model.graph.node[0].op_type == ways[0]


def test_one_row_does_not_hang_on_the_others() -> None:
    graph = Graph(chain([random_weight(seed) for seed in range(3)]))
    observed = observe(graph, [rows(100)])
    made = in_int8(graph, ["product_1"], observed.grids)
    context = rows(2, seed=7)
    context[1] *= 1000
    np.testing.assert_allclose(run(made, context)[:1], run(made, context[:1]), rtol=0, atol=1e-6)


def test_a_scale_for_each_output_beats_one_for_all_where_one_output_is_wide() -> None:
    weights = [random_weight(seed) for seed in range(3)]
    weights[1][:, 5] *= 300
    weights[2][5] /= 300
    graph = Graph(chain(weights))
    context = rows(100)
    observed = observe(graph, [context])
    wanted = run(graph.model, context)
    off = {
        each: float(
            np.abs(run(in_int8(graph, ["product_1"], observed.grids, per_channel=each), context) - wanted).mean()
        )
        for each in (True, False)
    }
    assert off[True] < 0.1 * off[False]


def test_the_mean_output_is_restored() -> None:
    graph = Graph(chain([random_weight(seed) for seed in range(2)]))
    context = rows(200) + 2
    observed = observe(graph, [context])
    wanted = run(graph.model, context).mean(0)
    moved = [
        np.abs(run(in_int8(graph, ["product_1"], observed.grids, shifts), context).mean(0) - wanted).max()
        for shifts in (None, observed.shifts)
    ]
    assert moved[1] < 1e-4 and 20 * moved[1] < moved[0]


def test_ranges_hold_all_that_was_seen_and_few_tokens_make_none() -> None:
    graph = Graph(chain([random_weight(seed) for seed in range(3)]))
    wide = rows(3, seed=2) * 50
    observed = observe(graph, [rows(FEWEST_TOKENS)], [wide])
    grid = observed.grids["context"]
    assert grid.scale * 255 == pytest.approx(float(wide.max() - wide.min()), rel=0.01)
    assert observed.work["product_1"] == FEWEST_TOKENS * WIDTH * WIDTH
    assert observe(graph, [rows(FEWEST_TOKENS - 1)], [wide]).grids == {}
