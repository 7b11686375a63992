"""Settings: every one has a name, a description and a bound, and is read from the environment."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr, ValidationError

from service import wiring
from service.behaviour.co_occurrence import CoOccurrenceOptions
from service.settings import Settings
from service.settings_errors import describe_errors

NAMES = list(Settings.model_fields)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"NOTELLM_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_description(name: str) -> None:
    assert (Settings.model_fields[name].description or "").strip()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("NOTELLM_HOST", "::1", "host", "::1"),
        ("NOTELLM_PORT", "0", "port", 0),
        ("NOTELLM_DATA_DIR", "/data", "data_dir", Path("/data")),
        ("NOTELLM_CACHE_DIR", "/cache", "cache_dir", Path("/cache")),
        ("NOTELLM_REDIS_URL", "redis://r", "redis_url", SecretStr("redis://r")),
        ("NOTELLM_CHECKPOINT", "some/model", "checkpoint", "some/model"),
        ("NOTELLM_DEVICE", "cuda", "device", "cuda"),
        ("NOTELLM_SAMPLE_NOTES", "0", "sample_notes", 0),
        ("NOTELLM_CATEGORIES", "Food, 旅行,,Food", "categories", ("Food", "旅行")),
        ("NOTELLM_REQUEST_SECONDS", "0.5", "request_seconds", 0.5),
        ("notellm_max_k", "17", "max_k", 17),
    ],
)
def test_a_setting_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, name: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings.from_environment(), name) == value


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("NOTELLM_URL", "http://elsewhere")
    assert Settings.from_environment() == Settings()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("NOTELLM_PORT", "65536"),
        ("NOTELLM_PORT", "http"),
        ("NOTELLM_DEVICE", "tpu"),
        ("NOTELLM_SAMPLE_NOTES", "-1"),
        ("NOTELLM_REQUEST_SECONDS", "0"),
        ("NOTELLM_LOG_SECONDS", "inf"),
        ("NOTELLM_EVENT_SECONDS", "1e300"),
        ("NOTELLM_PAGE_SECONDS", "nan"),
        ("NOTELLM_MAX_K", "0"),
        ("NOTELLM_QUEUE_NOTES", "0"),
        ("NOTELLM_REDIS_URL", "http://:hidden@r"),
        ("NOTELLM_REDIS_URL", "redis://:hid/den@r"),
    ],
)
def test_a_setting_out_of_bounds_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValidationError, match=variable.removeprefix("NOTELLM_").lower()) as error:
        Settings.from_environment()
    assert "hid" not in str(error.value)


def test_a_redis_url_is_a_secret_wherever_settings_are_shown() -> None:
    settings = Settings(redis_url=SecretStr("redis://:hidden@r"))
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_folders_are_absolute_and_at_home() -> None:
    assert Settings().data_dir == Path.home() / ".local/share/notellm"
    assert Settings(cache_dir=Path("~/here")).cache_dir == Path.home() / "here"
    assert Settings(data_dir=Path("relative")).data_dir == Path.cwd() / "relative"


def test_a_setting_does_not_change_after_the_start() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("asked", "redis_url", "wanted"),
    [
        (None, None, None),
        (None, "redis://r", 0),
        (20, None, 20),
        (20, "redis://r", 20),
        (0, None, 0),
        (0, "redis://r", 0),
    ],
)
def test_external_redis_gets_samples_only_when_asked(
    asked: int | None, redis_url: str | None, wanted: int | None
) -> None:
    assert Settings(sample_notes=asked, redis_url=redis_url and SecretStr(redis_url)).samples_to_load == wanted


def test_memory_of_the_embedded_server_is_refused_beside_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTELLM_STORE_MEMORY_BYTES", str(2**30))
    assert Settings.from_environment().store_memory_bytes == 2**30
    monkeypatch.setenv("NOTELLM_REDIS_URL", "redis://:hidden@r")
    with pytest.raises(ValidationError, match="limits the embedded server only") as error:
        Settings.from_environment()
    assert "hidden" not in str(error.value)


def test_reader_processes_are_refused_where_they_would_get_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.sys.platform", "darwin")
    assert Settings().readers == 0
    with pytest.raises(ValidationError, match="only Linux"):
        Settings(readers=1)


def test_bootstrap_key_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("k" * 64 + "\n")
    assert Settings(bootstrap_key_file=file).bootstrap == "k" * 64
    monkeypatch.setenv("NOTELLM_BOOTSTRAP_KEY", "b" * 32)
    assert Settings().bootstrap == "b" * 32
    assert "b" * 32 not in repr(Settings())
    monkeypatch.setenv("NOTELLM_BOOTSTRAP_KEY", "")  # Compose passes an unset variable as the empty string
    assert Settings().bootstrap is None


@pytest.mark.parametrize(
    "types", ["click=1", "shown=0,click", "shown=0,click=x", "shown=0,click=1,click=2", "shown=0,Click=1", ""]
)
def test_event_types_that_cannot_be_are_refused(types: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTELLM_EVENT_TYPES", types)
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment()
    assert "NOTELLM_EVENT_TYPES must be distinct names" in describe_errors(refused.value)[0]


def test_filter_attributes_with_a_colon_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTELLM_FILTER_ATTRIBUTES", "language,a:b,region,c:")
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment()
    line = "NOTELLM_FILTER_ATTRIBUTES must contain names without a colon, not a:b, c:"
    assert describe_errors(refused.value) == [line]


def test_event_types_have_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTELLM_EVENT_TYPES", "shown=0, click=1, finished=2.5, hide=-1")
    assert Settings.from_environment().event_weights == {"shown": 0.0, "click": 1.0, "finished": 2.5, "hide": -1.0}


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"MAX_BODY_BYTES": "1000", "MAX_NOTE_BYTES": "1001"},
            "MAX_NOTE_BYTES must not be above NOTELLM_MAX_BODY_BYTES",
        ),
        ({"MAX_NOTE_BYTES": "20000000"}, "MAX_NOTE_BYTES must not be above NOTELLM_MAX_BODY_BYTES"),
        ({"MAX_BODIES_BYTES": "1000"}, "MAX_BODIES_BYTES must not be below NOTELLM_MAX_BODY_BYTES"),
        ({"BEHAVIOUR_LOWER": "2", "BEHAVIOUR_UPPER": "1"}, "BEHAVIOUR_UPPER must not be below NOTELLM_BEHAVIOUR_LOWER"),
        ({"LOG_SECONDS": "1e300"}, "LOG_SECONDS must be at most 10000000000"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    variables: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(f"NOTELLM_{name}", text)
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment()
    assert describe_errors(refused.value) == [f"NOTELLM_{line}"]


def test_memory_of_bodies_has_room_for_the_largest_one() -> None:
    assert Settings().body_memory == 256 * 2**20
    assert Settings.model_validate({"max_body_bytes": 2**30}).body_memory == 2**30
    assert Settings.model_validate({"max_bodies_bytes": 2**25}).body_memory == 2**25
    with pytest.raises(ValidationError, match="must not be below NOTELLM_MAX_BODY_BYTES"):
        Settings.model_validate({"max_bodies_bytes": 2**20})


def test_note_may_be_no_larger_than_a_body_where_its_bound_is_not_set() -> None:
    assert Settings().note_bytes == 512 * 2**10
    assert Settings.model_validate({"max_body_bytes": 1000}).note_bytes == 1000
    assert Settings.model_validate({"max_body_bytes": 1000, "max_note_bytes": 999}).note_bytes == 999


def test_settings_of_behaviour_reach_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr("service.wiring.LiveBehaviour", lambda *arguments: made.append(arguments))
    given = {"behaviour_window": 7, "behaviour_lower": 0.1, "behaviour_upper": 0.9, "behaviour_min_readers": 2}
    given |= {"behaviour_top": 5, "behaviour_half_life_seconds": 60.0, "behaviour_reads": 1000, "behaviour_kappa": 3.0}
    unlimited = {"behaviour_window": 0, "behaviour_upper": 0, "behaviour_half_life_seconds": 0}
    for fields in (given, unlimited):
        settings = Settings.model_validate({"checkpoint": "unused"} | fields)
        shared: Any = SimpleNamespace(settings=settings, telemetry=None, clock=None)
        wiring._make_behaviour(shared, cast(Any, None))
    assert made[0][1] == CoOccurrenceOptions(
        window=7, lower=0.1, upper=0.9, min_readers=2, top=5, half_life=60.0, max_reads=1000
    )
    assert made[0][-1] == 3.0
    assert made[1][1] == CoOccurrenceOptions(window=None, upper=math.inf, half_life=None)
