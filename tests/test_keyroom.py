"""A cache with room gives what the cache that grows gives."""

from __future__ import annotations

import pytest
import torch

from tsprune.blocks.attention import Attention
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.keyroom import KeyRoom


@pytest.mark.parametrize("room", [0, 3, 7, 20])
def test_steps_of_any_length_give_the_same_keys_and_values(room: int) -> None:
    plain, roomy = KeyCache(), KeyRoom(room=room)
    draw = torch.Generator().manual_seed(0)
    for tokens in (2, 1, 1, 3):
        key = torch.randn(2, 3, tokens, 5, generator=draw)
        value = torch.randn(2, 3, tokens, 4, generator=draw)
        for one, other in zip(plain.extended(key, value), roomy.extended(key, value), strict=True):
            assert torch.equal(one, other)
        assert roomy.length == plain.length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_attention_step_by_step_equals_causal_attention_over_all_tokens(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3, 4).to(dtype)
    x = torch.randn(2, 6, 12).to(dtype)
    cache = KeyRoom(room=6)
    steps = [attention(x[:, [step]], causal=True, cache=cache) for step in range(6)]
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(torch.cat(steps, dim=1), attention(x, causal=True), rtol=bound, atol=bound)


@torch.no_grad()
def test_a_step_moves_no_earlier_token_while_there_is_room() -> None:
    cache = KeyRoom(room=5)
    first, _ = cache.extended(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    second, _ = cache.extended(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))
    assert first.data_ptr() == second.data_ptr()
