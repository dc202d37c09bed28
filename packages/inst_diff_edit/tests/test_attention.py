"""What is recorded of attention, beside processors of any kind, compiled or not, and that it leaves no trace."""

import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from peft import LoraConfig
from torch import nn

from inst_diff_edit import attention
from inst_diff_edit.attention import AttentionRecorder, cross_attention, grid_edge
from inst_diff_edit.miniature import model as mini
from tenfold import UserError

WORDS, WIDTH = 16, mini.WIDTH


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def unet():
    """The mini model's, with attention on the way down too, as Stable Diffusion's."""
    plain = mini.build(0).unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
        return UNet2DConditionModel.from_config(plain.config, down_block_types=blocks).eval()


def recorded(unet, rows=slice(1, None), steps=1, edge=32, seed=0):
    """The mean map of some steps, two rows of which the second counts; and what the UNet said last."""
    recorder = AttentionRecorder(unet, 2)
    recorder.expect(edge, edge, rows=rows)
    with recorder, torch.no_grad():
        for step in range(steps):
            said = unet(drawn(2, 3, edge, edge, seed=seed + step), 10, encoder_hidden_states=drawn(2, WORDS, WIDTH))
            recorder.finish_step()
    return recorder.mean(), said.sample


@pytest.fixture
def layers():
    """A model of one layer of attention to the prompt, with 4 x 4 positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, block = nn.Module(), nn.Module()
        block.add_module("attn2", Attention(8, 6, heads=2, dim_head=4))
    model.add_module("down_blocks", block)
    return model


def test_only_attention_to_the_prompt_at_the_middle_resolution_is_formed(unet, monkeypatch):
    """Of the rows that count. Fails if self-attention, the middle block, another size or both halves are taken."""
    recorder = AttentionRecorder(unet, 2)
    assert {name.split(".")[0] for name in recorder.layers} == {"down_blocks", "up_blocks"}
    assert all(name.endswith("attn2") for name in recorder.layers) and len(recorder.layers) == 3
    seen = []
    form = attention.cross_attention
    monkeypatch.setattr(attention, "cross_attention", lambda a, *given: seen.append(given) or form(a, *given))
    recorded(unet)
    assert [(len(hidden), hidden.shape[1], *context.shape) for hidden, context in seen] == [(1, 256, 1, 16, WIDTH)] * 3
    context = drawn(2, WORDS, WIDTH)[1:]
    assert all(torch.equal(given[1], context) for given in seen)


def test_all_other_processors_are_left_alone(unet):
    """Fails if more modules than the needed ones are wrapped while recording."""
    before = unet.attn_processors
    recorder = AttentionRecorder(unet, 2)
    with recorder:
        now = unet.attn_processors
    changed = {name.removesuffix(".processor") for name in before if now[name] is not before[name]}
    assert changed == set(recorder.layers) and list(now) == list(before)


def test_a_layer_s_map_is_the_softmax_that_attention_itself_forms(layers):
    """Fails without the scale, with another axis, or with values in place of keys."""
    layer, hidden, context = layers.down_blocks.attn2, drawn(2, 16, 8), drawn(2, 5, 6, seed=1)
    query = layer.head_to_batch_dim(layer.to_q(hidden))
    golden = layer.get_attention_scores(query, layer.head_to_batch_dim(layer.to_k(context)))
    ours = cross_attention(layer, hidden, context)
    assert torch.allclose(ours.flatten(0, 1), golden, atol=1e-6) and ours.shape == (2, 2, 16, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_products_of_half_precision_do_not_overflow(layers, dtype):
    """As in Stable Diffusion 2. Fails if the product of queries and keys is formed in the model's dtype."""
    layer = layers.down_blocks.attn2.to(dtype)
    maps = cross_attention(layer, 300 * drawn(1, 16, 8).to(dtype), 300 * drawn(1, 5, 6, seed=1).to(dtype))
    assert maps.dtype == torch.float32 and torch.allclose(maps.sum(-1), torch.ones(1, 2, 16))


