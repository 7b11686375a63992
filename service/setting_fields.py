"""SettingFields: the names, types, defaults, bounds and descriptions of all settings; settings.py has their checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.generation import HashtagPolicy

PREFIX = "NOTELLM_"
WORDS_WEIGHT = 0.5
"""Weight of words relative to vectors with weight 1: best on validation for vectors that were not trained on the
community (docs/log/words.md)."""
SHOWN = "shown"
"""Type of the event that a note was shown to a reader."""


class SettingFields(BaseSettings):
    """All settings with their defaults. `make tables` writes docs/configuration.md from these descriptions."""

    # An error names the setting and not its value, which may hold a password.
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0: any free port.")
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Separate port for /metrics, /keys, /audit, /tenants, /verify and POST /notes/import, which "
        "then return 404 on NOTELLM_PORT. Default: they are served on NOTELLM_PORT.",
    )
    readers: int = Field(
        0,
        ge=0,
        le=16,
        description="Number of reader processes: additional processes that answer reads on the same port, each using "
        "one core. Linux only.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with the TLS certificate, followed by its chain. Enables HTTPS on every port. "
        "Reloaded when it changes.",
    )
    tls_key: Path | None = Field(
        None,
        validate_default=True,
        description="PEM file with the private key of NOTELLM_TLS_CERTIFICATE, without a password. Required with it.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of web pages that may call the service, such as https://example.org, separated by commas.",
    )
    bootstrap_key: SecretStr | None = Field(
        None,
        description="API key with all scopes, 32 to 200 characters long, for example from `openssl rand -hex 32`. "
        "If set, every request needs an API key.",
    )
    bootstrap_key_file: Path | None = Field(
        None, description="File that contains the bootstrap key. Use it instead of NOTELLM_BOOTSTRAP_KEY."
    )
    insecure: bool = Field(
        False,
        description="1: allow a service without a bootstrap key to listen on an address that other machines can "
        "reach, for example behind a proxy that authenticates callers.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names accepted in the Host header by a service without keys, in addition to IP "
        "addresses, localhost and NOTELLM_HOST, separated by commas. Requests with other names get "
        "403. *: accept any name, for a service behind a proxy that authenticates callers.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/notellm"),
        description="Folder for the files of the embedded server and the index snapshots.",
    )
    cache_dir: Path = Field(Path("~/.cache/notellm"), description="Folder for converted model weights. Safe to delete.")
    redis_url: SecretStr | None = Field(
        None, description="URL of the Redis or Valkey server that stores the notes. Default: the embedded server."
    )
    store_memory_bytes: int | None = Field(
        None,
        ge=16 * 2**20,
        description="Maximum memory of the embedded server in bytes. When it is full, writes are refused. "
        "Default: 30% of the memory of the machine or container. Cannot be combined with "
        "NOTELLM_REDIS_URL: set maxmemory of that server instead.",
    )
    item_cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Maximum memory in bytes for cached notes of search results. A note is cached until it "
        "changes. 0: no cache.",
    )
    neighbour_cache_bytes: int = Field(
        32 * 2**20,
        ge=0,
        description="Maximum memory in bytes for cached lists of nearest notes and the recent changes that they "
        "are checked against. A list is cached until a change may alter it. 0: no cache, so that each "
        "read searches the index.",
    )
    checkpoint: str | None = Field(
        None,
        description="Checkpoint folder, backbone folder or name on the model hub. Default: the checkpoint shipped "
        "with the package.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the model. auto: the GPU if there is one, otherwise the CPU."
    )
    index_device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Device on which the index is searched. cuda requires a FAISS build with CUDA support."
    )
    runtime: Literal["auto", "openvino", "torch"] = Field(
        "auto",
        description="Runtime of the model's layers. auto: OpenVINO on a CPU if it is installed and supports the "
        "backbone, otherwise PyTorch.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Precision of the model. auto: int8 for an int8 export; otherwise bfloat16 where it is "
        "faster, except with PyTorch on a CPU; otherwise float32. OpenVINO computes bfloat16 weights in float32 on a "
        "CPU that cannot compute in bfloat16.",
    )
    categories: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Categories from which a note's category is chosen, separated by commas. Default: the "
        "checkpoint's own categories.",
    )
    min_category_probability: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Minimum probability of a category stored by `?generate=category`. If the best category is "
        "less probable, the note gets none.",
    )
    min_hashtag_score: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Minimum score of hashtags stored by `?generate=hashtags`, if the request has no `min_score`. "
        "Independent of `min_hashtag_score` in the checkpoint's notellm.json, which drops hashtags that the model is "
        "unlikely to write.",
    )
    hashtag_policy: HashtagPolicy = Field(
        "grounded",
        description="Default `policy` of generated hashtags. open: any text that the model writes; known: only "
        "hashtags that authors of stored notes use; grounded: the best of what the model writes, what the note's "
        "neighbours carry (the stored notes nearest to it), and what the text names of stored notes' hashtags.",
    )
    blocked_hashtags: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hashtags that are never generated, separated by commas."
    )
    filter_attributes: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names of note attributes that searches can filter by with `attribute`, separated by commas. "
        "Meant for attributes with few distinct values. A name must not contain a colon.",
    )
    sample_notes: int | None = Field(
        None,
        ge=0,
        description="Number of sample notes to add on the first start. Default: all, or 0 if NOTELLM_REDIS_URL is set.",
    )
    snapshot_seconds: float = Field(
        60.0,
        ge=0,
        description="Minimum seconds between two snapshots of a changed index. The pause is at least 20 times as "
        "long as a snapshot takes. 0: no snapshots.",
    )
    purge_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds between automatic purges, which rewrite the store's files and the snapshots without "
        "removed data. One replica purges the store for all. Each purge starts the change log over. 0: only "
        "`notellm purge` does.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of log lines. auto: console on a terminal, otherwise json."
    )
    log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests with a status below 400 and a duration of less than 1 second that are "
        "logged. All other requests are always logged.",
    )

    batch_tokens: int = Field(
        1024,
        ge=1,
        description="Maximum prompt tokens of the notes that join the model's batch in one step. A single longer "
        "note still joins.",
    )
    batch_notes: int = Field(32, ge=1, description="Maximum number of notes in the model's batch.")
    queue_notes: int = Field(
        2000,
        ge=1,
        description="Maximum number of notes waiting for the model; further requests get 429. With several "
        "tenants, each may take at most half of the places that the others leave.",
    )
    queue_seconds: float = Field(
        3.0,
        gt=0,
        description="Maximum expected wait for the model in the interactive lane, in seconds. Requests that would "
        "wait longer get 429.",
    )
    interactive_seconds: float = Field(
        10.0,
        gt=0,
        description="Default deadline in seconds of a request with one note or text in the interactive lane. "
        "X-Request-Timeout overrides it.",
    )
    request_seconds: float = Field(
        60.0,
        gt=0,
        description="Maximum deadline of a request in seconds, and the default deadline of lists and of requests "
        "in the bulk lane.",
    )
    drain_seconds: float = Field(
        5.0,
        ge=0,
        description="Seconds for which requests are still served after SIGTERM, while /readyz returns 503. Set it "
        "longer than the health check interval of your load balancer.",
    )
    shutdown_seconds: int = Field(
        30,
        ge=1,
        description="Maximum seconds that a shutdown waits for requests in flight, and then for notes that wait "
        "for the model.",
    )

    log_seconds: float = Field(
        86_400.0,
        ge=0,
        description="Seconds for which entries of the change log are kept, up to about 1,000,000 entries. After "
        "a longer pause, GET /changes and an export of changes return 410.",
    )
    idempotency_seconds: float = Field(
        3600.0,
        gt=0,
        description="Seconds for which an Idempotency-Key is remembered. Each takes about 700 bytes in the store.",
    )
    event_types: Annotated[tuple[str, ...], NoDecode] = Field(
        ("shown=0", "click=1", "like=1", "share=1", "hide=-1"),
        description="Accepted event types with their weights, separated by commas. A weight above 0 counts as a "
        "read of the note; a weight below 0 cancels the reader's read. `shown` is required.",
    )
    event_seconds: float = Field(
        2_592_000.0, gt=0, description="Seconds for which an event is kept and counted. Older events are refused."
    )
    event_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="Maximum memory in bytes for the events of one tenant in the store. Beyond it the oldest "
        "events are removed.",
    )
    event_id_seconds: float = Field(
        3600.0,
        gt=0,
        description="Seconds for which an `event_id` is remembered. An event with a remembered ID is not counted "
        "again.",
    )
    event_ids: int = Field(
        1_000_000,
        ge=2,
        description="Maximum number of remembered event IDs, about 100 bytes each. When it is reached, the older "
        "half is forgotten.",
    )
    words_weight: float = Field(
        WORDS_WEIGHT,
        ge=0,
        description="Weight of word matches in searches with `sources=auto`, relative to 1 for vectors.",
    )
    behaviour_window: int = Field(
        0,
        ge=0,
        description="Maximum number of steps between the two notes of a pair in the reader's sequence of distinct "
        "notes. 1: only the next note; 0: no maximum.",
    )
    behaviour_lower: float = Field(
        0.01, ge=0, description="Minimum score of a related note. Notes with a lower score are left out."
    )
    behaviour_upper: float = Field(
        0.0,
        ge=0,
        description="Maximum score of a related note. Notes with a higher score are left out. 0: no maximum.",
    )
    behaviour_min_readers: int = Field(
        1,
        ge=1,
        description="Minimum number of readers who read a related note after the given note. A user and a session "
        "count as two readers. With 1, a related note can reveal what a single reader read.",
    )
    behaviour_top: int = Field(100, ge=1, description="Maximum number of related notes of a note.")
    behaviour_half_life_seconds: float = Field(
        0.0,
        ge=0,
        description="Half-life of a read in seconds: after this time it counts half. 0: reads always count fully.",
    )
    behaviour_kappa: float = Field(
        4.0,
        gt=0,
        description="Number of readers who read a note after an example at which the source `behaviour` adds half "
        "of its weight to the note's score.",
    )
    behaviour_reads: int = Field(
        2_000_000,
        ge=1000,
        description="Maximum number of reads of one tenant held in memory. Beyond it, the reads of the readers "
        "inactive for longest are dropped.",
    )
    max_tenants: int = Field(
        100,
        ge=1,
        description="Maximum number of tenants, including the default one. Requests with a key of a further "
        "tenant get 403.",
    )
    max_body_bytes: int = Field(
        16 * 2**20,
        ge=1,
        description="Maximum size of a request body in bytes. An NDJSON stream of notes has no maximum.",
    )
    max_bodies_bytes: int | None = Field(
        None,
        ge=1,
        description="Maximum bytes of all request bodies being processed, not counting the first 64 KiB of each. "
        "For a stream of notes, only the unfinished line counts. Requests beyond it get 429. Default: "
        "256 MiB, or NOTELLM_MAX_BODY_BYTES if larger.",
    )
    max_note_bytes: int = Field(
        512 * 2**10,
        ge=1,
        validate_default=False,  # the default may exceed max_body_bytes; note_bytes then takes that
        description="Maximum size of a note in bytes, as JSON. The default is lowered to NOTELLM_MAX_BODY_BYTES "
        "if that is smaller.",
    )
    max_batch_notes: int = Field(1000, ge=1, description="Maximum number of notes in one list.")
    max_batch_events: int = Field(1000, ge=1, description="Maximum number of events in one list.")
    max_k: int = Field(
        200, ge=10, description="Maximum number of related notes that a search returns (`k`), whose default is 10."
    )
    page_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds for which a list of related notes is kept for its next pages. Each list takes up to "
        "256 KiB in the store.",
    )
    scenarios: Path | None = Field(
        None, description="TOML or JSON file with scenarios: named defaults for the fields of searches."
    )
