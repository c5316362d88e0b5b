"""Which slots of a buffer of tokens hold something that the token now decoded may see."""

from __future__ import annotations

import torch


class Slots:
    """The slots of buffers (H, capacity, d) that several layers fill alike, a token a step.

    The first `sinks` slots are always seen; of the others the last `window`, or all where it is None. `next`
    (1,) is the slot of the step's token and `hidden` (capacity,) marks what it must not see: both are tensors
    on the device, which `begin` and `end` set by operations that a CUDA graph can hold.
    """

    def __init__(
        self,
        filled: int,
        capacity: int,
        device: torch.device | str,
        sinks: int = 0,
        window: int | None = None,
    ) -> None:
        self.filled = filled
        self.capacity = capacity
        self.sinks = sinks
        self.window = window
        self.next = torch.tensor([filled], device=device)
        self.hidden = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._numbers = torch.arange(capacity, device=device)

    def begin(self) -> None:
        """Marks what the step's token sees, itself included."""
        torch.gt(self._numbers, self.next, out=self.hidden)
        if self.window is not None:
            passed = (self._numbers <= self.next - self.window) & (self._numbers >= self.sinks)
            self.hidden.logical_or_(passed)

    def end(self) -> None:
        """The step's token has its slot; device side only, `count` follows on the host."""
        self.next.add_(1)

    def count(self) -> None:
        """Takes note on the host that a step has ended."""
        self.filled += 1

    def drop(self, tokens: int) -> None:
        """`tokens` tokens have left the buffers, and those after them have moved up."""
        self.filled -= tokens
        self.next.sub_(tokens)

    def rewind(self) -> None:
        """Undoes `end`: the step was a rehearsal, and the next one writes to the same slot."""
        self.next.sub_(1)
