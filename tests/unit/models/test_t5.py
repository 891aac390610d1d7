"""Our T5 against transformers' T5: same weights, same numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from catalex.errors import CatalexError
from catalex.models.t5 import IGNORE, T5, T5Options
from catalex.models.t5_folder import load_t5, save_t5

SMALL = T5Options(layers=2, hidden=16, feed_forward=32, heads=3, head_width=8, dropout=0.1)


@pytest.fixture
def model() -> T5:
    torch.manual_seed(0)
    return T5(50, SMALL).eval()


def histories() -> torch.Tensor:
    torch.manual_seed(1)
    tokens = torch.randint(1, 50, (4, 40))
    for row, length in enumerate((40, 13, 3, 1)):
        tokens[row, length:] = 0
    return tokens


def test_logits_equal_transformers(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path)
    other, facts = T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    tokens, labels = histories(), torch.randint(1, 50, (4, 5))
    with torch.no_grad():
        theirs = other.eval()(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=labels)
        assert torch.allclose(model(tokens, labels), theirs.logits, atol=2e-5)
        assert model.loss(tokens, labels).item() == pytest.approx(theirs.loss.item(), abs=1e-5)


def test_steps_equal_the_parallel_forward(model: T5) -> None:
    tokens, labels = histories(), torch.randint(1, 50, (4, 5))
    with torch.no_grad():
        expected = model(tokens, labels)
        memory, caches = model.remember(tokens), None
        inputs = torch.cat([torch.zeros(4, 1, dtype=torch.long), labels[:, :-1]], 1)
        for position in range(5):
            both = inputs[:, position : position + 1].expand(4, 2)  # two equal beams
            logits, caches = model.step(both, caches, memory)
            assert torch.allclose(logits[:, 0], expected[:, position], atol=1e-5)
            assert torch.allclose(logits[:, 1], expected[:, position], atol=1e-5)


def test_padding_changes_nothing(model: T5) -> None:
    tokens = histories()
    longer = torch.cat([tokens, torch.zeros(4, 9, dtype=torch.long)], 1)
    with torch.no_grad():
        assert torch.allclose(
            model.encode(longer)[:, :40][tokens != 0], model.encode(tokens)[tokens != 0], atol=1e-5
        )


def test_later_labels_do_not_change_earlier_logits(model: T5) -> None:
    tokens, labels = histories(), torch.randint(1, 50, (4, 5))
    changed = labels.clone()
    changed[:, 3:] = (changed[:, 3:] + 7) % 49 + 1
    with torch.no_grad():
        assert torch.equal(model(tokens, labels)[:, :4], model(tokens, changed)[:, :4])


def test_untrained_loss_is_about_log_of_the_vocabulary() -> None:
    torch.manual_seed(0)
    model = T5(1026, T5Options(preset="tiger")).eval()
    tokens, labels = torch.randint(1, 1026, (16, 30)), torch.randint(1, 1026, (16, 4))
    with torch.no_grad():
        assert abs(model.loss(tokens, labels).item() - math.log(1026)) < 0.6


@pytest.mark.parametrize("vocabulary", [1026, 770])
def test_parameter_count_of_the_tiger_preset(vocabulary: int) -> None:
    assert T5(vocabulary, T5Options(preset="tiger")).parameter_count == 4_459_648 + 128 * vocabulary


def test_ignored_labels_add_nothing(model: T5) -> None:
    tokens, labels = histories(), torch.randint(1, 50, (4, 5))
    partly = labels.clone()
    partly[2:] = IGNORE
    with torch.no_grad():
        assert model.loss(tokens, partly).item() == pytest.approx(
            model.loss(tokens[:2], labels[:2]).item(), abs=1e-5
        )


def test_overfits_32_examples() -> None:
    torch.manual_seed(0)
    model = T5(60, T5Options(layers=2, hidden=32, feed_forward=64, heads=2, head_width=16, dropout=0.0))
    tokens, labels = torch.randint(1, 60, (32, 12)), torch.randint(1, 60, (32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        loss = model.loss(tokens, labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    assert (model(tokens, labels).argmax(-1) == labels).all()


def test_save_and_load_keep_every_weight(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path)
    again = load_t5(tmp_path)
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CatalexError, match=r"not a T5 model.*bert"):
        load_t5(tmp_path)


def test_preset_sizes_can_be_overridden() -> None:
    options = T5Options(preset="mtg", layers=5).resolved()
    assert (options.layers, options.feed_forward, options.heads) == (5, 512, 4)
