//! Noise: whatever the bytes, opening ends with a model whose numbers agree or with an error.

use std::fs;
use std::io::{Seek, Write};

use weighbridge_core::ErrorKind;
use weighbridge_models::gguf::Gguf;

use crate::writer::{Writer, file};

/// Numbers that are wrong in most fields.
const BAD: [u64; 12] =
    [0, 1, 2, 9, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, n_header: usize, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(n_header.min(bytes.len()));
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => {
                let number = BAD[random.below(BAD.len())].to_le_bytes();
                let n = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&number[..n]);
            }
            3 => {
                let n = random.below(24).min(bytes.len() - at);
                bytes.drain(at..at + n);
            }
            _ => {
                let n = random.below(24).min(bytes.len() - at);
                let copy = bytes[at..at + n].to_vec();
                let to = random.below(n_header.min(bytes.len()));
                bytes.splice(to..to, copy);
            }
        }
    }
}

/// What holds for every model that is accepted.
fn check(gguf: &mut Gguf) {
    let (n_bytes, names): (u64, Vec<_>) = (
        gguf.tensors().map(|tensor| tensor.n_bytes).sum(),
        gguf.tensors().map(|tensor| tensor.name.clone()).collect(),
    );
    assert!(n_bytes < gguf.n_bytes());
    let n_layers = gguf.u64(&gguf.arch_key("block_count")).unwrap();
    assert!((1..=512).contains(&n_layers));
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.dims[0], gguf.u64(&gguf.arch_key("embedding_length")).unwrap());
    let mut bytes = Vec::new();
    for name in names {
        gguf.read(&name, &mut bytes).unwrap();
        let tensor = gguf.tensor(&name).unwrap();
        assert_eq!(bytes.len() as u64, tensor.n_bytes);
        let n_blocks = tensor.n_elements() / tensor.dtype.block_size();
        assert_eq!(n_blocks * tensor.dtype.type_size(), tensor.n_bytes);
    }
}

#[test]
fn changed_headers_are_survived() {
    let writer = Writer::llama();
    let (good, n_header) = (writer.bytes(), writer.header().len());
    let (_folder, path) = file(&good);
    let mut out = fs::File::options().write(true).open(&path).unwrap();
    let mut random = Random(3);
    let mut n_accepted = 0;
    for _ in 0..2_000 {
        let mut bytes = good.clone();
        mutate(&mut bytes, n_header, &mut random);
        out.rewind().unwrap();
        out.write_all(&bytes).unwrap();
        out.set_len(bytes.len() as u64).unwrap();
        match Gguf::open(&path) {
            Ok(mut gguf) => {
                check(&mut gguf);
                n_accepted += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}"),
        }
    }
    // Texts and harmless numbers change too; a reader that accepts or refuses all is not tested.
    assert!((20..1_000).contains(&n_accepted), "{n_accepted}");
}

#[test]
fn every_cut_is_refused() {
    let good = Writer::llama().bytes();
    let (_folder, path) = file(&good);
    Gguf::open(&path).unwrap();
    for len in (0..good.len()).rev() {
        fs::File::options().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
        let error = Gguf::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
        let message = error.to_string();
        assert!(
            ["truncated", "is empty", "starts with"].iter().any(|part| message.contains(part)),
            "{len}: {message}"
        );
    }
}
