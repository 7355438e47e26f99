//! Files that are something else, cut, or whose header does not add up.

use weighbridge_core::ErrorKind;
use weighbridge_models::gguf::Gguf;

use crate::writer::{Value, Writer, array, file, refused, refused_when, string};

#[test]
fn a_missing_file_is_not_found() {
    let (folder, _) = file(b"");
    let error = Gguf::open(&folder.path().join("none.gguf")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = Gguf::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
    assert!(!Gguf::is_gguf(folder.path()));
}

#[test]
fn what_users_really_have_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n";
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let safetensors = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    let others: [(&[u8], &str); 11] = [
        (b"", "is empty"),
        (pointer, "git-lfs pointer"),
        (b"<!DOCTYPE html><html><head>", "web page"),
        (b"\n  <html lang=\"en\">", "web page"),
        (&safetensors, "is a safetensors file"),
        (b"\x80\x02}q\x00(X\x04\x00\x00\x00", "a Python pickle"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "PyTorch archive"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (b"FUGG\x00\x00\x00\x03", "big-endian"),
        (b"hello, world, how are you", "starts with `hell`"),
        (b"GG", "starts with `GG`"),
    ];
    for (bytes, expected) in others {
        refused(bytes, &[expected]);
        let (_folder, path) = file(bytes);
        assert!(!Gguf::is_gguf(&path));
    }
}

#[test]
fn versions_are_checked() {
    refused_when(|w| w.version = 1, &["version 1", "current conversion"]);
    refused_when(|w| w.version = 3u32.swap_bytes(), &["big-endian", "version 3"]);
    refused_when(|w| w.version = 4, &["version 4"]);
    refused_when(|w| w.version = 0, &["version 0"]);
}

#[test]
fn counts_and_lengths_end_with_the_file() {
    let start = |n_tensors: u64, n_keys: u64| {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()]
            .concat()
    };
    refused(&start(0, u64::MAX), &["18446744073709551615 keys", "2^64"]);
    refused(&start(0, 1 << 32), &["4294967296 keys", "0 are there"]);
    refused(&start(1 << 40, 0), &["1099511627776 tensors"]);
    let with = |rest: &[u8]| [&start(0, 1)[..], rest, &[0; 64]].concat();
    refused(&with(&u64::MAX.to_le_bytes()), &["key of 18446744073709551615 bytes"]);
    refused(&with(&60_000u64.to_le_bytes()), &["a key", "60000"]);
    let key = string(b"general.name");
    let long = [&key[..], &8u32.to_le_bytes(), &(u64::MAX - 7).to_le_bytes()].concat();
    refused(&with(&long), &["`general.name`", "18446744073709551608"]);
    for n in [u64::MAX, 1 << 61, 1 << 30] {
        for id in [0, 4, 8, 12] {
            let value = array(id, n, &[]).0;
            refused(&with(&[&key[..], &value].concat()), &["`general.name`", &n.to_string()]);
        }
    }
}

#[test]
fn a_header_is_not_read_without_end() {
    let (_folder, path) = file(
        &[
            &b"GGUF\x03\0\0\0"[..],
            &[0; 8],
            &1u64.to_le_bytes(),
            &string(b"k"),
            &array(0, 1 << 40, &[]).0,
        ]
        .concat(),
    );
    // A hole on the disk: as long as a large model, without taking its place.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 41).unwrap();
    let error = Gguf::open(&path).unwrap_err().to_string();
    assert!(error.contains("header of more than") && error.contains("`k`"), "{error}");
}

#[test]
fn keys_are_unique_named_and_of_known_types() {
    refused_when(
        |w| w.keys.push(("general.name".into(), "x".into())),
        &["key `general.name` twice"],
    );
    refused_when(|w| w.keys.push((String::new(), "x".into())), &["key of 0 bytes"]);
    refused_when(
        |w| w.keys.push(("odd".into(), Value([13u32.to_le_bytes(), [0; 4]].concat()))),
        &["unknown type 13 for `odd`"],
    );
    refused_when(
        |w| w.keys.push(("deep".into(), array(9, 1, &[0; 16]))),
        &["array of arrays as `deep`"],
    );
    let mut bytes = Writer::llama().bytes();
    let at = bytes.windows(12).position(|window| window == b"general.name").unwrap();
    bytes[at] = 0xFF;
    refused(&bytes, &["not UTF-8", "eneral.name"]);
}

#[test]
fn alignment_is_a_reasonable_power_of_two() {
    for alignment in [0u32, 3, 48, 1 << 31] {
        refused_when(
            |w| w.set("general.alignment", alignment),
            &["general.alignment", &alignment.to_string(), "power of two"],
        );
    }
    refused_when(|w| w.set("general.alignment", 32u64), &["general.alignment", "type u64", "u32"]);
}

#[test]
fn tensors_have_names_dimensions_and_types() {
    refused_when(
        |w| w.tensors[1].name = "token_embd.weight".into(),
        &["tensor `token_embd.weight` twice"],
    );
    refused_when(|w| w.tensors[1].name.clear(), &["name of 0 bytes"]);
    refused_when(|w| w.tensors[1].name = "n".repeat(64), &["name of 64 bytes"]);
    refused_when(|w| w.tensors[1].dims = vec![1; 5], &["`output_norm.weight`", "5 dimensions"]);
    refused_when(|w| w.tensors[1].dims = vec![8, 0], &["`output_norm.weight`", "[8, 0]", "zero"]);
    refused_when(
        |w| w.tensors[1].dims = vec![1 << 32, 1 << 31, 1],
        &["`output_norm.weight`", "4294967296", "overflows"],
    );
    refused_when(|w| w.tensors[1].dims = vec![1 << 61, 2], &["`output_norm.weight`", "overflows"]);
    refused_when(|w| w.tensors[1].dtype = 8, &["`output_norm.weight`", "8 elements", "32", "Q8_0"]);
    refused_when(|w| w.tensors[1].dtype = 43, &["`output_norm.weight`", "unknown type 43"]);
    refused_when(|w| w.tensors[1].dtype = 31, &["`output_norm.weight`", "Q4_0_4_4", "no longer"]);
}

#[test]
fn tensors_follow_each_other() {
    let bad = |offset: u64, expected: &str| {
        refused_when(|w| w.tensors[1].offset = offset, &["`output_norm.weight`", expected]);
    };
    bad(321, "321 is not a multiple of the alignment 32");
    bad(288, "offset 288 overlaps");
    bad(352, "offset 352 leaves a hole");
    bad(1 << 63, "hole");
    refused_when(|w| w.tensors[0].offset = u64::MAX - 31, &["`token_embd.weight`", "hole"]);
    refused_when(
        |w| {
            w.tensors.truncate(1);
            w.tensors[0].dims = vec![1 << 60, 1];
            w.tensor("after", &[1]);
            w.tensors[1].offset = 1 << 62;
        },
        &["is truncated"],
    );
}

#[test]
fn tensors_can_be_mapped() {
    let mut writer = Writer::llama();
    writer.alignment = 8;
    writer.set("general.alignment", 8u32);
    for n in 1..32 {
        writer.set("general.name", "x".repeat(n).as_str());
        if !writer.header().len().next_multiple_of(8).is_multiple_of(32) {
            break;
        }
    }
    refused(&writer.bytes(), &["`token_embd.weight`", "not at a multiple of 32"]);
}

#[test]
fn a_cut_file_says_how_much_is_missing() {
    let bytes = Writer::llama().bytes();
    let len = bytes.len();
    let expected = [&format!("need {len} bytes")[..], "5 are missing", "again"];
    refused(&bytes[..len - 5], &expected);
}
