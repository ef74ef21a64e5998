"""docs/options.md and the examples of docs/ensembles.md: complete, and they run as they are printed."""
from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

import build_dataset
import hourglass
import infer_kernel
import train
from builder import assembly, option_docs
from kernel.errors import SpecError
from kernel.rehearsal import options
from kernel.spec import load_ensemble
from kernel.units import parse_bytes, parse_seconds
from tests.helpers import REPOSITORY
from tests.helpers.bundles import TINY, order

PAGE = option_docs.PAGE.read_text(encoding="utf-8")
PROSE = re.sub(r"<!-- table .*?<!-- end -->", "", PAGE, flags=re.DOTALL)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith(("python ", "hourglass "))]
OWN_NET = (REPOSITORY / "docs" / "ensembles.md").read_text(encoding="utf-8").partition("### A mel inside")[2]


def test_the_page_on_options_is_up_to_date() -> None:
    assert option_docs.fill(PAGE) == PAGE, "run: python -m builder.option_docs"


@pytest.mark.parametrize("name", option_docs.COMMANDS)
def test_every_option_is_in_the_docs(name: str) -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    parser = option_docs.COMMANDS[name]()
    told = {option for action in option_docs.list_options(parser) for option in action.option_strings}
    assert told == {option for option in parser._option_string_actions if option not in ("-h", "--help")} - {
        "--folder"  # the guard's own word to the rehearsal
    }
    assert [option for option in told if not re.search(rf"{option}\b(?!-)", text)] == []


@pytest.mark.parametrize("option", ["--notebook", "--competition", "--labels", "--simulate-commit",
                                    "--repeat-to", "--sample", "--split",
                                    "--dry-run-clips"])
def test_what_needs_more_than_a_line_has_an_example(option: str) -> None:
    assert f"`{option}" in PROSE


@pytest.mark.parametrize("name", option_docs.COMMANDS)
def test_every_help_text_has_its_default_and_unit(name: str) -> None:
    for action in option_docs.list_options(option_docs.COMMANDS[name]()):
        told = f"{action.option_strings} {action.metavar} {action.help}"
        if action.nargs != 0:
            assert "(default: " in told or "(required)" in told, told
        if action.default not in (None, False) and action.dest != "owner":
            shown = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
            assert f"default: {shown}" in told, told
        if action.type is infer_kernel.parse_seconds or action.type is parse_seconds:
            assert re.search("second|SECONDS", told, re.I), told
        if action.type is infer_kernel.parse_bytes or action.type is parse_bytes:
            assert "GB" in told, told


def test_an_option_without_help_cannot_be_added() -> None:
    parser = argparse.ArgumentParser(prog="some.py")
    parser.add_argument("--secret")
    with pytest.raises(SpecError, match="--secret.*no help text"):
        option_docs.option_table(parser)


def test_every_printed_command_can_be_given() -> None:
    assert len(COMMANDS) >= 15
    for line in COMMANDS:
        word, script, *arguments = shlex.split(line)
        if word == "hourglass":
            if script == "upload":
                script, arguments = "build", ["--upload", *arguments]
            made = option_docs.COMMANDS[script]()
            assert script in hourglass.COMMANDS and made.parse_args(arguments)
            continue
        assert word == "python"
        if script == "build_dataset.py":
            assert build_dataset.read_arguments(arguments).ensemble
        elif script == "train.py":
            assert train.make_parser().parse_args(arguments).data
        elif arguments[0] == "--rehearse":
            assert options.read_arguments(arguments[1:]).clips
        else:
            assert infer_kernel.make_parser().parse_args(arguments).bundle


def test_a_competition_and_a_notebook_stand_in_the_metadata(tmp_path: Path) -> None:
    request = order(tmp_path / "out", ensemble=TINY, competition="birdclef-2025", notebook=True)
    assembly.build(request, say=lambda _: None)
    data = json.loads((tmp_path / "out/push/kernel-metadata.json").read_text())
    assert data["competition_sources"] == ["birdclef-2025"] and data["code_file"] == "infer_kernel.ipynb"
    assert {path.name for path in (tmp_path / "out/push").iterdir()} == {
        "infer_kernel.ipynb", "infer_kernel.py", "kernel-metadata.json"
    }


def test_the_printed_net_with_its_mel_inside_is_built(tmp_path: Path) -> None:
    net, toml = re.findall(r"```\w+\n(.*?)```", OWN_NET, re.DOTALL)[:2]
    (tmp_path / "wave_net.py").write_text(net, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
    built = assembly.build(order(tmp_path / "out", ensemble=tmp_path / "mine.toml"), say=lambda _: None)
    assert load_ensemble(tmp_path / "mine.toml").frontends["wave"]["preset"] == "wave"
    assert built.manifest.ensemble.members[0].family == "wave_net.py:WaveNet" and built.filled == ("wave.0",)


def test_a_net_of_two_files_ships_both(tmp_path: Path) -> None:
    net, toml = re.findall(r"```\w+\n(.*?)```", OWN_NET, re.DOTALL)[:2]
    (tmp_path / "hop_of_net.py").write_text("HOP = 512\n")
    (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "wave_net.py").write_text("from .hop_of_net import HOP\n" + net, encoding="utf-8")
    with pytest.raises(SpecError, match="relative to a package"):
        assembly.build(order(tmp_path / "out", ensemble=tmp_path / "mine.toml"), say=lambda _: None)
    (tmp_path / "wave_net.py").write_text("from hop_of_net import HOP\n" + net, encoding="utf-8")
    built = assembly.build(order(tmp_path / "out", ensemble=tmp_path / "mine.toml"), say=lambda _: None)
    assert "kernel/custom/hop_of_net.py" in built.manifest.wheel.files
