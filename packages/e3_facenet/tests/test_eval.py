"""Evaluation: resumed and shared, scores against independent computations, the protocol."""

import json

import numpy as np
import pytest
import torch

from e3_facenet.data.settings import DataSettings
from e3_facenet.evaluation import run as module
from e3_facenet.evaluation.generate import portrait_flatness
from e3_facenet.evaluation.run import FaceMaker, run_eval, unpacked
from e3_facenet.evaluation.scores import flatness, frechet_distance, kernel_distance, pair_cosine
from e3_facenet.evaluation.settings import EvalSettings
from tenfold import UserError


@pytest.fixture
def settings(world, model_folder):
    return EvalSettings(
        model=str(model_folder),
        data=DataSettings(folder=str(world), flip=False),
        count=4,
        multiview=2,
        device="cpu",
        batch=2,
    )


@pytest.fixture(scope="module")
def finished(world, model_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("eval") / "whole"
    chosen = EvalSettings(
        model=str(model_folder),
        data=DataSettings(folder=str(world), flip=False),
        count=4,
        multiview=2,
        device="cpu",
        batch=2,
    )
    return run_eval(chosen, 3, output)


def test_the_protocol_stands_beside_the_distance(finished):
    """Fails if a FID is reported without how it was taken."""
    protocol = finished.metrics["protocol"]
    assert protocol["made"] == 4 and protocol["real"] == 4 and protocol["covariance_divisor"] == "N"
    assert {"psi", "cameras", "temperature", "real_set", "features"} <= protocol.keys()
    assert protocol["features"] == "CLIP" and protocol["mvic"].startswith("skipped")
    lines = (finished.output / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 4 and "features" not in json.loads(lines[0])


def test_a_killed_evaluation_ends_with_the_same_files(finished, settings, tmp_path, monkeypatch):
    """Fails if a face's draws depend on what was made before it."""
    measure = FaceMaker.measure

    def dies(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return measure(self, number)

    monkeypatch.setattr(FaceMaker, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        run_eval(settings, 3, tmp_path / "cut")
    made = []
    monkeypatch.setattr(FaceMaker, "measure", lambda self, number: made.append(number) or measure(self, number))
    again = run_eval(settings, 3, tmp_path / "cut")
    assert made == [2, 3] and again.metrics == finished.metrics
    name = "predictions.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (finished.output / name).read_bytes()


def test_answers_of_other_settings_are_refused(settings, tmp_path, monkeypatch):
    """Fails if faces of another psi are mixed in."""
    monkeypatch.setattr(module, "metrics", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_eval(settings, 3, tmp_path / "cut")
    with pytest.raises(UserError):
        run_eval(settings.model_copy(update={"psi": 0.5}), 3, tmp_path / "cut")


def test_limit_takes_fewer(settings, tmp_path):
    found = run_eval(settings.model_copy(update={"limit": 2, "multiview": 0}), 3, tmp_path / "few")
    assert found.metrics["protocol"]["made"] == 2 and found.metrics["protocol"]["real"] == 2


def test_clip_scores_are_cosines_of_transformers_own_features(finished, face):
    """Fails if the score is taken on pictures in [-1, 1], or on another text: transformers computes it itself."""
    row = json.loads((finished.output / "predictions.jsonl").read_text().splitlines()[0])
    assert -1 <= row["clip"] <= 1
    images = torch.rand(2, 3, 32, 32)
    pixels = (images - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )[:, None, None]
    ids = face.encoder.ids(["a face with green skin", "a person with white hair"])
    with torch.no_grad():
        theirs = face.encoder.clip(input_ids=ids, pixel_values=pixels).logits_per_image
    pictures = face.encoder.picture_features(images * 2 - 1, rescale=True)
    text = torch.nn.functional.normalize(face.encoder(ids).t, dim=-1)
    torch.testing.assert_close(pictures @ text.T * face.encoder.clip.logit_scale.exp(), theirs, atol=1e-4, rtol=1e-4)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_formula():
    """Fails if the covariance divides by N - 1, or the root is taken of the sum."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 1)), 2 * rng.normal(size=(60, 1)) + 1
    by_hand = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(by_hand, rel=1e-6)
    assert frechet_distance(a, b, divisor=1) != pytest.approx(by_hand, rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate_by_hand():
    """Fails if the diagonal is counted, or subsets are drawn in another order."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(8, 3)) + 1
    draw = np.random.RandomState(5)
    made, real = y[draw.choice(8, 4, replace=False)], x[draw.choice(9, 4, replace=False)]

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    same = sum(kernel(a[i], a[j]) for a in (made, real) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel(a, b) for a in made for b in real) / 16
    assert kernel_distance(x, y, subsets=1, size=4, seed=5) == pytest.approx(same - 2 * across)


def test_a_flat_face_scores_zero_and_a_deep_one_does_not(face):
    """Fails if flatness does not notice a wall."""
    assert flatness(np.full((2, 8, 8), 0.97), 0.88, 1.12) == pytest.approx(0, abs=1e-12)
    assert flatness(np.linspace(0.9, 1.1, 64).reshape(1, 8, 8), 0.88, 1.12) > 0.2
    assert portrait_flatness(face.generate("a face"), face.config) >= 0


def test_multi_view_cosine_is_one_for_equal_views_and_by_hand_otherwise():
    assert pair_cosine(np.ones((5, 4))) == pytest.approx(1)
    assert pair_cosine(np.array([[1.0, 0], [0, 1], [1, 1]])) == pytest.approx((0 + 2 * 0.5**0.5) / 3)


def test_features_pack_without_loss():
    values = torch.randn(1, 7)
    from e3_facenet.evaluation.run import packed

    assert np.array_equal(unpacked(packed(values)), values[0].numpy())


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.full((4, 3), np.nan), np.zeros(3)])
def test_features_that_mean_nothing_are_refused(bad):
    with pytest.raises(UserError):
        frechet_distance(np.zeros((4, 3)), bad)


def test_files_for_features_must_be_torchscript(settings, tmp_path):
    (tmp_path / "inception.pt").write_bytes(b"no")
    for change, words in (
        ({"inception": str(tmp_path / "inception.pt")}, "not readable"),
        ({"face": "/no/face.pt"}, "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            run_eval(settings.model_copy(update=change), 0, tmp_path / "out")


def test_a_face_embedding_from_the_user_gives_mvic(settings, tmp_path):
    """Fails if MVIC is not computed when an embedding is brought."""

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3)) + 2.0

    torch.jit.script(Mean()).save(str(tmp_path / "face.pt"))
    found = run_eval(settings.model_copy(update={"face": str(tmp_path / "face.pt"), "limit": 2}), 0, tmp_path / "out")
    assert 0.5 < found.metrics["mvic"] <= 1 and "our definition" in found.metrics["protocol"]["mvic"]
