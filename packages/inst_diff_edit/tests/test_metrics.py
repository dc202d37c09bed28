"""Metrics and their networks: analytic cases, and hand computations on random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from inst_diff_edit.evaluation import metrics, networks
from inst_diff_edit.evaluation.metrics import Gaussian, fid, frechet_distance, gaussian, square_root
from inst_diff_edit.miniature import model as mini
from tenfold import UserError

# LPIPS' release names its linear weights so; its networks' channels.
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_iou_by_hand():
    """Fails if a union is a sum."""
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    first[:2], second[1:3] = True, True
    assert metrics.iou(first, second) == pytest.approx(4 / 12)
    assert metrics.iou(first, first) == 1 and metrics.iou(first, ~first) == 0


def test_masks_are_compared_as_they_are_handed_to_inpainting():
    """Human nearest, predicted bicubic and cut at 128. Fails if either is resized otherwise, or the cut is another."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.random((8, 8)) > 0.5, np.ones((8, 8))).astype(np.uint8) * 255  # 64 x 64
    human = rng.random((100, 150)) > 0.5
    painted = np.asarray(Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC)) >= 128
    drawn = np.asarray(Image.fromarray(human).resize((512, 512), Image.Resampling.NEAREST))
    expected = (painted & drawn).sum() / (painted | drawn).sum()
    assert metrics.mask_ious(coarse, human)["iou"] == expected


def test_at_64_a_pixel_counts_when_half_of_its_area_does():
    """Fails if the human mask is sampled instead of averaged."""
    human = np.zeros((128, 128), bool)
    human[:64] = True
    human[64:66:1, 0] = True  # half of pixel (32, 0)
    human[64, 4] = True  # a quarter of pixel (32, 2)
    small = metrics.by_area(human, 64)
    assert small[:32].all() and small[32, 0] and small[32:].sum() == 1
    exact = small.astype(np.uint8) * 255
    assert metrics.mask_ious(exact, human)["iou_64"] == 1


def test_change_inside_and_outside_by_hand():
    changes, mask = torch.zeros(4, 4), np.zeros((2, 2), bool)
    changes[:2, :2], mask[0, 0] = 3.0, True
    changes[3, 3] = 1.2
    assert metrics.inside_outside(changes, mask) == pytest.approx((3.0, 0.1))


def test_frechet_distance_of_known_gaussians():
    """Closed forms. Fails if the cross term is left out, or taken elementwise."""
    one = Gaussian(torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    other = Gaussian(torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 1.0]).double()))
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    # In two dimensions the trace of a product's root follows from trace and determinant; these do not commute.
    first, second = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double(), torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    product = first @ second
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (first.trace() + second.trace() - 2 * cross).item()
    zero = torch.zeros(2).double()
    assert frechet_distance(Gaussian(zero, first), Gaussian(zero, second)) == pytest.approx(expected)
    assert torch.allclose(square_root(first) @ square_root(first), first)


def test_fid_of_fewer_pictures_than_dimensions():
    """Covariances are singular there. Fails if a negative eigenvalue becomes nan."""
    features = torch.randn(5, 32, generator=seeded())
    assert fid(features, features) == pytest.approx(0, abs=1e-4)  # roots of eigenvalues that are zero but for rounding
    assert fid(features, features + 2) == pytest.approx(4 * 32, rel=1e-5)


