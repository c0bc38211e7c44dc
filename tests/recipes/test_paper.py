"""The recipes are the paper's: the numbers of sections 4.1.2, 4.2.2 and 4.2.5, and a card with how to repeat them."""

import inspect
import re
import shlex
from typing import Any

import pytest

from longspan.data.catalog import catalog
from longspan.model.config import EncoderConfig
from longspan.recipes.ablated import ablated
from longspan.recipes.catalog import RECIPES, build_recipe
from longspan.recipes.contrastive import contrastive
from longspan.recipes.finetune import finetune
from longspan.recipes.mlm import mlm
from longspan.train.config import TrainConfig

PAPER = ("mlm", "contrastive", "finetune", "ablated")


NUMBERS: dict[str, list[tuple[str, str, Any]]] = {
    "mlm": [
        ("4.1.2: a 30 % masking rate", "objective.mask_rate", 0.30),
        ("4.1.2: all stages with 2,048 tokens", "objective.row_length", 2048),
        ("4.1.1: documents are packed together", "objective.within_documents", False),
        ("4.1.2: a global batch size of 4,096", "batch_size", 4096),
        ("4.1.2: a max learning rate of 5e-4", "optim.lr", 5e-4),
        ("4.1.2: beta 1 is 0.9", "optim.beta1", 0.9),
        ("4.1.2: beta 2 is 0.98", "optim.beta2", 0.98),
        ("4.1.2: weight decay of 1e-5", "optim.weight_decay", 1e-5),
        ("4.1.2: gradient clipping is disabled", "optim.clip_norm", None),
        ("4.1.2: a linear warm-up of 6 % of the steps", "schedule.warmup_fraction", 0.06),
        ("4.1.2: a linear decay to 0", "schedule.kind", "linear"),
        ("4.1.2: bfloat16 mixed precision", "precision", "bf16"),
        ("Table 2: 100,000 steps", "max_steps", 100_000),
        ("it begins with random weights", "init", None),
    ],
    "contrastive": [
        ("4.2.2: initialised with nomic-bert-2048", "init", "runs/mlm"),
        ("4.2.2: a global batch size of 16,384", "batch_size", 16_384),
        ("4.2.2: a learning rate of 2e-4", "optim.lr", 2e-4),
        ("4.2.2: beta 1 is 0.9", "optim.beta1", 0.9),
        ("4.2.2: beta 2 is 0.999", "optim.beta2", 0.999),
        ("4.2.2: weight decay of 0.01", "optim.weight_decay", 0.01),
        ("4.2.2: clipping at 1.0", "optim.clip_norm", 1.0),
        ("4.2.2: a warm-up of 700 steps", "schedule.warmup_steps", 700),
        ("4.2.2: an inverse square root decay", "schedule.kind", "inverse_sqrt"),
        ("4.2.2: a batch comes from one source", "objective.batches_of", "source"),
        ("4.2.2: a query of 2,048 tokens", "objective.max_query_tokens", 2048),
        ("4.2.2: a document of 2,048 tokens", "objective.max_document_tokens", 2048),
        ("4.2.2: one epoch", "epochs", 1.0),
        ("4.2.2: one epoch, whatever its steps", "max_steps", None),
        ("4.2.2: mixed precision", "precision", "bf16"),
        ("equation (1): no mined negatives", "objective.num_negatives", 0),
        ("equation (1): query to document", "objective.directions", ("query_to_doc",)),
        ("equation (1): all documents are in the sum", "objective.mask_duplicates", False),
        ("3.2: mean pooling", "objective.pooling", "mean"),
        ("not in the paper: a scale of 50", "objective.temperature", 1 / 50),
    ],
    "finetune": [
        ("4.2.5: one epoch", "epochs", 1.0),
        ("4.2.5: one epoch, whatever its steps", "max_steps", None),
        ("4.2.5: seven hard negatives", "objective.num_negatives", 7),
        ("4.2.5: a batch size of 256", "batch_size", 256),
        ("4.2.5: a learning rate of 2e-5", "optim.lr", 2e-5),
        ("4.2.5: beta 1 is 0.9", "optim.beta1", 0.9),
        ("4.2.5: beta 2 is 0.999", "optim.beta2", 0.999),
        ("4.2.5: weight decay of 0.01", "optim.weight_decay", 0.01),
        ("4.2.5: clipping at 1.0", "optim.clip_norm", 1.0),
        ("4.2.5: a warm-up of 400 steps", "schedule.warmup_steps", 400),
        ("4.2.5: a linear cooldown to 0", "schedule.kind", "linear"),
        ("4.1.2: all stages with 2,048 tokens: queries", "objective.max_query_tokens", 2048),
        ("4.1.2: all stages with 2,048 tokens: documents", "objective.max_document_tokens", 2048),
        ("4.2.4: a batch comes from one source", "objective.batches_of", "source"),
        ("equation (2): a query's own negatives", "objective.negatives_for", "own"),
        ("equation (2): all documents are in the sum", "objective.mask_duplicates", False),
        ("it goes on from contrastive pretraining", "init", "runs/contrastive"),
        ("not in the paper: a scale of 50", "objective.temperature", 1 / 50),
    ],
}
"""Recipe -> what the paper says and where, the setting, its value."""


