"""Names of narrators in facebookresearch/LaViLa, written down apart from the tables that read them."""


def own_names(weights: dict) -> dict:
    """Our names of a published narrator's weights."""
    renamed = {"temporal_embed": "time_embed", "timeattn": "temporal_attn", "norm3": "temporal_norm1"}
    found = {}
    for name, value in weights.items():
        if name.startswith("visual."):
            name = name.replace("visual.", "video.", 1)
            for theirs, own in renamed.items():
                name = name.replace(theirs, own)
        if not name.endswith(".beta"):
            found[name] = value
    return found


def published_names(weights: dict) -> dict:
    """The other way, with the constants that such files hold beside."""
    import torch

    renamed = {"time_embed": "temporal_embed", "temporal_attn": "timeattn", "temporal_norm1": "norm3"}
    found = {}
    for name, value in weights.items():
        if name.startswith("video."):
            name = name.replace("video.", "visual.", 1)
            for own, theirs in renamed.items():
                name = name.replace(own, theirs)
        found[name] = value
        if name.endswith(".gamma"):
            found[name.replace(".gamma", ".beta")] = torch.zeros_like(value)
        if name.endswith("attn.c_attn.weight") or name.endswith("crossattention.c_attn.weight"):
            front = name.removesuffix("c_attn.weight")
            found[front + "bias"] = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
            found[front + "masked_bias"] = torch.tensor(-1e4)
    return found
