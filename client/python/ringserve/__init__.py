"""Exact attention over long sequences, computed by a ringserve cluster.

    import ringserve

    with ringserve.Client("127.0.0.1:7070") as client:
        result = client.attend(q, k, v, mask=ringserve.masks.causal())
        result.out, result.statistics.plan.balancer

`Client.backward` gives the gradients. `ringserve.aio` has the client for asyncio, `ringserve.torch` the scope in which
PyTorch's scaled_dot_product_attention is served, forward and backward.
"""
from . import errors, layout, masks
from ._request import Spec
from .client import Client
from .cluster import LocalCluster, local_cluster
from .errors import RingserveError
from .layout import Layout, SequenceLayout, shard, unshard
from .masks import Mask
from .results import AttendResult, BackwardResult, ClusterStatus, DryRun, Plan, Statistics

__all__ = [
    "AttendResult", "BackwardResult", "Client", "ClusterStatus", "DryRun", "Layout", "LocalCluster", "Mask", "Plan",
    "RingserveError", "SequenceLayout", "Spec", "Statistics", "errors", "layout", "local_cluster", "masks", "shard", "unshard",
]
__version__ = "0.1.0"
