"""The published systems' front ends as values of `frontends.FrontEnd`; a new entry here is listed, tested and
usable by name.

Owns numbers only. Source: the systems' own code, unless a line says otherwise:
  argus                 lRomul/argus-freesound (FAT2019 1st): whole-clip log-mel; its deltas are a finish, per
                        tile
  daisukelab, _16k      the mel image of mhiro2, the 7th and 12th places (44.1 kHz) and of ERC2019 (16 kHz)
  viel, viel_clip       TheoViel/kaggle_freesound (9th), global or per-clip normalisation
  filipmu, _colour      filipmu's grey picture; three colour bands are our definition, none was published
  hackerearth           shadab4150/Emotion_detection: canvas; _3channel is its planned picture, row counts are
                        our choice
  simongrest            simongrest (44th): PCEN
  ex4_mel, ex4_stft     ex4sperans (3rd); the STFT's hop is unpublished, 128 is our reading
  qrfaction_*           qrfaction (2nd): trimmed wave for its in-net mel; statistics of the UNTRIMMED clip;
                        trimmed length
  jeong_*               finejuly/dcase2018_task2_cochlearai at three rates; the original pads short clips at
                        random, ours centred
  osciiart_pad8, _pad64 OsciiArt (4th), two margins
  wave                  the waveform as it is (EnvNet-v2)
Systems of 2024 to 2026 are in `modern_presets`.
"""
from typing import Any

from .modern_presets import MODERN

_IMAGE = {
    "trim_db": 60.0,
    "short": "centre",
    "min_seconds": 2.0,
    "norm": "image",
    "stored": "uint8",
    "pad_value": 0.0,
}
_OSCIIART = {"hop": 347, "layout": "margins", "norm": "clip", "eps": 1e-7}
_JEONG = {"level": "half_peak", "short": "centre", "spectrum": "wave", "pad_value": 0.0}
# Pad = ln(1e-4), digital silence
_EX4 = {"power": 1.0, "scale": "log", "window": "hann_float32", "pad_value": -9.210340371976182}

PRESETS: dict[str, dict[str, Any]] = {
    "argus": {"trim_db": 60.0, "short": "half_second", "min_seconds": 0.5},
    "daisukelab": {**_IMAGE, "hop": 694},
    "daisukelab_16k": {**_IMAGE, "rate": 16000, "hop": 250},
    "viel": {
        "trim_db": 60.0,
        "short": "centre",
        "min_seconds": 4.0,
        "mels": 64,
        "n_fft": 1920,
        "norm": "standard",
        "mean": -35.7,
        "std": 21.6,
        "stored": "float16",
    },
    "viel_clip": {
        "trim_db": 60.0,
        "short": "centre",
        "min_seconds": 4.0,
        "mels": 64,
        "n_fft": 1920,
        "norm": "clip",
        "stored": "float16",
    },
    "filipmu": {**_IMAGE, "min_seconds": 4.0, "mels": 224, "n_fft": 4480, "hop": 746},
    "filipmu_colour": {
        **_IMAGE,
        "min_seconds": 4.0,
        "mels": 672,
        "n_fft": 13440,
        "hop": 746,
        "layout": "bands",
    },
    "hackerearth": {
        "n_fft": 2048,
        "hop": 512,
        "fmin": 0.0,
        "layout": "canvas",
        "layout_frames": 455,
        "norm": "image",
        "stored": "uint8",
        "pad_value": 0.0,
    },
    "hackerearth_3channel": {
        "spectrum": "mel_chroma_stft",
        "n_fft": 2048,
        "hop": 512,
        "fmin": 0.0,
        "layout": "canvas",
        "layout_frames": 455,
        "norm": "image",
        "stored": "uint8",
        "pad_value": 0.0,
    },
    "simongrest": {
        "trim_db": 60.0,
        "mels": 256,
        "n_fft": 5120,
        "hop": 689,
        "fmin": 0.0,
        "scale": "pcen",
        "precision": "double",
        "pad_value": 0.0,
    },
    "ex4_mel": {**_EX4, "n_fft": 2048, "hop": 1024, "fmin": 5.0},
    "ex4_stft": {**_EX4, "spectrum": "stft", "n_fft": 256, "hop": 128},  # hop unpublished, our reading
    "qrfaction_wave": {"trim_db": 60.0, "spectrum": "wave", "pad_value": 0.0},
    "qrfaction_statistics": {"spectrum": "statistics", "pad_value": 0.0},
    "qrfaction_length": {"trim_db": 60.0, "spectrum": "length", "pad_value": 0.0},
    "jeong_16000": {**_JEONG, "rate": 16000, "min_seconds": 64000 / 16000},
    "jeong_32000": {**_JEONG, "rate": 32000, "min_seconds": 64000 / 32000},
    "jeong_44100": {**_JEONG, "rate": 44100, "min_seconds": 64000 / 44100},
    "osciiart_pad8": {**_OSCIIART, "layout_frames": 8},
    "osciiart_pad64": {**_OSCIIART, "layout_frames": 64},
    "wave": {"spectrum": "wave", "pad_value": 0.0},
    **MODERN,
}
