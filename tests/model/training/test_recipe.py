"""Recipes are read with their defaults, and an invalid field is named."""

from pathlib import Path

import pytest

from model.training.recipe import Data, Recipe, RecipeError, parse_change

RECIPES = sorted((Path(__file__).parents[3] / "model" / "training" / "recipes").glob("*.toml"))
LAST = 'input_hashtags = true\nprompt_version = "note-first/2"\n'
"""Fields of a recipe that learns the hashtags of the input, which its prompt has last."""
MINIMAL = 'name = "x"\n[[data]]\nnotes = "n.jsonl"\npairs = "p.parquet"\n'


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "recipe.toml").write_text(text)
    return tmp_path / "recipe.toml"


def test_fields_left_out_have_the_papers_defaults(tmp_path: Path):
    recipe = Recipe.load(written(tmp_path, "steps = 7\n" + MINIMAL))
    assert recipe.steps == 7
    assert recipe.data == (Data(notes=Path("n.jsonl"), pairs=Path("p.parquet")),)
    assert (recipe.hashtag_share, recipe.alpha, recipe.dimension) == (0.4, 0.01, 128)


def test_changes_replace_fields_of_the_file(tmp_path: Path):
    recipe = Recipe.load(written(tmp_path, "steps = 7\n" + MINIMAL), {"steps": 9, "learning_rate": 1})
    assert (recipe.steps, recipe.learning_rate) == (9, 1.0)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("steps=9", ("steps", 9)),
        ("alpha=0.5", ("alpha", 0.5)),
        ("memory=true", ("memory", True)),
        ('name="a b"', ("name", "a b")),
        ("start=runs/first", ("start", "runs/first")),
        ("start=a=b", ("start", "a=b")),
    ],
)
def test_change_is_parsed_as_toml_or_text(text: str, change: tuple[str, object]):
    assert parse_change(text) == change


def test_paths_with_environment_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOMEWHERE", "/somewhere")
    text = 'backbone = "$SOMEWHERE/b"\n' + MINIMAL.replace("n.jsonl", "$SOMEWHERE/n.jsonl")
    recipe = Recipe.load(written(tmp_path, text))
    assert (recipe.backbone, recipe.data[0].notes) == ("/somewhere/b", Path("/somewhere/n.jsonl"))
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(RecipeError, match="SOMEWHERE"):
        Recipe.load(written(tmp_path, text))


def test_teacher_of_a_data_set_is_read_as_a_path(tmp_path: Path):
    recipe = Recipe.load(written(tmp_path, "distillation = 1\n" + MINIMAL + 'teacher = "~/t.npz"\n'))
    assert recipe.distillation == 1.0
    assert recipe.data[0].teacher == Path("~/t.npz").expanduser()


