"""An engine for the model-specific scripts: takes any flags, lists one model."""

import argparse
import http.server
import json
import os
import sys

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-p", "--port", type=int, required=True)
arguments, _ = parser.parse_known_args()
MODELS = json.dumps({"object": "list", "data": [{"id": "stand-in", "object": "model"}]}).encode()


class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(MODELS)))
        self.end_headers()
        self.wfile.write(MODELS)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    devices = os.environ.get("HPCC_VISIBLE_DEVICES")
    print(f"engine {' '.join(sys.argv[1:])} devices={devices}", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Engine).serve_forever()
