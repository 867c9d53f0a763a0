"""The messages of ringserve/v1/attention.proto, and its enums as people write them.

The classes are made at run time from the descriptors that the wheel carries, in a pool of their own: nothing clashes
with generated code of the same package, and every protobuf from 3.20 on will do.
"""
from __future__ import annotations

import importlib.resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "ringserve.v1."

CHUNK_BYTES = 1 << 20  # of tensor data in one message
RECEIVE_LIMIT_BYTES = 8 << 20
RETRY_AFTER_KEY = "ringserve-retry-after-ms"


def _load_pool() -> descriptor_pool.DescriptorPool:
    try:
        content = (importlib.resources.files(__package__) / "protocol.binpb").read_bytes()
    except FileNotFoundError as error:
        raise ImportError("ringserve is not installed, this is its source: pip install ./client/python") from error
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _load_pool()


def _message(name: str) -> Any:
    descriptor = _pool.FindMessageTypeByName(_PACKAGE + name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_pool).GetPrototype(descriptor)


AttendRequest = _message("AttendRequest")
AttendResponse = _message("AttendResponse")
AttendHeader = _message("AttendHeader")
AttentionSpec = _message("AttentionSpec")
AttentionOptions = _message("AttentionOptions")
Mask = _message("Mask")
PlanRequest = _message("PlanRequest")
PlanResponse = _message("PlanResponse")
GetClusterRequest = _message("GetClusterRequest")
GetClusterResponse = _message("GetClusterResponse")


class Enum:
    """An enum's values by the names that people write: "head-tail" for BALANCER_HEAD_TAIL."""

    def __init__(self, name: str, prefix: str) -> None:
        values = _pool.FindEnumTypeByName(_PACKAGE + name).values
        self._numbers = {v.name[len(prefix):].lower().replace("_", "-"): v.number for v in values}
        self._names: dict[int, str] = {number: name for name, number in self._numbers.items()}

    def names(self) -> list[str]:
        return [name for name in self._numbers if name != "unspecified"]

    def number(self, name: str) -> int | None:
        return None if name == "unspecified" else self._numbers.get(name)

    def name(self, number: int) -> str:
        return self._names.get(number, f"value {number}")


Balancer = Enum("Balancer", "BALANCER_")
RotateMethod = Enum("RotateMethod", "ROTATE_METHOD_")
DType = Enum("DType", "DTYPE_")
TensorLayout = Enum("TensorLayout", "TENSOR_LAYOUT_")
TensorId = Enum("TensorId", "TENSOR_ID_")

ATTEND = f"/{_PACKAGE}Attention/Attend"
ATTEND_BACKWARD = f"/{_PACKAGE}Attention/AttendBackward"
PLAN = f"/{_PACKAGE}Attention/Plan"
GET_CLUSTER = f"/{_PACKAGE}Attention/GetCluster"
