"""Inference: from a stored array to the probabilities of one net.

In: stored arrays, a member's description, its weights, a device. Out: f64[K] per row. A member without
weights is a `recipe` (`views` cut, with `distort`; `finish` prepares the cuts), with weights a `member`; it
runs on `devices` through `backends`, graphs (`graph_net`, `graph_file`) through `onnx`. Does not choose what
runs next (engine) or merge nets (scores).
"""
