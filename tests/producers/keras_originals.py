"""The nets of qrfaction and of Jeong in tf-keras, with their mel layers and cuDNN layers, saved as `.h5`.

    python keras_originals.py qrfaction|jeong|keras3 FOLDER

Runs in an environment of its own, with tf-keras (or Keras 3) and without this project. Written from the
published layer lists: qrfaction/1st-Freesound-Audio-Tagging-2019 code/models.py (facts alone: the repository
is AGPL) and finejuly/dcase2018_task2_cochlearai utils/model.py. Weights are random; cuDNN layers are saved as
cuDNN stores them and answered by tf-keras's own conversion, since a CPU cannot run them. Keras 3 has no cuDNN
layers: there the same net has plain ones and starts at the mel picture.
"""
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tensorflow as tf

THREE = sys.argv[1:2] == ["keras3"]
if THREE:
    import keras
    from keras import layers as L
else:
    import tf_keras as keras
    from tf_keras import layers as L
    from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU

FILTERS = (96, 128, 256, 512)


def _shape_only(self: Any, inputs: Any, initial_state: Any) -> Any:
    """Zeros of the right shape in place of cuDNN's operator, which a CPU lacks: enough to save weights."""
    state = tf.zeros([tf.shape(inputs)[0], self.units])
    return tf.zeros([tf.shape(inputs)[0], inputs.shape[1], self.units]), [state]


if not THREE:
    CuDNNGRU._process_batch = _shape_only


class Melspectrogram(L.Layer):
    """The frozen mel layer: DFT kernels and filter bank are weights, as in kapre 0.1."""

    def __init__(self, bank: np.ndarray, n_fft: int, hop: int, power: float, **named: Any) -> None:
        super().__init__(trainable=False, **named)
        self.bank, self.n_fft, self.hop, self.power = bank, n_fft, hop, power
        self.kernels: dict[str, Any] = {}

    def build(self, shape: Any) -> None:
        bins = self.n_fft // 2 + 1
        angles = 2 * np.pi / self.n_fft * np.outer(np.arange(self.n_fft), np.arange(bins))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        for name, wave in (("real_kernels", np.cos(angles)), ("imag_kernels", np.sin(angles))):
            values = (wave * hann[:, None])[:, None, None, :].astype(np.float32)
            self.kernels[name] = self.add_weight(name=name, shape=values.shape, trainable=False)
            self.kernels[name].assign(values)
        self.freq2mel = self.add_weight(name="freq2mel", shape=self.bank.T.shape, trainable=False)
        self.freq2mel.assign(self.bank.T)

    def call(self, wave: Any) -> Any:
        """[B, samples] -> dB [B, time, mels, 1] below each clip's own peak."""
        x = wave[:, :, None, None]
        parts = [tf.nn.conv2d(x, kernels, (1, self.hop, 1, 1), "SAME")
                 for kernels in self.kernels.values()]
        power = tf.square(parts[0][:, :, 0]) + tf.square(parts[1][:, :, 0])
        mel = tf.linalg.matmul(power, self.freq2mel)
        mel = tf.sqrt(mel) if self.power == 1.0 else mel
        decibels = 10 * tf.math.log(tf.maximum(mel, 1e-10)) / np.log(10.0)
        decibels -= tf.reduce_max(decibels, axis=(1, 2), keepdims=True)
        return tf.maximum(decibels, -80.0)[..., None]


