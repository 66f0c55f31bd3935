"""The commands of `router_client.py`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from infinilm_router.client import DEFAULT_URL, ClientError, Json, RouterClient

_LOOKS: dict[str, Callable[[RouterClient], Json | list[Json]]] = {
    "health": RouterClient.health,
    "status": RouterClient.status,
    "stats": RouterClient.stats,
    "services": RouterClient.services,
    "models": RouterClient.models,
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="router_client.py", description="Talk to a router.")
    parser.add_argument("--router", default=DEFAULT_URL, help="its address (default %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="longest silence in seconds (default 600)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, call in _LOOKS.items():
        commands.add_parser(name, help=(call.__doc__ or "").splitlines()[0])
    chat = commands.add_parser("chat", help="ask a question and print the answer as it comes")
    chat.add_argument("message", help="what to say")
    chat.add_argument("--model", help="model id; without it any engine may answer")
    chat.add_argument("--max-tokens", type=int, help="longest answer")
    chat.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    return parser


def _chat(client: RouterClient, arguments: argparse.Namespace) -> None:
    messages = [{"role": "user", "content": arguments.message}]
    options = {} if arguments.max_tokens is None else {"max_tokens": arguments.max_tokens}
    if arguments.no_stream:
        answer = client.chat(messages, arguments.model, **options)
        sys.stdout.write(answer["choices"][0]["message"]["content"] + "\n")
        return
    for chunk in client.chat_stream(messages, arguments.model, **options):
        for choice in chunk.get("choices", []):
            sys.stdout.write(choice.get("delta", {}).get("content") or "")
        sys.stdout.flush()
    sys.stdout.write("\n")


def _run(arguments: argparse.Namespace) -> None:
    api_key = os.environ.get("INFINILM_API_KEY")
    with RouterClient(arguments.router, api_key=api_key, timeout=arguments.timeout) as client:
        if arguments.command == "chat":
            _chat(client, arguments)
        else:
            shown = _LOOKS[arguments.command](client)
            sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 failed, 64 bad command line)."""
    try:
        arguments = _build_parser().parse_args(argv)
    except SystemExit as error:
        # argparse has said what it wants; its own code for that would be 2.
        return os.EX_USAGE if error.code else os.EX_OK
    try:
        _run(arguments)
    except ClientError as error:
        sys.stderr.write(f"router_client: {error}\n")
        return 1
    return os.EX_OK
