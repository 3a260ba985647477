"""Small forecasters with parts that the families do not have: shared keys, causal masks, experts, uneven heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from tests.tiny import grouped_batch, tiny_batch, tiny_model, waves
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import rotary_table
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster

WIDTH, HEAD, PATCH, LENGTH, HORIZON = 12, 4, 4, 28, 3
EXPERTS = 5


class Toy(Forecaster):
    """Patches to tokens, layers of attention and a feed-forward part, a forecast from the last token."""

    family = "toy"

    def __init__(
        self, attentions: Sequence[Attention], feeds: Sequence[nn.Module], *, causal: bool = False, norms: str = "first"
    ) -> None:
        super().__init__()
        self.config, self.context_length = {}, 64
        self.causal = causal
        self.embed = nn.Linear(PATCH, WIDTH)

        def branch(name: str, inner: nn.Module) -> Branch:
            if norms == "last":
                return Branch(name, inner, nn.LayerNorm(WIDTH), WIDTH, after=True)  # type: ignore[arg-type]
            closing = RMSNorm(WIDTH) if norms == "both" else None
            return Branch(name, inner, RMSNorm(WIDTH), WIDTH, closing=closing)  # type: ignore[arg-type]

        self.block = nn.ModuleList(
            Layer([branch("attention", attention), branch("mlp", feed)])
            for attention, feed in zip(attentions, feeds, strict=True)
        )
        self.out = nn.Linear(WIDTH, HORIZON)

    def allowed(self, context: Tensor) -> Tensor:
        """bool `[B, T, T]`: patches with an observed value, in causal models none that come later."""
        seen = ~torch.isnan(context).view(len(context), -1, PATCH).all(-1)
        allowed = seen[:, None, :].expand(-1, seen.shape[1], -1)
        return allowed.tril() if self.causal else allowed

    def forward(self, context: Tensor) -> Tensor:
        """`[B, horizon]`."""
        x = self.embed(context.nan_to_num().view(len(context), -1, PATCH).to(self.dtype))
        mask = self.allowed(context)[:, None]
        positions = torch.arange(x.shape[1])
        for layer in self.block:
            attention, feed = layer.branches
            # Neighbouring pairs are turned in half of the head only, and by positions of each row.
            beside = attention.inner is not None and attention.inner.shape.neighbours
            rows = positions.expand(len(x), -1) if beside else positions
            rotary = rotary_table(rows, HEAD, neighbours=beside, turned=HEAD // 2 if beside else None)
            buckets = (positions[:, None] % 2 == positions % 2).long().expand(len(x), -1, -1) if beside else None
            turned = attention.inner is None or attention.inner.shape.members == 2
            x = feed(attention(x, mask=mask, rotary=rotary if turned else None, buckets=buckets))
        return self.out(x[:, -1])

    def row_losses(self, batch: Batch) -> Tensor:
        if batch.target is None:
            raise TspruneError("the batch has no target; a loss needs one")
        return (self(batch.context) - batch.target.to(self.dtype)).square().mean(-1)


def attention(kv_heads: int | None = None, bias: bool = False) -> Attention:
    return Attention(WIDTH, 4, HEAD, kv_heads=kv_heads, rotary=True, bias=bias)


def experts(seed: int = 0) -> MixtureOfExperts:
    """Five experts, two for each token; the last one is never among them."""
    inner = [FeedForward(WIDTH, 6, act="silu", gated=True) for _ in range(EXPERTS)]
    mixture = MixtureOfExperts(WIDTH, inner, 2, shared=FeedForward(WIDTH, 5, act="silu", gated=True))
    with torch.no_grad():
        # Of u and -u one is above 0, of v and -v too: nothing is left for a logit of 0.
        pair = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
        mixture.gate.weight.copy_(torch.stack([pair[0], -pair[0], pair[1], -pair[1], 0 * pair[0]]))
    return mixture


def toy(name: str, dtype: torch.dtype = torch.float64) -> Toy:
    """One of `TOYS`."""
    torch.manual_seed(3)
    plain = [FeedForward(WIDTH, 10, act="gelu", bias=True) for _ in range(2)]
    gated = [FeedForward(WIDTH, 10, act="silu", gated=True) for _ in range(2)]
    if name == "shared keys":
        model = Toy([attention(2, bias=True), attention(2)], gated, causal=True)
    elif name == "experts":
        model = Toy([attention(), attention()], [experts(), experts(1)])
    elif name == "norm last":
        pairs = [Attention(WIDTH, 3, HEAD, rotary=True, neighbours=True, bias=True, out_bias=False, buckets=2,
                           scaled_table=True) for _ in range(2)]  # fmt: skip
        model = Toy(pairs, plain, causal=True, norms="last")
    elif name == "normed heads":
        heads = [Attention(WIDTH, 3, HEAD, rotary=True, qk_norm=lambda: RMSNorm(HEAD), norm_last=bool(number),
                           query_scale=True) for number in range(2)]  # fmt: skip
        model = Toy(heads, gated, norms="both")
    elif name == "scaled queries":
        queries = [Attention(WIDTH, 3, HEAD, rotary=bool(number), query_scale=True, bias=True) for number in range(2)]
        model = Toy(queries, plain)
    elif name == "uneven":
        cut = {"value_dim": [0, 1, 2, 3, 4, 6, 7, 9, 10, 11], "qk_pair": [0, 1, 2, 4, 5, 6, 7]}
        shared = {"value_dim": [0, 3, 4, 5, 6], "head": [0, 2, 3]}
        model = Toy([attention().cut(cut), attention(2).cut(shared)], plain)
    else:
        model = Toy([attention(), attention()], [plain[0], gated[0]])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for parameter_name, weight in model.named_parameters():
            if parameter_name.endswith((".o.weight", ".wo.weight", ".q.weight", ".k.weight")):
                weight.mul_(2)
    return model.to(dtype).eval()


FORMS = ("norm last", "normed heads", "scaled queries")
TOYS = ("shared keys", "experts", "uneven", "both sorts of networks", *FORMS)


def toy_batch(rows: int = 5, dtype: torch.dtype = torch.float64) -> Batch:
    """Windows of which two begin with patches without a value."""
    values = waves(rows, LENGTH + HORIZON, 4).to(dtype)
    values = (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True)
    context = values[:, :LENGTH].clone()
    context[0, : 2 * PATCH] = torch.nan
    context[-1, : PATCH + 1] = torch.nan
    return Batch(context, values[:, LENGTH:])


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating point tensors in another type."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{n: v.to(dtype) if v is not None and v.is_floating_point() else v for n, v in values.items()})


def windows_of(batch: Batch) -> list[Batch]:
    """One batch for each window, in order of first appearance."""
    ids = list(range(batch.rows)) if batch.group_ids is None else batch.group_ids.tolist()
    return [rows_of(batch, [row for row, i in enumerate(ids) if i == one]) for one in dict.fromkeys(ids)]


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{n: None if v is None else v[torch.tensor(rows)] for n, v in values.items()})


CASES = ("chronos2", "chronos2 groups", "chronos_bolt", "chronos_bolt gated", *TOYS)


def case_of(case: str, dtype: torch.dtype = torch.float64) -> tuple[Forecaster, Batch]:
    """A model and windows for it: a toy or one of the families."""
    if case in TOYS:
        return toy(case, dtype), toy_batch(dtype=dtype)
    family, _, how = case.partition(" ")
    changes = {"feed_forward_proj": "gated-gelu"} if how == "gated" else {}
    batch = grouped_batch() if how == "groups" else tiny_batch()
    return tiny_model(family, 5, **changes).to(dtype), cast(batch, dtype)
