//! Keys in a file that nobody but its owner can read.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use weighbridge_core::{Error, ErrorKind, Result, Secret};

use super::{KeySource, check_name};

/// A file above this is no key file.
const MAX_BYTES: u64 = 64 << 10;

/// A text file with one key in each line, `NAME=VALUE`, as `.env` files have them: empty lines and
/// lines that begin with `#` are skipped, `export` before a name and one pair of quotes around a
/// value are taken off, and lines may end in CR LF.
///
/// It is read only if it is a regular file and no symbolic link, belongs to this user, and is
/// closed to group and others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The file at this path. Nothing is read yet; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// `$XDG_CONFIG_HOME/weighbridge/keys`, by default `~/.config/weighbridge/keys`; on Windows
    /// `%APPDATA%\weighbridge\keys`. `None` where the environment names no such folder.
    pub fn usual_path() -> Option<PathBuf> {
        let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
        let config = match cfg!(windows) {
            true => dir("APPDATA"),
            false => dir("XDG_CONFIG_HOME").or_else(|| Some(dir("HOME")?.join(".config"))),
        };
        Some(config?.join("weighbridge").join("keys"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its keys, in the order of its lines; none if there is no file.
    ///
    /// # Errors
    /// As [`get`](KeySource::get).
    pub fn names(&self) -> Result<Vec<String>> {
        let text = self.read()?.unwrap_or_default();
        Ok(self.lines(&text)?.into_iter().map(|(name, _)| name.to_owned()).collect())
    }

    /// Writes a key, in place of one of the same name. Makes the file with mode 0600, and its
    /// folder with 0700.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name or value that no line can hold, or for a file that
    /// [`get`](KeySource::get) refuses; [`ErrorKind::Io`].
    pub fn set(&self, name: &str, secret: &Secret) -> Result<()> {
        check_name(name)?;
        if secret.expose().is_empty() || secret.expose().contains(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the value of `{name}` is empty or holds control characters; nothing was \
                         written"
                ),
            ));
        }
        let mut text = self.without(name)?.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{name}=\"{}\"\n", secret.expose()));
        self.write(&text)
    }

    /// Takes a key out. `false` if it was not there.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn remove(&self, name: &str) -> Result<bool> {
        let is_there = self.names()?.iter().any(|known| known == name);
        if is_there && let Some(text) = self.without(name)? {
            self.write(&text)?;
        }
        Ok(is_there)
    }

    /// The text of the file without the lines of one key.
    fn without(&self, name: &str) -> Result<Option<String>> {
        let Some(text) = self.read()? else { return Ok(None) };
        self.lines(&text)?;
        let keeps = |line: &&str| split(line).is_none_or(|(known, _)| known != name);
        Ok(Some(text.split_inclusive('\n').filter(keeps).collect()))
    }

    fn lines<'a>(&self, text: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            if matches!(line.trim().chars().next(), None | Some('#')) {
                continue;
            }
            // The line is not shown: it may be a key without a name.
            let key = split(line).filter(|(name, _)| check_name(name).is_ok());
            keys.push(key.ok_or_else(|| {
                self.refused(&format!("line {} is not NAME=VALUE; correct it", i + 1))
            })?);
        }
        Ok(keys)
    }

    /// The file's text, if there is a file.
    fn read(&self) -> Result<Option<String>> {
        let file = match open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if self.path.is_symlink() => {
                return Err(self
                    .refused("it is a symbolic link; name the file itself")
                    .with_source(error));
            }
            Err(error) => return Err(self.failed("read", error)),
        };
        // Of the opened file: between a look at a path and its opening another may take its place.
        let metadata = file.metadata().map_err(|error| self.failed("read", error))?;
        self.check(&metadata)?;
        let mut bytes = Vec::new();
        let taken = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        taken.map_err(|error| self.failed("read", error))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(self.refused("it exceeds 64 KiB, so it is no key file"));
        }
        let text = String::from_utf8(bytes).map_err(|_| self.refused("it is not UTF-8"))?;
        Ok(Some(match text.strip_prefix('\u{FEFF}') {
            Some(rest) => rest.to_owned(),
            None => text,
        }))
    }

    fn check(&self, metadata: &Metadata) -> Result<()> {
        if !metadata.is_file() {
            return Err(self.refused("it is no regular file"));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let mode = metadata.mode() & 0o7777;
            if mode & 0o077 != 0 {
                return Err(self.refused(&format!(
                    "its mode {mode:04o} opens it to others; run `chmod 600` on it, and replace \
                     the keys if others use this machine"
                )));
            }
            if metadata.uid() != rustix::process::geteuid().as_raw() {
                return Err(self.refused("it belongs to another user"));
            }
        }
        Ok(())
    }

    /// Puts a new file in the place of the old one, so that there is always a whole one.
    fn write(&self, text: &str) -> Result<()> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let write = || -> io::Result<()> {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(dir)?;
            // Made with mode 0600.
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|error| self.failed("write", error))
    }

    fn refused(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::InvalidInput,
            format!("the key file {} is not used: {why}", self.path.display()),
        )
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let text = format!("cannot {what} the key file {}", self.path.display());
        Error::new(ErrorKind::Io, text).with_source(error)
    }
}

impl KeySource for KeyFile {
    fn name(&self) -> String {
        format!("the key file {}", self.path.display())
    }

