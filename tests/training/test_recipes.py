"""The recipes that ship with the trainer: complete, at the published scale and at the small one."""
from __future__ import annotations

import pytest
import torch

from kernel.errors import SpecError
from tests.helpers import REPOSITORY
from training import augment, class_list, effects, losses, mixers, optim, recipe

RECIPES = sorted((REPOSITORY / "training" / "recipes").glob("*.toml"))
PUBLISHED = {"argus", "qrfaction", "ex4sperans", "erc2019", "viel", "shirogane", "hackerearth", "filipmu",
             "simongrest"}


def test_every_published_solution_has_a_recipe():
    assert PUBLISHED | {"default", "emotion", "yamnet"} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_complete_at_both_scales(path):
    """All that a recipe names exists: augmentations, mixers, effects, losses, optimisers and schedules."""
    plan = recipe.load_recipe(path)
    for scaled in (plan, plan.scaled_small()):
        assert len(class_list.read_classes(scaled, path)) > 1 and scaled.members
        for member in scaled.members:
            for train in filter(None, (scaled.settings(member), scaled.pretraining(member))):
                augment.build(train.augment)
                mixers.build(train.mixers)
                effects.build(train.wave_effects)
                losses.build(train.loss)
                losses.build(train.noisy_loss or train.loss)
                optim.build_schedule(train.schedule)
                optim.build_optimiser(train.optimiser, [torch.nn.Parameter(torch.zeros(1))])
        if path.stem in PUBLISHED:
            assert plan.source and plan.scaled_small().settings(scaled.members[0]) is not None


def test_recipe_of_a_base_names_unknown_members(tmp_path):
    base = RECIPES[0].parents[2] / "ensembles" / "viel.toml"
    (tmp_path / "r.toml").write_text(
        f'name = "x"\nbase = "{base}"\n[member_train]\nm0_z = {{ epochs = 1 }}\n'
    )
    with pytest.raises(SpecError, match="m0_z"):
        recipe.load_recipe(tmp_path / "r.toml")
