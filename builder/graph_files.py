"""ONNX graphs as they are exported -> one file each, weights inside.

Owns the weights that torch's newer exporter leaves in a file beside the graph (`net.onnx.data`). Does not run
graphs (kernel.inference.onnx) and does not export them (onnx_export).
"""
from pathlib import Path
from typing import Any

from kernel.errors import ModelLoadFailed

LARGEST_GRAPH = (1 << 31) - 1  # bytes; protobuf's limit of one message
AGAIN = "export it again with torch.onnx.export(..., external_data=False)"


def read_graph(path: Path) -> tuple[bytes, tuple[str, ...]]:
    """Bytes of the graph with all its weights, and what was done to it, a sentence each.

    Raises  ModelLoadFailed when weights lie in other files that are missing, or cannot be taken in
    """
    data = path.read_bytes()
    beside = path.with_name(path.name + ".data")
    if not beside.exists() and b"external" not in data and b"location" not in data:
        return data, ()  # The quick way: a graph with weights elsewhere names both.
    try:
        import onnx
        from onnx import external_data_helper as helper
    except ImportError as error:
        if not beside.exists():
            return data, ()  # The trial run says what is missing.
        raise ModelLoadFailed(
            f"{path}: its weights lie in {beside.name}; pip install onnx, so that both become "
            f"one file, or {AGAIN}"
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # Protobuf's errors have no common public type.
        raise ModelLoadFailed(f"{path}: no ONNX graph ({str(error)[:120]}); export it again") from error
    held = {entry.value for tensor in helper._get_all_tensors(model) if helper.uses_external_data(tensor)
            for entry in tensor.external_data if entry.key == "location"}
    if not held:
        return data, ()
    foreign = sorted(name for name in held if not _is_beside(path, name))
    if foreign:
        raise ModelLoadFailed(
            f"{path}: its weights lie in {', '.join(foreign)[:200]}; only a file beside it whose name begins "
            f"with {path.stem!r} is taken, because what it holds is shipped; {AGAIN}"
        )
    missing = sorted(name for name in held if not (path.parent / name).is_file())
    if missing:
        raise ModelLoadFailed(
            f"{path}: its weights lie in {', '.join(missing)}, not found in {path.parent}; copy "
            "them there under "
            f"that name, or {AGAIN}"
        )
    said = f"weights of {', '.join(sorted(held))} taken into the graph"
    return _take_in(path, model, held, len(data)), (said,)


def _take_in(path: Path, model: Any, held: set[str], graph_bytes: int) -> bytes:
    """Bytes of the graph with the weights of the files `held`. Raises ModelLoadFailed."""
    import onnx
    from onnx import external_data_helper as helper

    size = sum((path.parent / name).stat().st_size for name in held) + graph_bytes
    if size > LARGEST_GRAPH:
        raise ModelLoadFailed(f"{path}: {size} bytes with its weights; one ONNX file ends at 2 GB")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        names = ", ".join(sorted(held))
        raise ModelLoadFailed(f"{path}: weights of {names} refused ({error}); {AGAIN}") from error
    for tensor in helper._get_all_tensors(model):
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return bytes(model.SerializeToString(deterministic=True))


def _is_beside(path: Path, name: str) -> bool:
    """True for the name of an ordinary file in the graph's folder that was written with it."""
    return (
        name.startswith((path.stem + ".", path.stem + "_", path.stem + "-"))
        and Path(name).name == name and "\\" not in name
        and not (path.parent / name).is_symlink()
    )
