//! The peer `wrk`: as many requests as one thread of C gets through, without looking at answers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use weighbridge_bench::Result;

use crate::reply::Sent;

/// Begins the line that our script prints.
const MARK: &str = "measured:";

/// wrk with a script that sends what our client sends.
#[derive(Debug)]
pub(crate) struct Wrk {
    program: PathBuf,
    n_at_once: usize,
    dir: TempDir,
}

impl Wrk {
    pub(crate) fn new(program: &Path, sent: &Sent, n_at_once: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("post.lua"), script(sent))?;
        Ok(Self { program: program.to_owned(), n_at_once, dir })
    }

    /// Requests per second over about this time, a second at least.
    pub(crate) fn rate(&self, url: &str, time: Duration) -> Result<f64> {
        let seconds = time.as_secs_f64().round().max(1.0);
        let output = Command::new(&self.program)
            .args(["--threads", "1", "--connections", &self.n_at_once.to_string()])
            .args(["--duration", &format!("{seconds}s"), "--script"])
            .arg(self.dir.path().join("post.lua"))
            .arg(url)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(MARK));
        let numbers: Vec<f64> =
            line.into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
        match numbers[..] {
            [n_requests, microseconds, 0.0] => Ok(n_requests * 1e6 / microseconds),
            _ => Err(format!("wrk failed, or met failing requests:\n{text}").into()),
        }
    }
}

fn script(sent: &Sent) -> String {
    let mut script = String::from("wrk.method = \"POST\"\n");
    // Level-2 brackets: neither the body nor a header holds `]==]`.
    let _ = writeln!(script, "wrk.body = [==[{}]==]", sent.body);
    for (name, value) in &sent.headers {
        let _ = writeln!(script, "wrk.headers[\"{name}\"] = [==[{value}]==]");
    }
    let _ = writeln!(
        script,
        "done = function(summary)\n  local e = summary.errors\n  \
         print(\"{MARK}\", summary.requests, summary.duration, \
         e.connect + e.read + e.write + e.status + e.timeout)\nend"
    );
    script
}

/// What `wrk -v` says.
pub(crate) fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("-v")
        .output()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
