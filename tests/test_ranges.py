"""What every number of a config may be: stated beside its key, shown by the help, checked before any work."""

import itertools
import math
import typing

import pytest

from videorl import config, registry
from videorl.registry import BATCHES, DATASETS, EVALS, LOSSES, Key, Range, UserError

MAPS = {"DATASETS": DATASETS, "LOSSES": LOSSES, "EVALS": EVALS, "BATCHES": BATCHES}


def _all_keys() -> dict[str, tuple[Key, list[str]]]:
    """Dotted name of every key, global and of components -> the key, and the settings that it needs to be read."""
    registry.discover()
    schema = config.global_schema() | config.component_schema()
    found = {".".join(path): (key, []) for path, key in schema.items()}
    for kind, what in MAPS.items():
        node = "BATCHES" if kind == "BATCHES" else f"{kind}.x"
        common = config.MAPS[kind][1] if kind in config.MAPS else {}
        for entry in (what[name] for name in what):
            named = [f"{node}.NAME", entry.name]
            # The global key that a key is bound to says what it may be, and is in the list itself.
            own = {} if entry.node else {name: key for name, key in entry.keys.items() if not key.bound}
            found |= {f"{node}.{name} of {entry.name}": (key, named) for name, key in (common | own).items()}
    return found


def _is_number(kind) -> bool:
    return kind in (int, float) or any(_is_number(part) for part in typing.get_args(kind) if part is not ...)


KEYS = _all_keys()
NUMBERS = {name: given for name, given in KEYS.items() if _is_number(given[0].type)}
WORDS = [name for name, (key, _) in KEYS.items() if typing.get_origin(key.type) is typing.Literal]
RANGES = {name: given for name, given in NUMBERS.items() if given[0].range}


def refusal(words) -> str:
    with pytest.raises(UserError) as error:
        config.load([], [str(word) for word in words])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_number_has_a_range():
    assert not [name for name in NUMBERS if name not in RANGES], (
        "state what it may be: `(>= 1)` in defaults.yaml, `Count` in a signature"
    )


def test_defaults_are_within_their_ranges():
    given = {name: key for name, (key, _) in RANGES.items() if key.default is not registry.REQUIRED}
    assert not [name for name, key in given.items() if not key.range.holds(key.default)]


def _outside(key: Key):
    """Values of the right type that a key may not have: beyond each bound, of a wrong number, falling."""
    step = 1 if "int" in str(key.type) else 1e-6
    for sign, bound in key.range.bounds:
        far, near = (-math.inf, bound - step) if sign[0] == ">" else (math.inf, bound + step)
        wrong = [bound] if len(sign) == 1 and (step != 1 or bound == int(bound)) else [near]
        wrong.append(max(min(far, 2.0**40), -(2.0**40)))
        yield from (int(value) if step == 1 else value for value in wrong)
    if key.range.counts:
        numbers = [1] * (max(key.range.counts) + 1)
        yield [[0, *numbers]] if key.range.rows else numbers
    if key.range.rising:
        yield [2, 1] if step == 1 else [0.9, 0.5]


def _shaped(key: Key, value):
    """A number as the key wants it: itself, in a list of as many, in a row that begins with a block."""
    if isinstance(value, list) or key.type in (int, float):
        return value
    numbers = [value] * min(key.range.counts - {0}, default=1)
    return [[0, *numbers]] if key.range.rows else numbers


@pytest.mark.parametrize("name", RANGES)
def test_a_value_out_of_range_is_refused_in_one_line_before_any_work(name):
    key, needed = RANGES[name]
    dotted = name.split(" ")[0]
    wrong = [_shaped(key, value) for value in _outside(key)]
    assert wrong, "a range without bounds"
    for value in wrong:
        line = refusal([*needed, dotted, value])
        assert line.startswith(f"command line: {dotted} "), line
        assert line.endswith(f": expected {key.range.text}"), line


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_infinite_or_longer_than_64_bits(name):
    key, needed = NUMBERS[name]
    dotted = name.split(" ")[0]
    for value in ["nan", "inf", "-inf", "9" * 400, "-1e400", *([2**64] if "int" in str(key.type) else [])]:
        line = refusal([*needed, dotted, _shaped(key, value) if key.range else value])
        assert line.startswith(f"command line: {dotted} must be "), line


