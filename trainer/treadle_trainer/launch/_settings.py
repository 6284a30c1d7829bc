"""What a policy says of several processes. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from treadle_schemas import SettingError

__all__ = ["Launch"]


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many processes train together, and how."""

    processes: int = 1
    """Processes on this machine; with CUDA each has a device of its own. 1: no launcher."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each holds the whole model; `fsdp`: each holds a part of weights, gradients and optimiser (FSDP 2), on CUDA only."""
    wrap: list[str] = []
    """fsdp: class names of the layers that are gathered one by one. Empty: those that the model's own class names."""
    reshard: bool = True
    """fsdp: give a layer's weights back after its forward pass (less memory, more traffic)."""
    offload: bool = False
    """fsdp: keep weights and optimiser in the host's memory."""

    def checked(self) -> Launch:
        """Itself, if it makes sense. Raises SettingError naming the setting."""
        if self.processes < 1:
            raise SettingError(f"launch processes={self.processes}: expected at least 1")
        if self.strategy == "fsdp" and self.processes == 1:
            raise SettingError("launch strategy='fsdp': shards the model over processes, and launch.processes is 1")
        for name in ("wrap", "offload"):
            if self.strategy != "fsdp" and getattr(self, name):
                raise SettingError(
                    f"launch {name}={getattr(self, name)!r}: is for strategy fsdp, not for {self.strategy}"
                )
        return self

    def arguments(self, *, cuda: bool, checkpointing: bool) -> dict[str, Any]:
        """What TrainingArguments of transformers wants for it. `checkpointing`: recompute activations in the backward pass."""
        if self.processes == 1:
            return {"gradient_checkpointing": checkpointing}
        backend = "nccl" if cuda else "gloo"
        if self.strategy == "ddp":
            return {
                "ddp_backend": backend,
                "ddp_find_unused_parameters": False,
                "gradient_checkpointing": checkpointing,
            }
        return {
            "ddp_backend": backend,
            "gradient_checkpointing": False,  # FSDP has its own, which does not gather twice
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": self.reshard,
                "cpu_offload": self.offload,
                "activation_checkpointing": checkpointing,
                "state_dict_type": "FULL_STATE_DICT",  # a checkpoint and a model are folders like any other
                **({"transformer_layer_cls_to_wrap": self.wrap} if self.wrap else {}),
            },
        }
