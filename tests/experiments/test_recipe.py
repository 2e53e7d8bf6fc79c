"""Recipes: what the matrix makes of a line, what `extends` inherits, and what each mistake says."""

from __future__ import annotations

import itertools

import pytest
import yaml
from tests.experiments import tiny

from inoculate.core.errors import InputError
from inoculate.experiments.align import Align
from inoculate.experiments.recipe import bundled, load_recipe, load_recipes
from inoculate.experiments.runner import in_order

LEARNING_RATE, SEED, RATIO = "attack.training.learning_rate", "attack.seed", "attack.poison_ratio"


def cells(folder, matrix):
    """(learning rate, seed, p) of every line."""
    recipe = load_recipe(str(tiny.write(folder, {"matrix": matrix})))
    attacks = [line.attack for line in recipe.lines]
    return [(attack.training.learning_rate, attack.seed, attack.poison_ratio) for attack in attacks]


def refusal(folder, changes, file="tiny.yaml"):
    with pytest.raises(InputError) as caught:
        load_recipe(str(tiny.write(folder, changes, file)))
    return str(caught.value)


def test_the_matrix_is_a_product(tmp_path):
    found = cells(tmp_path, {LEARNING_RATE: [1e-3, 1e-2], SEED: [1, 2], RATIO: [0, 0.5]})
    assert found == list(itertools.product([1e-3, 1e-2], [1, 2], [0, 0.5]))


def test_fields_with_commas_between_them_take_one_value(tmp_path):
    path = tiny.write(tmp_path, {"matrix": {"align.training.seed, attack.seed": [3, 4], RATIO: [0, 0.1]}})
    lines = load_recipe(str(path)).lines
    found = [(line.align.training.seed, line.attack.seed, line.attack.poison_ratio) for line in lines]
    assert found == [(3, 3, 0), (3, 3, 0.1), (4, 4, 0), (4, 4, 0.1)]


def test_together_changes_fields_at_once(tmp_path):
    points = [{LEARNING_RATE: 1e-3, RATIO: 0.5}, {LEARNING_RATE: 1e-2, RATIO: 0}]
    assert cells(tmp_path, {SEED: [1, 2], "together": points}) == [
        (1e-3, 1, 0.5),
        (1e-2, 1, 0),
        (1e-3, 2, 0.5),
        (1e-2, 2, 0),
    ]


def test_blocks_of_the_matrix_stand_side_by_side(tmp_path):
    found = cells(tmp_path, [{SEED: [1, 2]}, {RATIO: [0.5]}])
    assert found == [(1e-4, 1, 0.1), (1e-4, 2, 0.1), (1e-4, 1, 0.5)]


def test_cells_do_not_share_what_they_change(tmp_path):
    """A list that one cell changes inside must not change in the next."""
    key = "align.data.roles.align.0.num_samples"
    lines = load_recipe(str(tiny.write(tmp_path, {"matrix": {key: [5, 6], SEED: [1, 2]}}))).lines
    assert [line.align.data.roles["align"][0].num_samples for line in lines] == [5, 5, 6, 6]
    assert {line.align.data.roles["align"][1].num_samples for line in lines} == {20}
    matrix = {"align.defense": [{"name": "booster"}], "align.defense.lam": [1, 2]}
    recipe = load_recipe(str(tiny.write(tmp_path, {"matrix": matrix})))
    assert [line.align.defense.lam for line in recipe.lines] == [1, 2]
    assert recipe.raw["matrix"] == matrix, "nor what the recipe says of itself"


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path):
    """attack.training keeps the parent's rate; a list, a named value and the matrix are the child's alone."""
    parent = yaml.safe_load(bundled()["quickstart"].read_text())
    recipe = load_recipe(str(tiny.write(tmp_path, {"attack.training.max_steps": 7})))
    first = recipe.lines[0]
    assert first.attack.training.max_steps == 7
    assert first.attack.training.learning_rate == float(parent["attack"]["training"]["learning_rate"])
    assert [part.num_samples for part in first.align.data.roles["align"]] == [20, 20]
    assert [line.align.defense.name for line in recipe.lines] == ["sft", "booster"]
    assert (recipe.name, recipe.title) == ("tiny", parent["title"])
    (tmp_path / "child.yaml").write_text("extends: tiny.yaml\nbase: {name: sandbox, seed: 9}\n")
    child = load_recipe(str(tmp_path / "child.yaml")).lines[0].base
    assert child.seed == 9 and child.shape.hidden_size != first.base.shape.hidden_size == 32


