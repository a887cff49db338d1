use super::config::{ClipConfig, TextConfig};
use super::text::end_position;

fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn the_end_is_the_first_end_token_or_in_old_files_the_largest_id() {
    assert_eq!(end_position(&[60, 5, 61, 63, 61], 61), 2);
    assert_eq!(end_position(&[60, 5, 63, 2, 63], 2), 2);
    assert_eq!(end_position(&[60, 5, 7], 61), 0);
}

#[test]
fn missing_keys_take_the_defaults_of_transformers() {
    let (_dir, path) = written(r#"{"hidden_size": 768, "num_attention_heads": 12, "layer_norm_eps": null}"#);
    let config = TextConfig::load(path.parent().unwrap()).unwrap();
    assert_eq!((config.hidden_size, config.vocab_size, config.eos_token_id), (768, 49408, 49407));
    let (_dir, path) = written(r#"{"text_config": {"hidden_size": 64}, "text_config_dict": {"hidden_size": 128}}"#);
    let config = ClipConfig::read(&path).unwrap();
    assert_eq!((config.text.hidden_size, config.vision.hidden_size, config.projection_dim), (128, 768, 512));
}

#[test]
fn a_config_the_engine_cannot_run_is_refused_naming_file_and_key() {
    for (text, want) in [
        (r#"{"hidden_act": "relu"}"#, "key 'hidden_act': unknown variant `relu`, expected `quick_gelu` or `gelu`"),
        (r#"{"hidden_size": "big"}"#, "key 'hidden_size'"),
        (r#"{"hidden_size": 100}"#, "hidden_size 100 is not a multiple of num_attention_heads 8"),
        (r#"{"num_hidden_layers": 0}"#, "num_hidden_layers is 0"),
    ] {
        let (_dir, path) = written(text);
        let message = format!("{:#}", TextConfig::load(path.parent().unwrap()).unwrap_err());
        assert!(message.contains("config.json") && message.contains(want), "{message}");
        let (_dir, path) = written(&format!(r#"{{"vision_config": {text}}}"#));
        let message = format!("{:#}", ClipConfig::read(&path).unwrap_err());
        assert!(message.contains("vision_config."), "{message}");
    }
}
