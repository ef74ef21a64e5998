"""What a recipe is: the typed form of training/recipes/*.toml, strict like an ensemble.

Owns `Recipe`, `MemberRecipe` and `Train`. Does not know what the functions named in them take: augment,
mixers, effects, losses and optim check their own keys.
"""
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kernel.errors import SpecError, did_you_mean
from kernel.scores.metrics import METRICS
from kernel.spec import NAME, Embedding, Input, load, parse_ensemble, read_toml, with_heads
from kernel.spec.ensemble import LONGEST_CLIP_S
from kernel.spec.strict import require_choice

from .small_scale import Small

PRECISIONS = ("float32", "bfloat16", "float16")
SAMPLINGS = ("uniform", "balanced")


@dataclass(frozen=True, kw_only=True)
class Train:
    """How one net is trained.

    epochs         passes over the clips
    batch          clips of a batch
    samples        clips drawn per epoch, 0 = as many as the fold has
    sampling       "uniform", or "balanced": a clip's chance falls with the count of its class
    balance        the power of that count ("balanced" only)
    negatives      share of draws without any label ("balanced" only)
    noisy          share of draws from noisy clips, None = as they come
    crop           frames of the random crop of the timed input
    crop_short     where a clip shorter than the crop stands: "centre", "right", "left", "random", or "wrap"
                   to repeat it; one drawn per clip
    augment        [{kind, chance, ...}] for one crop
    mixers         [{kind, chance, ...}] for a batch; a clip draws one at most
    wave_effects   [{kind, chance, ...}] for the waveform
    wave_variants  copies of every clip that wave_effects alter beforehand
    clean_epochs   last epochs without augmentation and mixing
    optimiser      {kind, lr, ...}
    schedule       {kind, ...} of the learning rate
    clip_norm      largest norm of the gradient, 0 = any
    loss           {kind, ...}
    noisy_loss     another one for noisy clips
    aux_weights    weight of each head of a net that has several
    bias_prior     the bias of every head starts at the logit of the classes' share among the draws
    ema            decay of the averaged weights per update, 0 = off
    patience       epochs without a better score before stopping, 0 = never; needs `validate`
    validate       epochs between measurements on the held-out fold, 0 = only at the end
    metric         what is measured there, and told of the ensemble: "lwlrap", "macro_auc" or "padded_cmap"
    precision      arithmetic of the net: "float32", or "bfloat16" or "float16" by autocast
    pretrain       keys changed in an earlier training whose weights are the start, empty = none
    """

    epochs: int = 30
    batch: int = 32
    samples: int = 0
    sampling: str = "uniform"
    balance: float = 0.5
    negatives: float = 0.1
    noisy: float | None = None
    crop: int = 256
    crop_short: tuple[str, ...] = ("centre",)
    augment: tuple[dict[str, Any], ...] = ()
    mixers: tuple[dict[str, Any], ...] = ()
    wave_effects: tuple[dict[str, Any], ...] = ()
    wave_variants: int = 0
    clean_epochs: int = 0
    optimiser: dict[str, Any] = field(default_factory=lambda: {"kind": "adam", "lr": 1e-3})
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "cosine"})
    clip_norm: float = 0.0
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "bce"})
    noisy_loss: dict[str, Any] = field(default_factory=dict)
    aux_weights: tuple[float, ...] = (1.0, 0.4, 0.2, 0.1)
    bias_prior: bool = False
    ema: float = 0.0
    patience: int = 0
    validate: int = 0
    metric: str = "lwlrap"
    precision: str = "float32"
    pretrain: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MemberRecipe:
    """One member: the stages of kernel.spec.Member, and what its training changes in the recipe's [train].

    name        of the member, part of the file names of its weights
    family      the net: a family of `python -m kernel.models`
    params      the family's own parameters
    frontend    name of a table in [frontends]
    finish      steps between front end and net
    inputs      for nets with several inputs, in place of frontend and finish
    view        how a clip is cut when it is scored
    activation  of the net's answer, empty = the family's own
    weight      in the ensemble's mean
    fold_mean   mean over the folds
    taken       file of a net that is trained already, beside the recipe or in weights/, with {fold} for one
                net per fold of these very folds: it is taken as it is and scores the clips that it did not
                see. Without {fold} it is one net that none of these clips trained
    train       keys of [train] that are other for this member
    """

    name: str
    family: str
    params: dict[str, Any] = field(default_factory=dict)
    frontend: str | None = None
    finish: tuple[Any, ...] = ()
    inputs: dict[str, Input] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    activation: str | None = None
    weight: float = 1.0
    fold_mean: str = "geometric"
    taken: str | None = None
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def is_foreign(self) -> bool:
        """True for one net that none of the clips trained."""
        return self.taken is not None and "{fold}" not in self.taken


