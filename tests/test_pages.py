"""The code that the pages print, run as printed, and what they say of torchvision's networks."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from xai_lib import attribution, faithfulness, records, xcnn

BOOK = Path(__file__).resolve().parent.parent / "book"
OWN_MODEL = (BOOK / "own-model.md").read_text(encoding="utf-8")
OWN_XCNN = (BOOK / "xcnn" / "own-model.md").read_text(encoding="utf-8")
XCNN = (BOOK / "xcnn" / "index.md").read_text(encoding="utf-8")
MODULE, OWN_MODULE = ((BOOK / "srae" / f"{page}.md").read_text(encoding="utf-8") for page in ("index", "own-model"))
CVAE, OWN_CONCEPTS = ((BOOK / "cvae" / f"{page}.md").read_text(encoding="utf-8") for page in ("index", "own-concepts"))
HEATMAPS = (BOOK / "heatmaps" / "index.md").read_text(encoding="utf-8")


def blocks(text):
    """Return the Python code of a page, block by block."""
    return re.findall(r"(?ms)^```python\n(.*?)^```$", text)


def replaced(code, *pairs):
    """Return code with texts replaced, each of which is there once."""
    for old, new in pairs:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


@pytest.fixture
def folder(tmp_path, own_data):
    """Two class folders of small pictures in random colours, 12 for testing."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(30):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    yield tmp_path / "photos"
    plt.close("all")


def test_the_blocks_of_own_model_run_in_order(folder, capsys):
    """At 64 pixels, with an untrained network."""
    first, *others = blocks(OWN_MODEL)
    pairs = [('"path/to/folder"', repr(str(folder))), ('weights="DEFAULT"', "weights=None"), ("size=224", "size=64")]
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(replaced(first, *pairs), names)
    photos, maps = names["photos"], names["maps"]
    assert photos.images.shape == (12, 3, 64, 64)
    assert maps.shape == (8, 1, 64, 64)
    assert maps.abs().sum((1, 2, 3)).min() > 0
    assert len(plt.get_fignums()) == 1
    three_more, sensitivity = others
    exec(three_more, names)
    assert names["patterns"].estimator == "two-component"
    assert names["maps"].shape == (8, 1, 64, 64)
    assert not torch.equal(names["maps"], maps), "PatternNet's"
    names["maps"] = maps
    exec(sensitivity, names)
    assert names["faithfulness"] is faithfulness
    printed = float(re.search(r"tensor\(([-\d.e]+)", capsys.readouterr().out)[1])
    assert 0 <= printed <= 2
    assert printed == pytest.approx(faithfulness.target_sensitivity(maps, names["other"]).nanmean().item(), abs=1e-3)


@pytest.mark.parametrize("page", [OWN_MODEL, OWN_XCNN])
def test_the_first_block_of_own_model_is_short(page):
    """Fewer than 10 lines, imports and blank ones included."""
    assert len(blocks(page)[0].splitlines()) < 10


def test_the_first_block_of_own_concepts_is_short():
    """Fewer than 10 lines of code, imports included."""
    assert len([line for line in blocks(OWN_CONCEPTS)[0].splitlines() if line]) < 10


def test_the_blocks_of_xcnn_own_model_run_in_order(folder, tmp_path, monkeypatch, capsys):
    """At 32 pixels, for one pass."""
    monkeypatch.setattr(records, "folder", lambda name: tmp_path / name)
    first, sign, more = blocks(OWN_XCNN)
    names: dict[str, object] = {}
    exec(
        replaced(first, ('"path/to/folder"', repr(str(folder))), ("size=64", "size=32"), ("epochs=20", "epochs=1")),
        names,
    )
    assert names["maps"].shape == (8, 1, 32, 32)
    assert [*(tmp_path / "mine").glob("mine-*.safetensors")]
    exec(sign, names)
    assert names["sign"] in (1, -1)
    assert len(plt.get_fignums()) == 2
    exec(more, names)
    assert set(names["gains"]) == {"XCNN", "edges"}
    assert re.search(r"'XCNN': -?[\d.e-]+, 'edges': -?[\d.e-]+}\ntensor\(", capsys.readouterr().out)


