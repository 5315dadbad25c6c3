"""A server that answers with raw bytes, so that it can break every rule of HTTP."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator

Write = Callable[[bytes], None]
Answer = Callable[[Write, dict[str, str]], None]
"""Writes an answer to a request with these headers, whose names are in lower case."""


class RawServer(socketserver.ThreadingTCPServer):
    """Answers one request per connection by what `answers` has for its path."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []  # paths of the requests
        self.closing = threading.Event()  # what an answer that never comes waits for
        self.at = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Ignore a client that hangs up."""


class _Handler(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        first = self.rfile.readline().split()
        headers: dict[str, str] = {}
        while (line := self.rfile.readline().decode("latin1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if first:
            path = first[1].decode("latin1")
            self.server.asked.append(path)
            self.server.answers.get(path, not_found)(self.wfile.write, headers)


@contextlib.contextmanager
def raw_server() -> Iterator[RawServer]:
    """Run a server for the time of a test."""
    with RawServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()


def reply(
    body: bytes = b"", status: str = "200 OK", length: object = None, **headers: str
) -> bytes:
    """Return an answer; `length` is what it states, if not the truth, "" for nothing."""
    stated = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"Content-Length: {stated}"] if stated != "" else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


def says(answer: bytes) -> Answer:
    """Answer every request with these bytes."""
    return lambda write, _: write(answer)


not_found = says(reply(b"", "404 Not Found"))


def in_turn(*answers: Answer) -> Answer:
    """Answer the first request with the first answer, and so on; the last one from then on."""
    left = list(answers)

    def answer(write: Write, headers: dict[str, str]) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(write, headers)

    return answer


def without_end(head: bytes, piece: bytes) -> Answer:
    """Answer with a head, and then with the same piece until the client hangs up."""

    def answer(write: Write, _: dict[str, str]) -> None:
        write(head)
        while True:
            write(piece)

    return answer
