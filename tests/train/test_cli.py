"""The options: the recipes' defaults, what is refused, and the commands that README and `--help` show."""

import re
import shlex

import pytest

from idefics_jax import IdeficsConfig
from tests.support.conversion import ROOT
from train import cli
from train.cli import main, parse
from train.config import TrainConfig
from train.recipes import PODS, RECIPES, with_defaults

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_authors_recipes():
    base = parse(["--random", "9b", "--recipe", "idefics-base", "--out", "x"])
    assert (base.trainable, base.data.sequence_length, base.batch_size) == ("idefics", 1024, 1279)
    assert (base.optimizer.learning_rate, base.optimizer.final_learning_rate, base.z_loss) == (1e-5, 6e-6, 1e-3)
    instruct = parse(["--random=80b", "--recipe=idefics-instruct", "--out=x", "--z-loss=0.5"])
    assert (instruct.trainable, instruct.data.sequence_length, instruct.batch_size) == ("full", 2048, 299)
    assert (instruct.optimizer.learning_rate, instruct.optimizer.warmup_steps) == (3e-6, 1000)
    assert instruct.z_loss == 0.5, "an option wins over the recipe"


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_every_machine(pod, recipe):
    for model in (IdeficsConfig.idefics_9b(), IdeficsConfig.idefics_80b()):
        config = with_defaults(TrainConfig(out="x", recipe=recipe, pod=pod), model)
        assert config.batch_size % (config.accumulation * PODS[pod].devices) == 0


def test_larger_gpus_take_the_recipes_tokens_in_fewer_parts():
    """205,000 of them are 100 rows of 2,048."""

    def parts(pod):
        config = with_defaults(
            TrainConfig(out="x", recipe="idefics-instruct", pod=pod), IdeficsConfig.idefics_9b_instruct()
        )
        return config.batch_size, config.accumulation

    assert {pod: parts(pod) for pod in PODS if pod.startswith("8x")} == {
        "8xh100": (96, 3),
        "8xh200": (72, 1),
        "8xb200": (96, 1),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "idefics"}, "no recipe 'idefics'"),
        ({"pod": "v9"}, "no machine 'v9'"),
        ({"data__train": "nowhere"}, "nowhere"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"mesh__tensor": 3}, "tensor=3 does not use"),
        ({"accumulation": 3}, "--batch-size 8 cannot be divided"),
        ({"optimizer__name": "adamx"}, "no optimizer 'adamx'"),
        ({"process__count": 2}, "--process.coordinator"),
        ({"trainable": "lora", "lora__targets": "nothing"}, "No linear map's path matches 'nothing'"),
    ],
)
def test_bad_options_get_one_sentence(changes, words, place, capfd):
    assert main(place.options("bad", **changes)) == 1
    error = capfd.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_shown_commands_parse(monkeypatch):
    monkeypatch.setattr("train.starting.IdeficsConfig.from_pretrained", lambda path: IdeficsConfig.idefics_9b())
    text = re.sub(r"\\\n *", "", README + cli.EXAMPLES)
    commands = re.findall(r"^ *python -m train (.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        assert parse(shlex.split(command)).out


@pytest.mark.slow
def test_the_shown_recipe_runs_and_exports(place):
    out, export = place.directory / "lora", place.directory / "lora-model"
    options = {"recipe": "lora", "data__eval": place.eval, "export": export, "eval__answers": 2, "steps": 2}
    place.run(out, trainable="lora", **options)
    assert {"report.html", "metrics.jsonl", "predictions.jsonl", "run.json"} <= {path.name for path in out.iterdir()}
    assert (export / "model.safetensors").is_file()
