"""Parts of published models: the description that a family gives, and the network, counts and identity that follow.

Owns the steps from a spec to a network with its weights, the counts that need no weights, and the identity by
content. Knows no family: a ``Part`` has all that differs. ``edge_agent.modules`` explains how to write one.

Invariants: a network has all tensors of its part, of the right shapes and none besides; reading them costs what the
part weighs, whatever else the checkpoint holds; equal digests mean equal outputs for equal inputs.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import SCORES, Module, Pass, RequestSteps
from edge_agent.modules.weights import check_size, digests, hub, identity, part_source, precision, several
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.digests import DigestDiffers

Prefixes = Mapping[str, str]
Shapes = Mapping[str, tuple[int, ...]]
_BUILDING = threading.Lock()  # _uninitialised changes torch for the whole process while it lasts


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Forward(Generic[N]):
    """One way to run a part's network.

    Args:
        run: The network and its tensors by name to tensors by name. The device's forward pass and the count on the
            meta device call this same function.
        typical: The pass that is counted, in words.
        shapes: The tensors of that pass, which are floats but for ``ids`` and ``input_ids``. A mask, where the network
            demands one, is an additive one of four dimensions: transformers looks into others.
        batched: Whether requests may be joined along the first axis of all tensors, and the outputs split again. Not
            where ``run`` is a loop, or where the first axis is not the request's, as in heads over n texts.
        unrolled: If ``run`` is a loop: one pass that computes each token once, as the loop does with its cache, for
            the count. It takes the tensors of ``shapes``.
    """

    run: Callable[..., Mapping[str, Tensor]]
    typical: str
    shapes: Callable[[N], Shapes]
    unrolled: Callable[..., Mapping[str, Tensor]] | None = None
    batched: bool = False

    def sample(self, network: N) -> dict[str, Tensor]:
        """The tensors of the pass that is counted, on the device that is current."""
        return {
            name: torch.zeros(shape, dtype=torch.int64 if name in {"ids", "input_ids"} else torch.float32)
            for name, shape in self.shapes(network).items()
        }


@dataclass(frozen=True)
class Part(Generic[N]):
    """One functional part of a kind of model.

    Args:
        prefixes: For each ``model_type`` of config.json that holds this part: the layouts in which it is published,
            each a mapping from the prefix in the file to the prefix in the part's canonical names ("vision_model." to
            ""). The first layout of which a prefix occurs in the file counts; a tensor belongs to its longest prefix.
            A name without a dot at its end is one tensor ("logit_scale").
        build: Makes the network from config.json, on whatever device is current, with random or no weights.
        identity: Everything in the checkpoint's configuration that changes what the part gives, canonically:
            defaults filled in, nothing that doesn't matter. Equal weights and equal identity are one module.
        steps: Makes the steps of a request from the checkpoint's files: one for all uses, or one for each.
        forwards: How the network runs, by use; None is the ordinary one.
        settings: What ``run`` takes besides tensors, by name, from the checkpoint's files.
        renames: Regular expressions and replacements, in order, that turn canonical names into the network's own,
            where transformers renames what is published.
        tied: The network's name -> the name of the same tensor, where a checkpoint may hold only the latter.
        equal: Published name -> the published name of the same tensor. The first isn't read; where it is there, it
            must hold the same numbers.
        unread: Ends of published names that are no weights (old checkpoints store counters).
    """

    prefixes: Mapping[str, Sequence[Prefixes]]
    build: Callable[[Config], N]
    identity: Callable[[Checkpoint], dict[str, JsonValue]]
    steps: Callable[[Checkpoint], RequestSteps | Mapping[str | None, RequestSteps]]
    forwards: Mapping[str | None, Forward[N]]
    settings: Callable[[Checkpoint], Mapping[str, Any]] = lambda _: {}
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = (".position_ids",)


@dataclass(frozen=True)
class Count:
    """The exact cost of a part, from its configuration alone."""

    parameters: int
    memory_bytes: int  # of weights and stored buffers, in the dtype asked for
    flops: int  # two a multiply-add, of the sample's pass
    output_bytes: int  # of what crosses the wire: float32, whatever the weights' dtype


Forwards = Mapping[str | None, Forward[N]]
AnyPart = Part[Any]
Parts = Mapping[str, AnyPart]
"""A family's parts by name."""