def test_the_mean_is_over_steps(unet):
    """Fails if only the last step counts, or a step's layers count anew in the next."""
    single = [recorded(unet, seed=seed)[0] for seed in range(3)]
    assert torch.allclose(recorded(unet, steps=3)[0], torch.stack(single).mean(0), atol=1e-6)


def test_expecting_anew_forgets_what_was_recorded(unet):
    """Fails if steps, their sum or an unfinished step are kept."""
    recorder = AttentionRecorder(unet, 2)
    with recorder, torch.no_grad():
        for seed in (5, 0):
            recorder.expect(32, 32, rows=slice(1, None))
            for number in range(2):  # the second is not finished
                unet(drawn(2, 3, 32, 32, seed=seed + number), 10, encoder_hidden_states=drawn(2, WORDS, WIDTH))
                if number == 0:
                    recorder.finish_step()
    assert recorder.steps == 1 and torch.equal(recorder.mean(), recorded(unet)[0])


def test_a_recorder_can_be_used_again_but_not_inside_of_itself(unet):
    """Fails if it is not empty after leaving, or if wrapping twice is allowed: leaving would restore a wrapper."""
    before = unet.attn_processors
    recorder = AttentionRecorder(unet, 2)
    with recorder, pytest.raises(UserError, match="already recording"), recorder:
        pass
    with recorder:
        pass
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_a_mean_of_nothing_is_refused(unet):
    """Fails if the division by zero steps answers."""
    with pytest.raises(UserError, match="nothing was recorded"):
        AttentionRecorder(unet, 2).mean()


def test_a_step_without_maps_is_refused(unet):
    """Fails if an earlier step's maps, or those from before `expect`, count again."""
    recorder = AttentionRecorder(unet, 2)
    recorder.add(torch.ones(1, 2, 256, 3))
    recorder.expect(32, 32)
    with recorder, torch.no_grad():
        with pytest.raises(UserError, match="no cross-attention at 16 x 16"):
            recorder.finish_step()
        unet(drawn(2, 3, 32, 32), 10, encoder_hidden_states=drawn(2, WORDS, WIDTH))
        recorder.finish_step()
        with pytest.raises(UserError, match="no cross-attention at 16 x 16"):
            recorder.finish_step()


@pytest.mark.parametrize(("edge", "stride", "golden"), [(64, 4, 16), (9, 4, 3), (33, 2, 17), (33, 8, 5), (7, 1, 7)])
def test_the_grid_rounds_up_as_the_unet_s_convolutions_do(edge, stride, golden):
    """Fails if it rounds down."""
    assert grid_edge(edge, stride) == golden


