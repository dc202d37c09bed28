"""LaVIN's decoding and folding, beyond what the golden case holds."""

import warnings

import pytest
import torch
from lavin_fixtures import lavin, prompts
from torch import nn
from torch.ao.quantization import quantize_dynamic

from eas.evidence import lavin_speed
from eas.evidence.settings import BenchSettings
from eas.evidence.speed import run_bench
from eas.lavin import Step, causal, prompt_means
from eas.lavin_decoding import CONSISTENT, MERGED, UNMERGED, Semantics, _Run, generate
from eas.tower import Tower
from tenfold import UserError
from tenfold.testing import processes
from tenfold.testing.device import stand_in_cuda


@pytest.mark.parametrize("skip", [(1, 3), (0, 2)])
def test_the_batch_size_does_not_move_a_token_and_the_authors_does(skip):
    """Fails if batches of 1, 2 and 64 differ by default, a row sees another's padding, or layer 0 cannot go."""
    model, (asked, images) = lavin(skip=skip), prompts()
    whole = generate(model, asked, images, 4).tokens
    for size in (1, 2):
        parts = [generate(model, asked[at : at + size], images[at : at + size], 4).tokens for at in range(0, 8, size)]
        assert [row for part in parts for row in part] == whole[:8]
    released = generate(model, asked[:8], images[:8], 4, semantics=UNMERGED).tokens
    alone = [
        generate(model, [one], images[at : at + 1], 4, semantics=UNMERGED).tokens[0] for at, one in enumerate(asked[:8])
    ]
    assert released != alone  # as released, answers depend on who is in the batch


def recomputed(model, prompt, image, written):
    """Logits behind a prompt and what was written, in one pass, with means over the prompt alone."""
    words = model.tok_embeddings(torch.cat((prompt.ids, torch.tensor(written))))[None].clone()
    if prompt.at is not None:
        words[0, prompt.at : prompt.at + 2] = model.see(image)[0]
    mode = model.adapter_modality_embedding.weight[int(prompt.at is not None)]
    sequence = torch.cat((mode[None, None], words), 1)
    chosen = (torch.arange(sequence.shape[1]) <= len(prompt.ids)).float()[None]
    return model(sequence, chosen)[0, len(prompt.ids) :]


@pytest.mark.parametrize("skip", [(1, 3), (0, 3), ()])
def test_cached_decoding_is_what_one_pass_gives(skip):
    """Fails if a position, a mask, a frozen mean or a cache slot of the default differs from training's formula."""
    model, (asked, images) = lavin(skip=skip), prompts(3)
    found = generate(model, asked, images, 4)
    with torch.no_grad():
        for row, one in enumerate(asked):
            expected = recomputed(model, one, images[row : row + 1], found.tokens[row][:3])
            assert torch.allclose(found.logits[row], expected, atol=1e-4)
    late = generate(model, asked, images, 4, semantics=Semantics(late=True))
    assert not torch.allclose(late.logits[:, 1], found.logits[:, 1], atol=1e-3)


