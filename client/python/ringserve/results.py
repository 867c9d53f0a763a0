"""What the service answers, as plain values. The words are those of ringserve/v1/attention.proto."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _protocol
from .layout import Layout, SequenceLayout


@dataclass(frozen=True)
class Plan:
    """What the planner decided. Work is visible (query, key) pairs over all batch rows, not times heads."""

    balancer: str
    rotate: str
    workers: int
    layout: Layout | None  # None where it has more than 100,000 segments
    work: tuple[int, ...]  # by rank
    bytes: tuple[int, ...]  # by rank: sent to other ranks
    peak_bytes: tuple[int, ...]  # by rank: memory reserved on its worker
    imbalance: float  # what the ring's steps wait for each other: max / mean
    imbalance_total: float  # max / mean of the ranks' totals
    imbalance_is_bound: bool
    estimated_seconds: float
    reason: str


@dataclass(frozen=True)
class Step:
    """What one rank does in one step."""

    kv_rank: int  # whose shard it reads, -1: all received
    work: int
    tiles: int
    bytes_sent: int


@dataclass(frozen=True)
class DryRun(Plan):
    """The answer of `Client.plan`: what `attend` would do."""

    description: str  # for people
    steps: tuple[tuple[Step, ...], ...]  # [rank][step]


@dataclass(frozen=True)
class RankStatistics:
    worker: str
    compute_seconds: float
    exchange_wait_seconds: float
    total_seconds: float
    bytes_sent: int
    bytes_received: int
    tiles: int


@dataclass(frozen=True)
class Statistics:
    """Measured while the request ran. Seconds are wall clock."""

    request_id: str
    plan: Plan
    queued_seconds: float
    upload_seconds: float
    wait_seconds: float
    compute_seconds: float
    download_seconds: float
    total_seconds: float
    upload_bytes: int
    download_bytes: int
    ranks: tuple[RankStatistics, ...]


@dataclass(frozen=True)
class AttendResult:
    """`out` as q is shaped, with v's head dim, in q's library and dtype and on its device; `lse` is [B, Hq, Tq]."""

    out: Any
    lse: Any  # None unless it was asked for
    statistics: Statistics
    attempts: int


@dataclass(frozen=True)
class BackwardResult:
    """Each gradient as its tensor: shape, library, dtype and device."""

    d_q: Any
    d_k: Any
    d_v: Any
    d_sink_logits: Any  # None without sink_logits
    statistics: Statistics
    attempts: int


@dataclass(frozen=True)
class Worker:
    id: str
    address: str
    device: str
    threads: int
    memory_bytes: int
    reserved_bytes: int
    silent_seconds: float
    job: int  # running now, 0: idle
    version: str
    pid: int
    libtorch: str
    device_name: str  # such as "NVIDIA H200"; this and those below are empty on a CPU
    driver: str
    cuda: str
    nccl: str


@dataclass(frozen=True)
class ClusterStatus:
    version: str
    epoch: str  # empty while it is being built and without workers
    draining: bool
    workers: tuple[Worker, ...]
    queued_jobs: int
    unfinished_jobs: int


def _plain(kind: Any, message: Any, **given: Any) -> Any:
    """A value of `kind`, its fields taken from those of the message that have the same name, but those `given`."""
    names = [name for name in kind.__dataclass_fields__ if name not in given]
    return kind(**given, **{name: getattr(message, name) for name in names})


def _sequence(message: Any) -> SequenceLayout:
    return SequenceLayout(tuple(
        tuple(tuple((s.begin, s.end) for s in rank.segments) for rank in row.ranks) for row in message.rows))


def _plan_fields(message: Any) -> dict[str, Any]:
    return {
        "balancer": _protocol.Balancer.name(message.balancer),
        "rotate": _protocol.RotateMethod.name(message.rotate),
        "layout": Layout(_sequence(message.layout.q), _sequence(message.layout.kv)) if message.HasField("layout") else None,
        **{name: tuple(getattr(message, name)) for name in ("work", "bytes", "peak_bytes")},
        **{name: getattr(message, name) for name in (
            "workers", "imbalance", "imbalance_total", "imbalance_is_bound", "estimated_seconds", "reason")},
    }


def dry_run(message: Any) -> DryRun:
    """Of a PlanResponse."""
    steps = tuple(tuple(_plain(Step, step) for step in rank.steps) for rank in message.ranks)
    return DryRun(**_plan_fields(message.plan), description=message.description, steps=steps)


def statistics(message: Any) -> Statistics:
    """Of a Statistics message."""
    result: Statistics = _plain(Statistics, message, plan=Plan(**_plan_fields(message.plan)),
                                ranks=tuple(_plain(RankStatistics, rank) for rank in message.ranks))
    return result


def cluster_status(message: Any) -> ClusterStatus:
    """Of a GetClusterResponse."""
    result: ClusterStatus = _plain(ClusterStatus, message,
                                   workers=tuple(_plain(Worker, worker) for worker in message.workers))
    return result
