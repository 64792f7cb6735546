"""What a result was made from: hashes of code, tensors and files.

A hash of code sees what runs and nothing else: comments, docstrings and blank lines can change freely. It is computed
on the text, not on a syntax tree, so that every supported Python gives the same value.
"""

import ast
import functools
import hashlib
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

PACKAGE = Path(__file__).resolve().parent
# Modules that show results and cannot change them: editing one redraws pages and leaves published numbers valid.
PRESENTATION = {"figures", "ledger", "records", "verdicts"}


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of named tensors (name, type, shape, bytes; order of names ignored) and of a text."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def code_text(source: str) -> str:
    """Return Python source without comments, docstrings and blank lines; texts stay as they are."""
    source = source.replace("\r\n", "\n")
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    inside_text: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            inside_text |= set(range(node.lineno - 1, node.end_lineno - 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            inside_text -= _cut(lines, node.body[0], "pass" if len(node.body) == 1 else "")
    kept = ((row, line if row in inside_text else line.rstrip()) for row, line in enumerate(lines))
    return "\n".join(line for row, line in kept if line or row in inside_text)


_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _cut(lines: list[str], node: ast.stmt, instead: str) -> set[int]:
    """Replace a statement by another text in place; return the rows that it took, counted from 0."""
    first, last = node.lineno - 1, node.end_lineno - 1
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    lines[first : last + 1] = [before + instead + after] + [""] * (last - first)
    return set(range(first, last + 1))


def notebook_code(path: Path) -> str:
    """Return the code cells of a notebook, without outputs, the injected parameters and lines for IPython."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    sources = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    return "\n".join(line for source in sources for line in source.splitlines() if not line.startswith(("%", "!")))


def notebook_parameters(path: Path) -> dict[str, object]:
    """Return {name: default} of the cell tagged ``parameters`` of a notebook, in its order.

    Raises
    ------
    ValueError
        There is no such cell, or a line in it is no ``name = literal``.
    """
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    cell = next((cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])), None)
    if cell is None:
        raise ValueError(f"{path} has no cell tagged parameters")
    found = {}
    for line in ast.parse("".join(cell["source"])).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f"{path}: the parameters cell holds more than `name = literal`: {ast.unparse(line)}")
        found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def _source(path: Path) -> str:
    return notebook_code(path) if Path(path).suffix == ".ipynb" else Path(path).read_text(encoding="utf-8")


def source_code(path: Path) -> str:
    """Return what runs in a ``.py`` or ``.ipynb`` file (see `code_text`)."""
    return code_text(_source(path))


def _named_modules(code: str) -> set[str]:
    """Modules of the package that a source names in any import, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = PACKAGE.name if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == PACKAGE.name and len(part) > 1}


def imported_modules(path: Path) -> list[Path]:
    """Return the files of the package that a source imports, directly or through each other, sorted."""
    found, waiting = set(), [Path(path)]
    while waiting:
        for name in _named_modules(_source(waiting.pop())):
            module = PACKAGE / f"{name}.py"
            if module.exists() and module not in found:
                found.add(module)
                waiting.append(module)
    return sorted(found)


def code_hashes(path: Path, presentation: bool = False) -> dict[str, str]:
    """Return {file name: hash} of a notebook or module and of the modules of the package behind it.

    Modules that only show results (`PRESENTATION`) are left out unless `presentation` is true.
    """
    files = [Path(path), *imported_modules(path)]
    return {file.name: digest(source_code(file)) for file in files if presentation or file.stem not in PRESENTATION}


def object_hash(thing: Callable | nn.Module) -> str:
    """Return a hash of the code and the settings of a function, a callable object or a network.

    Code of the package counts with the modules that it imports, the user's with its own text, torch's by its version.
    Settings are the arguments of a partial, the values that a function closes over, and what `repr` shows of an object.
    Weights do not count.
    """
    return digest("\n".join(_described(thing)) + torch.__version__)


def _described(thing: object, above: tuple[int, ...] = ()) -> list[str]:
    """Return what tells a thing apart from others, as texts that are the same in each process."""
    if id(thing) in above:
        return ["itself"]

    def each(things: Iterable) -> list[str]:
        return [text for one in things for text in _described(one, (*above, id(thing)))]

    if isinstance(thing, functools.partial):
        return ["partial", *each([thing.func, thing.args, thing.keywords])]
    if inspect.ismethod(thing):
        return [thing.__name__, *each([thing.__self__])]
    if inspect.isfunction(thing):
        thing = inspect.unwrap(thing)  # what shape checks and the like wrap around it is no setting
        return [thing.__qualname__, _code_of(thing), *each(cell.cell_contents for cell in thing.__closure__ or ())]
    if isinstance(thing, nn.Module):
        return [repr(thing), *sorted({_code_of(type(part)) for part in thing.modules()}), *each(_settings(thing))]
    if isinstance(thing, Tensor):
        return [tensors_sha256({"": thing})]
    if isinstance(thing, np.ndarray):
        return [f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"]
    if isinstance(thing, Mapping):
        return [text for key in sorted(thing, key=str) for text in [str(key), *each([thing[key]])]]
    if isinstance(thing, list | tuple):
        return each(thing)
    if isinstance(thing, set | frozenset):
        return sorted(each(thing))
    if isinstance(thing, type) or inspect.isroutine(thing):
        return [f"{thing.__module__}.{thing.__qualname__}", _code_of(thing) if isinstance(thing, type) else ""]
    if hasattr(thing, "__dict__") and not inspect.ismodule(thing):
        return [type(thing).__qualname__, _code_of(type(thing)), *each([vars(thing)])]
    return [re.sub(r" at 0x[0-9a-f]+", "", repr(thing))]  # no address: it differs between processes


def _settings(model: nn.Module) -> list[dict[str, object]]:
    """Return the plain attributes of a network and of its parts, which `repr` need not show."""
    return [
        {name: value for name, value in vars(part).items() if name[0] != "_" and name != "training"}
        for part in model.modules()
    ]


def _code_of(owner: type | Callable) -> str:
    """Return hashes of the code of a class or function: the package's by module, torch's none, others' own text."""
    top = owner.__module__.split(".")[0]
    if top == PACKAGE.name:
        return json.dumps(code_hashes(Path(sys.modules[owner.__module__].__file__)))
    return "" if top in ("torch", "builtins") else inspect.getsource(owner)
