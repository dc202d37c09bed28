"""The model: its parts, sizes, variants and initialisation (section 3), its files and its captions."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dtnet_models import tiny_config, tiny_features, tiny_model, tiny_tokens
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import dtnet
from dtnet.beam import beam_search
from dtnet.config import DTNetConfig
from dtnet.encoder import sinusoid
from dtnet.model import DTNet
from dtnet.router import Paths, harden
from dtnet.vocabulary import Vocabulary
from tenfold import UserError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def full_size() -> DTNet:
    with torch.device("meta"):
        return DTNet(DTNetConfig())


def words(size: int) -> Vocabulary:
    return Vocabulary(["<unk>", "<pad>", "<bos>", "<eos>", *(f"word{number}" for number in range(4, size))])


def test_parameters_of_every_part_at_full_size(full_size):
    """Fails with a bias too many in any part."""
    layer = full_size.encoder.layers[0]
    assert count(full_size) == 36_179_384
    assert sum(p.numel() for p in full_size.parameters() if p.requires_grad) == 36_151_224
    assert (count(full_size.encoder), count(full_size.decoder)) == (13_087_160, 23_092_224)
    assert count(full_size.encoder.fc) == 1_049_088 and count(full_size.encoder.geometry) == 520
    assert count(layer) == 4_012_176
    assert count(layer.spatial["gmc"].attention) == 1_051_648 and count(layer.spatial["gmc"].norm) == 1_024
    assert count(layer.spatial["lmc"].cell) == 38 and count(layer.spatial["amc"].cell) == 787_056
    assert count(layer.channel["cpc"]) == 2_100_736 and count(layer.channel["cac"]) == 33_792
    assert count(layer.spatial_router) == 16_922 and count(layer.channel_router) == 16_864
    assert count(full_size.decoder.layers[0]) == 4_206_080
    assert count(full_size.decoder.word_embedding) == count(full_size.decoder.fc) == 5_222_912


@pytest.mark.parametrize(
    ("changes", "fewer_a_layer"),
    [
        ({"routing": "uniform"}, 16_922 + 16_864),
        # The joint head of 3 cells and of 2, and the other branch of each.
        ({"routing": "spatial"}, 33 + 16 + (512 * 32 + 32 + 33 * 3) + (512 * 32 + 32 + 33 * 2)),
        ({"routing": "channel"}, 33 + 16 + (49 * 7 + 7 + 8 * 3) + (49 * 7 + 7 + 8 * 2)),
        # Two spatial cells left: their router is as large as the channel router. LMC with its LayerNorm.
        ({"cells": ("amc", "gmc", "cac", "cpc")}, 38 + 1024 + 16_922 - 16_864),
        # One cell a space: nothing to route.
        ({"cells": ("gmc", "cpc")}, 38 + 787_056 + 2 * 1024 + 33_792 + 16_922 + 16_864),
    ],
)
def test_parameters_of_the_variants(full_size, changes, fewer_a_layer):
    with torch.device("meta"):
        variant = DTNet(replace(DTNetConfig(), **changes))
    assert count(full_size) - count(variant) == 3 * fewer_a_layer


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": ("gmc", "cpc")},
        {"cells": ("lmc", "cac")},
        {"cells": ("lmc", "amc", "cac", "cpc"), "routing": "spatial"},
        {"grid": 3, "d_model": 24, "d_in": 6, "heads": 3},
        {"routing": "uniform", "encoder_layers": 1, "decoder_layers": 1},
    ],
)
def test_variants_and_other_sizes_run_and_learn(changes, tmp_path):
    """No size is fixed in the code. Fails with a 7 or a 49 in any part."""
    model = tiny_model(**changes)
    features, tokens = tiny_features(model), tiny_tokens(model)
    model(features, tokens).logsumexp(-1).sum().backward()
    model(features, tokens)[..., 5].sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = {name for name, _ in model.named_parameters() if ".stage2.identity." in name}
    assert without == unused | {"decoder.position_embedding.weight"}
    assert beam_search(model, features, 3, 6).tokens.shape == (3, 1, 6)
    model.save_pretrained(tmp_path / "model")
    assert DTNet.from_pretrained(tmp_path / "model").config == model.config


def test_initialisation_is_the_official_one():
    """Section 3.5. Fails if Xavier spares the embeddings, the positions or the convolutions."""
    model = DTNet(DTNetConfig(vocabulary_size=300, encoder_layers=1, decoder_layers=1))
    positions = model.decoder.position_embedding.weight
    assert 0.10 < positions.abs().max() < 0.1029 + 1e-4 and not positions.requires_grad
    assert positions[0].abs().max() > 0.05
    for parameter in (model.decoder.word_embedding.weight, model.encoder.fc.weight, model.decoder.fc.weight):
        bound = math.sqrt(6 / sum(parameter.shape))
        assert 0.9 * bound < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert model.decoder.word_embedding.weight[model.config.pad_id].norm() > 0.5, "the padding's row too"
    attention = model.encoder.layers[0].spatial["gmc"].attention
    assert all(not linear.bias.any() for linear in (attention.q, attention.k, attention.v, attention.o))
    assert model.encoder.layers[0].channel["cpc"].fc1.bias.any()
    layer = model.encoder.layers[0].spatial["lmc"].cell.stage1
    assert layer.three[2].weight.abs().max() <= math.sqrt(6 / 18)


def test_sinusoid_is_an_option():
    model = DTNet(tiny_config(init="sinusoid"))
    table = model.decoder.position_embedding.weight
    assert not table[0].any() and not table.requires_grad
    assert torch.equal(table[1:], sinusoid(torch.arange(1, 13), 32))
    assert table[3, 0].item() == pytest.approx(math.sin(3)) and table[3, 1].item() == pytest.approx(math.cos(3))
    assert table[3, 2].item() == pytest.approx(math.sin(3 / 10000 ** (2 / 32)))


def test_building_a_model_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    weights = DTNet(tiny_config(), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = DTNet(tiny_config(), seed=3).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    other = DTNet(tiny_config(), seed=4).state_dict()
    assert not torch.equal(weights["decoder.fc.weight"], other["decoder.fc.weight"])


def test_dropout_reaches_everything_but_attention_weights():
    """The official code's attention drops at 0.1 whatever the model's dropout is: here a field of its own."""
    model = DTNet(tiny_config(dropout=0.3))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {p for name, p in rates.items() if name.endswith("weight_dropout")} == {0.1}
    assert {p for name, p in rates.items() if not name.endswith("weight_dropout")} == {0.3}
    still = DTNet(tiny_config(dropout=0.0, attention_dropout=0.0)).train()
    features, tokens = tiny_features(still), tiny_tokens(still)
    assert torch.equal(still(features, tokens), still(features, tokens))
    model.train()
    assert not torch.equal(model(features, tokens), model(features, tokens))


def test_paths_of_another_image_can_be_given():
    """The swap test. Fails if `override_paths` is not used, or only for one of the routing spaces."""
    model = tiny_model()
    features = tiny_features(model, 4)
    own = model.encode(features)
    assert torch.equal(model.encode(features, override_paths=own.paths).memory, own.memory)
    for part in range(2):
        swapped = [paths.flip(0) if part == number else paths for number, paths in enumerate(own.paths)]
        other = model.encode(features, override_paths=Paths(*swapped))
        assert not torch.allclose(other.memory, own.memory, atol=1e-3)
        assert torch.equal(other.paths[part], own.paths[part].flip(0))
    mean = Paths(*(paths.mean(0, keepdim=True) for paths in own.paths))
    assert model.encode(features, override_paths=mean).paths.spatial.shape == (4, 2, 3)
    with pytest.raises(UserError, match=r"paths of shape \[2, 2, 3\]"):
        model.encode(features, override_paths=Paths(*(paths[:2] for paths in own.paths)))


def test_hard_routing_computes_only_the_cells_that_are_kept():
    """Fails if a dropped cell still runs, or a kept one for an image that does not need it."""
    model = tiny_model()
    features = tiny_features(model, 6)
    seen: dict[str, int] = {}
    for name, cell in (*model.encoder.layers[0].spatial.items(), *model.encoder.layers[0].channel.items()):
        cell.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: len(inputs[0])}))
    hard = model.encode(features, hard="top1")
    kept = torch.cat((hard.paths.spatial[:, 0] > 0, hard.paths.channel[:, 0] > 0), dim=1).sum(0).tolist()
    assert sum(kept[:3]) == sum(kept[3:]) == 6
    assert seen == {
        name: number for name, number in zip(("lmc", "amc", "gmc", "cac", "cpc"), kept, strict=True) if number
    }
    # The same weights without skipping.
    torch.testing.assert_close(model.encode(features, override_paths=hard.paths).memory, hard.memory)
    soft = model.encode(features)
    torch.testing.assert_close(model.encode(features, hard=1e-9).memory, soft.memory)
    assert torch.equal(hard.paths.spatial[:, 0].argmax(-1), soft.paths.spatial[:, 0].argmax(-1))
    padding = torch.zeros(6, 16, dtype=torch.bool)
    padding[2, 5:] = True
    with_padding = model.encode(features, padding, hard=0.4)
    again = model.encode(features, padding, override_paths=with_padding.paths)
    torch.testing.assert_close(with_padding.memory, again.memory)


def test_hard_weights_keep_the_largest_and_sum_to_1():
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(harden(weights, 0.3), torch.tensor([[0, 0.625, 0.375], [0, 0, 1.0]]))
    torch.testing.assert_close(harden(weights, 0.9), torch.tensor([[0, 1.0, 0], [0, 0, 1.0]]))


def test_save_and_load_are_bit_identical(tmp_path):
    model = tiny_model()
    model.vocabulary, model.feature_settings = words(23), {"name": "mini", "grid": 4}
    model.save_pretrained(tmp_path / "model")
    again = DTNet.from_pretrained(tmp_path / "model")
    assert again.config == model.config and not again.training
    assert again.vocabulary == model.vocabulary and again.feature_settings == model.feature_settings
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    features, tokens = tiny_features(model), tiny_tokens(model)
    assert torch.equal(model(features, tokens), again(features, tokens))
    with pytest.raises(UserError, match="already exists"):
        model.save_pretrained(tmp_path / "model")
    assert dtnet.DTNet is DTNet


def test_captions(tmp_path):
    """Text, ids, sum and paths belong together; the model's mode and gradients are left alone."""
    model = tiny_model().train()
    model.decoder.layers[0].eval()
    model.vocabulary = words(23)
    features = tiny_features(model, 4)
    captions = model.caption(features, beam_size=3, max_len=8, return_paths=True)
    assert model.training and not model.decoder.layers[0].training
    model.eval()
    found, paths = beam_search(model, features, 3, 8), model.encode(features).paths
    for number, caption in enumerate(captions):
        row = found.tokens[number, 0].tolist()
        ids = row[: row.index(3)] if 3 in row else row
        assert caption.tokens == tuple(ids)
        assert caption.text == model.vocabulary.decode(ids)
        assert caption.log_prob == pytest.approx(found.log_probs[number, 0].sum().item(), abs=1e-4)
        torch.testing.assert_close(caption.paths.spatial, paths.spatial[number])
        assert caption.paths.channel.shape == (2, 2)
    assert model.caption(features[:1], max_len=8)[0].paths is None


