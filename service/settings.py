"""Settings: environment variables NOTELLM_*, read once at start."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.setting_fields import SHOWN, SettingFields

HOST = re.compile(r"\*|[\w.-]+")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?")
EVENT_TYPE = re.compile(r"(?P<name>[a-z][a-z0-9_]{0,31})=-?\d{1,6}(\.\d{1,6})?")
BOOTSTRAP_KEY = re.compile(r"[\x21-\x7e]{32,200}")
DEFAULT_BODY_MEMORY = 256 * 2**20
"""Default of max_bodies_bytes, in bytes, unless max_body_bytes is larger."""
MAX_NUMBER = 1e10
"""Bound on settings that are decimal numbers: as seconds it is 300 years, which the store's times can hold."""


class Settings(SettingFields):
    """The settings, checked against each other, and what follows from them."""

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
                "filter_attributes", "must contain names without a colon, not {names}", {"names": ", ".join(wrong)}
            )
        return names

    @field_validator("event_types")
    @classmethod
    def _check_event_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        names = [match["name"] for entry in types if (match := EVENT_TYPE.fullmatch(entry))]
        if len(names) < len(types) or len(set(names)) < len(names) or SHOWN not in names:
            raise PydanticCustomError(
                "event_types",
                "must be distinct names with weights, one of them shown, such as shown=0,click=1,finished=0.5",
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
            raise PydanticCustomError("redis_url", "is empty; unset it to use the embedded server")
        try:
            parts = urlsplit(url.get_secret_value())
            valid = parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            raise PydanticCustomError(
                "redis_url", "must begin with redis://, rediss:// or unix://, with the password percent-encoded"
            )
        return url

    @field_validator("admin_port")
    @classmethod
    def _check_admin_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port and port == info.data.get("port"):
            raise PydanticCustomError("admin_port", "must differ from NOTELLM_PORT")
        return port

    @field_validator("store_memory_bytes")
    @classmethod
    def _check_store_memory(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("redis_url"):
            raise PydanticCustomError(
                "store_memory_bytes",
                "limits the embedded server only: unset it, and set maxmemory of the server of NOTELLM_REDIS_URL",
            )
        return size

    @field_validator("readers")
    @classmethod
    def _check_readers(cls, readers: int) -> int:
        if readers and sys.platform != "linux":
            raise PydanticCustomError(
                "readers", "must be 0: only Linux distributes the connections of a port among processes"
            )
        return readers

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(HOST.fullmatch, hosts)):
            raise PydanticCustomError("allowed_hosts", "must be host names such as notes.example, without a port, or *")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(ORIGIN.fullmatch, origins)):
            raise PydanticCustomError(
                "cors_origins", "must be origins such as https://example.org:8443, without a path"
            )
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
        if 0 < upper < info.data.get("behaviour_lower", upper):
            raise PydanticCustomError("behaviour_upper", "must not be below NOTELLM_BEHAVIOUR_LOWER")
        return upper

    @field_validator("bootstrap_key", mode="before")
    @classmethod
    def _check_bootstrap_key(cls, key: str | SecretStr | None) -> str | None:
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        if text and not BOOTSTRAP_KEY.fullmatch(text):
            raise PydanticCustomError("bootstrap_key", "must have 32 to 200 ASCII characters and no spaces")
        return text or None

    @field_validator("bootstrap_key_file")
    @classmethod
    def _check_bootstrap_key_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        if info.data.get("bootstrap_key"):
            raise PydanticCustomError("bootstrap_key_file", "must not be set together with NOTELLM_BOOTSTRAP_KEY")
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PydanticCustomError("bootstrap_key_file", "must be a readable file") from error
        if not BOOTSTRAP_KEY.fullmatch(text):
            raise PydanticCustomError("bootstrap_key_file", "must contain 32 to 200 ASCII characters and no spaces")
        return path

    @field_validator(
        "data_dir", "cache_dir", "tls_certificate", "tls_key", "bootstrap_key_file", "scenarios", mode="before"
    )
    @classmethod
    def _refuse_empty(cls, path: Any) -> Any:
        if path == "":  # from a missing variable; as a path it would be the current folder
            raise PydanticCustomError("empty_path", "must not be empty: name a file or folder, or unset it")
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
    def samples_to_load(self) -> int | None:
        """Sample notes to load; None for all. An external Redis gets none unless NOTELLM_SAMPLE_NOTES says so."""
        return 0 if self.sample_notes is None and self.redis_url else self.sample_notes

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings. Raises pydantic.ValidationError, which `describe_errors` puts into words."""
        return cls()
