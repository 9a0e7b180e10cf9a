"""The agent's file, in which an operator describes a device.

Owns the fields and their defaults. ``broker.files.load_spec`` reads it and names file, line and field of an error.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from broker.protocol.messages import MAX_BATCH, Interval
from broker.protocol.sizes import parse_bytes
from broker.protocol.specs import Availability, Bytes, DeviceId, NotNegative, Rate, TaskName
from broker.transport.connection import Connection, ConnectionFile, ConnectionKeys, Place, read_connection
from edge_agent.modules.weights.allowed import AllowedWeights
from edge_agent.modules.weights.download_settings import Downloads
from edge_agent.runtime.accelerator import Wanted


def _cache_bytes(value: object) -> object:
    """A size, or ``off``, which YAML reads as false."""
    if value is True:
        raise ValueError("must be a size or off: leave it out for the default")
    return 0 if value is False else parse_bytes(value)


CacheBytes = Annotated[int | bool, BeforeValidator(_cache_bytes), Field(ge=0, le=2**60)]


class AgentConfig(ConnectionKeys):
    """One device, and its connection."""

    id: DeviceId
    models: str | None = None  # the models directory: DIR/org/name/{config.json, *.safetensors}; before the hub
    weights: AllowedWeights = Field(default_factory=AllowedWeights)  # the sources that may be loaded
    downloads: Downloads = Field(default_factory=Downloads)  # of weights by URL
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1)] | None = None  # that it may serve; None: all
    availability: Availability = "always"  # sometimes: its end is not a failure
    memory: Bytes | None = None  # for modules; None: the free memory, less the system's reserve and the headroom
    cache: CacheBytes | None = None  # of that memory, for kept outputs; 0: each is computed; None: 2 %, at most 16 MiB
    engine: Literal["auto", "torch", "onnx"] = "auto"  # that runs the modules; auto: torch where it is installed
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of the free memory kept for activations
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # of one forward pass
    accelerator: Wanted = "auto"  # auto: cuda where it works, else the CPU
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] | None = None  # most requests in one pass; None: 1 on a CPU
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0  # below 1 emulates a slower device by waiting
    bandwidth_bits_per_s: Rate | None = None  # of the link to the broker; None: measured
    latency_s: NotNegative | None = None  # of the link, one way to the broker; None: measured
    state_dir: str | None = None  # of measurements and digests; None: the cache directory
    heartbeat_interval_s: Interval = 1.0

    @model_validator(mode="after")
    def _cuda_runs_torch(self) -> Self:
        if (self.engine, self.accelerator) == ("onnx", "cuda"):
            sentence = "must not be cuda beside engine: onnx, because only torch runs on cuda"
            raise PydanticCustomError("no_cuda", "{sentence}", {"sentence": sentence, "place": ("accelerator",)})
        return self


def connections(config: AgentConfig, *places: Place, file: str = "") -> tuple[Connection, Connection]:
    """The connections of an agent for control messages and for data, which may have an account of its own.

    Args:
        config: the agent's file.
        places: what counts more than this file.
        file: its path, for errors and relative paths.

    Raises:
        BadFile: a value is wrong.
    """
    for place in places:
        if place.keys.client_id:
            raise place.bad("client_id", "is not for an agent: its client ids follow from its id", "remove it")
    own = ConnectionFile.model_validate(config.model_dump(include=set(ConnectionKeys.model_fields)))
    every = (*places, Place(own, file))
    control = read_connection(*every)
    return control, read_connection(*every, data=True) if any(each.keys.data_user for each in every) else control
