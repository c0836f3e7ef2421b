"""What a file must give, what is said of it, and how classes are matched by name."""

import logging
import re

import pytest
import torch
from torch import nn

from videorl import convert
from videorl.models.heads import class_head
from videorl.registry import UserError
from videorl.spec import Clip, Head, Spec

ABC = ("archery", "bowling", "climbing", "dancing")


class Toy(nn.Module):
    """A body of 110 numbers and the heads of some label spaces."""

    def __init__(self, labels: dict[str, int], **head):
        super().__init__()
        self.body = nn.Linear(10, 10)
        self.head = class_head(Spec(Clip(2, 1, 8, 8), labels, head=Head(**head)), 10)


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Linear(10, 2))


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "model.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module." * 2],
)
@pytest.mark.parametrize("wrapper", ["", "model_state", "state_dict", "model", "model_state_dict", "module"])
def test_wrappers_and_prefixes(wrapper, prefix):
    source, target = Plain(), Plain()
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    state = {"epoch": 3, "args": {"lr": 1.0}, wrapper: weights} if wrapper else weights
    convert.load(target, state, "x.pth", testing=True)
    assert unchanged(target, source.state_dict())


def test_a_submodule_compiled_alone_and_cleared_texts():
    source, target = Plain(), Plain()
    weights = {f"backbone.{n.replace('0.', '0._orig_mod.')}": v for n, v in source.state_dict().items()}
    convert.load(target, weights, "x.pth", testing=True, choice=convert.Choice(clear=["backbone."]))
    assert unchanged(target, source.state_dict())
    with pytest.raises(UserError, match="two tensors would get one name"):
        convert.load(target, weights, "x.pth", choice=convert.Choice(clear=["weight", "bias"]))


def test_a_model_with_a_part_called_module_keeps_it():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.model = nn.Linear(2, 2), nn.Linear(2, 2)

    source, target = Odd(), Odd()
    convert.load(target, source.state_dict(), "x.pth", testing=True)
    assert unchanged(target, source.state_dict())


def test_the_moving_average_is_tested_and_the_weights_are_trained_on():
    plain, average, model = Plain(), Plain(), Plain()
    state = {"model_state": plain.state_dict(), "ema_state": average.state_dict()}
    convert.load(model, state, "x.pth", testing=True)
    assert unchanged(model, average.state_dict())
    convert.load(model, state, "x.pth")
    assert unchanged(model, plain.state_dict())
    convert.load(model, state | {"ema_state": None}, "x.pth", testing=True)
    assert unchanged(model, plain.state_dict())


@pytest.mark.parametrize("state", [{}, {"epoch": 1, "cfg": ""}, {"model_state": {}}, {"model": {"deep": {}}}])
def test_files_without_weights(state):
    with pytest.raises(UserError, match=r"x.pth holds no weights: expected tensors by name, .* found"):
        convert.load(Plain(), state, "x.pth")


# --- audit and refusal -----------------------------------------------------------------------------------------------


def test_the_audit_of_a_whole_file(said):
    convert.load(Plain(), Plain().state_dict(), "x.pth", testing=True)
    line = "x.pth: 100.0 % of the model's numbers loaded (9 of 9 tensors), layout of this toolkit"
    assert said.messages == [line]


def test_the_audit_names_what_did_not_fit(said):
    target, weights = Plain(), copied(Plain())
    kept = target[2].bias.detach().clone()
    weights["2.bias"] = torch.zeros(5)
    weights["2.weight"] = weights["2.weight"].view(2, 1, 10, 1)
    weights["head.extra"] = torch.zeros(1)
    del weights["1.bias"]
    convert.load(target, weights, "x.pth", partial=True)
    numbers = sum(v.numel() for v in target.state_dict().values())
    assert said.messages[0].splitlines() == [
        f"x.pth: {100 * (numbers - 12) / numbers:.1f} % of the model's numbers loaded (7 of 9 tensors),"
        " layout of this toolkit",
        "    reshaped        1  2.weight",
        "    other shape     1  2.bias (5,) for (2,)",
        "    missing         1  1.bias",
        "    unexpected      1  head.extra",
    ]
    assert torch.equal(target[0].weight, weights["0.weight"])
    assert torch.equal(target[2].weight, weights["2.weight"].view(2, 10))
    assert torch.equal(target[2].bias, kept)


