"""Whether a Ray answers at an address."""

from __future__ import annotations

import socket

import grpc
import ray

from fedbilevel.errors import BadInput
from server.grids.cluster import credentials

PROBE_SECONDS = 5.0
"""How long an address may take to answer."""


def probe(address: str) -> None:
    """See that something answers as Ray's head would: `ray.init` waits for half a minute. Raises BadInput."""
    allowed = "the address of a Ray cluster, host:port of its head, or auto"
    found = address
    if address == "auto":
        try:
            found = str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
        except Exception:
            raise BadInput("ray_address", address, "a Ray cluster that runs on this machine, and none is") from None
    host, _, port = found.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput("ray_address", address, allowed)
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise BadInput("ray_address", address, f"{allowed}, and nothing answers there ({said})") from None
    with grpc.insecure_channel(found, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(PROBE_SECONDS)
            cluster_id = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            cluster_id(b"", timeout=PROBE_SECONDS, metadata=credentials.metadata())
        except grpc.FutureTimeoutError:
            raise BadInput("ray_address", address, f"{allowed}, and what answers there is not Ray") from None
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                token = "its token in the environment (RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
                raise BadInput("ray_address", address, f"the address of a Ray cluster, with {token}") from None
            # what else a cluster may say of this, `ray.init` will say better
