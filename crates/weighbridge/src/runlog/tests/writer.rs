//! The writer thread on a real disk: acks, groups, locks, and a round trip of generated records.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::super::disk::network_fs_in;
use super::*;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn begin(dir: &Path) -> RunLogWriter {
    RunLogWriter::create(dir, run_record(), configuration(), small()).unwrap()
}

#[test]
fn acks_resolve_in_order_blocking_and_awaited() {
    let temp = temp();
    let dir = temp.path().join("a/b");
    let writer = begin(&dir);
    assert_eq!(writer.n_durable(), 1);
    let local = writer.append(intent(0, 1, Placement::Local));
    let remote = writer.append(intent(1, 1, Placement::Remote));
    let mut ended = pin!(writer.append_with(outcome(0, 1, false), vec![body(0)]));
    // No runtime: any waker will do.
    let mut context = Context::from_waker(Waker::noop());
    let receipt = loop {
        if let Poll::Ready(receipt) = ended.as_mut().poll(&mut context) {
            break receipt.unwrap();
        }
        std::thread::yield_now();
    };
    assert_eq!((receipt.seq, receipt.durable), (3, true));
    assert_eq!((local.wait().unwrap().seq, remote.wait().unwrap().seq), (1, 2));
    assert_eq!(writer.n_durable(), 4);
    assert_eq!(writer.sync().wait().unwrap(), 4);
    writer.erase(Digest::of(&body(0)), "test").wait().unwrap();
    let sealed = writer.seal().wait().unwrap();
    assert_eq!(sealed.n_outcomes, 1);
    assert_eq!(writer.append(note("late")).wait().unwrap_err().kind(), &RunLogErrorKind::Closed);
    writer.close().unwrap();
    let reader = RunLogReader::open(&dir).unwrap();
    assert!(reader.summary().sealed);
    assert_eq!(reader.state().seal().unwrap().root, sealed.root);
    let error = RunLogWriter::create(&dir, run_record(), configuration(), small()).unwrap_err();
    assert_eq!(error.kind(), &RunLogErrorKind::AlreadyExists);
}

#[test]
fn an_idle_log_is_marked() {
    let temp = temp();
    let mut options = small();
    options.idle_after = std::time::Duration::from_millis(1);
    let writer = RunLogWriter::create(temp.path(), run_record(), configuration(), options).unwrap();
    writer.append(note("once")).wait().unwrap();
    let mut claim = 0;
    for _ in 0..2_000 {
        claim = RunLogReader::open(temp.path()).unwrap().summary().durable_claim;
        if claim == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(claim, 2);
    writer.close().unwrap();
}

#[test]
fn a_second_writer_is_refused_and_a_reader_is_not() {
    let temp = temp();
    let writer = begin(temp.path());
    for _ in 0..2 {
        let error = RunLogWriter::resume(temp.path(), None, small()).unwrap_err();
        assert_eq!(error.kind(), &RunLogErrorKind::Locked);
        if cfg!(target_os = "linux") {
            assert!(
                error.to_string().contains(&format!("process {}", std::process::id())),
                "{error}"
            );
        }
        assert!(
            error.to_string().contains("wait for it or stop it, or open the log read-only"),
            "{error}"
        );
    }
    assert_eq!(RunLogReader::open(temp.path()).unwrap().summary().n_records, 1);
    writer.close().unwrap();
    // The lock file stays, the lock does not.
    let (writer, state) =
        RunLogWriter::resume(temp.path(), Some(&configuration_hash()), small()).unwrap();
    // The run and the mark that the first writer left when it closed.
    assert_eq!(state.n_records(), 2);
    writer.close().unwrap();
}

#[test]
fn a_folder_without_a_run_is_not_found() {
    let temp = temp();
    for dir in [temp.path().to_path_buf(), temp.path().join("missing")] {
        let resumed = RunLogWriter::resume(&dir, None, small()).unwrap_err();
        assert_eq!(resumed.kind(), &RunLogErrorKind::NotFound);
        assert_eq!(RunLogReader::open(&dir).unwrap_err().kind(), &RunLogErrorKind::NotFound);
    }
    assert!(!temp.path().join("missing").exists());
}

#[test]
fn a_network_file_system_is_recognised() {
    let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                  30 22 0:50 / /mnt/team\\040share rw shared:1 - nfs4 host:/x rw\n\
                  31 30 0:51 / /mnt/team\\040share/scratch rw - xfs /dev/vdb rw\n";
    assert_eq!(network_fs_in(mounts, Path::new("/mnt/team share/run")).as_deref(), Some("nfs4"));
    assert_eq!(network_fs_in(mounts, Path::new("/mnt/team share/scratch/run")), None);
    assert_eq!(network_fs_in(mounts, Path::new("/home/run")), None);
}

/// Random records of every type a caller may append, many writers at once, small segments: what was written is read.
#[test]
fn what_was_written_is_read() {
    for seed in 0..6 {
        let temp = temp();
        let writer = begin(temp.path());
        let mut written: Vec<(u64, Record)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let writer = &writer;
                    scope.spawn(move || {
                        random_calls(writer, seed * 10 + thread, thread as usize * 100)
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        writer.close().unwrap();
        written.sort_unstable_by_key(|(seq, _)| *seq);
        let reader = RunLogReader::open(temp.path()).unwrap();
        assert_eq!(reader.damage(), None);
        let read: Vec<(u64, Record)> = reader
            .records()
            .map(|record| record.unwrap())
            .map(|record| (record.seq, record.record.unwrap()))
            .filter(|(seq, record)| *seq > 0 && !matches!(record, Record::Mark(_)))
            .collect();
        assert_eq!(read.len(), written.len(), "seed {seed}");
        for (read, written) in read.iter().zip(&written) {
            assert_eq!(read, written, "seed {seed}");
        }
        assert_eq!(reader.verify_blobs().unwrap().len(), 0);
        let resumed = RunLogWriter::resume(temp.path(), None, small()).unwrap();
        assert_eq!(&resumed.1, reader.state());
    }
}

fn random_calls(writer: &RunLogWriter, seed: u64, first_sample: usize) -> Vec<(u64, Record)> {
    let mut rng = Rng(seed);
    let mut written = Vec::new();
    for sample in first_sample..first_sample + 12 {
        let n_attempts = 1 + rng.below(3) as u32;
        for attempt in 1..=n_attempts {
            let placement = if rng.below(2) == 0 { Placement::Local } else { Placement::Remote };
            let mut begun = intent(sample, attempt, placement);
            begun.price_cap_usd = (rng.below(2) == 0).then(|| rng.below(1_000) as f64 / 7.0);
            written.push((writer.append(begun.clone()).wait().unwrap().seq, begun.into()));
            if rng.below(5) == 0 {
                continue;
            }
            let size = [0, 1, 50, 700][rng.below(4) as usize];
            let answer: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
            let mut ended = outcome(sample, attempt, attempt < n_attempts);
            ended.observation_digest = Digest::of(&answer);
            ended.outcome = format!("class \u{1F600}\0\n{}", rng.next());
            written.push((
                writer.append_with(ended.clone(), vec![answer]).wait().unwrap().seq,
                ended.into(),
            ));
        }
        if rng.below(4) == 0 {
            let said = note(&format!("note {}", rng.next()));
            written.push((writer.append(said.clone()).wait().unwrap().seq, said.into()));
        }
    }
    written
}
