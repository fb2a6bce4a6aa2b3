"""What the YAML file of `moekit agents` says, and everything about it that can be checked without a call."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from moekit.agents.config.strategy_configs import EnsembleConfig, RankConfig, RouteConfig, StrategyConfig
from moekit.config import Config
from moekit.core.errors import UsageError, did_you_mean
from moekit.core.validation import read_yaml, validate

_MOST_RETRIES = 20
BUDGETED_TOKENS = 1024
"""Of an answer where nobody says how many, and a budget or a limit of tokens can only be kept if there is a number."""
_REQUEST_PATHS = ("/chat/completions", "/completions", "/embeddings", "/models")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _url(url: str) -> str:
    """Check an address: it holds no secret, since errors, traces and the cache name it."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("is no URL") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL holds no name, password or key; name the variable that does in key_variable")
    if parts.scheme not in ("http", "https") or not host:
        bare = re.fullmatch(r"/*([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?(/.*)?", url)
        hint = f"write {_scheme(bare[1])}://{url.lstrip('/')}" if bare else f"one is {_EXAMPLE}"
        raise ValueError(f"{url!r} is no URL of a server; {hint}")
    if not re.fullmatch(r"[\w.:~-]+", host) or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError(f"{url!r} is no URL of a server; one is {_EXAMPLE}")
    url = url.rstrip("/")
    # What the client puts after the URL is often copied with it.
    return next((url.removesuffix(path) for path in _REQUEST_PATHS if url.endswith(path)), url).rstrip("/")


_EXAMPLE = "https://api.openai.com/v1"


def _scheme(host: str) -> str:
    """Guess the scheme of a host: servers of this machine and of the same net rarely have certificates."""
    return "http" if host == "localhost" or "." not in host or host.replace(".", "").isdecimal() else "https"


def _variable(name: str) -> str:
    """Check a variable's name, which errors tell; what cannot be one may be the key itself, and no error tells it."""
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(
            "is no name of an environment variable (letters, digits, _); the key stands in the variable, never here"
        )
    return name


class PriceConfig(Config):
    """Money for a million tokens, in whatever currency the budget is."""

    input: Money
    output: Money


class EndpointConfig(Config):
    """A server that speaks the OpenAI HTTP API, and what it allows.

    Attributes:
        url: up to and with `/v1`.
        key_variable: the environment variable that holds its key; None where it needs none.
        concurrency: the most requests under way at a time.
        requests_per_minute: the most in any 60 seconds; None for no limit.
        tokens_per_minute: the most in any 60 seconds, read and written; None for no limit.
    """

    url: Annotated[str, AfterValidator(_url)]
    key_variable: Annotated[str, AfterValidator(_variable)] | None = None
    concurrency: PositiveInt = 16
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None


class _AnyMemberConfig(Config):
    """What is said of every member.

    Attributes:
        context: the most tokens of prompt and answer together; None where nobody knows.
        max_tokens: the most tokens of an answer; None leaves it to the server (a local model: half of its context, at
            most 4,096), or, where a budget or tokens a minute are to be kept, to 1,024.
        temperature: None leaves it to the server; 0.7 is that of arXiv 2406.04692.
        price: what a million tokens cost; None where nobody knows.
    """

    context: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.7
    price: PriceConfig | None = None

    @model_validator(mode="after")
    def _leaves_room_for_a_prompt(self) -> "_AnyMemberConfig":
        if self.context is not None and self.max_tokens is not None and self.max_tokens >= self.context:
            raise ValueError(f"max_tokens: {self.max_tokens} leave no room for a prompt in a context of {self.context}")
        return self


