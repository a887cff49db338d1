//! Damaged safetensors files.

use super::{raw_file, refuses, says};

/// `engine inspect` on a file of these bytes must say all of `words`, and name the file.
fn refuses_bytes(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.safetensors");
    std::fs::write(&path, bytes).unwrap();
    refuses(&["inspect".as_ref(), path.as_os_str()], &[words, &["broken.safetensors: "]].concat());
}

fn refuses_header(header: &str, data: usize, words: &[&str]) {
    refuses_bytes(&raw_file(header, data), words);
}

const TWO: &str =
    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}"#;

#[test]
fn a_whole_file_is_shown_with_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.safetensors");
    let header = TWO.replacen('{', r#"{"__metadata__":{"made by":"hand"},"#, 1);
    std::fs::write(&path, raw_file(&header, 16)).unwrap();
    let out = says(&["inspect".as_ref(), path.as_os_str()]);
    for word in ["2 tensors, 4 parameters, 16 B, F32", "made by", "hand", "[1, 2]"] {
        assert!(out.contains(word), "{out}");
    }
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    refuses_bytes(b"", &["0 bytes"]);
    refuses_bytes(b"1234567", &["7 bytes"]);
    refuses_bytes(b"\x89PNG\r\n\x1a\n and so on", &["the header claims", "not safetensors"]);
    refuses_header("hello", 0, &["header of 5 bytes is not JSON"]);
    refuses_header("[1]", 0, &["not a JSON object"]);
    refuses_bytes(&[&4u64.to_le_bytes()[..], b"{\"\xff}"].concat(), &["header of 4 bytes is not JSON"]);
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    refuses_bytes(&[&1000u64.to_le_bytes()[..], b"{}"].concat(), &["header claims 1000 bytes", "has 10"]);
    refuses_bytes(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat(), &["header claims 18446744073709551615 bytes"]);
}

#[test]
fn a_truncated_file_names_the_first_tensor_that_is_cut() {
    refuses_header(TWO, 12, &["tensor 'b' lies at bytes 8..16 of 12", "truncated"]);
    refuses_header(TWO, 3, &["tensor 'a' lies at bytes 0..8 of 3", "truncated"]);
    refuses_header(TWO, 20, &["4 bytes follow the last tensor"]);
}

#[test]
fn offsets_that_overlap_leave_a_gap_or_run_backwards_are_refused_by_name() {
    refuses_header(&TWO.replace("[8,16]", "[4,12]"), 12, &["tensor 'b' at byte 4 overlaps 'a', which ends at 8"]);
    refuses_header(&TWO.replace("[8,16]", "[12,20]"), 20, &["tensor 'b' at byte 12 leaves a gap after 'a'"]);
    refuses_header(&TWO.replace("[0,8]", "[8,0]"), 16, &["tensor 'a' ends at byte 0, before it starts at 8"]);
    let far = TWO.replace("[8,16]", "[18446744073709551607,18446744073709551615]");
    refuses_header(&far, 16, &["tensor 'b' lies at bytes"]);
}

#[test]
fn a_tensor_that_contradicts_itself_is_refused_by_name() {
    refuses_header(&TWO.replace("[1,2]", "[3]"), 16, &["tensor 'b' is F32 [3], which takes 12 bytes, but has 8"]);
    refuses_header(&TWO.replace("[1,2]", "[4294967296,4294967296]"), 16, &["tensor 'b'", "impossible shape"]);
    refuses_header(&TWO.replace("[1,2]", "[-2]"), 16, &["tensor 'b' has no shape of whole numbers"]);
    refuses_header(&TWO.replacen("F32", "F33", 1), 16, &["tensor 'a' has dtype 'F33'"]);
    refuses_header(&TWO.replacen("dtype", "type", 1), 16, &["tensor 'a' has no dtype"]);
    refuses_header(r#"{"a":7}"#, 0, &["tensor 'a' has no dtype"]);
    let name = "x".repeat(100_000);
    refuses_header(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}}}"#), 8, &["xx…'"]);
}
