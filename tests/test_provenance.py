import functools
import hashlib
import importlib
import inspect
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from xai_lib import losses, provenance, xcnn
from xai_lib.data import Normalize

# hashes of text, files and tensors


def test_known_hashes(tmp_path):
    """SHA-256 of the empty text and of "abc": FIPS 180-2, appendix B."""
    assert provenance.digest("") == "e3b0c44298fc1c14"
    (tmp_path / "abc").write_bytes(b"abc")
    assert provenance.file_sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_tensors_sha256_is_the_hand_written_form():
    tensors = {"b": torch.tensor([[1.5]]), "a": torch.tensor([1, 2], dtype=torch.uint8)}
    expected = hashlib.sha256(b"text")
    expected.update(b"a torch.uint8 (2,)\x01\x02")
    expected.update(b"b torch.float32 (1, 1)\x00\x00\xc0\x3f")
    assert provenance.tensors_sha256(tensors, "text") == expected.hexdigest()


def test_tensors_sha256_sees_names_types_shapes_values_and_text_only():
    base = torch.arange(24, dtype=torch.float32).view(1, 2, 3, 4)
    total = provenance.tensors_sha256({"a": base, "b": base + 1})
    assert provenance.tensors_sha256({"b": base + 1, "a": base}) == total, "order of names"
    last = base.contiguous(memory_format=torch.channels_last)
    assert provenance.tensors_sha256({"a": last, "b": base + 1}) == total, "layout in memory"
    assert provenance.tensors_sha256({"a": nn.Parameter(base), "b": base + 1}) == total, "gradients"
    changed = base.clone()
    changed[0, 1, 2, 3] += 1e-5
    others = [
        provenance.tensors_sha256(one, text)
        for one, text in [
            ({"a": base}, ""),
            ({"a": base, "c": base + 1}, ""),
            ({"a": base + 1, "b": base}, ""),
            ({"a": base.view(2, 3, 4), "b": base + 1}, ""),
            ({"a": base.view(torch.int32), "b": base + 1}, ""),
            ({"a": changed, "b": base + 1}, ""),
            ({"a": base, "b": base + 1}, "x"),
        ]
    ]
    assert len({total, *others}) == 1 + len(others)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_tensors_sha256_takes_any_type_scalars_and_empty_tensors(dtype):
    made = [torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), torch.zeros(0, 3, dtype=dtype)]
    assert len({provenance.tensors_sha256({"a": one}) for one in made}) == 3


# what code is

CODE = """
import math

LIMIT = 3


def area(r):
    return math.pi * r**2


class Disc:
    side = "# no comment"

    def grow(self, by=1):
        for _ in range(by):
            pass
        return [
            1,
            2,
        ]
"""
COMMENTED = '''"""What the module is.

In many words.
"""

# A comment.
import math  # why



LIMIT = 3   # three



def area(r):
    """Return the area."""
    # it is a circle
    return math.pi * r**2  # "quoted" # twice


class Disc:
    """A disc.

    Round.
    """

    side = "# no comment"  # a comment

    def grow(self, by=1):
        \'\'\'Grow.\'\'\'

        for _ in range(by):
            # nothing

            pass
        return [
            1,  # one
            # between
            2,
        ]
# the end'''


def test_code_text_ignores_comments_docstrings_and_blank_lines():
    assert provenance.code_text(COMMENTED) == provenance.code_text(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("r**2", "r**3"),
        ("by=1", "by=2"),
        ("# no comment", "# no  comment"),
        ("import math", "import cmath as math"),
        ("            pass", "            by"),
        ("            2,\n", ""),
        ("class Disc:", "class Disc(dict):"),
        ("        return [", "            return ["),
    ],
)
def test_code_text_sees_code(old, new):
    assert old in CODE
    assert provenance.code_text(CODE.replace(old, new)) != provenance.code_text(CODE)


def test_code_text_sees_texts_that_are_not_docstrings():
    one, two = 'x = 1\n"""first"""\n', 'x = 1\n"""second"""\n'
    assert provenance.code_text(one) != provenance.code_text(two)
    assert provenance.code_text('page = """a # b"""\n') != provenance.code_text('page = """a # c"""\n')


def test_code_text_sees_blank_lines_and_spaces_inside_texts():
    """Two paragraphs of a page are not one; blank lines inside a text run."""
    paragraphs = 'page = """one\n\ntwo"""\n'
    assert provenance.code_text(paragraphs) != provenance.code_text('page = """one\ntwo"""\n')
    assert provenance.code_text(paragraphs) != provenance.code_text('page = """one \n\ntwo"""\n')


