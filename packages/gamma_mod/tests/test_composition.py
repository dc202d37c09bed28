"""Composition with LLaVA-HR, by structure: this package does not import it, its users may."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

import gamma_mod
from gamma_mod.checkpoints.convert import convert_release
from gamma_mod.checkpoints.keys import router_key
from gamma_mod.evidence.experiments import be_certain
from gamma_mod.routing import budget
from tenfold import UserError
from tenfold.testing.hosts import build

llava_hr = pytest.importorskip("llava_hr", reason="llava-hr is not installed")


@pytest.fixture
def host():
    from llava_hr.configuration import LlavaHrConfig, LlavaHrVisionConfig
    from llava_hr.modeling import LlavaHrForConditionalGeneration

    low = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision = LlavaHrVisionConfig(
        low_res_config={**low, "image_size": 42, "patch_size": 14},
        image_size=64,
        min_low_size=28,
        high_res_dims=[4, 6, 8, 12],
        high_res_depths=[1, 1, 2, 1],
        adapters=True,
    )
    text = {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaHrForConditionalGeneration(
            LlavaHrConfig(text_config=text, vision_config=vision, image_token_id=59)
        ).eval()


def prompt(host):
    tokens = host.config.num_image_tokens
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, *[59] * tokens, 8, 9, 10]])
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_converted_with_nothing_skipped_llava_hr_equals_the_unconverted_one(host):
    """Logits and generated tokens. Fails if positions, caches or placeholders of another package's model are not
    understood."""
    inputs = prompt(host)
    with torch.no_grad():
        expected = host(**inputs).logits
        tokens = host.generate(**inputs, do_sample=False, max_new_tokens=5)
        gamma_mod.convert(host, (1, 2, 3), prefill_threshold=0.0, decode_threshold=0.0)
        be_certain(host)
        assert torch.allclose(host(**inputs).logits, expected, atol=1e-5)
        assert torch.equal(host.generate(**inputs, do_sample=False, max_new_tokens=5), tokens)


def test_llava_hr_trains_converted(host):
    inputs = prompt(host)
    gamma_mod.convert(host.train(), (1, 2, 3))
    host(**inputs, labels=inputs["input_ids"].where(inputs["input_ids"] < 59, -100)).loss.backward()
    assert host.gamma_mod.router.weight.grad.abs().sum() > 0


def test_a_release_becomes_a_llava_hr_with_its_router(host, tmp_path):
    """An official release, split by this package, its router given to a LLaVA-HR. Fails if the host's official
    names are touched, or the conversion is lost."""
    from llava_hr.checkpoints.keys import to_official

    official = to_official(host.state_dict())
    router = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    official |= {router_key(layer): router for layer in (1, 2, 3)}
    folder = tmp_path / "release"
    folder.mkdir()
    torch.save({name: tensor.clone() for name, tensor in official.items()}, folder / "pytorch_model.bin")
    mod = {"mod_enable": True, "mod_mode": "custom", "mod_layers_idx": [1, 2, 3], "router_aux_loss_coef": 0.01}
    settings = {"model_type": "mod_llava_llama", "hidden_size": 24, "num_hidden_layers": 5, "mod": mod}
    (folder / "config.json").write_text(json.dumps(settings))
    made = convert_release(folder, tmp_path / "host")
    with torch.no_grad():
        fresh = {name: tensor for name, tensor in host.state_dict().items()}
        gamma_mod.restore(host, made.output)
    assert torch.equal(host.gamma_mod.router.weight, router) and host.gamma_mod.config.layers == (1, 2, 3)
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert {name for name in stored if "router" not in name} == set(to_official(fresh))


def test_the_mini_gemini_layout_is_fed_by_embeddings():
    """A language model by itself: 2,880 visual tokens' place is given as `routable`; text rows keep everything."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=3, head_dim=8
    )
    model = gamma_mod.convert(LlamaForCausalLM(config), (1, 2), initialisation="xavier")
    embeds, labels = torch.randn(2, 30, 24), torch.randint(0, 40, (2, 30))
    routable = torch.zeros(2, 30, dtype=torch.bool)
    routable[0, :20] = True
    with gamma_mod.measure_skips(keep_tensors=True) as skips:
        model.train()(inputs_embeds=embeds, labels=labels, routable=routable).loss.backward()
    assert skips.kept["training", 1][0].sum(1).tolist() == [budget(30, 20, 0.5), 30]
    tokens = model.eval().generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape[1] <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: setattr(config.text_config, "sliding_window", 4) or config, "sliding"),
        (lambda config: config, "no plain pre-norm block"),
    ],
)
def test_hosts_of_another_structure_are_refused(change, message):
    """A window over positions, and a block with a further norm."""
    model = build("llava")
    if message == "sliding":
        change(model.config)
        model.config.text_config.layer_types = ["sliding_attention"] * 4
    else:
        block = model.model.language_model.layers[1]

        class Parallel(type(block)):
            def forward(self, hidden_states, **kwargs):
                return self.mlp(self.input_layernorm(hidden_states)) + hidden_states

        block.__class__ = Parallel
    with pytest.raises(UserError, match=message):
        gamma_mod.convert(model, (1, 2))
    assert not hasattr(model, "gamma_mod")