def test_the_blocks_of_the_explanation_module_run(capsys):
    names: dict[str, object] = {}
    for code in blocks(MODULE):
        exec(code, names)
    assert names["modules"].encode(names["layer"]).shape == (2, 40, 5)
    assert names["modules"](names["layer"]).shape == (40, 2)
    assert names["loss"](names["modules"], names["layer"], torch.zeros(40, 2), torch.ones(40, 2)) > 0
    assert names["drawn"].masks.shape == (8, 64, 64)
    assert names["correlations"].shape == (5, 5)
    name, marks = re.fullmatch(r"(\S+) (\[.*\])\n", capsys.readouterr().out).groups()
    assert name == names["drawn"].species.names[names["drawn"].labels[0]]
    assert len({mark.split()[-1] for mark in eval(marks)}) == 3, "three marks, left and right taken as one"


def test_the_blocks_of_the_explanation_modules_own_model_run_in_order(folder, tmp_path, monkeypatch, capsys):
    """With an untrained ResNet of two classes at 32 pixels."""
    monkeypatch.setattr(records, "folder", lambda name: tmp_path / name)
    torch.manual_seed(0)
    names: dict[str, object] = {"network": torchvision.models.resnet18(num_classes=2).eval()}
    first, enough, choices = (
        code.replace("[0, 3]", "[0, 1]").replace("category=3", "category=1").replace("== 3", "== 1")
        for code in blocks(OWN_MODULE)
    )
    exec(replaced(first, ('"path/to/folder"', repr(str(folder))), ("size=64", "size=32")), names)
    assert names["module"].contributions(names["some"]).shape == (2, len(names["some"]), 5)
    assert len(plt.get_fignums()) == 1
    exec(enough.replace("own, 3]", "own, 1]"), names)
    assert re.search(r"\n[\d.e-]+\ntensor\(", capsys.readouterr().out)
    exec(replaced(choices, ("epochs=60", "epochs=2")), names)
    assert names["module"].maps(names["some"], 1).shape[1] == 3


def test_the_blocks_of_xcnn_run_and_its_parameters_are_those_of_the_networks():
    networks, sign = blocks(XCNN)
    names: dict[str, object] = {}
    exec(networks, names)
    whole, generator = (
        sum(weight.numel() for weight in part.parameters()) for part in (names["alone"], names["wrapped"].generator)
    )
    said = re.search(r"it has ([\d,]+) parameters, and the generator adds ([\d,]+)\.", XCNN).groups()
    assert [int(one.replace(",", "")) for one in said] == [whole, generator]
    small = xcnn.XCNN(xcnn.Generator(3, 2), xcnn.small_cnn((2,), 3, size=8))
    names |= {"model": small, "training_images": torch.rand(3, 3, 8, 8)}
    exec(sign, names)
    assert names["sign"] in (1, -1)


def test_the_bounds_that_own_model_prints_are_those_of_its_pixels():
    names: dict[str, object] = {}
    exec(blocks(OWN_MODEL)[1].splitlines()[0], names)
    mean, std = map(float, re.search(r"Normalize\(mean=([\d.]+), std=([\d.]+)\)", OWN_MODEL).groups())
    assert names["ends"] == pytest.approx((-mean / std, (1 - mean) / std))


def test_the_blocks_of_heatmaps_run():
    """With fewer scenes than they say."""
    drawing, door = blocks(HEATMAPS)
    pairs = [('"train", size=64', '"train", size=64, limit=6'), ("draw(100,", "draw(4,")]
    names: dict[str, object] = {}
    exec(replaced(drawing, *pairs), names)
    train, pairs = names["train"], names["pairs"]
    assert train.images.shape == (6, 3, 64, 64)
    assert train.masks.shape == (6, 64, 64)
    assert train.boxes.shape == (6, 4)
    assert len(pairs.images) == 4
    torch.manual_seed(0)
    names["images"] = train.images.float() / 255
    names["model"] = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    exec(door, names)
    assert names["maps"].shape == (6, 1, 64, 64)
    assert names["maps"].abs().sum((1, 2, 3)).min() > 0


def test_heatmaps_says_how_many_scenes_there_are():
    from xai_lib import scenes

    count = re.search(r"# ([\d,]+) scenes with masks and boxes", HEATMAPS)[1].replace(",", "")
    assert scenes.SPLIT_COUNTS["train"] == int(count)


# torchvision's networks, as own-model.md lists them

