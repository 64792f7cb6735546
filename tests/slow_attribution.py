"""Every attribution method of xai_lib.attribution once more, slowly: dense matrices in numpy, float64, no autograd.

A network is a list of nodes, in the order in which they run, on flat vectors. Each linear one (convolution, linear
layer, average pooling, bilinear upsampling, BatchNorm on its own, residual sum) is an explicit matrix and bias,
z = M x + b. A rule takes the relevance R at a node's output and returns that at its input. One image, one target.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import nn

PADDING = -1  # in `taps`: the place lies outside the image and counts as zero


@dataclass(frozen=True, eq=False)
class Node:
    kind: str  # convolution, linear, average, upsampling, affine, sum, max, relu, tanh or fork
    shape: tuple  # of the output: (C, H, W) or (K,)
    matrix: np.ndarray | None = None  # (outputs, inputs) of the linear kinds, convolution to sum
    bias: np.ndarray | float = 0.0  # (outputs,)
    taps: np.ndarray | None = None  # (J, P, D): input index under tap d of filter j at position p
    weight: np.ndarray | None = None  # (J, D): what `matrix` repeats, for convolution and linear
    offset: np.ndarray | None = None  # (J,): what `bias` repeats
    branches: tuple = ()  # of a fork: lists of nodes that get the same input; z is their outputs one after another


class Step(NamedTuple):  # what one node did to one image
    node: Node
    x: np.ndarray
    z: np.ndarray
    inner: tuple  # the steps of each branch


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def taps_of(shape, filters, groups, kernel, stride, padding=0, dilation=1):
    """Return the taps (J, P, D) of a sliding window over an image of shape (C, H, W), and the output's shape."""
    channels, *sizes = shape
    kernel, stride, padding, dilation = pair(kernel), pair(stride), pair(padding), pair(dilation)
    height, width = (
        (size + 2 * pad - step * (k - 1) - 1) // move + 1
        for size, pad, step, k, move in zip(sizes, padding, dilation, kernel, stride, strict=True)
    )
    per_group, taps = channels // groups, []
    for j, p, q, c, i, k in product(*map(range, (filters, height, width, per_group, *kernel))):
        y = p * stride[0] - padding[0] + i * dilation[0]
        x = q * stride[1] - padding[1] + k * dilation[1]
        channel = j // (filters // groups) * per_group + c
        inside = 0 <= y < sizes[0] and 0 <= x < sizes[1]
        taps.append((channel * sizes[0] + y) * sizes[1] + x if inside else PADDING)
    return np.array(taps).reshape(filters, height * width, -1), (filters, height, width)


def dense(weight, taps, inputs):
    """Return the matrix (J P, inputs) of filters (J, D) that slide along their taps."""
    matrix = np.zeros((*taps.shape[:2], inputs))
    for j, p, d in zip(*np.nonzero(taps != PADDING), strict=True):
        matrix[j, p, taps[j, p, d]] += weight[j, d]
    return matrix.reshape(-1, inputs)


def weighted(kind, shape, taps, weight, offset, inputs):
    return Node(kind, shape, dense(weight, taps, inputs), np.repeat(offset, taps.shape[1]), taps, weight, offset)


def line(size, wanted, corners):
    """Return the matrix (wanted, size) of linear interpolation along one axis."""
    matrix = np.zeros((wanted, size))
    for target in range(wanted):
        even = target * (size - 1) / max(wanted - 1, 1)
        place = even if corners else max((target + 0.5) * size / wanted - 0.5, 0.0)
        low = min(math.floor(place), size - 1)
        matrix[target, low] += 1 - (place - low)
        matrix[target, min(low + 1, size - 1)] += place - low
    return matrix


def upsampling(shape, height, width, corners):
    plane = np.kron(line(shape[1], height, corners), line(shape[2], width, corners))
    return Node("upsampling", (shape[0], height, width), np.kron(np.eye(shape[0]), plane))


def array(tensor):
    return tensor.detach().double().numpy().copy()


def scale_and_shift(norm):
    """Return g / sqrt(var + eps) and beta - mean g / sqrt(var + eps) of a BatchNorm."""
    scale = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    return scale, array(norm.bias) - array(norm.running_mean) * scale