def test_captions_of_images():
    """Fails if the features of the model's own extractor are not what is captioned."""
    from dtnet.features import build_extractor

    settings = {"name": "mini", "grid": 4}
    model = tiny_model(d_in=24)
    model.vocabulary, model.feature_settings = words(23), settings
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in pixels]
    found = model.caption(images, max_len=8)
    assert found == model.caption(build_extractor(settings)(images), max_len=8)
    model.feature_settings = None
    with pytest.raises(UserError, match="no feature extractor"):
        model.caption(images)


def test_wrong_inputs_are_named():
    model = tiny_model()
    features, tokens = tiny_features(model), tiny_tokens(model)
    every = torch.ones(3, 16, dtype=torch.bool)
    for call, message in (
        (
            lambda: model(features[:, :5], tokens),
            r"features of shape \[3, 5, 12\]: DTNet \(expected \[batch, 16, 12\]\)",
        ),
        (lambda: model(features[..., :5], tokens), r"features of shape \[3, 16, 5\]"),
        (lambda: model(features[0], tokens), r"tokens of shape \[3, 7\]"),
        (lambda: model(features, tokens[:2]), r"tokens of shape \[2, 7\]"),
        (
            lambda: model(features, tokens.repeat(1, 2)),
            r"tokens of shape \[3, 14\]: DTNet \(expected \[3, at most 12\]\)",
        ),
        (lambda: model.encode(features, every), "an image that is all padding"),
        (lambda: model.encode(features, every[:, :3]), r"padding of shape \[3, 3\]"),
        (lambda: model.encode(features, every.float()), "torch.float32"),
        (lambda: model.encode(features, hard="top2"), "hard routing 'top2'"),
        (lambda: model.encode(features, hard=0), "hard routing 0"),
        (lambda: model.caption(features), "no vocabulary"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 5}, "d_in is 5"),
        ({"heads": 0}, "heads is 0"),
        ({"grid": 7.0}, "grid is 7.0"),
        ({"eos_id": 1}, "eos_id is 1"),
        ({"bos_id": 23}, "bos_id is 23"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"cells": ("gmc",)}, "at least one of cac, cpc"),
        ({"cells": ("gmc", "gmc", "cpc")}, "cells is"),
        ({"cells": ("gmc", "ffn")}, "some of lmc, amc, gmc, cac, cpc"),
        ({"routing": "hard"}, "routing is 'hard'"),
        ({"router_reductions": (17, 8)}, "at most 16"),
        ({"router_reductions": 7}, "two numbers"),
        ({"se_reduction": 64}, "se_reduction is 64"),
    ],
)
def test_dimensions_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_config_survives_json():
    config = tiny_config(cells=("cpc", "gmc", "lmc"), routing="channel")
    assert DTNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.cells == ("lmc", "gmc", "cpc"), "in the order of the path weights"
    with pytest.raises(UserError, match="unknown field 'width'"):
        DTNetConfig.from_json({"width": 3})


