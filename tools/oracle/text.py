"""CLIP text encoders, T5 encoder and full CLIP at tiny sizes -> tests/fixtures/{clip_text,t5,clip}/*."""

import torch
from transformers import (CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig,
                          T5Config, T5EncoderModel)

from common import case_dir, generator, quiet, randn, randomize, save_io

CLIP_GAINS = [("q_proj.weight", 2.0), ("k_proj.weight", 2.0), ("logit_scale", 1.0)]


def clip_text_config(act, eos, hidden=32, layers=3, projection=24):
    return CLIPTextConfig(vocab_size=64, hidden_size=hidden, intermediate_size=hidden * 2, projection_dim=projection,
                          num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=16,
                          hidden_act=act, bos_token_id=60, eos_token_id=eos, pad_token_id=1)


def clip_ids(name):
    """Rows with one end token, with several, and full length. Ids above the end token appear only in `g`-like cases."""
    if name == "l":  # legacy: the end token is the largest id, wherever the config says it is
        return torch.tensor([
            [60, 5, 17, 33, 63] + [63] * 11,
            [60, 9, 2, 2, 41, 12, 8, 63] + [0] * 8,
            [60, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 63]])
    return torch.tensor([  # end token 61; 62 and 63 are ordinary words, so that argmax of the ids is wrong
        [60, 5, 62, 33, 61] + [61] * 11,
        [60, 63, 2, 2, 41, 12, 61, 7, 61, 63] + [0] * 6,
        [60, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 63, 61]])


@torch.no_grad()
def clip_text():
    for name, act, eos in (("l", "quick_gelu", 2), ("g", "gelu", 61)):
        model = CLIPTextModelWithProjection(clip_text_config(act, eos))
        randomize(model, "clip_text/" + name, CLIP_GAINS)
        d, ids = case_dir("clip_text", name), clip_ids(name)
        model.save_pretrained(d)
        o = model(ids, output_hidden_states=True)
        assert len(o.hidden_states) == model.config.num_hidden_layers + 1
        normed = model.text_model.final_layer_norm(o.hidden_states[-1])
        assert torch.equal(normed, o.last_hidden_state), "hidden_states must be taken before the final norm"
        save_io(d, dict(input_ids=ids, hidden=o.hidden_states[-2], last_hidden=o.last_hidden_state,
                        text_embeds=o.text_embeds))
        if name == "l":  # f16 weights on disk (as SD3.5's own text encoders), f32 math and torch's own f16 math
            d = case_dir("clip_text", "l_f16")
            model.half().save_pretrained(d)
            up = CLIPTextModelWithProjection.from_pretrained(d, dtype=torch.float32).eval()
            o = up(ids, output_hidden_states=True)
            io = dict(input_ids=ids, hidden_f32=o.hidden_states[-2], text_embeds_f32=o.text_embeds)
            o = model(ids, output_hidden_states=True)
            io |= dict(hidden_f16=o.hidden_states[-2].float(), text_embeds_f16=o.text_embeds.float())
            save_io(d, io)


@torch.no_grad()
def t5():
    # Real T5-XXL: 32 buckets, max_distance 128. Here 8 and 16, so that a length of 40 crosses every branch.
    cases = {"gated": dict(feed_forward_proj="gated-gelu", d_model=32, d_kv=16, num_heads=3, d_ff=48),
             "relu": dict(feed_forward_proj="relu", d_model=24, d_kv=8, num_heads=2, d_ff=32)}
    for name, c in cases.items():
        config = T5Config(vocab_size=96, num_layers=3, relative_attention_num_buckets=8,
                          relative_attention_max_distance=16, layer_norm_epsilon=1e-6, is_encoder_decoder=False,
                          use_cache=False, **c)
        model = T5EncoderModel(config)
        randomize(model, "t5/" + name, [(".q.weight", 0.3), ("relative_attention_bias", 1.5), ("shared", 1.4)])
        d = case_dir("t5", name)
        model.save_pretrained(d)
        ids = torch.randint(3, 96, (2, 40), generator=generator("t5/ids"))
        ids[1, 13:] = 0  # padding; SD3 passes no attention mask, so padding is attended to
        ids[1, 12] = ids[0, 39] = 1
        save_io(d, dict(input_ids=ids, last_hidden=model(ids).last_hidden_state))


@torch.no_grad()
def clip():
    for name, act in (("quick", "quick_gelu"), ("exact", "gelu")):
        text = clip_text_config(act, 2 if name == "quick" else 61, hidden=16, layers=2, projection=20)
        vision = CLIPVisionConfig(hidden_size=24, intermediate_size=40, projection_dim=20, num_hidden_layers=2,
                                  num_attention_heads=3, image_size=24, patch_size=8, hidden_act=act)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=20))
        randomize(model, "clip/" + name, CLIP_GAINS)
        model.logit_scale.fill_(2.3)
        d = case_dir("clip", name)
        model.save_pretrained(d)
        ids = clip_ids("l" if name == "quick" else "g")
        pixels = randn(generator("clip/pixels/" + name), 3, 3, 24, 24)
        o = model(input_ids=ids, pixel_values=pixels)
        image, txt = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
        save_io(d, dict(pixel_values=pixels, input_ids=ids, image_embeds=image, text_embeds=txt,
                        image_embeds_normalized=o.image_embeds, text_embeds_normalized=o.text_embeds,
                        logit_scale=model.logit_scale.reshape(1), logits_per_image=o.logits_per_image))


def main():
    quiet()
    clip_text()
    t5()
    clip()


if __name__ == "__main__":
    main()
