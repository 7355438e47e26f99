//! Crashes at every operation: what was acknowledged is there afterwards, and nothing durable is cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault_disk::{Crash, FaultDisk};
use super::*;

/// What the program under test was promised.
#[derive(Debug, Default)]
struct Promises {
    begun: bool,
    /// By sequence number: hash, and whether it was durable when acknowledged.
    records: BTreeMap<u64, (Digest, bool)>,
    bodies: Vec<usize>,
    erased: bool,
    sealed: bool,
}

impl Promises {
    /// Commits and remembers; false when the disk is gone.
    fn commit(&mut self, core: &mut LogCore, jobs: &[Job]) -> bool {
        let mut alive = true;
        for (job, receipt) in jobs.iter().zip(core.commit(jobs)) {
            let Ok(receipt) = receipt else {
                alive = false;
                continue;
            };
            let local = matches!(&job.record, Record::Intent(intent) if intent.placement == Placement::Local);
            assert!(receipt.durable || local, "an ack that is not durable: {:?}", job.record);
            self.records.insert(receipt.seq, (receipt.hash, receipt.durable));
            if let Record::Outcome(outcome) = &job.record {
                let sample = (0..99).find(|&sample| key(sample) == outcome.call_key).unwrap();
                self.bodies.push(sample);
            }
        }
        alive
    }
}

/// A run with groups, retries, segment and pack changes, an erasure and a seal. Ends early when the disk crashes.
fn workload(disk: &Arc<FaultDisk>, promises: &mut Promises) -> Option<()> {
    let mut core =
        LogCore::create(disk.clone(), &log_dir(), run_record(), configuration(), small()).ok()?;
    promises.begun = true;
    let go_on = |alive: bool| alive.then_some(());
    for sample in 0..4 {
        let placement = if sample % 2 == 0 { Placement::Remote } else { Placement::Local };
        go_on(promises.commit(&mut core, &[job(intent(sample, 1, placement))]))?;
        go_on(promises.commit(&mut core, &[outcome_job(sample, 1, sample == 2)]))?;
    }
    core.mark().ok()?;
    let group = [
        job(intent(4, 1, Placement::Local)),
        job(intent(2, 2, Placement::Remote)),
        job(intent(5, 1, Placement::Remote)),
        job(note("between")),
        outcome_job(2, 2, false),
        outcome_job(4, 1, false),
    ];
    go_on(promises.commit(&mut core, &group))?;
    core.erase(&Digest::of(&body(1)), "asked for by the person").ok()?;
    promises.erased = true;
    go_on(promises.commit(&mut core, &[job(intent(6, 1, Placement::Local))]))?;
    go_on(promises.commit(&mut core, &[outcome_job(6, 1, false)]))?;
    for sample in 7..11 {
        go_on(promises.commit(&mut core, &[job(intent(sample, 1, Placement::Remote))]))?;
        go_on(
            promises
                .commit(&mut core, &[job(note("while it is open")), outcome_job(sample, 1, false)]),
        )?;
    }
    core.seal().ok()?;
    promises.sealed = true;
    Some(())
}

/// Checks every promise against what a reader finds.
fn check(disk: &Arc<FaultDisk>, promises: &Promises, crash: Crash, context: &str) {
    let reader = open(disk);
    assert_eq!(reader.damage(), None, "{context}");
    assert_eq!(reader.state().violations(), &[] as &[String], "{context}");
    let hashes: Vec<Digest> = reader.records().map(|record| record.unwrap().hash).collect();
    for (&seq, &(hash, durable)) in &promises.records {
        if durable || crash == Crash::Kill {
            assert_eq!(hashes.get(seq as usize), Some(&hash), "record {seq} is lost: {context}");
        }
    }
    for &sample in &promises.bodies {
        let stored = reader.blob(&Digest::of(&body(sample)));
        match stored {
            Ok(stored) => {
                assert_eq!(stored, body(sample), "{context}");
                assert!(!(sample == 1 && promises.erased), "an erased body came back: {context}");
            }
            Err(error) => {
                assert_eq!((sample, error.kind()), (1, &RunLogErrorKind::BlobErased), "{context}")
            }
        }
    }
    assert_eq!(reader.verify_blobs().unwrap().len(), 0, "{context}");
}

fn n_ops_of_workload() -> u64 {
    let disk = FaultDisk::new();
    workload(&disk, &mut Promises::default()).unwrap();
    disk.n_ops()
}

