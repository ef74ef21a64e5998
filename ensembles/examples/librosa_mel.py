"""A front end of one's own: a log-mel spectrogram by librosa, as a training script would have it.

The function gets a mono wave f32[S] at the rate that the TOML gives and returns an array [M, T] or [C, M, T].
"""
import librosa
import numpy as np
from mel_settings import SETTINGS, TOP_DB


def mel(wave: np.ndarray) -> np.ndarray:
    """dB [64, T] below the clip's own maximum."""
    power = librosa.feature.melspectrogram(y=wave, **SETTINGS)
    return librosa.power_to_db(power, ref=np.max, top_db=TOP_DB)
