"""The peer that a careful user writes: one process, the whole model in it, one request at a time, over HTTP.

    python benchmarks/peers/unsplit.py --engine torch|onnx [--exports DIR] --port PORT

The body of a POST is the captions, one a line, an empty line, and the picture. No framework: the standard library's
server keeps connections open, and adds less than a millisecond to a request.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from functions import Head, Image, Text


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("torch", "onnx"), required=True)
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    image, text, head = (kind(arguments.engine, arguments.exports) for kind in (Image, Text, Head))
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            captions, _, picture = self.rfile.read(int(self.headers["Content-Length"])).partition(b"\n\n")
            with turn:
                answer = json.dumps(head.run(image.run(picture), text.run(captions), captions)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
