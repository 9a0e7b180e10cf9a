"""The actions that the agent's rules return (``decide``): frozen values, one class each.

Owns the vocabulary between the rules and ``service``, which performs actions. Knows nothing of topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import AssignedModule, Result, TensorMessage
from broker.protocol.specs import DeviceId, ModuleKey, NodeName, Wire
from broker.protocol.tensors import Tensors
from edge_agent.events import NodeRun
from edge_agent.modules import Value


@dataclass(frozen=True)
class Load:
    """Load a module."""

    assigned: AssignedModule


@dataclass(frozen=True)
class Unload:
    """Unload a module."""

    key: ModuleKey


@dataclass(frozen=True)
class JoinGroup:
    """Subscribe to a share group."""

    filter: str


@dataclass(frozen=True)
class LeaveGroup:
    """Unsubscribe from a share group."""

    filter: str


@dataclass(frozen=True)
class Run:
    """Compute a node. The values stand in the order of its needs."""

    run: NodeRun
    key: ModuleKey
    values: tuple[Value, ...]
    deadline_s: float  # on this device's clock
    use: str | None = None  # which of the module's uses
    wire: Wire = "float32"  # the dtype to which the output is rounded for other nodes
    answers: bool = False  # the sensor gets the output, unrounded


@dataclass(frozen=True)
class Send:
    """Send a message to another agent."""

    receiver: DeviceId
    message: TensorMessage
    values: Mapping[NodeName, Value]  # need -> what the sensor sent, or the output of a node
    deadline_s: float  # on this device's clock


@dataclass(frozen=True)
class Reply:
    """Answer a sensor, with tensors when the task's output is a tensor."""

    reply_to: str
    correlation: bytes
    result: Result
    deadline_s: float  # on this device's clock
    tensors: Tensors | None = None


@dataclass(frozen=True)
class SendHeartbeat:
    """Send a heartbeat at once: the state of a module has changed."""


@dataclass(frozen=True)
class Log:
    """Write a log event with these fields."""

    action: str
    fields: dict[str, object] = field(default_factory=dict)


Action = Load | Unload | JoinGroup | LeaveGroup | Run | Send | Reply | SendHeartbeat | Log
