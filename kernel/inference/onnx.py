"""The two runtimes that run exported graphs (ONNX) on the CPU: ONNX Runtime and OpenVINO.

Owns finding the runtimes, or unpacking them from the bundle's wheels where the image lacks them, and opening
a graph under one of them. How a graph is called like a net is `graph_net`; whether one replaces a torch net
is decided in `backends`.
"""
import importlib
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, DeviceError, SpecError, did_you_mean
from ..spec import Manifest

# The fastest at ever-changing lengths first: `python -m benchmarks.backends`.
RUNTIMES = ("onnxruntime", "openvino")
TELEMETRY = "openvino_telemetry"
ONNX = "onnxruntime"  # what members that exist only as a graph run on
Feed = dict[str, np.ndarray]
# Runs a graph: its inputs by name, the places of the wanted outputs among all -> these outputs.
Session = Callable[[Feed, Sequence[int]], list[np.ndarray]]


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
        return _import_runtime(name)
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
        return _import_runtime(name)
    except (ImportError, OSError, BundleError, zipfile.BadZipFile) as error:
        raise DeviceError(
            f"{name}: the bundle's wheels do not load ({type(error).__name__}: {error}); torch is used"
        ) from error


def _import_runtime(name: str) -> ModuleType:
    """The module. OpenVINO's tells its makers over the network that it was imported, unless the package that
    does so is missing: then a stub of its own stands in (openvino/tools/ovc/telemetry_utils.py of 2026.4).
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # None: an import of it fails
    return importlib.import_module(name)


def open_session(graph: bytes, runtime: Any, callers: int, cores: int, steady: bool) -> Session:
    """The function that runs a graph; up to `callers` threads may call it at once, `cores` cores each.

    steady  every call brings inputs of the same shapes
    Raises  whatever the runtime raises when it refuses the graph
    """
    opener = _open_onnxruntime if runtime.__name__ == "onnxruntime" else _open_openvino
    return opener(graph, runtime, callers, cores, steady)


def _open_onnxruntime(graph: bytes, runtime: Any, callers: int, cores: int, steady: bool) -> Session:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores  # one core: in the caller's own thread
    options.inter_op_num_threads = 1
    # Threads that wait and spin would take cores from the loaders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = steady  # a plan kept for each new shape: else nearly every clip brings one
    options.log_severity_level = 3
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]

    def run(feed: Feed, wanted: Sequence[int]) -> list[np.ndarray]:
        return list(session.run([names[place] for place in wanted], feed))

    return run


def _open_openvino(graph: bytes, runtime: Any, callers: int, cores: int, steady: bool) -> Session:
    options = {
        "INFERENCE_NUM_THREADS": callers * cores,
        "NUM_STREAMS": callers,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = runtime.compile_model(runtime.Core().read_model(graph), "CPU", options)
    own = threading.local()

    def run(feed: Feed, wanted: Sequence[int]) -> list[np.ndarray]:
        if not hasattr(own, "request"):  # a request serves one caller at a time
            own.request = compiled.create_infer_request()
        answers = own.request.infer(feed)
        return [answers[compiled.output(place)] for place in wanted]

    return run
