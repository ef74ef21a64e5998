"""Zoom and perspective of a cut spectrogram, for test-time augmentation.

Owns the geometry only; views.Zoom draws the numbers. Does not pad or crop.
"""
import numpy as np


def distort(x: np.ndarray, corner: int, zoom: float, moved: np.ndarray) -> np.ndarray:
    """array[C, M, T]: x enlarged by `zoom` at corner 0..3 (top left, bottom left, top right, bottom right),
    then warped.

    moved  f64[4], how far the targets of the top, bottom, left and right corners move outwards, in halves of
           the picture
    """
    rows, columns = np.meshgrid(np.linspace(-1, 1, x.shape[1]), np.linspace(-1, 1, x.shape[2]), indexing="ij")
    row_anchor, column_anchor = ((-1, -1), (1, -1), (-1, 1), (1, 1))[corner]
    rows = row_anchor + (rows - row_anchor) / zoom
    columns = column_anchor + (columns - column_anchor) / zoom
    h = perspective(moved)
    depth = h[2, 0] * rows + h[2, 1] * columns + 1
    return sample(x, (h[0, 0] * rows + h[0, 1] * columns + h[0, 2]) / depth,
                  (h[1, 0] * rows + h[1, 1] * columns + h[1, 2]) / depth)


def perspective(moved: np.ndarray) -> np.ndarray:
    """f64[3, 3] homography that moves the corners (+-1, +-1) outwards; moved as in `distort`."""
    top, bottom, left, right = moved
    source = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    target = [(-1 - left, -1 - top), (-1 - right, 1 + top), (1 + left, -1 - bottom), (1 + right, 1 + bottom)]
    rows = []
    values = []
    for (a, b), (u, v) in zip(source, target, strict=True):
        rows += [[a, b, 1, 0, 0, 0, -u * a, -u * b], [0, 0, 0, a, b, 1, -v * a, -v * b]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(values, float)), 1.0).reshape(3, 3)


def sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """array[C, *rows.shape] of x[C, M, T] at places in [-1, 1]: bilinear, mirrored outside, same dtype.

    Images (uint8) are rounded.
    """
    from scipy.ndimage import map_coordinates

    places = [(rows + 1) / 2 * (x.shape[1] - 1), (columns + 1) / 2 * (x.shape[2] - 1)]
    out = np.stack([map_coordinates(plane.astype(np.float32), places, order=1, mode="mirror") for plane in x])
    return (np.clip(np.rint(out), 0, 255) if x.dtype == np.uint8 else out).astype(x.dtype)
