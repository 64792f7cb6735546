import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from xai_lib import losses, training, xcnn

ROOT = Path(training.__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_thread():
    """Toy models on two threads of a busy machine wait for each other longest; the number of threads is in the key."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


HASHES = functools.cache(training.provenance.code_hashes)


@pytest.fixture(autouse=True)
def code_is_hashed_once(monkeypatch):
    """The library does not change while it is tested; a key else takes longer than a toy training."""
    monkeypatch.setattr(training.provenance, "code_hashes", HASHES)


@pytest.fixture(autouse=True)
def always_checkpoint(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)


# what is trained


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(50, 1, 8, 8, generator=seeded())
LABELS = torch.randint(0, 3, (50,), generator=seeded(1))
RECIPE = training.Recipe(epochs=6, batch_size=16)


def small():
    return xcnn.XCNN(xcnn.Generator(1, 3), xcnn.small_cnn((4, 6), 3, size=8))


class Interrupted(BaseException):
    """Ends a training as a signal does: nothing in the library catches it."""


class Fuse:
    """What `watched` does at a chosen step; no part of the code that a model's key hangs on."""

    seen: list = []
    at: int | None = None
    action = None

    @classmethod
    def blow(cls, at, action):
        cls.seen, cls.at, cls.action = [], at, action


@pytest.fixture(autouse=True)
def fresh_fuse():
    Fuse.blow(None, None)
    yield
    Fuse.blow(None, None)


def watched(model, images, labels):
    """Cross-entropy that keeps the labels it saw, and at one step gives what a test wants."""
    Fuse.seen.append(labels.clone())
    value = losses.cross_entropy(model, images, labels)
    return Fuse.action(value) if len(Fuse.seen) == Fuse.at else value


def interrupt(value):
    raise Interrupted


def never(value):
    raise AssertionError("nothing must be trained here")


def train(folder, build=small, loss=watched, tensors=(IMAGES, LABELS), recipe=RECIPE, seed=0, name="toy", **rest):
    return training.fit(build, loss, tensors, recipe, seed=seed, name=name, folder=folder, **rest)


def train_until(folder, epoch, after=0, **rest):
    """Train from after one epoch, be interrupted in the second batch of another; an epoch has 4 batches."""
    Fuse.blow(4 * (epoch - 1 - after) + 2, interrupt)
    with pytest.raises(Interrupted):
        train(folder, **rest)
    Fuse.blow(None, None)


def assert_same(one, two):
    """Weights, buffers and losses are equal, bit by bit."""
    first, second = one.model.state_dict(), two.model.state_dict()
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert one.losses == two.losses


def names(folder):
    """Names of the files in a folder; damaged files may have been put aside."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".damaged")


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The training that all disturbed ones have to equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(tmp_path_factory.mktemp("undisturbed"))
    torch.set_num_threads(threads)


# the recipe and its steps, against hand-written forms


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": -1}, {"learning_rate": 0.0}, {"precision": "float16"}, {"epochs": -5}]
)
def test_the_recipe_is_checked(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must .* got {value!r}"):
        training.Recipe(**wrong)


def test_the_default_recipe_is_the_papers():
    """FACTS.md, XCNN on MNIST."""
    recipe = training.Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (50, 128, 1e-3)
    assert (recipe.betas, recipe.weight_decay, recipe.drop_at, recipe.drop_by) == ((0.9, 0.99), 1e-6, 0.5, 0.1)


class Weight(nn.Module):
    """One number, of which the gradient is known by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.weight * x


def slope(model, samples):
    return model.weight + 0 * samples.sum()


@pytest.mark.parametrize(
    ("epochs", "drop_at", "whole"), [(4, 0.5, 2), (5, 0.5, 3), (1, 0.5, 1), (4, 0.25, 1), (4, 1.0, 4), (4, 0.0, 0)]
)
def test_the_learning_rate_drops_at_the_stated_epoch(tmp_path, epochs, drop_at, whole):
    """With a constant gradient of 1, Adam moves the weight by the learning rate at each step."""
    recipe = training.Recipe(
        epochs=epochs, batch_size=5, learning_rate=0.5, weight_decay=0.0, drop_at=drop_at, drop_by=0.01
    )
    done = train(tmp_path, Weight, slope, [torch.zeros(10)], recipe)
    steps = 2 * whole * 0.5 + 2 * (epochs - whole) * 0.005
    assert done.model.weight.item() == pytest.approx(-steps, rel=1e-5)


def half_square(model, samples):
    Fuse.seen.append(samples.clone())
    return 0.5 * (model.weight - samples).square().mean()


def test_training_is_adam_written_out(tmp_path):
    """Adam with L2 weight decay (Kingma and Ba 2015, algorithm 1), in double precision, on the batches that it saw."""
    samples = torch.randn(23, generator=seeded()) * 3 + 1
    recipe = training.Recipe(
        epochs=6, batch_size=5, learning_rate=0.1, betas=(0.8, 0.95), weight_decay=0.3, drop_at=0.5, drop_by=0.2
    )
    done = train(tmp_path, Weight, half_square, [samples], recipe)
    assert [len(one) for one in Fuse.seen] == [5, 5, 5, 5, 3] * 6
    weight = first = second = 0.0
    means, total = [], 0.0
    for step, batch in enumerate(Fuse.seen):
        values = batch.double().tolist()
        total += sum(0.5 * (weight - one) ** 2 for one in values)
        gradient = sum(weight - one for one in values) / len(values) + 0.3 * weight
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        rate = 0.1 if step < 15 else 0.02
        root = math.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-8
        weight -= rate * first / (1 - 0.8 ** (step + 1)) / root
        if step % 5 == 4:
            means, total = [*means, total / 23], 0.0
    assert done.model.weight.item() == pytest.approx(weight, rel=1e-5)
    assert done.losses == pytest.approx(means, rel=1e-5), "mean over samples, not over batches"


def numbered(model, images, labels, rows):
    Fuse.seen.append(torch.stack([labels, rows]))
    return losses.cross_entropy(model, images, labels)


def test_each_epoch_takes_all_samples_once_in_a_new_order(tmp_path):
    numbers = torch.arange(50)
    train(tmp_path, tensors=(IMAGES, numbers % 3, numbers), loss=numbered)
    assert [one.shape[1] for one in Fuse.seen] == [16, 16, 16, 2] * 6
    for labels, rows in Fuse.seen:
        assert torch.equal(labels, rows % 3), "the same rows of each tensor"
    orders = [torch.cat(Fuse.seen[4 * k : 4 * k + 4], 1)[1].tolist() for k in range(6)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 6


def test_training_learns(tmp_path):
    """Bright against dark images: no error is left."""
    labels = torch.arange(40) % 2
    images = torch.rand(40, 1, 8, 8, generator=seeded()) + labels.view(-1, 1, 1, 1)
    recipe = training.Recipe(epochs=15, batch_size=8, learning_rate=0.01)
    done = train(tmp_path, tensors=(images, labels), recipe=recipe, loss=losses.cross_entropy)
    assert done.losses[-1] < 0.2 < done.losses[0]
    assert (training.predict(done.model, images).argmax(1) == labels).all()


def double_noise(images):
    return images + torch.rand_like(images)


def test_preparation_is_applied_to_the_images_of_each_batch(tmp_path):
    samples = torch.arange(10.0)
    recipe = training.Recipe(epochs=2, batch_size=4)
    train(tmp_path, Weight, half_square, [samples], recipe, prepare=lambda batch: batch + 100)
    assert sorted(torch.cat(Fuse.seen[:3]).tolist()) == (samples + 100).tolist()


def test_a_fit_is_in_eval_mode_and_leaves_data_and_random_numbers_alone(tmp_path):
    images, labels = IMAGES.clone(), LABELS.clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    done = train(tmp_path, tensors=(images, labels))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    assert not any(part.training for part in done.model.modules())
    assert done.seconds > 0
    assert not done.reused
    assert len(done.losses) == RECIPE.epochs
    assert names(tmp_path) == [done.path.name], "the checkpoints are cleared away"


@pytest.mark.parametrize("tensors", [(IMAGES, LABELS[:7]), (IMAGES[:0], LABELS[:0]), ()])
def test_tensors_must_have_one_length(tmp_path, tensors):
    with pytest.raises(ValueError, match=r"tensors must have one length above 0; got \["):
        train(tmp_path, tensors=tensors)


# the same again


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, undisturbed):
    torch.rand(7)  # random numbers drawn before do not count
    assert_same(train(tmp_path / "a"), undisturbed)
    other = train(tmp_path / "b", seed=1)
    assert other.losses != undisturbed.losses
    assert not torch.equal(other.model.generator.encode[0].weight, undisturbed.model.generator.encode[0].weight)
    assert other.path.name != undisturbed.path.name


def test_a_kept_model_is_reused_without_training(tmp_path):
    first = train(tmp_path)
    written = first.path.stat().st_mtime_ns
    Fuse.blow(1, never)
    again = train(tmp_path)
    assert again.reused
    assert not Fuse.seen
    assert_same(first, again)
    assert (again.path, again.seconds) == (first.path, pytest.approx(first.seconds, abs=1e-3))
    assert again.path.stat().st_mtime_ns == written
    assert not any(part.training for part in again.model.modules())


def test_a_kept_model_predicts_bit_by_bit_what_it_did_when_it_was_trained(tmp_path):
    """Also where the record of a run is compared with the one of a run that found its models there."""
    images = torch.rand(96, 1, 12, 12, generator=seeded())
    labels = torch.arange(96) % 3

    def build():
        return xcnn.XCNN(xcnn.Generator(1, 4), xcnn.small_cnn((4, 8), 3, size=12))

    first, again = (train(tmp_path, build, tensors=(images, labels)) for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    assert torch.equal(training.predict(first.model, images), training.predict(again.model, images))


def shifted(images):
    return images - 0.5


def one_pixel_changed():
    images = IMAGES.clone()
    images[7, 0, 3, 3] += 0.001
    return images, LABELS


def wider():
    return xcnn.XCNN(xcnn.Generator(1, 3), xcnn.small_cnn((4, 7), 3, size=8))


OTHERS = {
    "epochs": {"recipe": training.Recipe(epochs=7, batch_size=16)},
    "batch size": {"recipe": training.Recipe(epochs=6, batch_size=17)},
    "learning rate": {"recipe": training.Recipe(epochs=6, batch_size=16, learning_rate=0.002)},
    "betas": {"recipe": training.Recipe(epochs=6, batch_size=16, betas=(0.9, 0.999))},
    "weight decay": {"recipe": training.Recipe(epochs=6, batch_size=16, weight_decay=0.0)},
    "drop": {"recipe": training.Recipe(epochs=6, batch_size=16, drop_at=0.7)},
    "precision": {"recipe": training.Recipe(epochs=6, batch_size=16, precision="bfloat16")},
    "seed": {"seed": 1},
    "pixel": {"tensors": one_pixel_changed()},
    "labels": {"tensors": (IMAGES, LABELS.flip(0))},
    "model": {"build": wider},
    "loss": {"loss": losses.printed_equation_3},
    "setting of the loss": {"loss": functools.partial(watched)},
    "preparation": {"prepare": shifted},
}


def key_of(build=small, loss=watched, tensors=(IMAGES, LABELS), recipe=RECIPE, seed=0, prepare=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return training._Run(build(), loss, tensors, recipe, seed, "toy", Path("nowhere"), prepare).key


@pytest.mark.parametrize("what", OTHERS)
def test_the_key_changes_with_all_that_makes_a_model(what):
    assert key_of(**OTHERS[what]) != key_of()
    assert key_of(**OTHERS[what]) == key_of(**OTHERS[what])


def test_the_key_changes_with_threads_torch_and_the_code_of_training(monkeypatch):
    before = key_of()
    torch.set_num_threads(2)
    assert key_of() != before
    torch.set_num_threads(1)
    assert key_of() == before
    for target, name, value in [
        (torch, "__version__", "2.0.0"),
        (training.provenance, "code_hashes", lambda path: {"training.py": "changed"}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            assert key_of() != before


def test_models_of_other_settings_stand_side_by_side(tmp_path):
    one, two = train(tmp_path), train(tmp_path, recipe=OTHERS["epochs"]["recipe"])
    assert names(tmp_path) == sorted([one.path.name, two.path.name])
    assert one.path.name.startswith("toy-")
    assert one.path.suffix == ".safetensors"
    assert train(tmp_path).reused
    assert train(tmp_path, recipe=OTHERS["epochs"]["recipe"]).reused


def test_weights_that_are_shared_are_kept_too(tmp_path):
    """An autoencoder with tied weights, or a part that stands in two places."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(64, 64)
            self.two = self.one
            self.last = nn.Linear(64, 3)

        def forward(self, x):
            return self.last(self.two(self.one(x.flatten(1)).relu()))

    train_until(tmp_path / "a", 4, build=Tied)
    done = train(tmp_path / "a", build=Tied)
    assert_same(done, train(tmp_path / "b", build=Tied))
    assert_same(done, train(tmp_path / "b", build=Tied))


# losses that are not finite


@pytest.mark.parametrize("said", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(tmp_path, said):
    Fuse.blow(4 * 2 + 3, lambda loss: loss * 0 + float(said))
    with pytest.raises(FloatingPointError, match=f"toy: the loss is {said} in epoch 3 of 6, batch 3 of 4, seed 0"):
        train(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    Fuse.blow(None, None)


def test_training_goes_on_from_before_a_loss_that_was_not_finite(tmp_path, undisturbed, capsys):
    Fuse.blow(4 * 2 + 3, lambda loss: loss * float("nan"))
    with pytest.raises(FloatingPointError):
        train(tmp_path)
    Fuse.blow(None, None)
    assert_same(train(tmp_path), undisturbed)
    assert "goes on after epoch 2 of 6" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    """A finite loss can have a gradient that is not: the square root at 0. Here in the last step of all."""
    Fuse.blow(4 * 6, lambda loss: loss + (loss - loss).sqrt())
    with pytest.raises(FloatingPointError, match="epoch 6 of 6"):
        train(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


# interruptions


@pytest.mark.parametrize("epoch", [1, 2, 3, 6])
def test_an_interrupted_training_goes_on_and_ends_the_same(tmp_path, undisturbed, capsys, epoch):
    train_until(tmp_path, epoch)
    done = train(tmp_path)
    assert_same(done, undisturbed)
    assert not done.reused
    assert len(Fuse.seen) == 4 * (6 - (epoch - 1)), "what was done is not done again"
    assert ("goes on" in capsys.readouterr().err) == (epoch > 1)
    assert names(tmp_path) == [done.path.name]


def test_the_time_of_all_parts_is_counted(tmp_path):
    train_until(tmp_path, 6)
    [checkpoint] = tmp_path.glob("*.checkpoint")
    spent = training.read(checkpoint)[1]["seconds"]
    assert spent > 0
    assert train(tmp_path).seconds > spent


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_augmentation_dropout_and_precision_are_resumed_bit_by_bit(tmp_path, precision, threads):
    torch.set_num_threads(threads)
    recipe = training.Recipe(epochs=4, batch_size=16, precision=precision)

    def build():
        return nn.Sequential(small().generator, nn.Dropout(0.5), xcnn.small_cnn((4, 6), 3, size=8))

    settings = {"build": build, "recipe": recipe, "prepare": double_noise}
    whole = train(tmp_path / "whole", **settings)
    for epoch, after in ((2, 0), (2, 1), (4, 1)):
        train_until(tmp_path / "parts", epoch, after, **settings)
    assert_same(train(tmp_path / "parts", **settings), whole)
    assert {one.dtype for one in whole.model.parameters()} == {torch.float32}


def test_bfloat16_is_close_to_float32_but_not_it(tmp_path, undisturbed):
    half = train(tmp_path, recipe=OTHERS["precision"]["recipe"])
    assert half.losses != undisturbed.losses
    assert half.losses == pytest.approx(undisturbed.losses, rel=0.05)


def test_checkpoints_are_written_as_often_as_stated(tmp_path, monkeypatch):
    written = []
    real = training._write
    monkeypatch.setattr(training, "_write", lambda path, *a, **b: written.append(path) or real(path, *a, **b))
    done = train(tmp_path / "a")
    assert [path.suffix for path in written] == [".checkpoint"] * 5 + [".safetensors"]
    written.clear()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1000.0)
    assert_same(train(tmp_path / "b"), done)
    assert [path.suffix for path in written] == [".safetensors"]


class Power:
    """Fails between the operations on files of one write: at the half-written file, before or between the renames."""

    POINTS = ("half a file", "a file not yet named", "the old one renamed", "all renamed")

    def __init__(self, patch, point, at):
        self.left, self.renames = at, 0
        real_save, real_replace = training.save_file, Path.replace

        def save(tensors, path, **options):
            self.left -= 1
            real_save(tensors, path, **options)
            if self.left == 0 and point == "half a file":
                os.truncate(path, os.path.getsize(path) // 2)
                raise Interrupted
            if self.left == 0 and point == "a file not yet named":
                raise Interrupted

        def replace(path, target):
            moved = real_replace(path, target)
            if self.left == 0:
                self.renames += 1
                if (point, self.renames) in (("the old one renamed", 1), ("all renamed", 2)):
                    raise Interrupted
            return moved

        patch.setattr(training, "save_file", save)
        patch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("point", Power.POINTS)
def test_a_process_killed_while_it_writes_goes_on_from_what_is_whole(tmp_path, undisturbed, monkeypatch, capsys, point):
    with monkeypatch.context() as patch:
        Power(patch, point, at=3)
        with pytest.raises(Interrupted):
            train(tmp_path)
    done = train(tmp_path)
    assert_same(done, undisturbed)
    after = 3 if point == "all renamed" else 2
    assert f"goes on after epoch {after} of 6" in capsys.readouterr().err
    assert names(tmp_path) == [done.path.name], "nothing half written is left"


def test_a_kill_while_writing_after_a_damaged_checkpoint_does_not_lose_the_good_one(
    tmp_path, undisturbed, monkeypatch, capsys
):
    """The damaged file must not take the place of the good one before it."""
    train_until(tmp_path, 5)
    [checkpoint] = tmp_path.glob("*.checkpoint")
    checkpoint.write_bytes(b"")
    with monkeypatch.context() as patch:
        Power(patch, "the old one renamed", at=1)
        with pytest.raises(Interrupted):
            train(tmp_path)
    capsys.readouterr()
    assert_same(train(tmp_path), undisturbed)
    assert "goes on after epoch" in capsys.readouterr().err


# damaged files


def truncated(raw):
    return raw[: len(raw) // 2]


def emptied(raw):
    return b""


def bit_flipped(raw):
    return raw[:-100] + bytes([raw[-100] ^ 0b100]) + raw[-99:]


def header_flipped(raw):
    return raw[:40] + bytes([raw[40] ^ 0b100]) + raw[41:]


def text_instead(raw):
    return b"<html>not a checkpoint</html>"


DAMAGES = [truncated, emptied, bit_flipped, header_flipped, text_instead]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, undisturbed, capsys, damage):
    train_until(tmp_path, 5)
    assert [Path(name).suffix for name in names(tmp_path)] == [".checkpoint", ".checkpoint-before"]
    [checkpoint] = tmp_path.glob("*.checkpoint")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    capsys.readouterr()
    done = train(tmp_path)
    said = capsys.readouterr().err
    assert f"{checkpoint} is damaged" in said
    assert "goes on after epoch 3 of 6" in said
    assert_same(done, undisturbed)
    assert names(tmp_path) == [done.path.name]


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_both_checkpoints_damaged_it_starts_afresh(tmp_path, undisturbed, capsys, damage):
    train_until(tmp_path, 5)
    files = list(tmp_path.iterdir())
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    done = train(tmp_path)
    said = capsys.readouterr().err
    assert all(f"{file} is damaged" in said for file in files)
    assert "goes on" not in said
    assert_same(done, undisturbed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_noticed_and_trained_again(tmp_path, undisturbed, capsys, damage):
    first = train(tmp_path)
    first.path.write_bytes(damage(first.path.read_bytes()))
    again = train(tmp_path)
    assert not again.reused
    assert f"{first.path} is damaged" in capsys.readouterr().err
    assert_same(again, undisturbed)
    assert train(tmp_path).reused


def test_a_checkpoint_is_not_taken_for_a_model_nor_a_model_of_another_key(tmp_path, undisturbed):
    train_until(tmp_path, 5)
    [checkpoint] = tmp_path.glob("*.checkpoint")
    checkpoint.rename(checkpoint.with_suffix(".safetensors"))
    assert_same(train(tmp_path), undisturbed)
    other = train(tmp_path, seed=1)
    other.path.write_bytes(undisturbed.path.read_bytes())
    again = train(tmp_path, seed=1)
    assert not again.reused
    assert_same(again, other)


def test_every_damage_of_a_file_is_noticed(tmp_path):
    """Each bit of the header and of parts of the rest flipped, and the file cut at many places."""
    file = tmp_path / "file"
    assert training._write(file, {"a": torch.arange(40.0), "b": torch.tensor(3)}, {"key": "k", "losses": [1.5]})
    whole = file.read_bytes()
    tensors, about = training.read(file)
    assert about == {"key": "k", "losses": [1.5]}
    assert tensors["a"].tolist() == list(range(40))
    assert tensors["b"].item() == 3
    damaged = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0"]
    for place in range(len(whole)):
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
    for one in damaged:
        file.write_bytes(one)
        with pytest.raises(ValueError, match="file is damaged: "):
            training.read(file)


def test_the_checksum_says_what_was_expected_and_found(tmp_path):
    file = tmp_path / "file"
    training._write(file, {"a": torch.arange(40.0)}, {"key": "k"})
    file.write_bytes(bit_flipped(file.read_bytes()))
    with pytest.raises(ValueError, match="expected [0-9a-f]{64}, found [0-9a-f]{64}$"):
        training.read(file)
    with pytest.raises(FileNotFoundError):
        training.read(tmp_path / "nothing")


# disks that fail


def no_space(tensors, path, **options):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_with_no_space_training_finishes_and_what_was_kept_stays(tmp_path, undisturbed, monkeypatch, capsys):
    train_until(tmp_path, 5)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_file", no_space)
        done = train(tmp_path)
    said = capsys.readouterr().err
    assert f"{done.path} could not be written" in said
    assert os.strerror(errno.ENOSPC) in said
    assert_same(done, undisturbed)
    assert contents(tmp_path) == before, "old files as they were, no .part"
    again = train(tmp_path)
    assert "goes on after epoch 4 of 6" in capsys.readouterr().err
    assert_same(again, undisturbed)
    assert names(tmp_path) == [again.path.name]


def test_with_no_space_from_the_start_training_finishes(tmp_path, undisturbed, monkeypatch, capsys):
    monkeypatch.setattr(training, "save_file", no_space)
    assert_same(train(tmp_path), undisturbed)
    assert capsys.readouterr().err.count("could not be written") == 6
    assert names(tmp_path) == []


def test_a_real_limit_on_files_is_survived(tmp_path, undisturbed, capsys):
    """The system refuses to write more than 2 kB to a file, as a full disk does."""
    train_until(tmp_path, 5)
    before = contents(tmp_path)
    assert min(map(len, before.values())) > 2000
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        done = train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "could not be written" in capsys.readouterr().err
    assert_same(done, undisturbed)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_survived(tmp_path, undisturbed, capsys):
    (tmp_path / "file").touch()
    assert_same(train(tmp_path / "file" / "models"), undisturbed)
    assert "could not be written" in capsys.readouterr().err


# killed for good

NURSERY = """
import os, sys
root, folder = sys.argv[1:]
sys.path.insert(0, root)
import torch
from pathlib import Path
from xai_lib import losses, training, xcnn

torch.set_num_threads(1)
training.CHECKPOINT_SECONDS = 0.0
images = torch.rand(64, 1, 12, 12, generator=torch.Generator().manual_seed(0))
labels = torch.arange(64) % 3

def build():
    return xcnn.XCNN(xcnn.Generator(1, 4), xcnn.small_cnn((8, 16), 3, size=12))

torch.optim.Adam(torch.nn.Linear(1, 1).parameters())  # imports what the first optimiser imports
recipe = training.Recipe(epochs=60, batch_size=16)
tensors, settings = [images, labels], {"seed": 0, "name": "toy", "folder": Path(folder)}
while sys.stdin.readline():
    child = os.fork()
    if not child:
        print("starts", os.getpid(), flush=True)
        training.fit(build, losses.cross_entropy, tensors, recipe, **settings)
        os._exit(7)
    print("gone", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """An interpreter that has imported everything and starts one training process after the other."""

    def __init__(self, folder):
        self.folder, self.child = folder, None
        folder.mkdir()
        self.heard = open(folder.parent / f"{folder.name}.txt", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(ROOT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.heard,
            text=True,
        )

    def stderr(self):
        self.heard.seek(0)
        return self.heard.read()

    def life(self, seconds=None):
        """Start a process, kill it (kill -9) so long after it starts; return whether it ended by itself before."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said, *numbers = self.process.stdout.readline().split() or [self.stderr()]
        assert said == "starts", said
        self.child = int(numbers[0])
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
        said, code = self.process.stdout.readline().split()
        self.child = None
        assert code in ("7", "-9"), self.stderr()
        return code == "7"

    def close(self):
        if self.child:
            os.kill(self.child, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        self.heard.close()


def kept(folder):
    """Return hashes of what the one model in a folder holds, its losses and its key."""
    [path] = folder.glob("*.safetensors")
    tensors, about = training.read(path)
    values = {name: hashlib.sha256(one.numpy().tobytes()).hexdigest() for name, one in tensors.items()}
    return values, about["losses"], about["key"]


def test_killed_at_ten_random_moments_training_ends_the_same(tmp_path):
    whole, killed = Nursery(tmp_path / "whole"), Nursery(tmp_path / "killed")
    try:
        whole.life()
        expected = kept(whole.folder)
        begun = time.monotonic()
        assert whole.life(), "the kept model is found"
        least = time.monotonic() - begun
        for file in whole.folder.iterdir():
            file.unlink()
        begun = time.monotonic()
        whole.life()
        length = time.monotonic() - begun - least
        assert kept(whole.folder) == expected
        moments, kills = random.Random(0), 0
        while kills < 10:
            ended = killed.life(least + moments.uniform(0, length / 5))  # ten are as long as one training on average
            kills += not ended
            if ended:  # done before it was killed ten times: once more from the start
                assert kept(killed.folder) == expected
                for file in killed.folder.iterdir():
                    file.unlink()
        assert killed.life()
        assert kept(killed.folder) == expected
        said = killed.stderr()
    finally:
        whole.close()
        killed.close()
    assert "goes on after epoch" in said, said
    assert "damaged" not in said
    assert len(names(killed.folder)) == 1, "nothing half written, no checkpoint"


# predictions


def test_predictions_are_those_of_one_image_at_a_time(undisturbed):
    model = undisturbed.model
    expected = torch.cat([model(one[None]) for one in IMAGES]).detach()
    for size in (1, 7, 50, 1000):
        found = training.predict(model, IMAGES, batch_size=size)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        assert not found.requires_grad
    maps = training.predict(model, IMAGES, function=xcnn.XCNN.heatmap, batch_size=20)
    torch.testing.assert_close(maps, model.heatmap(IMAGES).detach(), atol=2e-6, rtol=1e-5)


def test_predictions_are_of_prepared_images_in_single_precision(undisturbed):
    images = (IMAGES * 255).to(torch.uint8)
    found = training.predict(undisturbed.model, images, lambda one: one.float() / 255, batch_size=30)
    torch.testing.assert_close(found, training.predict(undisturbed.model, images.float() / 255), atol=1e-6, rtol=1e-5)
    assert found.dtype == torch.float32
    half = training.predict(undisturbed.model, IMAGES, precision="bfloat16")
    whole = training.predict(undisturbed.model, IMAGES)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, atol=0.1, rtol=0.05)
    assert training.predict(undisturbed.model, IMAGES[:0]).shape == (0, 3)


def test_an_unknown_precision_is_an_error():
    """Else bf16 for bfloat16 passes in silence, and what is reported of it is float32."""
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16; got 'bf16'"):
        training.predict(nn.Identity(), IMAGES, precision="bf16")


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_prediction_leaves_the_model_as_it_is(batch_statistics):
    torch.manual_seed(0)
    model = small().train()
    model.discriminator[1].eval()  # a frozen part among those in training
    modes = [part.training for part in model.modules()]
    before = {name: one.clone() for name, one in model.state_dict().items()}
    training.predict(model, IMAGES, batch_size=20, batch_statistics=batch_statistics)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())

    def failing(net, batch):
        raise Interrupted

    with pytest.raises(Interrupted):
        training.predict(model, IMAGES, function=failing, batch_statistics=batch_statistics)
    assert [part.training for part in model.modules()] == modes


def test_batch_statistics_by_hand():
    """BatchNorm of one channel: (x - mean) / sqrt(variance + eps) of each batch, else of the running statistics."""
    model = nn.BatchNorm2d(1).eval()
    model.running_mean.fill_(2.0)
    model.running_var.fill_(9.0)
    values = [[0.0, 4.0], [1.0, 3.0], [10.0, 16.0]]
    images = torch.tensor(values).view(6, 1, 1, 1)
    found = training.predict(model, images, batch_size=2, batch_statistics=True).flatten().tolist()
    expected = []
    for batch in values:
        mean = sum(batch) / 2
        variance = sum((one - mean) ** 2 for one in batch) / 2
        expected += [(one - mean) / math.sqrt(variance + 1e-5) for one in batch]
    assert found == pytest.approx(expected, abs=1e-6)
    running = [(one - 2) / math.sqrt(9 + 1e-5) for batch in values for one in batch]
    assert training.predict(model, images).flatten().tolist() == pytest.approx(running, abs=1e-6)
    assert (model.running_mean.item(), model.running_var.item(), model.num_batches_tracked.item()) == (2, 9, 0)


def test_evaluating_puts_each_part_back():
    model = small().train()
    model.generator.eval()
    modes = [part.training for part in model.modules()]
    with training.evaluating(model) as same:
        assert same is model
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == modes


def test_channels_last_is_for_images_only():
    images = torch.rand(2, 3, 4, 5)
    assert training.channels_last(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(training.channels_last(images), images)
    for other in (images[0], images.flatten(1), images[0, 0, 0]):
        assert training.channels_last(other) is other


def test_a_kept_file_says_what_it_was_made_of(undisturbed):
    _, about = training.read(undisturbed.path)
    made = about["made_of"]
    assert made["recipe"]["epochs"] == 6
    assert (made["seed"], made["threads"], made["device"]) == (0, 1, training.device().type)
    assert made["torch"] == torch.__version__.split("+")[0]
    assert "training.py" in json.dumps(made["training"])
    assert about["losses"] == list(undisturbed.losses)
    assert about["key"] in undisturbed.path.name
