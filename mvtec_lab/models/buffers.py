"""Buffers that are fitted, and so have no shape before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def resize_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the buffers of a module the shapes that they have in a state, which can then be loaded."""
    for name, buffer in list(module.named_buffers()):
        if name in state and state[name].shape != buffer.shape:
            owner, _, key = name.rpartition(".")
            fitted = torch.empty_like(state[name], device=buffer.device)
            module.get_submodule(owner).register_buffer(key, fitted)
