"""Exported graphs (ONNX) as nets, and the two runtimes that run them: ONNX Runtime and OpenVINO, on the CPU.

Owns finding the runtimes, or unpacking them from the bundle's wheels where the image lacks them, and wrapping
a graph so that it is called like any net. Graphs are made by the builder; whether one replaces a torch net is
decided in `backends`.
"""
import importlib
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bundle import Bundle
from ..errors import BundleError, DeviceError, SpecError, did_you_mean
from ..spec import Manifest

# The fastest at ever-changing lengths first: `python -m benchmarks.backends`.
RUNTIMES = ("onnxruntime", "openvino")
ONNX = "onnxruntime"  # what members that exist only as a graph run on
Feed = dict[str, np.ndarray]


def fits_python(wheel: str, version: tuple[int, int] = sys.version_info[:2]) -> bool:
    """True for a wheel name whose tags fit CPython `version`: its own, pure, or an older stable ABI."""
    tags = wheel.split("-")
    pythons = tags[-3].split(".")
    own = f"cp{version[0]}{version[1]}"
    stable = tags[-2] == "abi3" and any(p.startswith("cp3") and int(p[3:]) <= version[1] for p in pythons)
    return own in pythons or "py3" in pythons or stable


def wheels_of(manifest: Manifest) -> list[str]:
    """Names of the bundle's back-end wheels that this Python can use."""
    return sorted(name for name in manifest.entries if name.endswith(".whl") and fits_python(name))


def unpack(bundle: Bundle, folder: Path) -> list[str]:
    """Names of the wheels whose verified bytes were unpacked to `folder`, regular files only.

    Raises  BundleError for damaged wheels or names that would leave the folder, OSError when the disk is full
    """
    names = wheels_of(bundle.manifest)
    for name in names:
        with zipfile.ZipFile(io.BytesIO(bundle.read_file(name))) as wheel:
            for info in wheel.infolist():
                path = PurePosixPath(info.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
                    raise BundleError(
                        f"{name}: holds {info.filename!r}, outside its folder; build the bundle again"
                    )
                if not info.is_dir():
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(wheel.read(info))
    return names


def find_runtime(name: str, bundle: Bundle, folder: Path) -> ModuleType:
    """The runtime's module: the installed one, else the bundle's, unpacked once and put last on sys.path.

    Raises  SpecError for an unknown name, DeviceError when there is none or it does not load
    """
    if name not in RUNTIMES:
        raise SpecError(f"runtime {name!r} is unknown; {did_you_mean(name, RUNTIMES)}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error)
    try:
        if not any(wheel.startswith(f"{name}-") for wheel in wheels_of(bundle.manifest)):
            raise DeviceError(
                f"{name}: not installed ({reason}) and no wheel for Python {sys.version_info[0]}."
                f"{sys.version_info[1]} in the bundle; build with --wheels {name}"
            )
        if str(folder) not in sys.path:
            folder.mkdir(parents=True, exist_ok=True)
            unpack(bundle, folder)
            sys.path.append(str(folder))
            importlib.invalidate_caches()
        return importlib.import_module(name)
    except (ImportError, OSError, BundleError, zipfile.BadZipFile) as error:
        raise DeviceError(
            f"{name}: the bundle's wheels do not load ({type(error).__name__}: {error}); torch is used"
        ) from error


class GraphNet(nn.Module):
    """A graph called like a net: f32 tensors in (one, or a dict by input name), f32[B, K] out.

    Runs at exact lengths: it takes no `frames`. Batch and time are free where the graph leaves them free.

    callers  threads that may call it at once
    cores    cores that each call takes
    """

    output = "logits"
    channels = bins = None
    min_frames = 1
    max_frames = fixed_frames = None
    maskable = False
    callers = 1

    def __init__(self, graph: bytes, runtime: ModuleType, callers: int = 1, cores: int = 1) -> None:
        super().__init__()
        open_session = _open_onnxruntime if runtime.__name__ == "onnxruntime" else _open_openvino
        self.names, self._run = open_session(graph, runtime, callers, cores)
        self.callers = callers
        self.path = f"{runtime.__name__} cpu"

    def forward(self, x: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = x if isinstance(x, Mapping) else {self.names[0]: x}
        answer = self._run({k: v.contiguous().numpy() for k, v in given.items()})
        return torch.from_numpy(np.ascontiguousarray(answer))


Session = tuple[list[str], Callable[[Feed], np.ndarray]]  # names of its inputs, and the function that runs it


def _open_onnxruntime(graph: bytes, runtime: Any, callers: int, cores: int) -> Session:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores  # one core: in the caller's own thread
    options.inter_op_num_threads = 1
    # Threads that wait and spin would take cores from the loaders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # a plan kept for each new shape: nearly every clip brings one
    options.log_severity_level = 3
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [entry.name for entry in session.get_inputs()], lambda feed: session.run(None, feed)[0]


def _open_openvino(graph: bytes, runtime: Any, callers: int, cores: int) -> Session:
    options = {
        "INFERENCE_NUM_THREADS": callers * cores,
        "NUM_STREAMS": callers,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = runtime.compile_model(runtime.Core().read_model(graph), "CPU", options)
    own = threading.local()

    def run(feed: Feed) -> np.ndarray:
        if not hasattr(own, "request"):  # a request serves one caller at a time
            own.request = compiled.create_infer_request()
        return own.request.infer(feed)[compiled.output(0)]

    return [entry.get_any_name() for entry in compiled.inputs], run


def open_graph(data: bytes, name: str, bundle: Bundle, folder: Path, side_by_side: bool) -> GraphNet:
    """The graph under the runtime `name`: for one caller with all of torch's threads, or for as many callers.

    Raises  SpecError, DeviceError when the runtime is absent or refuses the graph
    """
    runtime = find_runtime(name, bundle, folder)
    threads = torch.get_num_threads()
    callers, cores = (threads, 1) if side_by_side else (1, threads)
    try:
        return GraphNet(data, runtime, callers, cores).eval()
    except Exception as error:  # runtimes raise types of their own, none of them public
        raise DeviceError(
            f"{name}: refuses the graph ({type(error).__name__}: {str(error)[:200]}); export it again"
        ) from error
