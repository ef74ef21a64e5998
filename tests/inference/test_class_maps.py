"""A net with classes of its own: its values, by a map, as values of the ensemble's classes."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel import models, spec
from kernel.errors import ModelLoadFailed
from kernel.inference.answers import sigmoid, softmax
from kernel.inference.class_maps import MappedClasses
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net, merge
from kernel.inference.recipe import build_recipe

OUTPUTS, CLASSES = 7, 5
LINES = st.dictionaries(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, OUTPUTS - 1)),
    st.sampled_from([1.0, 0.5, 0.125, 2.0]),
    min_size=1,
)


def mapped(
    lines: dict[tuple[int, int], float], proxies: str = "max", logits: bool = False
) -> MappedClasses:
    found = spec.ClassMap(
        outputs=OUTPUTS,
        takes=tuple(j for _, j in sorted(lines)),
        gives=tuple(k for k, _ in sorted(lines)),
        weights=tuple(lines[line] for line in sorted(lines)),
    )
    return MappedClasses(map=found, classes=CLASSES, proxies=proxies, logits=logits)


def by_hand(lines: dict[tuple[int, int], float], x: np.ndarray, proxies: str, logits: bool) -> np.ndarray:
    """One row at a time, one class at a time."""
    columns = []
    for k in range(CLASSES):
        own = [(x[..., j], w) for (c, j), w in sorted(lines.items()) if c == k]
        if not own:
            columns.append(np.zeros(x.shape[:-1]))
        elif proxies == "mean":
            columns.append(sum(w * v for v, w in own) / sum(w for _, w in own))
        else:
            columns.append(np.max([v + np.log(w) if logits else v * w for v, w in own], axis=0))
    return np.stack(columns, axis=-1)


@given(lines=LINES, proxies=st.sampled_from(["max", "mean"]), logits=st.booleans(), seed=st.integers(0, 99),
       shape=st.sampled_from([(), (3,), (2, 4)]))
def test_a_map_by_hand_on_the_host_and_on_a_device(
    lines: dict[tuple[int, int], float], proxies: str, logits: bool, seed: int, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(seed).normal(0, 3, (*shape, OUTPUTS))
    x = x if logits else sigmoid(x)
    found = mapped(lines, proxies, logits)
    assert found.known.tolist() == [any(c == k for c, _ in lines) for k in range(CLASSES)]
    host = found.expand(found.apply(x))
    device = found.expand(found.apply(torch.from_numpy(x)))
    assert host == pytest.approx(by_hand(lines, x, proxies, logits), abs=1e-12)
    assert device.numpy() == pytest.approx(host, abs=1e-12)
    assert host.dtype == np.float64 and device.dtype == torch.float64


def test_one_output_of_weight_one_is_that_very_value() -> None:
    x = np.random.default_rng(0).normal(0, 5, (4, OUTPUTS)).astype(np.float32)
    lines = {(3, 0): 1.0, (0, 6): 1.0}
    for proxies in ("max", "mean"):
        for logits in (False, True):
            found = mapped(lines, proxies, logits)
            assert (found.apply(x) == x[:, [6, 0]]).all()
            assert (found.apply(torch.from_numpy(x)).numpy() == x[:, [6, 0]]).all()


@pytest.mark.parametrize("given_values", [6, 8, 1])
def test_another_number_of_values_is_refused(given_values: int) -> None:
    found = mapped({(0, 0): 1.0})
    told = "a header line in the file of labels" if given_values == 6 else "its labels .classes_from. are 7$"
    with pytest.raises(ValueError, match=f"the net gave {given_values} values, .*{told}"):
        found.apply(np.zeros((2, given_values)))


def loaded(**more: object) -> LoadedNet:
    keys = {"outputs": 4, "takes": [3, 0, 1], "gives": [0, 2, 2], "weights": [1.0, 1.0, 1.0]}
    member = {"name": "net", "family": "simple_cnn", "params": {"base": 4, "channels": 1}, "frontend": "fe",
              "classes_map": keys, **more}
    made = spec.check(spec.load(spec.Ensemble, {
        "name": "mine", "classes": ["bark", "meow", "hiss"], "frontends": {"fe": {"preset": "argus"}},
        "members": [member]}))
    state = models.build("simple_cnn", {"base": 4, "channels": 1}, 4).state_dict()
    device = Device(name="cpu", about="")
    return load_net(build_recipe(made, made.members[0]), state, 3, device, spec.Cost())


ANSWERS = np.array([[0.1, 2.0, -1.0, 3.0], [0.3, 1.0, -2.0, -3.0]], np.float32)


def test_a_net_with_four_outputs_gives_three_classes() -> None:
    p = sigmoid(ANSWERS.astype(np.float64))
    bark, meow, hiss = merge(loaded(), ANSWERS)
    assert (bark, hiss) == pytest.approx((p[:, 3].mean(), p[:, 1].mean()), abs=1e-6)
    assert meow == 0.0  # not known: its weight in a mean is 0


def test_probabilities_are_mapped_after_the_merge_and_logits_before_it() -> None:
    answers = np.array([[2.0, -2.0, 0.0, 0.0], [-2.0, 2.0, 0.0, 0.0]], np.float32)
    assert merge(loaded(), answers)[2] == pytest.approx(0.5)
    before = merge(loaded(proxy_scores="logits"), answers)
    assert before[2] == pytest.approx(float(sigmoid(np.array(2.0))))


def test_a_softmax_is_over_all_labels_or_over_the_known_classes() -> None:
    whole = softmax(ANSWERS.astype(np.float64))
    assert merge(loaded(activation="softmax"), ANSWERS)[0] == pytest.approx(whole[:, 3].mean(), abs=1e-6)
    known = softmax(ANSWERS.astype(np.float64)[:, [3, 1]])
    wanted = [known[:, 0].mean(), 0.0, known[:, 1].mean()]
    assert merge(loaded(activation="softmax", proxy_scores="logits"), ANSWERS) == pytest.approx(wanted)


def test_frames_are_mapped_frame_by_frame() -> None:
    found = loaded().recipe
    frames = np.random.default_rng(1).random((6, 4))
    assert found.in_order(frames)[:, 2] == pytest.approx(frames[:, :2].max(axis=1))


def test_logits_of_a_net_that_gives_probabilities_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = models.build("simple_cnn", {"base": 4, "channels": 1}, 4)
    monkeypatch.setattr(type(built), "output", "probabilities")
    loaded()
    with pytest.raises(ModelLoadFailed, match='proxy_scores = "logits", but the net gives prob'):
        loaded(proxy_scores="logits")


@pytest.mark.parametrize("keys", [{}, {"proxy_scores": "logits"}])
def test_rows_of_which_every_pass_failed_are_as_wide_as_the_net(keys: dict[str, object]) -> None:
    recipe = loaded(**keys).recipe
    assert (recipe.width(1), recipe.width(4), recipe.width(9)) == (4, 4, 9)
