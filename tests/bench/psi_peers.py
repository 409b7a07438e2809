"""Other libraries' PSI, timed: `python psi_peers.py NAME N` in a virtual environment that has the library.

Two processes on one machine, over loopback, with n ids each of which half are shared; both start at once, and
the one that is to learn the ids does. Prints the seconds of the slower party, imports and connecting not
counted. It imports nothing of this project, so that it runs where that is not installed.
"""

from __future__ import annotations

import multiprocessing
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

Party = Callable[[int, int, str, Barrier], float]  # its seconds


def ids(n: int, start: int) -> list[str]:
    """What the benches here align too."""
    return [f"user-{i:012d}" for i in range(start, start + n)]


def spu(protocol: str, curve: str = "", fast: bool = False) -> Party:
    """SecretFlow's, from CSV file to CSV file, over its own links."""

    def run(rank: int, n: int, folder: str, start: Barrier) -> float:
        from spu import libspu, psi

        link = libspu.link.Desc()
        for each, port in enumerate(Path(folder, "ports").read_text().split()):
            link.add_party(f"p{each}", f"127.0.0.1:{port}")
        context = libspu.link.create_brpc(link, rank)
        chosen: dict[str, Any] = {"protocol": getattr(psi.PsiProtocol, f"PROTOCOL_{protocol}")}
        if curve:
            chosen["ecdh_params"] = psi.EcdhParams(psi.parse_curve_type(curve))
        if protocol == "RR22":
            chosen["rr22_params"] = psi.Rr22Rarams(not fast)
        given, written = (str(Path(folder, f"{what}{rank}.csv")) for what in ("in", "out"))
        Path(given).write_text("id\n" + "\n".join(ids(n, rank * n // 2)) + "\n")
        config = psi.PsiExecuteConfig(
            psi.PsiProtocolConfig(receiver_rank=0, broadcast_result=True, **chosen),
            input_params=psi.InputParams(path=given, selected_keys=["id"], keys_unique=True),
            output_params=psi.OutputParams(path=written, disable_alignment=False),
        )
        start.wait()
        began = time.perf_counter()
        found = psi.psi_execute(config, context)
        seconds = time.perf_counter() - began
        assert found.intersection_count == n - n // 2, found.intersection_count
        context.stop_link()
        return seconds

    return run


def openmined(rank: int, n: int, folder: str, start: Barrier) -> float:
    """OpenMined's, with its default structure; its messages over a socket, and the client alone learns."""
    from private_set_intersection import python as psi

    mine = ids(n, rank * n // 2)
    place = str(Path(folder, "socket"))
    if rank == 0:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place)
            listening.listen()
            start.wait()
            line = listening.accept()[0]
        began = time.perf_counter()
        server = psi.server.CreateWithNewKey(True)
        setup = server.CreateSetupMessage(1e-9, n, mine, psi.DataStructure.GCS)
        _send(line, setup.SerializeToString())
        request = psi.Request()
        request.ParseFromString(_receive(line))
        _send(line, server.ProcessRequest(request).SerializeToString())
        return time.perf_counter() - began
    start.wait()
    line = socket.socket(socket.AF_UNIX)
    line.connect(place)
    began = time.perf_counter()
    client = psi.client.CreateWithNewKey(True)
    sending = threading.Thread(target=_send, args=(line, client.CreateRequest(mine).SerializeToString()))
    sending.start()
    setup, answer = psi.ServerSetup(), psi.Response()
    setup.ParseFromString(_receive(line))
    sending.join()
    answer.ParseFromString(_receive(line))
    found = client.GetIntersection(setup, answer)
    seconds = time.perf_counter() - began
    assert len(found) == n - n // 2, len(found)
    return seconds


def _send(line: socket.socket, content: bytes) -> None:
    line.sendall(struct.pack("<Q", len(content)) + content)


def _receive(line: socket.socket) -> bytes:
    with line.makefile("rb", buffering=0) as file:
        read = bytearray()
        size = 8
        while len(read) < size:
            read += file.read(size - len(read)) or b""
            if size == 8 and len(read) == 8:
                size, read = struct.unpack("<Q", read)[0], bytearray()
    return bytes(read)


PEERS: dict[str, Party] = {
    "spu-ecdh": spu("ECDH", curve="CURVE_25519"),
    "spu-kkrt": spu("KKRT"),
    "spu-rr22": spu("RR22", fast=True),
    "openmined": openmined,
}


def main(name: str, n: int) -> None:
    context = multiprocessing.get_context("fork")
    start, measured = context.Barrier(2), context.Queue()

    def timed(rank: int) -> None:
        measured.put(PEERS[name](rank, n, folder, start))

    with tempfile.TemporaryDirectory() as folder:
        taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        Path(folder, "ports").write_text(" ".join(str(one.getsockname()[1]) for one in taken))
        for one in taken:
            one.close()
        parties = [context.Process(target=timed, args=(rank,)) for rank in (0, 1)]
        for party in parties:
            party.start()
        for party in parties:
            party.join()
    if any(party.exitcode for party in parties):
        sys.exit("a party failed")
    print(f"seconds {max(measured.get() for _ in parties)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
