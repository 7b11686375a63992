"""Registration of the offline commands of `notellm`."""

from __future__ import annotations

import typer

from model.cli.checkpoint import average, calibrate, export, fit_categories, fit_hashtags, whiten
from model.cli.evaluate import evaluate
from model.cli.pairs import pairs
from model.cli.training import embed, train, train_encoder
from model.terminal import exit_on_missing_extra


def add_to(app: typer.Typer) -> None:
    """Register the commands with the one `notellm` app."""
    training = (pairs, train, train_encoder, embed)
    on_checkpoints = (average, whiten, calibrate, fit_categories, fit_hashtags, export)
    for command in (*training, *on_checkpoints, evaluate):
        app.command()(exit_on_missing_extra(command))
