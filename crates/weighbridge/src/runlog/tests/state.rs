//! Replay: one final outcome per call, every open intent surfaced, and the plan of a resumed run.

use super::fault_disk::FaultDisk;
use super::*;

const POLICY: ResumePolicy = ResumePolicy { max_attempts: 2, resend: true };

#[test]
fn a_resumed_run_knows_what_is_finished_open_and_spent() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    for sample in [4, 0, 1, 2, 3] {
        let placement = if sample == 3 { Placement::Local } else { Placement::Remote };
        commit(&mut core, &[job(intent(sample, 1, placement))]);
    }
    // 0 is finished, 1 may be retried, 2 was cut off remotely, 3 locally, 4 was cut off and then finished.
    commit(&mut core, &[outcome_job(0, 1, false), outcome_job(1, 1, true)]);
    commit(&mut core, &[job(intent(4, 2, Placement::Remote))]);
    commit(&mut core, &[outcome_job(4, 2, false)]);
    drop(core);
    let core = resume(&disk).unwrap();
    let state = core.state();
    assert_eq!(state.run(), Some(&run_record()));
    let intents = state.open_intents();
    let open: Vec<_> = intents.iter().map(|open| (open.seq, &*open.intent.sample_id)).collect();
    assert_eq!(open, [(1, "s4"), (4, "s2"), (5, "s3")]);
    assert!((state.known_cost_usd() - 0.375).abs() < 1e-12);
    assert!((state.unknown_cost_cap_usd() - 0.5).abs() < 1e-12);
    let samples = |intents: Vec<&IntentRecord>| -> Vec<String> {
        intents.into_iter().map(|intent| intent.sample_id.clone()).collect()
    };
    let plan = state.resume_plan(&POLICY);
    assert_eq!(
        samples(plan.finished.iter().map(|finished| &finished.intent).collect()),
        ["s4", "s0"]
    );
    assert_eq!(samples(plan.retry.iter().map(|retry| &retry.intent).collect()), ["s1"]);
    assert_eq!(plan.retry[0].next_attempt, 2);
    assert_eq!(samples(plan.resend.iter().map(|open| &open.intent).collect()), ["s2"]);
    assert_eq!(plan.resend[0].next_attempt, 2);
    assert_eq!(samples(plan.rerun.iter().map(|open| &open.intent).collect()), ["s3"]);
    assert!(plan.missing.is_empty() && plan.exhausted.is_empty());
    let strict = state.resume_plan(&ResumePolicy { max_attempts: 1, resend: false });
    assert_eq!(samples(strict.missing.iter().map(|open| &open.intent).collect()), ["s2"]);
    assert_eq!(samples(strict.exhausted.iter().map(|finished| &finished.intent).collect()), ["s1"]);
    assert_eq!(samples(strict.rerun.iter().map(|open| &open.intent).collect()), ["s3"]);
}

#[test]
fn records_that_break_an_invariant_are_refused_without_harm() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    commit(&mut core, &[job(intent(0, 1, Placement::Remote))]);
    commit(&mut core, &[outcome_job(0, 1, false)]);
    commit(&mut core, &[job(intent(1, 1, Placement::Remote))]);
    let mut other_sample = intent(1, 2, Placement::Remote);
    other_sample.sample_id = "other".to_owned();
    let mut worthless = outcome(1, 1, false);
    worthless.cost_usd = Some(f64::NAN);
    let refused = [
        (outcome_job(0, 1, false), "has its final outcome already"),
        (job(intent(0, 2, Placement::Remote)), "must not be made again"),
        (job(intent(1, 1, Placement::Remote)), "the next one is 2"),
        (job(other_sample), "compute the key from all of them"),
        (outcome_job(7, 1, false), "append the intent first"),
        (outcome_job(1, 2, false), "append the intent first"),
        (job(worthless), "not an amount of money"),
        (job(run_record()), "one RUN record"),
        (job(batch_job("stranger")), "has no intents"),
        (job(SealRecord { outcomes: 0, root: Digest::ZERO }), "by the log itself"),
        (job(NoteRecord::new("erased", "", serde_json::Value::Null)), "choose another kind"),
        (job(outcome(1, 1, false)), "append the body with the record"),
        (job(note(&"x".repeat(MAX_RECORD_BYTES))), "beyond the limit of 65535"),
    ];
    for (job, why) in refused {
        let error = core.commit(&[job]).remove(0).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // In one group, the good ones go through.
    let answers = core.commit(&[outcome_job(0, 1, false), outcome_job(1, 1, false)]);
    assert!(answers[0].is_err() && answers[1].is_ok());
    drop(core);
    let reader = open(&disk);
    assert_eq!(reader.state().n_outcomes(), 2);
    assert_eq!(reader.state().violations(), &[] as &[String]);
}

fn batch_job(label: &str) -> JobRecord {
    JobRecord {
        label: label.to_owned(),
        job_id: format!("batch_{label}"),
        candidate: "open".to_owned(),
    }
}

