"""Narrations of lists and of videos: what the model writes by itself, in order, whoever makes them and how often."""

import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.conftest import free_port
from tests.narrate.world import VIDEOS, YAML, code, content
from videorl import checkpoint, config
from videorl.cli.narrate import main
from videorl.data.text import tokenizer
from videorl.engine import build
from videorl.engine.step import to_device
from videorl.narrate import captioner, parts
from videorl.spec import Sampling, Views
from videorl.toy.egocentric import SHOTS

ROWS = VIDEOS * SHOTS


@pytest.fixture
def run(world, model, tmp_path):
    """run(*words, out=…, rows=…) narrates a list and returns the exit code; `rows`: another list than the toy's."""

    def run(*words, out="out", rows=None) -> int:
        file = world / "ego4d_train.pkl"
        if rows is not None:
            file = tmp_path / "rows.pkl"
            file.write_bytes(pickle.dumps(rows))
        return code(main, [*model, "--metadata", file, "--returns", 3, "--out", tmp_path / out, *words])

    return run


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def rebuilt(model: list[str]):
    """The narrator, its config, and its tokenizer, without the tool."""
    cfg = config.load([YAML], model[2:-2])
    built = build.model(cfg).eval()
    built.load_state_dict(checkpoint.read(Path(model[-1]))["model_state"])
    return built, cfg, tokenizer(config.spec(cfg).text)


def test_texts_of_a_list_are_those_of_the_model_on_the_data_set_s_clips(run, world, model, tmp_path):
    assert run() == 0
    rows = read(tmp_path / "out/narrations.jsonl")
    listed = pickle.loads((world / "ego4d_train.pkl").read_bytes())
    assert [(row["video"], row["start"], row["end"]) for row in rows] == [row[:3] for row in listed]
    assert [row["number"] for row in rows] == list(range(ROWS))
    built, cfg, tokens = rebuilt(model)
    words = ["EGO4D.METADATA_VAL", str(world / "ego4d_train.pkl")]
    data = build.dataset(config.load([YAML], [*model[2:-2], *words]), "ego4d", "val", views=Views())
    sampling = Sampling(max_length=12, returns=3, temperature=1.0, top_p=0.95)
    for number in (0, ROWS - 1):
        clip = to_device({"video": data[number][0]["video"][None]}, torch.device("cpu"), config.spec(cfg).clip)
        ids, likely = built.generate(clip["video"], torch.tensor([number]), sampling)
        assert rows[number]["texts"] == [tokens.decode(text) for text in ids[0].tolist()]
        assert rows[number]["log_likelihoods"] == pytest.approx(likely[0].tolist(), abs=1e-3)
        text = tokens([rows[number]["texts"][0]])
        assert rows[number]["tokens"][0] in ((text[0] >= 0).sum() - 1, 11)  # 11: it never came to an end
    assert len({text for row in rows for text in row["texts"]}) > ROWS


def test_the_pickle_goes_into_the_training_of_a_dual_encoder(run, world, model, tmp_path):
    assert run("--pickle") == 0
    listed = pickle.loads((tmp_path / "out/total.pkl").read_bytes())
    rows = read(tmp_path / "out/narrations.jsonl")
    assert [row[:4] for row in listed] == [(r["video"], r["start"], r["end"], r["texts"]) for r in rows]
    first = rows[0]
    assert listed[0][4][0] == pytest.approx(np.exp(-first["log_likelihoods"][0] / first["tokens"][0]))
    words = {"EGO4D.METADATA": world / "ego4d_train.part.pkl", "EGO4D.METADATA_AUX": tmp_path / "out/total.pkl"}
    words = [str(word) for pair in words.items() for word in pair]
    both = build.dataset(config.load([YAML], [*model[2:-2], *words]), "ego4d", "train")
    human = len(pickle.loads((world / "ego4d_train.part.pkl").read_bytes()))
    assert len(both) == human + ROWS
    assert not both[0][0]["pseudo"]
    assert both[human][0]["pseudo"]
    assert both.texts(human) == tuple(rows[0]["texts"])


def test_parquet_holds_what_jsonl_holds(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run() == run("--format", "parquet", out="table") == 0
    table = parquet.read_table(tmp_path / "table/narrations.parquet").to_pylist()
    assert table == read(tmp_path / "out/narrations.jsonl")


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch, shards):
    """In forks of this process, which die by kill -9: in the model, and before, amid and after what a batch writes."""
    assert run("--pickle") == 0
    words = [[f"--num_shards={shards}", f"--shard_id={k}"] for k in range(shards)]
    for moment in ("model 2", "write 1", "half 1", "sync 2", "replace 1"):
        codes = []
        for own in words:
            pid = os.fork()
            if not pid:
                deadly(*moment.split(), monkeypatch)
                os._exit(run("--pickle", *own, out="killed"))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert set(codes) <= {0, -signal.SIGKILL}
        assert -signal.SIGKILL in codes, moment
    for own in reversed(words):
        assert run("--pickle", *own, out="killed") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "out")


