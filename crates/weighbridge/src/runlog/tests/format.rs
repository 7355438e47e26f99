//! The bytes of format version 1, and the vectors it rests on.

use super::super::frame::{self, CRC32C, FrameHead};
use super::fault_disk::FaultDisk;
use super::*;

const GOLDEN_SEGMENT: &[u8] = include_bytes!("../golden/v1/000000.wbr");
const GOLDEN_PACK: &[u8] = include_bytes!("../golden/v1/blobs/pack-000000.wbp");
const FORMAT_DOC: &str = include_str!("../../../../../docs/formats/run-log.md");

/// The run of the golden file: every record type.
fn write_golden(disk: &Arc<FaultDisk>) {
    let mut core = create(disk, WriterOptions::default());
    commit(&mut core, &[job(intent(0, 1, Placement::Remote))]);
    commit(&mut core, &[outcome_job(0, 1, true)]);
    commit(&mut core, &[job(intent(0, 2, Placement::Remote)), job(intent(1, 1, Placement::Local))]);
    commit(&mut core, &[outcome_job(0, 2, false), outcome_job(1, 1, false)]);
    commit(&mut core, &[job(note("größer als ASCII"))]);
    core.mark().unwrap();
    core.seal().unwrap();
}

fn golden_disk() -> Arc<FaultDisk> {
    let disk = FaultDisk::new();
    disk.put(&segment(0), GOLDEN_SEGMENT.to_vec());
    disk.put(&pack(0), GOLDEN_PACK.to_vec());
    disk
}

