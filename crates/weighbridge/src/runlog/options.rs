//! Knobs of the writer.

use std::time::Duration;

/// How a writer groups, splits and guards. The defaults are the format's figures; tests make them small.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WriterOptions {
    /// A segment that would grow beyond this many bytes is closed and the next one begun. Default 64 MiB.
    pub segment_bytes: u64,
    /// A pack that would grow beyond this many bytes is closed and the next one begun. Default 64 MiB.
    pub pack_bytes: u64,
    /// Most records in one group commit. Default 64.
    pub group_records: usize,
    /// Longest wait for a group to fill, once its first record is there. Default 2 ms.
    pub group_wait: Duration,
    /// The queue counts as idle after this long; then a `MARK` is written. Default 50 ms.
    pub idle_after: Duration,
    /// Size of the reserve file that is given up when the disk is full. Default 1 MiB.
    pub reserve_bytes: u64,
    /// Accept a network file system, whose locks and syncs are not to be relied on. Default false.
    pub allow_network_fs: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            pack_bytes: 64 << 20,
            group_records: 64,
            group_wait: Duration::from_millis(2),
            idle_after: Duration::from_millis(50),
            reserve_bytes: 1 << 20,
            allow_network_fs: false,
        }
    }
}