def test_code_text_sees_code_beside_a_docstring():
    assert provenance.code_text('class A(E): """An error."""\n') != provenance.code_text(
        'class B(E): """An error."""\n'
    )
    assert provenance.code_text('"""Doc."""; x = 1\n') != provenance.code_text('"""Doc."""; x = 2\n')


def test_code_text_sees_code_after_a_form_feed():
    """Python ends lines at line feeds only; `str.splitlines` also ends them at a form feed."""
    form = 'a = "\x0c"\nb = 1  # one\nc = {}\n'
    assert provenance.code_text(form.format(2)) != provenance.code_text(form.format(3))
    assert provenance.code_text(form.format(2)) == provenance.code_text(form.format(2).replace("  # one", ""))


def test_source_code_of_a_file(tmp_path):
    (tmp_path / "a.py").write_text(COMMENTED)
    assert provenance.source_code(tmp_path / "a.py") == provenance.code_text(CODE)


# notebooks


def notebook(path, *cells, outputs=()):
    """Write a notebook of (type, source, tags) cells."""
    made = [
        {
            "cell_type": kind,
            "source": source.splitlines(keepends=True),
            "metadata": {"tags": tags} if tags else {},
            **({"outputs": list(outputs), "execution_count": len(outputs)} if kind == "code" else {}),
        }
        for kind, source, tags in cells
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_a_notebook_is_its_code_cells(tmp_path):
    plain = notebook(tmp_path / "a.ipynb", ("code", "epochs = 2", ["parameters"]), ("code", "x = epochs\nprint(x)", []))
    run = notebook(
        tmp_path / "b.ipynb",
        ("markdown", "# Title", []),
        ("code", "epochs = 2  # how long", ["parameters"]),
        ("code", "# Parameters\nepochs = 50", ["injected-parameters"]),
        ("code", "%matplotlib inline\n!ls\nx = epochs\n\n# show it\nprint(x)", []),
        outputs=[{"output_type": "stream", "name": "stdout", "text": "2"}],
    )
    assert provenance.source_code(plain) == provenance.source_code(run) == "epochs = 2\nx = epochs\nprint(x)"


def test_a_notebooks_code_and_default_parameters_count(tmp_path):
    texts = {
        provenance.source_code(notebook(tmp_path / "a.ipynb", ("code", first, ["parameters"]), ("code", second, [])))
        for first, second in [("epochs = 2", "x = 1"), ("epochs = 3", "x = 1"), ("epochs = 2", "x = 2")]
    }
    assert len(texts) == 3


def test_a_notebook_saved_with_one_text_per_cell_is_the_same(tmp_path):
    path = notebook(tmp_path / "a.ipynb", ("code", "x = 1\ny = 2", []))
    before = provenance.source_code(path)
    content = json.loads(path.read_text())
    content["cells"][0]["source"] = "x = 1\ny = 2"
    path.write_text(json.dumps(content))
    assert provenance.source_code(path) == before


# imports

HOUSE = {
    "data": "import torch\nfrom numpy import random\n",
    "model": "from house import data\n",
    "training": "def fit():\n    from house.model import Net\n    return Net\n",
    "losses": "from . import metrics\n",
    "metrics": "from .losses import loss\n",
    "plots": "import house.metrics as measures\nx = 1\n",
    "alone": "import house\n",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package of toy modules that takes the library's place."""
    folder = tmp_path / "house"
    folder.mkdir()
    for name, source in HOUSE.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import os", []),
        ("from house import data", ["data"]),
        ("import house.data", ["data"]),
        ("from house.data import load", ["data"]),
        ("from house import alone, data", ["alone", "data"]),
        ("from house.model import Net", ["data", "model"]),
        ("from house import model", ["data", "model"]),
        ("def f():\n    from house import data\n", ["data"]),
        ("if True:\n    try:\n        import house.data\n    finally:\n        pass\n", ["data"]),
        ("from house import training", ["data", "model", "training"]),
        ("from house import plots", ["losses", "metrics", "plots"]),
        ("from house import losses", ["losses", "metrics"]),
        ("from house import nothing", []),
        ("from houses import data\nimport data", []),
        ("# from house import data", []),
        ("'from house import data'", []),
    ],
)
def test_imported_modules_transitively_and_inside_functions(house, tmp_path, source, modules):
    (tmp_path / "main.py").write_text(source)
    path = notebook(tmp_path / "main.ipynb", ("code", f"%load_ext autoreload\n{source}", []))
    for one in (tmp_path / "main.py", path):
        assert [file.stem for file in provenance.imported_modules(one)] == modules
        assert list(provenance.code_hashes(one)) == [one.name, *(f"{name}.py" for name in modules)]


