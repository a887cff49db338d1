use engine::device::{DType, Device, Precision, Tensor, Wide};
use engine::io::{TensorFile, safetensors};
use engine::models::clip::{Clip, ClipText, ClipVision, HiddenAct, Options};

use super::{bits, devices, fixture, ids, read, relative_error};

/// f32 against f32: rounding of a few layers in another order.
const BOUND: f64 = 1e-5;

fn check(what: &str, got: &Tensor, want: &Tensor) {
    let error = relative_error(got, want);
    println!("{what}: {error:.1e}");
    assert!(error <= BOUND, "{what}: {error:e}");
}

#[test]
fn text_encoders_match_transformers() {
    for (name, device) in ["l", "g"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let folder = fixture("clip_text").join(name);
        let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
        let out = ClipText::load(&folder, &device).unwrap().forward(&ids(&io, "input_ids"));
        for (key, got) in
            [("hidden", &out.hidden), ("last_hidden", &out.last_hidden), ("text_embeds", &out.text_embeds)]
        {
            check(&format!("clip_text/{name} {key} on {device:?}"), got, &read(&io, key));
        }
    }
}

#[test]
fn a_text_encoder_stored_in_half_precision_errs_no_more_than_twice_as_much_as_torch_in_half() {
    let folder = fixture("clip_text/l_f16");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    for device in devices() {
        let out = ClipText::load(&folder, &device).unwrap().forward(&ids(&io, "input_ids"));
        for (key, got) in [("hidden", &out.hidden), ("text_embeds", &out.text_embeds)] {
            let exact = read(&io, &format!("{key}_f32"));
            let torch = relative_error(&read(&io, &format!("{key}_f16")), &exact);
            let error = relative_error(got, &exact);
            println!("clip_text/l_f16 {key} on {device:?}: {error:.1e}, torch in f16 {torch:.1e}");
            assert!(error <= 2.0 * torch, "{key} on {device:?}: {error:e}, torch {torch:e}");
        }
    }
}

#[test]
fn the_whole_model_matches_transformers() {
    for (name, device) in ["quick", "exact"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let folder = fixture("clip").join(name);
        let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
        let clip = Clip::load(&folder, &device).unwrap();
        let image = clip.image_embeds(&read(&io, "pixel_values").to(&device));
        let text = clip.text_embeds(&ids(&io, "input_ids"));
        check(&format!("clip/{name} image_embeds on {device:?}"), &image, &read(&io, "image_embeds"));
        check(&format!("clip/{name} text_embeds on {device:?}"), &text, &read(&io, "text_embeds"));
        assert_eq!(clip.logit_scale(), read(&io, "logit_scale").to_host()[0]);
    }
}

#[test]
fn the_whole_model_in_the_layout_of_open_clip_matches_open_clip() {
    // One with the file of settings beside it, one whose sizes only the tensors say, in half precision and with a prefix.
    for (name, device) in ["named", "bare"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let folder = fixture("open_clip").join(name);
        let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
        let options = Options { precision: Precision::Wide(Wide::F32), activation: None };
        for path in [folder.clone(), folder.join("open_clip_model.safetensors")] {
            let clip = Clip::open(&path, options, &device).unwrap();
            let pixels = read(&io, "pixel_values").to(&device);
            let (image, text) = (clip.image_embeds(&pixels), clip.text_embeds(&ids(&io, "input_ids")));
            check(&format!("open_clip/{name} image_embeds on {device:?}"), &image, &read(&io, "image_embeds"));
            check(&format!("open_clip/{name} text_embeds on {device:?}"), &text, &read(&io, "text_embeds"));
            assert_eq!(clip.logit_scale(), read(&io, "logit_scale").to_host()[0]);
            let half = ClipVision::open(&path, options, &device).unwrap();
            assert!(bits(&half.embeds(&pixels)) == bits(&image));
        }
    }
}

#[test]
fn sizes_from_the_tensors_are_those_of_the_config() {
    let (from, dir) = (fixture("clip/quick"), tempfile::tempdir().unwrap());
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    // A width of 24 has no heads of 64: that much only the config can say.
    let error = Clip::load(dir.path(), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("hidden_size 16 is not a multiple of text_config.num_attention_heads 0"), "{error}");
    let bare = Clip::load(&fixture("open_clip/bare"), &Device::Cpu).unwrap();
    let (text, vision) = (&bare.config().text, &bare.config().vision);
    assert_eq!((text.vocab_size, text.hidden_size, text.intermediate_size), (64, 64, 32));
    assert_eq!((text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings), (1, 1, 16));
    assert_eq!((vision.hidden_size, vision.intermediate_size, vision.num_attention_heads), (64, 64, 1));
    assert_eq!((vision.num_hidden_layers, vision.image_size, vision.patch_size), (1, 24, 8));
    assert_eq!(bare.config().projection_dim, 24);
}

#[test]
fn an_activation_that_is_asked_for_takes_the_place_of_the_model_s_own() {
    let folder = fixture("open_clip/bare");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let of = |activation| {
        let options = Options { activation, ..Options::default() };
        Clip::open(&folder, options, &Device::Cpu).unwrap().image_embeds(&read(&io, "pixel_values"))
    };
    assert!(bits(&of(None)) == bits(&of(Some(HiddenAct::Gelu))));
    assert!(relative_error(&of(Some(HiddenAct::QuickGelu)), &of(None)) > 1e-3);
}

#[test]
fn an_image_alone_and_in_a_batch_gives_the_same_bits() {
    let folder = fixture("clip/quick");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let (pixels, rows) = (read(&io, "pixel_values"), ids(&io, "input_ids"));
    for precision in [Precision::Stored, Precision::Half(DType::Bf16)] {
        let clip = Clip::open(&folder, Options { precision, activation: None }, &Device::Cpu).unwrap();
        let (images, texts) = (clip.image_embeds(&pixels), clip.text_embeds(&rows));
        for i in 0..pixels.dim(0) {
            assert!(bits(&clip.image_embeds(&pixels.slice(i..i + 1))) == bits(&images.slice(i..i + 1)));
            assert!(bits(&clip.text_embeds(&rows[i..=i])) == bits(&texts.slice(i..i + 1)));
        }
        // Another precision is another result, but not by much.
        let error = relative_error(&images, &read(&io, "image_embeds"));
        let bound = if precision == Precision::Stored { 1e-5 } else { 0.02 };
        assert!(error <= bound && (precision == Precision::Stored || error > 1e-5), "{precision:?}: {error:e}");
    }
}

#[test]
fn a_file_without_the_logit_scale_is_refused_by_name() {
    let (folder, dir) = (fixture("clip/quick"), tempfile::tempdir().unwrap());
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    let file = TensorFile::open(&folder.join("model.safetensors")).unwrap();
    let kept: Vec<&str> = file.names().filter(|name| *name != "logit_scale").collect();
    let named = kept.iter().map(|name| ((*name).to_string(), read(&file, name)));
    safetensors::save(&dir.path().join("model.safetensors"), named, &Default::default()).unwrap();
    let message = format!("{:#}", Clip::load(dir.path(), &Device::Cpu).err().unwrap());
    assert!(message.contains("model.safetensors: missing tensor 'logit_scale'"), "{message}");
}
