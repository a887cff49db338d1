use super::config::T5Config;
use super::position::bucket;

/// The smallest distance of each bucket, from `T5Attention._relative_position_bucket` for distances 0..=600.
#[test]
fn distances_fall_into_the_buckets_of_transformers() {
    let first = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
    for distance in 0..=600 {
        let want = first.iter().rposition(|f| *f <= distance).unwrap();
        assert_eq!(bucket(distance, 0, 32, 128), want, "{distance} back");
        assert_eq!(bucket(0, distance, 32, 128), if distance > 0 { want + 16 } else { 0 }, "{distance} ahead");
    }
    let small: Vec<usize> = (0..9).map(|d| bucket(d, 0, 8, 16)).collect();
    assert_eq!(small, [0, 1, 2, 2, 2, 2, 3, 3, 3]);
}

#[test]
fn a_config_the_engine_cannot_run_is_refused_naming_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    for (text, want) in [
        (r#"{"feed_forward_proj": "relu"}"#, "key 'feed_forward_proj' is \"relu\""),
        (r#"{"d_model": "wide"}"#, "key 'd_model': invalid type"),
        ("{}", "key 'feed_forward_proj' is \"relu\""),
        (r#"{"feed_forward_proj": "gated-gelu", "num_heads": 0}"#, "num_heads"),
        (r#"{"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 2}"#, "no bucket"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = format!("{:#}", T5Config::load(dir.path()).unwrap_err());
        assert!(message.contains("config.json") && message.contains(want), "{message}");
    }
}
