"""Front ends of the systems of 2024 to 2026 and of general audio nets, as values of `frontends.FrontEnd`.

Owns numbers only. Source: the named code at the given commit. What stands behind `finish` is a member's: the
steps that make the authors' array of the stored one.
  birdclef2024_1st      arpoyda/BirdCLEF_2024 4261b3c9: one window; _stitched is its inference: windows with
                        half of each neighbour, one top_db over the recording
  birdclef2024_3rd      TheoViel/kaggle_birdclef2024 5ae1f182; finish: repeat 2, frequency_map 0..1
  birdclef2024_4th      yoku001/BirdCLEF2024-4th-place-solution-melspec 58e036ee; its rexnet: mean -80, std 80
  birdclef2024_4th_cqt  tamotamo17/BirdCLEF2024-4th-place-solution eed620ea, nnAudio 0.3.4; its SED nets
                        take gain 64, scale "log", log_offset 1
  birdclef2025_1st      N. Babych's public inference notebook: one array; _recording is its inference: one
                        STFT and one set of figures of the recording, 20 s per 5 s row; finish: repeat 3
  birdclef2025_2nd      VSydorskyy/BirdCLEF_2025_2nd_place 55159e45
  birdclef2025_8th      StarrySky-SHT/BirdClef2025-8thSol b03c1301; finish: time_first; _cnn: repeat 3 before
  birdclef2026_2nd_*    FlorentinGe/Birdclef2026-2ndplace 5e1ce860: top_db over the windows of a recording;
                        finish: repeat 3 (_128, _224_*), repeat 3, imagenet (_resized), none (_passt, _sed)
  birdclef2026_9th      yannan90/birdclef-2026-private-9th-public-2nd-solution 4a335a05
  torchaudio_*          torchaudio 2.11.0: MelSpectrogram and AmplitudeToDB with their defaults, and at 32 kHz
                        with each mel scale and norm; _db80 has top_db 80
  ast                   transformers 5.23.0 ASTFeatureExtractor (AudioSet figures); finish: time_first
  beats                 microsoft/unilm c68101b6 beats/BEATs.py; finish: time_first
  passt, efficientat    kkoutini/PaSST 2a5c818a and fschmid56/EfficientAT a425fdce: models/preprocess.py
  panns                 qiuqiangkong/audioset_tagging_cnn 16000e4f; finish: time_first
  htsat                 RetroCirce/HTS-Audio-Transformer 2e29471f; finish: fold 256
  clap_*                LAION-AI/CLAP 1fd4c37d, transformers 5.23.0 ClapFeatureExtractor; finish: time_first
  yamnet                tensorflow/models 33630ec9 research/audioset/yamnet; finish: time_first; _patches:
                        zeros up to whole patches, for the view chunks with 96 frames every 48
"""
from typing import Any

FLOAT32_EPS = 1.1920928955078125e-07  # Kaldi's log floor: std::numeric_limits<float>::epsilon()
_HTK = {"mel_scale": "htk", "mel_norm": "none"}
_KALDI_MEL = {"mel_scale": "kaldi", "mel_norm": "none"}
_32K = {"rate": 32000}
_BIRDS_128 = {**_32K, **_HTK, "n_fft": 2048, "hop": 512, "mels": 128, "fmin": 20.0, "fmax": 16000.0}
_BIRDS_224 = {**_32K, **_HTK, "n_fft": 4096, "hop": 1252, "mels": 224, "fmin": 0.0, "fmax": 16000.0}
_2024_1ST = {
    **_32K, "gain": 1024.0, "n_fft": 1024, "hop": 500, "fmin": 40.0, "fmax": 15000.0, "edges": "zeros",
    "top_db": 100.0,
}
_2025_1ST = {**_BIRDS_224, "window_norm": "window", "norm": "z_minmax", "pad_value": 0.0}
_2025_8TH = {
    **_32K, **_HTK, "n_fft": 2048, "win_length": 1024, "hop": 512, "mels": 192, "fmin": 40.0,
    "fmax": 14000.0, "top_db": None, "norm": "z_minmax", "minmax_eps": 0.0, "pad_value": 0.0,
}
_2026_2ND = {"scope": "batch", "piece_seconds": 5.0, "norm": "minmax", "pad_value": 0.0}
_TORCHAUDIO = {**_BIRDS_128, "precision": "single", "top_db": None, "pad_value": -100.0}
_KALDI = {
    **_KALDI_MEL, "rate": 16000, "n_fft": 512, "win_length": 400, "win_place": "start", "hop": 160,
    "periodic": False, "edges": "none", "remove_dc": True, "preemphasis": 0.97, "preemphasis_in": "frame",
    "fmin": 20.0, "fmax": 8000.0, "scale": "log", "log_offset": 0.0, "log_floor": FLOAT32_EPS,
    "norm": "standard",
}
_PASST = {
    **_32K, **_KALDI_MEL, "preemphasis": 0.97, "n_fft": 1024, "win_length": 800, "hop": 320,
    "periodic": False, "fmin": 0.0, "fmax": 15500.0, "scale": "log", "log_offset": 1e-5, "norm": "standard",
    "mean": -4.5, "std": 5.0,
}
_PANNS = {
    **_32K, "n_fft": 1024, "hop": 320, "mels": 64, "fmin": 50.0, "fmax": 14000.0, "top_db": None,
    "precision": "single", "pad_value": -100.0,
}
_CLAP = {
    "rate": 48000, "short": "repeat", "min_seconds": 10.0, "n_fft": 1024, "hop": 480, "mels": 64,
    "fmin": 50.0, "fmax": 14000.0, "top_db": None, "pad_value": -100.0,
}
_YAMNET = {
    **_KALDI_MEL, "rate": 16000, "n_fft": 512, "win_length": 400, "win_place": "start", "hop": 160,
    "edges": "none", "power": 1.0, "mels": 64, "fmin": 125.0, "fmax": 7500.0, "scale": "log",
    "log_offset": 0.001,
}

