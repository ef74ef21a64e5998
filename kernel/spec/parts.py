"""The parts of an ensemble as data: members, their inputs, and stackers.

Owns what the keys of [[members]] and [[stackers]] mean. The rules between keys are `ensemble`'s.
"""
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .attached import Origin
from .class_maps import RENORMALISE, ClassMap, read_missing


@dataclass(frozen=True, kw_only=True)
class Input:
    """One named input of a net: a front end and what is done to the view's output.

    frontend  name in [frontends]
    finish    steps of kernel.inference.finish, in order: names or tables with `kind`
    """

    frontend: str
    finish: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of the ensemble, with all its folds.

    name          unique, used in files and reports
    family        key of kernel.models.FAMILIES, or "my_model.py:MyNet" (own file), or "onnx"
    params        constructor values of the family; of a graph: values of inputs that stay the same, such as
                  {sr = 16000} ("frames" = the length of the pass), and min_frames, its shortest input
    output        family "onnx": name of the output that answers; None = the graph's first
    frontend      name in [frontends], for a net with one input
    finish        steps of kernel.inference.finish for that input, in order: names or tables with `kind`
    inputs        several named inputs, for nets that take a dict; then no `frontend` and `finish`
    view          {kind = "full", ...}: kernel.inference.views
    weights       file name, with {fold} where folds > 1; read below --weights; None = NAME_{fold}.safetensors
    source        { dataset = "owner/slug" } or { model = "owner/model/framework/variation/version" }: the
                  weights lie there and not in the bundle
    drop          patterns of tensors in the checkpoint that are left out because nothing reads them, such as
                  ["aux.*"]; any other tensor that the net does not take is an error
    weights_key   which weights to take where a file holds several: a name in it ("state_dict_ema") or a
                  prefix of its keys ("ema_model"); None = the usual ones
    classes_from  class names in the order of the net's outputs where that is another one: a list, or a text
                  file beside the TOML; empty = the order of `classes`. With `classes_map`: the net's own
                  labels, whatever they are
    classes_map   CSV file beside the TOML with the columns label, class and weight, for a net with classes of
                  its own: which of its labels (in `classes_from`) speak for which of ours
    proxies       how several labels of one class become one score: "max" (of weight x score) or "mean"
                  (weighted)
    proxy_scores  what the map works on: "probabilities" (of the row, after activation and merge) or "logits"
                  (what the net gives for each pass, before both)
    missing       score of a class that the map does not name: "renormalise" = the members that know it decide
                  it; or a probability (0.5 is logit 0), also as a text such as "1/234"
    folds         fold numbers
    fold_mean     mean over folds
    fold_weights  one weight per fold; empty = all alike
    weight        weight in the final mean (0 = feeds stackers only)
    activation    "sigmoid", "softmax" or "none" (the net gives probabilities); None = sigmoid for logits,
                  none otherwise
    frames        where the net gives one score per frame: how those of overlapping contexts become rows
                  (kernel.scores.frames.RULES); None = it gives one per row
    clips         with `frames`: clip scores that the net gives before its frames, [B, clips + F, K]: 0, 1 (of
                  the window's own row) or one for each row of a context
    clip_share    share of the clip scores in a row, the frames have the rest
    shift_seconds  with `frames`: the frames' maximum is taken so much earlier and later, too, where contexts
                  hear it; 0 = not
    shift_share   share of these two in a row
    value         what the member is worth to the plan (an out-of-fold score); None = all alike, or by the
                  classes that it knows
    steps         what is done to the member's scores before any mean, in order: tables with `kind`
                  (kernel.scores.steps.STEPS) or with `file = "my_post.py:function"`; stackers read the scores
                  as they were before
    """

    name: str
    family: str
    params: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    frontend: str | None = None
    finish: tuple[Any, ...] = ()
    inputs: dict[str, Input] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    weights: str | None = None
    source: Origin | None = None
    drop: tuple[str, ...] = ()
    weights_key: str | None = None
    classes_from: tuple[str, ...] = ()
    classes_map: ClassMap | None = None
    proxies: str = "max"
    proxy_scores: str = "probabilities"
    missing: float | str = RENORMALISE
    folds: tuple[int, ...] = (0,)
    fold_mean: str = "geometric"
    fold_weights: tuple[float, ...] = ()
    weight: float = 1.0
    activation: str | None = None
    frames: str | None = None
    clips: int = 0
    clip_share: float = 0.5
    shift_seconds: float = 0.0
    shift_share: float = 0.5
    value: float | None = None
    steps: tuple[Any, ...] = ()

    def named_inputs(self) -> dict[str, Input]:
        """Input name -> Input; a single-input member has the name "x"."""
        return self.inputs or {"x": Input(frontend=self.frontend or "", finish=self.finish)}

    def outputs(self, classes: int) -> int:
        """Values that the net gives where the ensemble has so many classes."""
        return classes if self.classes_map is None else self.classes_map.outputs

    @property
    def missing_score(self) -> float | None:
        """Probability of the classes that the map does not name; None where other members decide them."""
        return read_missing(self.missing, f"{self.name}.missing")

    def weights_file(self, fold: int) -> str:
        return (self.weights or self.name + "_{fold}.safetensors").replace("{fold}", str(fold))


@dataclass(frozen=True, kw_only=True)
class Stacker:
    """A second-level net over the members' fold-averaged probabilities.

    name             unique among members and stackers
    family           key of kernel.models.FAMILIES, of a stacker
    inputs           names of the members it reads, in order
    params           constructor values of the family
    features         "concat" -> [B, n*K] in the order of `inputs`; "per_class" -> [B, K, n(+1)], the weighted
                     average last
    average_weights  one weight per input for that average ("per_class" only); empty = no average
    weights          file name, as for a member
    source           as for a member
    drop             as for a member
    weights_key      as for a member
    folds            fold numbers
    fold_mean        mean over folds
    weight           weight in the final mean, beside the members
    activation       as for a member
    steps            as for a member
    """

    name: str
    family: str
    inputs: tuple[str, ...]
    params: dict[str, Any] = field(default_factory=dict)
    features: str = "concat"
    average_weights: tuple[float, ...] = ()
    weights: str | None = None
    source: Origin | None = None
    drop: tuple[str, ...] = ()
    weights_key: str | None = None
    folds: tuple[int, ...] = (0,)
    fold_mean: str = "geometric"
    weight: float = 1.0
    activation: str | None = None
    steps: tuple[Any, ...] = ()

    weights_file = Member.weights_file

    def outputs(self, classes: int) -> int:
        """Values that the net gives: one for each class."""
        return classes


Part: TypeAlias = Member | Stacker


def net_ids(part: Part) -> list[str]:
    """Ids of the part's nets, one for each fold, in order."""
    return [f"{part.name}.{fold}" for fold in part.folds]
