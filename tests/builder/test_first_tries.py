"""docs/first_tries.md: each section is written to an empty folder as it stands, built and scored at once."""
from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import build_dataset
import kernel
from builder import assembly, backend_wheels
from kernel.spec.own_files import mend_torchvision
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "first_tries.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
NEEDED = {"A timm backbone and its checkpoint": ["timm"], "An ONNX graph": ["onnx", "onnxruntime"]}


def write_files(section: str, folder: Path) -> list[str]:
    """Every block that names its file, and the commands that stand alone."""
    commands = []
    for kind, text in re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL):
        named = re.match(r"# ([\w.]+)\n", text)
        if named:
            (folder / named[1]).write_text(text, encoding="utf-8")
        elif not kind:
            commands += text.splitlines()
    return commands


def run(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=250,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{REPOSITORY}"}, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_page_has_what_people_bring() -> None:
    assert len(SECTIONS) == 5 and all("```toml\n# mine.toml\n" in part for part in SECTIONS.values())


@pytest.mark.faults
@pytest.mark.parametrize("title", SECTIONS)
def test_it_works_at_the_first_try(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend_torchvision()  # some machines have it without its operators, on which timm then fails to load
    for package in NEEDED.get(title, ()):
        pytest.importorskip(package)
    commands = write_files(SECTIONS[title], tmp_path)
    (tmp_path / "my_clips").mkdir()
    for number, seconds in enumerate((1.5, 7.0)):
        wave = 0.1 * np.random.default_rng(number).standard_normal(int(22_050 * seconds))
        soundfile.write(tmp_path / "my_clips" / f"c{number}.wav", wave, 22_050)
    mended = "from kernel.spec.own_files import mend_torchvision as m; m(); exec(open('save.py').read())"
    run(tmp_path, "-W", "ignore", "-c", mended)
    (command,) = commands
    word, *words = shlex.split(command)
    assert word == "hourglass"
    if "onnxruntime" in words:  # its wheels come from the network; this machine has the runtime
        monkeypatch.setattr(backend_wheels, "collect", lambda *_, **__: [])
        request = assembly.BuildRequest(ensemble=tmp_path / "mine.toml", out=tmp_path / "out",
                                        back_end="onnxruntime")
        assert build_dataset.make_parser().parse_args(words[1:]).wheels == request.back_end
        assembly.build(request, say=lambda _: None)
    else:
        run(tmp_path, str(REPOSITORY / "hourglass.py"), *words)
    scores = kernel.score(tmp_path / "out" / "bundle", tmp_path / "my_clips", device="cpu", progress=False)
    report = scores.attrs["report"]
    assert list(scores.columns) == ["dog", "rain", "bell"] and report["prior_rows"] == 0
    assert report["fault_counts"] == {} and scores.to_numpy().std() > 0
    windows = ["c0_5", "c1_5", "c1_10"]
    assert list(scores.index) == (windows if "Windows" in title else ["c0.wav", "c1.wav"])
