"""A graph behind an embedding, run in a process of its own: what its vectors are, and what they cost.

Owns that process, its time limit and what it measures: values of a vector, vectors, seconds, memory. Run as a
script, this file is that process. What the figures are for is `embeddings`' affair.
"""
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernel.errors import HourglassError, ModelLoadFailed
from kernel.inference.graph_net import GraphUse, load_net
from kernel.inference.recipe import PASSES_PER_BATCH

LIMIT_S = 300.0  # for loading the runtime and all the passes; a minute is long
GRAPH, OUTPUTS = "net.onnx", "outputs.json"
REFUSED = 3  # exit code of the process where the graph cannot do it; its output says why
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a graph did with passes of two lengths of sound.

    values   of a vector, all outputs together
    vectors  that it made of each;  seconds: for each
    bytes    of memory above that of the loaded graph, at most, after each
    """

    values: int
    vectors: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def measure(graph: bytes, inputs: Sequence[np.ndarray], outputs: Sequence[str], where: str,
            limit_s: float = LIMIT_S) -> Trial:
    """The trial of a graph on finished inputs f32[P, ...], one after the other, the shortest first.

    Raises  ModelLoadFailed: it refuses them, is too slow, or ended its process
    """
    with tempfile.TemporaryDirectory(prefix="hourglass-embedding-") as made:
        folder = Path(made)
        (folder / GRAPH).write_bytes(graph)
        (folder / OUTPUTS).write_text(json.dumps([where, *outputs]))
        for number, array in enumerate(inputs):
            np.save(folder / f"{number}.npy", array)
        command = [sys.executable, "-m", "builder.embedding_trial", made]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  errors="replace", timeout=limit_s, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired as error:
            raise ModelLoadFailed(f"{where}: the graph did not end in {limit_s:g} s") from error
    if done.returncode == REFUSED:
        raise ModelLoadFailed(done.stdout.strip())
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise ModelLoadFailed(f"{where}: the process that ran its graph ended with exit code "
                              f"{done.returncode} {last}".strip())
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Trial(values=told["values"], vectors=tuple(told["vectors"]), seconds=tuple(told["seconds"]),
                 bytes=tuple(told["bytes"]))


def _peak_bytes() -> int:
    """Most resident bytes of this process; the parent's own are not in them, as they are in ru_maxrss."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def _run(folder: Path) -> dict[str, object]:
    """Run the graph of `folder` over its arrays; the figures."""
    import onnxruntime

    torch.set_num_threads(1)
    where, *outputs = json.loads((folder / OUTPUTS).read_text())
    use = GraphUse(where=where, inputs=("x",), output=outputs[0] if outputs else None)
    net = load_net((folder / GRAPH).read_bytes(), onnxruntime, use=use)
    names = outputs or [net.answer.name]
    arrays = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    told: dict[str, list[float]] = {"vectors": [], "seconds": [], "bytes": []}
    values = 0
    loaded = _peak_bytes()
    for array in arrays:
        began = time.perf_counter()
        made = [net.run(torch.from_numpy(array[start : start + PASSES_PER_BATCH]), names)
                for start in range(0, len(array), PASSES_PER_BATCH)]
        told["seconds"].append(time.perf_counter() - began)
        told["bytes"].append(max(0, _peak_bytes() - loaded))
        told["vectors"].append(sum(part[0].reshape(-1, part[0].shape[-1]).shape[0] for part in made))
        values = sum(output.shape[-1] for output in made[0])
        for part in made:
            for output, name in zip(part, names, strict=True):
                if not np.isfinite(output).all():
                    raise ModelLoadFailed(f"{where}: output {name!r} holds NaN or infinity for a chirp")
    return {"values": values, **told}


if __name__ == "__main__":
    try:
        print(json.dumps(_run(Path(sys.argv[1]))))
    except HourglassError as error:
        print(error)
        sys.exit(REFUSED)
    except Exception as error:  # ONNX Runtime raises types of its own, none of them public.
        print(f"{type(error).__name__}: {str(error)[:300]}")
        sys.exit(REFUSED)
