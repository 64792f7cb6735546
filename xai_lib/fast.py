r"""XCNN's generator, computed sooner: the same parameters and the same maps up to rounding.

After its encoder the paper's generator enlarges all of its feature maps and convolves them into one (`xcnn.Generator`).
Both steps are linear, and enlarging treats each map alone. So the sum over feature maps can come first, while they are
small: nine maps, one for each weight of the 3x3 kernel, are enlarged in the place of 32 or 128. With :math:`z_f` a
feature map after pooling, :math:`A` and :math:`B` the matrices that enlarge height and width, and :math:`S_r` that
which shifts by :math:`r` pixels and fills up with zeros, the map before tanh is

.. math:: \sum_{r, s} S_r A \Bigl( \sum_f w_{f r s} z_f \Bigr) (S_s B)^\top + b .
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from xai_lib import xcnn


class Generator(xcnn.Generator):
    """`xcnn.Generator` with upsampling and last convolution exchanged; weights of the one can be loaded by the other.

    It saves a quarter to a half of the generator's time on a CPU. Rules that go back layer by layer (`layerwise`) want
    the paper's own layers, which only `xcnn.Generator` calls; gradients are those of either.

    Parameters
    ----------
    in_channels, features : int
        As in `xcnn.Generator`.
    """

    def __init__(self, in_channels: int, features: int):
        super().__init__(in_channels, features)
        self.encode[1].inplace = True  # nothing else needs what the convolution gave

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return heatmaps in [-1, 1]."""
        small = self.encode(x)
        n, features, h, w = small.shape
        kernel, bias = self.decode[0].weight, self.decode[0].bias
        mixed = small.permute(0, 2, 3, 1).reshape(-1, features) @ kernel.reshape(features, 9)
        with torch.autocast(x.device.type, enabled=False):  # few numbers: here precision costs nothing
            mixed = mixed.to(kernel.dtype).view(n, h, w, 3, 3).permute(0, 1, 3, 2, 4).reshape(n, h * 3, w * 3)
            rows, columns = (_shifted(*sizes, kernel.dtype, x.device) for sizes in ((h, x.shape[2]), (w, x.shape[3])))
            return self.decode[1]((rows.T @ (mixed @ columns) + bias)[:, None])


@functools.cache
def _shifted(small: int, size: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "small_3 size"]:
    """Return, for each place before and shift by -1, 0 and 1, what it gives to each place after enlarging."""
    with torch.inference_mode(False):  # kept for all later calls, also those with gradients
        one_each = torch.eye(small, dtype=torch.float64)[None]
        enlarged = functional.interpolate(one_each, size=size, mode="linear", align_corners=True)[0]
        return functional.pad(enlarged, (1, 1)).unfold(1, size, 1).reshape(small * 3, size).to(device, dtype)
