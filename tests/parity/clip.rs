use engine::device::{Device, Tensor};
use engine::io::{TensorFile, safetensors};
use engine::models::clip::{Clip, ClipText};

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
fn an_image_alone_and_in_a_batch_gives_the_same_bits() {
    let folder = fixture("clip/quick");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let clip = Clip::load(&folder, &Device::Cpu).unwrap();
    let (pixels, rows) = (read(&io, "pixel_values"), ids(&io, "input_ids"));
    let (images, texts) = (clip.image_embeds(&pixels), clip.text_embeds(&rows));
    for i in 0..pixels.dim(0) {
        assert!(bits(&clip.image_embeds(&pixels.slice(i..i + 1))) == bits(&images.slice(i..i + 1)));
        assert!(bits(&clip.text_embeds(&rows[i..=i])) == bits(&texts.slice(i..i + 1)));
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
