"""The steps that narrow down the next token: small pure functions over candidates, composed by the sampler.

Each takes candidates and one number and gives back the survivors; probabilities are renormalised over the survivors
after every step, so later steps see the distribution that earlier ones left. Everything is float32 on the CPU; sums
that decide who stays run in float64. None of the functions looks at more of the vocabulary than it must: a sort of
150,000 numbers would cost more than a small model's whole forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Width of the blocks in which large vectors are searched and summed in two levels.
BLOCK = 64
# From here on searching by blocks is faster than torch.topk.
BLOCKS_FROM = 1 << 15
# Up to here a set of most probable tokens is found by sorting; of more, this many are tried first.
SORT_AT_MOST = 1024
FIRST_TRY = 256
INFINITY_BIN = 0x7F80


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that may still be chosen: ids (n,) int64 and their logits (n,) float32, in any order."""

    ids: Tensor
    logits: Tensor

    def take(self, index: Tensor) -> Candidates:
        """The candidates at `index` (m,) int64."""
        return Candidates(self.ids.index_select(0, index), self.logits.index_select(0, index))

    def probabilities(self) -> Tensor:
        """(n,) float32, summing to one over these candidates."""
        return torch.softmax(self.logits, 0)

    def __len__(self) -> int:
        return self.logits.numel()


def penalize(
    logits: Tensor, seen: tuple[Tensor, Tensor], repetition: float, frequency: float, presence: float
) -> Tensor:
    """Logits (V,) with the tokens in `seen` (ids and counts, see TokenHistory) made less likely; the input stays.

    The repetition penalty divides positive and multiplies negative logits (Keskar et al. 2019, CTRL); frequency is
    subtracted once per occurrence, presence once.
    """
    ids, counts = seen
    if not len(ids):
        return logits
    values = logits.index_select(0, ids)
    if repetition != 1:
        values = torch.where(values > 0, values / repetition, values * repetition)
    if frequency or presence:
        values = values - (counts * frequency + presence)
    return logits.index_copy(0, ids, values)


def scale(candidates: Candidates, temperature: float) -> Candidates:
    """softmax(logits / temperature). The largest becomes 0 first, so that a tiny temperature cannot overflow."""
    logits = candidates.logits
    return Candidates(candidates.ids, (logits - logits.amax()) / temperature)


def keep_top_k(candidates: Candidates, k: int) -> Candidates:
    """The k most probable tokens, most probable first."""
    return candidates.take(largest(candidates.logits, min(k, len(candidates))))


def keep_top_p(candidates: Candidates, mass: float) -> Candidates:
    """The smallest set of most probable tokens whose probabilities reach `mass` (Holtzman et al. 2019).

    The token that crosses `mass` stays, as in the paper and in transformers. The reference program drops it and may
    then admit less probable ones; that is not imitated.
    """
    probabilities = candidates.probabilities()
    return candidates.take(_fewest(probabilities, candidates.logits, lambda: INFINITY_BIN - _bins(probabilities), mass))


def keep_min_p(candidates: Candidates, fraction: float) -> Candidates:
    """Tokens at least `fraction` times as probable as the most probable one (Nguyen et al. 2024)."""
    probabilities = candidates.probabilities()
    return candidates.take((probabilities >= fraction * probabilities.amax()).nonzero().flatten())


def keep_typical(candidates: Candidates, mass: float) -> Candidates:
    """Locally typical sampling (Meister et al. 2022): tokens whose surprise is nearest to the entropy, up to `mass`.

    Distance is |-ln p - H|. The reference program has p + ln p in place of ln p; that is not imitated.
    """
    probabilities = candidates.probabilities()
    entropy = torch.special.entr(probabilities).sum()
    distance = (torch.log_softmax(candidates.logits, 0) + entropy).abs()
    return candidates.take(_fewest(probabilities, -distance, lambda: _bins(distance), mass))


def draw(candidates: Candidates, uniform: float) -> int:
    """The token where the cumulative probability passes `uniform` in [0, 1), candidates in their given order."""
    weights = candidates.probabilities()
    blocks = weights.numel() // BLOCK
    start = 0
    offset = 0.0
    if blocks > BLOCK:  # many candidates: find the block, then the place in it
        sums = weights[: blocks * BLOCK].view(blocks, BLOCK).sum(1, dtype=torch.float64)
        tail = weights[blocks * BLOCK :].sum(dtype=torch.float64)
        cumulative = torch.cat((sums, tail[None])).cumsum(0)
        target = uniform * float(cumulative[-1])
        block = _first_above(cumulative, target)
        start = block * BLOCK
        offset = float(cumulative[block - 1]) if block else 0.0
        cumulative = weights[start : start + BLOCK].cumsum(0, dtype=torch.float64)
    else:
        cumulative = weights.cumsum(0, dtype=torch.float64)
        target = uniform * float(cumulative[-1])
    return int(candidates.ids[start + _first_above(cumulative, target - offset)])


def _first_above(cumulative: Tensor, target: float) -> int:
    """First index whose cumulative weight exceeds target; rounding at the very end gives the last non-zero weight."""
    target = min(target, float(cumulative[-1]))
    index = int(torch.searchsorted(cumulative, target, right=True))
    if index == cumulative.numel():
        index = int(torch.searchsorted(cumulative, target))
    return index


def largest(values: Tensor, count: int) -> Tensor:
    """Indices (count,) of the largest values (n,), largest first.

    The `count` largest all lie in those `count` blocks whose own maxima are the largest, so only these are sorted.
    """
    total = values.numel()
    blocks = total // BLOCK
    if total < BLOCKS_FROM or count >= blocks // 2:
        return torch.topk(values, count).indices
    best = torch.topk(values[: blocks * BLOCK].view(blocks, BLOCK).amax(1), count, sorted=False).indices
    inside = (best[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    index = torch.cat((inside, torch.arange(blocks * BLOCK, total)))
    return index.index_select(0, torch.topk(values.index_select(0, index), count).indices)


def _fewest(probabilities: Tensor, keys: Tensor, bins: Callable[[], Tensor], mass: float) -> Tensor:
    """Indices of the tokens with the largest keys (n,), as few as together reach `mass`, at least one.

    bins: computes (n,) int32 >= 0, which must fall as keys rise, but may put neighbours together. If the mass is not
    in the first few tokens, it is counted by bins, and only the bin in which it is reached is sorted.
    """
    mass = max(mass, 1e-30)  # empty bins reach a mass of 0
    few = len(keys) if len(keys) <= SORT_AT_MOST else FIRST_TRY
    order = largest(keys, few)
    cumulative = probabilities.index_select(0, order).cumsum(0, dtype=torch.float64)
    if few == len(keys) or float(cumulative[-1]) >= mass:
        return order[: int((cumulative < mass).sum()) + 1]
    numbers = bins()
    cumulative = torch.bincount(numbers, weights=probabilities).cumsum(0, dtype=torch.float64)
    last = min(int((cumulative < mass).sum()), len(cumulative) - 1)
    index = (numbers <= last).nonzero().flatten()
    crossing = numbers.index_select(0, index) == last
    inside, edge = index[~crossing], index[crossing]
    edge = edge[torch.argsort(keys.index_select(0, edge), descending=True, stable=True)]
    reached = probabilities.index_select(0, edge).cumsum(0, dtype=torch.float64)
    if last:
        reached += cumulative[last - 1]
    return torch.cat((inside, edge[: int((reached < mass).sum()) + 1]))


def _bins(values: Tensor) -> Tensor:
    """The upper half of the bits of floats >= 0: they order as the floats do, 128 steps per octave. (n,) int32."""
    return values.view(torch.int32) >> 16