def test_category_names_of_a_data_set_are_read(tmp_path: Path):
    recipe = Recipe.load(written(tmp_path, MINIMAL + '[data.category_names]\nPets = ["Animals"]\n'))
    assert recipe.data[0].category_names == {"Pets": ["Animals"]}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stepz = 7\n" + MINIMAL, "stepz"),
        ("steps = 0\n" + MINIMAL, "steps"),
        ('steps = "many"\n' + MINIMAL, "steps"),
        ("steps = true\n" + MINIMAL, "steps"),
        ("hashtag_share = 1.5\n" + MINIMAL, "hashtag_share"),
        ("alpha = -1.0\n" + MINIMAL, "alpha"),
        ("clip = 0.0\n" + MINIMAL, "clip, .* must be above 0, not 0.0"),
        ("clip = -1.0\n" + MINIMAL, "clip, .* must be above 0, not -1.0"),
        ("clip = nan\n" + MINIMAL, "clip, .* must be above 0, not nan"),
        ("learning_rate = -1e-4\n" + MINIMAL, "^learning_rate must be 0 or more"),
        ("head_learning_rate = inf\n" + MINIMAL, "head_learning_rate must be 0 or more and finite, not inf"),
        ("weight_decay = -0.1\n" + MINIMAL, "weight_decay must be 0 or more"),
        (MINIMAL + "share = -1.0\n", "share must be 0 or more and finite, not -1.0 .of n.jsonl"),
        ("contrastive = false\ndistillation = 0.5\n" + MINIMAL, "distillation and memory require contrastive"),
        ("contrastive = false\nmemory = true\n" + MINIMAL, "distillation and memory require contrastive"),
        ("distillation = 1.1\n" + MINIMAL, "distillation"),
        ("distillation_temperature = 0.0\n" + MINIMAL, "distillation_temperature must be above 0 and finite, not 0.0"),
        ("distillation_temperature = nan\n" + MINIMAL, "distillation_temperature must be above 0 and finite, not nan"),
        ("distillation_temperature = inf\n" + MINIMAL, "distillation_temperature must be above 0 and finite, not inf"),
        ("validation_min_score = nan\n" + MINIMAL, "validation_min_score must be finite, not nan"),
        (MINIMAL + "min_score = nan\n", "min_score must be finite, not nan .of n.jsonl"),
        ("reread_notes = 5\n" + MINIMAL, "reread_notes"),
        ("frozen_embeddings = true\n" + MINIMAL, "frozen_embeddings requires lora_rank = 0"),
        ("unpaired_notes = 5\n" + MINIMAL, "unpaired_notes"),
        ("steps = \n" + MINIMAL, "TOML"),
        ("validation_notes = 3\n" + MINIMAL, "validation_notes must be at least 4"),
        ("seed = -1\n" + MINIMAL, "seed must be at least 0"),
        ("alpha = 0.0\ncontrastive = false\n" + MINIMAL, "alpha: 0 requires contrastive"),
        ("alpha = 0.0\n" + MINIMAL + '[[data]]\nnotes = "o.jsonl"\n', "alpha: 0 requires contrastive"),
        (
            "input_hashtags = true\n" + MINIMAL,
            "input_hashtags requires .*note-first/2.*, not note-first/1",
        ),
        (LAST + "alpha = 0.0\n" + MINIMAL, "input_hashtags requires alpha above 0"),
        (LAST + "hashtag_share = 1.0\n" + MINIMAL, "input_hashtags requires alpha .* hashtag_share .* below 1"),
        (MINIMAL + 'teacher = "t.npz"\n', "teacher: its vectors"),
        (MINIMAL + '[[data]]\nnotes = "o.jsonl"\nmin_score = 0.3\n', "o.jsonl lacks"),
        ('name = "x"\n', "data"),
        ('[[data]]\nnotes = "n.jsonl"\n', "name"),
        (MINIMAL.replace('pairs = "p.parquet"\n', ""), "pairs"),
        (MINIMAL + "colour = 1\n", "colour"),
        (MINIMAL + 'category_names = "Pets"\n', "category_names must be a table"),
        (MINIMAL + '[data.category_names]\nPets = "Animals"\n', "Pets must be a list of names"),
        (MINIMAL + "[data.category_names]\nPets = []\n", "Pets must be a list of names"),
        (MINIMAL + "[data.category_names]\nPets = [1]\n", "Pets must be a list of names"),
        (MINIMAL + '[data.category_names]\nPets = ["Animals", " "]\n', "Pets must be .* none may be blank"),
    ],
)
def test_invalid_field_is_named(tmp_path: Path, text: str, named: str):
    with pytest.raises(RecipeError, match=named):
        Recipe.load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MINIMAL.replace("[[data]]", "[data]").encode(), r"under \[\[data\]\]"),
        (b"data = [1]\n" + MINIMAL.split("[[", 1)[0].encode(), r"under \[\[data\]\]"),
        (b'name = "\xff"\n', "is not UTF-8"),
    ],
    ids=["one-table", "numbers", "latin-1"],
)
def test_file_of_another_form_is_refused_with_the_reason(tmp_path: Path, text: bytes, named: str):
    (tmp_path / "recipe.toml").write_bytes(text)
    with pytest.raises(RecipeError, match=named):
        Recipe.load(tmp_path / "recipe.toml")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"nothing\.toml"):
        Recipe.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_packaged_recipe_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("NOTELLM_DATA", "NOTELLM_PAIRS", "NOTELLM_START"):
        monkeypatch.setenv(name, "/data")
    assert Recipe.load(path).data