def test_code_hashes_change_for_the_module_that_changed(house, tmp_path):
    path = notebook(tmp_path / "main.ipynb", ("code", "from house import training", []))
    before = provenance.code_hashes(path)
    with open(house / "model.py", "a") as file:
        file.write("# a comment\n")
    assert provenance.code_hashes(path) == before
    with open(house / "data.py", "a") as file:
        file.write("x = 1\n")
    with open(house / "losses.py", "a") as file:
        file.write("x = 1\n")
    after = provenance.code_hashes(path)
    assert [name for name in before if before[name] != after[name]] == ["data.py"]
    assert after["data.py"] == provenance.digest(provenance.source_code(house / "data.py"))


@pytest.mark.parametrize(
    "body", ['class Missing(Exception):\n    """No data."""\n', 'def later():\n    """Not yet."""\n']
)
def test_a_module_may_hold_a_class_or_function_of_a_docstring_alone(house, tmp_path, body):
    (house / "data.py").write_text(body + "\n\nfrom house import alone\n")
    (tmp_path / "main.py").write_text("from house import data\n")
    assert [file.stem for file in provenance.imported_modules(tmp_path / "main.py")] == ["alone", "data"]


@pytest.mark.parametrize("module", sorted(provenance.PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_the_librarys_own_modules_can_be_hashed(module):
    found = provenance.code_hashes(module, presentation=True)
    assert all(len(value) == 16 for value in found.values())
    assert module.name in found


# hashes of functions, callables and networks


def scaled(model, images, labels, by=1.0):
    return by * losses.cross_entropy(model, images, labels)


@dataclass(frozen=True)
class Shift:
    by: float

    def __call__(self, images):
        return images + self.by

    def twice(self, images):
        return images + 2 * self.by


class Toy(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(x)


@torch.no_grad()
def decorated(images):
    return images


def closed_over(by):
    def loss(model, images, labels):
        return by * losses.cross_entropy(model, images, labels)

    return loss


def distinct(*things):
    hashes = [provenance.object_hash(one) for one in things]
    assert hashes == [provenance.object_hash(one) for one in things], "the same thing twice"
    assert all(len(one) == 16 for one in hashes)
    return len(set(hashes)) == len(things)


def test_object_hash_tells_functions_apart():
    assert distinct(losses.cross_entropy, losses.printed_equation_3, scaled, decorated)


def test_object_hash_tells_the_arguments_of_a_partial_apart():
    half = functools.partial(scaled, by=0.5)
    assert distinct(scaled, half, functools.partial(scaled, by=0.25), functools.partial(losses.cross_entropy, by=0.5))
    assert provenance.object_hash(half) == provenance.object_hash(functools.partial(scaled, by=0.5))


def test_object_hash_tells_the_settings_of_callable_objects_apart():
    assert distinct(Shift(1.0), Shift(2.0), Normalize(0.5, 0.5), Normalize(0.5, 0.25))
    assert provenance.object_hash(Shift(1.0)) == provenance.object_hash(Shift(1.0))


def test_object_hash_tells_networks_apart_but_not_their_weights():
    small = xcnn.small_cnn((4,), size=8)
    assert distinct(Toy(3), Toy(4), small, xcnn.small_cnn((5,), size=8), xcnn.XCNN(xcnn.Generator(1, 2), small))
    assert provenance.object_hash(Toy(3)) == provenance.object_hash(Toy(3))


def test_object_hash_tells_what_a_function_closes_over_apart():
    """Else a model trained with one weight of the loss is returned for another."""
    assert distinct(closed_over(0.5), closed_over(0.25))


def test_object_hash_takes_the_method_of_an_object():
    assert distinct(Shift(1.0).twice, Shift(2.0).twice, Shift(1.0))


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy], ids=["torch", "numpy"])
@pytest.mark.parametrize("holder", [lambda by: functools.partial(scaled, by=by), closed_over, Shift])
def test_object_hash_tells_large_arrays_apart(kind, holder):
    """`repr` shows the ends of a large array only."""
    one, two = torch.zeros(2000), torch.zeros(2000)
    two[1000] = 1
    assert distinct(holder(kind(one)), holder(kind(two)))


def test_object_hash_of_the_packages_code_is_that_of_its_module_and_imports(monkeypatch):
    """Every function is decorated here, by the shape checks; elsewhere a few are (``torch.no_grad``)."""
    asked = []
    real = provenance.code_hashes
    monkeypatch.setattr(provenance, "code_hashes", lambda path: asked.append(Path(path).name) or real(path))
    for thing, file in [
        (losses.cross_entropy, "losses.py"),
        (xcnn.Generator(1, 2), "xcnn.py"),
        (Normalize(0.5, 1.0), "data.py"),
    ]:
        before = provenance.object_hash(thing)
        assert set(asked) == {file}
        monkeypatch.setattr(provenance, "code_hashes", lambda path: asked.append(Path(path).name) or {"changed": "1"})
        assert provenance.object_hash(thing) != before
        monkeypatch.setattr(provenance, "code_hashes", lambda path: asked.append(Path(path).name) or real(path))
        asked.clear()


def test_object_hash_of_the_users_code_is_that_of_its_text(monkeypatch):
    things = [scaled, decorated, Toy(3), Shift(1.0), functools.partial(scaled, by=2.0)]
    before = [provenance.object_hash(one) for one in things]
    real = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda thing: real(thing).replace("return", "return 2 *"))
    assert all(provenance.object_hash(one) != old for one, old in zip(things, before, strict=True))


