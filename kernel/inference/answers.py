"""From a net's answers to its passes to one row's probabilities, on the device, for all rows of a block.

Owns the device's execution of the activations and merges whose specification is `views.View.merge` and
`member.ACTIVATIONS`: in float64, as on the host.
"""
from collections.abc import Callable

import torch

from .staging import StagedBlock
from .views import View

Activate = Callable[[torch.Tensor], torch.Tensor]
ON_DEVICE: dict[str, Activate] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "none": lambda probabilities: probabilities,
}


@torch.inference_mode()
def merge_passes(view: View, activation: str, answers: torch.Tensor, block: StagedBlock) -> torch.Tensor:
    """f64[n, K] probabilities of a block's rows from answers f32[P, K]; NaN where an answer is not finite."""
    activate = ON_DEVICE[activation]
    rows = block.merging[0]
    shares = block.merging[1].view(torch.float64)[:, None]
    values = answers.double()
    merged = values.new_zeros((len(block.rows), values.shape[1]))
    if view.merge_rule == "logit_mean":
        merged = activate(merged.index_add_(0, rows, values * shares))
    elif view.merge_rule == "max":
        merged = merged.index_reduce_(0, rows, activate(values), "amax", include_self=False)
    else:
        merged = merged.index_add_(0, rows, activate(values) * shares)
    broken = (~torch.isfinite(answers).all(dim=1)).double()
    count = broken.new_zeros(len(block.rows)).index_add_(0, rows, broken)
    return merged.masked_fill((count > 0)[:, None], torch.nan)
