"""A graph's own last layer as the weights of a head: which of its classes speak for which of ours.

    python -m training.graph_classes net.onnx --labels labels.csv --map map.csv --out weights/NAME.safetensors

Owns reading that layer out of the graph. The head is `linear_head` with pool = "mean_scores": the layer on
each patch, then the mean of the patches' probabilities, so it gives what the graph gives for these classes,
from the embedding alone, and nothing has been trained.
"""
import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from kernel.errors import HourglassError, ModelLoadFailed, SpecError, did_you_mean

from .class_list import FAT2019

LAYERS = ("MatMul", "Gemm", "Add")


def read_map(path: Path) -> dict[str, str]:
    """Our class -> the graph's label, of a CSV with the columns `label` and `class`, one line a class.

    Raises  SpecError
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row.get("label") or not row.get("class"):
            raise SpecError(f"{path}: line {number}: wants the columns `label` and `class`")
        if row["class"] in found:
            raise SpecError(f"{path}: line {number}: {row['class']!r} stands twice; one line a class")
        found[row["class"]] = row["label"]
    return found


def read_labels(path: Path, column: str) -> list[str]:
    """The graph's labels in the order of its outputs: a column of a CSV, or the lines of a text file.

    Raises  SpecError
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".csv":
        return [line for line in text.split("\n") if line]
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or column not in rows[0]:
        raise SpecError(f"{path}: no column {column!r}; {did_you_mean(column, rows[0] if rows else [])}")
    return [row[column] for row in rows]


def last_layer(graph: bytes, labels: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(f32[labels, D], f32[labels]): weight and bias of the layer with one output per label.

    Raises  ModelLoadFailed where the graph has none, or several
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    held: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # weights in half precision lie behind a Cast
        if node.op_type == "Cast" and node.input[0] in held:
            held[node.output[0]] = held[node.input[0]]
    read = {name for node in model.graph.node if node.op_type in LAYERS for name in node.input}
    arrays = {name: numpy_helper.to_array(held[name]).astype(np.float32) for name in read & held.keys()
              if labels in held[name].dims}
    matrices = [array for array in arrays.values() if array.ndim == 2]
    vectors = [array.reshape(-1) for array in arrays.values() if array.size == labels]
    if len(matrices) != 1 or len(vectors) != 1:
        raise ModelLoadFailed(f"{where}: {len(matrices)} matrices and {len(vectors)} vectors with {labels} "
                              "outputs; a graph with one last layer of that many classes is wanted")
    matrix = matrices[0]
    return (matrix if matrix.shape[0] == labels else matrix.T), vectors[0]


def make_head(graph: bytes, labels: Sequence[str], theirs: Mapping[str, str], classes: Sequence[str],
              where: str = "graph") -> dict[str, torch.Tensor]:
    """State dict of the head, fp16: row k is the last layer's row of the label that speaks for class k.

    Raises  SpecError for a class without a label, or a label that the graph does not have
    """
    weight, bias = last_layer(graph, len(labels), where)
    rows = []
    for name in classes:
        if name not in theirs:
            raise SpecError(f"the map has no line for the class {name!r}; add `label,{name}`")
        if theirs[name] not in labels:
            raise SpecError(f"label {theirs[name]!r} is none of the graph's; "
                            + did_you_mean(theirs[name], labels))
        rows.append(labels.index(theirs[name]))
    return {"fc.weight": torch.from_numpy(weight[rows].copy()).half(),
            "fc.bias": torch.from_numpy(bias[rows].copy()).half()}


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m training.graph_classes", description=__doc__)
    add = parser.add_argument
    add("graph", type=Path)
    add("--labels", type=Path, required=True, help="the graph's labels in order: text file, or CSV")
    add("--column", default="display_name", help="the CSV's column (default: display_name)")
    add("--map", type=Path, required=True, help="CSV with the columns label and class")
    add("--classes", type=Path, default=FAT2019, help="our classes, one a line (default: the 80 of FAT2019)")
    add("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        classes = [line for line in options.classes.read_text(encoding="utf-8").split("\n") if line]
        labels = read_labels(options.labels, options.column)
        state = make_head(options.graph.read_bytes(), labels, read_map(options.map), classes,
                          str(options.graph))
        save_file(state, options.out)
    except (HourglassError, OSError) as error:
        print(f"graph_classes: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(classes)} classes of {len(labels)} labels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
