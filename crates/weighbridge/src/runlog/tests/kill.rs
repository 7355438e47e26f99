//! `kill -9` of a real process: this test program runs itself as the victim.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

/// Folder of the log; set only for the victim.
const DIR: &str = "WEIGHBRIDGE_RUNLOG_VICTIM_DIR";

/// Not a test of its own: in the victim process it appends until it is killed, and says what was acknowledged.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = PathBuf::from(dir);
    let (writer, state) = RunLogWriter::resume(&dir, Some(&configuration_hash()), small()).unwrap();
    let sample_of =
        |call: &CallState| call.attempts[0].intent.sample_id[1..].parse::<usize>().unwrap();
    let first = state.calls().map(|(_, call)| sample_of(call) + 1).max().unwrap_or(0);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let writer = &writer;
            scope.spawn(move || {
                for sample in (first + thread..).step_by(3) {
                    for (name, ack) in [
                        ("intent", writer.append(intent(sample, 1, Placement::Local))),
                        (
                            "outcome",
                            writer.append_with(outcome(sample, 1, false), vec![body(sample)]),
                        ),
                    ] {
                        let receipt = ack.wait().unwrap();
                        let line =
                            format!("\nack {name} {sample} {} {}\n", receipt.seq, receipt.hash);
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn kill_9_of_a_real_process_loses_nothing_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    RunLogWriter::create(dir, run_record(), configuration(), small()).unwrap().close().unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    for round in 0..12_usize {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::victim"), "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let mut n_acks = 0;
        // The victim is killed while it writes; what is left in the pipe was acknowledged too.
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", _, _, seq, hash] = words[..] {
                if hash.len() == 64 {
                    acknowledged.push((seq.parse().unwrap(), hash.to_owned()));
                }
                n_acks += 1;
                if n_acks == 1 + 7 * round {
                    victim.kill().unwrap();
                }
            }
        }
        victim.wait().unwrap();
        assert!(n_acks > 7 * round, "round {round}: the victim ended early after {n_acks} acks");
        let reader = RunLogReader::open(dir).unwrap();
        assert!(reader.damage().is_none_or(|damage| damage.torn_tail), "{:?}", reader.damage());
        let hashes: Vec<String> =
            reader.records().map(|record| record.unwrap().hash.to_string()).collect();
        for (seq, hash) in &acknowledged {
            assert_eq!(hashes.get(*seq as usize), Some(hash), "round {round}, record {seq}");
        }
        assert_eq!(reader.verify_blobs().unwrap().len(), 0);
    }
    assert!(acknowledged.len() > 400, "{}", acknowledged.len());
}
