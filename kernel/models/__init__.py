"""Models: the families of nets and how to build one, rename its keys, measure its cost.

In: a family's name and parameters. Out: an `nn.Module` that says of itself what `blocks.Tagger` declares:
`forward(x, frames=None) -> f32[B, K]`, x f32[B, C, M, T] or a dict of tensors, frames int64[B] own lengths.
The table is `families`, one file holds each family, shared parts are in `blocks` and `keras_layers`; nets of
the user's own come through `custom`. Reads no weights (bundle) and chooses no device (inference).
"""
from .cost import measure
from .custom import load_custom
from .families import FAMILIES, Family, build, rename

__all__ = ["FAMILIES", "Family", "build", "load_custom", "measure", "rename"]