# What outsiders tried (left), and the least or largest that is right (right).
@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("TEST.NUM_ENSEMBLE_VIEWS", 0, 1),
        ("TEST.NUM_SPATIAL_CROPS", 2, 3),
        ("TEST.BATCH_SIZE", 0, 1),
        ("TRAIN.KEEP_CHECKPOINTS", -1, 0),
        ("DATA_LOADER.NUM_WORKERS", -1, 0),
        ("DATA_LOADER.PREFETCH", 0, 1),
        ("DATA_LOADER.TIMEOUT", 0, 0.5),
        ("DATA.SAMPLING_RATE", -4, 1),
        ("DATA.MAX_BAD_FRACTION", 5, 1),
        ("DATA.NUM_FRAMES", 0, 1),
        ("DATA.TARGET_FPS", 0, 0.5),
        ("DATA.TRAIN_JITTER_SCALES", [320, 256], [256, 256]),
        ("DATA.TRAIN_JITTER_SCALES", [256], [256, 320]),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", [1.0, 0.08], [0.08, 1.0]),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.08, 1.2], []),
        ("DATA.TRAIN_JITTER_ASPECT_RELATIVE", [1.3333, 0.75], [0.75, 1.3333]),
        ("DATA.TRAIN_CROP_SCALES", [1.0, 0.0], [1.0, 0.875, 0.75, 0.66]),
        ("DATA.MEAN", [0.45], [0.45, 0.45, 0.45]),
        ("DATA.STD", [0.225, 0.225, 0.0], [0.225, 0.225, 0.225]),
        ("RNG_SEED", -1, 0),
        ("SOLVER.BASE_LR", -1, 0),
        ("SOLVER.MOMENTUM", 1, 0),
        ("SOLVER.STEPS", [0, 30, 20], [0, 20, 30]),
        ("MODEL.DROPOUT_RATE", 1.5, 1),
        ("MASK.RATIO", 1, 0),
        ("NUM_SHARDS", 0, 1),
        ("MVIT.DEPTH", 0, 1),
        ("MVIT.DROPPATH_RATE", -0.1, 0),
        ("MVIT.PATCH_KERNEL", [3, 7], [3, 7, 7]),
        ("MVIT.PATCH_STRIDE", [0, 4, 4], [1, 4, 4]),
        ("MVIT.POOL_Q_STRIDE", [[1, 1, 2]], [[1, 1, 2, 2], [3, 1, 2, 2]]),
        ("MVIT.POOL_Q_STRIDE", [[1, 1, 0, 2]], []),
        ("MVIT.DIM_MUL", [[-1, 2.0]], [[1, 2.0]]),
        ("MVIT.DIM_MUL", [[1.5, 2.0]], [[0, 2.0]]),
        ("MVIT.POOL_KVQ_KERNEL", [3, 0, 3], None),
        ("EVALS.val.EVERY", -1, 0),
        ("EVALS.val.CROPS", 4, 0),
    ],
)
def test_the_edge_of_a_range(key, wrong, right):
    assert refusal([key, wrong]).startswith(f"command line: {key} ")
    config.load([], [key, str(right)])


@pytest.mark.parametrize(
    "name", [name for name, (key, _) in KEYS.items() if typing.get_origin(key.type) is typing.Literal]
)
def test_a_key_of_few_words_takes_no_other(name):
    key, needed = KEYS[name]
    dotted, words = name.split(" ")[0], typing.get_args(key.type)
    line = refusal([*needed, dotted, f"{words[-1]}x"])
    assert line.startswith(f"command line: {dotted} must be one of "), line
    if isinstance(words[-1], str):
        assert line.endswith(f"; did you mean {words[-1]}?"), line


def test_yaml_reads_the_word_off_as_a_bool(tmp_path):
    (tmp_path / "run.yaml").write_text("DETERMINISM: off\n")
    assert config.load([tmp_path / "run.yaml"]).DETERMINISM == "off"


@pytest.mark.parametrize("name", ["DATASETS.a.VAL_SKIP", "DATASETS.a.NUM_CLASSES"])
def test_a_data_set_s_own_key_is_held_to_the_range_of_the_global_one(name):
    assert refusal(["DATASETS.a.NAME", "kinetics", name, 0]) == f"command line: {name} 0: expected >= 1"


def test_help_shows_the_range():
    assert config.describe("SOLVER.LAYER_DECAY").startswith("SOLVER.LAYER_DECAY  (float > 0, <= 1, default 1.0)\n")
    assert config.describe("MVIT.DEPTH").startswith("MVIT.DEPTH  (int >= 1, default 16)\n")
    assert config.describe("SOLVER.LR_POLICY").startswith(
        "SOLVER.LR_POLICY  (one of cosine, linear, steps_with_relative_lrs, default cosine)\n    "
    )


@pytest.mark.parametrize("text", ["", "1", ">=1", "=> 1", "numbers", "> 1,", ">= x", "1 to 3"])
def test_a_range_has_one_form(text):
    with pytest.raises(ValueError, match="range"):
        Range(text)


def test_ranges_against_a_plain_reading():
    values = [-1, 0, 0.5, 1, 2]
    half_open, rising = Range(">= 0, < 1"), Range("0 or 2 numbers > 0, rising")
    assert [half_open.holds(v) for v in values] == [0 <= v < 1 for v in values]
    for pair in itertools.product(values, values):
        assert rising.holds(pair) == (0 < pair[0] <= pair[1])
    assert rising.holds([])
    assert not rising.holds([1])
    assert not rising.holds([1, 2, 3])
    assert Range("rows of a block, 1 number > 0").holds([])
    assert Range("3 numbers >= 1").holds(None)
