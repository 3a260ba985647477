"""How much memory a pass takes, measured, and how many windows fit into what there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups, frozen, gate_gradients
from tsprune.scores._work import count_windows, split_windows

# Windows of the larger of the two measurements; the other one is of a single window.
SEVERAL = 4


def within_memory(
    model: Forecaster, batches: Iterable[Batch], limit: int, *, needs: str, kinds: Sequence[str]
) -> list[Batch]:
    """The batches in portions whose scoring stays within a limit.

    One window and then four of the first batch are worked through and what torch allocates is followed, so the
    portion is found without running into the limit.

    Args:
        model: left as it was found.
        batches: windows with targets.
        limit: bytes that a pass may take beside weights and batch.
        needs: what the score needs: `weights`, `forward` or `backward`.
        kinds: kinds of units that are scored.

    Raises:
        TspruneError: a single window takes more than the limit.
    """
    batches = list(batches)
    if needs == "weights" or not batches:
        return batches
    first = split_windows(max(batches, key=count_windows), SEVERAL)[0]
    size = windows_within(lambda portion: _pass(model, portion, needs, kinds), first, limit)
    return [part for batch in batches for part in split_windows(batch, size)]


def windows_within(work: Callable[[Batch], Any], sample: Batch, limit: int) -> int:
    """How many windows `work` can take at once within `limit` bytes, from measurements on a few.

    Raises:
        TspruneError: a single window takes more.
    """
    one, count = split_windows(sample, 1)[0], count_windows(sample)
    fixed = peak_bytes(lambda: work(one))
    if fixed > limit:
        raise TspruneError(
            f"--max-memory {limit:,} bytes is too little: scoring one window takes {fixed:,}; give more, or a shorter "
            "--context"
        )
    if count == 1:
        return max(1, limit // max(1, fixed))
    each = max(1, -(-(peak_bytes(lambda: work(sample)) - fixed) // (count - 1)))
    return 1 + (limit - fixed) // each


def _pass(model: Forecaster, portion: Batch, needs: str, kinds: Sequence[str]) -> None:
    portion = portion.to(model.device)
    if needs == "backward":
        gate_gradients(model, portion, chosen_groups(model, kinds))
    else:
        with frozen(model), torch.no_grad():
            model.loss(portion)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes that tensors made by `work` hold at any one time; what kernels use inside is not seen.

    Every operation is watched, forward and backward, so the number does not depend on the allocator, the device or what
    else runs; the result is let go.
    """
    with _Ledger() as ledger:
        work()
    return int(ledger.peak)


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note storages that are new."""
        kwargs = kwargs or {}
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), given)
        return out

    def _note(self, storage: Any, given: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        # A view of something older, such as a weight, is no new memory.
        if key in given or key in self.held or not size:
            return

        def freed(_: Any) -> None:
            self.now -= self.held.pop(key)[1]

        self.held[key] = (weakref.ref(storage, freed), size)
        self.now += size
        self.peak = max(self.peak, self.now)
