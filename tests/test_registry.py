"""Schemas from signatures, names and their nearest, and projects that register what they add."""

import re
import sys

import pytest

from videorl import config, registry
from videorl.registry import LOSSES, REQUIRED, Registry, UserError


def test_keys_are_the_keyword_only_parameters():
    things = Registry("thing")

    @things.register("one", node="ONE", rate="SOLVER.BASE_LR")
    class One:
        """A thing.

        Keys:
            depth: blocks, counted
                from 1
            names: of the classes: a, b

        More text: not a key.
        """

        def __init__(self, spec, plain=3, *, depth: int = 4, names: tuple[str, ...] = (), rate: float, bare: str):
            self.got = (spec, plain, depth, names, rate, bare)

    entry = things["one"]
    assert (entry.name, entry.node, list(entry.keys)) == ("one", "ONE", ["DEPTH", "NAMES", "RATE", "BARE"])
    depth, names, rate, bare = entry.keys.values()
    assert (depth.type, depth.default, depth.doc, depth.bound) == (int, 4, "blocks, counted from 1", "")
    assert (names.type, names.default, names.doc) == (tuple[str, ...], (), "of the classes: a, b")
    assert (rate.default, rate.bound) == (REQUIRED, "SOLVER.BASE_LR")
    assert (bare.default, bare.doc) == (REQUIRED, "")
    built = entry("spec", values={"DEPTH": 2, "NAMES": (), "RATE": 0.1, "BARE": "x"})
    assert built.got == ("spec", 3, 2, (), 0.1, "x")


def test_the_rest_of_the_keys_are_those_of_the_base():
    things = Registry("thing")

    @things.register("base")
    class Base:
        """A base.

        Keys:
            size: of the base
            depth: of the base, too
        """

        def __init__(self, spec, *, size: int = 1, depth: int = 2):
            self.got = size, depth

    @things.register("child", size="DATA.SIZE")
    class Child(Base):
        """A child."""

        def __init__(self, spec, *, depth: int = 5, **base):
            super().__init__(spec, depth=depth, **base)

    found = {name: (key.default, key.doc, key.bound) for name, key in things["child"].keys.items()}
    assert found == {"SIZE": (1, "of the base", "DATA.SIZE"), "DEPTH": (5, "of the base, too", "")}
    assert things["child"]("spec", values={"SIZE": 3, "DEPTH": 4}).got == (3, 4)


def test_functions_inherited_constructors_and_text_annotations():
    things = Registry("thing")

    class Base:
        def __init__(self, spec, *, size: "int" = 1):
            self.size = size

    things.register("child")(type("Child", (Base,), {}))

    @things.register("function")
    def build(spec, *, size: "float | None" = None):
        return size

    assert things["child"].keys["SIZE"].type is int
    assert things["function"].keys["SIZE"].type == float | None
    assert things["function"](None, values={"SIZE": 2.0}) == 2.0
    assert list(things) == ["child", "function"]
    assert "child" in things
    assert "other" not in things


def test_a_component_without_a_constructor_has_no_keys():
    things = Registry("thing")
    things.register("plain")(type("Plain", (), {}))
    assert things["plain"].keys == {}


def test_a_name_can_be_taken_once():
    things = Registry("thing")
    one, two = type("One", (), {}), type("Two", (), {})
    things.register("a")(one)
    with pytest.raises(ValueError, match="thing 'a' is registered twice: by .*One.* and .*Two"):
        things.register("a")(two)
    assert things["a"].build is one


def test_a_key_needs_a_type():
    with pytest.raises(TypeError, match="'depth' is a config key and needs a type annotation"):

        @Registry("thing").register("a")
        def build(spec, *, depth=3): ...


def test_a_bound_name_must_be_a_parameter():
    with pytest.raises(TypeError, match=re.escape("['DEPHT'] are no keyword-only parameters")):

        @Registry("thing").register("a", depht="MODEL.DEPTH")
        def build(spec, *, depth: int = 3): ...


def test_unknown_names_offer_the_nearest():
    things = Registry("thing")
    for name in ("MViT", "S3D"):
        things.register(name)(type(name, (), {}))
    with pytest.raises(UserError, match=re.escape("unknown thing 'mvitt'; did you mean MViT? (known: MViT, S3D)")):
        things["mvitt"]
    with pytest.raises(UserError, match=re.escape("unknown thing 'x' (known: MViT, S3D)")):
        things["x"]


# --- projects --------------------------------------------------------------------------------------------------------

LOSS = '''
from torch import nn

from videorl.registry import LOSSES


@LOSSES.register("{name}")
class Offset(nn.Module):
    """Keys:
        offset: added
    """

    def __init__(self, spec, *, offset: float = 1.5):
        super().__init__()
        self.offset = offset
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes `projects/<folder>/` with one file of code and one YAML."""
    registry.discover()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))

    def make(folder: str, code: str, text: str):
        home = tmp_path / "projects" / folder
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{folder}.py").write_text(code)
        (home / "run.yaml").write_text(text)
        return home / "run.yaml"

    return make


def test_a_project_s_yaml_brings_its_code(project):
    file = project("offset_loss", LOSS.format(name="offset"), "MODEL: {LOSS_FUNC: offset}\n")
    assert "offset" not in LOSSES
    cfg = config.load([file], ["LOSSES.more.NAME", "offset", "LOSSES.more.OFFSET", "2"])
    assert config.component(cfg, LOSSES, "more")[1] == {"OFFSET": 2.0}
    assert config.load([file]).LOSSES.offset.OFFSET == 1.5
    assert config.load([file]).LOSSES.offset.OFFSET == 1.5, "a second load imports nothing anew"


def test_a_project_may_have_an_init_file(project):
    file = project("with_init", LOSS.format(name="with_init"), "MODEL: {LOSS_FUNC: with_init}\n")
    (file.parent / "__init__.py").write_text("from . import with_init\n")
    assert config.load([file]).LOSSES.with_init.OFFSET == 1.5


def test_a_project_folder_s_name_must_be_a_module_s(project, tmp_path):
    marker = tmp_path / "ran"
    file = project("bad-name", f"open({str(marker)!r}, 'w')\n", "TRAIN: {}\n")
    with pytest.raises(UserError, match="project folder 'bad-name': expected a name of letters, digits and '_'"):
        config.load([file])
    assert not marker.exists()


def test_a_yaml_elsewhere_brings_no_code(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "elsewhere" / "run.yaml").write_text("LOG_PERIOD: 2\n")
    assert config.load([tmp_path / "elsewhere" / "run.yaml"]).LOG_PERIOD == 2
    assert not (tmp_path / "ran").exists()


def test_another_folder_s_project_of_the_same_name_is_not_taken_for_it(project, tmp_path):
    config.load([project("twin", LOSS.format(name="twin"), "TRAIN: {}\n")])
    other = tmp_path / "copy" / "projects" / "twin"
    other.mkdir(parents=True)
    (other / "twin.py").write_text(LOSS.format(name="twin_of_twin"))
    with pytest.raises(UserError, match=r"projects\.twin\.twin was already read from .*; rename one of the folders"):
        registry.import_project(other)


def test_discover_registers_every_component():
    registry.discover()
    for what, name in (("MODELS", "MViT"), ("DATASETS", "kinetics"), ("BATCHES", "shuffled"), ("EVALS", "views")):
        assert name in getattr(registry, what)
    assert "cross_entropy" in LOSSES
