"""Settings of the service: environment variables MUFIN_*, each also a flag of mufin-serve.

The only place of the service that reads the environment; knows no bundle and opens nothing but secret files.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError
from service.hosts import HostRefused, allowed_hosts, dialled_host, written_host

Names = Annotated[tuple[str, ...], NoDecode]
Ports = Annotated[tuple[int, ...], NoDecode]

_USUAL_PORTS = {"http": 80, "https": 443}


class Settings(BaseSettings):
    """Every knob of the service. Frozen: read once at the edge, then passed."""

    model_config = SettingsConfigDict(
        env_prefix="MUFIN_",
        frozen=True,
        use_attribute_docstrings=True,
        cli_prog_name="mufin-serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    # Where to listen
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of IPv4."""
    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port; 0 takes a free one and prints it."""
    admin_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port for /metrics and /bundles; unset: they stay on the main port."""
    keep_alive_seconds: int = Field(default=65, ge=1)
    """How long an idle connection is kept; above the load balancer's own (usually 60 s)."""
    head_seconds: float = Field(default=10.0, gt=0)
    """How long a request's head may take to arrive; then its connection is closed."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """After SIGTERM: how long to go on accepting, with readiness false and Connection: close."""
    finish_seconds: int = Field(default=25, ge=0)
    """After draining: how long requests under way may take to finish."""

    # What to serve
    recommend_bundle: Path | None = None
    """Bundle folder behind POST /recommend, or a link to one; unset: the endpoint answers 404."""
    bid_queries_bundle: Path | None = None
    """Bundle folder behind POST /bid-queries, or a link to one; unset: the endpoint answers 404."""
    bundle_poll_seconds: float = Field(default=2.0, ge=0)
    """How often to look whether these name other bundles, which then replace those being served; 0: never."""
    verify_bundles: Literal["full", "structure"] = "full"
    """full checks every hash; structure is for a volume that mufin-export has already verified."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where titles and images are encoded; cuda needs onnxruntime-gpu and runs the fp32 graphs."""
    resident_records: bool = False
    """Copy label records to memory at the start; else they are mapped files, whose pages the system may drop."""

    # What not to return
    recommend_block_file: Path | None = None
    """File of label ids never returned by /recommend for now, one a line, read again when it changes; unset: none."""
    recommend_block_set: str | None = None
    """The same as a set in Redis, by its key."""
    bid_queries_block_file: Path | None = None
    """File of label ids never returned by /bid-queries for now; unset: none."""
    bid_queries_block_set: str | None = None
    """The same as a set in Redis, by its key."""
    block_poll_seconds: float = Field(default=2.0, gt=0)
    """How often to look at block files and sets."""

    # Time and amounts
    deadline_milliseconds: int = Field(default=800, ge=10)
    """Time for an answer when the caller does not say."""
    max_deadline_milliseconds: int = Field(default=5000, ge=10)
    """Longest X-Request-Timeout-Ms, and the deadline of a whole batch request."""
    image_reserve_milliseconds: int = Field(default=100, ge=0)
    """Least time kept for ranking: images not there by deadline minus reserve are dropped."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024, le=64 << 20)
    """Largest request body. Data-URL images need more: 8388608 (8 MiB) is a good value for them."""
    max_batch_products: int = Field(default=32, ge=1, le=1000)
    """Products in one batch request."""
    max_batch_images: int = Field(default=32, ge=0, le=1000)
    """Images in one batch request, all products together."""

    # Work
    worker_threads: int | None = Field(default=None, ge=1, le=256)
    """Threads that run the models; unset: the cores this process may use, divided by intra_op_threads."""
    intra_op_threads: int = Field(default=1, ge=1, le=256)
    """Threads inside one model call; more helps a lone request and costs throughput."""
    max_waiting_items: int = Field(default=256, ge=1)
    """Titles, images and products waiting for a worker; beyond it requests are answered 429."""
    max_requests_in_flight: int = Field(default=512, ge=1)
    """Requests being answered at once, those that wait for pictures included; beyond it 429."""
    max_title_batch: int = Field(default=32, ge=1)
    """Titles encoded in one call."""
    max_image_batch: int = Field(default=8, ge=1)
    """Images encoded in one call."""
    max_rank_batch: int = Field(default=16, ge=1)
    """Products ranked in one call, but for those whose titles were encoded in one: they stay together."""
    longest_batch_milliseconds: float = Field(default=80.0, gt=0)
    """What a model call of several items may take; slow items go in smaller calls, or alone."""
    decode_threads: int | None = Field(default=None, ge=1, le=256)
    """Threads that decode pictures; unset: as many as worker threads."""
    decode_budget_pixels: int = Field(default=25_000_000, ge=1)
    """Pixels being decoded at once, all pictures together, 34 bytes a pixel at most; a larger picture is decoded alone."""
    hung_after_seconds: float = Field(default=30.0, gt=0)
    """A model call longer than this turns /livez red."""

    # Cache
    cache_bytes: int = Field(default=256 << 20, ge=0)
    """In-process cache of embeddings; 0 turns it off."""
    url_fresh_seconds: float = Field(default=3600.0, ge=0)
    """How long a picture's URL stands for the content last seen, before it is asked again."""
    url_failed_seconds: float = Field(default=60.0, ge=0)
    """How long a picture's URL that failed is not tried again."""
    redis_url: SecretStr | None = None
    """redis:// or rediss:// URL of a shared cache; unset: the in-process cache alone serves."""
    redis_url_file: Path | None = None
    """File holding redis_url, for secrets mounted as files."""
    redis_timeout_milliseconds: int = Field(default=50, ge=1)
    """Longest wait for the shared cache; then the request goes on without it."""
    redis_ttl_seconds: int = Field(default=7 * 86400, ge=1)
    """How long the shared cache keeps an embedding."""

    # Fetching pictures
    fetch_allow_http: bool = False
    """Fetch pictures by plain http, too."""
    fetch_ports: Ports = (80, 443)
    """Ports that pictures may be fetched from, comma separated."""
    fetch_allowed_hosts: Names = ()
    """Hosts that pictures may come from, comma separated: exact, or .example.com for all below it; empty: any."""
    fetch_trusted_origins: Names = ()
    """Own picture servers, scheme://host:port, comma separated: exempt from scheme, port and address rules."""
    fetch_connect_seconds: float = Field(default=1.0, gt=0)
    """Longest wait for a connection, name lookup included."""
    fetch_first_byte_seconds: float = Field(default=1.5, gt=0)
    """Longest wait for each read, the first byte included."""
    fetch_total_seconds: float = Field(default=2.5, gt=0)
    """Longest fetch of one picture, redirects included."""
    fetch_min_bytes_per_second: int = Field(default=8192, ge=0)
    """Slowest picture server that is waited for, judged after the first half second."""
    max_image_bytes: int = Field(default=8 << 20, ge=1024)
    """Largest encoded picture."""
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    """Most pixels of a picture."""
    max_fetches: int = Field(default=64, ge=1)
    """Pictures being fetched at once."""
    max_fetches_per_host: int = Field(default=8, ge=1)
    """Of these, from one host."""

    # Access
    api_keys: SecretStr | None = None
    """Keys as NAME:SHA256HEX:SCOPE+SCOPE, comma separated; scopes are recommend, bid-queries, admin; unset: open."""
    api_keys_file: Path | None = None
    """File holding api_keys, one a line; lines that begin with # are comments."""
    rate_per_second: float | None = Field(default=None, gt=0)
    """Products a second that the keys of one name may ask for, where the key's own entry says nothing; unset: any."""
    rate_burst: int = Field(default=100, ge=1)
    """Products that a caller within its rate may ask for at once."""
    cors_origins: Names = ()
    """Origins whose pages may call from a browser, comma separated: https://shop.example; * for all; empty: none."""

    # Saying what happens
    event_share: float = Field(default=0.0, ge=0, le=1)
    """Share of answers that are logged as a line of their own (bundle_id, label ids, probabilities), to evaluate offline."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged; titles and URLs are never logged above debug."""

    @field_validator("port", mode="before")
    @classmethod
    def _explain_service_links(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                f"MUFIN_PORT is {value}: Kubernetes set it for a Service named mufin; set enableServiceLinks: false"
            )
        return value

    @field_validator("fetch_ports", "fetch_allowed_hosts", "fetch_trusted_origins", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        "recommend_bundle", "bid_queries_bundle", "recommend_block_file", "recommend_block_set",
        "bid_queries_block_file", "bid_queries_block_set", "redis_url_file", "api_keys_file", mode="before",
    )  # fmt: skip
    @classmethod
    def _refuse_empty(cls, value: object, info: ValidationInfo) -> object:
        if value == "":
            # A path would be the folder that the process stands in.
            raise ValueError(f"{info.field_name} is empty: name something, or unset it")
        return value

    @field_validator("fetch_ports")
    @classmethod
    def _check_ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        foul = [port for port in value if not 1 <= port <= 65535]
        if foul or not value:
            raise ValueError(
                f"fetch_ports holds {foul[0] if foul else 'no port'}: name ports from 1 to 65535, like 443"
            )
        return value

    @field_validator("fetch_allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_allowed_host(text) for text in value)

    @field_validator("fetch_trusted_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("{}://{}:{}".format(*_origin(text, "trusted origin", "http://127.0.0.1:8081")) for text in value)

    @field_validator("cors_origins")
    @classmethod
    def _check_cors_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text if text == "*" else _browser_origin(text) for text in value)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.deadline_milliseconds > self.max_deadline_milliseconds:
            raise ValueError(
                f"deadline_milliseconds is {self.deadline_milliseconds}, "
                f"max_deadline_milliseconds only {self.max_deadline_milliseconds}: raise the second"
            )
        for name in ("redis_url", "api_keys"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"{name} and {name}_file are both set: keep one")
        if self.rate_per_second is not None and self.api_keys is None and self.api_keys_file is None:
            raise ValueError("rate_per_second is set without api_keys: callers are told apart by their keys, set some")
        for endpoint in ("recommend", "bid_queries"):
            file, key = f"{endpoint}_block_file", f"{endpoint}_block_set"
            if getattr(self, file) is not None and getattr(self, key) is not None:
                raise ValueError(f"{file} and {key} are both set: keep one")
            if getattr(self, key) is not None and self.redis_url is None and self.redis_url_file is None:
                raise ValueError(f"{key} is set without redis_url: set it, or use {file}")
        if self.admin_port is not None and self.admin_port == self.port:
            raise ValueError(f"admin_port and port are both {self.port}: choose another or leave admin_port unset")
        return self

    @property
    def listens_beyond_loopback(self) -> bool:
        """Whether other machines can reach the service."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    def read_redis_url(self) -> str | None:
        """The shared cache's URL, from wherever it was given."""
        return _secret(self.redis_url, self.redis_url_file, "redis_url_file")

    def read_api_keys(self) -> tuple[str, ...]:
        """One entry a key, from wherever they were given; empty: no key is asked for."""
        text = _secret(self.api_keys, self.api_keys_file, "api_keys_file") or ""
        lines = (line.strip() for line in text.replace(",", "\n").splitlines())
        entries = tuple(line for line in lines if line and not line.startswith("#"))
        if not entries and (self.api_keys is not None or self.api_keys_file is not None):
            where = "api_keys" if self.api_keys is not None else f"api_keys_file {self.api_keys_file}"
            raise SettingsError(f"{where} holds no key: add one, or unset it to serve all")
        return entries


def traces_wanted() -> bool:
    """Whether OpenTelemetry's own variables name a collector. Raises SettingsError for a protocol that is not spoken."""
    own = os.environ
    endpoint = own.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or own.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = own.get("OTEL_SDK_DISABLED", "").lower() == "true" or own.get("OTEL_TRACES_EXPORTER", "") == "none"
    if not endpoint or off:
        return False
    protocol = own.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or own.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        remedy = "set it to http/protobuf, and the endpoint to the collector's HTTP port (usually 4318)"
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, spoken is http/protobuf: {remedy}")
    if not endpoint.startswith(("http://", "https://")):
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://, like http://collector:4318"
        )
    return True


