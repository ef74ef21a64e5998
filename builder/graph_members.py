"""Members that are graphs: what follows from the graph is written into the ensemble that ships.

Owns the view of a graph of fixed length and what the build says about a graph. What a graph says of itself is
kernel.inference.graph_file's, whether it runs is dry_run's.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from kernel.errors import SpecError
from kernel.inference import graph_net
from kernel.inference.finish import Finish
from kernel.inference.graph_file import GraphFacts, Port, describe, list_ports
from kernel.inference.recipe import Recipe, build_recipe
from kernel.spec import Ensemble, Member

from .code_wheel import OwnFiles
from .weights import Source

FAMILY = "onnx"
INSIDE = {"Sigmoid": "sigmoid", "Softmax": "softmax"}  # operations that make probabilities


def settle(found: OwnFiles, sources: Sequence[Source], say: Callable[[str], None]) -> OwnFiles:
    """The ensemble, here and as it ships, with the views that follow from its graphs.

    Raises  SpecError, ModelLoadFailed naming the member
    """
    settled: dict[str, Member] = {}
    for member in found.here.members:
        if member.family == FAMILY:
            graph = next(source for source in sources if source.member == member.name).read()
            use = graph_net.use_of(member)
            facts = describe(graph, use.where)
            settled[member.name] = settle_member(found.here, member, facts)
            for line in tell(settled[member.name], facts):
                say(f"{use.where}: {line}")

    def fill(ensemble: Ensemble) -> Ensemble:
        views = {name: member.view for name, member in settled.items()}
        members = tuple(replace(one, view=views.get(one.name, one.view)) for one in ensemble.members)
        return replace(ensemble, members=members)

    return replace(found, here=fill(found.here), shipped=fill(found.shipped))


def settle_member(ensemble: Ensemble, member: Member, facts: GraphFacts) -> Member:
    """The member with a view of the length that its graph wants.

    Raises  SpecError where its own view cuts another length
    """
    use = graph_net.use_of(member)
    facts.output(use.output, use.where)
    ports = graph_net.open_ports(facts, use)
    recipe = build_recipe(ensemble, member)
    port = ports.get(recipe.timed) or next(iter(ports.values()))
    frames = _fixed_frames(recipe, port)
    if frames is None or recipe.view.fixed == frames or member.frames is not None:
        return member
    if recipe.view.fixed is not None:
        raise SpecError(
            f"{use.where}.view: cuts {recipe.view.fixed} frames, but the graph's input {port} takes "
            f"{frames}; leave `frames` out of the view, or correct it"
        )
    whole = {key: value for key, value in member.view.items() if key != "kind"}
    return replace(member, view={"kind": "chunks", **whole, "frames": frames, "stride": frames})


def _fixed_frames(recipe: Recipe, port: Port) -> int | None:
    """Stored frames of a pass that fill an input of fixed length; None = its length is free.

    Raises  SpecError where no number of frames does
    """
    if port.shape is None:
        return None
    axes = port.shape[1:] if len(port.shape) > 1 else port.shape
    sizes = [size for size in axes if size is not None]
    if len(sizes) < len(axes):
        return None
    wanted = math.prod(sizes)
    low, high = 1, wanted  # The values of a pass grow with its frames, by one at least.
    stage = recipe.stages[recipe.timed]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _values(stage.finish, middle) >= wanted else (middle + 1, high)
    if _values(stage.finish, low) != wanted:
        one = stage.finish.shape(low)
        raise SpecError(
            f"member {recipe.member.name}: the graph's input {port} takes {wanted} values, its front end and "
            f"finish give [C, M, T] = {list(one)} for {low} frames; correct bins or finish"
        )
    return low


def _values(finish: Finish, frames: int) -> int:
    """Numbers in a pass of so many stored frames."""
    return math.prod(finish.shape(frames))


def tell(member: Member, facts: GraphFacts) -> list[str]:
    """What the user should know about the graph, a line each."""
    lines = []
    answer = facts.output(member.output, member.name)
    if member.output is None and len(facts.outputs) > 1:
        lines.append(f"the first of several outputs is taken, {answer.name!r}; `output` may name another: "
                     f"{list_ports(facts.outputs)}")
    inside = INSIDE.get(facts.made_by.get(answer.name, ""))
    if inside is not None and member.activation != "none":
        lines.append(f'output {answer.name!r} comes out of a {inside} inside the graph: write activation = '
                     f'"none", or it is done a second time ({member.activation or "sigmoid"})')
    if "frames" in member.view:
        lines.append(f"a pass has {member.view['frames']} frames (view {member.view['kind']!r})")
    return lines