def test_a_transposed_tensor_is_not_reshaped():
    weights = copied(Plain())
    weights["2.weight"] = torch.zeros(10, 2)
    _, audit = convert.fit(Plain(), weights, "x.pth")
    assert audit.misfits == {"2.weight": "(10, 2) for (2, 10)"}


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool])
def test_numbers_of_another_kind_are_not_converted(kind):
    """A quantised file in whole numbers, or complex ones, of which the real part alone would be taken."""
    weights = copied(Plain())
    weights["2.bias"] = torch.ones(2).to(kind)
    _, audit = convert.fit(Plain(), weights, "x.pth")
    assert audit.misfits == {"2.bias": f"{str(kind)[6:]} for float32"}
    with pytest.raises(UserError, match="1 of another shape: 2.bias .* for float32"):
        convert.load_exactly(Plain(), weights, "x.pth")


def test_too_little_is_refused_and_changes_nothing(said):
    target = Plain()
    before, other = copied(target), Plain().state_dict()
    strange = {f"other.{name}": value for name, value in other.items()}
    words = r"x.pth: 0\.0 % .*9 missing: 0\.weight, .* …; 9 not used: .*expected at least 95 %: .*MODEL.ALLOW_PARTIAL"
    with pytest.raises(UserError, match=words) as error:
        convert.load(target, strange, "x.pth")
    assert "\n" not in str(error.value)
    body = {name: value for name, value in other.items() if name.startswith("0.")}
    with pytest.raises(UserError, match="expected at least 95 %"):
        convert.load(target, body, "x.pth")
    assert unchanged(target, before)
    convert.load(target, body, "x.pth", partial=True)
    assert said.records[-1].levelname == "WARNING"
    assert "taken as it is (MODEL.ALLOW_PARTIAL)" in said.messages[-1]
    assert unchanged(target, before | body)


def test_testing_needs_all_and_training_95_percent():
    weights = copied(Plain())
    del weights["1.running_var"], weights["2.bias"]  # 12 of 173 numbers
    with pytest.raises(UserError, match=r"93\.1 % .*expected at least 95 %"):
        convert.load(Plain(), weights, "x.pth")
    weights["1.running_var"] = torch.ones(10)
    convert.load(Plain(), weights, "x.pth")
    with pytest.raises(UserError, match=r"98\.8 % .*1 missing: 2.bias; expected at least 100 %"):
        convert.load(Plain(), weights, "x.pth", testing=True)


def test_going_on_with_a_run_needs_exactly_its_model(said):
    source, target = Plain(), Plain()
    convert.load_exactly(target, source.state_dict(), "x.pyth")
    assert unchanged(target, source.state_dict())
    assert said.messages == ["x.pyth: 100.0 % of the model's numbers loaded (9 of 9 tensors)"]
    before = copied(target)
    for change in ({"more": torch.zeros(1)}, {"2.bias": torch.zeros(3)}, {"2.bias": None}):
        weights = {name: v for name, v in (copied(Plain()) | change).items() if v is not None}
        with pytest.raises(UserError, match="expected just this model's"):
            convert.load_exactly(target, weights, "x.pyth")
    assert unchanged(target, before)


# --- classes ---------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module, **names) -> dict:
    return {"model_state": model.state_dict(), "classes": {space: list(n) for space, n in names.items()}}


def test_permuted_classes_are_taken_by_name(said):
    source, target = Toy({"k400": 4}), Toy({"k400": 4})
    order = [2, 0, 3, 1]
    ours = [ABC[i] for i in order]
    convert.load(target, state_of(source, k400=ABC), "x.pyth", data={"k400": ours}, testing=True)
    assert torch.equal(target.head.projection.weight, source.head.projection.weight[order])
    assert torch.equal(target.head.projection.bias, source.head.projection.bias[order])
    assert torch.equal(target.body.weight, source.body.weight)
    assert "k400: the file has its classes in another order; its rows were taken by name" in said.text


def test_the_same_names_need_no_word(said):
    source, target = Toy({"k400": 4}), Toy({"k400": 4})
    convert.load(target, state_of(source, k400=ABC), "x.pyth", data={"k400": ABC}, testing=True)
    assert unchanged(target, source.state_dict())
    assert len(said.text.splitlines()) == 1


def test_names_match_as_folders_and_lists_spell_them():
    source, target = Toy({"k400": 2}), Toy({"k400": 2})
    theirs, ours = ("Abseiling down", "yoga"), ("yoga", "abseiling_down")
    convert.load(target, state_of(source, k400=theirs), "x.pyth", data={"k400": ours}, testing=True)
    assert torch.equal(target.head.projection.weight, source.head.projection.weight.flip(0))


