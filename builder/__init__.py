"""Building a bundle and the file to push: offline, never part of what ships.

build      one ensemble TOML -> DIR/bundle and DIR/push
weights    checkpoints -> safetensors blobs; recipe: random weights to time an ensemble
wheel      kernel/ and own model files -> one deterministic wheel
graphs     nets -> ONNX files for other back ends; wheels: those back ends, with an offline closure proof
metadata   dataset-metadata.json and kernel-metadata.json against Kaggle's rules; contents: what a bundle
           folder may hold
push       the kernel file with its constant, the notebook form; upload: commands and the real client
mounts     what Kaggle does to uploads, applied to a bundle, and whether the kernel still finds it
"""
