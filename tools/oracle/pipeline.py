"""A complete tiny StableDiffusion3Pipeline without T5, and a LoRA for it -> tests/fixtures/{pipeline/no_t5,lora}."""

import json
import shutil

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from common import FIXTURES, ROOT, case_dir, generator, quiet, randn, randomize, save_io

FOLDER = FIXTURES / "pipeline" / "no_t5"
PROMPTS = ["Two blue squares", "a red circle, on a very large green field; it's 12 o'clock & the sun shines brightly"]
RUNS = {  # name -> arguments of the pipeline call
    "plain": dict(negative_prompt="", guidance_scale=4.5, num_inference_steps=10, max_sequence_length=12),
    "negative": dict(negative_prompt="blurry, grey", guidance_scale=4.5, num_inference_steps=10,
                     max_sequence_length=5),
    "unguided": dict(negative_prompt=None, guidance_scale=1.0, num_inference_steps=4, max_sequence_length=12),
}
CORPUS = ("a the two three red green blue square squares circle circles triangle large small on field sun shines "
          "shining brightly it's clock very background photo of grey blurry colour color one four").split()


def bytes_to_unicode():
    """GPT-2's byte alphabet in CLIP's order: id 0 is "!"."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return [table[b] for b in keep] + [table[b] for b in range(256) if b not in keep]


def bpe_merges(words, count):
    """Plain byte-pair training with a fixed tie-break."""
    words = [list(w[:-1]) + [w[-1] + "</w>"] for w in words]
    merges = []
    while len(merges) < count:
        pairs = {}
        for w in words:
            for p in zip(w, w[1:]):
                pairs[p] = pairs.get(p, 0) + 1
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for w in words:
            i = 0
            while i < len(w) - 1:
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    return merges


def write_tokenizer(folder, pad):
    """The four files of SD3.5's tokenizer folders (no tokenizer.json)."""
    folder.mkdir(parents=True)
    chars = bytes_to_unicode()
    merges = bpe_merges(CORPUS, 60)
    words = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(words)) == len(words)
    dump = lambda name, value: (folder / name).write_text(
        json.dumps(value, ensure_ascii=False, indent=None if name == "vocab.json" else 2) + "\n")
    dump("vocab.json", {w: i for i, w in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    token = lambda s: dict(content=s, lstrip=False, normalized=True, rstrip=False, single_word=False)
    plain = lambda s: dict(content=s, lstrip=False, normalized=False, rstrip=False, single_word=False)
    n = len(words)
    added = {n - 2: token("<|startoftext|>"), n - 1: token("<|endoftext|>") if pad == "!" else plain("<|endoftext|>")}
    if pad == "!":
        added = {0: plain("!")} | added
    dump("special_tokens_map.json", dict(
        bos_token=token("<|startoftext|>"), eos_token=plain("<|endoftext|>"),
        pad_token="<|endoftext|>" if pad != "!" else "!", unk_token=plain("<|endoftext|>")))
    dump("tokenizer_config.json", dict(
        add_prefix_space=False, added_tokens_decoder={str(k): v | dict(special=True) for k, v in added.items()},
        bos_token="<|startoftext|>", clean_up_tokenization_spaces=True, do_lower_case=True, eos_token="<|endoftext|>",
        errors="replace", model_max_length=16, pad_token=pad, tokenizer_class="CLIPTokenizer",
        unk_token="<|endoftext|>"))
    return n


def clip(name, vocab, hidden, projection, act, eos):
    model = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16, hidden_act=act,
        bos_token_id=vocab - 2, eos_token_id=eos, pad_token_id=1))
    return randomize(model, "pipeline/" + name)


