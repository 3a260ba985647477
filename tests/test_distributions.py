"""Distributions: equal to closed forms, to torch's own and to integrals; quantiles that invert the cdf."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from tsprune.blocks import inversion
from tsprune.blocks.distributions import Component, LogNormal, Mixture, NegativeBinomial, Normal, StudentT
from tsprune.blocks.roots import polished_root, rising_root
from tsprune.blocks.roughcdf import negative_binomial_cdf, negative_binomial_density
from tsprune.blocks.special import betainc, log_beta_front
from tsprune.errors import TspruneError

DECILES = [level / 10 for level in range(1, 10)]
seeds = st.integers(0, 2**31)
often = settings(max_examples=40, deadline=None)
less_often = settings(max_examples=15, deadline=None)


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def parts(kind: type[Component], *shape: int, seed: int = 0) -> Component:
    """A component with random parameters, as a network would give them."""
    draw = torch.Generator().manual_seed(seed)
    raw = [2 * torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(3)]
    if kind is StudentT:
        return StudentT(2 + softplus(raw[0]), raw[1], softplus(raw[2]) + 0.01)
    if kind is NegativeBinomial:
        return NegativeBinomial(softplus(raw[0]) + 0.01, raw[1])
    return kind(raw[0], softplus(raw[1]) + 0.01)


KINDS = [StudentT, Normal, NegativeBinomial, LogNormal]


def mixture(*shape: int, seed: int = 0, kinds: list[type[Component]] = KINDS) -> Mixture:
    """One component of each kind, the normal one narrow, in units of its own."""
    draw = torch.Generator().manual_seed(seed + 1)
    components = [parts(kind, *shape, 1, seed=seed + place) for place, kind in enumerate(kinds)]
    components = [replace(part, scale=wide(1e-3)) if isinstance(part, Normal) else part for part in components]
    logits = torch.randn(*shape, len(kinds), generator=draw, dtype=torch.float64)
    loc = 10 * torch.randn(*shape, generator=draw, dtype=torch.float64)
    return Mixture(logits, components, loc, torch.rand(*shape, generator=draw, dtype=torch.float64) + 0.1)


def as_torch(part: Component) -> torch.distributions.Distribution:
    values = {key: value for key, value in vars(part).items() if value is not None}
    return getattr(torch.distributions, type(part).__name__)(**values, validate_args=False)


def binomial_tail(successes: int, trials: int, chance: Fraction) -> float:
    """Probability of at least so many successes, exactly."""
    return float(
        sum(
            math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
            for count in range(successes, trials + 1)
        )
    )


class TestIncompleteBeta:
    @often
    @given(st.floats(-2, 4), st.floats(1e-12, 1 - 1e-12))
    def test_is_a_power_when_one_parameter_is_one(self, exponent: float, x: float) -> None:
        a = wide(10**exponent)
        rising = betainc(a, wide(1.0), wide(x)).item()
        assert rising == pytest.approx(math.exp(a.item() * math.log(x)), rel=1e-11, abs=1e-290)
        falling = betainc(wide(1.0), a, wide(x)).item()
        assert falling == pytest.approx(-math.expm1(a.item() * math.log1p(-x)), rel=1e-11)

    @often
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 1023))
    def test_is_a_binomial_tail_at_whole_parameters(self, a: int, b: int, x: int) -> None:
        exact = binomial_tail(a, a + b - 1, Fraction(x, 1024))
        assert betainc(wide(a), wide(b), wide(x / 1024)).item() == pytest.approx(exact, rel=1e-11)

    @pytest.mark.parametrize(
        ("a", "b", "x", "expected"),
        [
            (0.01, 0.01, 1e-8, 0.41594931655859052698),
            (0.01, 1e4, 1e-9, 0.89633635458221955024),
            (1e4, 0.01, 0.99999, 0.018135711791061420822),
            (0.5, 0.3, 0.999, 0.90785037016123793698),
            (2.5, 0.5, 0.7, 0.20311066372005490785),
            (300, 0.5, 0.9, 1.9018190786819780833e-15),
            (0.7, 1500, 0.001, 0.86637410407338625238),
            (1500, 12, 0.98, 0.000048729464204947256429),
            (1e4, 1e4, 0.49, 0.0023370593301101495056),
            (1e4, 1e4, 0.501, 0.61135004785746245043),
            (9e3, 4e3, 0.7, 0.97172808363236021374),
            (8e3, 1e4, 0.4, 4.9713023036027771842e-34),
        ],
    )
    def test_equals_values_computed_with_fifty_digits(self, a: float, b: float, x: float, expected: float) -> None:
        assert betainc(wide(a), wide(b), wide(x)).item() == pytest.approx(expected, rel=1e-11)

    def test_uses_a_complement_that_the_difference_from_one_cannot_hold(self) -> None:
        value = betainc(wide(5.0), wide(0.01), wide(1.0), complement=wide(1e-20)).item()
        assert value == pytest.approx(0.35580543306860694232, rel=1e-11)

    def test_ends_are_zero_and_one_and_what_is_out_of_range_is_nan(self) -> None:
        a, b, x = wide(2, 2, 2, 2, -1, 1, math.nan), wide(3, 3, 3, 3, 1, 0, 1), wide(0, 1, -0.1, 1.1, 0.5, 0.5, 0.5)
        assert betainc(a, b, x).tolist() == pytest.approx([0, 1, *[math.nan] * 5], nan_ok=True)

    def test_broadcasts_and_keeps_the_dtype(self) -> None:
        value = betainc(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0, 4.0]), torch.tensor(0.25))
        assert value.shape == (2, 3)
        assert value.dtype == torch.float32
        assert value[1, 0].item() == 0.0625

    def test_slow_neighbours_do_not_change_a_value(self) -> None:
        a, b, x = wide(0.3, 1e5, 7.0, 30.0), wide(2.0, 1e5, 1e4, 0.5), wide(0.1, 0.5, 7e-4, 0.9)
        alone = torch.cat([betainc(*(part[place : place + 1] for part in (a, b, x))) for place in range(4)])
        torch.testing.assert_close(betainc(a, b, x), alone, rtol=1e-14, atol=0)

    def test_takes_a_front_computed_before(self) -> None:
        a, b, x = wide(3.5, 90.0), wide(0.5, 4.0), wide(0.2, 0.97)
        assert torch.equal(betainc(a, b, x, front=log_beta_front(a, b)), betainc(a, b, x))

    def test_says_so_when_it_cannot_converge(self) -> None:
        with pytest.raises(TspruneError, match=r"did not converge.*a = 1e\+12"):
            betainc(wide(1e12), wide(1e12), wide(0.5))


class TestRisingRoot:
    @pytest.mark.parametrize(
        ("function", "lower", "upper", "root", "most"),
        [
            (lambda x: x**3 - 2, 0.0, 10.0, 2 ** (1 / 3), 12),
            (lambda x: torch.tanh((x - 3.3) * 1e3), -100.0, 100.0, 3.3, 30),
            (lambda x: torch.where(x < 1.7, -0.3, 0.7), -7.0, 100.0, 1.7, 110),
            (lambda x: torch.where(x < 1e-200, -0.3, 0.7), -1e300, 1e300, 1e-200, 110),
            (lambda x: torch.where(x < -4e250, -1e-9, 1.0), -1e300, 1e300, -4e250, 110),
            (lambda x: torch.sign(x - 5) * (x - 5).abs() ** 0.05, -1e3, 1e4, 5.0, 166),
        ],
    )
    def test_finds_the_root_within_few_evaluations(
        self, function: Callable[[Tensor], Tensor], lower: float, upper: float, root: float, most: int
    ) -> None:
        calls = []

        def counted(x: Tensor, index: Tensor) -> Tensor:
            calls.append(index)
            return function(x).double()

        found = rising_root(counted, wide(lower), wide(upper), wide(-1.0), wide(1.0)).item()
        assert found == pytest.approx(root, rel=1e-14, abs=0)
        assert len(calls) <= most

    def test_what_has_converged_is_not_evaluated_again(self) -> None:
        seen = []

        def function(x: Tensor, index: Tensor) -> Tensor:
            seen.extend(index.tolist())
            return torch.where(index == 0, x - 0.25, torch.where(x < math.pi, -1.0, 1.0))

        roots = rising_root(function, wide(0, 0), wide(1, 9), wide(-0.25, -1), wide(0.75, 1))
        assert roots.tolist() == pytest.approx([0.25, math.pi], rel=1e-14)
        assert seen.count(0) <= 3 < 40 < seen.count(1)

    def test_nan_stays_nan(self) -> None:
        nothing = rising_root(lambda x, index: x * math.nan, wide(0.0), wide(1.0), wide(-1.0), wide(1.0))
        no_end = rising_root(lambda x, index: x, wide(math.nan), wide(1.0), wide(-1.0), wide(1.0))
        assert nothing.isnan().all()
        assert no_end.isnan().all()


class TestPolishedRoot:
    @staticmethod
    def found(slope: Callable[[Tensor], Tensor], start: float = 1.2) -> tuple[float, int]:
        calls = []

        def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(index)
            return x**3 - 2, slope(x)

        root = polished_root(function, *(wide(value) for value in (start, 0.0, 10.0, -2.0, 998.0, 1e-14)))
        return root.item(), len(calls)

    @pytest.mark.parametrize(
        ("factor", "most"),
        [(1.0, 4), (1.3, 5), (0.7, 5), (-1.0, 30), (0.0, 30), (1e30, 30), (math.inf, 30), (math.nan, 30)],
    )
    def test_finds_the_root_whatever_the_slopes_and_soon_with_good_ones(self, factor: float, most: int) -> None:
        root, calls = self.found(lambda x: factor * 3 * x**2)
        assert root == pytest.approx(2 ** (1 / 3), rel=1e-14)
        assert calls <= most

    @pytest.mark.parametrize("start", [math.nan, -5.0, 10.0, 1e-9])
    def test_a_useless_start_does_no_harm(self, start: float) -> None:
        assert self.found(lambda x: 3 * x**2, start)[0] == pytest.approx(2 ** (1 / 3), rel=1e-14)

    def test_ends_at_a_jump_and_leaves_nan_as_it_is(self) -> None:
        def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            jump = torch.where(x < math.pi, -1.0, 1.0).double()
            return torch.where(index == 0, jump, x * math.nan), torch.ones_like(x)

        roots = polished_root(function, *(wide(value, value) for value in (3.0, 1.0, 9.0, -1.0, 1.0, 1e-14)))
        assert roots[0].item() == pytest.approx(math.pi, rel=1e-14)
        assert roots[1].isnan()


class TestComponents:
    @often
    @given(st.sampled_from(KINDS), seeds, st.integers(0, 200))
    def test_log_prob_and_mean_equal_those_of_torch(self, kind: type[Component], seed: int, value: int) -> None:
        part = parts(kind, 5, seed=seed)
        x = wide(value) if kind is NegativeBinomial else wide(value / 10 + 1e-3)
        torch.testing.assert_close(part.log_prob(x), as_torch(part).log_prob(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part.mean, as_torch(part).mean, rtol=1e-12, atol=0)

    @often
    @given(st.sampled_from([StudentT, Normal, LogNormal]), seeds)
    def test_density_integrates_to_the_cdf(self, kind: type[Component], seed: int) -> None:
        part = parts(kind, 1, seed=seed)
        # Gauss-Legendre on stretches between quantiles: where these lie does not matter to what the integral must be.
        edges = Mixture(torch.zeros(1).double(), [part]).quantile(np.linspace(0.01, 0.99, 200).tolist())[:, None]
        nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(30))
        x = (edges[1:] + edges[:-1]) / 2 + edges.diff(dim=0) / 2 * nodes
        areas = (part.log_prob(x[..., None])[..., 0].exp() * weights).sum(1) * edges.diff(dim=0)[:, 0] / 2
        torch.testing.assert_close(areas, part.cdf(edges)[:, 0].diff(), rtol=1e-6, atol=1e-12)
        assert areas.sum().item() == pytest.approx(0.98, rel=1e-7)

    @often
    @given(seeds)
    def test_negative_binomial_adds_up_to_its_cdf_at_whole_numbers(self, seed: int) -> None:
        part = parts(NegativeBinomial, 3, seed=seed)
        counts = torch.arange(400, dtype=torch.float64)[:, None]
        torch.testing.assert_close(part.log_prob(counts).exp().cumsum(0), part.cdf(counts), rtol=1e-10, atol=1e-12)
        assert part.cdf(wide(1e7)).tolist() == pytest.approx([1.0] * 3)

    @often
    @given(st.floats(-50, 50))
    def test_cdf_equals_closed_forms(self, x: float) -> None:
        two, cauchy = (StudentT(wide(df), wide(1.0), wide(2.0)) for df in (2.0, 1.0))
        z = (x - 1) / 2
        half = z / (2 * math.sqrt(2 + z * z))
        lower_tail = 1 / (2 * (2 + z * z) * (0.5 - half)) if z < 0 else 0.5 + half
        assert two.cdf(wide(x)).item() == pytest.approx(lower_tail, rel=1e-11)
        assert cauchy.cdf(wide(x)).item() == pytest.approx(0.5 + math.atan(z) / math.pi, abs=1e-14)
        assert Normal(wide(1.0), wide(2.0)).cdf(wide(x)).item() == pytest.approx(
            0.5 * math.erfc(-z / math.sqrt(2)), rel=1e-12, abs=1e-300
        )
        assert LogNormal(wide(1.0), wide(2.0)).cdf(wide(math.exp(x))).item() == pytest.approx(
            0.5 * math.erfc(-z / math.sqrt(2)), rel=1e-9, abs=1e-300
        )
        geometric = NegativeBinomial(wide(1.0), wide(0.4)).cdf(wide(x)).item()
        share = 1 / (1 + math.exp(-0.4))
        assert geometric == pytest.approx(0 if x < 0 else -math.expm1((x + 1) * math.log(share)), rel=1e-12)

    @often
    @given(seeds, st.floats(-4, 4), st.floats(-3, 4))
    def test_rough_negative_binomial_is_close(self, seed: int, logits: float, size: float) -> None:
        part = NegativeBinomial(wide(10**size), wide(logits))
        x = 4 * part.mean * torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rough = negative_binomial_cdf(x, part.total_count, part.logits)
        torch.testing.assert_close(rough, part.cdf(x), rtol=0, atol=1e-3)
        density = negative_binomial_density(x, part.total_count, part.logits)
        torch.testing.assert_close(density, part.log_prob(x).exp(), rtol=1e-3, atol=1e-12)

    @often
    @given(st.sampled_from(KINDS), seeds)
    def test_slope_is_about_that_of_the_cdf(self, kind: type[Component], seed: int) -> None:
        part = parts(kind, 1, seed=seed).prepared()
        x = wide(3.3) if kind is NegativeBinomial else wide(0.4, 1.3)
        step = 1e-5 * getattr(part, "scale", wide(1.0)).clamp(max=1.0)
        rise = (part.cumulated(x + step) - part.cumulated(x - step)) / (2 * step)
        share = 0.5 if kind is NegativeBinomial else 1e-5
        torch.testing.assert_close(part.slope(x), rise, rtol=share, atol=1e-7)

    def test_student_t_with_many_degrees_of_freedom_is_normal(self) -> None:
        x = torch.linspace(-8, 8, 65, dtype=torch.float64)
        many = StudentT(wide(1e14), wide(0.0), wide(1.0))
        torch.testing.assert_close(many.cdf(x), Normal(wide(0.0), wide(1.0)).cdf(x), rtol=1e-10, atol=0)

    @often
    @given(st.sampled_from(KINDS), seeds)
    def test_cdf_rises_from_zero_to_one(self, kind: type[Component], seed: int) -> None:
        part = parts(kind, 1, seed=seed)
        points = torch.sinh(torch.linspace(-40, 40, 401, dtype=torch.float64))
        cdf = part.cdf(points)
        assert (cdf.diff() > -1e-14).all()
        assert cdf[0].item() == pytest.approx(0, abs=1e-9)
        assert cdf[-1].item() == pytest.approx(1, abs=1e-9)

    def test_unsupported_values_have_no_density_and_no_probability_below(self) -> None:
        counts, positive = NegativeBinomial(wide(2.0), wide(0.3)), LogNormal(wide(0.0), wide(1.0))
        assert counts.log_prob(wide(-0.5, 0.0)).isinf().tolist() == [True, False]
        assert positive.log_prob(wide(-0.5, 0.0, 0.1)).isinf().tolist() == [True, True, False]
        assert counts.cdf(wide(-1e-9)).item() == 0
        assert positive.cdf(wide(-1.0, 0.0)).tolist() == [0, 0]

    def test_mean_of_student_t_does_not_exist_up_to_one_degree_of_freedom(self) -> None:
        part = StudentT(wide(1.0, 1.1), wide(3.0, 3.0), wide(1.0, 1.0))
        assert part.mean.tolist() == pytest.approx([math.nan, 3.0], nan_ok=True)


class TestMixtureDensity:
    def test_parts_that_do_not_support_a_value_drop_out_with_their_weights(self) -> None:
        base = mixture(6, seed=3).base
        shares = base.weights_logits.log_softmax(-1)
        terms = [part.log_prob(wide(-0.7))[:, 0] for part in base.components[:2]]
        expected = torch.logaddexp(shares[:, 0] + terms[0], shares[:, 1] + terms[1])
        torch.testing.assert_close(base.log_prob(wide(-0.7)), expected)

    def test_equals_the_weighted_sum_of_densities_and_of_means(self) -> None:
        whole = mixture(7, seed=5)
        shares, x = whole.weights_logits.softmax(-1), wide(3.0)
        density = sum(shares[:, place] * part.log_prob(x)[:, 0].exp() for place, part in enumerate(whole.components))
        torch.testing.assert_close(whole.base.log_prob(x), torch.as_tensor(density).log())
        mean = sum(shares[:, place] * part.mean[:, 0] for place, part in enumerate(whole.components))
        torch.testing.assert_close(whole.mean, whole.loc + whole.scale * mean)

    def test_own_units_move_and_stretch_the_base(self) -> None:
        whole = mixture(7, seed=6)
        y = whole.loc + whole.scale * 1.3
        torch.testing.assert_close(whole.log_prob(y), whole.base.log_prob(wide(1.3)) - whole.scale.log())
        torch.testing.assert_close(whole.cdf(y), whole.base.cdf(wide(1.3).expand(7)))
        torch.testing.assert_close(whole.quantile([0.3]), whole.loc + whole.scale * whole.base.quantile([0.3]))

    def test_one_component_with_an_axis_equals_several_without(self) -> None:
        many = parts(StudentT, 4, 5, seed=8)
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        apart = [many.map(lambda value, place=place: value[:, place : place + 1]) for place in range(5)]
        one, several = Mixture(logits, [many]), Mixture(logits, apart)
        y = torch.linspace(-3, 3, 4, dtype=torch.float64)
        for name in ("log_prob", "cdf"):
            torch.testing.assert_close(getattr(one, name)(y), getattr(several, name)(y), rtol=1e-13, atol=0)
        torch.testing.assert_close(one.mean, several.mean)
        torch.testing.assert_close(one.quantile(DECILES), several.quantile(DECILES), rtol=1e-12, atol=1e-14)

    @often
    @given(seeds, st.floats(-1e6, 1e6) | st.sampled_from([0.0, -1e-30, 1e-30]), st.booleans())
    def test_gradients_are_finite_everywhere(self, seed: int, x: float, single: bool) -> None:
        whole = mixture(3, seed=seed)
        dtype = torch.float32 if single else torch.float64
        leaves = []

        def leaf(value: Tensor) -> Tensor:
            leaves.append(value.to(dtype).clone().requires_grad_())
            return leaves[-1]

        base = Mixture(leaf(whole.weights_logits), [part.map(leaf) for part in whole.components])
        density = base.log_prob(leaf(wide(x, x, x)))
        density.sum().backward()
        assert density.isfinite().all()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in leaves)

    def test_gradients_equal_differences(self) -> None:
        whole = mixture(2, seed=11)
        values = [whole.weights_logits, whole.loc, whole.scale]
        values += [value for part in whole.components for value in vars(part).values() if value is not None]

        def log_prob(*given: Tensor) -> Tensor:
            rest = iter(given[4:])
            components = [part.map(lambda _: next(rest)) for part in whole.components]
            return Mixture(given[1], components, given[2], given[3]).log_prob(given[0])

        y = whole.loc + whole.scale * wide(0.8, -0.4)
        torch.autograd.gradcheck(log_prob, [value.clone().requires_grad_() for value in (y, *values)])

    def test_a_value_that_nothing_supports_is_impossible_and_pulls_at_nothing(self) -> None:
        logits, y = wide(0.0, 0.0).requires_grad_(), wide(-1.0).requires_grad_()
        whole = Mixture(logits, [parts(NegativeBinomial, 1), parts(LogNormal, 1)])
        density = whole.log_prob(y)
        density.sum().backward()
        assert density.tolist() == [-math.inf]
        assert logits.grad is not None and logits.grad.tolist() == [0, 0]
        assert y.grad is not None and y.grad.tolist() == [0]
        assert whole.log_prob(wide(math.nan)).isnan().all()

    def test_half_precision_is_computed_in_single(self) -> None:
        half = mixture(5, seed=2).base
        half = Mixture(half.weights_logits.bfloat16(), [part.map(Tensor.bfloat16) for part in half.components])
        single = Mixture(half.weights_logits.float(), [part.map(Tensor.float) for part in half.components])
        y = torch.full((5,), 1.5)
        assert torch.equal(half.log_prob(y.bfloat16()), single.log_prob(y))
        assert torch.equal(half.mean, single.mean)
        assert torch.equal(half.quantile(DECILES), single.quantile(DECILES).bfloat16())

    def test_components_that_do_not_match_the_weights_are_refused(self) -> None:
        with pytest.raises(TspruneError, match=r"widths \[2, 1\] do not match 4 mixture weights"):
            Mixture(torch.zeros(3, 4), [parts(StudentT, 3, 2), parts(Normal, 3, 1)])


class TestQuantiles:
    @less_often
    @given(seeds, st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=6))
    def test_quantile_inverts_the_cdf(self, seed: int, levels: list[float]) -> None:
        base = mixture(4, seed=seed).base
        quantiles = base.quantile(levels)
        reached = torch.stack([base.cdf(row) for row in quantiles])
        before = torch.stack([base.cdf(row - 1e-9 * row.abs() - 1e-12) for row in quantiles])
        wanted = wide(*levels)[:, None]
        assert (reached >= wanted - 1e-13).all()
        assert (before <= wanted + 1e-13).all()

    @less_often
    @given(seeds)
    def test_smooth_mixtures_meet_the_level_exactly(self, seed: int) -> None:
        whole = mixture(4, seed=seed, kinds=[StudentT, Normal, LogNormal])
        for level, row in zip(DECILES, whole.base.quantile(DECILES), strict=True):
            torch.testing.assert_close(
                whole.base.cdf(row), torch.full((4,), level, dtype=torch.float64), rtol=0, atol=1e-12
            )

    @less_often
    @given(seeds)
    def test_quantiles_never_cross(self, seed: int) -> None:
        levels = np.linspace(0.001, 0.999, 40).tolist()
        assert (mixture(3, seed=seed).quantile(levels).float().diff(dim=0) >= 0).all()

    @less_often
    @given(seeds, st.integers(0, 6), st.integers(0, 8))
    def test_a_quantile_does_not_depend_on_batch_or_other_levels(self, seed: int, place: int, level: int) -> None:
        whole = mixture(7, seed=seed)
        parameters = [part.map(lambda value: value.expand(7, 1)[place : place + 1]) for part in whole.components]
        logits, loc, scale = (value[place : place + 1] for value in (whole.weights_logits, whole.loc, whole.scale))
        alone = Mixture(logits, parameters, loc, scale).quantile([DECILES[level]])
        torch.testing.assert_close(whole.quantile(DECILES)[level, place], alone[0, 0], rtol=1e-12, atol=1e-13)

    @less_often
    @given(seeds, st.floats(0.001, 0.999))
    def test_negative_binomial_quantile_rounds_up_to_the_discrete_one(self, seed: int, level: float) -> None:
        part = parts(NegativeBinomial, 1, seed=seed)
        discrete = (part.log_prob(torch.arange(10_000.0).double()).exp().cumsum(0) < level - 1e-12).sum()
        assert math.ceil(Mixture(torch.zeros(1), [part]).quantile([level]).item() - 1e-4) == discrete

    def test_where_the_cdf_jumps_the_quantile_is_the_place_of_the_jump(self) -> None:
        whole = Mixture(wide(0.0, 0.0), [Normal(wide(0.0), wide(1.0)), NegativeBinomial(wide(0.2), wide(-2.0))])
        bottom, top = 0.25, whole.cdf(wide(0.0)).item()
        inside = np.linspace(bottom + 1e-9, top - 1e-9, 7).tolist()
        assert whole.quantile(inside).tolist() == [0.0] * 7
        assert whole.quantile([bottom - 1e-3]).item() < 0 < whole.quantile([top + 1e-3]).item()

    def test_quantiles_of_lone_components_equal_closed_forms(self) -> None:
        levels = wide(1e-6, 0.1, 0.5, 0.77, 1 - 1e-6)
        normal = torch.distributions.Normal(wide(0.0), wide(1.0)).icdf(levels)
        odds = 2 * levels - 1
        expected = {
            StudentT(wide(2.0), wide(1.0), wide(3.0)): 1 + 3 * odds * (2 / (1 - odds**2)).sqrt(),
            StudentT(wide(1.0), wide(1.0), wide(3.0)): 1 + 3 * torch.tan(math.pi * odds / 2),
            Normal(wide(1.0), wide(3.0)): 1 + 3 * normal,
            LogNormal(wide(1.0), wide(3.0)): (1 + 3 * normal).exp(),
            NegativeBinomial(wide(1.0), wide(2.0)): (torch.log1p(-levels) / math.log(0.8807970779778823) - 1).clamp(0),
        }
        for part, values in expected.items():
            found = Mixture(torch.zeros(1).double(), [part]).quantile(levels.tolist())
            torch.testing.assert_close(found, values, rtol=1e-8, atol=1e-12)

    @pytest.mark.parametrize(
        "far",
        [
            LogNormal(wide(600.0), wide(5.0)),
            LogNormal(wide(-600.0), wide(5.0)),
            StudentT(wide(0.05), wide(3.0), wide(2.0)),
            NegativeBinomial(wide(30.0), wide(300.0)),
        ],
    )
    def test_components_many_orders_apart_are_bracketed(self, far: Component) -> None:
        whole = Mixture(wide(0.0, 0.0), [Normal(wide(0.0), wide(1.0)), far])
        for level in (1e-3, 0.1, 0.3, 0.8, 0.9, 0.999):
            assert whole.cdf(whole.quantile([level])).item() == pytest.approx(level, abs=1e-9)

    def test_few_evaluations_of_the_exact_cdf_are_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        exact = inversion.Rows.cdf
        monkeypatch.setattr(inversion.Rows, "cdf", lambda rows, x: (sizes.append(len(x)), exact(rows, x))[1])
        mixture(20, 5, seed=4).quantile(DECILES)
        # Four landmarks of each of 100 rows, and three or four steps for each of their 9 quantiles.
        assert sum(sizes) <= 100 * (4 + 9 * 4)
        assert len(sizes) < 20

    def test_empty_batches_and_single_values_have_quantiles(self) -> None:
        empty = Mixture(torch.zeros(0, 3, 2), [StudentT(*torch.ones(3, 0, 3, 2))])
        assert empty.quantile([0.1, 0.5]).shape == (2, 0, 3)
        single = Mixture(torch.zeros(2), [StudentT(*torch.ones(3, 2))])
        assert single.quantile([0.5]).tolist() == [1.0]

    def test_what_is_not_a_number_gives_no_number(self) -> None:
        whole = mixture(3, seed=1)
        broken = replace(whole, weights_logits=whole.weights_logits.clone())
        broken.weights_logits[1, 2] = math.nan
        assert broken.quantile([0.2, 0.7]).isnan().tolist() == [[False, True, False]] * 2
        bad = replace(whole.components[0], df=wide(3.0, math.nan, 3.0)[:, None])
        broken = replace(whole, components=[bad, *whole.components[1:]])
        assert broken.quantile([0.2, 0.7]).isnan().tolist() == [[False, True, False]] * 2

    @pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
    def test_levels_outside_zero_and_one_are_refused(self, level: float) -> None:
        with pytest.raises(TspruneError, match=f"quantile level {level} is not between 0 and 1"):
            mixture(2).quantile([0.5, level])


class TestSamples:
    def test_samples_are_quantiles_at_the_uniform_numbers(self) -> None:
        whole = mixture(2, 3, seed=4)
        uniforms = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.equal(whole.sample(uniforms), whole.quantile(uniforms.tolist()))
        own = uniforms.view(5, 1, 1) * wide(1.0, 0.5, 0.25)
        expected = torch.stack([whole.quantile(own[:, 0, step].tolist())[:, :, step] for step in range(3)], dim=-1)
        torch.testing.assert_close(whole.sample(own), expected, rtol=1e-12, atol=1e-13)

    def test_evenly_spread_uniforms_average_to_the_mean(self) -> None:
        whole = mixture(3, seed=9, kinds=[StudentT, Normal, StudentT])
        whole = replace(
            whole,
            components=[
                part if isinstance(part, Normal) else replace(part, df=part.df + 4) for part in whole.components
            ],
        )
        uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        torch.testing.assert_close(whole.sample(uniforms).mean(0), whole.mean, rtol=1e-3, atol=1e-3)

    def test_zero_and_one_give_finite_samples_beyond_all_others(self) -> None:
        whole = mixture(2, seed=4)
        ends = whole.sample(torch.tensor([0.0, 2**-24, 1 - 2**-24, 1.0]))
        assert ends.isfinite().all()
        assert (ends.diff(dim=0) > 0).all()

    @pytest.mark.parametrize(
        ("uniforms", "message"),
        [
            (torch.full((4, 3), 0.5), r"shape \[4, 3\] do not fit a distribution of shape \[2, 3\]"),
            (torch.full((4, 2, 2), 0.5), r"shape \[4, 2, 2\] do not fit"),
            (torch.tensor([0.5, 1.5]), r"outside \[0, 1\]"),
            (torch.tensor([0.5, math.nan]), r"outside \[0, 1\] or NaN"),
        ],
    )
    def test_other_numbers_are_refused(self, uniforms: Tensor, message: str) -> None:
        with pytest.raises(TspruneError, match=message):
            mixture(2, 3).sample(uniforms)
