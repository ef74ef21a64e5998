"""Every modern front end under the name of its golden numbers: wave -> the array of the authors' code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kernel.inference import finish, views
from kernel.sound import frontends

Front = Callable[[np.ndarray], np.ndarray]
REPEAT = {"kind": "repeat", "channels": 3}
TIME_FIRST = ("time_first",)
QUIETER = np.float32(0.001)  # the second item of the batches of two


def modern(
    preset: str,
    steps: tuple[Any, ...] = (),
    *,
    channel: bool = False,
    view: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Front:
    """Front end, view and finish of one preset; without a view the one cut alone.

    channel  keep a single channel's axis
    """

    def run(wave: np.ndarray) -> np.ndarray:
        fe = frontends.build({"preset": preset, **keys})
        cuts = views.build(dict(view or {"kind": "full"}), fe).cut(fe(wave), "golden")
        x = finish.build(steps, fe)(torch.from_numpy(cuts)).numpy()
        x = x if channel or x.shape[1] > 1 else x[:, 0]
        return x if view else x[0]

    return run


def batch(preset: str, **keys: Any) -> Front:
    """[2, M, T] of the recording [wave, 0.001 x wave], two windows of the wave's own length."""

    def run(wave: np.ndarray) -> np.ndarray:
        fe = frontends.build({"preset": preset})
        fe = frontends.build({"preset": preset, "piece_seconds": len(wave) / fe.rate, **keys})
        both = fe(np.concatenate([wave, QUIETER * wave]))[0]
        return np.stack(np.split(both, 2, axis=-1))

    return run


def each(preset: str) -> Front:
    """[2, M, T] of the wave and of 0.001 x wave, each by itself."""
    fe = frontends.build({"preset": preset})
    return lambda wave: np.stack([fe(wave)[0], fe(QUIETER * wave)[0]])


FRONTENDS: dict[str, Front] = {
    "birdclef2024_1st": modern("birdclef2024_1st"),
    "birdclef2024_1st_stitched": modern(
        "birdclef2024_1st_stitched", channel=True, view={"kind": "chunks", "frames": 640, "stride": 320}
    ),
    "birdclef2024_3rd": modern(
        "birdclef2024_3rd", ({"kind": "repeat", "channels": 2}, {"kind": "frequency_map", "low": 0.0})
    ),
    "birdclef2024_4th": modern("birdclef2024_4th"),
    "birdclef2024_4th_cqt": modern("birdclef2024_4th_cqt"),
    "birdclef2025_1st": modern("birdclef2025_1st"),
    "birdclef2025_1st_file": modern(
        "birdclef2025_1st_recording", view={"kind": "chunks", "frames": 512, "stride": 128}
    ),
    "birdclef2025_2nd": modern("birdclef2025_2nd", channel=True),
    "birdclef2025_8th_sed": modern("birdclef2025_8th", TIME_FIRST),
    "birdclef2025_8th_cnn": modern("birdclef2025_8th_cnn", (REPEAT, "time_first")),
    **{
        f"birdclef2026_2nd_{name}": modern(f"birdclef2026_2nd_{name}", (REPEAT,))
        for name in ("128", "224_hop512", "224_hop1252")
    },
    "birdclef2026_2nd_passt": modern("birdclef2026_2nd_passt", channel=True),
    "birdclef2026_2nd_resized": modern("birdclef2026_2nd_resized", (REPEAT, "imagenet")),
    "birdclef2026_2nd_sed": modern("birdclef2026_2nd_sed", channel=True),
    "birdclef2026_2nd_batch": batch("birdclef2026_2nd_128"),
    "birdclef2026_9th": modern("birdclef2026_9th", channel=True),
    **{
        f"torchaudio_{name}": modern(f"torchaudio_{name}")
        for name in ("default_mel", "default_db", "htk_none", "htk_slaney", "slaney_none", "slaney_slaney")
    },
    "torchaudio_db80_per_item": each("torchaudio_db80"),
    "torchaudio_db80_per_batch": batch("torchaudio_db80", scope="batch"),
    "ast": modern("ast", TIME_FIRST),
    "beats": modern("beats", TIME_FIRST),
    "passt": modern("passt"),
    "efficientat": modern("efficientat"),
    "panns": modern("panns", TIME_FIRST),
    "htsat_image": modern("htsat", ("fold",), channel=True),
    "clap_rand_trunc": modern("clap_rand_trunc", TIME_FIRST),
    "clap_fusion": modern("clap_fusion", TIME_FIRST),
    "yamnet": modern("yamnet", TIME_FIRST),
    "yamnet_patches": modern(
        "yamnet_patches", TIME_FIRST, view={"kind": "chunks", "frames": 96, "stride": 48}
    ),
}
