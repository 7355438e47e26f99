//! What the run is made on, and what the process holds of a model's file. Linux tells both under
//! `/proc`; elsewhere they stay unknown.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Processor, cores, memory and load.
pub fn describe() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    json!({
        "cpu": field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        "n_cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field(&memory, "MemTotal"),
        "os": std::env::consts::OS,
        "load_average": load_average(),
    })
}

/// Runnable tasks over the last minute.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The commit that was built, with `+` if files differ from it.
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_clean { commit } else { format!("{commit}+") })
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages that belong to no file: heap, buffers, key-value cache, copies of weights.
    pub anonymous: u64,
    /// Resident pages of the model's file. They are the page cache's own.
    pub mapped: u64,
    /// Pages of the file's mapping that were written to and so became copies.
    pub mapped_copies: u64,
}

/// What this process holds now, with the pages of one file apart.
pub fn memory(file: &Path) -> Option<Memory> {
    Some(parse_smaps(&fs::read_to_string("/proc/self/smaps").ok()?, file.to_str()?))
}

/// Sums `/proc/PID/smaps`: a header line per mapping, then its counters in kB.
fn parse_smaps(text: &str, file: &str) -> Memory {
    let mut memory = Memory::default();
    let mut is_file = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(counter) = first.strip_suffix(':') else {
            is_file = line.ends_with(file);
            continue;
        };
        let bytes = words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024;
        match counter {
            "Rss" if is_file => memory.mapped += bytes,
            "Anonymous" if is_file => memory.mapped_copies += bytes,
            "Anonymous" => memory.anonymous += bytes,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_file_are_told_from_the_others() {
        let smaps = "\
7f00-7f10 r--s 00000000 fe:00 42                   /models/a.gguf
Size:               1000 kB
Rss:                 600 kB
Anonymous:             8 kB
VmFlags: rd sh mr
7f20-7f30 rw-p 00000000 00:00 0                    [heap]
Rss:                  70 kB
Anonymous:            64 kB
7f40-7f50 r-xp 00000000 fe:00 43                   /bin/bench
Rss:                  50 kB
Anonymous:             0 kB
";
        let expected = Memory { anonymous: 64 << 10, mapped: 600 << 10, mapped_copies: 8 << 10 };
        assert_eq!(parse_smaps(smaps, "/models/a.gguf"), expected);
    }
}
