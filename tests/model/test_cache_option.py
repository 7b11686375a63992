"""Tests of --cache: all commands that take it use the folder that the service uses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from model.baselines import mpnet
from model.baselines.encoder_teacher import add_encoder_options
from model.cache_option import CACHE_VARIABLE, add_cache_option
from model.training import distil, export, writing


def parser_with(add: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser


@pytest.mark.parametrize(
    "make_parser",
    [
        lambda: parser_with(add_cache_option),
        lambda: parser_with(add_encoder_options),
        distil.option_parser,
        export.argument_parser,
        writing.option_parser,
    ],
    ids=["alone", "encoder", "distil", "export", "writing"],
)
def test_cache_of_the_environment_is_the_default_of_each_parser(
    make_parser: Callable[[], argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "~/elsewhere")
    assert make_parser().get_default("cache") == Path("~/elsewhere").expanduser()


@pytest.mark.parametrize("value", [None, ""])
def test_cache_without_a_variable_is_in_the_home_folder(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(CACHE_VARIABLE, value)
    parser = parser_with(add_cache_option)
    assert parser.get_default("cache") == Path("~/.cache/notellm").expanduser()
    assert parser.parse_args(["--cache", "own"]).cache == Path("own")


def test_model_in_the_cache_of_the_environment_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mpnet.mpnet_folder(tmp_path).mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    mpnet.main([])
    assert str(mpnet.mpnet_folder(tmp_path)) in capsys.readouterr().out