def build():
    case_dir("pipeline", "no_t5")
    vocab = write_tokenizer(FOLDER / "tokenizer", "<|endoftext|>")
    write_tokenizer(FOLDER / "tokenizer_2", "!")
    transformer = randomize(SD3Transformer2DModel(
        sample_size=12, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm"), "pipeline/transformer")
    vae = randomize(AutoencoderKL(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=96,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609), "pipeline/vae")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip("text_encoder", vocab, 16, 12, "quick_gelu", 2),
        tokenizer=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer"),
        text_encoder_2=clip("text_encoder_2", vocab, 24, 20, "gelu", vocab - 1),
        tokenizer_2=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer_2"), text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(FOLDER)
    # transformers 5 writes tokenizer.json; the published SD3.5 folders have vocab.json and merges.txt instead.
    for sub, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        shutil.rmtree(FOLDER / sub)
        write_tokenizer(FOLDER / sub, pad)


def load():
    # The null entries of model_index.json are not enough: from_pretrained insists on being told.
    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def generate(pipe, noise, run, prefix="", image=True):
    r = RUNS[run]
    call = dict(prompt=PROMPTS, latents=noise.clone(), height=64, width=96,
                **r | dict(negative_prompt=r["negative_prompt"] and [r["negative_prompt"]] * len(PROMPTS)))
    latents = pipe(**call, output_type="latent").images
    if not image:
        return {prefix + "latents": latents}
    images = pipe(**call, output_type="pil").images
    pixels = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(64, 96, 3) for i in images])
    return {prefix + "latents": latents, prefix + "image": pixels}


@torch.no_grad()
def main():
    quiet()
    build()
    pipe = load()
    noise = randn(generator("pipeline/noise"), 2, 16, 8, 12)
    io = dict(noise=noise)
    for run, r in RUNS.items():
        guided = r["guidance_scale"] > 1
        e, n, p, q = pipe.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=guided,
            negative_prompt=[r["negative_prompt"]] * 2 if guided else None,
            max_sequence_length=r["max_sequence_length"])
        if guided:
            io |= {f"{run}.prompt_embeds": e, f"{run}.pooled_prompt_embeds": p,
                   f"{run}.negative_prompt_embeds": n, f"{run}.negative_pooled_prompt_embeds": q}
        io |= generate(pipe, noise, run, run + ".", image=run != "unguided")
    for name, tok in (("tokenizer", pipe.tokenizer), ("tokenizer_2", pipe.tokenizer_2)):
        ids = tok(PROMPTS + ["", "blurry, grey"], padding="max_length", max_length=16, truncation=True,
                  return_tensors="pt").input_ids
        io[f"{name}.ids"] = ids
    save_io(FOLDER, io)
    (FOLDER / "io.json").write_text(json.dumps(dict(
        prompts=PROMPTS, height=64, width=96, tokenized=PROMPTS + ["", "blurry, grey"], runs=RUNS), indent=1) + "\n")

    # The LoRA, as a training script saves it: rank 4, alpha 8, written with its PEFT configuration as metadata.
    d, g = case_dir("lora"), generator("lora")
    pipe.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=[
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"]))
    for key, p in pipe.transformer.named_parameters():
        if "lora_" in key:
            p.copy_(randn(g, *p.shape, std=p.shape[1] ** -0.5 if "lora_A" in key else 0.1))
    attached = generate(pipe, noise, "plain", image=False)
    metadata = _collate_lora_metadata({"transformer": pipe.transformer})
    config = metadata["transformer_lora_adapter_metadata"]
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order would differ from run to run
    StableDiffusion3Pipeline.save_lora_weights(
        d, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer), **metadata)
    fresh = load()
    fresh.load_lora_weights(d)
    loaded = generate(fresh, noise, "plain", image=False)
    assert torch.equal(attached["latents"], loaded["latents"])
    assert (loaded["latents"] - io["plain.latents"]).abs().max() > 0.05
    save_io(d, loaded)
    with safe_open(d / "pytorch_lora_weights.safetensors", "pt") as f:
        print("keys:", *sorted(f.keys()), sep="\n  ")
        print("metadata:", json.dumps(f.metadata(), indent=1))


if __name__ == "__main__":
    main()