def loader(parts: Parts) -> Callable[[ModuleSpec], Module]:
    """A family's ``load``: from a spec to the module, which raises ModuleRefused when its weights can't be had."""

    def load(spec: ModuleSpec) -> Module:
        name = spec.family.partition(".")[2]
        part, checkpoint = parts[name], open_part(spec, name)
        network = load_network(spec, part, checkpoint)
        for own, other in part.equal.items():
            _check_equal(checkpoint, own, other)
        settings, made = part.settings(checkpoint), part.steps(checkpoint)
        steps = made if isinstance(made, Mapping) else dict.fromkeys(part.forwards, made)
        passes = {
            use: Pass(steps[use], partial(each.run, **settings), batched=each.batched)
            for use, each in part.forwards.items()
        }
        return Module(network, passes, dtype=spec.dtype)

    return load


def ordinary(
    run: Callable[..., Mapping[str, Tensor]],
    typical: str,
    shapes: Callable[[N], Shapes],
    unrolled: Callable[..., Mapping[str, Tensor]] | None = None,
    *,
    batched: bool = False,
) -> Forwards[N]:
    """The forwards of a part that has one use."""
    return {None: Forward(run, typical, shapes, unrolled, batched)}


def one_picture(network: Any) -> Shapes:  # noqa: ANN401 - any vision tower
    """The shapes of a picture as the tower's configuration wants it."""
    config = network.config
    length = side(config.image_size)
    return {"pixels": (1, getattr(config, "num_channels", 3), length, length)}


def tower(
    gives: str,
    attribute: str,
    typical: str = "One picture.",
    shapes: Callable[[N], Shapes] = one_picture,
    **inputs: str,
) -> Forwards[N]:
    """The forwards of a tower that gives one array, under the name ``gives``: an ``attribute`` of transformers' output.

    ``inputs`` are transformers' arguments by our names of tensors, for a tower that takes other things than ``pixels``;
    tensors without one are left out.
    """
    arguments = inputs or {"pixels": "pixel_values"}

    def run(network: nn.Module, **tensors: Tensor) -> dict[str, Tensor]:
        found = network(**{arguments[name]: tensor for name, tensor in tensors.items() if name in arguments})
        return {gives: getattr(found, attribute)}

    return ordinary(run, typical, shapes, batched=True)


def side(size: object) -> int:
    """The side of a square picture, or patch, as a configuration gives it.

    Raises:
        ModuleRefused: it isn't square.
    """
    if not isinstance(size, int):
        raise ModuleRefused(f"config.json says a size of {size}, and this family takes squares: one number")
    return size


def open_part(spec: ModuleSpec, name: str) -> Checkpoint:
    """The checkpoint that a spec names, for the part ``name``.

    Raises:
        ModuleRefused: the source names another part or no repository, or the repository can't be had.
    """
    source = part_source(spec, name)
    if source.hub is None and source.url is None:
        raise ModuleRefused(
            f"{spec.family} takes its weights from a model repository: write source: {{hub: org/name}}, or a "
            "url and its digest"
        )
    return Checkpoint(hub.repository(source))


