"""A service for the scripts to start: answers /health, and misbehaves as it is told."""

import argparse
import http.server
import json
import signal
import subprocess
import sys
import threading
import time


class Health(http.server.BaseHTTPRequestHandler):
    ready_at = 0.0

    def do_GET(self) -> None:
        ready = time.monotonic() >= self.ready_at
        body = json.dumps({"state": "ready" if ready else "loading"}).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-after", type=float, default=0, help="seconds of 503 on /health")
    parser.add_argument("--drain", type=float, default=0, help="seconds from SIGTERM to the end")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--exit", type=int, help="end at once with this code")
    parser.add_argument("--child", action="store_true", help="start a process that outlives this")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.exit is not None:
        print("the reason why it ended")
        return int(arguments.exit)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)

    def drain() -> None:
        time.sleep(arguments.drain)
        server.shutdown()

    def on_term(*_: object) -> None:
        if not arguments.ignore_term:
            threading.Thread(target=drain).start()

    signal.signal(signal.SIGTERM, on_term)
    if arguments.child:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print(f"child {child.pid}", flush=True)
    Health.ready_at = time.monotonic() + arguments.ready_after
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.05)
    print("ended by itself", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
