"""The numbers of librosa_mel.py: a file beside it that it imports rides along into the bundle."""

SETTINGS = {
    "sr": 32000,
    "n_fft": 2048,
    "hop_length": 512,
    "n_mels": 64,
    "fmin": 50.0,
    "fmax": 14000.0,
    "htk": True,
    "norm": None,
}
TOP_DB = 80.0
