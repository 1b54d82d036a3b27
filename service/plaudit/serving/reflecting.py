"""Server reflection, as `grpc.reflection.v1` and as the older `v1alpha`.

The installed library serves v1alpha alone. The messages of both are the same on the wire (the proto of v1 is that of
v1alpha in another package), so one servicer answers both.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1 = "grpc.reflection.v1.ServerReflection"


def reflect(services: Sequence[str], server: grpc.Server) -> None:
    """Lets callers ask `server` for these services and their messages."""
    named = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(named, server)
    method = grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(named).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handlers,))