def load_network(spec: ModuleSpec, part: Part[N], checkpoint: Checkpoint) -> N:
    """The part's network with its weights in the spec's dtype, ready to run.

    Raises:
        ModuleRefused: the weights or the configuration aren't there, don't fit each other or the spec.
    """
    network = build(part, checkpoint)
    own = fit(spec.family, part, checkpoint, network)
    there, wanted = set(own.values()), network.state_dict().keys()
    tied = {name: other for name, other in part.tied.items() if name in wanted and name not in there}
    found = read(spec, part, checkpoint)
    loaded = {own[canonical]: tensor for canonical, tensor in found.items()}
    loaded |= {name: loaded[other] for name, other in tied.items()}
    network.load_state_dict(loaded, assign=True)
    del found, loaded  # int8 takes the place of float32 one by one
    network.requires_grad_(requires_grad=False)
    if spec.dtype == precision.INT8:
        precision.quantise(network, tied=part.tied)
    check_size(
        spec, precision.memory_bytes(tensor for name, tensor in network.state_dict().items() if name not in tied)
    )
    return network


def fit(family: str, part: AnyPart, checkpoint: Checkpoint, network: nn.Module) -> dict[str, str]:
    """Canonical name -> the network's own name of the part's tensors, if they are those that the network takes.

    Reads no weights, only which there are, and their shapes; ``network`` may be on the meta device.

    Raises:
        ModuleRefused: one is missing, one too many, or of another shape.
    """
    wanted = network.state_dict()
    names = tensor_names(part, checkpoint)
    own = {canonical: renamed(part, canonical) for canonical in names}
    if missing := sorted(wanted.keys() - set(own.values()) - part.tied.keys()):
        raise ModuleRefused(
            f"{checkpoint.repository} lacks {several(missing)} of {family}: its weights are incomplete, or of "
            "another model than config.json says; fetch it again, or correct config.json"
        )
    if extra := sorted(names[canonical] for canonical, name in own.items() if name not in wanted):
        raise ModuleRefused(
            f"{checkpoint.repository} has {several(extra)} besides what {family} takes: config.json doesn't match "
            "its weights; fetch it again, or correct config.json"
        )
    shapes = checkpoint.shapes(names.values())
    for canonical, name in own.items():
        if (shape := shapes[names[canonical]]) != wanted[name].shape:
            raise ModuleRefused(
                f"{names[canonical]} in {checkpoint.repository} is {shape}, and by its config.json "
                f"{tuple(wanted[name].shape)}: correct config.json, or fetch the weights again"
            )
    return own


