"""LoRA, textual inversion and IP-Adapters, loaded by diffusers' own code: they act, on the mask too, and go again."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from inst_diff_edit import parts
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from tenfold import InputError, UserError

SMALL = {"num_inference_steps": 4, "num_masks": 1, "final": "latents", "output_type": "latent"}
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fresh():
    """A model of its own: adapters change it."""
    pipe = mini.build(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, prompt="a ring", picture=PICTURE, **changes):
    return pipe(picture, prompt, **{**SMALL, **changes}).images


def stable(folders):
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_lora_is_loaded_scaled_and_unloaded(folders, tmp_path):
    """Into UNet and text encoder. Fails if one of them is left out, or the scale of a call reaches one of them only."""
    trained, options = stable(folders), {"height": 64, "width": 64, "prompt": "a Husky"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"r": 2, "lora_alpha": 2, "init_lora_weights": False}
        trained.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v"], **settings))
        unet_only = edit(trained, **options)
        inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "v_proj"], **settings), trained.text_encoder)
    layers = {
        f"{part}_lora_layers": get_peft_model_state_dict(getattr(trained, part)) for part in ("unet", "text_encoder")
    }
    InstDiffEditPipeline.save_lora_weights(tmp_path, **layers)
    pipe = stable(folders)
    plain = edit(pipe, **options)
    with torch.random.fork_rng(devices=[]):
        pipe.load_lora_weights(tmp_path)
    ours, theirs = edit(pipe, **options), edit(trained, **options)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-3) and not torch.allclose(ours, unet_only, atol=1e-3)
    assert torch.allclose(edit(pipe, cross_attention_kwargs={"scale": 0.0}, **options), plain, atol=1e-4)
    assert pipe.cross_attention_kwargs == {"scale": 0.0}
    pipe.unload_lora_weights()
    assert torch.equal(edit(pipe, **options), plain)


def test_a_lora_without_peft_is_one_line(fresh, monkeypatch):
    """Fails if diffusers' own error comes through."""
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="peft is not installed: load_lora_weights"):
        fresh.load_lora_weights({})


def test_every_vector_of_a_textual_inversion_reaches_the_text_encoder(fresh):
    """Its tokens are one word. Fails if only the first vector does, in the prompt or in the negative one, or if the
    places of words behind it are those of the text as written."""
    vectors = drawn(3, mini.WIDTH)
    with torch.random.fork_rng(devices=[]):
        fresh.load_textual_inversion({"<cat-toy>": vectors})
    negative, positive = fresh._encode_prompts(["a <cat-toy> lemon"], "<cat-toy>", guided=True)
    table, names = fresh.text_encoder.get_input_embeddings().weight, "<cat-toy> <cat-toy>_1 <cat-toy>_2"
    for text, found in ((f"a {names} lemon", positive), (names, negative)):
        ids = fresh.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        place = 1 + text.startswith("a ")
        assert torch.equal(table[ids[0, place : place + 3]], vectors)
        with torch.no_grad():
            golden = fresh.text_encoder(ids)[0][0].half().float()
        assert torch.allclose(found, golden, atol=1e-3)
    words = fresh(PICTURE, "a <cat-toy> lemon", **SMALL).words[0]
    assert words.text == ("a", "<cat-toy>", "lemon") and words.groups == ((0,), (1,), (2, 3, 4), (5,), (6,))
    for place in ("prompt", "negative_prompt"):
        with pytest.raises(InputError, match=f"a {place} of 15 tokens"):
            edit(fresh, **{"prompt": "a ring", place: "<cat-toy> " * 5})