def test_diagonal_gaussians_and_csfid_by_hand():
    """The mean over classes, each by standard deviations. Fails if classes are pooled, or variances subtracted."""
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert gaussian(a, diagonal=True).covariance.tolist() == [2.0]
    distance = (1 - 3) ** 2 + (2**0.5 - 8**0.5) ** 2
    assert metrics.csfid({"x": a, "y": b}, {"x": b, "y": b, "z": a}) == pytest.approx(distance / 2)


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory):
    """Random weights under the names of the public releases."""
    folder, generator = tmp_path_factory.mktemp("lpips"), seeded(3)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.alexnet().features.state_dict().items()}
    weights = {f"features.{name}": torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    torch.save({**weights, "classifier.1.bias": torch.zeros(2)}, folder / "alexnet-owt-7be5be79.pth")
    linear = {
        f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for n, width in enumerate(CHANNELS["alex"])
    }
    torch.save(linear, folder / "alex.pth")
    return folder


def pictures(edge=64):
    return torch.rand(2, 2, 3, edge, edge, generator=seeded(1)) * 2 - 1


def test_lpips_equals_an_independent_computation(lpips_folder):
    """Fails if a slice ends a layer early, the shift is left out, or features are not brought to unit length."""
    first, second = pictures()
    weights = torch.load(lpips_folder / "alexnet-owt-7be5be79.pth", weights_only=True)
    linear = torch.load(lpips_folder / "alex.pth", weights_only=True)

    def activations(x):
        x = (x - torch.tensor([-0.03, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.45])[
            :, None, None
        ]
        for place, (stride, padding, pooled) in {
            0: (4, 2, 0),
            3: (1, 2, 1),
            6: (1, 1, 1),
            8: (1, 1, 0),
            10: (1, 1, 0),
        }.items():
            x = functional.max_pool2d(x, 3, 2) if pooled else x
            x = functional.conv2d(
                x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], stride, padding
            )
            x = functional.relu(x)
            yield functional.normalize(x, dim=1)

    expected = sum(
        functional.conv2d((a - b) ** 2, linear[f"lin{n}.model.1.weight"]).mean((1, 2, 3))
        for n, (a, b) in enumerate(zip(activations(first), activations(second), strict=True))
    )
    lpips = networks.load_lpips(lpips_folder)
    assert list(lpips) == ["alex"]
    assert torch.allclose(lpips["alex"].distance(first, second), expected, rtol=1e-4) and (expected > 0).all()


def test_lpips_of_a_picture_and_itself_is_nothing_and_its_map_shows_where_pictures_differ(lpips_folder):
    lpips, (first, _) = networks.load_lpips(lpips_folder)["alex"], pictures(128)
    assert lpips.distance(first, first).tolist() == [0, 0]
    changed = first.clone()
    changed[:, :, :32, :32] = 0
    found = lpips.maps(first, changed)
    assert found.shape == (2, 128, 128)
    assert (found[:, :32, :32].mean((1, 2)) > 10 * found[:, 112:, 112:].mean((1, 2))).all()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_looks_at_the_activations_of_its_release(net):
    """Every slice ends in a ReLU of the released width. Fails if a depth is off by one."""
    with torch.device("meta"):
        build = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net]
        features = build().features
    ends = [(features[depth - 2], features[depth - 1]) for depth in networks.DEPTHS[net]]
    assert all(isinstance(last, torch.nn.ReLU) for _, last in ends)
    assert tuple(convolution.out_channels for convolution, _ in ends) == CHANNELS[net]
    if net == "vgg":  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3: the last before each pooling
        pools = [n for n, layer in enumerate(features) if isinstance(layer, torch.nn.MaxPool2d)]
        assert list(networks.DEPTHS[net]) == pools


def test_the_fid_network_pools_as_the_original_does(monkeypatch):
    """Eight blocks average without counting the padding, the last takes the maximum. Fails with torchvision's own."""
    seen = []
    for name in ("_mean_pool", "_max_pool"):
        pool = getattr(networks, name)
        monkeypatch.setattr(networks, name, lambda x, name=name, pool=pool: seen.append(name) or pool(x))
    with torch.device("meta"):
        network = torchvision.models.inception_v3(aux_logits=False, num_classes=1008, init_weights=False)
        features = networks.Inception(network)(torch.zeros(2, 3, 40, 30))
    assert features.shape == (2, networks.INCEPTION_WIDTH)
    assert seen == ["_mean_pool"] * 8 + ["_max_pool"]


def test_the_fid_network_sees_pictures_of_its_size():
    """Enlarged bilinearly between pixels' centres. Fails if corners are aligned."""
    seen = networks.Inception(torch.nn.Sequential())(pictures()[0])
    assert seen.shape == (2, 3, 299, 299)
    assert torch.allclose(
        seen, functional.interpolate(pictures()[0], scale_factor=299 / 64, mode="bilinear"), atol=1e-5
    )


