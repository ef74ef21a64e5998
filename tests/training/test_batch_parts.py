"""What a training batch is made of: crops, augmentations, mixers, effects, losses, schedules, draws."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel.errors import SpecError
from training import augment, batching, effects, losses, mixers, optim, recipe

CHANGED = {
    "spec_augment": {"masks": (2, 2)},
    "gain": {},
    "equalise": {},
    "noise": {},
    "zoom": {"most": 2.0},
    "warp": {},
    "resized_crop": {"scale": (0.3, 0.5)},
    "chunk_shuffle": {"frames": 8},
    "flip": {},
    "roll_bins": {"most": 4},
}


def test_every_augmentation_is_covered():
    assert set(CHANGED) == set(augment.AUGMENTATIONS)


@pytest.mark.parametrize("kind", sorted(augment.AUGMENTATIONS))
def test_augmentation_keeps_shape_changes_values_and_repeats_itself(kind):
    x = np.random.default_rng(0).normal(size=(2, 32, 64)).astype(np.float32)
    change = augment.build([{"kind": kind, **CHANGED[kind]}])
    before = x.copy()
    y = change(x, np.random.default_rng(3))
    again = change(x, np.random.default_rng(3))
    assert y.shape == x.shape and y.dtype == np.float32 and np.isfinite(y).all()
    assert not np.array_equal(x, y) and np.array_equal(y, again) and np.array_equal(x, before)
    assert np.array_equal(augment.build([{"kind": kind, "chance": 0.0}])(x, np.random.default_rng(3)), x)


@pytest.mark.parametrize("short", augment.SHORT)
@pytest.mark.parametrize("frames", [5, 32, 90])
def test_crop_has_the_wanted_width_and_holds_the_clip(short, frames):
    x = np.arange(32, dtype=np.uint8)[None, None] + 1
    y = augment.crop(x, frames, 0.0, short, np.random.default_rng(1))
    assert y.shape == (1, 1, frames)
    inside = y[0, 0][y[0, 0] > 0]
    assert len(inside) == (frames if short == "wrap" else min(frames, 32))
    if short != "wrap":
        assert (np.diff(inside) == 1).all()


@pytest.mark.parametrize("kind", sorted(mixers.MIXERS))
def test_mixer_keeps_shapes_and_labels_of_both(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 1, 4, 40)).astype(np.float32)
    targets = np.eye(8, dtype=np.float32)
    y, mixed = mixers.build([{"kind": kind}])(x, targets, np.random.default_rng(2))
    assert y.shape == x.shape and y.dtype == x.dtype and np.isfinite(y).all() and not np.array_equal(x, y)
    assert mixed.min() >= 0 and mixed.max() <= 1 + 1e-6 and (mixed.sum(axis=1) >= 1 - 1e-5).all()
    assert ((mixed > 0).sum(axis=1) == 2).any()


def test_power_sum_adds_powers():
    ten = np.full((1, 1, 1, 1), 10.0, np.float32)
    y, _ = mixers.power_sum(
        (ten, np.ones((1, 1))), (ten, np.ones((1, 1))), np.random.default_rng(0), low=0.0, high=1e-9
    )
    assert y.item() == pytest.approx(13.0103, abs=1e-3)


def test_mixer_chances_above_one_are_refused():
    with pytest.raises(SpecError, match="add up"):
        mixers.build([{"kind": "mixup", "chance": 0.7}, {"kind": "cutmix", "chance": 0.7}])


def test_lsep_equals_the_sum_over_pairs():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.3]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    pairs = sum(torch.exp(logits[0, n] - logits[0, p]) for p in (0, 2) for n in (1, 3))
    assert losses.lsep(logits, targets).item() == pytest.approx(np.log1p(float(pairs)), rel=1e-5)
    assert losses.lsep(logits, torch.zeros(1, 4)).item() == 0.0


def test_losses_against_their_formulas():
    logits = torch.tensor([[0.7, -0.2]])
    targets = torch.tensor([[1.0, 0.0]])
    p = torch.sigmoid(logits)
    plain = losses.bce(logits, targets)
    assert losses.focal(logits, targets, gamma=0.0).item() == pytest.approx(plain.item(), rel=1e-6)
    assert losses.soft_bootstrap(logits, targets, beta=1.0).item() == pytest.approx(plain.item(), rel=1e-6)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert losses.soft_bootstrap(logits, targets, beta=0.0).item() == pytest.approx(entropy.item(), rel=1e-5)
    assert losses.probability_bce(p, targets).item() == pytest.approx(plain.item(), rel=1e-5)
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.1)
    assert losses.cross_entropy(logits, targets, smoothing=0.1).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_noisy_clips_and_extra_heads_have_their_own_weight():
    heads = (torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]))
    kinds = (lambda logits, targets: logits[:, 0], lambda logits, targets: 10 * logits[:, 0])
    value = losses.batch_loss(heads, torch.zeros(2, 1), torch.tensor([False, True]), kinds, (1.0, 0.5))
    assert value.item() == pytest.approx((1 + 10) / 2 + 0.5 * (2 + 20) / 2)


def test_schedules():
    one_cycle = optim.build_schedule({"kind": "one_cycle", "warmup": 0.25, "start": 0.1, "end": 0.01})
    assert one_cycle(0, 0, []) == pytest.approx(0.1) and one_cycle(0.25, 0, []) == pytest.approx(1.0)
    assert one_cycle(1, 0, []) == pytest.approx(0.01)
    steps = optim.build_schedule({"kind": "milestones", "epochs": [14, 21], "factor": 0.5})
    assert [steps(0, e, []) for e in (13, 14, 21)] == [1, 0.5, 0.25]
    plateau = optim.build_schedule({"kind": "plateau", "patience": 1, "factor": 0.5})
    assert [plateau(0, 0, s) for s in ([], [1, 0], [1, 0, 0], [1, 0, 0, 2, 1, 1, 1])] == [1, 1, 0.5, 0.25]
    with pytest.raises(SpecError, match="cosine"):
        optim.build_schedule({"kind": "cosin"})


def test_balanced_draws_favour_rare_classes():
    targets = np.eye(2)[[0] * 16 + [1]]
    targets = np.vstack([targets, np.zeros((3, 2))])
    chances = batching.chances(
        targets, np.zeros(20, bool), recipe.Train(sampling="balanced", balance=0.5, negatives=0.2)
    )
    assert chances[17:].sum() == pytest.approx(0.2) and chances[16] / chances[0] == pytest.approx(4.0)


@pytest.mark.parametrize("kind", sorted(set(effects.EFFECTS) - {"pitch", "tempo"}))
def test_effect_changes_the_wave_and_repeats_itself(kind):
    wave = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32) * np.hanning(4000).astype(np.float32)
    effect = effects.build([{"kind": kind}])
    one, two = (effect(wave.copy(), 8000, np.random.default_rng(4)) for _ in range(2))
    assert one.dtype == np.float32 and np.isfinite(one).all() and np.array_equal(one, two)
    assert len(one) != len(wave) if kind == "speed" else not np.allclose(one, wave, atol=1e-4)


def test_pitch_without_audiomentations_says_what_to_install():
    try:
        import audiomentations  # noqa: F401
    except ImportError:
        with pytest.raises(SpecError, match="pip install"):
            effects.build([{"kind": "pitch"}])(np.zeros(100, np.float32), 8000, np.random.default_rng(0))
        return
    wave = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    moved = effects.build([{"kind": "pitch", "cents": 300.0}])(wave, 22050, np.random.default_rng(1))
    assert np.abs(np.fft.rfft(moved)).argmax() != np.abs(np.fft.rfft(wave)).argmax()
