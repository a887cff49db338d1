//! What build.rs makes of files of ptx/ that are not those of kernels/.

use std::fs;

#[path = "../build.rs"]
#[expect(dead_code, reason = "what is Cargo's to call")]
mod build;

#[test]
fn ptx_that_is_missing_or_not_of_the_sources_is_refused_with_its_name_and_the_command() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
    for folder in ["kernels/common", "ptx"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    put("kernels/toolchain.txt", "--fmad=false\n");
    put("kernels/a.cu", "#include \"common/b.cuh\"\n");
    put("kernels/common/b.cuh", "#include \"common/c.cuh\"\n");
    put("kernels/common/c.cuh", "// nothing\n");

    let missing = build::table(root.path()).unwrap_err();
    assert!(missing.contains("ptx/a.sm_80.ptx") && missing.contains("run tools/kernels.py a"), "{missing}");
    let compile = || {
        let digest = build::digest(&root.path().join("kernels"), &root.path().join("kernels/a.cu")).unwrap();
        put("ptx/a.sm_80.ptx", &format!("// a header\n// sources {digest}\n.version 8.4\n"));
    };
    compile();
    let table = build::table(root.path()).unwrap();
    assert!(table.contains(r#"("a", "sm_80", "ptx/a.sm_80.ptx", include_str!("#), "{table}");

    for (path, text) in
        [("a.cu", "#include \"common/b.cuh\"\n\n"), ("common/c.cuh", "// more\n"), ("toolchain.txt", "")]
    {
        put(&format!("kernels/{path}"), text);
        let stale = build::table(root.path()).unwrap_err();
        let want = "ptx/a.sm_80.ptx is not compiled from the sources that are there; run tools/kernels.py a";
        assert_eq!(stale, want, "after a change of {path}");
        compile();
        build::table(root.path()).unwrap();
    }
}