def _secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name} {file} cannot be read ({error}): check path and rights") from error


def _allowed_host(text: str) -> str:
    """An entry of the allow list, its host as check_url writes it."""
    try:
        below, host = allowed_hosts(text)
    except HostRefused as error:
        remedy = "name hosts alone, like shop.example or .shop.example, without scheme, port and path; empty allows any"
        raise ValueError(f"allowed host {text!r} is none: {remedy}") from error
    return f".{host}" if below else written_host(host)


def _origin(text: str, kind: str, example: str) -> tuple[str, str, int]:
    """Scheme, host as check_url writes it, and port of scheme://host:port."""
    if "@" in text:
        raise ValueError(f"{kind} must not hold a user name; it looks like {example}")
    try:
        parts = urlsplit(text)
        usual = _USUAL_PORTS[parts.scheme]
        host, port = dialled_host(parts.hostname or "", parts.netloc.startswith("[")), parts.port
        if parts.path.strip("/") or parts.query or parts.fragment or port == 0:
            raise ValueError("more than an origin, or port 0")
    except (KeyError, ValueError, HostRefused) as error:
        raise ValueError(f"{kind} {text!r} must look like {example}") from error
    return parts.scheme, written_host(host), usual if port is None else port


def _browser_origin(text: str) -> str:
    """An origin as browsers send it: lower case ASCII, no path, no default port."""
    scheme, host, port = _origin(text, "CORS origin", "https://shop.example")
    return f"{scheme}://{host}" + ("" if port == _USUAL_PORTS[scheme] else f":{port}")
