"""What an exported graph says of itself: its inputs, its outputs and the precision of its numbers.

Owns the reading of an ONNX file's own description, straight from its bytes: no runtime has to be there, and
weights are passed over unread. Does not run graphs (onnx) and settles nothing about a member.

Source of the field numbers: onnx/onnx.proto3 of ONNX 1.17; of the wire format: protobuf.dev, "Encoding".
"""
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import ModelLoadFailed

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
KINDS = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
         10: "float16", 11: "float64", 16: "bfloat16"}  # TensorProto.DataType -> numpy's name
HALF = ("float16", "bfloat16")
QUANTISED = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "MatMulInteger", "ConvInteger")
Shape = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph.

    kind   numpy's name of its dtype, "" for what is no tensor of numbers
    shape  its axes, None where an axis is free; None: the graph does not say how many axes there are
    """

    name: str
    kind: str = "float32"
    shape: Shape | None = None

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name!r} {self.kind or 'no numbers'}[{axes}]"


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph says of itself.

    inputs      those that a caller must give: a weight that is listed as an input, too, is none
    precision   "fp32", "fp16" (weights or ports in half precision) or "int8" (quantised operations)
    made_by     output name -> the operation that makes it ("Sigmoid")
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: str = "fp32"
    made_by: dict[str, str] = field(default_factory=dict)

    def output(self, name: str | None, where: str) -> Port:
        """The output of that name; None = the first.

        Raises  ModelLoadFailed listing all outputs
        """
        if name is None:
            return self.outputs[0]
        found = next((port for port in self.outputs if port.name == name), None)
        if found is None:
            raise ModelLoadFailed(
                f"{where}: the graph has no output {name!r}; it has {list_ports(self.outputs)}"
            )
        return found


def list_ports(ports: tuple[Port, ...]) -> str:
    """Inputs or outputs for a message."""
    return "; ".join(map(str, ports)) or "none"


def describe(graph: bytes, where: str) -> GraphFacts:
    """What the graph in these bytes says of itself.

    Raises  ModelLoadFailed when they are no ONNX graph
    """
    try:
        body = next(value for number, value in _fields(memoryview(graph)) if number == MODEL_GRAPH)
        return _describe_body(_as_bytes(body))
    except (StopIteration, IndexError, ValueError, TypeError, OverflowError) as error:
        raise ModelLoadFailed(
            f"{where}: no ONNX graph ({type(error).__name__}: {error}); export it again"
        ) from error


def _describe_body(body: memoryview) -> GraphFacts:
    weights: set[str] = set()
    inputs: list[Port] = []
    outputs: list[Port] = []
    made_by: dict[str, str] = {}
    half = quantised = False
    for number, value in _fields(body):
        if number == GRAPH_INITIALIZER:
            name, kind = _tensor(_as_bytes(value))
            weights.add(name)
            half = half or kind in HALF
        elif number == GRAPH_INPUT:
            inputs.append(_port(_as_bytes(value)))
        elif number == GRAPH_OUTPUT:
            outputs.append(_port(_as_bytes(value)))
        elif number == GRAPH_NODE:
            operation, names = _node(_as_bytes(value))
            made_by |= dict.fromkeys(names, operation)
            quantised = quantised or operation.startswith(QUANTISED)
    if not outputs:
        raise ValueError("it has no output")
    half = half or any(port.kind in HALF for port in (*inputs, *outputs))
    named = {port.name for port in outputs}
    return GraphFacts(
        inputs=tuple(port for port in inputs if port.name not in weights),
        outputs=tuple(outputs),
        precision="int8" if quantised else "fp16" if half else "fp32",
        made_by={name: operation for name, operation in made_by.items() if name in named},
    )


def _port(data: memoryview) -> Port:
    """ValueInfoProto: name = 1, type = 2; TypeProto: tensor_type = 1."""
    name, tensor = "", None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            tensor = next((inner for which, inner in _fields(_as_bytes(value)) if which == 1), None)
    if tensor is None:
        return Port(name=name, kind="")
    kind, shape = "", None
    for number, value in _fields(_as_bytes(tensor)):  # TypeProto.Tensor: elem_type = 1, shape = 2
        if number == 1 and isinstance(value, int):
            kind = KINDS.get(value, "")
        elif number == 2:
            shape = tuple(_axis(_as_bytes(axis)) for which, axis in _fields(_as_bytes(value)) if which == 1)
    return Port(name=name, kind=kind, shape=shape)


def _axis(data: memoryview) -> int | None:
    """TensorShapeProto.Dimension: dim_value = 1; None for a name, or for a number that is none."""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int) and 0 < value < 1 << 62:
            return value
    return None


def _tensor(data: memoryview) -> tuple[str, str]:
    """TensorProto: data_type = 2, name = 8; the values are passed over."""
    name, kind = "", ""
    for number, value in _fields(data):
        if number == 2 and isinstance(value, int):
            kind = KINDS.get(value, "")
        elif number == 8:
            name = _text(value)
    return name, kind


def _node(data: memoryview) -> tuple[str, list[str]]:
    """NodeProto: output = 2, op_type = 4."""
    operation, names = "", list[str]()
    for number, value in _fields(data):
        if number == 2:
            names.append(_text(value))
        elif number == 4:
            operation = _text(value)
    return operation, names


def _text(value: int | memoryview) -> str:
    return bytes(_as_bytes(value)).decode("utf-8")


def _as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message was expected")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, its number or bytes) of a message. Raises ValueError or IndexError for what is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits per byte, and where the next thing begins."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than ten bytes")
