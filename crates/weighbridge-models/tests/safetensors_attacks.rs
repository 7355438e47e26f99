//! Headers that lie, are cut or are noise: refused with a message, never a panic, never read
//! beyond the file's length.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read;
use std::path::Path;

use weighbridge_core::Result;
use weighbridge_models::safetensors::{Header, MAX_EMPTY_TENSORS, MAX_HEADER_BYTES, MAX_TENSORS};

/// The one place that knows the reader's API. Asks for no more bytes than the file has.
fn read(file: &[u8]) -> Result<Header> {
    read_as(file, file.len() as u64)
}

/// A file of which only the start exists in memory.
fn read_as(start: &[u8], file_len: u64) -> Result<Header> {
    struct Counted<'a>(&'a [u8], usize);
    impl Read for Counted<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            assert!(out.len() as u64 <= MAX_HEADER_BYTES, "asked for {} bytes at once", out.len());
            self.1 += out.len();
            assert!(self.1 as u64 <= MAX_HEADER_BYTES + 8);
            self.0.read(out)
        }
    }
    Header::read(&mut Counted(start, 0), file_len, Path::new("w.safetensors"))
}

fn file(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 7);
    bytes
}

fn good() -> Vec<u8> {
    file(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b.weight":{"dtype":"F16","shape":[4],"data_offsets":[24,32]},"none":{"dtype":"U8","shape":[0,9],"data_offsets":[32,32]},"scalar":{"dtype":"BF16","shape":[],"data_offsets":[32,34]}}  "#,
        34,
    )
}

#[track_caller]
fn refused(file: &[u8], expected: &str) {
    let error = read(file).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert!(error.contains("w.safetensors"), "{error}");
}

#[test]
fn a_good_file_is_read_in_the_order_of_its_bytes() {
    let header = read(&good()).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b.weight", "none", "scalar"]);
    let n_elements: Vec<_> = header.tensors.iter().map(|tensor| tensor.n_elements()).collect();
    assert_eq!(n_elements, [6, 4, 0, 1]);
    assert_eq!(header.tensors[3].range.end, good().len() as u64);
    assert!(read(&file("{}", 0)).unwrap().tensors.is_empty());
}

