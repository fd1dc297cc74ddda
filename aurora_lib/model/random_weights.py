"""Random weights that are drawn when they are read, as a file's are: a full-size model without a download."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Drawn:
    """A tensor that exists once it is read, with `tensor[...]`, as the loader reads a file's."""

    shape: torch.Size
    dtype: torch.dtype
    std: float
    generator: torch.Generator

    def __getitem__(self, _) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.generator.device)
        return tensor.fill_(1) if tensor.dim() == 1 else tensor.normal_(0, self.std, generator=self.generator)


def drawn(model: nn.Module, dtype: torch.dtype, std: float, device: str, seed: int) -> dict[str, Drawn]:
    """For every parameter of `model` (on the meta device) one to be drawn on `device`: vectors 1, the rest normal."""
    generator = torch.Generator(device).manual_seed(seed)
    return {name: Drawn(p.shape, dtype, std, generator) for name, p in model.named_parameters()}
