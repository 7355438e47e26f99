//! Cuts and flips: everything before is read, everything wrong is named, nothing durable is cut.

use std::collections::VecDeque;

use super::super::scan::{self, Scan};
use super::fault_disk::{Crash, FaultDisk};
use super::*;

/// Byte ranges of all records: segment, start, end.
fn extents(reader: &RunLogReader) -> Vec<(u32, usize, usize)> {
    let extent = |position: RecordPosition| {
        let start = position.offset as usize;
        (position.segment, start, start + position.n_bytes as usize)
    };
    reader.records().map(|record| extent(record.unwrap().position)).collect()
}

fn scan_all(disk: &FaultDisk) -> Scan {
    scan::scan(disk, &log_dir(), &mut |_, _| Ok(())).unwrap()
}

#[test]
fn the_last_segment_cut_at_every_byte_keeps_every_record_before() {
    let disk = FaultDisk::new();
    let mut options = small();
    options.segment_bytes = 20_000;
    let mut core = create(&disk, options);
    write_calls(&mut core, 170);
    drop(core);
    let reader = open(&disk);
    let extents = extents(&reader);
    assert!(extents.len() > 300, "{}", extents.len());
    let last = *segment_numbers(&disk).last().unwrap();
    let bytes = disk.contents(&segment(last));
    assert!(last >= 3 && bytes.len() > 8_000, "segment {last} of {} bytes", bytes.len());
    disk.delete(&segment(last));
    let before = scan_all(&disk);
    let n_before = before.n_records;
    assert_eq!(before.damage, None);
    for cut in 0..=bytes.len() {
        let mut scan = before.clone();
        let mut unclaimed = VecDeque::new();
        let broken = scan::chain(
            &bytes[..cut],
            last,
            &segment(last),
            &mut scan,
            &mut unclaimed,
            &mut |_, _| Ok(()),
        )
        .unwrap();
        let whole = extents.iter().filter(|&&(number, _, end)| number == last && end <= cut);
        let n_whole = whole.clone().count() as u64;
        let boundary = whole.map(|&(.., end)| end).max().unwrap_or(0);
        assert_eq!(scan.n_records, n_before + n_whole, "cut at {cut}");
        let expected = (boundary < cut).then_some((boundary as u64, BreakReason::Short));
        assert_eq!(broken, expected, "cut at {cut}");
    }
    // The same through the front door, at fewer places: the tail goes aside, byte for byte.
    for cut in (1..bytes.len()).step_by(211) {
        let disk = disk.copy();
        disk.put(&segment(last), bytes[..cut].to_vec());
        let damage = open(&disk).damage().cloned();
        let core = resume(&disk).unwrap();
        let Some(damage) = damage else { continue };
        assert!(damage.torn_tail);
        let (_, note) = core.state().notes().last().unwrap();
        assert_eq!(note.kind, "recovery");
        assert_eq!(note.data["n_bytes"], json!(cut as u64 - damage.offset));
        let name = format!("recovered-{}.bin", damage.expected_seq);
        assert_eq!(note.data["file"], json!(name));
        assert_eq!(disk.contents(&log_dir().join(&name)), &bytes[damage.offset as usize..cut]);
        assert_eq!(open(&disk).damage(), None);
    }
}

#[test]
fn every_flipped_bit_is_detected_and_named() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    write_calls(&mut core, 6);
    core.seal().unwrap();
    drop(core);
    let reader = open(&disk);
    let extents = extents(&reader);
    let n_records = extents.len();
    let mut n_flips = 0;
    for (seq, &(number, start, end)) in extents.iter().enumerate() {
        // Only the last record, the mark, is claimed by none.
        let claimed = seq + 1 < n_records;
        assert_eq!(claimed, (seq as u64) < reader.summary().durable_claim);
        for byte in start..end {
            for bit in 0..8 {
                let context = format!("record {seq}, segment {number}, byte {byte}, bit {bit}");
                disk.flip(&segment(number), byte, bit);
                let scan = scan_all(&disk);
                disk.flip(&segment(number), byte, bit);
                let damage = scan.damage.expect(&context);
                assert_eq!((damage.segment, damage.offset), (number, start as u64), "{context}");
                assert!(damage.offset <= byte as u64 && (byte as u64) < damage.end, "{context}");
                assert_eq!(
                    (scan.n_records, damage.expected_seq),
                    (seq as u64, seq as u64),
                    "{context}"
                );
                assert_eq!(damage.later.len(), n_records - seq - 1, "{context}");
                assert_eq!(damage.torn_tail, !claimed, "{context}");
                n_flips += 1;
            }
        }
    }
    assert!(n_flips >= 32_768, "{n_flips} flips");
    // Recovery refuses and touches nothing.
    for (seq, &(number, start, end)) in extents.iter().enumerate().take(n_records - 1) {
        let disk = disk.copy();
        disk.flip(&segment(number), start + (end - start) * seq / n_records, (seq % 8) as u32);
        let error = resume(&disk).unwrap_err();
        assert_eq!(error.kind(), &RunLogErrorKind::Damaged);
        assert_eq!((error.offset(), error.seq()), (Some(start as u64), Some(seq as u64)));
        assert_eq!(error.path(), Some(&*segment(number)));
        assert_eq!(error.damage().unwrap().later.len(), n_records - seq - 1);
        assert_eq!(disk.n_ops(), 0, "a damaged log was written to");
        let reader = open(&disk);
        assert_eq!(reader.records().map(Result::unwrap).count(), seq);
        assert_eq!(
            reader.salvaged().filter(|record| record.as_ref().unwrap().record.is_ok()).count(),
            n_records - seq - 1
        );
    }
    // A flip in the unclaimed mark costs the mark.
    let (number, start, _) = extents[n_records - 1];
    disk.flip(&segment(number), start + 9, 0);
    assert!(open(&disk).summary().sealed);
    assert_eq!(resume(&disk).unwrap().state().n_outcomes(), 6);
}

