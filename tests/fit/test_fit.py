"""`videorl fit`: which videos are taken, how they are split, what is decided, and mistakes told in one line."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from yacs.config import CfgNode

from tests.video.clips_on_disk import write_video
from videorl import checkpoint, config
from videorl.cli import fit
from videorl.engine import build
from videorl.engine.state import State
from videorl.fit import recipe
from videorl.fit.folder import find
from videorl.fit.split import class_weights, split
from videorl.losses.classify import CrossEntropy
from videorl.prepare.files import Facts
from videorl.registry import UserError
from videorl.spec import Head


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_class_folders_at_any_depth_hidden_and_foreign_files_named(tmp_path):
    names = ("run/a.mp4", "run/deep/b.MKV", "sit down/c.mp4", "loose.mp4", ".DS_Store", "run/._a.mp4", "run/notes.txt")
    found = find(touched(tmp_path, *names, ".git/x.mp4", "__MACOSX/run/a.mp4", "run/ tail.mp4"))
    assert found.classes == {
        "run/a.mp4": "run",
        "run/deep/b.MKV": "run",
        "sit down/c.mp4": "sit down",
        "run/ tail.mp4": "run",
    }
    assert found.skipped == {
        **{".git/": "hidden", "__MACOSX/": "hidden", ".DS_Store": "hidden", "run/._a.mp4": "hidden"},
        **{"run/notes.txt": "no video by its ending", "loose.mp4": "in no class folder"},
    }


def test_files_named_after_their_class(tmp_path):
    found = find(touched(tmp_path, "jump_1.mp4", "high_jump_2.mp4", "nothing.mp4"))
    assert found.classes == {"jump_1.mp4": "jump", "high_jump_2.mp4": "high_jump"}
    assert found.skipped == {"nothing.mp4": "no class before an underscore in its name"}


@pytest.mark.parametrize("text", ["a b.mp4,x\nc.mp4,y z\n", "a b.mp4\tx\nc.mp4\ty z\n", '"a b.mp4",x\nc.mp4,y z'])
def test_lists(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    assert find(tmp_path / "list.csv").classes == {"a b.mp4": "x", "c.mp4": "y z"}


@pytest.mark.parametrize(
    ("text", "expected", "header"),
    [
        ("clip0,walk\nclip1,walk\nclip2,run\n", {"clip0": "walk", "clip1": "walk", "clip2": "run"}, []),
        ("a,b.mp4\twalk\nc.mp4\trun, fast\n", {"a,b.mp4": "walk", "c.mp4": "run, fast"}, []),
        ("a b.mp4;x\nc.mp4;y, z\n", {"a b.mp4": "x", "c.mp4": "y, z"}, []),
        ('c.mp4,"y, z"\na b.mp4,x\n', {"c.mp4": "y, z", "a b.mp4": "x"}, []),
        ("file.mp4,label\nclip0,walk\n", {"clip0": "walk"}, ["file.mp4"]),
    ],
)
def test_a_list_has_one_separator_and_its_header_is_what_names_no_file(tmp_path, text, expected, header):
    touched(tmp_path, "clip0", "clip1", "clip2", "a,b.mp4", "c.mp4", "a b.mp4")
    (tmp_path / "list.csv").write_text(text)
    found = find(tmp_path / "list.csv")
    assert (found.classes, list(found.skipped)) == (expected, header)


def test_folders_named_train_val_test_are_the_split(tmp_path):
    names = [
        f"{top}/{name}/{k}.mp4" for top, count in (("Train", 5), ("valid", 2)) for name in "ab" for k in range(count)
    ]
    found = find(touched(tmp_path, *names, "extra/a/1.mp4"))
    assert set(found.classes.values()) == {"a", "b"}
    assert found.skipped == {"extra/a/1.mp4": "in none of Train, valid"}
    parts = split(found.classes, {name: name for name in names}, found.parts, 0.2, 0)
    assert parts["val"] == [name for name in names if name.startswith("valid")]
    assert Counter(name.split("/")[1] for name in parts["test"]) == {"a": 1, "b": 1}
    assert sorted(parts["test"] + parts["train"]) == [name for name in names if name.startswith("Train")]
    with pytest.raises(UserError, match="Train/a/0.mp4 and valid/a/0.mp4 are the same video in two of train, val"):
        split(found.classes, {name: name.split("/", 1)[1] for name in names}, found.parts, 0.2, 0)
    left = {name: found.classes[name] for name in names if not name.startswith("valid/b")}
    with pytest.raises(UserError, match="class b has no video in val"):
        split(left, {name: name for name in names}, found.parts, 0.2, 0)


def test_a_class_may_be_called_train_but_no_parts_without_classes(tmp_path):
    found = find(touched(tmp_path / "one", "train/a.mp4", "car/a.mp4"))
    assert found.classes == {"train/a.mp4": "train", "car/a.mp4": "car"}
    with pytest.raises(UserError, match="expected test/CLASS/NAME.mp4, for test and train are parts"):
        find(touched(tmp_path / "two", "train/a.mp4", "test/b.mp4"))
    with pytest.raises(UserError, match="holds test and val, but no train"):
        find(touched(tmp_path / "three", "val/x/a.mp4", "test/x/b.mp4"))


def test_a_split_is_stratified_and_keeps_equal_files_together():
    classes = {f"{name}/{k}": name for name, count in {"a": 20, "b": 7, "c": 3}.items() for k in range(count)}
    hashes = {path: path for path in classes} | {"a/1": "same", "a/2": "same", "a/3": "same"}
    for seed in range(20):
        found = split(classes, hashes, {}, 0.15, seed)
        assert sorted(sum(found.values(), [])) == sorted(classes)
        groups = [{hashes[path] for path in found[part]} for part in found]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        for part in ("val", "test"):
            held = Counter(classes[path] for path in found[part])
            assert held["b"] == held["c"] == 1
            assert 3 <= held["a"] <= 5
    assert split(classes, hashes, {}, 0.15, 3) == split(dict(reversed(classes.items())), hashes, {}, 0.15, 3)


def test_class_weights_against_sklearn():
    labels = np.repeat([0, 1, 2], [30, 10, 4])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights({"a": 30, "b": 10, "c": 4})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.mean(np.array(found)[labels]) == pytest.approx(1, abs=1e-4)
    assert class_weights({"a": 12, "b": 10}) == []


def test_weighted_cross_entropy_against_a_plain_sum():
    spec = SimpleNamespace(labels={"own": 3}, several=frozenset(), head=Head())
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), (0.5, 1.0, 2.0)
    plain = -sum(weights[label] * row.log_softmax(0)[label] for row, label in zip(logits, labels.tolist()))
    torch.testing.assert_close(CrossEntropy(spec, class_weights=weights)(logits, labels), plain)
    with pytest.raises(UserError, match="CLASS_WEIGHTS: expected 3 numbers"):
        CrossEntropy(spec, class_weights=(1.0, 2.0))


def test_what_is_decided_is_a_config_and_says_why(tmp_path):
    classes = {f"{name}/{k}": name for name, count in {"left": 9, "up": 3}.items() for k in range(count)}
    facts = dict.fromkeys(classes, Facts(frames=60, fps=30.0, width=80, height=60))
    made = recipe.decide(list(classes), classes)
    recipe.from_scratch(made, list(classes), facts, 0)
    (tmp_path / "fit.yaml").write_text(made.text(recipe.SCRATCH))
    cfg = config.load([tmp_path / "fit.yaml"])
    assert (cfg.MODEL.NUM_CLASSES, cfg.DATA.RANDOM_FLIP, cfg.DATA.TRAIN_CROP_SIZE) == (2, False, 64)
    assert pytest.approx(2, abs=0.2) == cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE / cfg.DATA.TARGET_FPS
    assert cfg.LOSSES.main.CLASS_WEIGHTS == [0.6667, 2.0]
    assert len(made.reasons) == 7
    assert all(f"# {reason}" in made.text(recipe.SCRATCH) for reason in made.reasons)


def test_a_step_sees_two_videos_or_more():
    for videos, batch in ((2, 2), (9, 2), (16, 3), (400, 8)):
        made = recipe.Decisions()
        recipe.run_length(made, videos, 10)
        assert made.settings["TRAIN.BATCH_SIZE"] == batch


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("Kinetics/MVITv2_S_16x4", "kinetics"),
        ("SSv2/VIDEOMAE_VITB_16x2_FT", "video_list"),
        ("SSv2/MVITv2_S_16x4", "ssv2"),
        ("Multi_dataset/MVITv2_B_32x3_multitrain", "kinetics"),
        ("Mmit/MVITV2_B_16x4_CONV", "kinetics"),
    ],
)
def test_the_config_of_weights_is_a_base_for_one_label(tmp_path, name, data):
    classes = {f"{name}/{k}": name for name in ("a", "b") for k in range(10)}
    made = recipe.decide(list(classes), classes)
    recipe.from_weights(made, list(classes), "w.pyth", 0, all_layers=False)
    (tmp_path / "base.yaml").write_text(recipe.base_of(config.load([f"videorl:{name}"])))
    assert "BATCHES" not in (tmp_path / "base.yaml").read_text()
    (tmp_path / "fit.yaml").write_text(made.text("base.yaml"))
    cfg = config.load([tmp_path / "fit.yaml"])
    assert (data, data, data) == (cfg.TRAIN.DATASET, cfg.EVALS.val.DATASET, cfg.EVALS.test.DATASET)
    assert [node.NAME for node in cfg.LOSSES.values()] == ["cross_entropy"]
    assert (config.spec(cfg).labels, config.spec(cfg).several) == ({data: 2}, frozenset())
    assert (cfg.MODEL.FREEZE, cfg.MIXUP.ENABLE, cfg.TRAIN.BATCH_SIZE) == (True, False, 4)


def test_training_ends_early_by_what_a_checkpoint_holds():
    def ended(epoch, best_epoch, best=0.5, patience=3, step=0):
        cfg = CfgNode({"TRAIN": {"EARLY_STOP": patience}, "SOLVER": {"MAX_EPOCH": 10}})
        state = SimpleNamespace(cfg=cfg, epoch=epoch, best_epoch=best_epoch, best=best, step_in_epoch=step)
        return State.ended.fget(state)

    assert [ended(epoch, 2) for epoch in range(2, 7)] == [False, False, False, True, True]
    assert not ended(5, 2, step=1)
    assert not ended(9, 0, best=None)
    assert not ended(9, 2, patience=0)
    assert ended(10, 9)


def test_a_frozen_model_trains_its_head_alone():
    words = ["MODEL.FREEZE", "True", "NUM_GPUS", "0", "MVIT.DEPTH", "1", "MVIT.DROPPATH_RATE", "0.5"]
    model = build.model(config.load(["videorl:toy/mvit"], words)).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.projection.weight", "head.projection.bias"}
    clip = torch.rand(2, 3, 8, 64, 64)
    model(clip)["logits"].sum().backward()
    assert not model.blocks.training
    assert model.head.training
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """a/, b/: 4 small videos each."""
    place = tmp_path_factory.mktemp("videos")
    for k, name in enumerate("ab"):
        (place / name).mkdir()
        for n in range(4):
            write_video(place / name / f"{n}.mp4", range(40 * k + 5 * n, 40 * k + 5 * n + 24))
    return place


def _rename_to_a_capital(place: Path) -> None:
    shutil.copytree(place / "a", place / "A")


def _same_in_both(place: Path) -> None:
    shutil.copy(place / "a/0.mp4", place / "b/9.mp4")


def _all_cut(place: Path) -> None:
    for file in place.glob("*/*.mp4"):
        file.write_bytes(file.read_bytes()[:300])


def _two_left(place: Path) -> None:
    for n in (1, 2):
        (place / f"b/{n}.mp4").unlink()


def _without_a_classifier(place: Path) -> None:
    torch.save({"model_state": {}, "cfg": "MODEL: {MODEL_NAME: DualEncoder}\n"}, place / "dual.pyth")


def _masked(place: Path) -> None:
    torch.save({"model_state": {}, "cfg": "MODEL: {MODEL_NAME: VideoMAE}\nMASK: {RATIO: 0.9}\n"}, place / "mae.pyth")


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        (None, ["nix"], "nix does not exist; name a folder of class folders"),
        (lambda place: (place / "empty").mkdir(), ["empty"], "empty holds no videos"),
        (lambda place: shutil.rmtree(place / "b"), ["."], "of class a; expected two classes or more"),
        (_two_left, ["."], "class b has 2 videos that can be read; expected 3 or more"),
        (_rename_to_a_capital, ["."], "classes A and a differ in capital letters only"),
        (_same_in_both, ["."], "a/0.mp4 and b/9.mp4 are the same video in two classes"),
        (_all_cut, ["."], "can be read; first: a/0.mp4"),
        (lambda place: (place / "w.pyth").write_bytes(b"PK\x03\x04"), [".", "--weights", "w.pyth"], "w.pyth"),
        (None, [".", "--weights", "a"], "a holds no checkpoint that can be read"),
        (None, [".", "--weights", "hf:MCG-NJU/videomae-base"], "does not exist; name a checkpoint"),
        (_masked, [".", "--weights", "mae.pyth"], "was pre-trained on masked clips"),
        (
            _without_a_classifier,
            [".", "--weights", "dual.pyth"],
            "holds a DualEncoder, which has no classifier of videos",
        ),
        (None, [".", "--all-layers"], "--cfg and --all-layers are for --weights"),
        (None, [".", "--held-out", "0.5"], "--held-out: expected more than 0, at most 0.4"),
        (None, [".", "--out", "runs/x"], "which holds the videos; name a folder elsewhere"),
        (lambda place: (place / "l.csv").write_text("a/0.mp4,x\na/0.mp4,y\n"), ["l.csv"], "but of x on a line before"),
        (lambda place: touched(place.parent / "run", "run.json"), ["."], "holds another run"),
        (lambda place: (place / "l.csv").write_text("a/0.mp4\n"), ["l.csv"], "expected `path,class`"),
        (lambda place: (place / "l.csv").write_text("../0.mp4,x\n"), ["l.csv"], "give --root"),
    ],
)
def test_mistakes_are_told_in_one_line(videos, tmp_path, monkeypatch, capsys, change, words, line):
    place = tmp_path / "videos"
    shutil.copytree(videos, place)
    monkeypatch.chdir(place)
    if change:
        change(place)
    with pytest.raises(SystemExit) as end:
        fit.main(["--out", str(tmp_path / "run"), *words])
    assert end.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run/fit.yaml").exists()


@pytest.mark.parametrize("said", [None, "", '{"asked": ', "[]", "{}"])
def test_who_decided_must_be_known(tmp_path, capsys, said):
    (tmp_path / "fit.yaml").write_text("")
    if said is not None:
        (tmp_path / "fit.json").write_text(said)
    with pytest.raises(SystemExit) as end:
        fit.main([str(tmp_path), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "fit.json cannot be read, so nobody knows which command has decided" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_becomes_a_model_and_that_another(videos, tmp_path, capsys):
    small = ["MVIT.DEPTH", "1", "DATA_LOADER.NUM_WORKERS", "0", "TEST.NUM_ENSEMBLE_VIEWS", "1"]
    first = [str(videos), "--out", str(tmp_path / "one"), "--epochs", "2"]
    fit.main([*first, *small])
    found = json.loads((tmp_path / "one/results.json").read_text())["evals"]["test"]
    assert (found["n"], found["of"]) == (2, 2)
    assert (tmp_path / "one/report.html").is_file()
    fit.main([*first, *small])
    assert "going on with what was decided" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fit.main([*first, "--seed", "1"])
    assert "was decided by another command; name another --out" in capsys.readouterr().err
    fit.main([str(videos), "--out", str(tmp_path / "two"), "--weights", str(tmp_path / "one"), "--epochs", "1"])
    states = [checkpoint.read(tmp_path / name / "checkpoints/best.pyth")["model_state"] for name in ("one", "two")]
    same = {name for name in states[0] if torch.equal(states[0][name], states[1][name])}
    assert {name for name in states[0] if not name.startswith("head.")} <= same
