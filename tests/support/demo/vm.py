"""One RadosGW-like machine: a small HTTP server that answers health checks and requests with its own name."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    """`python vm.py NAME ADDRESS PORT`: serve until killed."""
    name, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<ListAllMyBucketsResult><Owner>{name}</Owner></ListAllMyBucketsResult>\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer((address, port), Handler).serve_forever()


if __name__ == "__main__":
    main()