#[test]
fn every_flipped_bit_of_a_pack_is_named_by_the_body_it_hurts() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    write_calls(&mut core, 6);
    drop(core);
    let mut n_flips = 0;
    for number in 0..2 {
        for byte in 0..disk.contents(&pack(number)).len() {
            for bit in 0..8 {
                disk.flip(&pack(number), byte, bit);
                let problems = open(&disk).verify_blobs().unwrap();
                assert_eq!(problems.len(), 1, "pack {number}, byte {byte}, bit {bit}");
                n_flips += 1;
                if n_flips % 97 == 0 {
                    let n_ops = disk.n_ops();
                    let refused = resume(&disk).unwrap_err();
                    assert_eq!(refused.to_string(), problems[0].to_string());
                    assert_eq!(disk.n_ops(), n_ops);
                }
                disk.flip(&pack(number), byte, bit);
            }
        }
    }
    assert!(n_flips >= 4_096, "{n_flips}");
}

#[test]
fn damage_reads_as_a_sentence() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    write_calls(&mut core, 2);
    drop(core);
    disk.flip(&segment(0), 70, 3);
    let error = resume(&disk).unwrap_err();
    let end = open(&disk).damage().unwrap().end;
    assert_eq!(
        error.to_string(),
        format!(
            "damaged log: the record does not match its hash at segment 000000, offset 0, where record 0 was expected; \
             bytes 0..{end} are unreadable, 5 later records are readable, records 0..0 are intact, 5 are known to be \
             synced; restore this file from a copy, or read what is left with the read-only reader; file \
             `/run/000000.wbr`"
        )
    );
}

#[test]
fn a_missing_segment_is_damage_and_a_swapped_record_is_too() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    write_calls(&mut core, 6);
    drop(core);
    let n_records = open(&disk).summary().n_records;
    for number in [0, 1] {
        let disk = disk.copy();
        disk.delete(&segment(number));
        let damage = open(&disk).damage().unwrap().clone();
        assert_eq!((damage.reason, damage.segment), (BreakReason::MissingSegment, number));
        assert_eq!(resume(&disk).unwrap_err().kind(), &RunLogErrorKind::Damaged);
        assert!(damage.expected_seq + (damage.later.len() as u64) < n_records);
    }
    // Records 0 and 1 change places: each is intact, the order is not.
    let bytes = disk.contents(&segment(0));
    let (_, start, end) = extents(&open(&disk))[1];
    let swapped = [&bytes[start..end], &bytes[..start], &bytes[end..]].concat();
    disk.put(&segment(0), swapped);
    let damage = open(&disk).damage().unwrap().clone();
    assert_eq!((damage.reason, damage.offset, damage.torn_tail), (BreakReason::Sequence, 0, false));
    assert_eq!(damage.later.len() as u64, n_records);
}

#[test]
fn a_tail_with_readable_unsynced_records_is_torn_not_damaged() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    commit(&mut core, &[job(note("durable"))]);
    let n_durable = core.durable();
    // Never synced: the disk may keep the second and lose the first.
    commit(&mut core, &[job(intent(0, 1, Placement::Local))]);
    commit(&mut core, &[job(intent(1, 1, Placement::Local))]);
    let extents = extents(&open(&disk));
    drop(core);
    let (_, start, end) = extents[n_durable as usize];
    let mut bytes = disk.contents(&segment(0));
    bytes[start..end].fill(0);
    disk.put(&segment(0), bytes);
    let damage = open(&disk).damage().unwrap().clone();
    assert!(damage.torn_tail);
    assert_eq!(damage.later.len(), 1);
    let core = resume(&disk).unwrap();
    assert_eq!(core.state().notes().last().unwrap().1.data["n_readable_records"], json!(1));
}

#[test]
fn a_second_tear_at_the_same_place_does_not_overwrite_the_first() {
    let disk = FaultDisk::new();
    drop(create(&disk, small()));
    let whole = disk.contents(&segment(0));
    for tail in ["WBR1 first", "WBR1 second", "WBR1 first"] {
        disk.put(&segment(0), [&whole, tail.as_bytes()].concat());
        drop(resume(&disk).unwrap());
    }
    assert_eq!(disk.contents(&log_dir().join("recovered-1.bin")), b"WBR1 first");
    assert_eq!(disk.contents(&log_dir().join("recovered-1-1.bin")), b"WBR1 second");
    // A tail that was set aside before a crash took the note gets its note now.
    disk.put(&segment(0), whole);
    disk.reboot(Crash::Power, 0);
    let core = resume(&disk).unwrap();
    assert_eq!(core.state().notes().len(), 2);
}

#[test]
fn a_break_before_the_last_segment_is_damage_even_if_nothing_behind_is_readable() {
    let disk = FaultDisk::new();
    drop(create(&disk, small()));
    let whole = disk.contents(&segment(0));
    disk.put(&segment(0), whole[..whole.len() - 1].to_vec());
    // That a second segment was begun proves that all of the first was synced.
    disk.put(&segment(1), b"WBR1 and no more".to_vec());
    let n_ops = disk.n_ops();
    assert_eq!(resume(&disk).unwrap_err().kind(), &RunLogErrorKind::Damaged);
    assert_eq!(disk.n_ops(), n_ops);
}
