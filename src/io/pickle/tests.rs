use super::*;

fn error(bytes: &[u8]) -> String {
    format!("{:#}", Pickle::read(bytes).err().expect("it is refused"))
}

#[test]
fn every_protocol_of_python_gives_the_same_values() {
    for protocol in 0..=5 {
        let path = format!("{}/tests/fixtures/pickle/protocol_{protocol}.pkl", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let (pickle, length) = Pickle::read(&bytes).unwrap();
        assert_eq!(length, bytes.len());
        let get = |key: &str| pickle.root().get(key).unwrap_or_else(|| panic!("protocol {protocol}: {key}"));

        let plain: Vec<Value> = get("plain").items().unwrap().collect();
        assert_eq!(plain[..3].iter().map(|v| v.as_int().unwrap()).collect::<Vec<_>>(), [1, -2, 70000]);
        assert_eq!((plain[3].as_f64(), plain[2].as_f64(), plain[3].as_int()), (Some(3.5), Some(70000.0), None));
        assert_eq!((plain[4].as_bool(), plain[5].as_bool(), plain[6].is_none()), (Some(true), Some(false), true));
        assert_eq!(get("text").as_str(), Some("é\n€ \\u0041 '\""));
        assert_eq!(get("bytes").as_bytes().as_deref(), Some(&b"\x00\xff\n'"[..]));
        let lengths: Vec<usize> = get("tuples").items().unwrap().map(|t| t.items().unwrap().len()).collect();
        assert_eq!(lengths, [0, 1, 2, 3, 4]);
        assert_eq!(get("magic").as_int(), Some(0x1950_A86A_20F9_469C_FC6C));
        assert_eq!((get("negative").as_int(), get("negative").as_usize()), (Some(-(1 << 40)), None));
        assert_eq!((get("huge").as_int(), get("huge").describe()), (None, "a whole number".into()));
        assert_eq!(get("infinite").as_f64(), Some(f64::INFINITY));
        for key in ["nested", "again"] {
            let inner = get(key).get("x").unwrap().get("y").unwrap().items().unwrap().next().unwrap();
            assert_eq!(inner.items().unwrap().len(), 0);
        }
        let ordered: Vec<_> =
            get("ordered").entries().unwrap().map(|(k, v)| (k.as_str().unwrap(), v.as_int().unwrap())).collect();
        assert_eq!(ordered, [("b", 1), ("a", 2)]);
        let placeholder = get("placeholder");
        assert!(placeholder.entries().is_none());
        assert_eq!(placeholder.describe(), "made by collections.Counter");
        let itself = get("itself");
        let inner = itself.items().unwrap().nth(1).unwrap();
        assert_eq!(inner.id, itself.id);
        assert_eq!(itself.items().unwrap().next().unwrap().id, get("plain").id);
    }
}

#[test]
fn what_would_be_called_is_named_and_not_called() {
    // os.system("touch x"), as protocol 0 and protocol 4 say it, and by INST and OBJ.
    let four = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85R.".as_slice();
    for bytes in [b"cos\nsystem\n(Vtouch x\ntR.", four, b"(Vtouch x\nios\nsystem\n.", b"(cos\nsystem\nVtouch x\no."] {
        let (pickle, _) = Pickle::read(bytes).unwrap();
        let (callable, mut args) = pickle.root().call().unwrap();
        assert_eq!((callable.as_global(), args.next().unwrap().as_str()), (Some(("os", "system")), Some("touch x")));
        assert_eq!(pickle.root().describe(), "made by os.system");
    }
    // A method of what a call gives, an extension, and a chain that is a ring.
    let chained = b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR(Vy\ntR.";
    assert_eq!(Pickle::read(chained).unwrap().0.root().describe(), "made by builtins.getattr");
    assert_eq!(Pickle::read(b"\x82\x05)R.").unwrap().0.root().describe(), "made by copyreg.extension_5");
    assert_eq!(Pickle::read(b"cos\nsystem\n.").unwrap().0.root().describe(), "os.system");
}

#[test]
fn python_2_wrote_strings_and_ordered_dicts_otherwise() {
    let bytes = b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a\\x41\\n\\101'\naI1\naa(S\"b\"\nL2L\nlatR.";
    let (pickle, _) = Pickle::read(bytes).unwrap();
    assert_eq!(pickle.root().get("aA\nA").and_then(Value::as_int), Some(1));
    assert_eq!(pickle.root().get("b").and_then(Value::as_int), Some(2));
    let (pickle, _) = Pickle::read(b"U\x02\xff\x00.").unwrap();
    assert_eq!(pickle.root().as_bytes().as_deref(), Some(&[0xFF, 0][..]));
}

#[test]
fn a_pickle_ends_where_it_says_and_another_may_follow() {
    let (first, length) = Pickle::read(b"K\x01.K\x02.").unwrap();
    assert_eq!((first.root().as_int(), length), (Some(1), 3));
}

#[test]
fn what_is_damaged_is_refused_with_the_byte() {
    assert_eq!(error(b""), "pickle, at byte 0: 1 bytes are wanted, 0 are left; truncated or damaged");
    assert_eq!(
        error(b"X\xff\xff\xff\xffab."),
        "pickle, at byte 0: 4294967295 bytes are wanted, 3 are left; truncated or damaged"
    );
    for (bytes, words) in [
        (&b"."[..], "at byte 0: nothing is on the stack"),
        (b"K\x01(.", "at byte 3: nothing is on the stack"),
        (b"K\x01(\x85.", "at byte 3: fewer than 1 values"),
        (b"t.", "no mark"),
        (b"}(K\x01u.", "a dict's last key has no value"),
        (b"K\x01K\x02a.", "no list"),
        (b"h\x07.", "nothing is at place 7"),
        (b"\x80\x06.", "protocol 6"),
        (b"\xff", "opcode 0xff is none of Python's"),
        (b"\x97.", "a buffer from outside"),
        (b"I1", "a line without an end"),
        (b"Ix\n.", "not a whole number"),
        (b"S'a\n.", "not a string in quotes"),
        (b"S'\\x4'\n.", "not a string in quotes"),
        (b"K\x01K\x02R.", "a call takes a tuple"),
        (b"K\x01K\x02\x93.", "a global is named by a text"),
        (b"<html>", "opcode 0x3c"),
    ] {
        assert!(error(bytes).contains(words), "{:?}: {}", bytes.escape_ascii().to_string(), error(bytes));
    }
}

#[test]
fn depth_and_repetition_cost_no_more_than_their_bytes() {
    // A million lists inside one another, which recursion would not survive, neither here nor when it is dropped.
    let mut deep = b"]".repeat(1 << 20);
    deep.extend(b"a".repeat((1 << 20) - 1));
    deep.push(b'.');
    assert_eq!(Pickle::read(&deep).unwrap().0.root().items().unwrap().len(), 1);
    // 2^60 numbers by reference: each list holds the one before twice.
    let mut wide = b"](K\x01e\x94".to_vec();
    for i in 0..60u8 {
        wide.extend([b']', b'(', b'h', i, b'h', i, b'e', 0x94]);
    }
    wide.push(b'.');
    let (pickle, _) = Pickle::read(&wide).unwrap();
    assert_eq!(pickle.nodes.len(), 62);
    assert_eq!(pickle.root().items().unwrap().len(), 2);
}
