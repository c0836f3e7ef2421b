"""The tiny models of the golden cases of Norton, as this toolkit builds them."""

from videorl.convert import videoclip
from videorl.models.sequence import VideoCLIP
from videorl.spec import Clip, Spec

SPEC = Spec(Clip(2, 1, 4, 4))


def tiny(case, kind=VideoCLIP, **keys):
    """The model of a case with its weights, in evaluation mode."""
    shape, words = case["config"]["bert"], case["config"]["vocabulary"]
    model = kind(
        SPEC,
        video_layers=case["config"].get("num_hidden_video_layers", 2),
        text_layers=shape["layers"],
        width=shape["hidden"],
        heads=shape["heads"],
        hidden=shape["inter"],
        vocabulary=len(words),
        positions=128,
        cls_token=words.index("[CLS]"),
        sep_token=words.index("[SEP]"),
        **keys,
    )
    published = {f"mmmodel.{name}": value for name, value in case["state_dict"].items()}
    assert videoclip.matches(set(published))
    model.load_state_dict(videoclip.rename(published, model))
    return model.eval()


def one_sep(values):
    """Published captions begin with [CLS] [SEP]; the text encoder is given them without this [SEP]."""
    return values[..., [0, *range(2, values.shape[-1])]]
