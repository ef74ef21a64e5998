"""What stands twice: the guard is one file of the standard library, so it has copies of a few things of
kernel/. Each copy is held against the original here.
"""
from __future__ import annotations

import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infer_kernel
from kernel import limits, run, spec, units
from kernel.rehearsal import command
from kernel.scores import submission
from kernel.sound import clips
from tests.helpers.guard_runs import run_guard
from tests.helpers.stub_bundle import make_bundle

PARSERS = ("parse_bytes", "parse_seconds", "parse_count")
TEXTS = """
14GB|14 gb| 14GB |14  GB|1.5g|1.5 GiB|512MiB|512mib|16GiB|4096|4096b|100kB|2T|2tib|0|0GB|00012|007
1e3|1E3|1e-05|1e+16|1e10|1e8|100000001|-1e9|1e99
1e999|1e-999|1.5e3GB|1.|.5|1.5.2|1,5GB|-1|-1GB|+1|+3600|--1|3600|3600.0|0.5|-5|-0.0
0.30000000000000004|nan|NaN|inf|-inf|infinity|1h|90m|1:30|90 s|90s|soon||GB|k|ki|kibi|1 G B|1GB2|0x10|1_000
1 000|\u0661GB|\uff13|1\u00b2|1K\u212a|1\u017f|14 apples|14 bananas|1gb|1pb|1eb|1kib|1kb|1b|1bb
999999999999999TB|9999999999999999TB|99999999999999999999|1.0000000000000001GB
"""
ALPHABET = string.digits * 4 + ".eE+- _kKmMgGtTiIbBnaf\u0661\u212a\n"


def outcome(parse: Callable[[str], Any], text: str) -> tuple[str, Any]:
    """What a parser makes of a text: a value, or the sentence it refuses it with."""
    try:
        return "value", parse(text)
    except Exception as error:
        assert isinstance(error, units.ArgumentTypeError), f"argparse would hide {error!r}"
        return "refused", str(error)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("line", TEXTS.strip().split("\n"))
def test_command_lines_are_read_alike(name: str, line: str) -> None:
    for text in line.split("|"):
        ours, theirs = (outcome(getattr(module, name), text) for module in (infer_kernel, units))
        assert ours == theirs and type(ours[1]) is type(theirs[1]), text


@pytest.mark.parametrize("name", PARSERS)
@given(text=st.text(ALPHABET, max_size=12) | st.text(max_size=6) | st.floats().map(str))
def test_any_text_is_read_alike(name: str, text: str) -> None:
    ours, theirs = (outcome(getattr(module, name), text) for module in (infer_kernel, units))
    assert ours == theirs


def test_a_text_means_what_it_seems_to_or_is_refused_with_a_hint() -> None:
    assert units.parse_bytes("1.1GB") == 1_100_000_000 and units.parse_bytes(" 512 MiB") == 512 << 20
    assert units.parse_seconds("-5") == -5.0 and units.parse_seconds(str(5400.0)) == 5400.0
    assert units.parse_count("12") == 12
    refusals = [
        ("parse_bytes", "1e10", "14GB, 512MiB or 4096"),
        ("parse_seconds", "1h", "give seconds, e.g. 3600"),
        ("parse_seconds", "nan", "give seconds, e.g. 3600"),
        ("parse_count", "0", "at least 1"),
    ]
    for name, text, hint in refusals:
        kind, sentence = outcome(getattr(units, name), text)
        assert kind == "refused" and hint in sentence


REFUSED = ("--ram=1e10", "--disk=14 apples", "--seconds=1h", "--seconds=nan", "--loaders=0", "--first=2.5")


@pytest.mark.parametrize("option", REFUSED)
def test_guard_and_rehearsal_refuse_an_argument_with_the_same_sentence(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = set()
    for parse in (infer_kernel.make_parser().parse_args, command.read_arguments):
        with pytest.raises(SystemExit) as ended:
            parse(["--bundle=b", "--clips=c", option])
        sentences.add(capsys.readouterr().err.split("error: ")[1])
        assert ended.value.code == 2
    assert len(sentences) == 1 and ": invalid " not in sentences.pop()


@pytest.mark.parametrize("more", [(), ("--rehearse", "--clips=c")])
def test_a_refused_argument_ends_with_exit_code_2_and_the_sentence(
    where: Path, more: tuple[str, ...]
) -> None:
    done = run_guard(where, make_bundle(where / "bundle").folder, "--ram=1e10", *more)
    assert done.code == 2 and outcome(units.parse_bytes, "1e10")[1] in done.out


@given(st.floats(-10, 1e6) | st.sampled_from([-1.0, 0.0, 2.9, 3.0, 20.0, 60.0, 720.0, 3600.0, 43200.0]))
def test_the_marks_are_those_of_the_engine(budget_s: float) -> None:
    assert vars(infer_kernel.Marks(budget_s)) == vars(limits.marks(budget_s))


def test_the_figures_are_those_of_the_engine() -> None:
    assert infer_kernel.UNITS == units.UNITS
    assert infer_kernel.DEFAULT_PROFILE == vars(limits.limits("fat2019"))
    assert infer_kernel.LEAST == spec.LEAST_PROBABILITY
    assert infer_kernel.EXIT_VERDICT == run.EXIT_VERDICT
    assert set(infer_kernel.AUDIO_NAMES) <= clips.SUFFIXES


def test_the_clock_is_that_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = infer_kernel.Run(infer_kernel.make_parser().parse_args(["--offset", "5"]))
    order = infer_kernel.describe_order(guard, infer_kernel.Sample(None, ["id", "a"], [], []))
    clock = limits.Clock(order["started"], order["started_boot"], order["offset_s"])
    for awake_s, suspended_s in ((10.0, 0.0), (10.0, 600.0)):  # a suspended machine stops one of two clocks
        now = {
            time.CLOCK_MONOTONIC: order["started"] + awake_s,
            time.CLOCK_BOOTTIME: order["started_boot"] + awake_s + suspended_s,
        }
        monkeypatch.setattr(time, "monotonic", lambda now=now: now[time.CLOCK_MONOTONIC])
        monkeypatch.setattr(time, "clock_gettime", now.__getitem__)
        assert guard.elapsed() == clock.elapsed() == pytest.approx(5.0 + awake_s + suspended_s)


@given(st.text(max_size=8))
def test_cells_are_quoted_alike(text: str) -> None:
    assert infer_kernel.quote(text) == submission.quote(text)


@given(
    ids=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5),
    labelled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_guard_accepts_what_the_engine_publishes(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], labelled: bool, seed: int
) -> None:
    classes = ["a", "b, c", 'd"']
    header = ["fname", "label"] if labelled else ["fname", *classes]
    output = spec.Output(format="label", labels={"a": "A, \n"}) if labelled else spec.Output()
    path = tmp_path_factory.mktemp("out") / "submission.csv"
    publisher = submission.Publisher(
        path, submission.Sample(header=tuple(header), ids=tuple(ids)), output, classes
    )
    publisher.publish(np.random.default_rng(seed).random((len(ids), 3)))
    publisher.close()
    guard = infer_kernel.Run(infer_kernel.make_parser().parse_args([]))
    guard.learn({"classes": classes, "output": vars(output)})
    prior = infer_kernel.Prior(infer_kernel.Sample(None, header, ids, []), guard)
    assert infer_kernel.find_invalid(str(path), prior) is None
