"""Measures the gRPC server that Plaudit uses against the asyncio one: empty unary calls with the same work around them.

Both servers run in one process with their client, in alternation, so that drift of the machine meets both alike. The
work around a call is the interceptor's: trace ids, the clock, three metrics. Prints JSON (docs/adr/0010).

    python benchmarks/grpc_server.py --calls 2000 --rounds 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from plaudit.metrics import Metrics
from plaudit.serving.interceptors import CallInterceptor
from plaudit.telemetry import RequestIds, child_traceparent, request_ids
from prometheus_client import CollectorRegistry

METHOD = "/plaudit.v1.BenchmarkService/Empty"
IN_FLIGHT = 32
WORKERS = 104


class Empty(grpc.GenericRpcHandler):
    """Answers METHOD with nothing, from a thread."""

    def service(self, details: Any) -> Any:
        """The handler of METHOD, None for any other."""
        if details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"", request_deserializer=bytes)


def sync_server() -> tuple[int, Any]:
    interceptor = CallInterceptor(Metrics(CollectorRegistry()), 2**20)
    server = grpc.server(ThreadPoolExecutor(WORKERS), interceptors=[interceptor])
    server.add_generic_rpc_handlers((Empty(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return port, lambda: server.stop(0).wait()


class AsyncEmpty(grpc.GenericRpcHandler):
    """Answers METHOD from the event loop, with the same work around it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def service(self, details: Any) -> Any:
        """The handler of every method."""
        metadata = dict(details.invocation_metadata)

        async def answer(request: bytes, context: Any) -> bytes:
            started = time.perf_counter()
            self._metrics.requests_in_flight.inc()
            ids = RequestIds(metadata.get("x-request-id", "made"), child_traceparent(""))
            context.set_trailing_metadata((("x-request-id", ids.request_id),))
            with request_ids(ids):
                reply = b""
            self._metrics.requests_in_flight.dec()
            self._metrics.requests.labels("BenchmarkService", "Empty", "OK").inc()
            self._metrics.request_seconds.labels("BenchmarkService", "Empty").observe(time.perf_counter() - started)
            return reply

        return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=bytes)


def aio_server() -> tuple[int, Any]:
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    ready = threading.Event()
    servers: list[Any] = []

    async def start() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((AsyncEmpty(Metrics(CollectorRegistry())),))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()

    def stop() -> None:
        asyncio.run_coroutine_threadsafe(servers[0].stop(0), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return ports[0], stop


def calls_per_second(port: int, calls: int) -> float:
    """One client with IN_FLIGHT calls under way."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        call(b"")
        slots = threading.Semaphore(IN_FLIGHT)
        started = time.perf_counter()
        for _ in range(calls):
            slots.acquire()
            call.future(b"").add_done_callback(lambda _: slots.release())
        for _ in range(IN_FLIGHT):
            slots.acquire()
        return calls / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    servers = {"sync": sync_server(), "aio": aio_server()}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for round_number in range(arguments.rounds + 1):
        for name, (port, _) in servers.items():
            rate = calls_per_second(port, arguments.calls)
            if round_number:  # the first round warms up
                rates[name].append(rate)
    for _, stop in servers.values():
        stop()
    result = {
        name: {
            "median_calls_per_second": round(statistics.median(values)),
            "lowest": round(min(values)),
            "highest": round(max(values)),
        }
        for name, values in rates.items()
    }
    result["aio_over_sync_by_round"] = [round(a / s, 2) for a, s in zip(rates["aio"], rates["sync"], strict=True)]
    settings = {"calls": arguments.calls, "rounds": arguments.rounds, "in_flight": IN_FLIGHT}
    versions = {"python": platform.python_version(), "grpcio": grpc.__version__, "cores": os.cpu_count()}
    print(json.dumps({"settings": settings, "versions": versions, **result}, indent=2))


if __name__ == "__main__":
    main()
