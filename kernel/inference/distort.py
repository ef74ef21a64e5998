"""Zoom and perspective of a cut spectrogram, for test-time augmentation.

Owns the geometry only, carried out on the host for one cut and on a device for many; views.Zoom draws the
numbers. Does not pad or crop.
"""
import numpy as np
import torch

ANCHORS = ((-1, -1), (1, -1), (-1, 1), (1, 1))  # row and column of the corners 0..3
# Places of one piece of work on a device: 64 cuts of 256 x 256, some 200 MB of grids in float64
PLACES_AT_ONCE = 1 << 22


def distort(x: np.ndarray, corner: int, zoom: float, moved: np.ndarray) -> np.ndarray:
    """array[C, M, T]: x enlarged by `zoom` at corner 0..3 (top left, bottom left, top right, bottom right),
    then warped.

    moved  f64[4], how far the targets of the top, bottom, left and right corners move outwards, in halves of
           the picture
    """
    rows, columns = np.meshgrid(np.linspace(-1, 1, x.shape[1]), np.linspace(-1, 1, x.shape[2]), indexing="ij")
    row_anchor, column_anchor = ANCHORS[corner]
    rows = row_anchor + (rows - row_anchor) / zoom
    columns = column_anchor + (columns - column_anchor) / zoom
    h = perspective(moved)
    depth = h[2, 0] * rows + h[2, 1] * columns + 1
    return sample(x, (h[0, 0] * rows + h[0, 1] * columns + h[0, 2]) / depth,
                  (h[1, 0] * rows + h[1, 1] * columns + h[1, 2]) / depth)


def perspective(moved: np.ndarray) -> np.ndarray:
    """f64[3, 3] homography that moves the corners (+-1, +-1) outwards; moved as in `distort`."""
    matrix: np.ndarray = perspectives(moved[None])[0]
    return matrix


def perspectives(moved: np.ndarray) -> np.ndarray:
    """f64[P, 3, 3] homographies of moved f64[P, 4], all solved in one call."""
    top, bottom, left, right = np.asarray(moved, float).T
    one = np.ones(len(moved))
    zero = np.zeros(len(moved))
    source = [(-one, -one), (-one, one), (one, -one), (one, one)]
    target = [(-1 - left, -1 - top), (-1 - right, 1 + top), (1 + left, -1 - bottom), (1 + right, 1 + bottom)]
    rows = []
    values = []
    for (a, b), (u, v) in zip(source, target, strict=True):
        rows += [[a, b, one, zero, zero, zero, -u * a, -u * b], [zero, zero, zero, a, b, one, -v * a, -v * b]]
        values += [u, v]
    solved = np.linalg.solve(np.array(rows).transpose(2, 0, 1), np.array(values).T[..., None])[..., 0]
    return np.concatenate([solved, one[:, None]], axis=1).reshape(-1, 3, 3)


def sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """array[C, *rows.shape] of x[C, M, T] at places in [-1, 1]: bilinear, mirrored outside, same dtype.

    Images (uint8) are rounded.
    """
    from scipy.ndimage import map_coordinates

    places = [(rows + 1) / 2 * (x.shape[1] - 1), (columns + 1) / 2 * (x.shape[2] - 1)]
    out = np.stack([map_coordinates(plane.astype(np.float32), places, order=1, mode="mirror") for plane in x])
    return (np.clip(np.rint(out), 0, 255) if x.dtype == np.uint8 else out).astype(x.dtype)


def distort_many(
    x: torch.Tensor, corners: torch.Tensor, zoom: float, perspective: torch.Tensor
) -> torch.Tensor:
    """[P, C, M, T]: `distort` of every cut of x at once, where x lies; same dtype.

    corners      i64[P], 0..3
    perspective  f64[P, 3, 3]

    Places are computed in float64 as on the host: in float32 they would be off by 3e-5 of a frame, and the
    values by as much of a step between two frames.
    """
    _, _, bins, frames = x.shape
    at_once = max(1, PLACES_AT_ONCE // (bins * frames))
    parts = zip(x.split(at_once), corners.split(at_once), perspective.split(at_once), strict=True)
    return torch.cat([_distort_some(part, c, zoom, h) for part, c, h in parts])


def _distort_some(x: torch.Tensor, corners: torch.Tensor, zoom: float, h: torch.Tensor) -> torch.Tensor:
    count, channels, bins, frames = x.shape
    row_anchor = (corners % 2 * 2 - 1).double()[:, None, None]
    column_anchor = (corners // 2 * 2 - 1).double()[:, None, None]
    grid_rows = torch.linspace(-1, 1, bins, dtype=torch.float64, device=x.device)[:, None]
    grid_columns = torch.linspace(-1, 1, frames, dtype=torch.float64, device=x.device)
    rows = row_anchor + (grid_rows - row_anchor) / zoom
    columns = column_anchor + (grid_columns - column_anchor) / zoom
    h = h[..., None, None]
    depth = h[:, 2, 0] * rows + h[:, 2, 1] * columns + 1
    top, bottom, down = _neighbours((h[:, 0, 0] * rows + h[:, 0, 1] * columns + h[:, 0, 2]) / depth, bins)
    left, right, along = _neighbours((h[:, 1, 0] * rows + h[:, 1, 1] * columns + h[:, 1, 2]) / depth, frames)
    kind = torch.float32 if x.dtype == torch.float32 else torch.float64  # coarser values are rounded: exactly
    planes = x.reshape(count, channels, bins * frames).to(kind)

    def read(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        index = (row * frames + column).reshape(count, 1, -1).expand(-1, channels, -1)
        return planes.gather(2, index).reshape(x.shape)

    down = down.to(kind)[:, None]
    along = along.to(kind)[:, None]
    upper = read(top, left) * (1 - along) + read(top, right) * along
    lower = read(bottom, left) * (1 - along) + read(bottom, right) * along
    out = (upper * (1 - down) + lower * down).float()
    return (out.round_().clamp_(0, 255) if x.dtype == torch.uint8 else out).to(x.dtype)


def _neighbours(places: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(lower index, upper index, share of the upper) of places in [-1, 1] on an axis, mirrored outside."""
    if size == 1:
        zero = torch.zeros_like(places)
        return zero.long(), zero.long(), zero
    place = ((places + 1) / 2 * (size - 1)).abs() % (2 * (size - 1))
    place = torch.minimum(place, 2 * (size - 1) - place)
    lower = place.floor().clamp_(max=size - 2)
    return lower.long(), lower.long() + 1, place - lower
