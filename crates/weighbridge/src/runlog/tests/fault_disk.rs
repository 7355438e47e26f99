//! A disk in memory that crashes at a chosen operation and then loses, tears and reorders what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::{Disk, DiskFile, DiskLock};
use super::Rng;

/// Smaller than any real sector: more tears.
const SECTOR: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process dies; what it wrote stays in the page cache.
    Kill,
    /// The machine dies; what was not synced may be lost in any part and any order.
    Power,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes(u64, Vec<u8>),
    Len(u64),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    stable: Vec<u8>,
    cached: Vec<u8>,
    /// Written and not synced, in order.
    dirty: Vec<Write>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    stable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    n_ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    n_syncs: u64,
    fail_sync_at: Option<u64>,
    capacity: Option<usize>,
    trace: Vec<String>,
    rng: Option<Rng>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultDisk(Arc<Mutex<State>>);

impl FaultDisk {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Crashes in the middle of the `n`-th changing operation from now, counted from 1.
    pub(super) fn crash_after(&self, n: u64, seed: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.n_ops + n);
        state.rng = Some(Rng(seed));
    }

    /// Fails the `n`-th file sync from now with EIO and, as Linux does, marks the lost pages clean.
    pub(super) fn fail_sync(&self, n: u64) {
        let mut state = self.state();
        state.fail_sync_at = Some(state.n_syncs + n);
    }

    pub(super) fn set_capacity(&self, n_bytes: Option<usize>) {
        self.state().capacity = n_bytes;
    }

    pub(super) fn used(&self) -> usize {
        let state = self.state();
        state.names.values().map(|&inode| state.inodes[inode].cached.len()).sum()
    }

    pub(super) fn n_ops(&self) -> u64 {
        self.state().n_ops
    }

    pub(super) fn n_syncs(&self) -> u64 {
        self.state().n_syncs
    }

    pub(super) fn crashed(&self) -> bool {
        self.state().crashed
    }

    /// Syncs and name changes since the last call, in order.
    pub(super) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }

    /// Starts again after a crash.
    pub(super) fn reboot(&self, crash: Crash, seed: u64) {
        let mut state = self.state();
        state.crash_at = None;
        state.crashed = false;
        state.locks.clear();
        if crash == Crash::Kill {
            return;
        }
        let mut rng = Rng(seed);
        // All, nothing, half or nearly all of what was not synced survives.
        let survives_of_16 = [16, 0, 8, 15][rng.below(4) as usize];
        let mut survives = || rng.below(16) < survives_of_16;
        for inode in &mut state.inodes {
            for write in std::mem::take(&mut inode.dirty) {
                match write {
                    Write::Len(len) => {
                        if survives() {
                            inode.stable.resize(len as usize, 0);
                        }
                    }
                    Write::Bytes(offset, bytes) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let position = offset as usize + at;
                            let n = (SECTOR - position % SECTOR).min(bytes.len() - at);
                            if survives() {
                                put(&mut inode.stable, position, &bytes[at..at + n]);
                            }
                            at += n;
                        }
                    }
                }
            }
            inode.cached = inode.stable.clone();
        }
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if survives() {
                change_names(&mut state.stable_names, &change);
            }
        }
        state.names = state.stable_names.clone();
    }

    pub(super) fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[path]].cached.clone()
    }

    /// Replaces or creates a file behind the log's back, durably.
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = Inode { stable: bytes.clone(), cached: bytes, dirty: Vec::new() };
        state.inodes.push(inode);
        let number = state.inodes.len() - 1;
        state.names.insert(path.to_path_buf(), number);
        state.stable_names.insert(path.to_path_buf(), number);
    }

    pub(super) fn delete(&self, path: &Path) {
        let mut state = self.state();
        state.names.remove(path);
        state.stable_names.remove(path);
    }

    pub(super) fn flip(&self, path: &Path, byte: usize, bit: u32) {
        let mut state = self.state();
        let number = state.names[path];
        state.inodes[number].cached[byte] ^= 1 << bit;
        if let Some(byte) = state.inodes[number].stable.get_mut(byte) {
            *byte ^= 1 << bit;
        }
    }

    /// A disk with the same files, all synced.
    pub(super) fn copy(&self) -> Arc<Self> {
        let copy = Self::new();
        let state = self.state();
        for (path, &inode) in &state.names {
            copy.put(path, state.inodes[inode].cached.clone());
        }
        copy
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn change_names(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated machine is off")
}

impl State {
    /// Counts an operation. True: the crash comes in the middle of it.
    fn step(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(power_is_off());
        }
        self.n_ops += 1;
        self.crashed = self.crash_at == Some(self.n_ops);
        Ok(self.crashed)
    }

    fn change(&mut self, change: NameChange) -> io::Result<()> {
        let crashes = self.step()?;
        let happens = !crashes || self.rng.as_mut().is_none_or(|rng| rng.below(2) == 0);
        if happens {
            change_names(&mut self.names, &change);
            self.trace.push(format!("{change:?}"));
            self.changes.push(change);
        }
        if crashes { Err(power_is_off()) } else { Ok(()) }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn write(&mut self, number: usize, offset: u64, bytes: &[u8]) {
        let inode = &mut self.inodes[number];
        put(&mut inode.cached, offset as usize, bytes);
        inode.dirty.push(Write::Bytes(offset, bytes.to_vec()));
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.inodes[state.find(path)?].cached.len() as u64)
    }

    fn read(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        let file = &state.inodes[state.find(path)?].cached;
        let start = (offset as usize).min(file.len());
        let end = start.saturating_add(len).min(file.len());
        Ok(file[start..end].to_vec())
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.change(NameChange::Link(path.to_path_buf(), inode))?;
        Ok(Box::new(FaultFile { disk: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.state().find(path)?;
        Ok(Box::new(FaultFile { disk: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(from)?;
        state.change(NameChange::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(path)?;
        state.change(NameChange::Unlink(path.to_path_buf()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.step()? {
            return Err(power_is_off());
        }
        state.trace.push(format!("sync_dir {}", super::path_str(dir)));
        let (inside, outside): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.changes).into_iter().partition(|change| {
                let (NameChange::Link(path, _)
                | NameChange::Rename(_, path)
                | NameChange::Unlink(path)) = change;
                path.parent() == Some(dir)
            });
        state.changes = outside;
        for change in &inside {
            change_names(&mut state.stable_names, change);
        }
        Ok(())
    }

    fn try_lock(&self, path: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>> {
        if !self.state().locks.insert(path.to_path_buf()) {
            return Ok(Err("process 1".to_owned()));
        }
        Ok(Ok(Box::new(FaultLock { disk: self.clone(), path: path.to_path_buf() })))
    }

    fn network_fs(&self, _dir: &Path) -> Option<String> {
        None
    }
}

#[derive(Debug)]
struct FaultLock {
    disk: FaultDisk,
    path: PathBuf,
}

impl DiskLock for FaultLock {}

impl Drop for FaultLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    inode: usize,
    path: PathBuf,
}

impl DiskFile for FaultFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.step()? {
            let n = state.rng.as_mut().map_or(0, |rng| rng.below(bytes.len() as u64 + 1)) as usize;
            state.write(self.inode, offset, &bytes[..n]);
            return Err(power_is_off());
        }
        if let Some(capacity) = state.capacity {
            let used: usize =
                state.names.values().map(|&inode| state.inodes[inode].cached.len()).sum();
            let grows = (offset as usize + bytes.len())
                .saturating_sub(state.inodes[self.inode].cached.len());
            if used + grows > capacity {
                // Half of it went through, as a real file system may do.
                let n = bytes.len().min(capacity.saturating_sub(used)) / 2;
                state.write(self.inode, offset, &bytes[..n]);
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
        }
        state.write(self.inode, offset, bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.step()? {
            return Err(power_is_off());
        }
        state.n_syncs += 1;
        state.trace.push(format!("sync {}", super::path_str(&self.path)));
        let lost = state.fail_sync_at == Some(state.n_syncs);
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if lost {
            // The pages stay readable and count as clean: a second sync would succeed and save nothing.
            return Err(io::Error::from_raw_os_error(5));
        }
        for write in dirty {
            match write {
                Write::Len(len) => inode.stable.resize(len as usize, 0),
                Write::Bytes(offset, bytes) => put(&mut inode.stable, offset as usize, &bytes),
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let crashes = state.step()?;
        let inode = &mut state.inodes[self.inode];
        if !crashes {
            inode.cached.resize(len as usize, 0);
        }
        inode.dirty.push(Write::Len(len));
        if crashes { Err(power_is_off()) } else { Ok(()) }
    }
}
