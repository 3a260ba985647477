"""A mixture of experts whose experts can be removed, down to as many as every token is sent to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.gate import Gate, Rows, mask_for
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.tracing import tracing
from tsprune.blocks.units import Block, Later, Part, UnitGroup, shell
from tsprune.errors import TspruneError

RouterWatch = Callable[[Tensor, Tensor, Tensor], None]
"""Sees logits `[B, T, E]`, shares `[B, T, E]` (their softmax) and the experts of each token `[B, T, k]`."""


class Distances(nn.Module):
    """A router without weights: the distance of a token to each expert's centre, in single precision or better.

    Fresh centres are as long as normed tokens are (Moirai-MoE).

    Args:
        width: residual width D.
        experts: number of experts E.
    """

    centroids: Tensor

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        centres = nn.init.normal_(torch.empty(experts, width))
        self.register_buffer("centroids", functional.normalize(centres, dim=-1) * width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, T, E]`."""
        wide = x if x.dtype == torch.float64 else x.float()
        # By differences: the form with a matrix product loses half of the digits where tokens are near a centre.
        flat = torch.cdist(wide.flatten(0, -2), self.centroids.to(wide), compute_mode="donot_use_mm_for_euclid_dist")
        return flat.view(*x.shape[:-1], -1)


class MixtureOfExperts(Block):
    """Each token is worked on by the `top_k` experts that a router likes best.

    A removed expert loses its row of the router: the softmax runs over those that stay, and other experts take its
    tokens. Masking does the same (its logit is minus infinity), so a masked and a slim mixture are one function. The
    gate gradient is that of the combine weights. Experts keep their names when others go.

    Args:
        width: residual width D.
        experts: feed-forward blocks E.
        top_k: experts per token k.
        normalise: whether the k combine weights are scaled to sum to 1; else they are shares of the full softmax.
        shared: an expert that works on every token, or None.
        shared_gate: whether a sigmoid of a linear map of the token weighs the shared expert.
        router: maps tokens to one logit for each expert; None means a linear map of its own.
    """

    def __init__(
        self,
        width: int,
        experts: Sequence[FeedForward],
        top_k: int,
        *,
        normalise: bool = False,
        shared: FeedForward | None = None,
        shared_gate: bool = False,
        router: Distances | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= len(experts):
            raise TspruneError(f"{top_k} experts per token do not fit {len(experts)} experts")
        self.top_k = top_k
        self.normalise = normalise
        self.gate: nn.Linear | Distances = Linear(width, len(experts), bias=False) if router is None else router
        self.experts = nn.ModuleDict({str(number): expert for number, expert in enumerate(experts)})
        self.shared_expert = shared
        self.shared_expert_gate = Linear(width, 1, bias=False) if shared is not None and shared_gate else None
        self.expert_gate = Gate(len(experts))
        self.watch: RouterWatch | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` in and out."""
        weights, chosen = self.route(x)
        flat = x.flatten(0, 1)
        out = self._traced(flat, weights.flatten(0, 1)) if tracing() else self._sent(x, flat, weights, chosen)
        out = out.view_as(x)
        if self.shared_expert is not None:
            always = self.shared_expert(x)
            if self.shared_expert_gate is not None:
                always = torch.sigmoid(self.shared_expert_gate(x)) * always
            out = out + always
        return out

    def _sent(self, x: Tensor, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """What the experts add to each token, `[B T, D]`."""
        out = torch.zeros_like(flat)
        # Tokens sorted by expert: each expert runs once, on its own tokens, and empty ones not at all. An expert adds
        # to a token at most once, and experts come in order, so a token's sum does not depend on the others.
        order = torch.argsort(chosen.flatten(), stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        tokens = torch.split_with_sizes(order // self.top_k, counts)
        picked = torch.split_with_sizes(weights.gather(-1, chosen).flatten()[order, None], counts)
        for expert, own, share in zip(self.experts.values(), tokens, picked, strict=True):
            if len(own):
                done = expert(flat.index_select(0, own), Rows(own // x.shape[1], x.shape[0]))
                out.index_add_(0, own, (done * share).to(out.dtype))
        return out

    def _traced(self, flat: Tensor, weights: Tensor) -> Tensor:
        """The same for a graph, `[B T, D]`: every expert picks its tokens, which may be none."""
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts.values()):
            own = (weights[:, number] > 0).nonzero()[:, 0]
            share = weights[:, number].index_select(0, own)[:, None]
            out = out.index_add(0, own, (expert(flat.index_select(0, own)) * share).to(out.dtype))
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Combine weights `[B, T, E]`, 0 where a token is not sent, and the experts of each token `[B, T, k]`."""
        logits = self.gate(x)
        if (mask := self.expert_gate.mask) is not None:
            logits = logits.masked_fill(mask_for(mask, logits) == 0, float("-inf"))
        shares = logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
        best, chosen = shares.topk(self.top_k, dim=-1)
        if self.normalise:
            best = best / best.sum(-1, keepdim=True)
        if self.watch is not None:
            self.watch(logits, shares, chosen)
        weights = torch.zeros_like(shares).scatter(-1, chosen, best)
        return self.expert_gate.watched(weights), chosen

    @property
    def silent(self) -> bool:
        """Whether nothing is left that it could contribute."""
        inner = [*self.experts.values(), *([] if self.shared_expert is None else [self.shared_expert])]
        return all(isinstance(expert, FeedForward) and expert.silent for expert in inner)

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """The experts; their hidden channels are groups of the experts' own."""
        parts = Later(self._parts)
        return [UnitGroup(f"{path}/expert", "expert", len(self.experts), self.top_k, (self.expert_gate,), parts)]

    def _parts(self) -> list[Part]:
        parts = []
        if isinstance(self.gate, nn.Linear):
            parts.append(Part(self.gate, 0, torch.arange(len(self.experts), device="cpu")))
        for number, expert in enumerate(self.experts.values()):
            for module in expert.modules():
                if isinstance(module, nn.Linear) and module.weight.numel():
                    parts.append(Part(module, 0, torch.full((module.out_features,), number, device="cpu")))
        return parts

    def settled(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """As given; fewer experts than every token is sent to are an error."""
        chosen = super().settled(kept)
        if len(chosen["expert"]) < self.top_k:
            raise TspruneError(
                f"{len(chosen['expert'])} experts would stay, every token is sent to {self.top_k}; "
                "keep at least that many"
            )
        return chosen

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> MixtureOfExperts:
        """A copy with the experts that stay, under their old names."""
        stay = self.settled(kept)["expert"]
        names = list(self.experts)
        smaller = self.shell()
        smaller.experts = nn.ModuleDict({names[number]: self.experts[names[number]] for number in stay})
        smaller.gate = _router_of(self.gate, stay)
        smaller.expert_gate = Gate(len(stay))
        return smaller


def _router_of(router: nn.Linear | Distances, stay: Sequence[int]) -> nn.Linear | Distances:
    """The router with only the experts that stay."""
    if isinstance(router, Distances):
        nearer = shell(router)
        nearer.centroids = router.centroids[torch.tensor(stay, dtype=torch.long, device=router.centroids.device)]
        return nearer
    weight = router.weight.detach()
    smaller = Linear(1, 1, bias=False, device="meta")
    smaller.in_features, smaller.out_features = weight.shape[1], len(stay)
    rows = weight.index_select(0, torch.tensor(stay, dtype=torch.long, device=weight.device))
    smaller.weight = nn.Parameter(rows, requires_grad=router.weight.requires_grad)
    return smaller


@dataclass(frozen=True)
class Routing:
    """Where one mixture sent the tokens of one forward pass.

    Attributes:
        logits: `[B, T, E]`, of the experts that are left.
        shares: `[B, T, E]`, their softmax.
        chosen: `[B, T, k]`, places among the experts that are left, the best first.
        experts: `[E]`, their numbers before any cut.
    """

    logits: Tensor
    shares: Tensor
    chosen: Tensor
    experts: tuple[int, ...]


@contextmanager
def routings(network: nn.Module) -> Iterator[list[Routing]]:
    """Collect the routing of every mixture in a network, in the order in which they run; watches stay in force."""
    found: list[Routing] = []
    mixtures = [module for module in network.modules() if isinstance(module, MixtureOfExperts)]
    before = [mixture.watch for mixture in mixtures]

    def noted(mixture: MixtureOfExperts, watch: RouterWatch | None) -> RouterWatch:
        numbers = tuple(int(name) for name in mixture.experts)

        def note(logits: Tensor, shares: Tensor, chosen: Tensor) -> None:
            found.append(Routing(logits, shares, chosen, numbers))
            if watch is not None:
                watch(logits, shares, chosen)

        return note

    try:
        for mixture, watch in zip(mixtures, before, strict=True):
            mixture.watch = noted(mixture, watch)
        yield found
    finally:
        for mixture, watch in zip(mixtures, before, strict=True):
            mixture.watch = watch


def balance_loss(routings: Sequence[Routing], experts: int, seen: Tensor | None = None) -> Tensor:
    """How unevenly tokens are sent out: k when all experts get the same (Switch Transformer, 2101.03961, eq. 4 to 6).

    The number of experts times the sum over them of (choices per token) times (mean share); both are means over the
    tokens of all mixtures together. Only the shares have a gradient.

    Args:
        routings: of the mixtures of a network; at least one.
        experts: number of experts of a mixture before any cut E.
        seen: bool `[B, T]`, tokens that count; None for all.

    Returns:
        A scalar, float32 or better.
    """
    kind = torch.promote_types(routings[0].shares.dtype, torch.float32)
    share, choices = (torch.zeros(experts, dtype=kind, device=routings[0].shares.device) for _ in range(2))
    count = 0
    for routing in routings:
        place = torch.tensor(routing.experts, dtype=torch.long, device=share.device)
        tokens = routing.shares if seen is None else routing.shares[seen]
        chosen = routing.chosen if seen is None else routing.chosen[seen]
        share = share.index_add(0, place, tokens.reshape(-1, len(place)).sum(0, dtype=kind))
        choices = choices.index_add(0, place, torch.bincount(chosen.flatten(), minlength=len(place)).to(kind))
        count += tokens.numel() // len(place)
    return experts * (share * choices).sum() / max(1, count) ** 2
