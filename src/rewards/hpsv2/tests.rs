use super::*;

#[test]
fn the_newer_version_in_a_folder_is_taken_and_laion_s_weights_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
    assert_eq!(weights(folder.path()).unwrap(), folder.path());
    put(LAION[0]);
    for path in [folder.path().to_path_buf(), folder.path().join(LAION[0]), LAION[1].into()] {
        let error = weights(&path).unwrap_err().to_string();
        assert!(error.contains("is none; expected HPS_v2.1_compressed.pt or HPS_v2_compressed.pt"), "{error}");
    }
    put(FILES[1]);
    assert_eq!(weights(folder.path()).unwrap(), folder.path().join(FILES[1]));
    put(FILES[0]);
    assert_eq!(weights(folder.path()).unwrap(), folder.path().join(FILES[0]));
    assert_eq!(weights(&folder.path().join(FILES[1])).unwrap(), folder.path().join(FILES[1]));
}
