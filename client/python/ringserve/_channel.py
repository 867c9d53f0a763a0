"""Connections: credentials and the options that both ends of ringserve agree on (proto/transport.cc)."""
from __future__ import annotations

import pathlib
from typing import Any

import grpc

from ._protocol import RECEIVE_LIMIT_BYTES
from .errors import InvalidArgumentError

CONTROL_DEADLINE = 30.0  # seconds, of plan and status

_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
    ("grpc.max_send_message_length", -1),
]


def options(connect_timeout: float) -> list[tuple[str, int]]:
    """Of a channel; an attempt to connect ends after `connect_timeout` seconds."""
    return [*_OPTIONS, ("grpc.min_reconnect_backoff_ms", min(int(connect_timeout * 1000) + 1, (1 << 31) - 1))]


def _read(what: str, path: Any) -> bytes | None:
    if path is None:
        return None
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error


def credentials(tls_ca: Any, tls_cert: Any, tls_key: Any) -> Any:
    """gRPC's credentials from PEM files, None without any: no TLS."""
    if (tls_cert is None) != (tls_key is None):
        raise InvalidArgumentError("tls_cert and tls_key belong together: one of them is missing")
    if tls_ca is None and tls_cert is None:
        return None
    if tls_ca is None:
        raise InvalidArgumentError("tls_cert is given without tls_ca: a client needs to know whom to trust")
    pem = [_read(what, path) for what, path in (("tls_ca", tls_ca), ("tls_key", tls_key), ("tls_cert", tls_cert))]
    return grpc.ssl_channel_credentials(*pem)


def check(server: str, connect_timeout: float) -> None:
    if not server:
        raise InvalidArgumentError("server is empty: must be HOST:PORT or unix:PATH")
    if not connect_timeout > 0:
        raise InvalidArgumentError(f"connect_timeout is {connect_timeout} s: must be above 0")
