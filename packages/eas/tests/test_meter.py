"""METER's sites, streams and folding, beyond what the golden cases hold."""

import copy

import pytest
import torch
from meter_fixtures import inputs, meter
from torch.utils.flop_counter import FlopCounterMode

from eas import costs
from eas.evidence.claims import METER_TEXT
from eas.meter import MeterConfig, merge, used_parameters
from eas.plan import meter_flags, released
from eas.tower import interpolate_positions
from tenfold import UserError


def test_sites_18_to_23_are_the_image_streams_cross_attentions_but_not_as_released():
    """Fails if the authors' alias is the default, or the option does not bring it back."""
    model = meter(skip=(3, 8, 13, 20))
    assert model.flags().nonzero().tolist() == [[2, 1], [3, 0], [7, 0], [8, 1]]
    assert meter(skip=(3, 8, 13, 20), as_released=True).flags().nonzero().tolist() == [[2, 1], [3, 0], [7, 0], [8, 0]]
    distinct = {name: int(meter_flags(released(name), as_released=True).sum()) for name in METER_TEXT}
    assert distinct == {
        "meter-vqa-10": 8, "meter-vqa-8": 7, "meter-nlvr2-16": 13, "meter-nlvr2-10": 9,
        "meter-flickr30k-10": 7, "meter-flickr30k-8": 5,
    }  # fmt: skip


def test_a_skipped_attention_is_read_no_more():
    """Fails if an attention that is skipped still computes: its weights are no numbers here."""
    model = meter(skip=(0, 7, 14, 21))
    blocks = [(0, "attention"), (1, "crossattention"), (8, "attention"), (9, "crossattention")]
    with torch.no_grad():
        expected = model(inputs())
        for number, name in blocks:
            site = getattr(model.layers()[number], name)
            for part in (site.self.query, site.self.value, site.output.dense):
                part.weight.fill_(float("nan"))
        assert torch.equal(model(inputs()), expected)
        model.layers()[0].skip_self = False
        assert not model(inputs()).isfinite().all()


def test_one_by_one_is_as_in_a_batch_and_padding_is_not_seen():
    """Fails if rows meet, or a masked token counts where nothing is skipped (PIA's mean takes it, as released)."""
    model, batch = meter(), inputs()
    with torch.no_grad():
        whole = model(batch)
        for row in range(3):
            one = batch._replace(ids=batch.ids[row : row + 1], mask=batch.mask[row : row + 1])
            one = one._replace(pixels=(batch.pixels[0][row : row + 1],))
            assert torch.allclose(model(one)[0], whole[row], atol=1e-5)
        short = [2, slice(0, 6)]
        cut = batch._replace(ids=batch.ids[2:, :6], mask=batch.mask[2:, :6], pixels=(batch.pixels[0][2:],))
        assert torch.allclose(model(cut)[0], whole[2], atol=1e-5), short


def test_folding_is_for_good_and_leaves_no_adapter():
    """Fails if a folded model answers otherwise, keeps an adapter, or is folded twice."""
    model = meter(task="nlvr2", skip=(2, 19))
    folded = copy.deepcopy(model)
    merge(folded)
    with torch.no_grad():
        before, after = model(inputs(pictures=2)), folded(inputs(pictures=2))
        assert not torch.equal(before, after) and torch.allclose(before, after, atol=1e-5)
    assert not [name for name in folded.state_dict() if ".adapter." in name]
    with pytest.raises(UserError, match="folded already"):
        merge(folded)


@pytest.mark.parametrize(("size", "tokens"), [(288, 325), (384, 577), (576, 1297)])
def test_positions_of_another_resolution(size, tokens):
    """Fails if the class token's position is interpolated too, or a ramp over the picture comes back turned."""
    ramp = torch.arange(14.0).repeat(14)  # left to right
    positions = torch.cat((torch.tensor([[99.0]]), ramp[:, None]))
    made = interpolate_positions(positions, size // 16)
    assert made.shape == (tokens, 1) and made[0] == 99
    grid = made[1:, 0].view(size // 16, -1)
    assert torch.allclose(grid, grid[:1].expand_as(grid), atol=1e-4) and bool((grid[0, 2:-1].diff() > 0).all())
    assert torch.equal(interpolate_positions(positions, 14), positions)


def test_what_is_used_is_counted():
    """Fails if conv_D or a router counts, or a PIA's size changes: 4.01 M adapters, and 8 PIAs in place of 8."""
    assert [used_parameters(MeterConfig(skip=tuple(range(k)))) for k in (0, 4, 8)] == [4012416, 4676736, 5341056]
    model, counted = meter(), costs.MeterShape(16, 1, 1, patch=8, ranks=costs.RankSizes(4, 6))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        one = inputs(1)
        model.fuse(model.encode_text(one.ids, one.mask), model.encode_image(one.pixels[0]))
    pooled = 2 * 16 * 16
    expected = costs.meter_macs(counted, 8, 5, meter_flags(()).tolist()) + pooled
    ffn = 6 * (8 + 5) * 4 * 16 * 16 + 8 * 4 * 16 * 16  # the tiny FFN is 2 d wide in RoBERTa and in the cross layers
    assert counter.get_total_flops() == 2 * (expected - ffn)