def node_of(module, shape):
    """Return the node of one module for inputs of `shape`."""
    inputs = math.prod(shape)
    if isinstance(module, nn.ReLU | nn.Tanh):
        return Node(type(module).__name__.lower(), shape)
    if isinstance(module, nn.Upsample):
        return upsampling(shape, *pair(module.size), bool(module.align_corners))
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        scale, shift = (np.repeat(one, inputs // shape[0]) for one in scale_and_shift(module))
        return Node("affine", shape, np.diag(scale), shift)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        one = isinstance(module, nn.AdaptiveAvgPool2d)  # to one position
        window = (shape[1:], 1) if one else (module.kernel_size, module.stride, module.padding)
        taps, out = taps_of(shape, shape[0], shape[0], *window)
        if isinstance(module, nn.MaxPool2d):
            return Node("max", out, taps=taps)
        return Node("average", out, dense(np.full((shape[0], taps.shape[2]), 1 / taps.shape[2]), taps, inputs))
    weight = array(module.weight).reshape(len(module.weight), -1)
    offset = np.zeros(len(weight)) if module.bias is None else array(module.bias)
    if isinstance(module, nn.Linear):
        taps, out, kind = np.tile(np.arange(inputs), (len(weight), 1, 1)), (len(weight),), "linear"
    else:
        window = module.kernel_size, module.stride, module.padding, module.dilation
        taps, out, kind = *taps_of(shape, len(weight), module.groups, *window), "convolution"
    return weighted(kind, out, taps, weight, offset, inputs)


def fork(kind, branches, shape):
    """Return the nodes of branches over the same input that end in a "sum" or a "cat"."""
    outs = [branch[-1].shape if branch else shape for branch in branches]
    both = Node("fork", (sum(out[0] for out in outs), *outs[0][1:]), branches=branches)
    return [both] if kind == "cat" else [both, Node("sum", outs[0], np.hstack([np.eye(math.prod(o)) for o in outs]))]


def from_torch(modules, shape):
    """Return nodes; `modules` may hold Sequentials, and tuples ("sum" or "cat", modules, modules, ...) of branches."""
    nodes, before = [], None
    for module in modules:
        if isinstance(module, nn.Flatten):
            shape = (math.prod(shape),)
        elif isinstance(module, nn.Sequential):
            nodes += from_torch(module, shape)
        elif isinstance(module, tuple):
            nodes += fork(module[0], tuple(from_torch(branch, shape) for branch in module[1:]), shape)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and isinstance(before, nn.Conv2d | nn.Linear):
            old, (scale, shift) = nodes.pop(), scale_and_shift(module)
            weight, offset = old.weight * scale[:, None], old.offset * scale + shift
            nodes.append(weighted(old.kind, old.shape, old.taps, weight, offset, old.matrix.shape[1]))
        else:
            nodes.append(node_of(module, shape))
        before, shape = module, shape if isinstance(module, nn.Flatten) else nodes[-1].shape
    return nodes


def run(nodes, x):
    """Return the steps of one flat input."""
    steps = []
    for node in nodes:
        inner = tuple(run(branch, x) for branch in node.branches)
        if node.kind == "fork":
            z = np.concatenate([branch[-1].z if branch else x for branch in inner])
        elif node.kind == "max":
            z = x[winners(node, x)]
        elif node.kind in ("relu", "tanh"):
            z = positive(x) if node.kind == "relu" else np.tanh(x)
        else:
            z = node.matrix @ x + node.bias
        steps.append(Step(node, x, z, inner))
        x = z
    return steps


def winners(node, x):
    """Return the input index of the largest value under each window."""
    values = np.where(node.taps == PADDING, -np.inf, x[node.taps])
    return np.take_along_axis(node.taps, values.argmax(2)[..., None], 2).ravel()


def back(steps, relevance, rule):
    """Return the relevance at the input of the first step: a fork adds up what its branches hand back."""
    for step in reversed(steps):
        if step.node.kind == "fork":
            sizes = [len(branch[-1].z) if branch else len(step.x) for branch in step.inner]
            shares = np.split(relevance, np.cumsum(sizes)[:-1])
            relevance = sum(back(branch, share, rule) for branch, share in zip(step.inner, shares, strict=True))
        elif step.node.kind == "max":  # in every method the winner takes all
            given, relevance = relevance, np.zeros_like(step.x)
            np.add.at(relevance, winners(step.node, step.x), given)
        else:
            relevance = rule(step, relevance)
    return relevance


def positive(x):
    return np.maximum(x, 0)


def gradient(step, relevance, gate="gradient"):
    """R_in = dz/dx^T R; `gate`: what a ReLU does."""
    if step.node.kind == "relu":
        on, up = step.x > 0, relevance > 0
        return relevance * {"gradient": on, "guided_backprop": on & up, "deconvolution": up}[gate]
    return relevance * (1 - step.z**2) if step.node.kind == "tanh" else step.node.matrix.T @ relevance


def layerwise(step, relevance, epsilon, box_of=None, low=None, high=None):
    """R_i = sum_j c_ij R_j / (sum_i' c_i'j + d_j): LRP; with `box_of`, the first layer, deep Taylor."""
    w, b, taylor = step.node.matrix, step.node.bias, box_of is not None and step.node.weight is not None
    if step.node.kind in ("relu", "tanh", "affine"):
        return relevance
    if step.node is box_of:  # c_ij = x_i w_ij - l_i w_ij+ - h_i w_ij-
        c, d = w * step.x - positive(w) * low + positive(-w) * high, 0
    elif taylor or step.node.kind == "convolution":  # c_ij = (x_i w_ij)+
        c, d = positive(w * step.x), 0 if taylor else positive(b)
    else:  # c_ij = x_i w_ij
        c, d = w * step.x, b
    total = c.sum(1) + d
    return c.T @ (relevance / (total + epsilon * np.where(total < 0, -1, 1)))


def excitation(step, relevance, top):
    """P_i = sum_j c_ij P_j / sum_i' c_i'j with c_ij = a_i w_ij+; at the `top` the same with -w is taken away."""
    if step.node.kind in ("relu", "tanh", "affine"):
        return relevance
    assert (step.x >= 0).all() or step.node.kind == "sum", f"negative inputs of {step.node}"

    def shares(matrix):
        amounts = positive(matrix) * positive(step.x)
        total = amounts.sum(1)
        return amounts.T @ np.divide(relevance, total, out=np.zeros_like(relevance), where=total != 0)

    return shares(step.node.matrix) - (shares(-step.node.matrix) if step.node is top else 0)


def with_patterns(step, relevance, patterns, times_weight):
    """The gradient with a (PatternNet), or w a (PatternAttribution; tanh and BatchNorm pass on) in place of w."""
    node = step.node
    if node.weight is not None:
        weight = patterns[node] * node.weight if times_weight else patterns[node]
        return dense(weight, node.taps, len(step.x)).T @ relevance
    return relevance if times_weight and node.kind in ("tanh", "affine") else gradient(step, relevance)


def fit_patterns(nodes, images, estimator):
    """Return {node: patterns (J, D)} of every convolution and linear layer, from all samples at once."""
    found = {}

    def visit(runs):
        for i, step in enumerate(runs[0]):
            for k in range(len(step.inner)):
                visit([one[i].inner[k] for one in runs])
            if step.node.weight is not None:
                split = estimator == "two-component" and i + 1 < len(runs[0]) and runs[0][i + 1].node.kind == "relu"
                found[step.node] = patterns_of(step.node, [one[i].x for one in runs], split)

    visit([run(nodes, np.ravel(image)) for image in images])
    return found


def patterns_of(node, inputs, split):
    """a = (E+[x y] - E+[x] E[y]) / (w^T of it), or without `split` cov(x, y) / var(y); 0 where that is 0 / 0."""
    out = np.zeros_like(node.weight)
    for j, w in enumerate(node.weight):
        X = np.array([np.where(taps == PADDING, 0.0, x[taps]) for x in inputs for taps in node.taps[j]])  # patches
        y = X @ w
        on = y + node.offset[j] > 0 if split else np.ones(len(y), dtype=bool)
        if on.any():
            direction = (X[on] * y[on, None]).mean(0) - X[on].mean(0) * y.mean()
            length = w @ direction if split else y.var()
            out[j] = direction / length if abs(length) >= 1e-12 else 0
    return out


def heavy_nodes(nodes):
    """Return the convolutions and linear layers in the order in which they run."""
    return [one for n in nodes for one in [*heavy_nodes(sum(n.branches, [])), n] if one.weight is not None]


def explain(method, nodes, image, target, *, layer=-1, bounds=(0.0, 1.0), patterns=None, epsilon=1e-6):
    """Return the map (H, W) of one image (C, H, W); `layer`: the node where excitation and Grad-CAM read."""
    steps = run(nodes, np.ravel(image))
    unit = np.eye(len(steps[-1].z))[target]
    logit, heavy = unit * steps[-1].z, heavy_nodes(nodes)
    low, high = (np.broadcast_to(bound, image.shape).ravel() for bound in bounds)
    shape = nodes[layer].shape if layer >= 0 else image.shape
    if method == "grad_cam":
        slope = back(steps[layer + 1 :], unit, gradient).reshape(shape).mean((1, 2))
        plane = positive(np.tensordot(slope, steps[layer].z.reshape(shape), 1))
    else:
        rules = {
            "lrp": (logit, lambda step, r: layerwise(step, r, epsilon)),
            "deep_taylor": (logit, lambda step, r: layerwise(step, r, epsilon, heavy[0], low, high)),
            "patternnet": (unit, lambda step, r: with_patterns(step, r, patterns, False)),
            "pattern_attribution": (logit, lambda step, r: with_patterns(step, r, patterns, True)),
            "excitation_bp": (unit, lambda step, r: excitation(step, r, None)),
            "contrastive_excitation_bp": (unit, lambda step, r: excitation(step, r, heavy[-1])),
        }
        start, rule = rules.get(method, (unit, lambda step, r: gradient(step, r, method)))
        plane = back(steps[layer + 1 :], start, rule).reshape(shape).sum(0)
    grow = upsampling((1, *plane.shape), *image.shape[1:], False).matrix  # the identity at the pixels
    return (grow @ plane.ravel()).reshape(image.shape[1:])
