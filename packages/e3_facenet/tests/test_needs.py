"""What users of this family of models ask for in its trackers, one test a need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_commands
import test_data
import test_eval
import test_facenet
import test_generator
import test_mesh
import test_release

README = (Path(__file__).parents[1] / "README.md").read_text()

# Needs whose test stands where its subject is; the name says which need it holds.
test_need_01_load_the_pickle_without_the_code_base = test_release.test_a_pickle_gives_its_tensors_and_runs_nothing
states = test_release.states
test_need_07_cameras_for_blender_and_nerfstudio = test_mesh.test_exported_cameras_project_points_onto_their_pixels
test_need_08_flat_results_are_noticed = test_eval.test_a_flat_face_scores_zero_and_a_deep_one_does_not
test_need_10_resume_from_stylenerf = test_release.test_a_training_starts_from_stylenerf_and_names_what_is_new
test_need_10_mismatch_is_named = test_release.test_a_start_of_another_shape_is_refused_with_both_shapes
test_need_13_own_captions = test_data.test_json_lines_are_read_as_well
test_need_14_gradients_for_inversion = (
    test_generator.test_gradients_reach_the_style_code_through_the_field_in_evaluation_mode
)
generator, inputs = test_generator.generator, test_generator.inputs
test_need_15_edits_keep_identity = test_facenet.test_edits_keep_background_and_geometry
test_need_15_edit_of_an_edit = test_facenet.test_an_edit_of_an_edit_takes_the_last_text_and_the_first_code
portrait, sphere = test_facenet.portrait, test_mesh.sphere
test_need_04_meshes_in_three_formats = test_mesh.test_files_hold_what_they_say
test_need_04_meshes_are_closed = test_mesh.test_a_sphere_is_closed_round_and_turned_outwards
test_need_05_meshes_with_colour = test_mesh.test_colours_go_with_their_places
test_need_06_no_noise_outside_the_view_cone = test_mesh.test_no_vertex_lies_where_no_camera_looked


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>quota</html>"])
def test_need_02_a_pointer_or_a_web_page_is_named(tmp_path, content):
    test_release.test_what_is_no_release_is_named(tmp_path, content, "not the weights")


def test_need_03_no_compiled_plugins(tmp_path):
    """Fails if importing or rendering touches torch's extension caches, or needs a compiler."""
    environment = os.environ | {
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "ext"),
        "CXX": "/no/compiler",
        "CUDA_HOME": "/no",
    }
    code = (
        "import torch\nfrom e3_facenet_fixtures import TINY, make_generator\nfrom e3_facenet.camera import poses\n"
        "with torch.no_grad():\n make_generator()(torch.zeros(1, TINY.num_ws, TINY.w_dim), None, poses([0.0]), None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, env=environment)
    assert not (tmp_path / "ext").exists()


def test_need_09_camera_poses_are_not_needed():
    assert "No camera poses are needed" in " ".join(README.split())


def test_need_11_a_distance_has_its_protocol():
    assert "protocol" in README and {"cameras", "psi"} <= set(test_eval.EvalSettings.model_fields)


def test_need_12_splits_that_overlap_are_refused(tmp_path):
    index = {"train": test_data.pairs("ab"), "test": test_data.pairs("b")}
    test_data.test_what_does_not_fit_is_named(tmp_path, index, "in train and in test")


def test_need_14_own_photographs_are_refused_in_one_line(capsys, monkeypatch, tmp_path):
    test_commands.test_what_is_wrong_is_said_in_one_line(
        capsys, monkeypatch, tmp_path, ("invert", "photo.jpg"), "out of scope in 1.0"
    )