@pytest.mark.parametrize(
    ("recipe", "setting", "value"),
    [
        pytest.param(*(recipe, key, value), id=f"{recipe}, {said}")
        for recipe in NUMBERS
        for said, key, value in NUMBERS[recipe]
    ],
)
def test_every_number_of_the_paper_is_in_its_place(recipe: str, setting: str, value: Any) -> None:
    found: Any = RECIPES[recipe]("data")
    for name in setting.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_schedules_are_the_papers():
    # Linear warm-up of 6 % of the steps, linear decay to 0; 700 steps, inverse square root; 400 steps, linear to 0.
    factor = mlm("data").schedule.factor
    assert [factor(step, 100_000) for step in (2_999, 5_999, 53_000)] == pytest.approx([0.5, 1, 0.5])
    assert factor(99_999, 100_000) == pytest.approx(0.0, abs=2e-5)
    factor = contrastive("data").schedule.factor
    found = [factor(step, 14_316) for step in (349, 699, 2_799, 6_299)]
    assert found == pytest.approx([0.5, 1, 1 / 2, 1 / 3])
    factor = finetune("data").schedule.factor
    assert [factor(step, 6_400) for step in (199, 399, 3_400)] == pytest.approx([0.5, 1, 0.5])
    assert factor(6_399, 6_400) == pytest.approx(0.0, abs=2e-4)


def test_the_encoder_is_nomic_bert_2048():
    encoder = mlm("data").encoder
    assert encoder == EncoderConfig(), "the defaults are the paper's"
    assert encoder is not None
    # BERT base, with the changes of section 4.1.2.
    assert (encoder.width, encoder.num_layers, encoder.num_heads, encoder.inner_width) == (768, 12, 12, 3072)
    assert (encoder.activation, encoder.positions, encoder.bias) == ("swiglu", "rotary", False)
    assert encoder.rotary_base == 1000  # section 3.4
    assert encoder.trained_length == 2048
    assert encoder.padded_vocab_size == 30528, "a multiple of 64"
    assert (encoder.max_length, encoder.ntk_alpha) == (8192, 2)  # section 5.2.2


def test_the_ablated_recipe_is_finetuning_without_three_of_the_data_sets():
    config, whole = ablated("data"), finetune("data")
    assert config.model_copy(update={"recipe": "finetune", "sources": ()}) == whole
    table_3 = {entry.name for entry in catalog().values() if entry.stage == "finetune"}
    left_out = table_3 - set(config.sources)
    assert set(config.sources) <= table_3
    assert left_out == {"fever", "hotpot", "medi_supernli", "medi_stackexchange", "medi_flickr", "medi_wiki"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_complete_configuration(name):
    config = RECIPES[name]("some/folder")
    assert isinstance(config, TrainConfig)
    assert (config.recipe, config.data) == (name, "some/folder")
    assert TrainConfig.parse(config.model_dump(mode="json"), where="-") == config
    assert RECIPES[name]("some/folder") == config
    from_model = RECIPES[name]("some/folder", "my/model")
    assert (from_model.init, from_model.encoder) == ("my/model", None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_card_says_how_to_repeat_it(name):
    card = inspect.getdoc(RECIPES[name]) or ""
    assert re.search(r"section (4\.[12]|5\.2)", card)
    assert re.search(r"^Hardware: .+", card, re.MULTILINE)
    assert re.search(r"^Expected: .+", card, re.MULTILINE)
    assert card.splitlines()[0].endswith(".")
    command = re.search(r"^Command: (.+)", card, re.MULTILINE)
    assert command is not None
    assert name in command[1] or "longspan demo" in command[1]


@pytest.mark.parametrize("name", PAPER)
def test_a_card_of_the_paper_says_what_it_costs_and_where_the_released_weights_differ(name):
    card = inspect.getdoc(RECIPES[name]) or ""
    for label in ("Paper", "Command", "Hardware", "Hours", "Memory", "Expected", "Differs"):
        assert re.search(rf"^{label}: .+", card, re.MULTILINE), label
    changes = dict(change.rstrip(".,:").split("=") for change in re.findall(r"--set (\S+)", card))
    assert isinstance(build_recipe(name, "data", None, changes), TrainConfig), "what a card offers to set, is a setting"


@pytest.mark.parametrize("name", PAPER)
def test_the_command_on_a_card_is_one_that_the_command_line_takes(name):
    from longspan.cli import build_parser

    card = inspect.getdoc(RECIPES[name]) or ""
    words = shlex.split(card.split("Command: ")[1].splitlines()[0])
    parsed = build_parser().parse_args(words[words.index("longspan") + 1 :])
    assert (parsed.recipe, parsed.data) == (name, "DIR")
    assert parsed.out is not None
    config = build_recipe(parsed.recipe, parsed.data, parsed.init, {})
    assert isinstance(config, TrainConfig)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_batches_divide_among_its_eight_gpus(name):
    assert RECIPES[name]("data").batch_size % 8 == 0
