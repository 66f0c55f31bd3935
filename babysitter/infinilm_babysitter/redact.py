"""Hide secrets in what is logged or shown: values are recognised by the name beside them."""

import re
from collections.abc import Callable, Iterable, Mapping

HIDDEN = "***"
SHORTEST_SECRET = 6
"""Shorter values (`1`, `true`) are found in harmless arguments too."""
SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
# A flag's words are compared whole: --api-key is secret, --max-tokens and --tokenizer are not.
SECRET_WORDS = frozenset({"key", "apikey", "token", "secret", "password", "passwd", "credential"})
WORD = re.compile(r"[a-z0-9]+")
BEARER = re.compile(r"(?i)\b(bearer|basic) +[^\s\"',}]+")
NAMED_VALUE = re.compile(
    r"""(?ix)
    ((?: api[-_]?key | token | secret | password | passwd | credential ) ["']? \s* [:=] \s*
    [\["']*)
    ([^\s"',}\]]{6,})
    """
)
"""A value beside a name that sounds secret, as programs print settings and headers."""


def redact_env(env: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the values of those that sound secret hidden."""
    return {name: HIDDEN if SECRET_VARIABLE.search(name) else env[name] for name in env}


def secrets_of_env(env: Mapping[str, str]) -> list[str]:
    """The values of variables that sound secret."""
    return [
        value
        for name, value in env.items()
        if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name)
    ]


def redact_argv(argv: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """The command line without values of secret flags and without secrets of `env`."""
    secrets = secrets_of_env(env)
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


def secrets_of_argv(argv: Iterable[str]) -> list[str]:
    """The values of flags that sound secret."""
    words = list(argv)
    shown = redact_argv(words, {})
    pairs = zip(words, shown, strict=True)
    hidden = (
        word.partition("=")[2] if "=" in show else word for word, show in pairs if word != show
    )
    return [value for value in hidden if len(value) >= SHORTEST_SECRET]


class Redactor:
    """Cleans lines of an engine's log of the secrets that are known now, and of what looks so."""

    def __init__(self, secrets: Callable[[], Iterable[str]]) -> None:
        self._secrets = secrets

    def clean(self, line: str) -> str:
        """The line as it may be shown."""
        line = _without(line, self._secrets())
        line = BEARER.sub(rf"\1 {HIDDEN}", line)
        return NAMED_VALUE.sub(_hidden_unless_number, line)


def _hidden_unless_number(match: re.Match[str]) -> str:
    value = match[2]
    return match[0] if value.replace(".", "").isdigit() else f"{match[1]}{HIDDEN}"