def test_object_hash_sees_the_version_of_torch(monkeypatch):
    before = provenance.object_hash(losses.cross_entropy)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert provenance.object_hash(losses.cross_entropy) != before


USERS = """
import functools
import torch
from torch import nn
from xai_lib import losses, xcnn
from xai_lib.data import Normalize


@torch.no_grad()
def decorated(x):
    return x


class Plain:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


def closed(by):
    def function(x):
        return x * by

    return function


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.activation = nn.Linear(2, 2), torch.relu

    def forward(self, x):
        return self.activation(self.layer(x))


THINGS = {
    "the package's function": losses.cross_entropy,
    "the package's network": xcnn.xcnn_mnist(),
    "the package's object": Normalize(0.5, 0.25),
    "a decorated function": decorated,
    "an object without repr": Plain(2),
    "a closure": closed(2),
    "a closure over a set": closed({"a", "b", "c", "d"}),
    "a closure over a function": closed(decorated),
    "a partial with a function": functools.partial(closed, decorated),
    "a method of an object without repr": Plain(2).__call__,
    "a function of torch": torch.nn.functional.relu,
    "a function of torch in C": torch.relu,
    "a network": Net(),
}
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """Hashes of the same things here and in another process."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_of_xai_lib.py").write_text(USERS)
    code = (
        "import json, sys; sys.path[:0] = sys.argv[1:]\n"
        "from users_of_xai_lib import THINGS\n"
        "from xai_lib import provenance\n"
        "print(json.dumps({name: provenance.object_hash(thing) for name, thing in THINGS.items()}))"
    )
    command = [sys.executable, "-c", code, str(folder), str(provenance.PACKAGE.parent)]
    there = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        things = importlib.import_module("users_of_xai_lib").THINGS
    return {name: provenance.object_hash(thing) for name, thing in things.items()}, json.loads(there)


def names_of(source):
    return [line.split('"')[1] for line in source.splitlines() if line.startswith('    "')]


@pytest.mark.parametrize("name", names_of(USERS))
def test_hashes_are_the_same_in_another_process(users, name):
    """Else a model is never found again, nor a checkpoint. Addresses and the order of sets change with the process."""
    here, there = users
    assert here[name] == there[name]


def test_object_hash_tells_the_settings_of_networks_apart():
    """Settings that `repr` does not show: else a model trained with one is returned for the other."""

    class Scaled(Toy):
        def __init__(self, by, activation=torch.relu):
            super().__init__(3)
            self.by, self.activation = by, activation

        def forward(self, x):
            return self.by * self.activation(self.layer(x))

    assert distinct(Scaled(1.0), Scaled(2.0), Scaled(1.0, torch.sigmoid), nn.Sequential(Scaled(1.0)))
    assert provenance.object_hash(nn.Sequential(Scaled(1.0))) != provenance.object_hash(nn.Sequential(Scaled(2.0)))
    assert provenance.object_hash(Scaled(1.0)) == provenance.object_hash(Scaled(1.0).eval()), "no mode"


def test_object_hash_takes_a_function_that_calls_itself():
    def count(n):
        return n and 1 + count(n - 1)

    assert distinct(count, scaled)