def test_a_broken_folder_is_named(tmp_path):
    """Each of these is one line for the user. Fails if one of them reaches torch."""
    model = tiny_model()
    model.vocabulary = words(23)
    folder = tmp_path / "model"

    def broken(message: str) -> None:
        with pytest.raises(UserError, match=message):
            DTNet.from_pretrained(folder)
        model.save_pretrained(folder, replace=True)

    broken("no such folder")
    (folder / "config.json").write_text("{")
    broken("broken JSON")
    (folder / "config.json").write_text('{"d_model": 3}')
    broken("no dimensions of a DTNet")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    broken("broken or truncated")
    (folder / "model.safetensors").unlink()
    broken("no such file")
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if name != "decoder.fc.weight"}, folder / "model.safetensors"
    )
    broken("1 weights missing, such as decoder.fc.weight")
    save_file({**state, "extra": torch.zeros(1)}, folder / "model.safetensors")
    broken("1 weights of another model, such as extra")
    save_file({**state, "decoder.fc.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    broken(r"decoder.fc.weight: .* \(expected \[3, 3\] in the file, \[23, 32\] in the model\)")
    save_file({**state, "decoder.fc.weight": torch.full((23, 32), math.nan)}, folder / "model.safetensors")
    broken("not finite, such as decoder.fc.weight")
    words(22).save(folder / "vocabulary.json")
    broken("a vocabulary of 22 words")
    model.vocabulary = words(22)
    with pytest.raises(UserError, match="a vocabulary of 22 words"):
        model.save_pretrained(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
