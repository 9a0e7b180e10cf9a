"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), cut between its pooled features and its classifier.

The Lite variant has no squeeze-and-excitation, ReLU6 for Swish, and a stem and head of fixed width. The network is
written as functions over named weights, so that the two parts and the whole are the same arithmetic.

    part         weights              takes                  gives (this and nothing else crosses the wire)
    encoder      all but ``_fc.``     a picture's bytes      ``features`` float32 (1, 1280)
    classifier   ``_fc.``             ``features``           ``probs`` float32 (1, 1000)

The cut comes after the pooling: before it there are 49 times as many numbers to send.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from broker.protocol.preparation import PicturePreparation
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import Module, Pass
from edge_agent.modules.inputs import steps
from edge_agent.modules.inputs.answers import Likeliest
from edge_agent.modules.inputs.imagenet import CLASSES, class_names
from edge_agent.modules.weights import check_size, packaged_tensors, precision
from edge_agent.modules.weights.packaged_tensors import Shape

FEATURES = 1280
RESOLUTION = 224
RANKED = 5  # classes named in an answer
_STEM = 32
_BATCH_NORM_EPSILON = 1e-3
PREPARATION = PicturePreparation(
    centre=0.875,  # of the shorter side: the crop the network was evaluated with
    size=(RESOLUTION, RESOLUTION),
    scale=1.0,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
)
# The stages of EfficientNet-B0, table 1 of the paper: repeats, kernel, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Block:
    """One mobile inverted bottleneck (Sandler et al. 2018): expand, filter each channel, project."""

    name: str
    kernel: int
    stride: int
    channels_in: int
    channels: int  # after the expansion
    channels_out: int

    @property
    def expands(self) -> bool:
        return self.channels != self.channels_in


def _blocks() -> Iterator[_Block]:
    channels, index = _STEM, 0
    for repeats, kernel, stride, expansion, channels_out in _STAGES:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            yield _Block(f"_blocks.{index}.", kernel, first, channels, channels * expansion, channels_out)
            channels, index = channels_out, index + 1


BLOCKS = tuple(_blocks())


def encoder_shapes() -> dict[str, Shape]:
    """Every tensor of the encoder, by the names of the published weights."""
    shapes: dict[str, Shape] = {"_conv_stem.weight": (_STEM, 3, 3, 3)} | _norm_shapes("_bn0", _STEM)
    for block in BLOCKS:
        if block.expands:
            shapes[f"{block.name}_expand_conv.weight"] = (block.channels, block.channels_in, 1, 1)
            shapes |= _norm_shapes(f"{block.name}_bn0", block.channels)
        shapes[f"{block.name}_depthwise_conv.weight"] = (block.channels, 1, block.kernel, block.kernel)
        shapes |= _norm_shapes(f"{block.name}_bn1", block.channels)
        shapes[f"{block.name}_project_conv.weight"] = (block.channels_out, block.channels, 1, 1)
        shapes |= _norm_shapes(f"{block.name}_bn2", block.channels_out)
    shapes["_conv_head.weight"] = (FEATURES, BLOCKS[-1].channels_out, 1, 1)
    return shapes | _norm_shapes("_bn1", FEATURES)


def classifier_shapes() -> dict[str, Shape]:
    """Every tensor of the classifier."""
    return {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}


def encode(w: Weights, image: Tensor) -> Tensor:
    """Features (n, 1280) of images (n, 3, 224, 224)."""
    x = functional.relu6(_conv_norm(w, "_conv_stem", "_bn0", image, stride=2))  # (n, 32, 112, 112)
    for block in BLOCKS:
        x = _bottleneck(w, block, x)  # at last (n, 320, 7, 7)
    x = functional.relu6(_conv_norm(w, "_conv_head", "_bn1", x))  # (n, 1280, 7, 7)
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)  # (n, 1280)


def classify(w: Weights, features: Tensor) -> Tensor:
    """Probabilities (n, 1000) from features (n, 1280)."""
    return functional.linear(features, w["_fc.weight"], w["_fc.bias"]).softmax(1)


def load(spec: ModuleSpec) -> Module:
    """Load one of the two parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    if spec.family == "efficientnet.classifier":
        likeliest = Likeliest(labels=class_names(), most=RANKED, scores="probs")
        label_steps = steps.Steps((steps.Arrays(shapes={"features": (1, FEATURES)}),), likeliest)
        chosen = Pass(label_steps, lambda w, features: {"probs": classify(w, features)}, batched=True)
        encoders = ("_conv_stem.", "_conv_head.", "_bn0.", "_bn1.", "_blocks.")
        found = packaged_tensors.read(spec, "classifier", classifier_shapes(), others=encoders)
    else:
        picture = steps.Picture(preparation=PREPARATION)
        chosen = Pass(steps.Steps((picture,)), lambda w, pixels: {"features": encode(w, pixels)}, batched=True)
        found = packaged_tensors.read(spec, "encoder", encoder_shapes(), others=("_fc.", ".num_batches_tracked"))
    return Module(_held(spec, found), {None: chosen}, dtype=spec.dtype)


def memory_bytes(spec: ModuleSpec) -> int:
    """Bytes of a part's weights in the spec's dtype."""
    shapes = classifier_shapes() if spec.family == "efficientnet.classifier" else encoder_shapes()
    return precision.shapes_bytes(shapes, spec.dtype)


def _held(spec: ModuleSpec, found: Weights) -> Weights:
    if spec.dtype != precision.INT8:
        return found
    made = precision.Int8Matrices(found)
    check_size(spec, made.memory_bytes)
    return made


def _norm_shapes(name: str, channels: int) -> dict[str, Shape]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def _bottleneck(w: Weights, block: _Block, x: Tensor) -> Tensor:
    skipped = x
    if block.expands:
        x = functional.relu6(_conv_norm(w, f"{block.name}_expand_conv", f"{block.name}_bn0", x))
    x = _conv_norm(
        w, f"{block.name}_depthwise_conv", f"{block.name}_bn1", x, stride=block.stride, groups=block.channels
    )
    x = _conv_norm(w, f"{block.name}_project_conv", f"{block.name}_bn2", functional.relu6(x))
    return x + skipped if block.stride == 1 and block.channels_in == block.channels_out else x


def _conv_norm(w: Weights, conv: str, norm: str, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    kernel = w[f"{conv}.weight"]
    size, length = kernel.shape[-1], x.shape[-1]
    # TensorFlow's "same": the output has ceil(length / stride) rows, and an odd pad puts the extra row last.
    pad = max(0, (-(-length // stride) - 1) * stride + size - length)
    if pad:
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
    x = functional.conv2d(x, kernel, stride=stride, groups=groups)
    mean, variance = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
    scale, shift = w[f"{norm}.weight"], w[f"{norm}.bias"]
    return functional.batch_norm(x, mean, variance, scale, shift, eps=_BATCH_NORM_EPSILON)
