"""In how many directions the heads of an attention write, and how much each of them writes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tsprune.lens._heads import ByUnit, Unit, attentions, listed, middle, rising, without_heads
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster
from tsprune.scores import head_norm
from tsprune.scores._masking import weight_in_use
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_sum

NUMBERS = 2**22
"""Entries of head contributions that are held at once: 32 MiB."""
UNUSED = 0.05
"""Relative norm below which a head counts as hardly used (2505.23195)."""
RANK = "|rank"


class HeadRank(Probe):
    """Entropic rank of what the heads of an attention write, and their relative norms."""

    title = "Ranks of head outputs"
    question = "How many heads of each layer write something of their own into the forecast's stream?"
    source = "2602.01605, entropic rank of head contributions; 2505.23195, relative head norm"

    def refusal(self, model: Forecaster) -> str:
        """Models without heads are refused."""
        return without_heads(model)

    def passes(self, study: Study) -> float:
        """All windows, once."""
        return 1.0

    def run(self, study: Study, tick: Tick) -> Findings:
        """One number for each attention, one for each head."""
        model = study.model
        blocks = attentions(model)
        readings = head_norm.readings(model, ("head",))
        for path, block in blocks.items():
            read = partial(rank_sums, weight_in_use(block.o), block.shape.head_of_column, block.heads)
            readings[f"{path}{RANK}"] = Reading(block.gate, branch_of(model, path), read)
        totals = gate_sums(model, study.first, readings, norms=True)
        tick("outputs of all heads")
        sums, _ = totals.result()
        ranks: ByUnit = {}
        for path in blocks:
            total = sums.get(f"{path}{RANK}", torch.zeros(2, dtype=torch.float64))
            ranks[path] = listed((total[:1] / total[1]).exp())
        norms = {
            name.rpartition("/")[0]: listed(values)
            for name, values in head_norm.finish(model, totals, kinds=("head",)).items()
        }
        counts = {path: block.heads for path, block in blocks.items()}
        rows = [[path, counts[path], ranks[path][0], _unused(norms[path])] for path in blocks]
        head = ("attention", "heads", "entropic rank", f"heads below {UNUSED}")
        return Findings(
            _answer(rising(ranks), rising(norms), counts),
            (
                Measure("entropic rank of head outputs", "attention", ranks, words=WORDS),
                Measure("relative head norm", "head", norms, "high", LENGTHS),
            ),
            tables=(Table("What the heads of each attention write", head, rows),),
            notes=_notes(model),
            facts={"heads": counts},
        )


WORDS = "exp of the mean entropy of the singular values of a token's head contributions, each of length 1; 1 to heads"
LENGTHS = "mean over tokens of |W_O v| / |x|, what a head adds over what is in the stream already"


def rank_sums(weight: Tensor, owners: Tensor, heads: int, visit: Visit) -> Tensor:
    """Sum over tokens of the entropies of head contributions, and the number of tokens: `[2]`.

    Contributions W_O[:, h] v_h are scaled to length 1; p are the singular values of their stack over their sum, the
    roots of the eigenvalues of the H x H Gram matrix. A head that adds nothing at a token is left out there, and so is
    a token at which none adds anything.

    Args:
        weight: output map `[D, E]`, float64.
        owners: the head of each of its columns, `[E]`.
        heads: their number H.
        visit: inputs of the output map, `[..., E]`.
    """
    tokens = visit.activation.flatten(0, -2)
    weight, owners = weight.to(tokens.device), owners.to(tokens.device)
    columns = [(owners == head).nonzero().flatten() for head in range(heads)]
    maps = [weight[:, own].T for own in columns]
    size = max(1, NUMBERS // max(1, heads * len(weight)))
    parts = []
    for part in torch.split(tokens, size):
        x = part.double()
        written = torch.stack([x[:, own] @ mapping for own, mapping in zip(columns, maps, strict=True)], dim=1)
        parts.append(entropy(written))
    found = torch.cat(parts).view(visit.activation.shape[:-1])
    counted = ~torch.isnan(found)
    if visit.live is not None:
        counted = counted & visit.live
    return token_sum(found[..., None], counted)


def entropy(written: Tensor) -> Tensor:
    """Entropy `[n]`, in nats, of the singular values of each token's head contributions `[n, H, D]`.

    NaN where no head adds anything.
    """
    lengths = torch.linalg.vector_norm(written, dim=-1, keepdim=True)
    unit = torch.where(lengths > 0, written / lengths, torch.zeros_like(written))
    squares = torch.linalg.eigvalsh(unit @ unit.mT)
    # What is rounding of 0 would look like a small singular value once the root is taken.
    floor = squares[..., -1:] * squares.shape[-1] * torch.finfo(squares.dtype).eps
    s = torch.where(squares > floor, squares, torch.zeros_like(squares)).sqrt()
    found: Tensor = torch.special.entr(s / s.sum(-1, keepdim=True)).sum(-1)
    return found


def _unused(norms: list[float | None]) -> int:
    return sum(value is not None and value < UNUSED for value in norms)


def _answer(ranks: list[Unit], norms: list[Unit], heads: dict[str, int]) -> str:
    if not ranks:
        return "No head adds anything on these windows."
    shares = sorted(ranks, key=lambda one: one.value / heads[one.path])
    low, high = shares[0], shares[-1]
    few = sum(one.value < UNUSED for one in norms)
    return (
        f"The heads of the median attention write in {middle(ranks):.2f} directions (fewest for their number: "
        f"{low.value:.2f} with {heads[low.path]} heads in {low.path}, most: {high.value:.2f} with "
        f"{heads[high.path]} in {high.path}), and {few} of {len(norms)} heads add less than "
        f"{100 * UNUSED:.0f} % of the length of what is in the stream."
    )


def _notes(model: Forecaster) -> list[str]:
    normed = [path for path in attentions(model) if branch_of(model, path).closing_norm or branch_of(model, path).after]
    return [f"read before the norm that follows, which scales all heads alike: {', '.join(normed)}"] if normed else []


PROBE = HeadRank()