def deadly(place: str, call: str, patch) -> None:
    """Makes this process die at that call."""
    calls = []

    def dies(what, *args):
        calls.append(1)
        if len(calls) == int(call):
            if place == "half":
                file, line = args
                file.write(line[: len(line) // 2])
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return what(*args)

    target, name = {
        "model": (captioner.Captioner, "captions"),
        "write": (parts, "append"),
        "half": (parts, "append"),
        "sync": (os, "fsync"),
        "replace": (os, "replace"),
    }[place]
    what = getattr(target, name)
    patch.setattr(target, name, lambda *args: dies(what, *args))


def test_another_number_of_shards_goes_on(run, tmp_path, capsys):
    assert run() == 0
    assert run("--num_shards", 3, "--shard_id", 1, out="parts") == 0
    assert "other shards are not yet" in capsys.readouterr().out
    assert run(out="parts") == 0
    assert content(tmp_path / "parts") == content(tmp_path / "out")


def test_torchrun_shares_the_work(run, tmp_path, monkeypatch):
    assert run("--pickle") == 0
    world = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = str(free_port())
    pids = []
    for rank in ("0", "1"):
        if not (pid := os.fork()):
            for name, value in {**world, "RANK": rank, "LOCAL_RANK": rank}.items():
                monkeypatch.setenv(name, value)
            os._exit(run("--pickle", out="two"))
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert sorted(file.name for file in (tmp_path / "two/.parts").glob("*.jsonl")) == ["0-of-2.jsonl", "1-of-2.jsonl"]
    assert content(tmp_path / "two") == content(tmp_path / "out")


def odd_rows(world: Path) -> list[tuple]:
    rows = pickle.loads((world / "ego4d_train.pkl").read_bytes())[:4]
    video = rows[0][0]
    return [
        *rows,
        (video, 3.0, 3.0, "no length"),
        (video, 0.5, 1.5, None),
        (video, 0.5, 1.5, ""),
        (video, 29.0, 31.0, "after the end"),
        (video, 100.0, 101.0, "in a chunk that is not there"),
        ("nobody", 0.0, 1.0, "no video"),
        (video, 2.0, 1.0, "backwards"),
    ]


def test_odd_rows_are_narrated_or_listed_one_line_each(run, world, tmp_path, capsys):
    assert run(rows=odd_rows(world)) == 1
    assert [row["number"] for row in read(tmp_path / "out/narrations.jsonl")] == list(range(7))
    listed = {row["number"]: row["bad"] for row in read(tmp_path / "out/quarantine.jsonl")}
    assert sorted(listed) == [7, 8, 9, 10]
    for number, said in {7: "its video ends at", 8: "no such chunk", 9: "is no folder", 10: "before its start"}.items():
        assert said in listed[number]
    assert "quarantine.jsonl lists what cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--returns", 2], "'returns': 3"),
        (["--returns", 0], "--returns 0: expected 1 or more"),
        (["--returns", -3], "--returns -3: expected 1 or more"),
        (["--every", 2], "--every: of no effect where a list is narrated; leave it out"),
        (["--shard_id", 4], "--shard_id 4"),
        (["EVALS.captions.MAX_LENGTH", 13], "places for 12 tokens"),
        (["EVALS.captions.TEMPERATURE", 0], "draws nothing"),
        (["NARRATOR.VOCABULARY", 40], "name the one it was trained with"),
        (["--metadata", "none.pkl"], "no such file"),
        (["EGO4D.ROOT", "nowhere"], "EGO4D.ROOT"),
        (["MODEL.MODEL_NAME", "MViT"], "writes no texts"),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, said):
    if words == ["--returns", 2]:
        assert run() == 0  # another run's folder
    assert run(*words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_other_weights_need_another_folder(run, model, tmp_path, capsys):
    assert run() == 0
    state = checkpoint.read(Path(model[-1]))
    state["model_state"]["img_queries"] += 1
    checkpoint.save(tmp_path / "other.pyth", state)
    assert run("--checkpoint", tmp_path / "other.pyth") == 2
    assert "holds narrations with weights" in capsys.readouterr().err


def test_two_processes_with_one_shard_number(run, tmp_path, monkeypatch, capsys):
    write = captioner.Captioner.captions

    def second(*args):
        pid = os.fork()
        if not pid:
            monkeypatch.setattr(captioner.Captioner, "captions", write)
            os._exit(run())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        return write(*args)

    monkeypatch.setattr(captioner.Captioner, "captions", second)
    assert run() == 0


def test_a_full_disk_loses_nothing(run, tmp_path, monkeypatch, capsys):
    assert run() == 0
    with monkeypatch.context() as patch:
        sync, calls = os.fsync, []

        def full(file):
            calls.append(1)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
            sync(file)

        patch.setattr(os, "fsync", full)
        assert run(out="full") == 2
    assert "No space left on device; the same command goes on where it was" in capsys.readouterr().err.replace(
        "[Errno 28] ", ""
    )
    assert run(out="full") == 0
    assert content(tmp_path / "full") == content(tmp_path / "out")
