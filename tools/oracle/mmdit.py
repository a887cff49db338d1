"""SD3Transformer2DModel at tiny sizes -> tests/fixtures/mmdit/*."""

import torch
from diffusers import SD3Transformer2DModel

from common import case_dir, generator, quiet, randn, randomize, save_io

CASES = {
    # SD3.0: one attention per block, no q/k norm.
    "sd3": dict(num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
                pooled_projection_dim=20, dual_attention_layers=(), qk_norm=None),
    # SD3.5 medium: the first layers have a second, image-only attention. Head dim 24: not a power of two.
    "sd35": dict(num_layers=3, attention_head_dim=24, num_attention_heads=2, joint_attention_dim=24,
                 pooled_projection_dim=20, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    # Dual attention also in the last, context-pre-only block; odd head dim; 3 heads.
    "sd35_all_dual": dict(num_layers=2, attention_head_dim=8, num_attention_heads=3, joint_attention_dim=20,
                          pooled_projection_dim=12, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    # SD3.5 large: q/k norm without dual attention.
    "sd35_large": dict(num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=20,
                       pooled_projection_dim=12, dual_attention_layers=(), qk_norm="rms_norm"),
}
# name -> (batch, latent height, latent width, prompt length)
RUNS = {"square": (2, 8, 8, 7), "wide": (3, 8, 14, 5)}


def build(name):
    c = CASES[name]
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, pos_embed_max_size=12,
        caption_projection_dim=c["attention_head_dim"] * c["num_attention_heads"], **c,
    )
    # adaLN gates around 0.5 keep both branches of every residual visible.
    randomize(model, "mmdit/" + name, gains=[("norm1.linear.bias", 2.5), ("norm1_context.linear.bias", 2.5)])
    if name != "sd3":
        # The table is part of the checkpoint: a loader must read it, not recompute it.
        pe = model.pos_embed.pos_embed
        pe += randn(generator("pos_embed/" + name), *pe.shape, std=0.1)
    return model


def inputs(name, run):
    c, (b, h, w, length) = CASES[name], RUNS[run]
    g = generator(f"mmdit/{name}/{run}")
    sigma = torch.tensor([0.9375, 0.3, 0.05])[:b]
    return dict(
        x=randn(g, b, 16, h, w), timestep=1000 * sigma,
        prompt_embeds=randn(g, b, length, c["joint_attention_dim"]),
        pooled_prompt_embeds=randn(g, b, c["pooled_projection_dim"]),
    )


@torch.no_grad()
def velocity(model, i, dtype=torch.float32):
    """The timestep stays f32 in every dtype, as in the pipeline."""
    return model(hidden_states=i["x"].to(dtype), timestep=i["timestep"],
                 encoder_hidden_states=i["prompt_embeds"].to(dtype),
                 pooled_projections=i["pooled_prompt_embeds"].to(dtype), return_dict=False)[0].float()


def record(model, io):
    """Hooks that store the intermediate tensors of the next forward."""
    def put(key, pick=lambda o: o):
        return lambda m, a, o: io.__setitem__(key, pick(o).clone())
    hooks = [model.pos_embed.register_forward_hook(put("dbg.x_embed")),
             model.time_text_embed.register_forward_hook(put("dbg.temb")),
             model.context_embedder.register_forward_hook(put("dbg.context"))]
    for n, block in enumerate(model.transformer_blocks):
        hooks.append(block.register_forward_hook(put(f"dbg.block{n}.hidden", lambda o: o[1])))
        if not block.context_pre_only:
            hooks.append(block.register_forward_hook(put(f"dbg.block{n}.context", lambda o: o[0])))
    return hooks


def main():
    quiet()
    for name in CASES:
        model, d, io = build(name), case_dir("mmdit", name), {}
        model.save_pretrained(d)
        for run in RUNS if name != "sd35_large" else ["square"]:
            i = inputs(name, run)
            io |= {f"{run}.{k}": v for k, v in i.items()}
            hooks = record(model, io) if (name, run) == ("sd35", "square") else []
            io[f"{run}.velocity"] = velocity(model, i)
            for h in hooks:
                h.remove()
        save_io(d, io)

    # The same weights rounded to bf16 on disk; what f32 math and what torch's own bf16 math make of them.
    model, d, io = build("sd35").to(torch.bfloat16), case_dir("mmdit", "sd35_bf16"), {}
    model.save_pretrained(d)
    upcast = SD3Transformer2DModel.from_pretrained(d, torch_dtype=torch.float32).eval()
    for run in RUNS:
        i = inputs("sd35", run)
        # Inputs a bf16 run can hold exactly, so that both outputs are of the same inputs.
        i = {k: v if k == "timestep" else v.bfloat16().float() for k, v in i.items()}
        io |= {f"{run}.{k}": v for k, v in i.items()}
        io[f"{run}.velocity_f32"] = velocity(upcast, i)
        io[f"{run}.velocity_bf16"] = velocity(model, i, torch.bfloat16)
    save_io(d, io)


if __name__ == "__main__":
    main()
