"""Offline building: an ensemble TOML, checkpoints and kernel/ come in; a bundle and the file to push go out.

assembly     the order of a build; staging: where it is written, and the swap with the one before
watched      the command in a process of its own: signals, streams that break, files that leave the process
upload       the real client or its commands; pushed: the file to push is the builder's; commands: programs
dry_run      every part runs once before anything is written; random_weights: to time an untrained ensemble
graph_trial  a user's ONNX graph, run in a process of its own with a time limit; graph_members: what
             follows from it, such as the view of a graph of fixed length
graph_trial  a user's ONNX graph, run in a process of its own with a time limit
sources      which file each net is made of; attached: files of other datasets, and --split
costs_file   what a rehearsal measured, for the plan
weights      checkpoints -> safetensors blobs; code_wheel: kernel/ and own model files -> one wheel
onnx_export  nets -> graphs for other back ends; backend_wheels: those runtimes, proved to install
bundle_check what a bundle folder may hold; metadata: Kaggle's two files and rules; notebook: the .ipynb form
mounts       what Kaggle does to uploads, and whether the kernel still finds its bundle
ensemble_docs the tables of docs/ensembles.md. Nothing here ships to Kaggle.
"""
