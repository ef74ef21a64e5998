"""Writes tests/goldens/keras: small files of tf-keras and Keras 3, and tf-keras's own answers.

    python keras_small.py tf-keras|keras3 FOLDER

Runs in an environment of its own: the first with tf-keras, the second with Keras 3.
"""
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np


def recurrent(folder: Path) -> dict[str, Any]:
    """cuDNN layers as they are saved; the answers are of the plain layers that tf-keras makes of them."""
    import tf_keras as keras
    from keras_originals import L, _shape_only
    from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
    from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

    CuDNNLSTM._process_batch = lambda self, x, state: (_shape_only(self, x, state)[0], [state[0], state[1]])
    plain = {"gru": lambda: L.GRU(3, return_sequences=True, reset_after=True, recurrent_activation="sigmoid"),
             "lstm": lambda: L.LSTM(3, return_sequences=True, recurrent_activation="sigmoid")}
    stored = {"gru": lambda: CuDNNGRU(3, return_sequences=True),
              "lstm": lambda: CuDNNLSTM(3, return_sequences=True)}
    stream = np.random.RandomState(11)
    answers: dict[str, Any] = {}
    for kind in ("gru", "lstm"):
        for name, wrap in ((kind, lambda layer: layer), (f"bidirectional_{kind}", L.Bidirectional)):
            path = folder / f"cudnn_{name}.h5"
            for make in (stored, plain):
                keras.backend.clear_session()
                given = L.Input((6, 4))
                net = keras.Model(given, wrap(make[kind]())(given))
                if make is stored:
                    net.set_weights([stream.standard_normal(w.shape) for w in net.get_weights()])
                    net.save_weights(path)
                elif kind == name:
                    # Layers are found by name when the kinds differ.
                    net.layers[-1].set_weights(_converted(keras, path, net.layers[-1]))
                else:
                    net.load_weights(path)
            x = stream.standard_normal((2, 6, 4)).astype(np.float32)
            answers[name] = {"x": x.tolist(), "y": net.predict(x, verbose=0).tolist()}
    return answers


def _converted(keras: Any, path: Path, layer: Any) -> Any:
    """tf-keras's own conversion of a cuDNN layer's arrays."""
    import h5py
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    with h5py.File(path) as file:
        name = next(n for n in file.attrs["layer_names"] if len(file[n].attrs["weight_names"]))
        arrays = [file[name][w][()] for w in file[name].attrs["weight_names"]]
    return preprocess_weights_for_loading(layer, arrays)


def second_level(folder: Path) -> dict[str, Any]:
    import tf_keras as keras
    from keras_originals import stacker

    keras.backend.clear_session()
    net = stacker(5, 7)
    stream = np.random.RandomState(12)
    net.set_weights([stream.uniform(0.1, 0.9, w.shape) for w in net.get_weights()])
    net.save_weights(folder / "stacker.h5")
    x = stream.uniform(0, 1, (3, 5, 7)).astype(np.float32)
    return {"x": x.tolist(), "y": net.predict(x, verbose=0).tolist()}


def two_branches(folder: Path) -> None:
    """A net of Keras 3 whose branches have equal shapes and are joined in the other order."""
    import keras
    from keras import layers

    given = layers.Input((8, 8, 1))
    first = layers.Conv2D(2, 3)(given)
    second = layers.Conv2D(2, 3)(given)
    x = layers.BatchNormalization()(layers.Concatenate()([second, first]))
    x = layers.Bidirectional(layers.GRU(3))(layers.Reshape((6, 24))(layers.Dropout(0.5)(x)))
    net = keras.Model(given, layers.Dense(5)(x))
    stream = np.random.RandomState(13)
    net.set_weights([stream.standard_normal(w.shape) for w in net.get_weights()])
    net.save_weights(folder / "three.weights.h5")
    net.save(folder / "three.h5")


def main(which: str, place: str) -> None:
    """Writes the files of one package."""
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    if which == "keras3":
        two_branches(folder)
        return
    answers = recurrent(folder) | {"stacker": second_level(folder)}
    (folder / "answers.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
