"""Hide secrets in what is logged or shown: values are recognised by the name beside them."""

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
SHORTEST_SECRET = 6
"""Shorter values (`1`, `true`) are found in harmless arguments too."""
SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
# A flag's words are compared whole: --api-key is secret, --max-tokens and --tokenizer are not.
SECRET_WORDS = frozenset({"key", "apikey", "token", "secret", "password", "passwd", "credential"})
WORD = re.compile(r"[a-z0-9]+")


def redact_env(env: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the values of those that sound secret hidden."""
    return {name: HIDDEN if SECRET_VARIABLE.search(name) else env[name] for name in env}


def redact_argv(argv: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """The command line without values of secret flags and without secrets of `env`."""
    secrets = [
        value
        for name, value in env.items()
        if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name)
    ]
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
            hide_next = False
            continue
        name, equals, _ = argument.partition("=")
        secret = _sounds_secret(name)
        hide_next = secret and not equals and argument.startswith("-")
        clean = f"{name}={HIDDEN}" if secret and equals else argument
        shown.append(_without(clean, secrets))
    return shown


def _sounds_secret(name: str) -> bool:
    return not SECRET_WORDS.isdisjoint(WORD.findall(name.lower()))


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