def read(spec: ModuleSpec, part: AnyPart, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The part's tensors by canonical name, in the spec's dtype (for int8: those it is made of), checked by its digest.

    Raises:
        ModuleRefused: they can't be read, or are not those of the spec's digest.
    """
    names = tensor_names(part, checkpoint)
    held = checkpoint.read(names.values(), spec.dtype)
    found = {canonical: held[name] for canonical, name in names.items()}
    try:
        digests.check(spec, lambda: content_digest(spec.family, part, checkpoint, found, spec.dtype))
    except DigestDiffers as error:
        aside = checkpoint.repository.set_aside()
        told = f"; what was downloaded is now named {aside[0].parent}/*.refused" if aside else ""
        raise DigestDiffers(f"{error}{told}") from error
    return found


def content_digest(
    family: str, part: AnyPart, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], dtype: str = "float32"
) -> str:
    """The identity by content: the weights by canonical name, and what of the configuration changes the output.

    The family's name counts: equal weights of different arithmetic are different modules. int8 is made of float32
    tensors by a fixed rule, so these and the name of that dtype say all.

    Raises:
        ModuleRefused: the configuration can't be read.
    """
    config: dict[str, JsonValue] = {"family": family, "config": part.identity(checkpoint)}
    return identity.digest(tensors, config | ({"dtype": dtype} if dtype == precision.INT8 else {}))


def tensor_names(part: AnyPart, checkpoint: Checkpoint) -> dict[str, str]:
    """Canonical name -> published name of the part's tensors in a checkpoint, sorted.

    Raises:
        ModuleRefused: the checkpoint is of a model that doesn't have this part, or has none of its tensors.
    """
    layouts = part.prefixes.get(checkpoint.model_type)
    if layouts is None:
        known = ", ".join(sorted(part.prefixes))
        raise ModuleRefused(
            f"{checkpoint.repository} is a model of type {checkpoint.model_type or 'unknown'} by its config.json, and "
            f"this part comes from {known}: correct the spec's source or family"
        )
    for layout in layouts:
        ordered = sorted(layout, key=len, reverse=True)
        found: dict[str, str] = {}
        for name in checkpoint.files:
            prefix = next(
                (each for each in ordered if name == each or (each[-1:] in {".", ""} and name.startswith(each))), None
            )
            if prefix is not None and not name.endswith(part.unread):
                found[layout[prefix] + name.removeprefix(prefix)] = name
        if found:
            return dict(sorted(found.items()))
    tried = " or ".join(sorted({prefix or "any" for layout in layouts for prefix in layout}))
    raise ModuleRefused(
        f"{checkpoint.repository} has no tensors named {tried}: its weights are incomplete, or of another model than "
        f"config.json says; fetch it again{checkpoint.wrapped}"
    )


def build(part: Part[N], checkpoint: Checkpoint) -> N:
    """The part's network without weights: its parameters aren't set, and take no real memory until they are.

    Raises:
        ModuleRefused: the configuration makes no network.
    """
    with _BUILDING, _uninitialised():
        return _build(part, checkpoint.config, str(checkpoint.repository))


def count(part: AnyPart, config: Config, *, use: str | None = None, dtype: str = "float32") -> Count:
    """Parameters, bytes and operations of a part, on the meta device: exact, and without weights.

    Raises:
        ModuleRefused: the configuration makes no network.
    """
    forward = part.forwards[use]
    with torch.device("meta"):
        network = _build(part, config, "the catalogue's configuration")
        # Fused attention hides its products from the counter, and looks into masks; the plain one doesn't.
        for each in network.modules():
            if hasattr(each, "set_attn_implementation"):  # transformers' own
                cast("Any", each).set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            output = (forward.unrolled or forward.run)(network, **forward.sample(network))
    stored = {name: tensor for name, tensor in network.state_dict().items() if name not in part.tied}
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return Count(
        parameters=sum(tensor.numel() for name, tensor in stored.items() if name in parameters),
        memory_bytes=precision.network_bytes(network, dtype, tied=part.tied),
        flops=counter.get_total_flops(),
        output_bytes=sum(tensor.nbytes for name, tensor in output.items() if name != SCORES),
    )


def weight_bytes(part: AnyPart, config: Config, dtype: str) -> int:
    """Bytes of a part's weights and stored buffers in a dtype, exact, and without them.

    Raises:
        ModuleRefused: the configuration makes no network.
    """
    with torch.device("meta"):
        return precision.network_bytes(_build(part, config, "the catalogue's configuration"), dtype, tied=part.tied)


def _uninitialised() -> AbstractContextManager[None]:
    """Parameters that are made meanwhile aren't set; those of small heads are, in a process without transformers."""
    if "transformers" not in sys.modules:
        return nullcontext()
    from transformers.initialization import no_init_weights  # noqa: PLC0415 - heads need no transformers

    made: AbstractContextManager[None] = no_init_weights()
    return made


def _build(part: Part[N], config: Config, where: str) -> N:
    try:
        network = part.build(config)
    except Exception as error:  # a configuration may be wrong in any way, and transformers raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModuleRefused(
            f"config.json of {where} makes no such network ({reason}): correct it, or fetch it again"
        ) from error
    network.train(mode=False)
    return network


def _check_equal(checkpoint: Checkpoint, name: str, other: str) -> None:
    """Refuse a checkpoint that stores one matrix twice, with different numbers: only ``other`` is read."""
    if name not in checkpoint.files or other not in checkpoint.files:
        return
    if not checkpoint.equal(name, other):
        raise ModuleRefused(
            f"{checkpoint.repository} has {name} and {other}, which differ, and this model ties them: "
            f"remove {name}, or fetch it again"
        )


def renamed(part: AnyPart, name: str) -> str:
    """The network's own name of a tensor with this canonical name."""
    for pattern, replacement in part.renames:
        name = re.sub(pattern, replacement, name)
    return name
