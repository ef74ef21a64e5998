"""An ONNX graph with its weights in half precision: `python -m builder.half_graph IN.onnx OUT.onnx`.

Owns the rounding of stored weights. The graph still computes in fp32: every weight becomes fp16 behind a Cast
that runtimes carry out once, when they open the graph. So the file has half the size on every runtime, and
what changes are the weights' last digits alone; what that costs in the answers is printed for random sound.
"""
import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from kernel.errors import HourglassError, ModelLoadFailed

LEAST_VALUES = 16  # smaller tensors stay as they are: shapes, steps, thresholds
HALF_MAX = float(np.finfo(np.float16).max)
MARK = "_half"


def halve(graph: bytes, where: str = "graph", keep: Sequence[str] = ()) -> bytes:
    """The same graph with fp16 weights; values beyond fp16's range are cut to it.

    keep    patterns of weights that stay in fp32, such as the matrices of a Fourier transform: what is
            rounded there is noise under a logarithm
    Raises  ModelLoadFailed when the bytes are no ONNX graph, or hold no fp32 weight
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's errors have no common public type
        raise ModelLoadFailed(f"{where}: no ONNX graph ({str(error)[:120]}); export it again") from error
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < LEAST_VALUES:
            continue
        name = tensor.name
        if any(fnmatch(name, pattern) for pattern in keep):
            continue
        values = np.clip(numpy_helper.to_array(tensor), -HALF_MAX, HALF_MAX).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, name + MARK))
        casts.append(helper.make_node("Cast", [name + MARK], [name], name + MARK, to=TensorProto.FLOAT))
    if not casts:
        raise ModelLoadFailed(f"{where}: no fp32 weights in it; it stays as it is")
    listed = {port.name for port in model.graph.input}
    doubled = [name.output[0] for name in casts if name.output[0] in listed]
    if doubled:
        raise ModelLoadFailed(f"{where}: weights {doubled[:3]} are inputs, too; export it again with "
                              "keep_initializers_as_inputs=False")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def list_weights(graph: bytes) -> list[str]:
    """Name, shape and bytes of every weight, the largest first."""
    import onnx

    held = onnx.load_model_from_string(graph).graph.initializer
    sizes = [(4 * int(np.prod(tensor.dims, dtype=np.int64)), tensor) for tensor in held]
    return [f"{tensor.name}  {list(tensor.dims)}  {size} bytes as fp32"
            for size, tensor in sorted(sizes, key=lambda pair: -pair[0])]


def differ(first: bytes, second: bytes, inputs: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Output name -> (largest difference, largest value of the first) of two graphs on the same inputs."""
    import onnxruntime

    sessions: list[Any] = [onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
                           for graph in (first, second)]
    names = [port.name for port in sessions[0].get_outputs()]
    ours, theirs = (session.run(names, inputs) for session in sessions)
    return {name: (float(np.abs(a - b).max()), float(np.abs(a).max()))
            for name, a, b in zip(names, ours, theirs, strict=True)}


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m builder.half_graph", description=__doc__)
    parser.add_argument("graph", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", action="append", default=[], metavar="PATTERN",
                        help="weights that stay in fp32, such as 'dft*' (repeatable; default: none)")
    parser.add_argument("--list", action="store_true", help="list the weights and write nothing")
    options = parser.parse_args(arguments)
    try:
        data = options.graph.read_bytes()
        if options.list:
            print("\n".join(list_weights(data)))
            return 0
        made = halve(data, str(options.graph), options.keep)
        options.out.write_bytes(made)
    except (HourglassError, OSError) as error:
        print(f"half_graph: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(made)} bytes in place of {len(data)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
