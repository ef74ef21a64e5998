"""Pictures of another size: torch's interpolation of an array[C, M, T] by name.

Owns the table RESIZES. Which side is resized, and when, is `frontends`.
"""
from collections.abc import Sequence

import numpy as np
import torch

RESIZES = ("bilinear", "bicubic", "nearest")


def resize(x: np.ndarray, size: Sequence[int], kind: str, align_corners: bool, antialias: bool) -> np.ndarray:
    """f32[C, M', T'] of f[C, M, T]; size (M', T'), 0 = as it is.

    Source: torch.nn.functional.interpolate. align_corners keeps the corners' values (UpsamplingBilinear2d),
    antialias smooths where it shrinks (torchvision Resize of tensors).
    """
    wanted = (size[0] or x.shape[1], size[1] or x.shape[2])
    options = {} if kind == "nearest" else {"align_corners": align_corners, "antialias": antialias}
    picture = torch.from_numpy(np.ascontiguousarray(x, np.float32))[None]
    return torch.nn.functional.interpolate(picture, wanted, mode=kind, **options)[0].numpy()
