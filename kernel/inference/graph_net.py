"""A graph called like a net: which inputs it gets, in which layout, and which of its outputs answers.

Owns `GraphNet` and what a member may say about its graph (`GraphUse`). What a graph says of itself is
`graph_file`, the runtimes are `onnx`; which of them runs it, and whether it replaces a torch net, is
`backends`.
"""
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import spec
from ..bundle import Bundle
from ..errors import DeviceError, ModelLoadFailed, SpecError
from .graph_file import GraphFacts, Port, describe, list_ports
from .onnx import Feed, Session, find_runtime, open_session

MIN_FRAMES = "min_frames"  # the one key of a graph member's `params` that is no input
LENGTHS = "frames"  # value of a constant input that stands for the length of the pass
AGREEMENT_BATCH = 1e-5  # between passes alone and together, relative to the largest output or 1


@dataclass(frozen=True, kw_only=True)
class GraphUse:
    """How a member uses its graph.

    where       what messages call it
    inputs      names of the inputs that front ends fill; a single one may have any name; empty = not told
    output      the output that answers; None = the first
    min_frames  shortest input that the graph takes
    constants   input name -> its value, for inputs that no front end fills
    """

    where: str = "graph"
    inputs: tuple[str, ...] = ()
    output: str | None = None
    min_frames: int = 1
    constants: dict[str, Any] = field(default_factory=dict)


def use_of(member: spec.Member) -> GraphUse:
    """How a member of family "onnx" uses its graph. Raises SpecError."""
    constants = dict(member.params)
    least = constants.pop(MIN_FRAMES, 1)
    if not isinstance(least, int) or isinstance(least, bool) or least < 1:
        raise SpecError(f"member {member.name}: params.{MIN_FRAMES} = {least!r}; give a whole number from 1")
    return GraphUse(
        where=f"member {member.name}", inputs=tuple(member.named_inputs()), output=member.output,
        min_frames=least, constants=constants
    )


