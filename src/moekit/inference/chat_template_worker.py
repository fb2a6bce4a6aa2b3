"""The process that renders chat templates: `python -I chat_template_worker.py`.

A template is a program that somebody else wrote. Jinja's sandbox keeps it from attributes, but not from filling memory
or running forever; a process can be limited, and ended. One JSON object a line comes in, one goes out. Nothing here
imports moekit, so that the process starts quickly.
"""

import json
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY_BYTES = 1_000_000_000


class _Generation(Extension):
    """The block `{% generation %}`, which marks what training is to learn; here its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - so declared by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give the statements that the block encloses."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(source: str, variables: dict[str, Any]) -> str:
    """Render the template as transformers does (utils/chat_template_utils.py of transformers 5.23).

    Blocks are trimmed, loop controls work, and there are `raise_exception`, `strftime_now` and a `tojson` that escapes
    no HTML.

    Raises:
        jinja2.TemplateError: and whatever else Python raises at what the template does.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source).render(variables)


def main() -> None:
    """Answer requests until the input ends.

    An answer is `{"text": …}`; `{"refusal": …}` with what the template raises itself; `{"failure": …}` with what Python
    and Jinja raise; `{"error": …}` where it takes too much.
    """
    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"text": render(request["source"], request["variables"])}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:  # noqa: BLE001 - a template can raise anything; it goes to who asked
            kind = "refusal" if isinstance(error, _Refusal) else "failure"
            answer = {kind: " ".join(str(error).split()) or type(error).__name__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return  # not on every system; the limit of time is left
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Refusal(jinja2.TemplateError):
    """What a template raises itself."""


def _raise(message: str) -> None:
    raise _Refusal(message)


if __name__ == "__main__":
    main()
