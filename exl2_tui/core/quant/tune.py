"""Tuning what is continuous in a finished EXL2 model: norm weights and the scale maximum of every row group.

All codes stay. Quantizing leaves systematic errors behind, such as outputs that have become too small, and a factor per
channel or group can take them back; which factors do is seen where it counts, in the distribution of the next token.
So the whole quantized model runs on calibration rows, the gradient of its KL divergence from the original comes back
block by block, and Adam moves the logarithms of all factors. A group's factor acts on the inputs of its rows, so no
gradient of a weight matrix is ever formed and a step costs three forward passes.
Source: spec/quantizer.md section 15 (norm tweaking, EfficientQAT).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.formats import Exl2Weight
from exl2_tui.core.model.block import Block
from exl2_tui.core.model.causal_lm import build_block, build_embedding, build_final_norm, build_head
from exl2_tui.core.model.layout import FINAL_NORM, HEAD, LinearSpec, head_linear, layer_linears, layer_norms
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import RopeTable
from exl2_tui.core.quant.grid import SMALLEST_MAX
from exl2_tui.core.quant.selftext import LARGEST_MODEL
from exl2_tui.core.quant.source import LOGITS_AT_ONCE, SourceModel

_MOMENTS = (0.9, 0.95)
"""Adam's decay of the mean and of the mean square."""
_PLACES = {
    "q_proj": ("attn", "q"),
    "k_proj": ("attn", "k"),
    "v_proj": ("attn", "v"),
    "o_proj": ("attn", "o"),
    "gate_proj": ("mlp", "gate"),
    "up_proj": ("mlp", "up"),
    "down_proj": ("mlp", "down"),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """At most `steps` of about `tokens` tokens each, and at most `passes` over the calibration rows.

    rate: Adam's step on the logarithms, falling to 0 along a cosine, if the divergence is 1 nat at first; it goes with
    the root of that, as the changes that are wanted do. worth: divergence (nats) below which nothing is tuned; from
    0.07 down the judging rows never became better.
    """

    steps: int = 32
    tokens: int = 1024
    passes: int = 1
    rate: float = 1e-2
    worth: float = 0.05

    def batches(self, count: int, length: int) -> list[list[int]]:
        """The rows of every step, out of `count` rows of `length` tokens: each comes once before any comes again."""
        judging = set(self.judging(count))
        fitting = torch.tensor([row for row in range(count) if row not in judging] or sorted(judging))
        each = min(max(1, self.tokens // length), len(fitting))
        steps = min(self.steps, self.passes * len(fitting) // each)
        generator = torch.Generator().manual_seed(0)
        order: list[int] = []
        while len(order) < steps * each:
            order += fitting[torch.randperm(len(fitting), generator=generator)].tolist()
        return [order[step * each : (step + 1) * each] for step in range(steps)]

    def judging(self, count: int) -> list[int]:
        """The rows that judge the result: every eighth, which no step sees. Where there are fewer, all do both."""
        return list(range(7, count, 8)) or list(range(count))


class _ScaledLinear(Linear):
    """A quantized linear whose row groups carry a factor.

    factors (G,) are those of the scale maximum as the file can hold them; groups (K,) int64: group of every feature.
    """

    def __init__(self, linear: Linear, stored: Exl2Weight) -> None:
        super().__init__(linear.weight, linear.bias)
        self.groups = stored.row_groups()[stored.q_invperm.long()].to(linear.weight.device)
        self.largest = stored.q_scale_max.float().to(linear.weight.device)
        self.factors: Tensor | None = None

    def install(self, logs: Tensor) -> None:
        """Takes the logarithms (G,) of the factors. The step of a scale code is fp16(max / 256), mostly a subnormal
        and coarse: what is used is the nearest that exists, what is differentiated is the logarithm."""
        wanted = logs.exp()
        self.factors = wanted + (stored_factors(self.largest, wanted.detach()) - wanted.detach())

    def forward(self, x: Tensor) -> Tensor:
        assert self.factors is not None
        return functional.linear(x * self.factors[self.groups], self.weight, self.bias)


def stored_factors(largest: Tensor, wanted: Tensor) -> Tensor:
    """The factors on a code's step that scale maxima (G,) times `wanted` really have."""
    return (scaled_maximum(largest, wanted) / 256).half().float() / (largest / 256).half().float()


def scaled_maximum(largest: Tensor, factors: Tensor) -> Tensor:
    """Scale maxima (G,) times factors, as float32 that float16 holds exactly."""
    return (largest * factors).clamp(SMALLEST_MAX, 65504.0).half().float()


@dataclass(frozen=True, slots=True)
class _Part:
    """A block, or final norm and head, with what can be tuned in it by stored name."""

    norms: dict[str, tuple[RMSNorm, Tensor]]
    linears: dict[str, _ScaledLinear]

    def install(self, logs: Mapping[str, Tensor]) -> None:
        for name, (norm, base) in self.norms.items():
            norm.weight = base * logs[name].exp()
        for name, linear in self.linears.items():
            linear.install(logs[name])


class Layout:
    """Where the logarithms of every tuned tensor lie in one vector (P,) float32."""

    def __init__(self, model: SourceModel, parts: Checkpoint) -> None:
        names: list[str] = []
        for layer in range(model.config.num_hidden_layers):
            names += layer_norms(model.config, layer)
            names += [f"{spec.prefix}.q_scale_max" for spec in layer_linears(model.config, layer)]
        names += [FINAL_NORM, f"{HEAD}.q_scale_max"]
        self.shapes = {name: parts.info(name).shape for name in names}
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of the vector by name."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes.items():
            found[name] = vector[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
        return found


class Tuner:
    """One quantized model, given as the files of its parts, and the original that it should follow.

    Small models are kept in memory; of others one block at a time is read, again for every step.
    """

    def __init__(self, model: SourceModel, parts: Checkpoint, shape: tuple[int, int], schedule: Schedule) -> None:
        """shape: rows and tokens of the calibration."""
        self.model = model
        self.parts = parts
        self.rate = schedule.rate
        self.batches = schedule.batches(*shape)
        self.judging = schedule.judging(shape[0])
        self.layout = Layout(model, parts)
        self.rope: RopeTable = model.rope(shape[1])
        self.layers = model.config.num_hidden_layers
        self._is_held = model.decoder_weights <= LARGEST_MODEL
        self._held: dict[int, tuple[Block, _Part]] = {}
        device = model.device
        self._embedding = build_embedding(model.config, parts, device, torch.float32)
        self._teacher = model.final_norm(), model.head()
        self._norm = build_final_norm(model.config, parts, device, torch.float32)
        linear = build_head(model.config, parts, device, torch.float32)
        self._head = _ScaledLinear(linear, self._stored(head_linear(model.config)))
        tail = {FINAL_NORM: (self._norm, self._norm.weight)}, {f"{HEAD}.q_scale_max": self._head}
        self._tail = _Part(*tail)

    def start(self) -> dict[str, Tensor]:
        """The state before the first step: logarithms and Adam's two moments, (P,) float32 each."""
        return {name: torch.zeros(self.layout.size) for name in ("logs", "mean", "square")}

    def step(
        self, number: int, ids: Tensor, reference: Tensor, state: Mapping[str, Tensor], cancel: CancelToken | None
    ) -> dict[str, Tensor]:
        """The state after one step, for rows ids (R, T) whose final states in the original are reference (R, T, C).

        It also holds "first", the divergence (1,) before all steps.
        """
        logs = state["logs"].to(self.model.device)
        rows = self.batches[number]
        kl, gradient = self.gradient(ids[rows], reference[rows], logs, cancel)
        first = state["first"] if number else torch.tensor([kl])
        slow, fast = _MOMENTS
        mean = slow * state["mean"].to(logs.device) + (1 - slow) * gradient
        square = fast * state["square"].to(logs.device) + (1 - fast) * gradient.square()
        rate = self.rate * float(first) ** 0.5 * 0.5 * (1 + math.cos(math.pi * number / len(self.batches)))
        change = (mean / (1 - slow ** (number + 1))) / ((square / (1 - fast ** (number + 1))).sqrt() + 1e-10)
        return {"logs": logs - rate * change, "mean": mean, "square": square, "first": first}

    def gradient(
        self, ids: Tensor, reference: Tensor, logs: Tensor, cancel: CancelToken | None
    ) -> tuple[float, Tensor]:
        """KL divergence per token (nats) on rows ids (R, T), and its gradient (P,) by the logarithms."""
        inputs = self._forward(ids, logs, cancel)
        gradient = torch.zeros_like(logs)
        pieces = self.layout.split(gradient)
        kl, below = self._tail_gradient(inputs.pop(), reference, self.layout.split(logs), pieces, cancel)
        for layer in reversed(range(self.layers)):
            block, part = self._block(layer)
            x = inputs.pop().requires_grad_()
            leaves = self._leaves(part, logs)
            with torch.enable_grad():
                part.install(leaves)
                y = block.forward(x, self.rope)
            below, *found = torch.autograd.grad(y, [x, *leaves.values()], below)
            for name, piece in zip(leaves, found, strict=True):
                pieces[name].copy_(piece)
            _check(cancel)
        return kl, gradient

    @torch.no_grad()
    def divergence(self, ids: Tensor, reference: Tensor, logs: Tensor, cancel: CancelToken | None) -> float:
        """KL divergence per token (nats) on those of the rows ids (R, T) that judge."""
        total = 0.0
        each = len(self.batches[0])
        for start in range(0, len(self.judging), each):
            rows = self.judging[start : start + each]
            final = self._forward(ids[rows], logs, cancel)[-1]
            self._tail.install(self.layout.split(logs))
            for ours, theirs in self._pieces(final, reference[rows], cancel):
                total += float(self._divergence(ours, theirs).double())
        return total / (len(self.judging) * ids.shape[1])

    def tuned(self, logs: Tensor) -> dict[str, Tensor]:
        """The tensors that replace those of the parts, float16 by full name."""
        found: dict[str, Tensor] = {}
        for name, piece in self.layout.split(logs).items():
            stored = self.parts.tensor(name).float()
            if name.endswith(".q_scale_max"):
                found[name] = scaled_maximum(stored, piece.cpu().exp()).half()
            else:
                found[name] = (stored * piece.cpu().exp()).half()
        return found

    @torch.no_grad()
    def _forward(self, ids: Tensor, logs: Tensor, cancel: CancelToken | None) -> list[Tensor]:
        """The input of every block and the states after the last, (R, T, C) float32."""
        x = self._embedding.forward(ids.to(self.model.device))
        inputs = [x]
        pieces = self.layout.split(logs)
        for layer in range(self.layers):
            block, part = self._block(layer)
            part.install(pieces)
            inputs.append(block.forward(inputs[-1], self.rope))
            _check(cancel)
        return inputs

    def _tail_gradient(
        self,
        final: Tensor,
        reference: Tensor,
        logs: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        cancel: CancelToken | None,
    ) -> tuple[float, Tensor]:
        """KL per token and its gradient (R, T, C) at the final states; adds that of norm and head to `gradient`."""
        below = torch.empty_like(final)
        total, tokens = 0.0, final.shape[0] * final.shape[1]
        flat = below.flatten(0, 1)
        start = 0
        for ours, theirs in self._pieces(final, reference, cancel):
            ours = ours.detach().requires_grad_()
            leaves = {name: logs[name].detach().requires_grad_() for name in (*self._tail.norms, *self._tail.linears)}
            with torch.enable_grad():
                self._tail.install(leaves)
                lost = self._divergence(ours, theirs)
            total += float(lost.detach().double())
            found = torch.autograd.grad(lost / tokens, [ours, *leaves.values()])
            flat[start : start + len(ours)] = found[0]
            start += len(ours)
            for name, piece in zip(leaves, found[1:], strict=True):
                gradient[name].add_(piece)
        return total / tokens, below

    def _divergence(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Summed KL divergence of states ours from theirs, (P, C) each."""
        norm, head = self._teacher
        with torch.no_grad():
            p = functional.log_softmax(head.forward(norm.forward(theirs)), dim=-1)
        q = functional.log_softmax(self._head.forward(self._norm.forward(ours)), dim=-1)
        return functional.kl_div(q, p, reduction="sum", log_target=True)

    def _pieces(self, final: Tensor, reference: Tensor, cancel: CancelToken | None) -> Iterator[tuple[Tensor, Tensor]]:
        flat, target = final.flatten(0, 1), reference.flatten(0, 1)
        for start in range(0, len(flat), LOGITS_AT_ONCE):
            _check(cancel)
            yield flat[start : start + LOGITS_AT_ONCE], target[start : start + LOGITS_AT_ONCE].float().to(flat.device)

    def _leaves(self, part: _Part, logs: Tensor) -> dict[str, Tensor]:
        pieces = self.layout.split(logs)
        return {name: pieces[name].detach().requires_grad_() for name in (*part.norms, *part.linears)}

    def _block(self, layer: int) -> tuple[Block, _Part]:
        if layer in self._held:
            return self._held[layer]
        config = self.model.config
        block = build_block(config, self.parts, layer, self.model.device, torch.float32)
        weights = (block.attn_norm, block.attn.q_norm, block.attn.k_norm, block.mlp_norm)
        norms = [norm for norm in weights if norm is not None]
        linears: dict[str, _ScaledLinear] = {}
        for spec in layer_linears(config, layer):
            owner, place = _PLACES[spec.prefix.rsplit(".", 1)[1]]
            scaled = _ScaledLinear(block.linears[spec.prefix], self._stored(spec))
            setattr(getattr(block, owner), place, scaled)
            linears[f"{spec.prefix}.q_scale_max"] = scaled
        named = zip(layer_norms(config, layer), norms, strict=True)
        part = _Part({name: (norm, norm.weight) for name, norm in named}, linears)
        if self._is_held:
            self._held[layer] = block, part
        return block, part

    def _stored(self, spec: LinearSpec) -> Exl2Weight:
        stored = self.parts.linear(spec.prefix, spec.in_features, spec.out_features, spec.bias)
        assert isinstance(stored, Exl2Weight)
        return stored


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
