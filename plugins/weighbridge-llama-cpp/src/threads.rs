//! How many threads to compute on.

use std::collections::HashSet;
use std::path::Path;
use std::thread;

/// Physical cores that this process may use, at least 1. Two threads on one core gain nothing in
/// matrix products and lose time waiting for each other.
pub(crate) fn physical_cores() -> u32 {
    let n_logical = thread::available_parallelism().map_or(1, |n| n.get());
    let n = physical(Path::new("/"), n_logical).unwrap_or(n_logical).min(n_logical);
    u32::try_from(n.max(1)).unwrap_or(1)
}

/// Distinct cores among the logical ones that are allowed, on Linux.
fn physical(root: &Path, n_logical: usize) -> Option<usize> {
    let status = std::fs::read_to_string(root.join("proc/self/status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = HashSet::new();
    for cpu in list(allowed)?.into_iter().take(n_logical.max(1) * 64) {
        let name = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        cores.insert(std::fs::read_to_string(root.join(name)).ok()?);
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// The numbers of a list such as `0-3,8`.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        numbers.extend(first..=last.min(first.saturating_add(1 << 16)));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_of_a_core_count_once() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,6\n");
        for (cpu, siblings) in [(0, "0,4"), (1, "1,5"), (2, "2,6"), (3, "3,7"), (6, "2,6")] {
            let name = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            write(&name, siblings);
        }
        assert_eq!(physical(root.path(), 5), Some(4));
        assert_eq!(physical(Path::new("/nowhere"), 5), None);
        assert!(physical_cores() >= 1);
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(list("0-2,8\n").unwrap(), [0, 1, 2, 8]);
        assert_eq!(list("5").unwrap(), [5]);
        assert!(list("a-b").is_none());
    }
}