def test_only_the_pooling_branch_of_a_block_changes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = torchvision.models.inception.InceptionA(6, pool_features=4).eval()
    x = torch.randn(1, 6, 5, 5, generator=seeded())
    with torch.no_grad():
        before = block(x)
        networks._pool_anew(block, networks._mean_pool)
        after = block(x)
        counts = functional.avg_pool2d(torch.ones(1, 1, 5, 5), 3, 1, 1)
        by_hand = functional.relu(
            block.branch_pool.bn(block.branch_pool.conv(functional.avg_pool2d(x, 3, 1, 1) / counts))
        )
    assert torch.equal(after[:, :-4], before[:, :-4]) and torch.allclose(after[:, -4:], by_hand, atol=1e-6)
    assert not torch.allclose(after[:, -4:], before[:, -4:], atol=1e-3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder, words = tmp_path_factory.mktemp("clip"), mini.tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 16, **ends},
        vision_config={**small, "image_size": 24, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_the_model_itself(clip_folder):
    """transformers' own forward pass divides by the temperature. Fails if a score is clipped, scaled or mixed up."""
    clip = networks.load_clip(clip_folder)
    rng = np.random.default_rng(0)
    seen = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(2)]
    texts = ["a red circle", "a ring"]
    mean, std = np.array(networks.CLIP_MEAN), np.array(networks.CLIP_STD)
    pixels = torch.tensor(np.stack([(np.asarray(one) / 255 - mean) / std for one in seen])).permute(0, 3, 1, 2).float()
    ids = mini.tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = clip.model(**ids, pixel_values=pixels)
    expected = (out.logits_per_image / clip.model.logit_scale.exp()).diagonal()
    assert torch.allclose(clip.score(seen, texts), expected, atol=1e-5)
    assert clip.pixels([Image.new("RGB", (60, 30))]).shape == (1, 3, 24, 24)


def test_clip_sees_the_middle_of_a_picture_whose_shorter_edge_fits(clip_folder):
    """Fails if the longer edge is fitted, or another part is cut out."""
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = 255
    clip = networks.load_clip(clip_folder)
    white = clip.pixels([Image.new("RGB", (24, 24), (255, 255, 255))])
    for picture in (wide, wide.transpose(1, 0, 2)):
        assert torch.allclose(clip.pixels([Image.fromarray(np.ascontiguousarray(picture))]), white)


def test_a_map_of_differences_is_enlarged_between_pixels_centres(lpips_folder):
    """Fails if corners are aligned: every place would be off by up to half a pixel of its layer."""
    lpips, (first, second) = networks.load_lpips(lpips_folder)["alex"], pictures()
    by_hand = sum(
        functional.interpolate(layer[:, None], scale_factor=64 / layer.shape[-1], mode="bilinear")[:, 0]
        for layer in lpips.layers(first, second)
    )
    assert torch.allclose(lpips.maps(first, second), by_hand, atol=1e-5)


def test_weights_of_a_larger_network_are_refused():
    """Fails if what a file holds beyond the network is dropped without a word."""
    with torch.device("meta"):
        network = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(UserError, match=r"unknown weights, first bias: a\.pth \(expected a layer\)"):
        networks.fill(network, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, Path("a.pth"), "a layer")


def test_missing_or_wrong_weights_are_named_in_one_line(lpips_folder, clip_folder, tmp_path):
    """Option, file, what was expected."""
    with pytest.raises(UserError, match=r"no weights of LPIPS: --lpips .*alexnet-owt-7be5be79.pth and alex.pth"):
        networks.load_lpips(tmp_path)
    (tmp_path / "alex.pth").write_bytes((lpips_folder / "alex.pth").read_bytes())
    with pytest.raises(UserError, match=r"no alexnet-owt-7be5be79.pth: --lpips"):
        networks.load_lpips(tmp_path)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "alexnet-owt-7be5be79.safetensors")
    with pytest.raises(UserError, match=r"0.weight is \[64, 3, 3, 3\]: .*\[64, 3, 11, 11\]"):
        networks.load_lpips(tmp_path)
    with pytest.raises(UserError, match=r"no such file: .*nowhere.pth"):
        networks.load_inception(tmp_path / "nowhere.pth")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(UserError, match=r"is missing: .*pt_inception-2015-12-05"):
        networks.load_inception(tmp_path / "torchvision.pth")
    (tmp_path / "torn.pth").write_bytes((lpips_folder / "alex.pth").read_bytes()[:200])
    (tmp_path / "torn.safetensors").write_bytes(b"\x99" * 20)
    torch.save({"anything": Image.new("L", (2, 2))}, tmp_path / "pickle.pth")
    for name in ("torn.pth", "torn.safetensors", "pickle.pth"):
        with pytest.raises(UserError, match=r"no plain weights|broken or truncated"):
            networks.state_dict(tmp_path / name, "--inception")
    with pytest.raises(UserError, match=r"no config.json to read: --clip"):
        networks.load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"not a CLIP model: --clip"):
        networks.load_clip(tmp_path)