@pytest.mark.parametrize("entry", [list(ABC), {"other name": list(ABC)}], ids=["older files", "another name"])
def test_a_single_label_space_may_have_any_name(entry):
    source, target = Toy({"k400": 4}), Toy({"mine": 4})
    state = {"model_state": source.state_dict(), "classes": entry}
    convert.load(target, state, "x.pyth", data={"mine": ABC[::-1]}, testing=True)
    assert torch.equal(target.head.projection.weight, source.head.projection.weight.flip(0))


def test_a_part_of_the_classes_can_be_tested():
    source, target = Toy({"k400": 4}), Toy({"k400": 2})
    convert.load(target, state_of(source, k400=ABC), "x.pyth", data={"k400": (ABC[3], ABC[1])}, testing=True)
    assert torch.equal(target.head.projection.weight, source.head.projection.weight[[3, 1]])


def test_classes_that_the_file_lacks(said):
    source, target = Toy({"k400": 4}), Toy({"k400": 5})
    fresh = target.head.projection.weight.detach().clone()
    ours = {"k400": (ABC[2], "yoga", ABC[0], "zumba", ABC[1])}
    with pytest.raises(UserError, match="^x.pyth: k400: 2 of 5 classes are not in the file: yoga, zumba") as error:
        convert.load(target, state_of(source, k400=ABC), "x.pyth", data=ours, testing=True)
    assert "\n" not in str(error.value)
    assert torch.equal(target.head.projection.weight, fresh)
    convert.load(target, state_of(source, k400=ABC), "x.pyth", data=ours)
    assert "k400: 2 of 5 classes are not in the file: yoga, zumba" in said.text
    assert torch.equal(target.head.projection.weight[[0, 2, 4]], source.head.projection.weight[[2, 0, 1]])
    assert torch.equal(target.head.projection.weight[[1, 3]], fresh[[1, 3]])


def test_none_of_the_classes_leaves_the_head_fresh(said):
    source, target = Toy({"a": 4}), Toy({"b": 4})
    fresh = copied(target.head)
    ours = {"b": ("w", "x", "y", "z")}
    with pytest.raises(UserError, match="4 of 4 classes are not in the file: w, x, y, z; the file's are archery, bow"):
        convert.load(target, state_of(source, a=ABC), "x.pyth", data=ours, testing=True)
    convert.load(target, state_of(source, a=ABC), "x.pyth", data=ours)
    assert unchanged(target.head, fresh)
    assert torch.equal(target.body.weight, source.body.weight)
    assert "not counted     2  head.projection.weight, head.projection.bias" in said.text


@pytest.mark.parametrize(
    ("theirs", "ours", "who"),
    [((), ABC, "the file has none"), (ABC, (), "the data has none"), ((), (), "file and data have none")],
)
def test_names_that_are_not_known_are_said_so(said, theirs, ours, who):
    source, target = Toy({"k400": 4}), Toy({"k400": 4})
    convert.load(target, state_of(source, k400=theirs), "x.pyth", data={"k400": ours}, testing=True)
    assert unchanged(target, source.state_dict())
    assert f"k400: classes taken by number; their names could not be checked, {who}" in said.text


@pytest.mark.parametrize("theirs", [(), ABC])
def test_without_data_there_are_no_names_to_be_checked(said, theirs):
    source, target = Toy({"k400": 4}), Toy({"k400": 4})
    convert.load(target, state_of(source, k400=theirs), "x.pyth", testing=True)
    assert unchanged(target, source.state_dict())
    assert "classes" not in said.text


def test_names_that_occur_twice_are_no_names(said):
    source, target = Toy({"k400": 4}), Toy({"k400": 4})
    twice = ("a", "a", "b", "c")
    convert.load(target, state_of(source, k400=twice), "x.pyth", data={"k400": twice[::-1]}, testing=True)
    assert unchanged(target, source.state_dict())
    assert "could not be checked" in said.text


def test_another_number_of_classes(said):
    source, target = Toy({"k400": 40}), Toy({"k700": 70})
    fresh = copied(target.head)
    words = "^x.pyth: label space k700 has 70 classes here and 40 in the file; set NUM_CLASSES"
    with pytest.raises(UserError, match=words):
        convert.load(target, source.state_dict(), "x.pyth", testing=True)
    convert.load(target, source.state_dict(), "x.pyth")
    assert said.messages[-1].startswith("x.pyth: 100.0 % of the model's numbers loaded (2 of 4 tensors)")
    assert "label space k700 has 70 classes here and 40 in the file" in said.messages[-1]
    assert unchanged(target.head, fresh)
    assert torch.equal(target.body.weight, source.body.weight)