class EndpointMemberConfig(_AnyMemberConfig):
    """A model behind an endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: str
    model: Annotated[str, Field(min_length=1)]


class LocalMemberConfig(_AnyMemberConfig):
    """A model in this process.

    Attributes:
        path: a folder, a GGUF file or a hub id.
    """

    kind: Literal["local"] = "local"
    path: Annotated[str, Field(min_length=1)]


def _kind_by_keys(config: Any) -> Any:
    """Add the kind, which a file does not name: a member with a path is a local model."""
    return {"kind": "local" if "path" in config else "endpoint"} | config if isinstance(config, dict) else config


MemberConfig = Annotated[
    Annotated[EndpointMemberConfig | LocalMemberConfig, Field(discriminator="kind")], BeforeValidator(_kind_by_keys)
]


class DeadlinesConfig(Config):
    """The most seconds of wall clock: of silence, and of the whole.

    Attributes:
        call: of silence in a call: until the first piece of its answer, with waits and retries, and between two pieces.
        layer: of the calls of a layer, which are made side by side.
        answer: of a whole answer. A call that still gets pieces then is cut off, and counts with what it has.
    """

    call: Seconds = 60.0
    layer: Seconds = 300.0
    answer: Seconds = 600.0


class BudgetConfig(Config):
    """The most that one answer may cost, in tokens read and written, and in money; None for no limit."""

    tokens: PositiveInt | None = None
    money: Annotated[Money, Field(gt=0)] | None = None


class CacheConfig(Config):
    """Where answers of members are kept.

    Attributes:
        folder: it holds a JSON file a call.
        mode: `only` replays: no call is made, and what is missing is an error.
    """

    folder: Path
    mode: Literal["use", "only"] = "use"


class AgentsConfig(Config):
    """Members and how they answer together.

    Attributes:
        endpoints: servers, by the names that members call them.
        members: models, by name.
        strategies: ways of answering, by name; a name can stand wherever a member's can.
        default: who answers where nobody is named; None for the last strategy, or else the only member.
        deadlines: the most seconds of silence, of a layer and of an answer.
        retries: the most of one call.
        hedge_after: seconds after which a call that has brought nothing is sent a second time; None for never.
        budget: the most that one answer may cost.
        cache: where answers of members are kept; None for nowhere.
    """

    endpoints: dict[str, EndpointConfig] = Field(default_factory=dict)
    members: Annotated[dict[str, MemberConfig], Field(min_length=1)]
    strategies: dict[str, StrategyConfig] = Field(default_factory=dict)
    default: str | None = None
    deadlines: DeadlinesConfig = DeadlinesConfig()
    retries: Annotated[NonNegativeInt, Field(le=_MOST_RETRIES)] = 2
    hedge_after: Seconds | None = None
    budget: BudgetConfig = BudgetConfig()
    cache: CacheConfig | None = None

    @property
    def default_name(self) -> str:
        """The strategy or member that answers where none is named."""
        return self.default or next(reversed(self.strategies or self.members))

    @property
    def names(self) -> tuple[str, ...]:
        """Strategies, then members: all that can be asked."""
        return (*self.strategies, *self.members)

    @property
    def is_budgeted(self) -> bool:
        """Whether answers have a budget, which can only be kept where their length has a limit."""
        return self.budget.tokens is not None or self.budget.money is not None

    def most_tokens_of(self, member: EndpointMemberConfig) -> int | None:
        """Find the most tokens of an answer of the member; None where its server decides."""
        counted = self.is_budgeted or self.endpoints[member.endpoint].tokens_per_minute is not None
        if member.max_tokens is not None or not counted:
            return member.max_tokens
        return BUDGETED_TOKENS if member.context is None else min(BUDGETED_TOKENS, max(1, member.context // 2))

    def members_of(self, name: str) -> frozenset[str]:
        """Find the members that `name` may ask; itself if it is one."""
        seen, unseen = set[str](), [name]
        while unseen:
            seen.add(part := unseen.pop())
            if part in self.strategies:
                unseen.extend(set(self.strategies[part].names()) - seen)
        return frozenset(seen & self.members.keys())

    @model_validator(mode="after")
    def _hangs_together(self) -> "AgentsConfig":
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def read_agents(path: Path, *, replay: bool = False) -> AgentsConfig:
    """Read a YAML file, and check every name, number and key variable in it; no call is made.

    Args:
        path: the file.
        replay: whether to answer from the cache alone, whatever mode the file says.

    Raises:
        UsageError: naming the file and the key that is wrong.
    """
    config = validate(AgentsConfig, read_yaml(path), where=str(path))
    if replay:
        if config.cache is None:
            raise UsageError(f"{path}: cache: a replay needs the folder of a cache.")
        config = config.model_copy(update={"cache": config.cache.model_copy(update={"mode": "only"})})
    if config.cache is None or config.cache.mode != "only":
        _check_keys(config, path, os.environ)
    return config


def key_of(name: str, endpoint: EndpointConfig, environment: Mapping[str, str]) -> str | None:
    """Find the key of an endpoint in the environment; None where it needs none.

    Raises:
        UsageError: naming the variable, where it is not set or cannot be sent.
    """
    if endpoint.key_variable is None:
        return None
    key = environment.get(endpoint.key_variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    problem = "holds characters that no header of a request can" if key else "is not set"
    raise UsageError(f"endpoints.{name}.key_variable: the environment variable {endpoint.key_variable} {problem}.")


def _check_keys(config: AgentsConfig, path: Path, environment: Mapping[str, str]) -> None:
    for name, endpoint in config.endpoints.items():
        try:
            key_of(name, endpoint, environment)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def _problems(config: AgentsConfig) -> Iterator[str]:
    """Yield what is wrong between the parts, first things first."""
    if both := sorted(set(config.members) & set(config.strategies)):
        yield f"strategies.{both[0]}: a member has this name too"
    if blank := [name for name in config.names if not name.strip()]:
        yield f"{blank[0]!r} is no name"
    for name, member in config.members.items():
        if isinstance(member, EndpointMemberConfig) and member.endpoint not in config.endpoints:
            yield f"members.{name}.endpoint: there is no endpoint {_unknown(member.endpoint, config.endpoints)}"
    for name, strategy in config.strategies.items():
        for part in strategy.names():
            if part not in config.names:
                yield f"strategies.{name}: there is no member or strategy {_unknown(part, config.names)}"
    if config.default is not None and config.default not in config.names:
        yield f"default: there is no member or strategy {_unknown(config.default, config.names)}"
    if config.default is None and not config.strategies and len(config.members) > 1:
        yield "default: say which member answers, or write a strategy"
    # Only now can names be followed.
    if circle := _circle(config):
        yield f"strategies.{circle[0]}: it asks itself ({' → '.join(circle)})"
    yield from _kinds(config)
    yield from _prices(config)


def _unknown(name: str, valid: Mapping[str, Any] | tuple[str, ...]) -> str:
    hint = did_you_mean(name, valid).rstrip(".") if valid else "there are none"
    return f"{name!r} ({hint})"


def _circle(config: AgentsConfig) -> tuple[str, ...]:
    """Find strategies that ask each other in a circle, beginning and ending with the same one; empty without one."""
    harmless = set(config.members)

    def search(path: tuple[str, ...]) -> tuple[str, ...]:
        for part in config.strategies[path[-1]].names():
            if part in path:
                return (*path[path.index(part) :], part)
            if part not in harmless and (circle := search((*path, part))):
                return circle
        harmless.add(path[-1])
        return ()

    return next((circle for name in config.strategies if name not in harmless and (circle := search((name,)))), ())


def _kinds(config: AgentsConfig) -> Iterator[str]:
    """Yield where a strategy needs a local model, or a model, and names something else."""
    for name, strategy in config.strategies.items():
        needed: tuple[str, ...] = ()
        if isinstance(strategy, EnsembleConfig):
            needed = strategy.members
        elif isinstance(strategy, RouteConfig) and strategy.by == "likelihood":
            needed = strategy.surprised
        elif isinstance(strategy, RankConfig) and strategy.by == "likelihood":
            needed = (strategy.judge,)
        for part in needed:
            if not isinstance(config.members.get(part), LocalMemberConfig):
                yield f"strategies.{name}: {part} is not a local model, and its probabilities are needed"
        if isinstance(strategy, RouteConfig) and strategy.embedding in config.strategies:
            yield f"strategies.{name}.embedding: {strategy.embedding} is a strategy and gives no vectors"


def _prices(config: AgentsConfig) -> Iterator[str]:
    """Yield members without a price where there is a budget of money; a local model costs none."""
    for name, member in config.members.items():
        if config.budget.money is not None and isinstance(member, EndpointMemberConfig) and member.price is None:
            yield f"members.{name}.price: a budget of money needs the price of every endpoint's model"
