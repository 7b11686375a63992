"""Settings: environment variables NOTELLM_*, read once at start."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.generation import HashtagPolicy

PREFIX = "NOTELLM_"
HOST = re.compile(r"\*|[\w.-]+")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?")
EVENT_TYPE = re.compile(r"(?P<name>[a-z][a-z0-9_]{0,31})=-?\d{1,6}(\.\d{1,6})?")
BOOTSTRAP_KEY = re.compile(r"[\x21-\x7e]{32,200}")
WORDS_WEIGHT = 0.5
"""Weight of words relative to vectors with weight 1: best on validation for vectors that were not trained on the
community (docs/log/words.md)."""
DEFAULT_BODY_MEMORY = 256 * 2**20
MAX_NUMBER = 1e10
"""Bound on settings that are decimal numbers: as seconds it is 300 years, which the store's times can hold."""


class Settings(BaseSettings):
    """All settings with their defaults. `make tables` writes docs/configuration.md from these descriptions."""

    # An error names the setting and not its value, which may hold a password.
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="a port for /metrics, /keys, /audit, /tenants, /verify and POST /notes/import, which are then 404 "
        "on the other one; without it they are there",
    )
    readers: int = Field(
        0,
        ge=0,
        le=16,
        description="further processes that answer reads on the same port, each on a core of its own; Linux alone",
    )
    tls_certificate: Path | None = Field(
        None, description="a file with the certificate and its chain: HTTPS on every port; read again when it changes"
    )
    tls_key: Path | None = Field(None, validate_default=True, description="a file with the key of this certificate")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins of web pages that may call the service, as https://example.org, separated by commas"
    )
    bootstrap_key: SecretStr | None = Field(
        None,
        description="an API key with all scopes, of 32 or more characters, for example of `openssl rand -hex 32`; with "
        "it every request needs a key",
    )
    bootstrap_key_file: Path | None = Field(None, description="a file that holds this key, instead")
    insecure: bool = Field(
        False,
        description="1: without a bootstrap key, listen on an address that other machines reach: for a service behind "
        "a proxy that decides who may call",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names in the Host header at which a service without keys answers, beside its addresses, localhost "
        "and its `host`, separated by commas; * for any, where a proxy decides who may call",
    )
    data_dir: Path = Field(
        Path("~/.local/share/notellm"), description="the embedded store's files, and snapshots of the index"
    )
    cache_dir: Path = Field(Path("~/.cache/notellm"), description="converted weights; safe to delete")
    redis_url: SecretStr | None = Field(None, description="a Redis to use; unset: the embedded server")
    store_memory_bytes: int | None = Field(
        None,
        ge=16 * 2**20,
        description="memory of the embedded server, which refuses writes beyond; without it two fifths of the "
        "machine's or container's; refused beside NOTELLM_REDIS_URL, whose server has a maxmemory of its own",
    )
    item_cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="memory for what answers say of notes, which is kept until they change; 0: none is kept",
    )
    neighbour_cache_bytes: int = Field(
        32 * 2**20,
        ge=0,
        description="memory for lists of nearest notes and for the changes that they are compared with; a list is kept "
        "until a change may alter it; 0: none is kept, and each read searches",
    )
    checkpoint: str | None = Field(
        None, description="checkpoint folder, backbone folder or hub name; without it the shipped checkpoint"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    index_device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the index is searched; cuda needs a FAISS that is built for it"
    )
    runtime: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="what runs the model's layers; auto: OpenVINO on a CPU where it can, else PyTorch"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="precision of the model; auto: that of an int8 export, else bfloat16 where "
        "it is faster, else float32",
    )
    categories: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="what a note's category is chosen from, separated by commas; without it the checkpoint's own"
    )
    min_category_probability: float = Field(
        0.3,
        ge=0,
        le=1,
        description="least probability of a category that `?generate=category` gives a note; where the best is less "
        "probable it gets none",
    )
    min_hashtag_score: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least score of hashtags that `?generate=hashtags` gives a note, where `min_score` does not say",
    )
    hashtag_policy: HashtagPolicy = Field(
        "grounded", description="open, known or grounded: what generated hashtags may be, where a request does not say"
    )
    blocked_hashtags: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hashtags that are never generated, separated by commas"
    )
    filter_attributes: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names of notes' attributes, each of few values, that `attribute` of similar may ask about, "
        "separated by commas; a name has no colon",
    )
    sample_notes: int | None = Field(
        None,
        ge=0,
        description="sample notes to load on the first start; unset: all, or none where NOTELLM_REDIS_URL is set",
    )
    snapshot_seconds: float = Field(
        60.0,
        ge=0,
        description="least seconds between two snapshots of a changed index; longer where a snapshot takes long; 0: no "
        "snapshots",
    )
    purge_seconds: float = Field(
        0.0,
        ge=0,
        description="how often what was removed is purged from the files of store and snapshots, once for all "
        "replicas; 0: only by `notellm purge`",
    )
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")
    log_sample: float = Field(
        1.0, ge=0, le=1, description="share of the log lines of fast answers below 400 that are written; all others are"
    )

    batch_tokens: int = Field(1024, ge=1, description="most prompt tokens that begin with one step of the engine")
    batch_notes: int = Field(32, ge=1, description="most notes that the engine reads at a time")
    queue_notes: int = Field(
        2000,
        ge=1,
        description="most notes waiting for the engine; of several tenants each has half of what is left",
    )
    queue_seconds: float = Field(
        3.0, gt=0, description="most seconds of the engine's work waiting in the interactive lane; more get 429"
    )
    interactive_seconds: float = Field(
        10.0, gt=0, description="deadline of a request about one note that names none in X-Request-Timeout"
    )
    request_seconds: float = Field(60.0, gt=0, description="longest deadline of a request, and that of a list")
    drain_seconds: float = Field(
        5.0,
        ge=0,
        description="how long requests are served after SIGTERM, while /readyz is 503: longer than a balancer's poll",
    )
    shutdown_seconds: int = Field(30, ge=1, description="how long a shutdown waits for requests in flight")

    log_seconds: float = Field(
        86_400.0,
        ge=0,
        description="how long the change log is kept, up to about a million changes: the longest pause between two "
        "reads of /changes, or between two exports of changes",
    )
    idempotency_seconds: float = Field(
        3600.0, gt=0, description="how long a write is remembered by its Idempotency-Key, in about 700 bytes each"
    )
    event_types: Annotated[tuple[str, ...], NoDecode] = Field(
        ("shown=0", "click=1", "like=1", "share=1", "hide=-1"),
        description="types of events that are taken, each with its weight, separated by commas: above 0 it is a read "
        "of the note, below 0 it takes the read back",
    )
    event_seconds: float = Field(
        2_592_000.0, gt=0, description="how long an event is kept and counts; an older one is refused"
    )
    event_bytes: int = Field(
        256 * 2**20, ge=2**20, description="memory of the store for one tenant's events, of which the oldest go first"
    )
    event_id_seconds: float = Field(
        3600.0, gt=0, description="how long an event is known by its event_id, so that it counts once"
    )
    event_ids: int = Field(
        1_000_000,
        ge=2,
        description="most ids of events that are remembered, in about 100 bytes each; the older half is forgotten when "
        "there are so many",
    )
    words_weight: float = Field(
        WORDS_WEIGHT, ge=0, description="weight that `sources=auto` gives to words, where vectors have 1"
    )
    behaviour_window: int = Field(
        0,
        ge=0,
        description="steps between the two reads of a pair, at most, in the reader's order of distinct notes; 1: the "
        "next note alone; 0: any number",
    )
    behaviour_lower: float = Field(0.01, ge=0, description="least score of a related note")
    behaviour_upper: float = Field(30.0, ge=0, validate_default=True, description="greatest score of a related note")
    behaviour_min_readers: int = Field(
        1,
        ge=1,
        description="readers (a user and a session are two) who must have read the one note after the other: with 1 a "
        "related note may tell what one did",
    )
    behaviour_top: int = Field(100, ge=1, description="related notes of one note, at most")
    behaviour_half_life_seconds: float = Field(
        0.0, ge=0, description="time after which a read counts half; 0: it always counts whole"
    )
    behaviour_kappa: float = Field(
        4.0,
        gt=0,
        description="number of readers who read a note after an example at which the source `behaviour` adds half of "
        "its weight to the note's score",
    )
    behaviour_reads: int = Field(
        2_000_000, ge=1000, description="reads of one tenant that are held in memory; those of idle readers go first"
    )
    max_tenants: int = Field(
        100, ge=1, description="most tenants, the default one included; a key of one more gets 403"
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="largest body")
    max_bodies_bytes: int | None = Field(
        None,
        ge=1,
        description="most bytes of the bodies of all requests under way, without the first 64 KiB of each; a "
        "stream of notes counts with its unfinished line alone; a body beyond the bound gets 429; 256 MiB by default, "
        "or max_body_bytes where that is more",
    )
    max_note_bytes: int = Field(
        512 * 2**10,
        ge=1,
        validate_default=False,  # the default may exceed max_body_bytes; note_bytes then takes that
        description="largest note, as JSON; max_body_bytes where that is less and this is not set",
    )
    max_batch_notes: int = Field(1000, ge=1, description="most notes in one list")
    max_batch_events: int = Field(1000, ge=1, description="most events in one list")
    max_k: int = Field(200, ge=1, description="most notes that similar returns")
    page_seconds: float = Field(
        600.0, gt=0, description="how long a list of related notes is kept for its next pages, in up to 256 KiB"
    )
    scenarios: Path | None = Field(
        None, description="a TOML or JSON file that binds names to defaults of the fields of similar"
    )

    @field_validator(
        "event_types",
        "categories",
        "blocked_hashtags",
        "filter_attributes",
        "cors_origins",
        "allowed_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, names: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = names.split(",") if isinstance(names, str) else names
        return tuple(dict.fromkeys(name.strip() for name in parts if name.strip()))

    @field_validator("*")
    @classmethod
    def _check_bound(cls, value: Any) -> Any:
        if isinstance(value, float) and value > MAX_NUMBER:
            raise PydanticCustomError("number", "must be at most {bound}", {"bound": f"{MAX_NUMBER:.0f}"})
        return value

    @field_validator("filter_attributes")
    @classmethod
    def _check_filter_attributes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse names with a colon: `a:b:c` would be value c of `a:b` and value b:c of `a`."""
        if wrong := [name for name in names if ":" in name]:
            raise PydanticCustomError(
                "filter_attributes", "must be names without a colon, and has {names}", {"names": ", ".join(wrong)}
            )
        return names

    @field_validator("event_types")
    @classmethod
    def _check_event_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        names = [match["name"] for entry in types if (match := EVENT_TYPE.fullmatch(entry))]
        if len(names) < len(types) or len(set(names)) < len(names) or "shown" not in names:
            raise PydanticCustomError(
                "event_types", "must be distinct names with weights, as shown=0,click=1,finished=0.5, with shown"
            )
        return types

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        """Refuse addresses that the Redis client would refuse with a message that contains the address, and so the
        password."""
        if url is None:
            return None
        if not url.get_secret_value():  # from a missing Secret or variable, for example
            raise PydanticCustomError("redis_url", "is empty; unset it to have the embedded server")
        try:
            parts = urlsplit(url.get_secret_value())
            valid = parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            raise PydanticCustomError(
                "redis_url", "must begin with redis://, rediss:// or unix://, its password percent-encoded"
            )
        return url

    @field_validator("store_memory_bytes")
    @classmethod
    def _check_store_memory(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("redis_url"):
            raise PydanticCustomError(
                "store_memory_bytes",
                "bounds the embedded server; that of NOTELLM_REDIS_URL has a maxmemory of its own",
            )
        return size

    @field_validator("readers")
    @classmethod
    def _check_readers(cls, readers: int) -> int:
        if readers and sys.platform != "linux":
            raise PydanticCustomError("readers", "must be 0: only Linux spreads the connections of a port")
        return readers

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(HOST.fullmatch, hosts)):
            raise PydanticCustomError("allowed_hosts", "must be host names as notes.example, without a port, or *")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(ORIGIN.fullmatch, origins)):
            raise PydanticCustomError("cors_origins", "must be origins as https://example.org:8443, without a path")
        return origins

    @field_validator("tls_key")
    @classmethod
    def _check_tls(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_certificate") is None):
            raise PydanticCustomError("tls_key", "and NOTELLM_TLS_CERTIFICATE must be set together")
        return key

    @field_validator("max_bodies_bytes")
    @classmethod
    def _check_bodies(cls, total: int | None, info: ValidationInfo) -> int | None:
        if total is not None and total < info.data.get("max_body_bytes", 0):
            raise PydanticCustomError("max_bodies_bytes", "must not be below NOTELLM_MAX_BODY_BYTES")
        return total

    @field_validator("max_note_bytes")
    @classmethod
    def _check_note(cls, size: int, info: ValidationInfo) -> int:
        if size > info.data.get("max_body_bytes", size):
            raise PydanticCustomError("max_note_bytes", "must not be above NOTELLM_MAX_BODY_BYTES")
        return size

    @field_validator("behaviour_upper")
    @classmethod
    def _check_behaviour(cls, upper: float, info: ValidationInfo) -> float:
        if upper < info.data.get("behaviour_lower", upper):
            raise PydanticCustomError("behaviour_upper", "must not be below NOTELLM_BEHAVIOUR_LOWER")
        return upper

    @field_validator("bootstrap_key", mode="before")
    @classmethod
    def _check_bootstrap_key(cls, key: str | SecretStr | None) -> str | None:
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        if text and not BOOTSTRAP_KEY.fullmatch(text):
            raise PydanticCustomError("bootstrap_key", "must be of 32 to 200 ASCII characters without spaces")
        return text or None

    @field_validator("bootstrap_key_file")
    @classmethod
    def _check_bootstrap_key_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        if info.data.get("bootstrap_key"):
            raise PydanticCustomError("bootstrap_key_file", "is one key too many: NOTELLM_BOOTSTRAP_KEY is set too")
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PydanticCustomError("bootstrap_key_file", "must be a file that can be read") from error
        if not BOOTSTRAP_KEY.fullmatch(text):
            raise PydanticCustomError("bootstrap_key_file", "must hold 32 to 200 ASCII characters without spaces")
        return path

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @property
    def event_weights(self) -> dict[str, float]:
        """Weights of the accepted types of events, by name."""
        return {name: float(weight) for name, _, weight in (entry.partition("=") for entry in self.event_types)}

    @property
    def bootstrap(self) -> str | None:
        """The bootstrap key, from wherever it is set."""
        if self.bootstrap_key:
            return self.bootstrap_key.get_secret_value()
        return self.bootstrap_key_file.read_text().strip() if self.bootstrap_key_file else None

    @property
    def body_memory(self) -> int:
        """Bound on the bytes of the bodies of all requests under way."""
        return self.max_bodies_bytes or max(DEFAULT_BODY_MEMORY, self.max_body_bytes)

    @property
    def note_bytes(self) -> int:
        """Bound on the bytes of a note as JSON. A configured one does not exceed the largest body; the default may."""
        return min(self.max_note_bytes, self.max_body_bytes)

    @property
    def samples_wanted(self) -> int | None:
        """Sample notes to load; None for all. An external Redis gets none unless NOTELLM_SAMPLE_NOTES says so."""
        return 0 if self.sample_notes is None and self.redis_url else self.sample_notes

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises pydantic.ValidationError, which `describe_errors` puts into words."""
        return cls()
