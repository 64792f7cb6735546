import pytest
import torch
from torch import nn

from xai_lib import fast, losses, training, xcnn


def pair(in_channels=1, features=4):
    """The paper's generator and the fast one, with the same weights."""
    torch.manual_seed(0)
    plain, quick = xcnn.Generator(in_channels, features), fast.Generator(in_channels, features)
    quick.load_state_dict(plain.state_dict())
    return plain, quick


def gradients(generator, images):
    """Gradients of a weighted sum of the maps, by images and by each parameter."""
    images = images.clone().requires_grad_(True)
    weights = torch.randn(len(images), 1, *images.shape[2:], generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((generator(images) * weights).sum(), [images, *generator.parameters()])


@pytest.mark.parametrize("size", [(28, 28), (8, 9), (7, 5), (2, 2), (3, 2), (5, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_and_gradients_are_those_of_the_plain_generator(double, size, channels):
    plain, quick = pair(channels)
    images = torch.randn(3, channels, *size)
    assert (quick.decode[0].bias != 0).all()
    torch.testing.assert_close(quick(images), plain(images), atol=1e-14, rtol=1e-12)
    for found, expected in zip(gradients(quick, images), gradients(plain, images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_the_layout_of_the_images_changes_nothing(double):
    _, quick = pair(3)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(quick(training.channels_last(images)), quick(images))


def test_images_are_left_as_they_are():
    _, quick = pair()
    images = torch.randn(2, 1, 8, 8)
    before = images.clone()
    with torch.no_grad():
        quick(images)
    assert images.equal(before)


def test_half_precision_is_as_near_as_that_of_the_plain_generator():
    plain, quick = pair(3, 32)
    images = torch.randn(8, 3, 32, 32)
    exact = plain(images)
    with torch.autocast("cpu", torch.bfloat16):
        near, other = plain(images), quick(images)
    assert other.dtype == torch.float32
    assert 0 < (other - exact).abs().mean() < 1.5 * (near.float() - exact).abs().mean()


def test_after_one_size_another_follows():
    plain, quick = pair()
    for side in (6, 8, 6):
        images = torch.randn(1, 1, side, side)
        torch.testing.assert_close(quick(images), plain(images))


def test_gradients_follow_where_inference_came_first():
    _, quick = pair()
    with torch.inference_mode():
        quick(torch.randn(1, 1, 10, 14))
    assert all(one.isfinite().all() for one in gradients(quick, torch.randn(1, 1, 10, 14)))


def test_in_an_xcnn_it_trains_as_the_plain_one_does(double, light, tmp_path):
    images, labels = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    recipe = training.Recipe(epochs=2, batch_size=8, learning_rate=0.01)
    fits = [
        training.fit(
            lambda kind=kind: xcnn.XCNN(kind(1, 4), xcnn.small_cnn((4,), 3, size=8)),
            losses.cross_entropy,
            (images, labels),
            recipe,
            seed=0,
            name=kind.__module__,
            folder=tmp_path,
        )
        for kind in (xcnn.Generator, fast.Generator)
    ]
    assert [fit.path.name.split("-")[0] for fit in fits] == ["xai_lib.xcnn", "xai_lib.fast"]
    assert fits[0].path.stem.split("-")[1] != fits[1].path.stem.split("-")[1], "another code, another file"
    assert fits[0].losses == pytest.approx(fits[1].losses, rel=1e-9)
    torch.testing.assert_close(fits[0].model.heatmap(images), fits[1].model.heatmap(images), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("features", [1, 32])
def test_it_has_the_parameters_of_the_paper(features):
    plain, quick = pair(1, features)
    assert {k: v.shape for k, v in quick.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert isinstance(quick.decode[1], nn.Tanh)
