#!/usr/bin/env python3
"""Write the service file (TOML) of InfiniLM-Rust from a deployment configuration and a template.

The configuration is JSON, `{"models": [{"name", "path", "gpus", "max_tokens", ...}]}`; the template
is one model's block, repeated for each. Exit codes: 0 written, 64 faults in flags or files (all are
reported), 74 the output cannot be written.
"""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from config_tools import (
    ConfigError,
    Parser,
    Rule,
    entry_faults,
    is_integer,
    read_json,
    read_text,
    write,
)

ROOT = Path(__file__).resolve().parent
TEST_CONFIG = {
    "models": [
        {
            "name": "test-model",
            "path": "/tmp/test-model.gguf",  # noqa: S108  # only written, never opened
            "gpus": [0],
            "max_tokens": 1024,
            "temperature": 0.7,
            "top_p": 0.9,
            "repetition_penalty": 1.02,
            "max_sessions": 1,
        }
    ]
}


def is_number(value: object, least: float, most: float = sys.float_info.max) -> bool:
    """Whether `value` is a number within the given bounds, both included."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_text(value: object) -> bool:
    """Whether `value` is a non-empty string that TOML can hold on one line."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]+", value) is not None
    )


def is_gpu_list(value: object) -> bool:
    """Whether `value` is a list of at least one device number."""
    return isinstance(value, list) and bool(value) and all(is_integer(gpu, 0) for gpu in value)


RULES: Mapping[str, Rule] = {
    "name": Rule(is_text, "a non-empty string without control characters"),
    "path": Rule(is_text, "a non-empty string without control characters"),
    "gpus": Rule(is_gpu_list, "a non-empty list of device numbers"),
    "max_tokens": Rule(lambda value: is_integer(value, 1), "an integer of at least 1"),
    "temperature": Rule(lambda value: is_number(value, 0), "a number of at least 0"),
    "top_p": Rule(lambda value: is_number(value, 0, 1), "a number from 0 to 1"),
    "repetition_penalty": Rule(lambda value: is_number(value, 0), "a number of at least 0"),
    "top_k": Rule(lambda value: is_integer(value, 0), "an integer of at least 0", False),
    "think": Rule(lambda value: isinstance(value, bool), "true or false", False),
    "max_sessions": Rule(lambda value: is_integer(value, 1), "an integer of at least 1", False),
    "gpu_memory_utilization": Rule(
        lambda value: is_number(value, 0, 1), "a number from 0 to 1", False
    ),
}


def check_config(source: str, config: object) -> list[dict[str, object]]:
    """The models of a configuration read from `source`; ConfigError with all its faults."""
    if not isinstance(config, dict) or not isinstance(config.get("models"), list):
        raise ConfigError([f'{source}: expected {{"models": [...]}} at the top'])
    faults = [
        f"{source}: unknown key {key!r}; only models is known" for key in config if key != "models"
    ]
    models: list[object] = config["models"]
    if not models:
        faults.append(f"{source}: models is empty; give at least one model")
    for index, model in enumerate(models):
        faults += entry_faults(f"{source}: models[{index}]", model, RULES)
    tables: list[dict[str, object]] = [model for model in models if isinstance(model, dict)]
    names = [table.get("name") for table in tables]
    faults += [
        f"{source}: models: {name!r} is there {names.count(name)} times; names must differ"
        for name in dict.fromkeys(filter(is_text, names))
        if names.count(name) > 1
    ]
    if faults:
        raise ConfigError(faults)
    return tables


def toml_key(name: str) -> str:
    """`name` as a TOML key: bare where that is allowed, else quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_value(value: object) -> str:
    """`value` (string, number, boolean, list of integers) in TOML, which is written as in JSON."""
    return json.dumps(value, ensure_ascii=False)


def render_model(lines: Sequence[str], model: Mapping[str, object]) -> str:
    """The template's lines with one model's values, without the lines it has no value for."""
    values = {key: toml_value(value) for key, value in model.items()}
    values["name"] = toml_key(str(model["name"]))
    templates = [Template(line) for line in lines]
    return "\n".join(
        template.substitute(values)
        for template in templates
        if all(name in values for name in template.get_identifiers())
    )


def line_faults(where: str, line: str) -> list[str]:
    """Every fault of one line of a template."""
    template = Template(line)
    faults = [
        f"{where}: unknown value ${name}; known are {', '.join(RULES)}"
        for name in template.get_identifiers()
        if name not in RULES
    ]
    if not template.is_valid():
        faults.append(f"{where}: {line.strip()!r} has a stray $; write $$ for a dollar sign")
    return faults


def template_lines(source: str, text: str) -> list[str]:
    """The lines of a template without its comments; ConfigError with all its faults."""
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if not line.lstrip().startswith("#")
    ]
    faults = [
        fault for number, line in numbered for fault in line_faults(f"{source}:{number}", line)
    ]
    if not any("name" in Template(line).get_identifiers() for _, line in numbered):
        faults.append(f"{source}: no line uses $name; the model's table needs it, as in [$name]")
    if faults:
        raise ConfigError(faults)
    return [line for _, line in numbered]


def render(template_source: str, template: str, models: Sequence[Mapping[str, object]]) -> str:
    """The whole service file; ConfigError if the template does not make valid TOML of it."""
    lines = template_lines(template_source, template)
    text = "\n\n".join(render_model(lines, model).strip("\n") for model in models) + "\n"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{template_source}: the result is not TOML: {error}"]) from None
    return text


def find_file(name: str, folder: Path) -> Path:
    """The file called `name`: as given (from the current folder) if it exists, else in `folder`."""
    return Path(name) if Path(name).is_file() else folder / name


def build(arguments: argparse.Namespace) -> str:
    """The service file that the arguments ask for; ConfigError with the faults of both files."""
    faults: list[str] = []
    models: list[dict[str, object]] = []
    template_path = find_file(arguments.template, arguments.templates_dir)
    config_path = None if arguments.test else find_file(arguments.config, arguments.configs_dir)
    try:
        config = TEST_CONFIG if config_path is None else read_json(config_path)
        models = check_config(str(config_path or "--test"), config)
    except ConfigError as error:
        faults += error.faults
    try:
        text = render(str(template_path), read_text(template_path), models)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if faults:
        raise ConfigError(faults)
    return text


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="service.toml.template", help="template file")
    parser.add_argument("--config", help="deployment configuration, as test_services.json")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    parser.add_argument(
        "--test", action="store_true", help="use a built-in test model as configuration"
    )
    parser.add_argument("--templates-dir", type=Path, default=ROOT / "templates")
    parser.add_argument("--configs-dir", type=Path, default=ROOT / "deployment_configs")
    arguments = parser.parse_args(argv)
    if not arguments.test and not arguments.config:
        parser.error("give --config FILE or --test")
    return arguments


def main() -> int:
    """Render and write; returns the exit code."""
    arguments = parse_arguments()
    return write(lambda: build(arguments), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