#[test]
fn calls_of_a_batch_job_are_found_by_its_label() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    for sample in 0..2 {
        let mut intent = intent(sample, 1, Placement::Remote);
        intent.job = Some("part-1".to_owned());
        commit(&mut core, &[job(intent)]);
    }
    commit(&mut core, &[job(batch_job("part-1"))]);
    commit(&mut core, &[outcome_job(0, 1, true)]);
    let error = core.commit(&[job(batch_job("part-1"))]).remove(0).unwrap_err();
    assert!(error.to_string().contains("`batch_part-1` already"), "{error}");
    drop(core);
    let core = resume(&disk).unwrap();
    let state = core.state();
    assert_eq!(state.job("part-1"), Some(&batch_job("part-1")));
    assert_eq!(state.job("part-2"), None);
    // The first has its outcome; the second is still in the job.
    let open = |sample| state.call(&key(sample)).unwrap().open_job();
    assert_eq!((open(0), open(1)), (None, Some("part-1")));
}

#[test]
fn another_configuration_is_refused_with_both_hashes_before_anything_is_written() {
    let disk = FaultDisk::new();
    drop(create(&disk, small()));
    let n_ops = disk.n_ops();
    let given = Digest::of(b"another");
    let error = LogCore::resume(disk.clone(), &log_dir(), Some(&given), small()).unwrap_err();
    assert_eq!(
        error.kind(),
        &RunLogErrorKind::ConfigurationMismatch { recorded: configuration_hash(), given }
    );
    assert!(error.to_string().contains(&given.to_string()), "{error}");
    assert_eq!(disk.n_ops(), n_ops);
    // The caller can show the difference.
    let reader = open(&disk);
    assert_eq!(
        reader.blob(&reader.state().run().unwrap().configuration_digest).unwrap(),
        configuration()
    );
}

#[test]
fn an_erased_body_is_gone_stays_gone_and_the_chain_holds() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    write_calls(&mut core, 3);
    let digest = Digest::of(&body(1));
    core.erase(&digest, "asked for by the person").unwrap();
    assert_eq!(core.erase(&Digest::ZERO, "").unwrap_err().kind(), &RunLogErrorKind::BlobMissing);
    // The same content again: the record is taken, the body is not.
    commit(&mut core, &[job(intent(8, 1, Placement::Local))]);
    let mut again = outcome(8, 1, false);
    again.observation_digest = digest;
    commit(&mut core, &[Job { record: again.into(), blobs: vec![body(1)] }]);
    drop(core);
    let reader = open(&disk);
    assert_eq!(reader.blob(&digest).unwrap_err().kind(), &RunLogErrorKind::BlobErased);
    assert_eq!((reader.damage(), reader.verify_blobs().unwrap().len()), (None, 0));
    for number in 0.. {
        if !disk.list(&log_dir().join("blobs")).unwrap().contains(&format!("pack-{number:06}.wbp"))
        {
            break;
        }
        assert!(!disk.contents(&pack(number)).windows(body(1).len()).any(|bytes| bytes == body(1)));
    }
    assert_eq!(resume(&disk).unwrap().state().erased().collect::<Vec<_>>(), [&digest]);
}

#[test]
fn identical_bodies_are_stored_once_also_across_sessions() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, WriterOptions::default());
    let mut n_bytes = Vec::new();
    for sample in 0..4 {
        let mut end = outcome(sample, 1, false);
        end.observation_digest = Digest::of(&body(0));
        commit(&mut core, &[job(intent(sample, 1, Placement::Local))]);
        commit(&mut core, &[Job { record: end.into(), blobs: vec![body(0), body(0)] }]);
        n_bytes.push(disk.contents(&pack(0)).len());
        if sample == 1 {
            drop(core);
            core = resume(&disk).unwrap();
        }
    }
    assert!(n_bytes.iter().all(|&n| n == n_bytes[0]), "{n_bytes:?}");
    assert_eq!(disk.list(&log_dir().join("blobs")).unwrap().len(), 1);
}

#[test]
fn syncs_come_in_the_promised_order() {
    let disk = FaultDisk::new();
    let mut core = create(&disk, WriterOptions::default());
    let mut trace_of = |jobs: &[Job]| {
        disk.take_trace();
        commit(&mut core, jobs);
        disk.take_trace()
    };
    let segment = "sync /run/000000.wbr";
    let pack = "sync /run/blobs/pack-000000.wbp";
    assert_eq!(trace_of(&[job(intent(0, 1, Placement::Remote))]), [segment]);
    assert_eq!(trace_of(&[job(intent(1, 1, Placement::Local))]), [""; 0]);
    assert_eq!(trace_of(&[outcome_job(0, 1, false), outcome_job(1, 1, false)]), [pack, segment]);
    // A new segment: the old one, then the new one's content, then its name.
    let disk = FaultDisk::new();
    let mut core = create(&disk, small());
    disk.take_trace();
    let mut sample = 0;
    while segment_numbers(&disk).len() == 1 {
        commit(&mut core, &[job(intent(sample, 1, Placement::Local))]);
        sample += 1;
    }
    let trace = disk.take_trace();
    assert_eq!(trace[0], segment);
    assert!(trace[1].contains("000001.wbr") && trace[1].starts_with("Link"), "{trace:?}");
    assert_eq!(trace[2..], ["sync /run/000001.wbr", "sync_dir /run"]);
}
