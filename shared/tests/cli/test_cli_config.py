"""Settings from a file, a name and `--set`; package files in a wheel and in the source tree."""

from dataclasses import dataclass

import pytest
from glass_beads.commands.app import Light, Settings
from pydantic import BaseModel

from tenfold import UserError
from tenfold.cli import find_package_file, load_config, package_file
from tenfold.cli.settings import checked_dataclass


def test_a_shipped_config_is_found_by_name():
    assert load_config(Settings, "mini") == Settings(beads=8, light=Light(angle=30))
    assert load_config(Settings, "full").beads == 128


def test_a_config_is_read_from_a_path(tmp_path):
    (tmp_path / "own.yaml").write_text("beads: 3\n")
    assert load_config(Settings, tmp_path / "own.yaml").beads == 3
    (tmp_path / "empty.yaml").write_text("# all defaults\n")
    assert load_config(Settings, str(tmp_path / "empty.yaml")) == Settings()


def test_settings_are_changed_in_order_and_below_groups():
    config = load_config(Settings, "full", ["beads=4", "light.angle=10", "rate=1e-5", "beads=5"])
    assert config == Settings(beads=5, rate=1e-5, light=Light(angle=10))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bead=4", r"unknown setting bead: --set bead=4 \(expected beads, perhaps\)"),
        ("light.angel=4", r"unknown setting light\.angel: .* \(expected light\.angle, perhaps\)"),
        ("beads.x=4", r"not valid settings, beads"),
        ("beads", r"not a setting: --set beads \(expected key=value\)"),
        ("=4", "not a setting"),
        ("beads=[1", "broken YAML"),
        ("beads=many", r"not valid settings, beads: .*--set beads=many"),
        ("beads=2024-13-45", r"broken YAML .*--set beads=2024-13-45"),
        ("beads=!!bool maybe", r"broken YAML .*--set beads=!!bool maybe"),
        ("beads=" + "[" * 3000, r"nested too deeply"),
        ("beads=" + "1" * 5000, r"broken YAML|an integer of"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(Settings, "mini", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bead: 4\n", r"unknown setting bead: .*own\.yaml \(expected beads, perhaps\)"),
        ("light: {angel: 4}\n", r"unknown setting light\.angel"),
        ("- beads\n", "list instead of settings"),
        ("beads: 4\nbeads: 5\n", "key 'beads' twice"),
        ("beads: {x: 1}\n", "not valid settings, beads"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(Settings, path)


def test_unknown_keys_are_refused_even_where_the_model_would_ignore_them(tmp_path):
    """Fails if the refusal is left to the model's own configuration."""

    class Loose(BaseModel):
        beads: int = 1

    (tmp_path / "own.yaml").write_text("baeds: 4\n")
    with pytest.raises(UserError, match="unknown setting baeds"):
        load_config(Loose, tmp_path / "own.yaml")


def test_a_missing_config_lists_the_shipped_ones(tmp_path):
    with pytest.raises(UserError, match=r"no such config: minni \(expected a \.yaml file or one of: full, mini\)"):
        load_config(Settings, "minni")
    with pytest.raises(UserError, match=r"no such file: .*gone\.yaml"):
        load_config(Settings, tmp_path / "gone.yaml")


def test_package_files_are_found_in_the_source_tree_and_in_a_wheel(tmp_path, monkeypatch):
    assert package_file("glass_beads", "claims.yaml").read_text().startswith("paper: glass_beads")
    assert package_file("glass_beads", "configs/mini.yaml").name == "mini.yaml"
    assert find_package_file("glass_beads", "gone.yaml") is None
    wheel = tmp_path / "site" / "boxed_beads"
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").write_text("raise AssertionError('looked up, not imported')")
    (wheel / "claims.yaml").write_text("x")
    (tmp_path / "stray.yaml").write_text("beside site-packages is not in the package")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert package_file("boxed_beads", "claims.yaml") == wheel / "claims.yaml"
    assert find_package_file("boxed_beads", "stray.yaml") is None


def test_a_missing_package_or_file_is_named():
    with pytest.raises(UserError, match="not an installed package: no_such_beads"):
        package_file("no_such_beads", "claims.yaml")
    with pytest.raises(UserError, match=r"does not have this file: glass_beads: gone\.yaml"):
        package_file("glass_beads", "gone.yaml")


@dataclass(frozen=True)
class Plain:
    steps: int = 3
    rate: float = 0.1


def test_a_record_s_settings_become_a_plain_dataclass_again():
    """Fails if only an instance of the dataclass is taken, which no record holds, or a string for a number."""
    assert checked_dataclass(Plain, {"steps": 5, "rate": 1}) == Plain(5, 1.0)
    assert checked_dataclass(Plain, {}) == Plain()
    with pytest.raises(UserError, match=r"steps: '5': run-1 \(expected a valid integer\)"):
        checked_dataclass(Plain, {"steps": "5"}, "run-1")
    with pytest.raises(UserError, match="unknown setting speed: run-1"):
        checked_dataclass(Plain, {"speed": 1}, "run-1")
