"""Bring your own net: an nn.Module class from a user's Python file, named "my_model.py:MyNet".

Owns finding the class and filling in what it does not declare. Importing the file is `kernel.own_files`; the
builder hashes and ships it (in the bundle it lies inside the wheel, in `kernel/custom/`).
"""
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SpecError, did_you_mean, text_of
from ..spec import own_files
from .blocks import Tagger

FOLDER = own_files.FOLDER
DECLARED = ("output", "channels", "bins", "min_frames", "max_frames", "fixed_frames", "maskable")


def find_file(name: str) -> Path:
    """Path of the file part of "my_model.py:MyNet": a bare name means the wheel's `kernel/custom/` first.

    The wheel comes first because its bytes were verified; a file of the same name in the working folder was
    not.

    Raises  SpecError when neither exists
    """
    path = Path(name.rpartition(":")[0])
    for candidate in (FOLDER / path, path) if path.name == str(path) else (path,):
        if candidate.is_file():
            return candidate
    raise SpecError(
        f"family {name!r}: no file {path}; give its path relative to where you run, or an absolute one"
    )


def load_custom(path: Path, cls: str) -> type[nn.Module]:
    """The class `cls` of the file at `path`, whose code runs with your rights: only load what you wrote.

    Raises  SpecError when the file fails to import, has no such class, or the class is no nn.Module
    """
    module = own_files.load(path)
    value = getattr(module, cls, None)
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        nets = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        raise SpecError(
            f"{path}: no nn.Module class {cls!r}; {did_you_mean(cls, nets) if nets else 'the file has none'}"
        )
    return value


def build_custom(name: str, params: Mapping[str, Any], classes: int) -> nn.Module:
    """The user's net, with all that `Tagger` declares; `classes` is passed if the constructor takes it.

    A forward without `frames` makes the net not maskable: it runs at exactly equal lengths or alone.

    Raises  SpecError
    """
    cls = load_custom(find_file(name), name.rpartition(":")[2])
    accepted = inspect.signature(cls).parameters
    values = {**params, **({"classes": classes} if "classes" in accepted else {})}
    try:
        module = cls(**values)
    except (MemoryError, KeyboardInterrupt):
        raise  # not the file's fault: the engine knows what to do about it
    except BaseException as error:
        raise SpecError(
            f"family {name!r}: {cls.__name__}({dict(values)}): {type(error).__name__}: {text_of(error)}; "
            "correct params, or the class"
        ) from error
    declared: dict[str, Any] = {k: getattr(Tagger, k) for k in DECLARED if not hasattr(module, k)}
    if "frames" not in inspect.signature(module.forward).parameters:
        declared["maskable"] = False
    for attribute, value in declared.items():
        setattr(module, attribute, value)
    return module