def adapter(unet, pictures=4):
    """An IP-Adapter with drawn weights, as its files hold it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers, number, width = {}, 1, unet.config.cross_attention_dim
        for name in unet.attn_processors:
            if "attn2" in name:
                module = unet.get_submodule(name.removesuffix(".processor"))
                weights = IPAdapterAttnProcessor(module.to_q.out_features, width, scale=1.0).state_dict()
                for kind in ("to_k_ip", "to_v_ip"):
                    layers[f"{number}.{kind}.weight"] = weights[f"{kind}.0.weight"]
                number += 2
        projection = ImageProjection(width, width, pictures).state_dict()
    named = {name.replace("image_embeds.", "proj."): value for name, value in projection.items()}
    return {"image_proj": named, "ip_adapter": layers}


def load(pipe, count=1):
    names = {"subfolder": [""] * count, "weight_name": [""] * count, "image_encoder_folder": None}
    pipe.load_ip_adapter([adapter(pipe.unet)] * count, **names)


def test_an_ip_adapter_acts_and_goes_again(fresh):
    """Fails if its pictures are not handed on, rows of edits and noises are mixed up, or its scale does nothing."""
    plain, guided = edit(fresh), drawn(2, 1, mini.WIDTH)
    load(fresh)
    with pytest.raises(InputError, match="no picture for the IP-Adapter: ip_adapter_image"):
        edit(fresh)
    fresh.set_ip_adapter_scale(0.0)
    assert torch.allclose(edit(fresh, ip_adapter_image_embeds=[guided]), plain, atol=1e-5)
    fresh.set_ip_adapter_scale(1.0)
    told = edit(fresh, ip_adapter_image_embeds=[guided])
    assert not torch.allclose(told, plain, atol=1e-3)
    several = edit(fresh, picture=[PICTURE] * 2, num_masks=2, num_images_per_prompt=2, ip_adapter_image_embeds=[guided])
    assert several.shape[0] == 8 and torch.allclose(several[0], several[4], atol=1e-3)
    exchanged = edit(fresh, ip_adapter_image_embeds=[guided.flip(0)])
    assert not torch.allclose(exchanged, told, atol=1e-4)  # the negative one comes first
    assert edit(fresh, guidance_scale=1.0, ip_adapter_image_embeds=[guided[1:]]).shape == plain.shape
    fresh.unload_ip_adapter()
    assert torch.equal(edit(fresh), plain)


def test_two_ip_adapters_and_masks_for_them(fresh):
    """Fails if the second one's pictures or the masks are lost on the way."""
    load(fresh, 2)
    embeds = [drawn(2, 1, mini.WIDTH), drawn(2, 1, mini.WIDTH, seed=1)]
    both = edit(fresh, ip_adapter_image_embeds=embeds)
    assert not torch.allclose(both, edit(fresh, ip_adapter_image_embeds=[embeds[0]] * 2), atol=1e-4)
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., :16] = 1
    told = {"ip_adapter_masks": [masks, masks]}
    assert not torch.allclose(both, edit(fresh, ip_adapter_image_embeds=embeds, cross_attention_kwargs=told), atol=1e-4)


def test_an_ip_adapter_sees_pictures_through_its_image_encoder(fresh):
    """Fails if they are encoded otherwise than diffusers does."""
    load(fresh)
    with pytest.raises(InputError, match="no image encoder: ip_adapter_image"):
        edit(fresh, ip_adapter_image=PICTURE)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=mini.WIDTH, **sizes)
        encoder = CLIPVisionModelWithProjection(vision).eval()
    extractor = CLIPImageProcessor(size=8, crop_size=8)
    fresh.register_modules(image_encoder=encoder, feature_extractor=extractor)
    seen = fresh.feature_extractor(PICTURE, return_tensors="pt").pixel_values
    with torch.no_grad():
        positive = encoder(seen).image_embeds[None]
    embeds = torch.cat([torch.zeros_like(positive), positive])
    ours = edit(fresh, ip_adapter_image=PICTURE)
    assert torch.allclose(ours, edit(fresh, ip_adapter_image_embeds=[embeds]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ip_adapter_image_embeds": [torch.zeros(2, 1, 31), torch.zeros(2, 1, 31)]}, "embeddings of another shape"),
        ({"ip_adapter_image_embeds": [torch.zeros(1, 1, 32)]}, r"expected 1 of \[2, pictures, width\], the negative"),
        ({"ip_adapter_image_embeds": [torch.zeros(2, 32)]}, "embeddings of another shape"),
        ({"ip_adapter_image_embeds": [3]}, "embeddings of another shape"),
        ({"ip_adapter_image_embeds": [torch.zeros(2, 1, 32)], "ip_adapter_image": PICTURE}, "pictures and embeddings"),
    ],
)
def test_what_an_ip_adapter_cannot_use_is_one_line(fresh, changes, message):
    """Fails if a matrix product finds it out."""
    load(fresh)
    with pytest.raises(InputError, match=message) as refusal:
        edit(fresh, **changes)
    assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(InputError, match="no IP-Adapter is loaded: ip_adapter_image"):
        edit(mini.build(0), **changes)