def test_extends_by_a_path_beside_the_file_and_over_two_steps(tmp_path):
    tiny.write(tmp_path, file="one.yaml")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\neval_every: 5\n")
    (tmp_path / "three.yaml").write_text("extends: two.yaml\nattack: {seed: 77}\n")
    line = load_recipe(str(tmp_path / "three.yaml")).lines[0]
    assert (line.eval_every, line.attack.seed, line.attack.training.max_steps) == (5, 77, 6)


def test_extends_in_a_circle_and_an_unknown_parent(tmp_path):
    for name, parent in (("a", "b.yaml"), ("b", "a.yaml"), ("self", "self.yaml"), ("lost", "quickstrat")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}\n")
    for name in ("a", "self"):
        with pytest.raises(InputError, match=r"extends: recipes extend each other in a circle"):
            load_recipe(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(InputError, match=r"lost.yaml: extends: no such recipe.*'quickstrat'.*mean 'quickstart'"):
        load_recipe(str(tmp_path / "lost.yaml"))


def test_an_unknown_key_in_a_parent_is_found_in_the_parent(tmp_path):
    (tmp_path / "parent.yaml").write_text("extends: quickstart\natack: {}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\n")
    with pytest.raises(InputError, match=r"parent.yaml: atack: unknown key .*mean 'attack'"):
        load_recipe(str(tmp_path / "child.yaml"))


def test_set_is_yaml_at_a_dotted_key(tmp_path):
    path = str(tiny.write(tmp_path, {"matrix": tiny.ONE_LINE}))
    overrides = ("attack.poison_ratio=0.5", "evaluate.judges=[{name: reference, min_recall: 1}]", "attack.lora.r=4")
    (line,) = load_recipe(path, overrides).lines
    assert (line.attack.poison_ratio, line.evaluate.judges[0].min_recall, line.attack.lora.r) == (0.5, 1, 4)
    (line,) = load_recipe(path, ("align.data.roles.align.1.num_samples=3",)).lines
    assert [part.num_samples for part in line.align.data.roles["align"]] == [20, 3]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attack", r"--set: not of the form a.b.c=value \(found 'attack'\)"),
        ("=3", r"--set: not of the form a.b.c=value"),
        ("attack.seed=[1", r"--set: attack.seed: the value is not valid YAML \(found '\[1'\)"),
        ("align.defense.lam=3", r"--set: align.defense.lam: the matrix sweeps 'align.defense'"),
        ("align.defense={name: sft}", r"--set: align.defense: the matrix sweeps"),
        ("align={}", r"--set: align: the matrix sweeps 'align.defense'"),
        ("attack.sed=1", r"attack.sed: unknown field \(found 'sed'\). Did you mean 'seed'\?"),
        ("attack.seed.x=1", r"--set: attack.seed.x: 'seed' holds no fields"),
        ("align.data.roles.align.9.num_samples=1", r"align.9.num_samples: '9' holds no fields"),
    ],
)
def test_what_set_refuses(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        load_recipe(str(tiny.write(tmp_path)), (override,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluat": {}}, "evaluat: unknown key (found 'evaluat'). Did you mean 'evaluate'?"),
        (
            {"attack.training.learning_rat": 1},
            "attack.training.learning_rat: unknown field (found 'learning_rat'). Did",
        ),
        (
            {"matrix": {"align.defense": [{"name": "booster", "lamm": 1}]}},
            "align.defense.lamm: unknown field (found 'lamm').",
        ),
        (
            {"matrix": {"align.defense": [{"name": "boster"}]}},
            "align.defense.name: unknown name (found 'boster', expected one of sft, booster, vaccine, repnoise, mlac, adversarial, together). Did you mean 'booster'?",
        ),
        ({"matrix": {"align.defense": [{"lam": 1}]}}, "align.defense: the field `name` is missing"),
        ({"attack.num_samples": "many"}, "attack.num_samples: wrong value (found 'many', expected a valid integer"),
        (
            {"matrix": {"align.defense": [{"name": "booster", "lam": -1}]}},
            "align.defense.lam: wrong value (found -1, expected greater than or equal to 0)",
        ),
        ({RATIO: 1.5}, "attack.poison_ratio: wrong value (found 1.5, expected less than or equal to 1)"),
        ({LEARNING_RATE: 0}, "attack.training.learning_rate: expected a number > 0"),
        (
            {"evaluate.judges": [{"name": "refusel"}]},
            "evaluate.judges.0.name: unknown name (found 'refusel', expected one of",
        ),
        (
            {"attack.template": "chatt"},
            "attack.template: wrong value (found 'chatt', expected 'chat', 'plain' or 'alpaca'). Did",
        ),
        ({"align.data.roles.align": []}, "align.data: role 'align' has no data"),
        ({"attack.harmful": None}, "attack: poison_ratio > 0 needs `harmful` data"),
        ({"title": 7}, "title: wrong type (found 7, expected text)"),
        ({"matrix": {SEED: 1}}, "matrix.attack.seed: expected a list of values (found 1)"),
        ({"matrix": {SEED: []}}, "matrix.attack.seed: expected a list of values"),
        ({"matrix": {"together": [1]}}, "matrix.together: expected mappings of fields"),
        ({"matrix": 1}, "matrix: a block of the matrix is a mapping (found 1)"),
        (
            {"attack.adapter_mode": "continue"},
            "attack.adapter_mode: the alignment leaves no adapter to go on with (found 'continue', expected full",
        ),
    ],
)
def test_one_message_names_file_field_and_what_is_valid(tmp_path, changes, message):
    assert refusal(tmp_path, changes).startswith(f"{tmp_path / 'tiny.yaml'}: {message}")


def test_a_defense_without_its_data(tmp_path):
    raw = yaml.safe_load(bundled()["quickstart"].read_text())
    del raw["align"]["data"]["roles"]["harmful"]
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(raw))
    message = (
        r"whole.yaml: align.data.roles: booster needs data for the role 'harmful' \(found 'align', expected align, ha"
    )
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: {", "not valid YAML: .* line 2"),
        ("- 1", r"a recipe is a mapping of keys \(found 'list'\)"),
        ("", "a recipe is a mapping of keys"),
        ("name: x", "base: a required field is missing"),
        ("\xff", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(str(path))


def test_an_unknown_recipe_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"RECIPE: no such recipe.*'quickstrat'.*Did you mean 'quickstart'\?"):
        load_recipe("quickstrat")
    with pytest.raises(InputError, match="RECIPE: no such recipe, and no such file"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_are_valid_and_named_after_their_files(name):
    recipes = load_recipes(name)
    assert recipes[0].name == name or len(recipes) > 1
    for recipe in recipes:
        assert recipe.title and recipe.question and recipe.stages()


def collection(tmp_path, text):
    path = tmp_path / "all.yaml"
    path.write_text(text)
    return str(path)


def test_a_collection_is_its_recipes_in_order(tmp_path):
    path = collection(tmp_path, "title: two\ncollects: [mlac/pronouns, quickstart]\n")
    assert [recipe.name for recipe in load_recipes(path)] == ["mlac/pronouns", "quickstart"]
    assert load_recipes("quickstart") == (load_recipe("quickstart"),)


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("collects: []", (), "collects: expected a list of recipes' names"),
        ("collects: quickstart", (), "collects: expected a list of recipes' names"),
        ("collects: [quickstrat]", (), "no such recipe.*Did you mean 'quickstart'"),
        ("collects: [quickstart]\nattack: {}", (), "attack: a collection has nothing of its own"),
        ("collects: [quickstart]", ("attack.seed=1",), "--set: a collection takes no overrides"),
    ],
)
def test_a_wrong_collection_is_named(tmp_path, text, overrides, told):
    with pytest.raises(InputError, match=told):
        load_recipes(collection(tmp_path, text), overrides)


def test_a_collection_is_no_recipe(tmp_path):
    path = collection(tmp_path, "collects: [quickstart]")
    with pytest.raises(InputError, match="collects: a collection of recipes, where one is expected"):
        load_recipe(path)
    (tmp_path / "child.yaml").write_text("extends: all.yaml")
    with pytest.raises(InputError, match=r"collects: a collection of recipes.*one of them"):
        load_recipe(str(tmp_path / "child.yaml"))


def test_an_adversary_without_data_of_its_own_trains_on_the_harmful(tmp_path):
    mlac = {"name": "mlac", "inner_steps": 2}
    own = [{"source": "sandbox-restricted", "split": "attack", "num_samples": 7}]
    found = []
    for changes in ({}, {"align.data.roles.adversary": own}):
        recipe = load_recipe(str(tiny.write(tmp_path, {"matrix": {"align.defense": [mlac]}, **changes})))
        (align,) = {stage.folder: stage for stage in in_order(recipe.stages()) if isinstance(stage, Align)}.values()
        found.append(align.roles)
    assert found[0]["adversary"] == found[0]["harmful"]
    assert [part.num_samples for part in found[1]["adversary"]] == [7]
    assert list(found[0]) == ["align", "harmful", "adversary"]