TABLE = dict(re.findall(r"(?m)^\| (AlexNet.*?|EfficientNet.*?) \| (yes|no)\b.*\|$", OWN_MODEL))
NETWORKS = {  # name in the table: (network of torchvision, side of the images, how its error begins)
    "AlexNet": ("alexnet", 63, ""),
    "VGG": ("vgg11_bn", 32, ""),
    "SqueezeNet": ("squeezenet1_1", 32, ""),
    "GoogLeNet": ("googlenet", 32, ""),
    "ResNet": ("resnet18", 32, ""),
    "DenseNet": ("densenet121", 32, ""),
    "MobileNetV2": ("mobilenet_v2", 32, ""),
    "ShuffleNet": ("shufflenet_v2_x0_5", 32, ""),
    "EfficientNet": ("efficientnet_b0", 32, "mul of two computed values in layer 'features.1.0.block.1'"),
    "RegNet-Y": ("regnet_y_400mf", 32, "mul of two computed values in layer 'trunk_output.block1.block1-0.f.se'"),
    "ConvNeXt": ("convnext_tiny", 32, "layer_norm in layer 'features.0.1'"),
    "ViT": ("vit_b_16", 32, "layer_norm in layer 'encoder.layers.encoder_layer_0.ln_1'"),
}


def test_the_table_lists_these_networks():
    rows = {kind: re.findall(r"[A-Z][\w-]+", re.sub(r"\(.*?\)", "", row)) for row, kind in TABLE.items()}
    assert rows["yes"] == [name for name, (_, _, error) in NETWORKS.items() if not error]
    assert rows["no"] == [name for name, (_, _, error) in NETWORKS.items() if error]


def untrained(name):
    network, size, _ = NETWORKS[name]
    more = {"init_weights": False} if network == "googlenet" else {}
    if network == "vit_b_16":
        make = torchvision.models.VisionTransformer
        model = make(size, 16, 1, 2, 8, 16, num_classes=10)  # the same code, small
    else:
        model = getattr(torchvision.models, network)(weights=None, num_classes=10, **more)
    return model.eval(), torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["SqueezeNet", "GoogLeNet", "ResNet", "DenseNet", "MobileNetV2", "ShuffleNet"])
def test_networks_with_rules_for_every_layer(name):
    """AlexNet and VGG are left out: their dense layers take seconds to draw, and hold no other kind of call."""
    torch.manual_seed(0)
    model, images = untrained(name)
    found = attribution.explain("lrp", model, images, 1)
    assert found.shape == (1, 1, *images.shape[2:])
    assert found.isfinite().all()
    assert found.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name, (_, _, error) in NETWORKS.items() if error])
def test_networks_without_rules_for_every_layer(name):
    """With the message in the form that the page prints; the gradient and its like remain."""
    torch.manual_seed(0)
    model, images = untrained(name)
    with pytest.raises(ValueError, match="^model: no rule covers ") as info:
        attribution.explain("lrp", model, images, 1)
    error = f"model: no rule covers {NETWORKS[name][2]}"
    assert str(info.value) == error
    if name == "ViT":
        assert f"ValueError: {error}\n" in OWN_MODEL
    for method in ("guided_backprop", "grad_cam"):
        assert attribution.explain(method, model, images, 1).isfinite().all(), method


def test_the_block_of_the_concept_vae_runs():
    names: dict[str, object] = {}
    (code,) = blocks(CVAE)
    exec(f"{code}\nfound = loss(model, images[-64:] / 255, labels[-64:])", names)
    assert len(names["images"]) == len(names["train"]) + 1800
    assert names["found"] > 0


def test_the_blocks_of_own_concepts_run_in_order(folder, tmp_path, monkeypatch, capsys):
    """For one pass, with few samples and a narrow network."""
    monkeypatch.setattr(records, "folder", lambda name: tmp_path / name)
    first, look, ask, classifier = blocks(OWN_CONCEPTS)
    few = [("Sampling(300,", "Sampling(20,"), ("width=0.125", "width=0.03"), ("epochs=20", "epochs=1")]
    names: dict[str, object] = {}
    exec(replaced(first, ('"path/to/folder"', repr(str(folder))), *few), names)
    assert len(names["samples"].labels) == 40
    exec(look, names)
    assert names["maps"].shape[0] == 8
    assert len(plt.get_fignums()) == 1
    exec(replaced(ask, ("Sampling(100,", "Sampling(10,")), names)
    exec(replaced(classifier, few[-1]), names)
    scores = [eval(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(one) for one in scores] == [["map_c", "matched", "others"]] * 2
