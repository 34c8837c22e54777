"""How much an error in each linear's output matters to what the model finally says.

To second order, changing a linear's output at one token by e costs KL = 1/2 E[(g . e)^2], where g is the gradient of
the negative log-likelihood of a label drawn from the model itself. One backward pass, block by block from the head,
gives g for every linear; candidates are then judged by what they do to the output distribution and not by how much
they move a hidden state. Source: the Fisher information as the Hessian of the KL divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.model.block import Block
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import RopeTable
from exl2_tui.core.quant.halves import batches


@dataclass(frozen=True, slots=True)
class Trace:
    """What one linear saw over P tokens: inputs (P, K) and gradients of its outputs (P, N), both float32."""

    inputs: Tensor
    gradients: Tensor

    def predicted_kl(self, difference: Tensor) -> float:
        """KL per token (nats) if the weight (K, N) changes by `difference`."""
        effect = ((self.inputs @ difference) * self.gradients).sum(dim=1)
        return 0.5 * float(effect.double().square().mean())


def head_gradient(norm: RMSNorm, head: Linear, states: Tensor, seed: int, cancel: CancelToken | None) -> Tensor:
    """Gradient (R, T, C) float32 at the states after the last block, one label drawn per token."""
    generator = torch.Generator(device=states.device).manual_seed(seed)
    result = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    for row in range(states.shape[0]):
        if cancel is not None:
            cancel.check()
        x = states[row].float().requires_grad_()
        logits = head.forward(norm.forward(x))
        with torch.no_grad():
            probabilities = logits.softmax(-1)
            labels = torch.multinomial(probabilities, 1, generator=generator)
            upward = probabilities.scatter_add(1, labels, -torch.ones_like(labels, dtype=probabilities.dtype))
        (result[row],) = torch.autograd.grad(logits, x, upward)
    return result


def backward_block(
    block: Block, states: Tensor, gradient: Tensor, rope: RopeTable, cancel: CancelToken | None
) -> tuple[dict[str, Trace], Tensor]:
    """Traces by full name of every linear, and the gradient (R, T, C) at the block's input.

    states: the block's input (R, T, C) float16; gradient: at its output.
    """
    rows, length = states.shape[:2]
    traces: dict[str, Trace] = {}
    below = torch.empty_like(gradient)
    for part, x in batches(states, cancel):
        x.requires_grad_()
        taps: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), _Taps(block, taps):
            y = block.forward(x, rope)
        names = list(taps)
        found = torch.autograd.grad(y, [x, *(taps[name][1] for name in names)], gradient[part])
        below[part] = found[0]
        traces = traces or _room(taps, rows * length)
        tokens = slice(part.start * length, part.start * length + x.shape[0] * length)
        for name, output_gradient in zip(names, found[1:], strict=True):
            traces[name].inputs[tokens] = taps[name][0].detach().flatten(0, -2)
            traces[name].gradients[tokens] = output_gradient.flatten(0, -2)
    return traces, below


def _room(taps: dict[str, tuple[Tensor, Tensor]], tokens: int) -> dict[str, Trace]:
    """Traces to be filled in: the largest thing that measuring holds, so they are not collected and joined, which would
    take them twice, and linears that see the same input share it."""
    traces: dict[str, Trace] = {}
    for name, (x, y) in taps.items():
        twin = next((other for other in traces if taps[other][0] is x), None)
        inputs = x.new_empty(tokens, x.shape[-1]) if twin is None else traces[twin].inputs
        traces[name] = Trace(inputs, x.new_empty(tokens, y.shape[-1]))
    return traces


class _Taps:
    """While active, every linear of a block notes its input and output under its name."""

    def __init__(self, block: Block, taps: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.block = block
        self.taps = taps

    def __enter__(self) -> None:
        for name, linear in self.block.linears.items():
            linear.forward = self._tap(name, linear.forward)  # type: ignore[method-assign, assignment] # until __exit__

    def __exit__(self, *_: object) -> None:
        for linear in self.block.linears.values():
            del linear.forward

    def _tap(self, name: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            y = forward(x)
            self.taps[name] = (x, y)
            return y

        return run
