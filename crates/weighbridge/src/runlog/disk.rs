//! The few operations the log needs from a disk, so that tests can lose, tear and reorder what was not synced.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// What the log asks of a disk. [`RealDisk`] is `std::fs`; a test may bring one that fails.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Creates a folder and its parents, and makes their names durable. An existing folder is fine.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Names of the files in a folder, sorted. A folder that does not exist is empty.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn file_len(&self, path: &Path) -> io::Result<u64>;

    /// Up to `len` bytes from `offset`; fewer at the end of the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn read(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Creates a file that does not exist yet (`O_EXCL`). Its name is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the operating system says; `AlreadyExists` if the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for writing.
    ///
    /// # Errors
    /// What the operating system says.
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file, replacing the target. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable. Does nothing on Windows, which has no such call.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock on a file, creating it. `Ok(Err(holder))` if it is taken, with what the holder wrote
    /// about itself.
    ///
    /// # Errors
    /// What the operating system says.
    fn try_lock(&self, path: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>>;

    /// Name of the network file system the folder lies on, if it lies on one.
    fn network_fs(&self, dir: &Path) -> Option<String>;
}

/// A file open for writing.
pub trait DiskFile: fmt::Debug + Send {
    /// Writes all bytes at an offset. After an error any part of them may have been written.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes content and length durable (`fdatasync`; `F_FULLFSYNC` on macOS).
    ///
    /// # Errors
    /// What the operating system says. Never to be retried: the pages may be gone and marked clean.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// A lock that is released when it is dropped, and by the kernel when the process ends.
pub trait DiskLock: fmt::Debug + Send {}

/// The operating system's disk through `std::fs`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
            .collect();
        fs::create_dir_all(path)?;
        // A new name is durable once the folder that holds it is synced.
        for dir in missing {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            self.sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Names that are not UTF-8 are none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn read(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let available = file.metadata()?.len().saturating_sub(offset);
        let n_bytes = usize::try_from(available).unwrap_or(usize::MAX).min(len);
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(n_bytes);
        file.take(n_bytes as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().write(true).create_new(true).open(path)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    #[cfg(not(windows))]
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    #[cfg(windows)]
    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, path: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>> {
        // `std` opens files close-on-exec, so a child process that outlives us does not keep the lock.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The text is for the message only; Windows refuses to show it while the lock is held.
                let _ = file.take(256).read_to_string(&mut holder);
                return Ok(Err(describe_holder(&holder)));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        let boot = boot_id().unwrap_or_default();
        file.write_all(format!("pid {}\nboot {boot}\n", std::process::id()).as_bytes())?;
        Ok(Ok(Box::new(RealLock(file))))
    }

    fn network_fs(&self, dir: &Path) -> Option<String> {
        let dir = fs::canonicalize(dir).ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        network_fs_in(&mounts, &dir)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[derive(Debug)]
struct RealLock(#[expect(dead_code, reason = "held for its lock")] File);

impl DiskLock for RealLock {}

/// Identifies this boot of the machine, where the system tells.
fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// Turns what the holder wrote into words. The lock itself decides; this only helps to find the process.
fn describe_holder(text: &str) -> String {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match (field("pid "), field("boot ")) {
        (Some(pid), Some(boot)) if boot_id().as_deref() == Some(boot) => format!("process {pid}"),
        // Another boot id with a live lock: another machine or container shares the folder.
        (Some(pid), _) => format!("process {pid} of another system or boot"),
        _ => "another process".to_owned(),
    }
}

/// Finds the file system of `dir` in the text of `/proc/self/mountinfo`, if it is one whose locks and syncs are not
/// to be relied on.
pub(super) fn network_fs_in(mountinfo: &str, dir: &Path) -> Option<String> {
    const NETWORK: [&str; 10] = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "fuse.sshfs",
        "fuse.s3fs",
        "fuse.rclone",
    ];
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount_point), Some(fs_type)) = (left.split(' ').nth(4), right.split(' ').next())
        else {
            continue;
        };
        let mount_point = mount_point.replace("\\040", " ");
        let depth = Path::new(&mount_point).components().count();
        // The deepest mount wins, and of two on one point the later.
        if dir.starts_with(&mount_point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, fs_type));
        }
    }
    let (_, fs_type) = best?;
    NETWORK.contains(&fs_type).then(|| fs_type.to_owned())
}
