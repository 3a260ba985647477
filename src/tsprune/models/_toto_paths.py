"""Forecasts of Toto patch by patch, along many sample paths at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tsprune.blocks.across import Groups
from tsprune.blocks.keycache import KeyCache
from tsprune.models._toto_network import Around, Backbone, from_start, seen_patches
from tsprune.models._toto_outlook import Outlook

DRAWS = 4
"""Values drawn on every path for the quantiles of a step."""


class Paths:
    """The patches behind a context, one after the other.

    The paths of a row are not rows of their own: at each step they are further tokens of the one sequence, which all
    read the keys of the context and of their own path alone. So the context is worked on and kept once, whatever the
    number of paths. Every patch is scaled by statistics that go on from the context's through the path.

    Args:
        network: in eval mode.
        context: `[B, T * P]`, own units, NaN = missing.
        observed: bool of that shape: what enters the statistics.
        groups: which rows inform each other, path by path; None: none.
        moving: whether the centre of the fading positions moves on with every patch while keys are kept, which is what
            the public code's cache does: from about the third patch on, keys and queries do not quite fit. Without it
            the forecast is that of reading everything anew for every patch.

    Attributes:
        outlook: what is expected of the next patch: of one token first, then of S, one for each path.
    """

    def __init__(
        self, network: Backbone, context: Tensor, observed: Tensor, groups: Groups | None, *, moving: bool = False
    ) -> None:
        self.network, self.groups, self.moving = network, groups, moving
        self.seen = seen_patches(context.view(len(context), -1, network.patch))
        self.caches = [KeyCache() for _ in network.layers]
        states, self.scale = network.read(context, observed, groups, self.caches)
        self.tokens, self.patches = states.shape[1], 0
        self.outlook = network.outlook(states[:, -1:], self.scale.last())

    def follow(self, values: Tensor) -> None:
        """Go one patch further along S paths, `[B, S, P]` in own units, float64; S is the same every time."""
        position, paths = self.tokens + self.patches, values.shape[1]
        self.patches += 1
        self.scale = self.network.scaling.behind(self.scale, values)
        positions = torch.full((paths,), position, device=values.device)
        if self.seen is not None:
            positions = from_start(positions, self.seen)
        centre = position // 2 if self.moving else (self.tokens - 1) // 2
        around = Around(
            *self.network.tables(positions, centre),
            mask=self._own_path(paths, values.device),
            groups=self.groups,
        )
        states = self.network.states(self.scale.apply(values), around, self.caches)
        self.outlook = self.network.outlook(states, self.scale)

    def _own_path(self, paths: int, device: torch.device) -> Tensor | None:
        """Which keys each path may see: bool `[B or 1, 1, S, T + S * patches]`; None for all."""
        if paths == 1 and self.seen is None:
            return None
        own = torch.eye(paths, dtype=torch.bool, device=device).repeat(1, self.patches)
        seen = torch.ones(1, self.tokens, dtype=torch.bool, device=device) if self.seen is None else self.seen
        past, own = seen[:, None].expand(-1, paths, -1), own.expand(len(seen), -1, -1)
        return torch.cat([past, own], dim=-1)[:, None]


def spread_uniforms(paths: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Uniform numbers for one patch after the other, `[S, P]` float64.

    At every step each of S equal parts of [0, 1] has one of the S numbers, in random order (a Latin hypercube), so that
    a forecast varies less with the seed than over as many independent paths.

    Args:
        paths: S.
        steps: of a patch P.
        seed: the same numbers come again with it, on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.rand(steps, paths, generator=generator, dtype=torch.float64).argsort(-1)
        inside = torch.rand(steps, paths, generator=generator, dtype=torch.float64)
        yield ((order + inside) / paths).T


def path_quantiles(outlook: Outlook, uniforms: Iterator[Tensor], levels: Sequence[float]) -> Tensor:
    """Quantiles `[B, Q, P]` of what S paths together expect, in own units, float64.

    Over several values drawn on every path, one in each equal part of its own distribution: most of what varies by
    chance then is the past of the paths, at a fraction of the time of going on along more of them.

    Args:
        outlook: of S tokens, one for each path.
        uniforms: numbers `[S, P]` for each draw.
        levels: Q.
    """
    device = outlook.logits.device
    drawn = [outlook.draw(((part + next(uniforms)) / DRAWS).to(device)) for part in range(DRAWS)]
    ordered = torch.cat(drawn, dim=1).sort(dim=1).values
    count = ordered.shape[1]
    # Each value stands in the middle of its share of 1 / count.
    place = (torch.tensor(list(levels), dtype=ordered.dtype, device=device) * count - 0.5).clamp(0, count - 1)
    below, above = place.floor().long(), place.ceil().long()
    return torch.lerp(ordered[:, below], ordered[:, above], (place - below)[None, :, None])
