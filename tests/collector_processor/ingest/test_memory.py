"""What an attacker sends small must stay small: resident memory of a process that is being attacked."""

from __future__ import annotations

import gzip
import zlib

import pytest

from tests.collector_processor.ingest.serving import in_subprocess

ALLOWED_MIB = 32

# A service in a process of its own, attacked through its real ports from another; prints what it was answered,
# by how much its memory grew at most, and how many payloads it kept.
ATTACKED = """
import http.client, resource, subprocess, sys, threading, time
from pathlib import Path
import grpc
from tests.collector_processor.ingest.serving import METHODS, PATHS, serving
from collector_processor.model import Signal
from collector_processor.process import keep_memory_together
from tests.otlp import log, logs, span, traces

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def attacker(*arguments):
    command = [sys.executable, "-c", ATTACKER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)

ATTACKER = '''
import http.client, sys, grpc
from pathlib import Path
transport, port, path, file, *headers = sys.argv[1:]
compressing = file == "zeros"
body = bytes(256 << 20) if compressing else Path(file).read_bytes()
if transport == "grpc":
    channel = grpc.insecure_channel("127.0.0.1:" + port, [("grpc.max_send_message_length", -1)])
    try:
        channel.unary_unary(path)(
            body, timeout=60, compression=grpc.Compression.Gzip if compressing else grpc.Compression.NoCompression
        )
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)
else:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("POST", path, body, dict(header.split("=", 1) for header in headers))
    print(connection.getresponse().status)
'''
keep_memory_together()  # as the service does: what four threads took one after the other must not add up
with serving() as served:
    for signal, data in ((Signal.TRACES, traces(span(1, 2))), (Signal.LOGS, logs(log("x")))):
        served.export(signal, data)
        served.post(PATHS[signal], data)
    json = b'{"resourceLogs":[]}'
    served.post("/v1/logs", json, {"content-type": "application/json"})
    before = peak()
    for attack in ATTACKS:
        transport, signal, file, *headers = attack
        port = served.grpc_port if transport == "grpc" else served.http_port
        path = (METHODS if transport == "grpc" else PATHS)[Signal(int(signal))]
        done = attacker(transport, port, path, file, *headers)
        print(done.stdout.strip() or done.stderr[-500:])
    print(peak() - before)
    print(len(served.payloads))
"""


def attacked(*attacks: tuple[str, ...]) -> tuple[list[str], float]:
    """(answers, growth of the peak in MiB) of a service that `attacks` were tried on, one after the other."""
    *answers, growth, kept = in_subprocess(f"ATTACKS = {list(attacks)!r}\n{ATTACKED}").split()
    assert kept == "4"
    return answers, float(growth)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of about a megabyte, or less, that become a gigabyte."""
    import cramjam
    import zstandard

    folder = tmp_path_factory.mktemp("bombs")
    stream = {
        "gzip": zlib.compressobj(6, wbits=31),
        "deflate": zlib.compressobj(6),
        "zstd": zstandard.ZstdCompressor().compressobj(),
    }
    bodies = {name: bytearray() for name in stream}
    for _ in range(1024):
        for name, one in stream.items():
            bodies[name] += one.compress(bytes(1 << 20))
    for name, one in stream.items():
        bodies[name] += one.flush()
    bodies["snappy"] = bytearray(cramjam.snappy.compress_raw(bytes(100 << 20)))
    bodies["x-snappy-framed"] = bytearray(cramjam.snappy.compress(bytes(100 << 20)))
    bodies["empty_records"] = bytearray(gzip.compress(nested(b"\x12\x00" * 2_000_000, b"\x12\x0a")))
    bodies["empty_attributes"] = bytearray(gzip.compress(nested(b"\x32\x00" * 5_000_000, b"\x12\x12\x0a")))
    opening = b'{"resourceSpans":[{"scopeSpans":[{"spans":['
    empty = opening + b",".join([b"{}"] * 2_000_000) + b"]}]}]}"
    bodies["empty_spans_in_json"] = bytearray(gzip.compress(empty))
    bodies["unusual_json"] = bytearray(gzip.compress(empty.replace(b"{}]", b'{"kind":1e0}]')))
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
    assert len(bodies["gzip"]) < 1_100_000
    return {name: str(folder / name) for name in bodies}


def nested(content: bytes, tags: bytes) -> bytes:
    """`content` inside messages with `tags`, the innermost first."""
    for tag in tags:
        size, length = len(content), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        content = bytes([tag]) + length + bytes([size]) + content
    return content


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "snappy", "x-snappy-framed"])
def test_a_decompression_bomb_over_http_is_413(bombs: dict[str, str], encoding: str) -> None:
    headers = ("content-type=application/x-protobuf", f"content-encoding={encoding}")
    answers, growth = attacked(("http", "1", bombs[encoding], *headers), ("http", "0", bombs[encoding], *headers))
    assert answers == ["413", "413"]
    assert growth <= ALLOWED_MIB


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_decompression_bomb_over_grpc_is_resource_exhausted(bombs: dict[str, str], encoding: str) -> None:
    answers, growth = attacked(("grpc", "1", bombs[encoding]), ("grpc", "0", bombs[encoding]))
    assert answers == ["RESOURCE_EXHAUSTED"] * 2
    assert growth <= ALLOWED_MIB


@pytest.mark.slow
def test_a_bomb_that_grpc_itself_compressed_is_resource_exhausted() -> None:
    """256 MiB of zeros in a message that says it is compressed: gRPC must not inflate it before we look."""
    answers, growth = attacked(("grpc", "0", "zeros"))
    assert answers == ["RESOURCE_EXHAUSTED"]
    assert growth <= ALLOWED_MIB


@pytest.mark.slow
def test_a_bomb_in_json_is_413(bombs: dict[str, str]) -> None:
    answers, growth = attacked(("http", "1", bombs["gzip"], "content-type=application/json", "content-encoding=gzip"))
    assert answers == ["413"]
    assert growth <= ALLOWED_MIB


@pytest.mark.slow
def test_two_million_empty_records_are_refused(bombs: dict[str, str]) -> None:
    headers = ("content-type=application/x-protobuf", "content-encoding=gzip")
    answers, growth = attacked(
        ("http", "1", bombs["empty_records"], *headers),
        ("grpc", "1", bombs["empty_records"]),
        ("grpc", "0", bombs["empty_records"]),
        ("http", "1", bombs["empty_attributes"], *headers),
    )
    assert answers == ["413", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "413"]
    assert growth <= ALLOWED_MIB


@pytest.mark.slow
def test_two_million_empty_records_in_json_are_refused(bombs: dict[str, str]) -> None:
    headers = ("content-type=application/json", "content-encoding=gzip")
    answers, growth = attacked(
        ("http", "0", bombs["empty_spans_in_json"], *headers), ("http", "0", bombs["unusual_json"], *headers)
    )
    assert answers == ["413", "400"]
    assert growth <= ALLOWED_MIB