class GraphNet(nn.Module):
    """A graph called like a net: f32 tensors in (one, or a dict by input name), its answers out.

    f32[P, K] where the graph gives one answer per pass, f32[P, n, K] where it gives n. It runs at exact
    lengths and takes no `frames`. Axes of length 1 are added or dropped as the graph declares its inputs.

    facts    what the graph says of itself;  use: what the member says about it
    run      runs the graph;  path: how, for the report
    callers  threads that may call it at once
    """

    output = "logits"
    channels = bins = None
    max_frames = fixed_frames = None
    maskable = False

    def __init__(self, facts: GraphFacts, use: GraphUse, run: Session, path: str, callers: int = 1) -> None:
        super().__init__()
        self.facts = facts
        self.use = use
        self.answer = facts.output(use.output, use.where)
        self.ports = open_ports(facts, use)
        self.passes_together = _passes_together(self.ports)
        self._run = run
        self.path = path
        self.callers = callers
        self.min_frames = use.min_frames

    def forward(self, x: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.run(x, [self.answer.name])[0]))

    def run(self, x: torch.Tensor | Mapping[str, torch.Tensor], names: Sequence[str]) -> list[np.ndarray]:
        """Several outputs of one run, in the order of `names`: f32[P, D], or f32[P, n, D] of n answers each.

        Raises  ModelLoadFailed for an output that the graph lacks, SpecError for inputs that do not fit
        """
        every = [port.name for port in self.facts.outputs]
        places = [every.index(self.facts.output(name, self.use.where).name) for name in names]
        given = {name: value.numpy() for name, value in self._named(x).items()}
        passes = len(next(iter(given.values())))
        step = min(self.passes_together or passes, passes)
        parts: list[list[np.ndarray]] = []
        for start in range(0, passes, step):
            part = {name: value[start : start + step] for name, value in given.items()}
            parts.append(self._run_together(part, places))
        return [np.concatenate(answers) for answers in zip(*parts, strict=True)]

    def try_together(self, x: Mapping[str, torch.Tensor]) -> str | None:
        """Whether passes may run together: where those of `x` do not give what each gives alone, none does.

        A sentence where they may not although the graph leaves its batch free.
        """
        if self.passes_together is not None or len(next(iter(x.values()))) < 2:
            return None
        try:
            together = self.forward(x)
            alone = torch.cat([self.forward({k: v[[i]] for k, v in x.items()}) for i in range(len(together))])
            apart = float((together - alone).abs().max()) / max(1.0, float(alone.abs().max()))
            if apart <= AGREEMENT_BATCH:
                return None
            reason = f"together they differ by {apart:.2g}"
        except Exception as error:  # runtimes raise types of their own
            reason = f"{type(error).__name__}: {str(error)[:120]}"
        self.passes_together = 1
        return f"passes run one by one ({reason})"

    def _named(self, x: torch.Tensor | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The given inputs under the names of the graph's; a single one may have any name."""
        given = x if isinstance(x, Mapping) else {"": x}
        if len(given) == len(self.ports) == 1:
            return {next(iter(self.ports)): next(iter(given.values()))}
        if set(given) != set(self.ports):
            raise SpecError(
                f"{self.use.where}: its inputs are {', '.join(sorted(given))}, those of the graph "
                f"{list_ports(tuple(self.ports.values()))}; name each of them in [members.inputs]"
            )
        return given

    def _run_together(self, given: Mapping[str, np.ndarray], places: Sequence[int]) -> list[np.ndarray]:
        """The outputs at `places` for passes that the graph takes at once."""
        passes = len(next(iter(given.values())))
        filled = max(passes, self.passes_together or 1)
        feed: Feed = {}
        for name, port in self.ports.items():
            value = given[name]
            if filled > passes:  # a graph of a fixed batch: the last pass fills it up
                value = np.concatenate([value, *[value[-1:]] * (filled - passes)])
            feed[name] = fit(value, port, self.use.where)
        frames = max(value.shape[-1] for value in given.values())
        for name, wanted in self.use.constants.items():
            port = next(port for port in self.facts.inputs if port.name == name)
            feed[name] = _constant(port, frames if wanted == LENGTHS else wanted, filled)
        answers = zip(self._run(feed, places), places, strict=True)
        return [self._by_pass(answer, place, filled)[:passes] for answer, place in answers]

    def _by_pass(self, answer: object, place: int, passes: int) -> np.ndarray:
        """f32[P, D] or f32[P, n, D] of one output as the graph gives it. Raises ModelLoadFailed."""
        port = self.facts.outputs[place]
        if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "fiub" or answer.ndim == 0:
            found = f"{answer.dtype}{list(answer.shape)}" if isinstance(answer, np.ndarray) else "no tensor"
            raise ModelLoadFailed(
                f"{self.use.where}: output {port} gave {found}, no numbers per pass; choose another "
                f"`output`: {list_ports(self.facts.outputs)}"
            )
        if not answer.size:
            raise ValueError(f"output {port} is empty for this row: {list(answer.shape)}")
        answer = answer.astype(np.float32, copy=False)
        batched = any(_axes(own) > 1 for own in self.ports.values())
        if not batched or len(answer) != passes:
            if passes > 1:
                shape = list(answer.shape)
                raise ModelLoadFailed(f"{self.use.where}: output {port} gave {shape} for {passes} passes")
            return answer.reshape(1, -1, answer.shape[-1])  # what the graph gives are parts of the one pass
        if answer.ndim == 2:
            return answer
        return answer.reshape(passes, -1, answer.shape[-1] if answer.ndim > 1 else 1)


def open_ports(facts: GraphFacts, use: GraphUse) -> dict[str, Port]:
    """The inputs that front ends fill, by name.

    Raises  SpecError for a constant that is no input, or an input that nothing fills; ModelLoadFailed for a
            graph that carries a state from call to call
    """
    known = {port.name: port for port in facts.inputs}
    for name in use.constants:
        if name not in known:
            raise SpecError(
                f"{use.where}: params.{name}: no input of the graph, and not {MIN_FRAMES}; its inputs: "
                f"{list_ports(facts.inputs)}"
            )
    ports = {name: port for name, port in known.items() if name not in use.constants}
    if not ports:
        raise SpecError(f"{use.where}: no input of the graph is left for a front end: "
                        f"{list_ports(facts.inputs)}")
    if not use.inputs or len(ports) == len(use.inputs) == 1:
        return ports
    for port in ports.values():
        state = next((made for made in facts.outputs if _carries(port, made)), None)
        if port.name not in use.inputs and state is not None:
            raise ModelLoadFailed(
                f"{use.where}: the graph carries a state from call to call (input {port}, output {state}); a "
                "row must not depend on the one before: export it as one run over a whole sequence, the "
                "first state inside"
            )
    if set(ports) != set(use.inputs):
        raise SpecError(
            f"{use.where}: front ends fill {', '.join(sorted(use.inputs))}, the graph wants "
            f"{list_ports(tuple(ports.values()))}; name each in [members.inputs], or give those that stay "
            "the same in params"
        )
    return ports


# What is added to the name of a state, before it or behind it, to tell the old one from the new one.
MARKS = re.compile(
    r"^(?:in|out|input|output|old|new|prev|next|past|present)_|(?:_in|_out|_old|_new|_prev|_next|_?n)$"
)


def _carries(given: Port, made: Port) -> bool:
    """True where an output looks like the next value of an input: the same dtype and axes, a like name."""
    first, second = (MARKS.sub("", port.name.casefold()) for port in (given, made))
    axes = {len(port.shape) for port in (given, made) if port.shape}
    return first == second and given.kind == made.kind and len(axes) < 2


def _axes(port: Port) -> int:
    """Number of axes; 2 where the graph does not say."""
    return 2 if port.shape is None else len(port.shape)


def _passes_together(ports: Mapping[str, Port]) -> int | None:
    """How many passes a call takes: 1 for a wave without a batch axis, the fixed batch, None = any number.

    Raises  ModelLoadFailed where inputs are fixed to different batches
    """
    fixed = {1 if len(port.shape) < 2 else port.shape[0] for port in ports.values() if port.shape is not None}
    fixed.discard(None)
    if len(fixed) > 1:
        raise ModelLoadFailed(f"inputs of different batches: {list_ports(tuple(ports.values()))}; export the "
                              "graph with a free batch")
    return fixed.pop() if fixed else None


def fit(value: np.ndarray, port: Port, where: str) -> np.ndarray:
    """`value` f32[P, ...] in the dtype and the axes that the graph declares; only axes of length 1 change.

    Raises  SpecError where no such layout fits
    """
    if not port.kind:
        raise SpecError(f"{where}: input {port} takes no numbers; export the graph with a numeric input")
    kind = np.dtype("float32" if port.kind == "bfloat16" else port.kind)
    if port.shape is None:
        return np.ascontiguousarray(value, kind)
    for shape in _layouts(value.shape, len(port.shape)):
        if all(wanted in (None, has) for wanted, has in zip(port.shape, shape, strict=True)):
            return np.ascontiguousarray(value.reshape(shape), kind)
    raise SpecError(
        f"{where}: input {port} does not take {list(value.shape)}; correct its front end, view or finish"
    )


def _layouts(shape: tuple[int, ...], axes: int) -> Iterator[tuple[int, ...]]:
    """The ways to write [P, ...] with so many axes: as it is, else with its axes of length 1 elsewhere."""
    if len(shape) == axes:
        yield shape
    own = [n for n in shape[1:] if n != 1]
    if axes == 1:
        if len(own) <= 1 and shape[0] == 1:
            yield (own[0] if own else 1,)
        return
    free = axes - 1 - len(own)
    if free >= 0:
        for places in itertools.combinations(range(axes - 1), free):  # ones to the front first
            rest = iter(own)
            yield shape[0], *(1 if place in places else next(rest) for place in range(axes - 1))


def _constant(port: Port, value: Any, passes: int) -> np.ndarray:
    """A constant input as the graph declares it, the same for every pass. Raises SpecError."""
    try:
        array = np.asarray(value, np.dtype(port.kind))
        shape = port.shape or ()
        return np.ascontiguousarray(np.broadcast_to(array, [passes if n is None else n for n in shape]))
    except (ValueError, TypeError) as error:
        raise SpecError(f"params.{port.name}: {value!r} is no {port} ({error})") from error


def load_net(graph: bytes, runtime: ModuleType, callers: int = 1, cores: int = 1,
             use: GraphUse | None = None) -> GraphNet:
    """The graph under a runtime, for so many callers at once with so many cores each.

    Raises  SpecError, ModelLoadFailed, or whatever the runtime raises when it refuses the graph
    """
    use = use or GraphUse()
    facts = describe(graph, use.where)
    steady = all(port.shape is not None and None not in port.shape[1:] for port in facts.inputs)
    session = open_session(graph, runtime, callers, cores, steady)
    return GraphNet(facts, use, session, f"{runtime.__name__} cpu", callers).eval()


def open_graph(data: bytes, name: str, bundle: Bundle, folder: Path, side_by_side: bool,
               use: GraphUse | None = None) -> GraphNet:
    """The graph under the runtime `name`: for one caller with all of torch's threads, or for as many callers.

    Raises  SpecError, ModelLoadFailed, DeviceError when the runtime is absent or refuses the graph
    """
    runtime = find_runtime(name, bundle, folder)
    threads = torch.get_num_threads()
    callers, cores = (threads, 1) if side_by_side else (1, threads)
    try:
        return load_net(data, runtime, callers, cores, use)
    except (SpecError, ModelLoadFailed):
        raise
    except Exception as error:  # runtimes raise types of their own, none of them public
        raise DeviceError(
            f"{name}: refuses the graph ({type(error).__name__}: {str(error)[:200]}); export it again"
        ) from error
