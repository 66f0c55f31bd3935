"""Run llama.cpp's own HTTP server, from the wheel `xllamacpp`, as a program in the foreground.

Started by the babysitter with a backend of type `command`, it behaves like `llama-server`:
the port answers 503 while the model loads, SIGTERM cuts what runs and ends the process.
"""

import argparse
import os
import signal
from types import FrameType

import xllamacpp


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_server", description=__doc__)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port (default)")
    parser.add_argument("--alias", default="tiny-count", help="model id (default %(default)s)")
    parser.add_argument("--context", type=int, default=8192, help="tokens of all slots together")
    parser.add_argument("--slots", type=int, default=2, help="requests answered at once")
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings, mean-pooled")
    return parser.parse_args()


def _parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.model
    parameters.model_alias = {arguments.alias}
    parameters.hostnames = [arguments.host]
    parameters.port = arguments.port
    parameters.n_ctx = arguments.context
    parameters.n_parallel = arguments.slots
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.embedding = arguments.embeddings
    if arguments.embeddings:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return parameters


def _end(_number: int, _frame: FrameType | None) -> None:
    # The wheel's destructor waits for running answers; llama-server's own handler does not.
    os._exit(0)


def main() -> None:
    arguments = _arguments()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    server = xllamacpp.Server(_parameters(arguments))
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