def _excite(x: Any, maps: int, ratio: int) -> Any:
    gate = L.Reshape((1, 1, maps))(L.GlobalAveragePooling2D()(x))
    gate = L.Dense(maps // ratio, activation="relu")(gate)
    return L.Multiply()([x, L.Dense(maps, activation="sigmoid")(gate)])


def _half(x: Any, maps: int, sizes: tuple[int, ...], excitation: bool, bias: bool = True) -> Any:
    share = maps // len(sizes)
    made = [L.Conv2D(share, k, padding="same", use_bias=bias)(x) for k in sizes]
    x = L.BatchNormalization(momentum=0.85)(made[0] if len(made) == 1 else L.Concatenate()(made))
    x = L.Activation("relu")(x)
    return _excite(x, maps, 4) if excitation else x


def _pool(x: Any, size: int, order: str) -> Any:
    average = L.AveragePooling2D((size, 1), (2, 1), "same")
    maximum = L.MaxPooling2D((1, size), (1, 2), "same")
    return maximum(average(x)) if order == "average_first" else average(maximum(x))


def qrfaction(bank: np.ndarray, classes: int, params: dict[str, Any], cudnn: bool) -> Any:
    """The net of wave [B, 220500], statistics [B, 128, 12] and length [B, 1]; `params` are the family's."""
    statistics, length = L.Input((128, 12)), L.Input((1,))
    gru: Callable[[], Any] = (
        (lambda: CuDNNGRU(128, return_sequences=True)) if cudnn
        else (lambda: L.GRU(128, return_sequences=True, reset_after=True, recurrent_activation="sigmoid"))
    )
    y = L.BatchNormalization(momentum=0.85)(statistics)
    for _ in range(2):
        y = L.Bidirectional(gru(), merge_mode="sum")(y)
    y = L.GlobalMaxPooling1D()(y)
    wave = L.Input((params["samples"], 64, 1) if THREE else (params["samples"],))
    x = wave if THREE else Melspectrogram(bank, 1024, 512, 2.0, name="melspectrogram_1")(wave)
    excitation = bool(params.get("excitation"))
    multi = params.get("stem") == "multi_scale"
    x = _half(x, 96 if multi else 64, (3, 5, 7) if multi else (3,), excitation, bias=False)
    for index, maps in enumerate(int(f * params.get("width", 1.0)) for f in FILTERS):
        size = (2, 2, 3, 0)[index]
        first = _half(x, maps, (3,), excitation)
        first = L.MaxPooling2D(3, 1, "same")(first) if size else first
        x = _half(first, maps, (3,), excitation)
        x = _pool(x, size, params.get("pool", "average_first")) if size else x
    time, mels, maps = x.shape[1:]
    x = L.Reshape((time, mels // 2, 2 * maps))(x)
    x = L.Lambda(lambda v: tf.reduce_mean(tf.reduce_max(v, 1), 1))(x)
    out = L.Dense(classes, activation="sigmoid")(L.Concatenate()([x, y, length]))
    return keras.Model([wave, statistics, length], out)


def jeong(bank: np.ndarray, classes: int, params: dict[str, Any], cudnn: bool) -> Any:
    """The net of wave [B, samples]: batch norm over it, mel in the net, eight dense modules, eight heads."""
    wave = L.Input((params["samples"], 1))
    x = L.Reshape((params["samples"],))(L.BatchNormalization()(wave))
    x = Melspectrogram(bank, 1024, 128, 1.0, name="melspectrogram_1")(x)
    x = L.BatchNormalization(axis=1)(L.Permute((2, 1, 3))(x))
    x = L.Concatenate()([x, L.Conv2D(15, 3, padding="same")(x)])
    width = 16
    for _ in range(8):
        maps = min(width, 512)
        new = L.Conv2D(maps, 1, padding="same")(L.Activation("relu")(L.BatchNormalization()(x)))
        new = L.Conv2D(maps, 3, padding="same")(L.Activation("relu")(L.BatchNormalization()(new)))
        x = L.Concatenate()([_excite(new, maps, 2), x])
        x = L.MaxPooling2D(2, padding="same")(x)
        width += maps
    x = L.Activation("relu")(L.BatchNormalization()(x))
    heads = [L.Activation("softmax")(L.GlobalAveragePooling2D()(L.Dense(classes)(x))) for _ in range(8)]
    return keras.Model(wave, L.Average()(heads))


def stacker(classes: int, inputs: int) -> Any:
    """Each class's own weights over members and average, then one dense layer that mixes classes."""
    features = L.Input((classes, inputs))
    x = L.Flatten()(L.LocallyConnected1D(1, 1, use_bias=False)(features))
    x = L.Dense(classes, use_bias=False)(x)
    return keras.Model(features, L.Lambda(lambda v: (tf.tanh(v - 1.6) + 1) / 2)(x))


def _fill(net: Any, seed: int, gain: float) -> None:
    """Random weights that behave like trained ones; what the mel layer holds stays."""
    stream = np.random.RandomState(seed)
    for layer in net.layers:
        if isinstance(layer, Melspectrogram) or not layer.weights:
            continue
        made = []
        for weight in layer.weights:
            name, shape = weight.name.split("/")[-1], tuple(weight.shape)
            if "variance" in name:
                made.append(stream.uniform(0.5, 1.5, shape))
            elif "gamma" in name:
                made.append(stream.uniform(0.8, 1.2, shape))
            elif len(shape) >= 2 and "bias" not in name:
                rows = np.prod(shape[:-1])
                made.append(stream.standard_normal(shape) * gain / np.sqrt(rows))
            else:
                made.append(stream.uniform(-0.1, 0.1, shape))
        layer.set_weights(made)


def _build(
    name: str, data: Any, task: dict[str, Any], member: dict[str, Any], samples: int, cudnn: bool
) -> Any:
    keras.backend.clear_session()
    make = jeong if name == "jeong" else qrfaction
    bank = data[f"{member['name']}/bank"]
    return make(bank, task["classes"], {**member["params"], "samples": samples}, cudnn and not THREE)


def _member(
    name: str, task: dict[str, Any], member: dict[str, Any], data: Any, folder: Path
) -> tuple[np.ndarray, float]:
    """f64[clips, K] of one net, saved as its original would be: the mean over its cuts of each clip.

    Computed in double precision; second comes the largest distance of its single-precision answers.
    """
    rows = []
    rounding = 0.0
    weights = folder / member["weights"]
    weights.parent.mkdir(parents=True, exist_ok=True)
    for clip in range(task["clips"]):
        cuts = {k: data[f"{member['name']}/{clip}/{k}"] for k in member["inputs"]}
        timed = cuts["mel"] if "mel" in cuts else cuts["x"]
        samples = timed.shape[-1]
        if clip == 0:
            net = _build(name, data, task, member, samples, True)
            _fill(net, 7 + len(member["name"]), member["gain"])
            if weights.name == "net.h5":
                net.save(weights)  # Keras 3 writes .h5 of whole nets alone.
                weights = weights.with_name("again.weights.h5")
            net.save_weights(weights)
        if name == "jeong":
            given: Any = timed[:, 0, 0, :, None]
        else:
            first = timed[:, 0].transpose(0, 2, 1)[..., None] if THREE else timed[:, 0, 0]
            given = [first, *(np.broadcast_to(cuts[k].reshape(1, *shape), (len(timed), *shape))
                              for k, shape in (("statistics", (128, 12)), ("length", (1,))))]
        answers = {}
        for precision in ("float32", "float64"):
            keras.backend.set_floatx(precision)
            net = _build(name, data, task, member, samples, False)
            keras.backend.set_floatx("float32")
            net.load_weights(weights)
            answers[precision] = net.predict(given, verbose=0).mean(0)
        rows.append(answers["float64"])
        rounding = max(rounding, float(np.abs(answers["float32"] - answers["float64"]).max()))
    return np.stack(rows).astype(np.float64), rounding


def _second_level(made: list[np.ndarray], task: dict[str, Any], folder: Path) -> np.ndarray:
    """f64[clips, K] of a stacker over the members and their weighted average, saved beside them."""
    weights = np.array(task["average_weights"])
    average = np.tensordot(weights / weights.sum(), np.stack(made), 1)
    features = np.stack([*made, average], axis=2).astype(np.float32)
    keras.backend.clear_session()
    net = stacker(task["classes"], features.shape[2])
    stream = np.random.RandomState(3)
    local, dense = (stream.standard_normal(w.shape) for w in net.get_weights())
    net.set_weights([np.abs(local) / 4, np.eye(len(dense)) + 0.1 * dense])
    (folder / task["stacker"]).parent.mkdir(exist_ok=True)
    net.save_weights(folder / task["stacker"])
    return net.predict(features, verbose=0).astype(np.float64)


def main(name: str, place: str) -> None:
    """Writes the checkpoints, scores.npy, f64[clips, K], and rounding.json, by member."""
    folder = Path(place)
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "inputs.npz") as data:
        came = {member["name"]: _member(name, task, member, data, folder) for member in task["members"]}
    made = [scores for scores, _ in came.values()]
    (folder / "rounding.json").write_text(json.dumps({key: far for key, (_, far) in came.items()}))
    if "stacker" in task:
        scores = _second_level(made, task, folder)
    else:
        scores = np.exp(np.mean(np.log(np.maximum(made, 1e-30)), axis=0))
    np.save(folder / "scores.npy", scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