fn crash_everywhere(crash: Crash, n_seeds: u64) {
    let n_ops = n_ops_of_workload();
    assert!(n_ops > 80, "the workload is too small to prove anything: {n_ops}");
    let mut n_recoveries = 0;
    for at in 1..=n_ops {
        for seed in 0..n_seeds {
            let context = format!("{crash:?} at operation {at}, seed {seed}");
            let disk = FaultDisk::new();
            disk.crash_after(at, seed);
            let mut promises = Promises::default();
            assert_eq!(workload(&disk, &mut promises), None, "{context}");
            assert!(disk.crashed(), "{context}");
            disk.reboot(crash, seed * 1_000 + at);
            // The second crash comes in the middle of recovery.
            disk.crash_after(1 + seed % 11, seed);
            let _ = resume(&disk);
            disk.reboot(crash, seed * 7_000 + at);
            let mut core = match resume(&disk) {
                Ok(core) => core,
                Err(error) => {
                    assert_eq!(error.kind(), &RunLogErrorKind::NotFound, "{error}: {context}");
                    assert!(!promises.begun, "the run is lost: {context}");
                    create(&disk, small())
                }
            };
            let n_notes =
                core.state().notes().iter().filter(|(_, note)| note.kind == "recovery").count();
            n_recoveries += n_notes;
            check(&disk, &promises, crash, &context);
            // The log goes on as if nothing had happened.
            commit(&mut core, &[job(intent(50, 1, Placement::Remote))]);
            commit(&mut core, &[outcome_job(50, 1, false)]);
            core.seal().unwrap();
            let reader = open(&disk);
            assert!(reader.summary().sealed, "{context}");
            assert_eq!(
                reader.state().seal().unwrap().outcomes,
                reader.state().n_outcomes(),
                "{context}"
            );
        }
    }
    assert!(n_recoveries > 0, "no torn tail was ever met");
}

#[test]
fn kill_at_every_operation_loses_nothing_acknowledged() {
    crash_everywhere(Crash::Kill, 4);
}

#[test]
fn power_loss_at_every_operation_loses_nothing_durable() {
    crash_everywhere(Crash::Power, 12);
}

#[test]
fn a_failed_sync_is_never_retried_and_names_the_last_durable_record() {
    let mut n_poisoned = 0;
    for n in 1..40 {
        let disk = FaultDisk::new();
        let mut promises = Promises::default();
        disk.fail_sync(n);
        let Ok(mut core) =
            LogCore::create(disk.clone(), &log_dir(), run_record(), configuration(), small())
        else {
            continue;
        };
        let mut last_durable = core.durable() - 1;
        for sample in 0..12 {
            for jobs in
                [[job(intent(sample, 1, Placement::Remote))], [outcome_job(sample, 1, false)]]
            {
                if promises.commit(&mut core, &jobs) {
                    last_durable = core.durable() - 1;
                }
            }
        }
        let Some(failure) = core.failure().cloned() else { continue };
        n_poisoned += 1;
        let RunLogErrorKind::Poisoned { last_durable_seq } = failure.kind() else {
            panic!("{failure}")
        };
        assert!(last_durable_seq.unwrap() >= last_durable, "{failure}");
        assert!(failure.to_string().contains("a failed sync is never retried"), "{failure}");
        let n_syncs = disk.n_syncs();
        assert_eq!(
            core.commit(&[job(note("later"))])[0].as_ref().unwrap_err().kind(),
            failure.kind()
        );
        assert!(core.seal().is_err() && core.mark().is_err() && core.sync().is_err());
        assert_eq!(disk.n_syncs(), n_syncs, "something was synced after the failure");
        drop(core);
        // The next process reads the lost pages from the cache. It must make them durable, not only believe them.
        let mut core = resume(&disk).unwrap();
        promises.commit(&mut core, &[job(note("resumed"))]);
        drop(core);
        disk.reboot(Crash::Power, 1);
        drop(resume(&disk).unwrap());
        check(&disk, &promises, Crash::Power, &format!("sync {n} failed"));
    }
    assert!(n_poisoned > 20, "{n_poisoned}");
}

#[test]
fn a_full_disk_stops_the_log_in_good_order_and_resume_goes_on() {
    let disk = FaultDisk::new();
    drop(create(&disk, small()));
    let before = disk.used();
    let mut n_noted = 0;
    for room in (0..4_000).step_by(37) {
        let disk = FaultDisk::new();
        let mut promises = Promises::default();
        let mut options = small();
        options.reserve_bytes = 1_024;
        let mut core = create(&disk, options);
        disk.set_capacity(Some(before + 1_024 + room));
        let mut failure = None;
        for sample in 0..40 {
            for jobs in
                [[job(intent(sample, 1, Placement::Remote))], [outcome_job(sample, 1, false)]]
            {
                promises.commit(&mut core, &jobs);
            }
            failure = failure.or(core.failure().cloned());
        }
        let failure = failure.expect("the disk is too small");
        assert!(matches!(failure.kind(), RunLogErrorKind::DiskFull { .. }), "{failure}");
        assert!(failure.to_string().contains("make room, then resume"), "{failure}");
        drop(core);
        let reader = open(&disk);
        assert_eq!(reader.damage(), None, "the log was not cut to whole records, room {room}");
        n_noted +=
            reader.state().notes().iter().filter(|(_, note)| note.kind == "disk_full").count();
        // Still no room: refused by name, nothing harmed.
        disk.set_capacity(Some(disk.used()));
        let refused = resume(&disk).unwrap_err();
        assert!(matches!(refused.kind(), RunLogErrorKind::DiskFull { .. }), "{refused}");
        disk.set_capacity(None);
        let mut core = resume(&disk).unwrap();
        commit(&mut core, &[job(note("there is room again"))]);
        check(&disk, &promises, Crash::Kill, &format!("room {room}"));
    }
    assert_eq!(n_noted, (0..4_000).step_by(37).count(), "every full disk is noted");
}