def test_the_head_does_not_stand_in_for_a_missing_body():
    source, target = Toy({"k400": 40}), Toy({"k400": 40})
    weights = {name: value for name, value in source.state_dict().items() if name.startswith("head.")}
    with pytest.raises(UserError, match="expected at least 95 %"):
        convert.load(target, weights, "x.pyth")


MULTI = {"kinetics": 4, "mit": 3}


@pytest.mark.parametrize("hidden", [0, 6])
def test_permuted_classes_of_several_heads_and_their_projections(hidden):
    source, target = (Toy(MULTI, hidden=hidden, projection=True, expander=5) for _ in range(2))
    names = {"kinetics": ABC, "mit": ("x", "y", "z")}
    k, m = [3, 0, 1, 2], [1, 2, 0]
    ours = {"kinetics": [ABC[i] for i in k], "mit": [names["mit"][i] for i in m]}
    convert.load(target, state_of(source, **names), "x.pyth", data=ours, testing=True)
    features = torch.randn(5, 10)
    found, wanted = target.head.train()(features), source.head.train()(features)
    columns = [*k, *(4 + i for i in m)]
    torch.testing.assert_close(found["logits"], wanted["logits"][:, columns])
    torch.testing.assert_close(found["projected"], wanted["projected"][:, columns])
    torch.testing.assert_close(found["expanded"], wanted["expanded"])


@pytest.mark.parametrize("classes", [2, 5])
def test_one_of_several_label_spaces_is_new(said, classes):
    source = Toy(MULTI, projection=True)
    target = Toy({"kinetics": 4, "mit": classes}, projection=True)
    fresh = copied(target.head)
    convert.load(target, state_of(source, kinetics=ABC), "x.pyth", data={"kinetics": ABC[::-1]})
    assert torch.equal(target.head.heads["kinetics"].weight, source.head.heads["kinetics"].weight.flip(0))
    assert torch.equal(target.head.heads["mit"].weight, fresh["heads.mit.weight"])
    assert torch.equal(target.head.projections["kinetics"]["mit"].weight, fresh["projections.kinetics.mit.weight"])
    assert torch.equal(target.head.projections["mit"]["kinetics"].weight, fresh["projections.mit.kinetics.weight"])
    assert f"label space mit has {classes} classes here and 3 in the file" in said.text


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (Toy(MULTI), Toy({"kinetics": 4, "moments": 3}), "moments: the file has heads for kinetics, mit alone"),
        (Toy(MULTI), Toy({"kinetics": 4}), "the file has a head for each of kinetics, mit; name these data sets"),
        (Toy(MULTI, hidden=6), Toy(MULTI), "the file has other layers in its head; set MULTI.HEAD_HIDDEN"),
        (Toy({"kinetics": 4}), Toy(MULTI), "the file has one head, of a single label space"),
        (nn.ModuleDict({"body": nn.Linear(10, 10)}), Toy({"kinetics": 4}), "kinetics: the file has no head"),
    ],
)
def test_a_head_that_is_not_there(source, target, words):
    with pytest.raises(UserError, match=f"^x.pyth: label space .*{words}") as error:
        convert.load(target, source.state_dict(), "x.pyth", testing=True)
    assert "\n" not in str(error.value)
    convert.load(target, source.state_dict(), "x.pyth")
    assert torch.equal(target.body.weight, source.get_submodule("body").weight)


def test_forced_testing_takes_what_there_is(said):
    source, target = Toy({"a": 4}), Toy({"a": 5})
    convert.load(target, state_of(source), "x.pyth", testing=True, partial=True)
    assert torch.equal(target.body.weight, source.body.weight)
    assert re.search("label space a has 5 classes here and 4 in the file.*taken as it is", said.messages[-1])


def test_a_head_that_contradicts_itself_is_left_out():
    source = Toy(MULTI, projection=True)
    weights = copied(source)
    weights["head.projections.mit.kinetics.weight"] = torch.zeros(2, 3)
    names = {"kinetics": ABC, "mit": ("x", "y", "z")}
    state = {"model_state": weights, "classes": names}
    reversed_names = {space: n[::-1] for space, n in names.items()}
    _, audit = convert.fit(Toy(MULTI, projection=True), state, "x.pyth", data=reversed_names)
    assert audit.missing == ["head.projections.mit.kinetics.weight"]
