"""The recipes are the paper's: the numbers of sections 4.1.2, 4.2.2 and 4.2.5, and a card with how to repeat them."""

import inspect
import re
import shlex

import pytest

from longspan.data.catalog import catalog
from longspan.model.config import EncoderConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.recipes.ablated import ablated
from longspan.recipes.catalog import RECIPES, build_recipe
from longspan.recipes.contrastive import contrastive
from longspan.recipes.finetune import finetune
from longspan.recipes.mlm import mlm
from longspan.train.config import TrainConfig

PAPER = ("mlm", "contrastive", "finetune", "ablated")


def test_masked_language_modelling_is_section_4_1_2():
    config = mlm("data")
    assert isinstance(config.objective, MaskedConfig)
    assert config.objective.mask_rate == 0.30
    assert config.objective.row_length == 2048
    assert not config.objective.within_documents, "packed across documents"
    assert config.batch_size == 4096
    assert (config.optim.lr, config.optim.beta1, config.optim.beta2) == (5e-4, 0.9, 0.98)
    assert config.optim.weight_decay == 1e-5
    assert config.optim.clip_norm is None, "gradient clipping is disabled"
    assert config.precision == "bf16"
    assert config.init is None
    assert config.max_steps == 100_000  # Table 2
    # A linear warm-up of 6 % of the steps and a linear decay to 0.
    factor = config.schedule.factor
    assert factor(5_999, 100_000) == 1.0
    assert factor(2_999, 100_000) == pytest.approx(0.5)
    assert factor(53_000, 100_000) == pytest.approx(0.5)
    assert factor(99_999, 100_000) == pytest.approx(0.0, abs=2e-5)


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


def test_contrastive_pretraining_is_section_4_2_2():
    config = contrastive("data")
    assert isinstance(config.objective, ContrastiveConfig)
    assert config.objective.num_negatives == 0
    assert (config.objective.max_query_tokens, config.objective.max_document_tokens) == (2048, 2048)
    assert config.objective.pooling == "mean"
    assert config.objective.temperature == 0.02  # not in the paper: the released configuration's scale of 50
    assert config.batch_size == 16_384
    assert (config.optim.lr, config.optim.beta1, config.optim.beta2) == (2e-4, 0.9, 0.999)
    assert config.optim.weight_decay == 0.01
    assert config.optim.clip_norm == 1.0
    assert (config.epochs, config.max_steps) == (1.0, None)
    assert config.init == "runs/mlm", "it starts from nomic-bert-2048"
    # A linear warm-up of 700 steps and an inverse square root decay.
    factor = config.schedule.factor
    assert factor(699, 14_316) == 1.0
    assert factor(349, 14_316) == pytest.approx(0.5)
    assert factor(2_799, 14_316) == pytest.approx(0.5)
    assert factor(6_299, 14_316) == pytest.approx(1 / 3)


def test_finetuning_is_section_4_2_5():
    config = finetune("data")
    assert isinstance(config.objective, ContrastiveConfig)
    assert config.objective.num_negatives == 7
    assert config.objective.negatives_for == "own"  # equation (2)
    assert config.objective.temperature == 0.02
    assert config.batch_size == 256
    assert (config.optim.lr, config.optim.beta1, config.optim.beta2) == (2e-5, 0.9, 0.999)
    assert config.optim.weight_decay == 0.01
    assert config.optim.clip_norm == 1.0
    assert (config.epochs, config.max_steps) == (1.0, None), "more than one epoch hurts"
    # A linear warm-up of 400 steps and a linear cooldown to 0.
    factor = config.schedule.factor
    assert factor(399, 6_400) == 1.0
    assert factor(199, 6_400) == pytest.approx(0.5)
    assert factor(3_400, 6_400) == pytest.approx(0.5)
    assert factor(6_399, 6_400) == pytest.approx(0.0, abs=2e-4)


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
