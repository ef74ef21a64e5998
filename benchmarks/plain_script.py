"""The script every Kaggler writes: all spectrograms in a list, one loop over the models, to_csv at the end.

The peer of benchmarks/faults_baseline.py. Deliberately plain, and no worse than public kernels: it reads the
sample, runs clips one by one, averages the models' probabilities. Not part of the product.
`python plain_script.py BUNDLE INPUT WORKING`
"""
from __future__ import annotations

import json
import os
import sys

import librosa
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from kernel import models  # noqa: E402 (the same nets; only the kernel around them differs)

bundle, input_dir, working = sys.argv[1:]
sample = pd.read_csv(f"{input_dir}/sample_submission.csv")
manifest = json.load(open(f"{bundle}/manifest.json"))
classes = sample.columns[1:]


def logmel(path: str) -> np.ndarray:
    wave, _ = librosa.load(path, sr=44100)
    power = librosa.feature.melspectrogram(y=wave, sr=44100, n_mels=128, hop_length=347, n_fft=2560)
    mel = librosa.power_to_db(power)
    return np.stack([mel, librosa.feature.delta(mel), librosa.feature.delta(mel, order=2)])


X = [logmel(f"{input_dir}/test/{name}") for name in sample.fname]
predictions = []
for net in manifest["nets"]:
    member = next(m for m in manifest["ensemble"]["members"] if m["name"] == net["member"])
    model = models.build(member["family"], member["params"], len(classes))
    model.load_state_dict(load_file(f"{bundle}/{net['file']}"))
    model.eval()
    with torch.no_grad():
        channels = getattr(model, "channels", 1)
        predictions.append(
            [torch.sigmoid(model(torch.from_numpy(x[None, :channels]).float()))[0].numpy() for x in X]
        )
sample[classes] = np.mean(predictions, axis=0)
sample.to_csv(f"{working}/submission.csv", index=False)