@dataclass(frozen=True, kw_only=True)
class StackerRecipe:
    """One stacker over members: keys of kernel.spec.Stacker, and its own epochs, optimiser and so on.

    name             of the stacker
    family           gated_mlp or per_class_stacker
    inputs           members whose scores it sees
    params           the family's own parameters
    features         "concat" or "per_class", as in an ensemble TOML
    average_weights  one weight per input for the average ("per_class" only)
    weight           in the ensemble's mean, beside the members
    fold_mean        mean over the folds
    train            keys of [train] for the stacker: epochs, batch, optimiser, loss
    """

    name: str
    family: str
    inputs: tuple[str, ...]
    params: dict[str, Any] = field(default_factory=dict)
    features: str = "concat"
    average_weights: tuple[float, ...] = ()
    weight: float = 1.0
    fold_mean: str = "geometric"
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PseudoRound:
    """One round of pseudo-labels: how a teacher's scores of unlabelled recordings train beside the clips.

    soften    [{kind, ...}] from scores to soft labels, in order
    seconds   length of a training clip: rows side by side with the largest of their labels; 0 = one row
    sampling  how often a row is drawn: "uniform", "row_max" or "file_sum"
    share     of all draws that go to pseudo-labelled rows
    """

    soften: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    sampling: str = "uniform"
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training: data, folds, members, and the ensemble that comes of it.

    A table [[heads]] is a member that reads an embedding: the keys of [[members]], with `embedding` in place
    of `frontend` and `inputs`.

    A recipe file may start from a published ensemble: base = "../../ensembles/argus.toml" gives front ends,
    members, stackers, classes and means; the tables member_train and stacker_train (by name) then say how
    each part is trained.

    name         of the run and of the written ensemble: a-z, 0-9, "_", "-" and "."
    members      the nets, one table [[members]] each
    classes      file with one class a line, relative to the recipe; "" = the 80 of FAT2019
    about        one sentence for the written TOML and the card
    source       where the recipe comes from
    notes        text of the model card on use and limits
    card         file name of the model card
    ship         true: weights, card and ensemble go to the repository's own folders, else to the run folder
    seed         of folds, draws and first weights
    data         adapter and its keys
    folds        {count, run}: the number of folds (5), and those that are trained, empty = all
    frontends    tables [frontends.NAME] as in an ensemble TOML
    embeddings   tables [embeddings.NAME] as in an ensemble TOML; the graph lies beside the recipe or in
                 weights/
    max_seconds  seconds of a clip that are read at most
    train        table of every member's training, which a member's own `train` overrides
    prior        file with the value per class for rows that cannot be predicted, "" = uniform
    elsewhere    adapter and keys of clips that never train and are scored for the card
    against      members whose blend alone the card sets beside the ensemble's, with the difference
    stackers     nets over the members' scores, one table [[stackers]] each
    ensemble     keys of the written ensemble TOML (profile, mean, output ...)
    pseudo       rounds of pseudo-labels, one table [[pseudo]] each: `train.py --pseudo FILE --round N`
    small        what `--scale small` changes
    """

    name: str
    members: tuple[MemberRecipe, ...]
    classes: str = ""
    about: str = ""
    source: str = ""
    notes: str = ""
    card: str = "MODEL_CARD.md"
    ship: bool = False
    seed: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    folds: dict[str, Any] = field(default_factory=dict)
    frontends: dict[str, dict[str, Any]] = field(default_factory=dict)
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    max_seconds: float = LONGEST_CLIP_S
    train: dict[str, Any] = field(default_factory=dict)
    prior: str = ""
    elsewhere: dict[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    stackers: tuple[StackerRecipe, ...] = ()
    ensemble: dict[str, Any] = field(default_factory=dict)
    pseudo: tuple[PseudoRound, ...] = ()
    small: Small = field(default_factory=Small)

    def settings(self, member: MemberRecipe) -> Train:
        """The member's Train: recipe defaults, then its own keys.

        Raises  SpecError
        """
        return _check_train(load(Train, {**self.train, **member.train}, f"{member.name}.train"), member.name)

    def pretraining(self, member: MemberRecipe) -> Train | None:
        """The Train of the member's earlier training, or None.

        Raises  SpecError
        """
        keys = self.settings(member).pretrain
        if not keys:
            return None
        merged = {**self.train, **member.train, "pretrain": {}, **keys}
        return _check_train(load(Train, merged, f"{member.name}.train.pretrain"), member.name)

    def scaled_small(self) -> "Recipe":
        """The recipe with its [small] table applied."""
        small = self.small
        kept = [m for m in self.members if not small.members or m.name in small.members]
        members = tuple(
            replace(
                m,
                params={**m.params, **small.params.get("all", {}), **small.params.get(m.name, {})},
                train={**m.train, **small.train},
            )
            for m in kept
        )
        if all(m.weight == 0 for m in members):  # They fed stackers that are not trained at this scale.
            members = tuple(replace(m, weight=1.0) for m in members)
        names = {m.name for m in members}
        return replace(
            self,
            members=members,
            folds={**self.folds, "run": list(small.folds)},
            data=small.data or self.data,
            classes=small.classes or self.classes,
            elsewhere={},
            prior="" if small.classes else self.prior,
            stackers=tuple(s for s in self.stackers if set(s.inputs) <= names),
            frontends={k: {**v, **small.frontends.get(k, {})} for k, v in self.frontends.items()},
        )


def _check_train(train: Train, name: str) -> Train:
    require_choice(train.precision, PRECISIONS, f"{name}.train.precision")
    require_choice(train.sampling, SAMPLINGS, f"{name}.train.sampling")
    if min(train.epochs, train.batch, train.crop) < 1:
        raise SpecError(f"{name}.train: epochs, batch and crop must be at least 1")
    require_choice(train.metric, METRICS, f"{name}.train.metric")
    if train.patience and not train.validate:
        raise SpecError(f"{name}.train.patience: needs validate = 1 (or more) to see the score")
    return train


def load_recipe(path: Path) -> Recipe:
    """Recipe of a TOML file.

    Raises  SpecError naming the key
    """
    data = read_toml(path, "a recipe TOML")
    try:
        return _check(load(Recipe, with_heads(_with_base(data, path), MemberRecipe)))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _with_base(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Recipe keys with those of the ensemble TOML that `base` names put below them.

    `member_train` and `stacker_train` (name -> keys of Train) add what an ensemble does not say.
    """
    named = data.pop("base", None)
    extra = {"members": data.pop("member_train", {}), "stackers": data.pop("stacker_train", {})}
    if named is None:
        return data
    if not isinstance(named, str):
        raise SpecError(f"base: expected the path of an ensemble TOML, got {named!r}")
    listed = path.parent / named
    base = read_toml(listed, "an ensemble TOML")
    parse_ensemble(base, listed)  # Its own rules and messages come first.
    base = with_heads(base)
    out: dict[str, Any] = {key: base.pop(key, {}) for key in ("frontends", "embeddings")}
    for key in ("classes", "prior"):
        if isinstance(base.get(key), str):
            out[key] = str((listed.parent / base.pop(key)).resolve())
    for kind, form in (("members", MemberRecipe), ("stackers", StackerRecipe)):
        known = {f.name for f in fields(form)}
        parts = base.pop(kind, [])
        for name in extra[kind]:
            if name not in [part["name"] for part in parts]:
                raise SpecError(f"{kind[:-1]}_train.{name}: no such part in {named}; "
                                + did_you_mean(name, [part["name"] for part in parts]))
        out[kind] = [
            {**{k: v for k, v in part.items() if k in known}, "train": extra[kind].get(part["name"], {})}
            for part in parts
        ]
    out["ensemble"] = {k: v for k, v in base.items() if k not in ("name", "about", "classes", "prior")}
    return {**out, **data}


def _check(recipe: Recipe) -> Recipe:
    names = [m.name for m in recipe.members]
    for i, member in enumerate(recipe.members):
        if not NAME.match(member.name) or names.count(member.name) > 1:
            raise SpecError(
                f"members[{i}].name: {member.name!r}; use a-z, 0-9, '_', '-' and '.', each name once"
            )
        recipe.settings(member)
    for name in recipe.against:
        if name not in names:
            raise SpecError(f"against: {name!r} is no member; {did_you_mean(name, names)}")
    for key, value in recipe.folds.items():
        if key not in ("count", "run"):
            raise SpecError(f"folds.{key}: unknown key; {did_you_mean(key, ('count', 'run'))}")
        numbers = value if key == "run" and isinstance(value, list) else [value]
        if (key == "run") != isinstance(value, list) or any(type(n) is not int for n in numbers):
            wanted = "a whole number" if key == "count" else "a list of whole numbers from 0"
            raise SpecError(f"folds.{key}: expected {wanted}, got {value!r}")
    return recipe
