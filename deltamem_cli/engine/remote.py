"""Other machines that compute layers: llama.cpp's RPC servers, and the server itself. Knows devices, no models."""

from __future__ import annotations

import ctypes
import math
import os
import socket
import struct
from typing import Any

from deltamem_cli.bindings import GPU_TYPES, Native
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.text import short

PORT = 50052  # as llama.cpp's own server has it
PROTOCOL = (7, 0)  # RPC_PROTO_MAJOR_VERSION and MINOR of the pinned ggml-rpc.h; a server must not be newer
_SECONDS = 5.0  # to wait for a machine that may be off, or a server that is busy
_CAPABILITIES = 24  # bytes of a greeting that say what beside TCP could be used: nothing
_answered: set[str] = set()  # servers; one that this process uses has no time to greet it again
_MOST_SERVERS = 16  # GGML_RPC_MAX_SERVERS
_POINTER = ctypes.c_void_p


def addresses(text: str) -> list[tuple[str, int]]:
    """What `HOST:PORT,…` names. Raises EngineError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        host, colon, port = part.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise EngineError(
                f"The RPC server {short(part)} can't be told: write it as HOST:PORT, such as 10.0.0.2:{PORT}."
            )
        found.append((host, int(port)))
    if len(found) > _MOST_SERVERS:
        raise EngineError(f"There are {len(found)} RPC servers: llama.cpp takes up to {_MOST_SERVERS}.")
    return found


def proportions(text: str, count: int) -> list[float]:
    """What `3,1` means for `count` devices. Raises EngineError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not 0 < len(found) <= count or not all(0 <= share < math.inf for share in found) or not any(found):
        raise EngineError(
            f"The tensor split is {short(text)}: write a number for each device, servers first, such as 3,1."
        )
    return found + [0.0] * (count - len(found))


def devices(native: Native, servers: str) -> list[Any]:
    """The devices of those servers, then this machine's GPUs.

    Raises EngineError for a server that does not answer as it should; llama.cpp would wait forever, or end the process.
    """
    add = _function(native, "ggml_backend_rpc_add_server", _POINTER, [ctypes.c_char_p])
    found: list[Any] = []
    for host, port in addresses(servers):
        name = f"{host}:{port}"
        _check(name, host, port)
        registry = add(name.encode())
        if not registry:
            raise EngineError(f"The RPC server {name} has no device to compute with: leave it out of --rpc.")
        count = native.base.ggml_backend_reg_dev_count(registry)
        found += [native.base.ggml_backend_reg_dev_get(registry, i) for i in range(count)]
    return found + native.devices(*GPU_TYPES)


def _check(name: str, host: str, port: int) -> None:
    """Raises EngineError."""
    try:
        with socket.create_connection((host, port), _SECONDS) as connection:
            version = PROTOCOL if name in _answered else greet(connection)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise EngineError(
            f"The RPC server {name} can't be reached ({why}): start it there with dmem rpc-server, or leave it out of "
            "--rpc. It serves one program at a time."
        ) from None
    if version is None:
        raise EngineError(f"What answers at {name} is no RPC server: correct --rpc.")
    if version[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        raise EngineError(
            f"The RPC server {name} speaks version {version[0]}.{version[1]}, this program {PROTOCOL[0]}.{PROTOCOL[1]}: "
            "install the same version of dmem on both machines."
        )
    _answered.add(name)


def greet(connection: socket.socket) -> tuple[int, int] | None:
    """The version that a server answers RPC_CMD_HELLO with; None for what is no such answer. Raises OSError."""
    connection.sendall(struct.pack("<BQ", 14, _CAPABILITIES) + bytes(_CAPABILITIES))
    expected, said = 8 + 4 + _CAPABILITIES, b""
    while len(said) < expected:
        part = connection.recv(expected - len(said))
        if not part:
            return None
        said += part
    size, major, minor = struct.unpack_from("<QBB", said)
    return (major, minor) if size == expected - 8 else None


def serve(native: Native, host: str, port: int, threads: int) -> None:
    """Computes layers for others until the process ends, on this machine's GPUs or, without any, on its CPU.

    Raises EngineError when the address can't be had.
    """
    start = _function(
        native,
        "ggml_backend_rpc_start_server",
        None,
        [ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_size_t] * 2, _POINTER],
    )
    with socket.socket() as tried:
        if os.name == "posix":  # as llama.cpp does; elsewhere it would let two servers have one port
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise EngineError(
                f"The address {host}:{port} can't be served ({why}): choose another with --host or --port."
            ) from None
    own = native.devices(*GPU_TYPES) or native.devices(0)
    start(f"{host}:{port}".encode(), None, threads, len(own), (_POINTER * len(own))(*own))
    raise EngineError(f"The RPC server at {host}:{port} ended: its messages say why.")


def _function(native: Native, name: str, result: Any, arguments: list[Any]) -> Any:
    """One that only the RPC library has. Raises EngineError for a build without it."""
    registry = native.ggml.ggml_backend_reg_by_name(b"RPC")
    address = native.base.ggml_backend_reg_get_proc_address(registry, name.encode()) if registry else None
    if not address:
        raise EngineError("This build can't use other machines: build it with GGML_RPC (native/README.md).")
    return ctypes.CFUNCTYPE(result, *arguments)(address)