#[test]
fn crc_and_rfc_6962_vectors_hold() {
    assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    let leaves: [&[u8]; 8] = [
        b"",
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[
            0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
            0x6e, 0x6f,
        ],
    ];
    let mut hasher = RootHasher::new();
    let mut roots = vec![hasher.root().to_string()];
    for leaf in leaves {
        hasher.push(leaf_hash(&[leaf]));
        roots.push(hasher.root().to_string());
    }
    let ends = [
        (0, "e3b0c442", "7852b855"),
        (1, "6e340b9c", "17afa01d"),
        (2, "fac54203", "00e3c125"),
        (3, "aeb6bcfe", "29e06e77"),
        (5, "4e3bbb1f", "a86264d4"),
        (7, "ddb89be4", "94a74c8c"),
    ];
    for (n, head, tail) in ends {
        assert!(roots[n].starts_with(head) && roots[n].ends_with(tail), "n = {n}: {}", roots[n]);
    }
    assert_eq!(roots[8], "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
}

/// Every byte of the worked example in the format document: lines `OFFSET  HEX  meaning` in its `hex` block.
fn bytes_of_doc_example(marker: &str) -> Vec<u8> {
    let block = FORMAT_DOC.split(marker).nth(1).unwrap().split("```").nth(1).unwrap();
    let mut bytes = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset.trim(), 16).unwrap(), bytes.len(), "{line}");
        let hex = rest.trim().split("  ").next().unwrap();
        bytes.extend(hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_worked_example_of_the_format_document_is_byte_exact() {
    let note = Record::from(NoteRecord::new("hello", "first", serde_json::Value::Null));
    let head = FrameHead {
        record_type: RecordType::Note,
        flags: 0,
        seq: 1,
        durable: 1,
        prev: Digest::of(b"the record before"),
    };
    let mut bytes = Vec::new();
    let hash = frame::encode(&head, &note.encode().unwrap(), &mut bytes);
    assert_eq!(bytes_of_doc_example("<!-- example: record -->"), bytes, "{}", hex_lines(&bytes));
    assert_eq!(&bytes[bytes.len() - HASH_LEN..], hash.0);

    let disk = FaultDisk::new();
    drop(create(&disk, small()));
    let pack = disk.contents(&pack(0));
    assert_eq!(bytes_of_doc_example("<!-- example: pack -->"), pack, "{}", hex_lines(&pack));
}

fn hex_lines(bytes: &[u8]) -> String {
    let line = |(index, chunk): (usize, &[u8])| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", index * 16, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[test]
fn the_golden_log_of_version_1_is_read_and_written_byte_for_byte() {
    let disk = FaultDisk::new();
    write_golden(&disk);
    assert_eq!(disk.contents(&segment(0)), GOLDEN_SEGMENT);
    assert_eq!(disk.contents(&pack(0)), GOLDEN_PACK);

    let reader = open(&golden_disk());
    assert_eq!(reader.damage(), None);
    assert_eq!(reader.verify_blobs().unwrap().len(), 0);
    assert_eq!(reader.state().violations(), &[] as &[String]);
    let types: Vec<u8> = reader
        .records()
        .map(|record| record.unwrap().record.unwrap().record_type().number())
        .collect();
    assert_eq!(types, [1, 2, 3, 2, 2, 3, 3, 4, 5, 6, 5]);
    let summary = reader.summary();
    assert!(summary.sealed);
    assert_eq!(
        summary.root.to_string(),
        "da0310c372a3ecc136dd85ce1995b76f9e1c2c1ddbc7ff5da9b772a25fa23cb9"
    );
    assert_eq!(reader.state().seal().unwrap().outcomes, 3);
    assert_eq!(reader.blob(&Digest::of(&body(1))).unwrap(), body(1));
}

/// Changes the header of the record at `offset` and makes CRC and hash right again.
fn forge(bytes: &mut [u8], offset: usize, change: impl FnOnce(&mut [u8])) {
    change(&mut bytes[offset..offset + 64]);
    let crc = CRC32C.checksum(&bytes[offset..offset + 64]);
    bytes[offset + 64..offset + 68].copy_from_slice(&crc.to_le_bytes());
    let end = offset + HEADER_LEN + frame::u32_at(bytes, offset + 8) as usize;
    let hash = leaf_hash(&[&bytes[offset..end]]);
    bytes[end..end + HASH_LEN].copy_from_slice(&hash.0);
}

#[test]
fn version_2_is_refused_by_name_and_never_cut() {
    let extents: Vec<usize> = {
        let reader = open(&golden_disk());
        reader.records().map(|record| record.unwrap().position.offset as usize).collect()
    };
    for offset in [extents[0], extents[4], *extents.last().unwrap()] {
        let disk = golden_disk();
        let mut bytes = GOLDEN_SEGMENT.to_vec();
        forge(&mut bytes, offset, |header| header[4] = 2);
        disk.put(&segment(0), bytes);
        let reader = RunLogReader::open_on(disk.clone(), &log_dir()).unwrap_err();
        for error in [reader, resume(&disk).unwrap_err()] {
            assert_eq!(error.kind(), &RunLogErrorKind::UnsupportedVersion { version: 2 });
            assert!(
                error.to_string().contains("format version 2, this program reads version 1"),
                "{error}"
            );
            assert_eq!(error.offset(), Some(offset as u64));
        }
        assert_eq!(disk.n_ops(), 0);
    }
}

#[test]
fn unknown_types_are_skipped_only_if_they_say_so() {
    let last = {
        let reader = open(&golden_disk());
        reader.records().last().unwrap().unwrap().position.offset as usize
    };
    // (type, flags, readable): 7 is the reserved checkpoint.
    for (record_type, flags, readable) in
        [(7, 1, true), (99, 1, true), (7, 0, false), (99, 0, false), (5, 2, false)]
    {
        let disk = golden_disk();
        let mut bytes = GOLDEN_SEGMENT.to_vec();
        forge(&mut bytes, last, |header| {
            header[5] = record_type;
            header[6] = flags;
        });
        disk.put(&segment(0), bytes);
        match RunLogReader::open_on(disk.clone(), &log_dir()) {
            Ok(reader) => {
                assert!(readable, "type {record_type}, flags {flags}");
                let record = reader.records().last().unwrap().unwrap().record.unwrap();
                assert_eq!(record, Record::Unknown { record_type });
                // A log that ends in such a record can be continued.
                let mut core = resume(&disk).unwrap();
                commit(&mut core, &[job(note("after"))]);
                assert_eq!(open(&disk).damage(), None);
            }
            Err(error) => {
                assert!(!readable, "{error}");
                let kind = RunLogErrorKind::UnsupportedRecord { record_type, flags: flags.into() };
                assert_eq!(error.kind(), &kind);
                assert_eq!(resume(&disk).unwrap_err().kind(), &kind);
                assert_eq!(disk.n_ops(), 0);
            }
        }
    }
}

#[test]
fn unknown_fields_are_ignored_and_model_text_cannot_imitate_a_header() {
    let json = br#"{"kind":"k","text":"t","data":null,"later":[1]}"#;
    assert_eq!(
        Record::decode(RecordType::Note, json).unwrap(),
        Record::Note(NoteRecord::new("k", "t", serde_json::Value::Null))
    );
    let hostile = NoteRecord::new("k", "WBR1\u{1}\u{4}\0\0\0\0", serde_json::Value::Null);
    let payload = Record::from(hostile).encode().unwrap();
    assert!(!payload.contains(&0));
    // Text that looks like an entry does not hide the entries behind a broken one.
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    let mut imitation = disk.contents(&pack(0));
    imitation.extend_from_slice(b"WBB1 and more");
    for (sample, answer) in [(0, imitation.clone()), (1, body(1))] {
        commit(&mut core, &[job(intent(sample, 1, Placement::Local))]);
        let mut end = outcome(sample, 1, false);
        end.observation_digest = Digest::of(&answer);
        commit(&mut core, &[Job { record: end.into(), blobs: vec![answer] }]);
    }
    drop(core);
    let first = disk.contents(&pack(0)).windows(4).rposition(|bytes| bytes == b"WBB1").unwrap();
    assert!(first > 0);
    disk.flip(&pack(0), configuration().len() + 52 + 20, 1);
    let reader = open(&disk);
    assert_eq!(reader.verify_blobs().unwrap().len(), 1);
    assert_eq!(reader.blob(&Digest::of(&body(1))).unwrap(), body(1));
}

#[test]
fn call_keys_differ_in_every_part_and_never_run_together() {
    let hash = configuration_hash();
    let keys = [
        call_key(&hash, "ab", "c", 0),
        call_key(&hash, "a", "bc", 0),
        call_key(&hash, "ab", "c", 1),
        call_key(&hash, "", "abc", 0),
        call_key(&Digest::ZERO, "ab", "c", 0),
    ];
    for (index, left) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(left), "{index}");
    }
    assert_eq!(keys[0].to_string().parse::<Digest>(), Ok(keys[0]));
    assert!("ABC".parse::<Digest>().is_err());
}
