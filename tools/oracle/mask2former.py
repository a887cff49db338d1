"""Mask2Former with a Swin backbone at a tiny size, in its three layouts, and deformable attention -> tests/fixtures/mask2former/*.

The weights are not stored: names and shapes are, and a rule (`common.uniform`) that the test knows too. For both generations of
mmdet the listing says of which tensors of transformers each of theirs is made.
"""

import json
import math
import tempfile

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from common import case_dir, generator, quiet, randn, save_io, uniform

SIZES = {"even": (64, 96), "odd": (70, 45)}  # the second fills neither patches nor windows nor pairs of neighbours


def model():
    swin = SwinConfig(embed_dim=8, depths=[2, 1, 3, 2], num_heads=[1, 2, 2, 4], window_size=5, mlp_ratio=1.5,
                      patch_size=4, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=swin, feature_size=64, mask_feature_size=40, hidden_dim=64,
                               encoder_feedforward_dim=48, dim_feedforward=56, encoder_layers=2, decoder_layers=5,
                               num_attention_heads=8, num_queries=9, num_labels=5, feature_strides=[4, 8, 16, 32])
    return Mask2FormerForUniversalSegmentation(config).eval()


def listed(name, shape):
    """Mean and gain that keep activations near 1."""
    if "norm" in name or name.split(".")[-2] == "1" and len(shape) == 1:
        return (1.0, 0.5) if name.endswith("weight") else (0.0, 0.35)
    if "bias_table" in name:
        return 0.0, 1.5
    if "sampling_offsets" in name:
        return 0.0, 2.0 if name.endswith("bias") else 0.3
    if name.endswith("bias"):
        return 0.0, 0.35
    fan = 1 if name.removesuffix(".weight").endswith(("level_embed", "queries_embedder", "queries_features")) else math.prod(shape[1:])
    return 0.0, math.sqrt(3.0 / fan)


def numbers(t):
    values = torch.from_numpy(uniform(t["name"], math.prod(t["shape"])))
    return (torch.tensor(t["mean"], dtype=torch.float32) + torch.tensor(t["gain"], dtype=torch.float32) * values).view(t["shape"])


def merging_columns(channels):
    """Of which column of transformers' merging each of mmdet's is made: it takes neighbours as `nn.Unfold` has them."""
    pixels = torch.arange(4 * channels, dtype=torch.float32)
    # The neighbour (row, column) of channel c holds transformers' number: (2 column + row)·channels + c.
    image = pixels.view(2, 2, channels).permute(2, 1, 0)[None]
    return F.unfold(image, 2, stride=2)[0, :, 0].long().tolist()


def mmdet(names, generation):
    """mmdet's names, each with the names it is made of."""
    out = {}

    def add(there, here, kinds=("weight", "bias"), **how):
        for kind in kinds:
            froms = [f"{h}.{kind}" if kind else h for h in ([here] if isinstance(here, str) else here)]
            if froms[0] in names:
                out[f"{there}.{kind}" if kind else there] = {"from": froms, **how}

    enc, dec = "model.pixel_level_module.encoder", "model.pixel_level_module.decoder"
    add("backbone.patch_embed.projection", f"{enc}.embeddings.patch_embeddings.projection")
    add("backbone.patch_embed.norm", f"{enc}.embeddings.norm")
    for s in range(4):
        add(f"backbone.norm{s}", f"{enc}.hidden_states_norms.stage{s + 1}")
        columns = merging_columns(8 * 2**s)
        for what in ("norm", "reduction"):
            add(f"backbone.stages.{s}.downsample.{what}", f"{enc}.encoder.layers.{s}.downsample.{what}", columns=columns)
        for b in range(3):
            here, there = f"{enc}.encoder.layers.{s}.blocks.{b}", f"backbone.stages.{s}.blocks.{b}"
            add(f"{there}.norm1", f"{here}.layernorm_before")
            add(f"{there}.norm2", f"{here}.layernorm_after")
            add(f"{there}.attn.w_msa.qkv", [f"{here}.attention.self.{k}" for k in ("query", "key", "value")])
            add(f"{there}.attn.w_msa.proj", f"{here}.attention.output.dense")
            add(f"{there}.attn.w_msa.relative_position_bias_table",
                f"{here}.attention.self.relative_position_bias_table", kinds=("",))
            add(f"{there}.ffn.layers.0.0", f"{here}.intermediate.dense")
            add(f"{there}.ffn.layers.1", f"{here}.output.dense")
    head = "panoptic_head"
    for i in range(3):
        add(f"{head}.pixel_decoder.input_convs.{i}.conv", f"{dec}.input_projections.{i}.0")
        add(f"{head}.pixel_decoder.input_convs.{i}.gn", f"{dec}.input_projections.{i}.1")
    add(f"{head}.pixel_decoder.level_encoding.weight", f"{dec}.level_embed", kinds=("",))
    for there, here in (("lateral_convs", "adapter_1"), ("output_convs", "layer_1")):
        add(f"{head}.pixel_decoder.{there}.0.conv", f"{dec}.{here}.0")
        add(f"{head}.pixel_decoder.{there}.0.gn", f"{dec}.{here}.1")
    add(f"{head}.pixel_decoder.mask_feature", f"{dec}.mask_projection")
    for l in range(2):
        here, there = f"{dec}.encoder.layers.{l}", f"{head}.pixel_decoder.encoder.layers.{l}"
        attention, ffn = ("attentions.0", "ffns.0") if generation == 2 else ("self_attn", "ffn")
        for k in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            add(f"{there}.{attention}.{k}", f"{here}.self_attn.{k}")
        add(f"{there}.{ffn}.layers.0.0", f"{here}.fc1")
        add(f"{there}.{ffn}.layers.1", f"{here}.fc2")
        add(f"{there}.norms.0", f"{here}.self_attn_layer_norm")
        add(f"{there}.norms.1", f"{here}.final_layer_norm")
    for l in range(4):
        here, there = f"model.transformer_module.decoder.layers.{l}", f"{head}.transformer_decoder.layers.{l}"
        cross, own, ffn = ("attentions.0", "attentions.1", "ffns.0") if generation == 2 else ("cross_attn", "self_attn", "ffn")
        for kind in ("weight", "bias"):
            add(f"{there}.{cross}.attn.in_proj_{kind}", f"{here}.cross_attn.in_proj_{kind}", kinds=("",))
            add(f"{there}.{own}.attn.in_proj_{kind}", [f"{here}.self_attn.{k}_proj.{kind}" for k in "qkv"], kinds=("",))
        add(f"{there}.{cross}.attn.out_proj", f"{here}.cross_attn.out_proj")
        add(f"{there}.{own}.attn.out_proj", f"{here}.self_attn.out_proj")
        add(f"{there}.{ffn}.layers.0.0", f"{here}.fc1")
        add(f"{there}.{ffn}.layers.1", f"{here}.fc2")
        for i, norm in enumerate(("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")):
            add(f"{there}.norms.{i}", f"{here}.{norm}")
    tm = "model.transformer_module"
    add(f"{head}.transformer_decoder.post_norm", f"{tm}.decoder.layernorm")
    for there, here in (("query_feat", "queries_features"), ("query_embed", "queries_embedder"), ("level_embed", "level_embed")):
        add(f"{head}.{there}", f"{tm}.{here}")
    add(f"{head}.cls_embed", "class_predictor")
    for i in range(3):
        add(f"{head}.mask_embed.{2 * i}", f"{tm}.decoder.mask_predictor.mask_embedder.{i}.0")
    used = {name for how in out.values() for name in how["from"]}
    assert used == names, (names - used, used - names)
    return [{"name": name, **how} for name, how in out.items()]