    fn get(&self, name: &str) -> Result<Option<Secret>> {
        let text = self.read()?.unwrap_or_default();
        // Of several lines the last counts, as in a shell.
        let found = self.lines(&text)?.into_iter().rfind(|(known, _)| *known == name);
        Ok(found.map(|(_, value)| Secret::new(value)).filter(|s| !s.expose().is_empty()))
    }

    /// A file in a git work tree is one `git add` away from being published.
    fn warning(&self) -> Option<String> {
        let path = self.path.canonicalize().ok()?;
        let tree = path.ancestors().skip(1).find(|dir| dir.join(".git").exists())?;
        Some(format!(
            "the key file {} lies in the git work tree {}; move it out, so that it is never \
             committed",
            self.path.display(),
            tree.display()
        ))
    }
}

/// Name and value of a line.
fn split(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    let name = name.strip_prefix("export ").unwrap_or(name).trim_start();
    let value = value.trim();
    let bare =
        ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some((name, bare.unwrap_or(value)))
}

/// Opens the file itself, never what a link leads to, and never waits for a pipe's writer.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path)?.is_symlink() {
        true => Err(io::ErrorKind::InvalidInput.into()),
        false => File::open(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, text: &[u8]) -> KeyFile {
        let path = dir.join("keys");
        fs::write(&path, text).unwrap();
        mode(&path, 0o600);
        KeyFile::new(path)
    }

    #[cfg(unix)]
    fn mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[cfg(not(unix))]
    fn mode(_: &Path, _: u32) {}

    fn value(file: &KeyFile, name: &str) -> Option<String> {
        file.get(name).unwrap().map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn lines_are_read_as_editors_and_shells_write_them() {
        let dir = tempfile::tempdir().unwrap();
        let text = "\u{FEFF}# mine\r\n\r\nA=sk-a\r\nexport B = \"sk b\"\r\nC='sk\"c'\nD=\nE=\"x\n\
                    F=a=b\nA=sk-last";
        let file = file(dir.path(), text.as_bytes());
        for (name, expected) in [
            ("A", Some("sk-last")),
            ("B", Some("sk b")),
            ("C", Some("sk\"c")),
            ("D", None),
            ("E", Some("\"x")),
            ("F", Some("a=b")),
            ("G", None),
        ] {
            assert_eq!(value(&file, name).as_deref(), expected, "{name}");
        }
        assert_eq!(file.names().unwrap(), ["A", "B", "C", "D", "E", "F", "A"]);
        assert_eq!(value(&KeyFile::new(dir.path().join("none")), "A"), None);
    }

    #[test]
    fn what_is_no_key_file_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        for (text, part) in [
            (&b"A=1\nsk-canary\n"[..], "line 2 is not NAME=VALUE"),
            (b"sk-canary = 1", "line 1 is not NAME=VALUE"),
            (b"A=\xFFsk-canary", "not UTF-8"),
            (&vec![b'#'; 70_000], "exceeds 64 KiB"),
        ] {
            let error = file(dir.path(), text).get("A").unwrap_err();
            assert!(error.message().contains(part), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        let error = KeyFile::new(dir.path()).get("A").unwrap_err();
        assert!(error.message().contains("is not used"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), b"A=sk-canary\n");
        for bits in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666] {
            mode(file.path(), bits);
            let error = file.get("A").unwrap_err();
            assert!(error.message().contains(&format!("mode {bits:04o}")), "{error}");
            assert!(file.set("B", &Secret::new("b")).is_err(), "nothing is added to it");
        }
        mode(file.path(), 0o400);
        assert!(file.get("A").unwrap().is_some());

        let link = KeyFile::new(dir.path().join("link"));
        std::os::unix::fs::symlink(file.path(), link.path()).unwrap();
        let error = link.get("A").unwrap_err();
        assert!(error.message().contains("symbolic link"), "{error}");

        // Nobody writes into it: opening it the usual way would wait for ever.
        let pipe = KeyFile::new(dir.path().join("pipe"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            pipe.path(),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(pipe.get("A").unwrap_err().message().contains("no regular file"));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_written_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("new/weighbridge/keys"));
        file.set("A", &Secret::new("sk-a")).unwrap();
        let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode_of(file.path()), 0o600);
        assert_eq!(mode_of(file.path().parent().unwrap()), 0o700);
    }

    #[test]
    fn keys_are_replaced_and_removed_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), b"# mine\nA=1\nB=2");
        file.set("A", &Secret::new("sk-\"a'=1")).unwrap();
        assert_eq!(value(&file, "A").as_deref(), Some("sk-\"a'=1"));
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "# mine\nB=2\nA=\"sk-\"a'=1\"\n");
        assert!(file.remove("B").unwrap() && !file.remove("B").unwrap());
        assert_eq!(file.names().unwrap(), ["A"]);
        for (name, value) in [("A-B", "x"), ("A", ""), ("A", "x\ny"), ("A", "x\u{1b}")] {
            assert!(file.set(name, &Secret::new(value)).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no half files are left");
    }

    #[test]
    fn a_work_tree_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), b"A=1\n");
        assert_eq!(file.warning(), None);
        fs::create_dir(dir.path().join(".git")).unwrap();
        assert!(file.warning().unwrap().contains("git work tree"));
    }
}
