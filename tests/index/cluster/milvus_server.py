"""The Milvus of ``pip install milvus==2.3.5`` for tests, reachable from this machine's loopback and from nowhere else.

It listens on all interfaces whatever it is told, so it runs in a network namespace of its own, which has a loopback
and nothing else. A socket that was bound to 127.0.0.1 before the namespace was entered stays outside: connections to
it are handed on. Prints a line ``port N`` once the server answers; ends with its standard input.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

from milvus import MilvusServer, MilvusServerConfig

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
EXACT = "queryNode.segcore.interimIndex.enableIndex"  # else growing segments are searched approximately


def enter_namespace() -> None:
    """Raises OSError where this user may make none."""
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace may be made here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        fcntl.ioctl(anything, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


def hand_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def accept(outside: socket.socket, port: int) -> None:
    while True:
        client, _ = outside.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=hand_on, args=pair, daemon=True).start()


def main(folder: str) -> None:
    outside = socket.create_server(("127.0.0.1", 0))
    enter_namespace()
    server = MilvusServer(MilvusServerConfig(data_dir=folder))
    server.config.set("log.level", "warn")
    server.config.set(EXACT, "false")
    server.start()
    try:
        threading.Thread(target=accept, args=(outside, server.listen_port), daemon=True).start()
        print("port", outside.getsockname()[1], flush=True)
        sys.stdin.read()
    finally:
        server.stop()


if __name__ == "__main__":
    main(sys.argv[1])
