"""An engine that does what a test tells it to and journals it, one JSON object a line."""

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).parents[2] / "tests"))
from rig.engine_faults import flood, fork_worker


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--folder", type=Path, required=True, help="journal and switches")
    parser.add_argument("--api-key")
    parser.add_argument("--worker", action="store_true", help="fork one that will not end")
    parser.add_argument("--no-reuse", action="store_true", help="as a server that forgot it")
    parser.add_argument("--silent", action="store_true", help="never listen")
    known, _ = parser.parse_known_args(argv)
    return known


class Journal:
    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, "time": time.monotonic(), "pid": os.getpid(), **fields})
        with self._file.open("a") as file:
            file.write(line + "\n")


class Handler(BaseHTTPRequestHandler):
    """Switches are files in the folder: a test creates and removes them at any time."""

    protocol_version = "HTTP/1.1"
    folder: Path
    journal: Journal
    api_key: str | None

    def do_GET(self) -> None:
        while (self.folder / "mute").exists():
            time.sleep(0.01)
        if (self.folder / "loading").exists():
            self.journal.write("refused", path=self.path)
            self.answer(503, {"error": {"message": "Loading model"}})
        elif self.path == "/hold":
            self.hold()
        elif self.path == "/health":
            self.answer(503 if (self.folder / "dead").exists() else 200, {})
        elif self.path in {"/v1/models", "/models"}:
            self.models()
        elif self.path == "/metrics" and (self.folder / "metrics").exists():
            self.journal.write("metrics")
            self.answer(200, (self.folder / "metrics").read_text())
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        """One token, whose making the metrics show afterwards as the test has laid down."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.journal.write("asked", path=self.path, body=body)
        after = self.folder / "metrics.after"
        if after.exists():
            after.replace(self.folder / "metrics")
        self.answer(404 if (self.folder / "no_completions").exists() else 200, {})

    def models(self) -> None:
        file = self.folder / "models.json"
        if self.api_key and self.headers["Authorization"] != f"Bearer {self.api_key}":
            self.answer(401, {"error": "key"})
        elif not file.exists() or self.path not in json.loads(file.read_text()):
            self.answer(404, {"detail": "Not Found"})
        else:
            names = json.loads(file.read_text())[self.path]
            self.answer(200, {"object": "list", "data": [model(name) for name in names]})

    def hold(self) -> None:
        """Half of the answer now, the rest when the test says so."""
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"half")
        while not (self.folder / "release").exists():
            time.sleep(0.01)
        self.wfile.write(b"done")
        self.close_connection = True

    def answer(self, status: int, body: object) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[:7])  # bodies come in pieces
        time.sleep(0.005)
        self.wfile.write(text[7:])

    def log_message(self, *_: object) -> None:
        pass


def model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": time.time(), "owned_by": "test"}


def flood_as_told(folder: Path, journal: Journal) -> None:
    """Write what the file `flood` asks for to both streams; journal how that went."""
    plan = json.loads((folder / "flood").read_text())
    while plan.get("wait") and not (folder / "go").exists():
        time.sleep(0.01)
    found = flood(plan)
    os.write(1, b"\n")
    journal.write("flooded", **{**found, "bytes": found["bytes"] + 1})


class Server(ThreadingHTTPServer):
    """Says nothing of clients that left: its output is what tests count."""

    daemon_threads = True

    def handle_error(self, *connection: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*connection)


class ServerOfBoth(Server):
    """Listens on IPv6 and on IPv4 as well."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(server: Server, folder: Path) -> None:
    """For ever; while the switch `closed` is on, nobody listens on the port."""
    while True:
        server.timeout = 0.05
        while not (folder / "closed").exists():
            server.handle_request()
        server.socket.close()
        while (folder / "closed").exists():
            time.sleep(0.01)
        again = type(server)(server.server_address, server.RequestHandlerClass)
        again.daemon_threads = True
        server = again


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def end_as_told(folder: Path) -> None:
    file = folder / "exit"
    if file.exists():
        code, _, seconds = file.read_text().partition(" ")
        time.sleep(float(seconds or 0))
        sys.stdout.write("about to end\n")
        sys.exit(int(code))


def main() -> None:
    args = parse()
    journal = Journal(args.folder / "journal")
    old = args.folder / "old_tree"
    journal.write(
        "start",
        argv=sys.argv[1:],
        token=os.environ.get("INFINILM_REGISTRY_TOKEN"),
        admin_token=os.environ.get("INFINILM_ADMIN_TOKEN"),
        old_alive=[pid for pid in json.loads(old.read_text()) if runs(pid)] if old.exists() else [],
    )
    sys.stdout.write("engine says hello\n")
    if (args.folder / "say").exists():
        sys.stdout.write((args.folder / "say").read_text())
    sys.stdout.flush()
    end_as_told(args.folder)

    def on_sigterm(*_: object) -> None:
        journal.write("sigterm")
        os._exit(0)

    if args.worker:
        fork_worker(with_child=True)
        (args.folder / "forked").write_text("yes")
    signal.signal(signal.SIGTERM, on_sigterm)
    if args.silent:
        while True:
            signal.pause()
    Handler.folder, Handler.journal, Handler.api_key = args.folder, journal, args.api_key
    Server.allow_reuse_address = not args.no_reuse
    server = (ServerOfBoth if ":" in args.host else Server)((args.host, args.port), Handler)
    if (args.folder / "flood").exists():
        threading.Thread(target=flood_as_told, args=(args.folder, journal), daemon=True).start()
    serve(server, args.folder)


if __name__ == "__main__":
    main()
