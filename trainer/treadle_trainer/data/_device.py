"""Copies to a CUDA device that nobody waits for: from pinned memory, on a stream of their own, ahead of the step that needs them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["DeviceCopies"]


class DeviceCopies:
    """Starts copies in the thread that makes batches, and hands them over in the one that trains."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda: Any = torch.cuda  # its classes are not typed
        self._cuda = cuda
        self._stream = cuda.Stream(device)

    def send(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
        """Start copying pinned `tensors`; gives what they become, and the event of their arrival.

        The memory that they come from may be let go: the allocator of pinned memory keeps it until the copy is done.
        """
        with self._cuda.stream(self._stream):
            there = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            arrival = self._cuda.Event()
            arrival.record(self._stream)
        return there, arrival

    def receive(self, tensors: dict[str, torch.Tensor], arrival: Any) -> None:
        """Let the present stream go on only once they are there. The host does not wait."""
        now = self._cuda.current_stream(self._device)
        now.wait_event(arrival)
        for tensor in tensors.values():
            tensor.record_stream(
                now
            )  # memory of the copying stream must not be used anew before this one is done with it
