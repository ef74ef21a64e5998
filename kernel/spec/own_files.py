"""An ensemble's own Python files: finding them and what they import beside them, importing them.

Owns how such a file is imported, here and in the bundle (its wheel carries them in `kernel/custom/`), and
what must be put right in this environment before it is. What the file has to hold is the caller's: a net
(models.custom) or a front end (sound.own).
"""
import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..errors import SpecError, text_of

FOLDER = Path(__file__).resolve().parent.parent / "custom"  # where the builder's wheel carries users' files
# What imports torchvision, which comes without its operators beside a torch of another index.
USING_TORCHVISION = ("torchvision", "timm", "transformers")
_LOADING = threading.RLock()


def find(file: str, what: str) -> Path:
    """Path of an own file: a bare name means the wheel's `kernel/custom/` first.

    The wheel comes first because its bytes were verified; a file of the same name in the working folder was
    not.

    what  the key that names it, for the message

    Raises  SpecError when neither exists
    """
    path = Path(file)
    for candidate in (FOLDER / path, path) if path.name == str(path) else (path,):
        if candidate.is_file():
            return candidate
    raise SpecError(f"{what}: no file {path}; give its path relative to where you run, or an absolute one")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module, guarded) of every import of a file; guarded = inside `try`, so that it may fail.

    A relative import is given as "." alone.

    Raises  SpecError when the file is no Python
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise SpecError(f"{path}: cannot be read as Python ({error}); correct the file") from error
    guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for b in t.body for n in ast.walk(b)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in guarded
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module or ".", id(node) in guarded


def with_siblings(path: Path) -> dict[str, Path]:
    """Name below the file's folder -> path: the file, and all files beside it that it imports, in turn.

    A folder beside it that is imported comes with all its Python files.

    Raises  SpecError, also for a relative import, which has no package to be relative to
    """
    folder = path.resolve().parent
    found: dict[str, Path] = {}
    todo = [path.resolve()]
    while todo:
        current = todo.pop()
        name = current.relative_to(folder).as_posix()
        if name in found:
            continue
        found[name] = current
        for module, _ in imports_of(current):
            if module == "." and current.parent == folder:
                raise SpecError(f"{current}: imports relative to a package (`from . import`); write `import "
                                "name`: what lies beside the file rides along")
            top = module.split(".")[0]
            if (folder / f"{top}.py").is_file():
                todo.append(folder / f"{top}.py")
            elif top and (folder / top).is_dir():
                todo += sorted((folder / top).rglob("*.py"))
    return dict(sorted(found.items()))


def digest(path: Path) -> str:
    """sha256, hex, of the file and all that it imports from beside it: equal code, equal digest."""
    total = hashlib.sha256()
    for name, held in with_siblings(path).items():
        total.update(f"{name}\0{hashlib.sha256(held.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def load(path: Path) -> ModuleType:
    """The module of the file at `path`, whose code runs with your rights: only load what you wrote.

    Files beside it that it imports are found first, and once.

    Raises  SpecError when the file fails to import
    """
    name = f"hourglass_custom_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise SpecError(f"{path}: not a Python file; name it *.py")
    folder = str(path.resolve().parent)
    with _LOADING:
        siblings = with_siblings(path)
        wanted = {module.split(".")[0] for held in siblings.values() for module, _ in imports_of(held)}
        if wanted & set(USING_TORCHVISION):
            mend_torchvision()
        others = [held for held in siblings if held != path.name]
        _forget_others({Path(held).parts[0].removesuffix(".py") for held in others}, folder)
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses and relative look-ups need it while the file runs
        sys.path.insert(0, folder)
        try:
            found.loader.exec_module(module)
        except (MemoryError, KeyboardInterrupt):
            raise  # not the file's fault
        except BaseException as error:  # any fault of the user's file becomes one named error
            raise SpecError(
                f"{path}: {type(error).__name__}: {text_of(error)}; the file must import on its own, beside "
                f"{', '.join(others) or 'no other file'}"
            ) from error
        finally:
            sys.path.remove(folder)
            if len(siblings) > 1 and folder not in sys.path:
                sys.path.append(folder)  # for imports inside its functions
    return module


def _forget_others(names: set[str], folder: str) -> None:
    """Let modules of these names that came from another folder be imported anew."""
    for name in [held for held in sys.modules if held.split(".")[0] in names]:
        place = getattr(sys.modules[name], "__file__", None)
        if place and not Path(place).resolve().is_relative_to(folder):
            del sys.modules[name]


@functools.cache
def mend_torchvision() -> None:
    """Make torchvision importable where it came without its compiled operators.

    That happens beside a CPU torch of another index: its import then fails because `nms` and `qnms` are
    not declared, and with it every library that imports torchvision. Declaring them, without a body, is
    enough: no classifier calls them. Where its own library loads, it declares them itself; a second
    declaration would end the process. Nothing is done where torchvision is missing or sound.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        if not load_torchvision_operators():
            declare_torchvision_operators()
            importlib.import_module("torchvision")


def load_torchvision_operators() -> bool:
    """True when torchvision's compiled library is there and loads: it declares its operators itself."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(library)
            except OSError:  # of another build
                return False
            return True
    return False


@functools.cache
def declare_torchvision_operators() -> object:
    """The library that declares torchvision's `nms` and `qnms`; they last as long as it does."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
