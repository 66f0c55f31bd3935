"""Check the whole system on this machine, step by step, and print a table of what was found.

    python tests/validate_integration.py

starts a registry, a router and two mock engines under babysitters on free ports, checks
registration, models, chat, stream, errors, failover and return, and stops everything again.

    python tests/validate_integration.py --registry http://host:18000 --router http://host:8000

checks a system that is already running; the two mock engines join it for the time of the check,
under a model name of their own. `--no-cleanup` leaves running what was started.

Exit code 0: every check passed; 1: one did not; 64: wrong flags. Logs stay after a failure.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from rig.processes import LISTENING, ROOT, free_port, wait_until

Json = dict[str, Any]

MODEL = f"integration-check-{os.getpid()}"
READY_SECONDS = 30.0
REQUESTS_AFTER_KILL = 20


class CheckFailed(Exception):  # noqa: N818 - reads as what happened
    """What was expected and what was there instead."""


class Service:
    """One program in the background, its output in a file."""

    def __init__(self, name: str, logs: Path, *argv: str) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

    def url(self) -> str:
        """The address it says it listens on."""

        def said() -> str:
            if self.process.poll() is not None:
                raise CheckFailed(f"{self.name} ended at once; see {self.log}")
            match = LISTENING.search(self.log.read_text(errors="replace"))
            return match.group(1) if match else ""

        return wait_until(said, READY_SECONDS, f"{self.name} listening")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM and wait; SIGKILL if it does not end. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


@dataclass(frozen=True)
class Result:
    """One line of the table; `fault` is empty for a check that passed."""

    name: str
    seconds: float
    detail: str
    fault: str


def get_json(url: str) -> Json:
    answer = requests.get(url, timeout=10)
    if not answer.ok:
        raise CheckFailed(f"{url} answers {answer.status_code}: {answer.text[:200]}")
    body: Json = answer.json()
    return body


def port_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class System:
    """The programs under check: what was given by address, and what was started here."""

    def __init__(self, registry: str | None, router: str | None) -> None:
        self.logs = Path(tempfile.mkdtemp(prefix="infinilm-check-"))
        self.started: dict[str, Service] = {}
        self._registry = registry
        self._router = router
        self.ports = {f"check-{os.getpid()}-{letter}": free_port() for letter in "ab"}

    def _start(self, name: str, *argv: str) -> Service:
        self.started[name] = Service(name, self.logs, *argv)
        return self.started[name]

    @property
    def registry(self) -> str:
        if self._registry is None:
            flags = ("--host", "127.0.0.1", "--port", "0", "--store", "memory")
            self._registry = self._start("registry", "registry/service_registry.py", *flags).url()
        return self._registry.rstrip("/")

    @property
    def router(self) -> str:
        if self._router is None:
            flags = ("--host", "127.0.0.1", "--router-port", "0", "--registry-url", self.registry)
            # Nobody else uses this router: no need to announce its end, or to remember its list.
            alone = ("--drain-delay", "0.1", "--state-dir", "none")
            script = "router-python/distributed_router.py"
            self._router = self._start("router", script, *flags, *alone).url()
        return self._router.rstrip("/")

    def start_engine(self, name: str) -> None:
        """A mock engine under a babysitter, registered at the registry."""
        config = self.logs / f"{name}.toml"
        config.write_text(
            f"name = {json.dumps(name)}\n"
            'host = "127.0.0.1"\n'
            f"port = {self.ports[name]}\n"
            f"registry_url = {json.dumps(self.registry)}\n"
            f"log_dir = {json.dumps(str(self.logs))}\n"
            "[babysitter]\nprobe_interval = 0.1\ndrain_settle = 0.5\ndrain_timeout = 5\n"
            f'[backend]\ntype = "mock"\nmodels = [{json.dumps(MODEL)}]\ntokens_per_second = 500\n'
        )
        script = "babysitter/enhanced_babysitter.py"
        self._start(name, script, "--config-file", str(config)).url()

    def healthy_engines(self) -> dict[str, str]:
        """Our engines that the registry calls healthy, each with its time of registration."""
        listed = get_json(f"{self.registry}/services?healthy=true")["services"]
        ours = {f"{name}-server": name for name in self.ports}
        return {
            ours[entry["name"]]: entry["timestamp"] for entry in listed if entry["name"] in ours
        }

    def chat(self, **more: Any) -> requests.Response:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Say hello"}],
            "max_tokens": 20,
        }
        key = os.environ.get("INFINILM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.router}/v1/chat/completions"
        return requests.post(url, json=body | more, headers=headers, timeout=30)

    def stop(self) -> dict[str, int]:
        """Stop what was started, engines first; exit code by name."""
        return {name: service.stop() for name, service in reversed(self.started.items())}


def check_registry(system: System) -> str:
    health = get_json(f"{system.registry}/health")
    return f"{system.registry}, {health['registered_services']} services"


def check_router(system: System) -> str:
    health = get_json(f"{system.router}/health")
    return f"{system.router}, {health['healthy_services']} engines healthy"


def check_registration(system: System) -> str:
    for name in system.ports:
        system.start_engine(name)
    everyone = system.ports.keys()
    wait_until(
        lambda: system.healthy_engines().keys() == everyone, READY_SECONDS, "both registered"
    )
    return f"{', '.join(everyone)} healthy"


def check_models(system: System) -> str:
    def listed() -> list[str]:
        ids = [model["id"] for model in get_json(f"{system.router}/v1/models")["data"]]
        return ids if MODEL in ids else []

    count = len(wait_until(listed, READY_SECONDS, f"{MODEL} in the router's list"))
    return f"{MODEL}, {count} in all"


def check_chat(system: System) -> str:
    answer = system.chat()
    if answer.status_code != 200:
        raise CheckFailed(f"status {answer.status_code}: {answer.text[:200]}")
    body = answer.json()
    if body["usage"]["completion_tokens"] != 20:
        raise CheckFailed(f"20 tokens expected: {body['usage']}")
    return f"{body['choices'][0]['message']['content'][:40]}..."


def check_stream(system: System) -> str:
    whole = system.chat().json()["choices"][0]["message"]["content"]
    answer = system.chat(stream=True)
    *events, last = [line[6:] for line in answer.content.split(b"\n") if line.startswith(b"data: ")]
    chunks = [json.loads(event) for event in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    if last != b"[DONE]" or text != whole:
        raise CheckFailed(f"the stream differs from the whole answer: {text!r}, end {last!r}")
    return f"{len(chunks)} chunks and [DONE]"


def check_unknown_model(system: System) -> str:
    answer = system.chat(model=f"{MODEL}-absent")
    if answer.status_code != 404:
        raise CheckFailed(f"404 expected, got {answer.status_code}: {answer.text[:200]}")
    code = answer.json()["error"]["code"]
    return f"404 {code}"


def check_failover(system: System) -> str:
    victim, port = next(iter(system.ports.items()))
    system.started[victim].kill()
    wait_until(lambda: not port_open(port), 10, f"the engine of {victim} gone with it")
    answers = [system.chat() for _ in range(REQUESTS_AFTER_KILL)]
    failed = [answer for answer in answers if answer.status_code != 200]
    if failed:
        worst = failed[0]
        raise CheckFailed(f"{len(failed)} of {len(answers)} failed: {worst.text[:200]}")
    return f"{victim} killed, {len(answers)} of {len(answers)} answered"


def check_return(system: System) -> str:
    victim = next(iter(system.ports))
    # The registry may still list the one that was killed: its lease has not run out yet.
    before = system.healthy_engines().get(victim)
    system.start_engine(victim)
    wait_until(
        lambda: system.healthy_engines().get(victim, before) != before,
        READY_SECONDS,
        f"{victim} registered again",
    )
    return f"{victim} started again and registered"


def check_cleanup(system: System) -> str:
    engines = [system.started[name] for name in system.ports]
    codes = {service.name: service.stop() for service in engines}
    if left := system.healthy_engines():
        raise CheckFailed(f"still registered: {list(left)}")
    codes |= system.stop()
    if wrong := {name: code for name, code in codes.items() if code}:
        raise CheckFailed(f"exit codes that are not 0: {wrong}")
    return f"{len(codes)} programs ended, nothing registered"


CHECKS: tuple[tuple[str, Callable[[System], str]], ...] = (
    ("registry", check_registry),
    ("router", check_router),
    ("registration", check_registration),
    ("models", check_models),
    ("chat", check_chat),
    ("stream", check_stream),
    ("unknown model", check_unknown_model),
    ("failover", check_failover),
    ("return", check_return),
)


def run_check(name: str, check: Callable[[System], str], system: System) -> Result:
    started = time.monotonic()
    detail = fault = ""
    try:
        detail = check(system)
    except (CheckFailed, AssertionError, requests.RequestException) as error:
        fault = str(error)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        fault = f"an answer of another form than agreed: {type(error).__name__}: {error}"
    return Result(name, time.monotonic() - started, detail, fault)


def show(result: Result) -> None:
    state = "FAIL" if result.fault else "PASS"
    text = result.fault or result.detail
    print(f"{state}  {result.name:<14} {result.seconds:6.1f} s  {text}", flush=True)


def run_checks(system: System) -> Iterator[Result]:
    """Each check after the one before it passed: later ones build on earlier ones."""
    for name, check in CHECKS:
        result = run_check(name, check, system)
        yield result
        if result.fault:
            return


def say_what_is_left(system: System) -> None:
    print("left running:")
    for name, service in system.started.items():
        if service.process.poll() is None:
            print(f"  {name:<14} pid {service.process.pid}  log {service.log}")


def address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://localhost:8000")
    return text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check the whole system on this machine.")
    add = parser.add_argument
    add("--registry", type=address, help="a running registry (default: start one)")
    add("--router", type=address, help="a running router on it (default: start one)")
    add("--no-cleanup", action="store_true", help="leave running what was started")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.router and not arguments.registry:
            parser.error("--router needs --registry, the one which that router reads")
    except SystemExit as error:
        return os.EX_USAGE if error.code else os.EX_OK
    system = System(arguments.registry, arguments.router)
    passed = False
    try:
        passed = validate(system, cleanup=not arguments.no_cleanup)
    finally:
        if arguments.no_cleanup:
            say_what_is_left(system)
        else:
            system.stop()
        if passed and not arguments.no_cleanup:
            shutil.rmtree(system.logs)
        else:
            print(f"logs: {system.logs}")
    return 0 if passed else 1


def validate(system: System, *, cleanup: bool) -> bool:
    """Run and print all checks; true if every one passed."""
    results = []
    for result in run_checks(system):
        show(result)
        results.append(result)
    if cleanup and not results[-1].fault:
        results.append(run_check("cleanup", check_cleanup, system))
        show(results[-1])
    faults = sum(bool(result.fault) for result in results)
    print(f"{len(results) - faults} of {len(results)} checks passed")
    return not faults


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