#[test]
fn each_lie_is_named() {
    let one = |tensor: &str, n_data| file(&format!(r#"{{"t":{tensor}}}"#), n_data);
    refused(
        &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 7),
        "is truncated: its tensors need 8 bytes",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 9),
        "1 bytes after its last tensor",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
        "F32 of shape [3] is 12 bytes, the header gives it 8",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8),
        "end at 0, before they start at 8",
    );
    refused(&one(r#"{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}"#, 8), "unknown dtype `Q9`");
    refused(
        &one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#, 2),
        "F4 of shape [3] is 2 bytes",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}"#, 0),
        "overflows",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}"#, 8),
        "overflows",
    );
    refused(
        &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}"#, 8),
        "the header gives it",
    );
    refused(
        &one(
            r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
            8,
        ),
        "overflows",
    );
    refused(&one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#, 8), "not valid");
    refused(&one(r#"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#, 8), "not valid");
    refused(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}"#, 8), "not valid");
    refused(
        &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}"#, 8),
        "unknown key `x`",
    );
    refused(&one(r#"{"dtype":"F32","shape":[2]}"#, 8), "data_offsets");
    refused(
        &one(r#"{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}"#, 1),
        "more than 8 dimensions",
    );
    refused(
        &one(r#"{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}"#, 1),
        "`dtype` stands twice",
    );
    refused(&one("7", 0), "not valid");
    let two = |a: &str, b: &str, n_data| {
        let tensor = |at: &str| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":[{at}]}}"#);
        file(&format!(r#"{{"a":{},"b":{}}}"#, tensor(a), tensor(b)), n_data)
    };
    refused(
        &two("0,4", "2,6", 6),
        "overlapping tensors: `b` starts at 2, before the end of another at 4",
    );
    refused(&two("0,4", "0,4", 4), "overlapping");
    refused(&two("0,4", "5,9", 9), "a hole: nothing describes the 1 bytes before tensor `b`");
    refused(&two("1,5", "5,9", 9), "a hole");
    let duplicate = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    refused(&file(duplicate, 2), "`a` stands twice");
    refused(&file(r#"{"__metadata__":{"a":1}}"#, 0), "not valid");
    refused(&file(&format!(r#"{{"{}":1}}"#, "n".repeat(2000)), 0), "name is longer than 1024");
    refused(&file("[]", 0), "not JSON");
    refused(&file("{}{}", 0), "not valid");
    refused(&file(&"{\"a\":".repeat(5000), 0), "not valid");
    refused(&[0x80, 2, b'c', b'o', b's', b'\n', b's', b'y', b's'], "a Python pickle");
    refused(b"PK\x03\x04aaaaaaaaaaaaaa", "a zip of a Python pickle");
    refused(b"", "0 bytes cannot hold");
}

#[test]
fn giant_numbers_allocate_nothing() {
    for len in [MAX_HEADER_BYTES + 1, 100_000_000, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 8] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        refused(&bytes, &format!("announces a header of {len} bytes"));
        // Also where the file claims to be that long.
        assert!(read_as(&bytes, u64::MAX).is_err());
    }
    let mut bytes = 1_000_000u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    refused(&bytes, "is truncated: its header needs 1000000 bytes, 2 are there");
    assert!(read_as(&bytes, 2_000_000).is_err());
    let dims = format!(
        r#"{{"t":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#,
        "1,".repeat(1_000_000)
    );
    refused(&file(&dims, 1), "more than 8 dimensions");
}

#[test]
fn there_are_caps_on_counts() {
    let tensors = |n: usize, shape: &str, size: usize| {
        let list: Vec<_> = (0..n)
            .map(|i| {
                format!(
                    r#""t{i}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{},{}]}}"#,
                    i * size,
                    (i + 1) * size
                )
            })
            .collect();
        file(&format!("{{{}}}", list.join(",")), n * size)
    };
    assert_eq!(read(&tensors(1_000, "1", 1)).unwrap().tensors.len(), 1_000);
    refused(&tensors(MAX_TENSORS + 1, "1", 1), "more than 100000 tensors");
    assert!(read(&tensors(MAX_EMPTY_TENSORS, "0", 0)).is_ok());
    refused(&tensors(MAX_EMPTY_TENSORS + 1, "0", 0), "1001 tensors without elements");
}

#[test]
fn every_truncation_is_refused() {
    let good = good();
    for len in 0..good.len() {
        let error = read(&good[..len]).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{len}: {error}");
    }
}

/// A small generator with a fixed seed: the cases are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Whatever is accepted must be whole: ranges in order, inside of the file, sizes as the shapes say.
fn must_be_whole(bytes: &[u8], header: &Header) {
    let mut end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    for tensor in &header.tensors {
        assert_eq!(tensor.range.start, end);
        let n_bits = tensor.n_elements() * tensor.dtype.bits();
        assert_eq!(tensor.range.end - tensor.range.start, n_bits / 8);
        end = tensor.range.end;
    }
    assert_eq!(end, bytes.len() as u64);
}

#[test]
fn every_flipped_bit_is_survived() {
    let good = good();
    let mut n_refused = 0;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match read(&bytes) {
            Ok(header) => must_be_whole(&bytes, &header),
            Err(_) => n_refused += 1,
        }
    }
    assert!(n_refused > 1_000, "{n_refused}");
}

#[test]
fn noise_is_survived() {
    let good = good();
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let pieces: [&[u8]; 12] = [
        b"18446744073709551615",
        b"-1",
        b"1e308",
        b"null",
        b"[",
        b"{",
        b"\"",
        b"\\u0000",
        b"\xff\xfe",
        b"\"a\":",
        b"}",
        b"0",
    ];
    for _ in 0..2_000 {
        let mut bytes = good.clone();
        for _ in 0..=noise.below(4) {
            let at = 8 + noise.below(bytes.len() - 8);
            match noise.below(4) {
                0 => bytes[at] = noise.next() as u8,
                1 => drop(bytes.drain(at..(at + 1 + noise.below(8)).min(bytes.len()))),
                2 => {
                    let piece = pieces[noise.below(pieces.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => {
                    let to = (at + 1 + noise.below(40)).min(bytes.len());
                    let copy = bytes[at..to].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
            if bytes.len() < 16 {
                break;
            }
        }
        // Half of the time the announced length is made right again, so that parsing goes deeper.
        if noise.below(2) == 0 && bytes.len() > 60 {
            let n_header = bytes.len() as u64 - 8 - 34;
            bytes[..8].copy_from_slice(&n_header.to_le_bytes());
        }
        if let Ok(header) = read(&bytes) {
            must_be_whole(&bytes, &header);
        }
    }
    for len in 0..400 {
        let bytes: Vec<u8> = (0..len).map(|_| noise.next() as u8).collect();
        assert!(read(&bytes).is_err());
    }
}