MODERN: dict[str, dict[str, Any]] = {
    "birdclef2024_1st": _2024_1ST,
    "birdclef2024_1st_stitched": {
        **_2024_1ST, "scope": "recording", "piece_seconds": 5.0, "piece_frames": 320, "context_frames": 160,
    },
    "birdclef2024_3rd": {
        **_32K, **_HTK, "level": "std", "n_fft": 1536, "win_length": 1024, "hop": 717, "mels": 224,
        "fmin": 90.0, "fmax": 14000.0, "top_db": None, "norm": "standard", "mean": 40.0, "std": 80.0,
    },
    "birdclef2024_4th": {
        **_32K, "n_fft": 2048, "hop": 627, "fmin": 0.0, "fmax": 16000.0, "edges": "zeros",
        "norm": "standard", "std": 255.0,
    },
    "birdclef2024_4th_cqt": {
        **_32K, "spectrum": "cqt", "n_fft": 8192, "hop": 250, "mels": 160, "fmin": 256.0,
        "bins_per_octave": 27, "power": 1.0, "scale": "linear", "pad_value": 0.0,
    },
    "birdclef2025_1st": _2025_1ST,
    "birdclef2025_1st_recording": {
        **_2025_1ST, "scope": "recording", "pieces": "whole", "piece_seconds": 5.0, "piece_frames": 128,
        "context_frames": 192,
    },
    "birdclef2025_2nd": {
        **_BIRDS_128, "level": "peak", "window_norm": "window", "norm": "z_minmax", "pad_value": 0.0,
    },
    "birdclef2025_8th": _2025_8TH,
    "birdclef2025_8th_cnn": {**_2025_8TH, "resize": [192, 626]},
    "birdclef2026_2nd_128": {**_BIRDS_128, **_2026_2ND},
    "birdclef2026_2nd_224_hop512": {**_BIRDS_224, **_2026_2ND, "hop": 512},
    "birdclef2026_2nd_224_hop1252": {**_BIRDS_224, **_2026_2ND, "piece_seconds": 20.0},
    "birdclef2026_2nd_passt": {**_BIRDS_128, **_2026_2ND, "n_fft": 1024, "hop": 320, "fmin": 0.0},
    "birdclef2026_2nd_resized": {
        **_BIRDS_128, "hop": 64, "norm": "minmax", "resize": [128, 512], "pad_value": 0.0,
    },
    "birdclef2026_2nd_sed": {**_BIRDS_128, **_2026_2ND, "norm": "z", "pad_value": "clip_min"},
    "birdclef2026_9th": {
        **_BIRDS_128, "mel_norm": "slaney", "window_norm": "window", "norm": "z_minmax", "minmax_eps": 1e-7,
        "pad_value": 0.0,
    },
    "torchaudio_default_mel": {
        **_HTK, "rate": 16000, "n_fft": 400, "hop": 200, "fmin": 0.0, "scale": "linear", "pad_value": 0.0,
    },
    "torchaudio_default_db": {
        **_HTK, "rate": 16000, "n_fft": 400, "hop": 200, "fmin": 0.0, "precision": "single", "top_db": None,
        "pad_value": -100.0,
    },
    "torchaudio_htk_none": _TORCHAUDIO,
    "torchaudio_htk_slaney": {**_TORCHAUDIO, "mel_norm": "slaney"},
    "torchaudio_slaney_none": {**_TORCHAUDIO, "mel_scale": "slaney"},
    "torchaudio_slaney_slaney": {**_TORCHAUDIO, "mel_scale": "slaney", "mel_norm": "slaney"},
    "torchaudio_db80": {**_BIRDS_128},
    "ast": {
        **_KALDI, "layout": "canvas", "layout_frames": 1024, "mean": -4.2677393, "std": 2 * 4.5689974,
        "pad_value": 4.2677393 / (2 * 4.5689974),
    },
    "beats": {**_KALDI, "gain": 32768.0, "window": "povey", "mean": 15.41663, "std": 2 * 6.55582},
    "passt": _PASST,
    "efficientat": {**_PASST, "fmax": 15000.0},
    "panns": _PANNS,
    "htsat": {**_PANNS, "resize": [0, 1024], "resize_kind": "bicubic", "align_corners": True},
    "clap_rand_trunc": _CLAP,
    "clap_fusion": {**_CLAP, **_HTK},
    "yamnet": _YAMNET,
    "yamnet_patches": {**_YAMNET, "short": "end", "min_seconds": 0.975, "step_seconds": 0.48},
}