@pytest.mark.parametrize(("height", "width"), [(33, 35), (30, 50)])
def test_sizes_that_do_not_halve_evenly_are_recorded(unet, height, width):
    """Fails if the grid rounds down, or height and width are exchanged."""
    recorder = AttentionRecorder(unet, 2)
    recorder.expect(height, width)
    with recorder, torch.no_grad():
        unet(drawn(1, 3, height, width), 10, encoder_hidden_states=drawn(1, WORDS, WIDTH))
        recorder.finish_step()
    assert recorder.mean().shape == (1, (height + 1) // 2, (width + 1) // 2, WORDS)


class Halving(nn.Module):
    """A processor with a weight of its own, as IP adapters have."""

    def __init__(self):
        super().__init__()
        self.inner = AttnProcessor2_0()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        return self.factor * self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def nothing_done(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
    return hidden_states


@pytest.mark.parametrize(
    "make",
    [AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(1), Halving, lambda: nothing_done],
    ids=["eager", "fused", "sliced", "module", "function"],
)
def test_processors_of_any_kind_do_their_work_and_stay(unet, make):
    """Fails if recording puts a processor of its own in their place, or changes keys or their order."""
    unet.set_attn_processor({name: make() for name in unet.attn_processors})
    before, keys = unet.attn_processors, list(unet.state_dict())
    with torch.no_grad():
        plain = unet(drawn(2, 3, 32, 32), 10, encoder_hidden_states=drawn(2, WORDS, WIDTH)).sample
    maps, said = recorded(unet)
    assert torch.equal(said, plain) and maps.shape == (1, 16, 16, WORDS)
    assert torch.allclose(maps.sum(-1), torch.ones(1, 16, 16), atol=1e-5)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert list(unet.state_dict()) == keys


def test_a_processor_that_is_a_module_stays_in_the_tree_while_recording(unet):
    """Else offloading and `to` would leave its weights behind. Fails if the wrapper is not a module."""
    unet.set_attn_processor({name: Halving() for name in unet.attn_processors})
    count = len(list(unet.parameters()))
    with AttentionRecorder(unet, 2):
        assert len(list(unet.parameters())) == count


def test_an_ip_adapter_s_words_are_recorded_and_not_its_pictures(layers):
    """It hands over (words, [pictures]). Fails if the pair is taken for the words."""
    layer = layers.down_blocks.attn2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer.set_processor(IPAdapterAttnProcessor2_0(8, 6, num_tokens=(3,), scale=1.0))
    processor, keys = layer.processor, list(layers.state_dict())
    hidden, words, pictures = drawn(2, 16, 8), drawn(2, 5, 6, seed=1), drawn(2, 1, 3, 6, seed=2)
    with torch.no_grad():
        plain = layer(hidden, (words, [pictures]))
        recorder = AttentionRecorder(layers, stride=1)
        recorder.expect(4, 4)
        with recorder:
            said = layer(hidden, (words, [pictures]))
            recorder.finish_step()
    golden = cross_attention(layer, hidden, words).mean(1)
    assert torch.equal(said, plain) and torch.allclose(recorder.mean().flatten(1, 2), golden)
    assert layer.processor is processor and list(layers.state_dict()) == keys


def test_a_layer_that_is_given_no_prompt_is_not_recorded():
    """As where a UNet attends to itself twice. Fails if the missing prompt is looked at."""
    with torch.random.fork_rng(devices=[]):
        model, block = nn.Module(), nn.Module()
        block.add_module("attn2", Attention(8, heads=2, dim_head=4))
    model.add_module("down_blocks", block)
    recorder = AttentionRecorder(model, stride=1)
    recorder.expect(4, 4)
    with recorder, torch.no_grad():
        block.attn2(drawn(2, 16, 8))
        with pytest.raises(UserError, match="no cross-attention at 4 x 4"):
            recorder.finish_step()


def test_a_lora_s_attention_is_recorded(unet):
    """Its maps are those of the merged weights. Fails if maps are formed from the base layers' weights."""
    without = recorded(unet)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet.add_adapter(LoraConfig(r=2, lora_alpha=32, target_modules=["to_q", "to_k"], init_lora_weights=False))
    keys = list(unet.state_dict())
    with_lora = recorded(unet)[0]
    assert list(unet.state_dict()) == keys
    unet.fuse_lora()
    assert torch.allclose(recorded(unet)[0], with_lora, atol=1e-4)
    assert not torch.allclose(without, with_lora, atol=1e-3)


@pytest.fixture
def compiled(edits, settings):
    """Compile the mini model's UNet, edit with it, and compare with the plain one."""

    def check(backend, **options):
        pipe = mini.build(0)
        pipe.set_progress_bar_config(disable=True)
        arguments = {**settings, "output_type": "latent", "return_step_masks": True}
        expected = pipe(edits[0].picture(), edits[0].prompt, **arguments)
        pipe.unet = torch.compile(pipe.unet, backend=backend, **options)
        for _ in range(2):
            found = pipe(edits[0].picture(), edits[0].prompt, **arguments)
            assert torch.allclose(found.images, expected.images, atol=1e-3)
            assert (found.step_masks == expected.step_masks).float().mean() > 0.99

    yield check
    torch.compiler.reset()


def test_a_compiled_unet_records_in_one_graph_that_is_compiled_once(compiled):
    """Over steps and calls. Fails if recording breaks the graph or reads what it wrote, or if the shell that
    `torch.compile` puts around a UNet hides its layers."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled(counter, fullgraph=True)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler for torch.compile")
def test_an_edit_with_generated_code_is_alike(compiled):
    """With the default backend, inductor. Fails as the test above does."""
    compiled("inductor")