def merging_is_mmdets():
    """mmdet's patch merging (`nn.Unfold`, norm, linear) on converted weights gives what transformers' gives."""
    from transformers.models.swin.modeling_swin import SwinPatchMerging
    ours, g = SwinPatchMerging(6), generator("merging")
    for p in ours.parameters():
        p.data = randn(g, *p.shape)
    x, columns = randn(g, 2, 8 * 10, 6), merging_columns(6)
    want = ours(x, (8, 10))
    unfolded = F.unfold(x.transpose(1, 2).view(2, 6, 8, 10), 2, stride=2).transpose(1, 2)
    normed = F.layer_norm(unfolded, [24], ours.norm.weight[columns], ours.norm.bias[columns])
    assert torch.allclose(F.linear(normed, ours.reduction.weight[:, columns]), want, atol=1e-5)


@torch.no_grad()
def main():
    merging_is_mmdets()
    d = case_dir("mask2former")
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        shapes = {k: list(v.shape) for k, v in load_file(f"{folder}/model.safetensors").items()}
        tensors = []
        for name, shape in shapes.items():
            mean, gain = listed(name, shape)
            tensors.append({"name": name, "shape": shape, "mean": mean, "gain": gain})
        save_file({t["name"]: numbers(t) for t in tensors}, f"{folder}/model.safetensors", metadata={"format": "pt"})
        net = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    unused = {n for n in shapes if n == "criterion.empty_weight" or ".swin.layernorm." in n}
    names = set(shapes) - unused
    listing = {"tensors": tensors, "mmdet2": mmdet(names, 2), "mmdet3": mmdet(names, 3)}
    (d / "listing.json").write_text(json.dumps(listing, separators=(",", ":")))
    io = {}
    for size, (height, width) in SIZES.items():
        pixels = randn(generator(f"mask2former/{size}"), 1 if size == "even" else 2, 3, height, width)
        out = net(pixel_values=pixels, output_hidden_states=True)
        io |= {f"{size}.pixels": pixels, f"{size}.classes": out.class_queries_logits, f"{size}.masks": out.masks_queries_logits}
        if size == "odd":
            io |= {f"{size}.feature{s}": feature for s, feature in enumerate(out.encoder_hidden_states)}
        print(size, "part of the masks that is positive:", (out.masks_queries_logits > 0).float().mean().item())
    # Deformable attention: levels of odd sizes, points far outside.
    levels, heads, points, width = [(3, 5), (7, 4)], 4, 3, 20
    n = sum(h * w for h, w in levels)
    g = generator("deformable")
    values, offsets = randn(g, 2, n, width), randn(g, 2, n, heads * len(levels) * points * 2, std=3.0)
    weights = randn(g, 2, n, heads * len(levels) * points)
    centres = torch.cat([torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"), -1)
                         .reshape(-1, 2).flip(-1) for h, w in levels])
    scale = torch.tensor([[w, h] for h, w in levels]).view(1, 1, 1, -1, 1, 2)
    at = centres.view(1, n, 1, 1, 1, 2).double() + offsets.double().view(2, n, heads, len(levels), points, 2) / scale
    soft = weights.double().view(2, n, heads, -1).softmax(-1).view(2, n, heads, len(levels), points)
    out = multi_scale_deformable_attention(values.double().view(2, n, heads, -1), levels, at, soft)
    io |= {"deformable.values": values, "deformable.offsets": offsets, "deformable.weights": weights,
           "deformable.out": out.float()}
    save_io(d, io)


quiet()
main()