def test_folded_is_unfolded_and_leaves_no_trace():
    """Fails if a folded answer differs, the authors' order of the bias does not, or a matrix stays folded."""
    model, (asked, images) = lavin(), prompts(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for row in range(2):
        one = (model, asked[row : row + 1], images[row : row + 1], 4)
        plain, folded = generate(*one), generate(*one, fold="exact")
        assert folded.tokens == plain.tokens and torch.allclose(folded.logits, plain.logits, atol=1e-4)
        assert not torch.allclose(generate(*one, fold="released").logits, plain.logits, atol=1e-3)
        assert torch.equal(generate(*one, semantics=MERGED, fold="exact").logits[:, 0], folded.logits[:, 0])
    after = model.state_dict()
    assert set(before) == set(after) and all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(UserError, match="one prompt's"):
        generate(model, asked, images, 4, fold="exact")


def test_the_tower_folds_too():
    """Fails if the tower's adapters in its matrices give other class tokens, or two pictures share one fold."""
    model, (_, images) = lavin(), prompts(4)
    with torch.no_grad():
        plain = model.backbone.visual.classes(images[1:2], 4)
        assert torch.allclose(model.backbone.visual.classes(images[1:2], 4, fold=True), plain, atol=1e-5)
        bare = Tower(16, 8, 2, 4, 8)
        bare.load_state_dict({k: v for k, v in model.backbone.visual.state_dict().items() if ".adapter." not in k})
        assert not torch.allclose(bare.classes(images[1:2], 4), plain, atol=1e-2)
    with pytest.raises(UserError, match="one picture's"):
        model.see(images, fold=True)


def test_nothing_is_kept_for_a_skipped_attention_or_the_modality_token():
    """Fails if a skipped layer has keys, or the modality token takes room in the cache."""
    model, (asked, images) = lavin(), prompts(2)
    assert all(block.attention is None for block in model.blocks() if block.skipped)
    with torch.no_grad():
        run = _Run(model, asked, images, 3, CONSISTENT, None, None)
        run._prefill()
    assert set(run.cache.keys) == {0, 1} and run.cache.used == max(len(one.ids) for one in asked)
    assert run.cache.valid.sum(1).tolist() == [len(one.ids) for one in asked]


def linears(model):
    """Of attentions and feed-forwards, by name: what a quantised base holds in another form."""
    return {
        f"{block.number}.{name}": (part, name)
        for block in model.blocks()
        for part in (block.attention, block.feed_forward)
        if part is not None
        for name, _ in part.named_children()
    }


def test_a_quantised_base_keeps_its_adapters_beside_it():
    """With torch's own 8-bit layers, whose weights are packed. Fails if a block reads a matrix, an adapter is another
    map beside one than beside floating-point numbers, or a matrix that is none is folded."""
    model, plain, (asked, images) = lavin(), lavin(), prompts(2)
    with warnings.catch_warnings():  # deprecated in favour of a package that is not needed for this
        warnings.simplefilter("ignore")
        for part in {part for part, _ in linears(model).values()}:
            quantize_dynamic(part, {nn.Linear}, dtype=torch.qint8, inplace=True)
    ours, theirs = linears(model), linears(plain)
    assert len(ours) == 2 * 4 + 4 * 3
    for name, (part, leaf) in ours.items():  # the same numbers in floating point: activations alone are rounded
        packed = getattr(part, leaf)
        assert not isinstance(packed, nn.Linear) and not isinstance(packed.weight, torch.Tensor)
        getattr(theirs[name][0], leaf).weight.data = packed.weight().dequantize()
    found, expected = (generate(one, asked, images, 3).logits[:, 0] for one in (model, plain))
    with torch.no_grad():
        for block in model.blocks():
            part = block.pia if block.skipped else block.adapter
            part.B.weight.zero_()
    bare = generate(model, asked, images, 3).logits[:, 0]
    rounding, adapters = (float((found - one).norm() / found.norm()) for one in (expected, bare))
    assert rounding < 0.15 < 0.5 < adapters, (rounding, adapters)
    with pytest.raises(UserError, match="cannot be folded"):
        generate(model, asked[:1], images[:1], 3, fold="exact")


def test_it_stops_at_the_end_and_sampling_follows_its_generator():
    """Fails if generation goes on behind the end of every row, or a seed does not fix what is drawn."""
    model, (asked, images) = lavin(), prompts(1)
    free = generate(model, asked, images, 4).tokens[0]
    stopped = generate(model, asked, images, 4, end=free[1])
    assert stopped.tokens == [free[: free.index(free[1])]] and stopped.logits.shape[1] == free.index(free[1]) + 1
    drawn = [
        generate(model, asked, images, 6, temperature=5.0, generator=torch.Generator().manual_seed(seed)).tokens
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_search_moves_what_is_skipped_and_bf16_stays_near():
    """Fails if a subnet is not at work, a list that is none passes, or half precision is another model."""
    model, (asked, images) = lavin(both=True, skip=()), prompts(2)
    kept = generate(model, asked, images, 2).logits
    model.set_skip((0, 2))
    gone = generate(model, asked, images, 2).logits
    assert not torch.allclose(kept, gone, atol=1e-2) and torch.allclose(
        gone, generate(model, asked, images, 2).logits, atol=0
    )
    with pytest.raises(UserError, match="a skip list"):
        lavin(skip=(0, 1, 2, 3))
    with pytest.raises(UserError, match="lacks its adapter or PIA"):
        lavin().set_skip((0,))
    sequence = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        step = Step(model.rotation(torch.arange(6)[None]), causal(6, sequence.device), *prompt_means(torch.ones(2, 6)))
        full = model.run(sequence, step)
        half = model.to(torch.bfloat16).run(sequence.bfloat16(), step).float()
    assert (half - full).norm() / full.norm() < 3e-2


@processes.apart
def test_the_same_on_the_device_and_no_wait_in_a_step():
    """Fails if an index stays on the CPU, or the prefill or a step of decoding asks the device for a value."""
    asked, images = prompts(3)

    def work(model, images, device=None):
        with torch.no_grad():
            run = _Run(model, asked, images, 2, CONSISTENT, None, None)
            before = sum(device.waits_in("eas/").values()) if device else 0
            logits = [run._prefill(), run._step(run.table[:, 1], run.lengths)]
            assert (sum(device.waits_in("eas/").values()) if device else 0) == before
        return torch.stack(logits)

    expected = work(lavin(), images)
    model = lavin()
    with stand_in_cuda() as device:
        model.to("cuda")
        assert torch.allclose(device.values(work(model, images.to("cuda"), device)), expected, atol=1e-5)


def test_the_bench_takes_the_paper_s_ratio_apart(monkeypatch):
    """Fails if a subject is missing, the authors' adapter computes another map, or folding and skipping do not multiply
    to the paper's ratio."""
    monkeypatch.setattr(lavin_speed, "FULL", lavin().config)
    settings = BenchSettings(host="lavin", device="cpu", dtype="float32", prompt=6, tokens=2, rounds=1, layers=4)
    record = run_bench(settings, 0, None)
    assert set(record["subjects"]) == {"released", "unmerged", "folded_0", "folded"} and record["removed"] == 2
    for part in ("decode", "request"):
        paper, folding, skipping = (record["ratios"][name][part] for name in ("paper", "folding", "skipping"))
        assert paper == pytest.approx(folding * skipping)
    adapter, tokens = lavin().layers[0].adapter, torch.randn(2, 5, 16)
    router = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    with torch.no_grad():
        assert torch.allclose(lavin_speed.released_forward(adapter, tokens, router), adapter(tokens, router), atol=1e-5)
