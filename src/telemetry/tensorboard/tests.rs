#[path = "../../../tests/protobuf.rs"]
mod protobuf;

use protobuf::fields;

use super::*;
use crate::io::image::png;

/// CRC-32C by long division of polynomials, most significant bit first: shares nothing with the code above.
fn divided(data: &[u8]) -> u32 {
    let bits = data.iter().flat_map(|b| (0..8).map(move |i| b >> i & 1 == 1));
    let division = |crc: u32, bit: bool| {
        let shifted = crc << 1;
        if (crc >> 31 == 1) != bit { shifted ^ 0x1edc_6f41 } else { shifted }
    };
    !bits.fold(!0, division).reverse_bits()
}

#[test]
fn checksums_are_those_of_rfc_3720() {
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    let cases: [(&[u8], u32); 5] = [
        (&[0; 32], 0x8a91_36aa),
        (&[0xff; 32], 0x62a8_ab43),
        (&ascending, 0x46dd_794e),
        (&descending, 0x113f_db5c),
        (b"123456789", 0xe306_9283),
    ];
    for (data, want) in cases {
        assert_eq!(crc32c(data), want);
        assert_eq!(divided(data), want);
    }
}

/// The records of an event file, their checksums checked.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let unmask = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15);
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(unmask(&bytes[8..12]), divided(&bytes[..8]));
        let data = &bytes[12..12 + length];
        assert_eq!(unmask(&bytes[12 + length..16 + length]), divided(data));
        out.push(data.to_vec());
        bytes = &bytes[16 + length..];
    }
    out
}

/// Step and content of an event.
fn event(record: &[u8]) -> (u64, Vec<(u64, Vec<u8>)>) {
    let fields = fields(record);
    assert_eq!((fields[0].0, fields[1].0), (1, 2));
    assert!(f64::from_le_bytes(fields[0].1.clone().try_into().unwrap()) > 1.7e9, "seconds since 1970");
    (u64::from_le_bytes(fields[1].1.clone().try_into().unwrap()), fields[2..].to_vec())
}

#[test]
fn an_event_file_decodes_to_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::open(&dir.path().join("tensorboard"), 3).unwrap();
    let picture = RgbImage { width: 3, height: 200, data: vec![7; 1800] };
    let encoded = png(&picture).unwrap();
    board.scalar(300, "train/loss", 0.1).unwrap();
    board.image(5, "eval/samples", &picture, &encoded).unwrap();
    board.flush().unwrap();

    let records = records(&std::fs::read(&board.path).unwrap());
    let bytes = |text: &str| text.as_bytes().to_vec();
    let number = |n: u64| n.to_le_bytes().to_vec();
    assert_eq!(event(&records[0]), (0, vec![(3, bytes("brain.Event:2"))]));
    let (step, start) = event(&records[1]);
    assert_eq!((step, start[0].0, fields(&start[0].1)), (3, 7, vec![(1, number(1))]));

    let value_of = |record: &[u8]| {
        let (step, content) = event(record);
        let summary = fields(&content[0].1);
        assert_eq!((content.len(), content[0].0, summary.len(), summary[0].0), (1, 5, 1, 1));
        (step, fields(&summary[0].1))
    };
    let (step, value) = value_of(&records[2]);
    assert_eq!((step, value), (300, vec![(1, bytes("train/loss")), (2, 0.1f32.to_le_bytes().to_vec())]));
    let (step, value) = value_of(&records[3]);
    assert_eq!((step, &value[0], value[1].0), (5, &(1, bytes("eval/samples")), 4));
    let image = vec![(1, number(200)), (2, number(3)), (3, number(3)), (4, encoded)];
    assert_eq!(fields(&value[1].1), image);
    assert_eq!(records.len(), 4);
}

#[test]
fn each_process_writes_its_own_file_and_later_ones_sort_later() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..3).map(|_| TensorBoard::open(dir.path(), 0).unwrap().path).collect();
    assert!(paths.is_sorted() && paths[0] != paths[1] && paths[1] != paths[2]);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(TensorBoard::open(&file, 0).err().unwrap().to_string().starts_with("cannot create "));
}
