//! Keys in the keyring of the desktop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use keyring::Entry;
use weighbridge_core::{Error, ErrorKind, Result, Secret};

use super::{KeySource, check_name};

/// The entries' service; their user is the key's name.
const SERVICE: &str = "weighbridge";
/// A locked keyring may ask its owner; a bus may never answer.
const LIMIT: Duration = Duration::from_secs(2);
/// An answer to a question, such as a prompt to unlock, takes a person longer.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// The Secret Service of Linux desktops, the Keychain of macOS, the Credential Manager of Windows.
/// Where it does not answer within two seconds it counts as absent, and is not asked again.
#[derive(Debug, Default)]
pub struct Keyring {
    hangs: AtomicBool,
}

impl Keyring {
    /// The keyring. Nothing is asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a bad name or an empty value, [`ErrorKind::Io`] where there
    /// is no keyring, or it does not answer.
    pub fn set(&self, name: &str, secret: &Secret) -> Result<()> {
        check_name(name)?;
        if secret.expose().is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "the value is empty"));
        }
        let secret = secret.clone();
        self.ask(name, WRITE_LIMIT, move |entry| entry.set_password(secret.expose()))
    }

    /// Takes a key out. `false` if it was not there.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.ask(name, WRITE_LIMIT, |entry| found(entry.delete_credential()))
            .map(|removed| removed.is_some())
    }

    /// Asks on a thread of its own, which is left behind if there is no answer.
    fn ask<T: Send + 'static>(
        &self,
        name: &str,
        limit: Duration,
        question: impl FnOnce(&Entry) -> keyring::Result<T> + Send + 'static,
    ) -> Result<T> {
        let silent = || {
            let text = format!("the keyring did not answer within {} s", limit.as_secs());
            Error::new(ErrorKind::Io, text)
        };
        if self.hangs.load(Ordering::Relaxed) {
            return Err(silent());
        }
        let name = name.to_owned();
        let (answer_tx, answer) = mpsc::channel();
        thread::Builder::new()
            .name("weighbridge-keyring".to_owned())
            .spawn(move || {
                let result = Entry::new(SERVICE, &name).and_then(|entry| question(&entry));
                // Nobody waits any more after the limit.
                let _ = answer_tx.send(result);
            })
            .map_err(|e| Error::new(ErrorKind::Io, "cannot start a thread").with_source(e))?;
        match answer.recv_timeout(limit) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::new(
                ErrorKind::Io,
                format!("the keyring cannot be used: {}", what(&error)),
            )),
            Err(_) => {
                self.hangs.store(true, Ordering::Relaxed);
                Err(silent())
            }
        }
    }
}

impl KeySource for Keyring {
    fn name(&self) -> String {
        "the keyring".to_owned()
    }

    fn get(&self, name: &str) -> Result<Option<Secret>> {
        let value = self.ask(name, LIMIT, |entry| found(entry.get_password()))?;
        Ok(value.map(Secret::new).filter(|secret| !secret.expose().is_empty()))
    }
}

fn found<T>(result: keyring::Result<T>) -> keyring::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(keyring::Error::NoEntry) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is wrong, without what the error carries: some carry the value.
fn what(error: &keyring::Error) -> &'static str {
    match error {
        keyring::Error::NoDefaultStore | keyring::Error::PlatformFailure(_) => {
            "there is none, or it cannot be reached"
        }
        keyring::Error::NoStorageAccess(_) => "it is locked",
        keyring::Error::BadEncoding(_) => "the entry is not UTF-8",
        keyring::Error::Ambiguous(_) => "it has several entries of that name",
        _ => "it refused the request",
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::time::Instant;

    /// Looks for a key twice in a process of its own, whose bus is at this address.
    fn look(bus: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "--exact", "keys::keyring::tests::in_a_process"])
            .env("DBUS_SESSION_BUS_ADDRESS", bus)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    #[ignore = "run by the others, with a bus of their own"]
    #[allow(clippy::print_stdout)] // To the test that runs it.
    fn in_a_process() {
        let keyring = Keyring::new();
        for _ in 0..2 {
            println!("{:?}", keyring.get("WEIGHBRIDGE_TEST").map_err(|error| error.to_string()));
        }
    }

    #[test]
    fn a_bus_that_never_answers_is_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        // Connections wait in its queue, and nobody says a word.
        let _silent = UnixListener::bind(&path).unwrap();
        let start = Instant::now();
        let said = look(&format!("unix:path={}", path.display()));
        let taken = start.elapsed();
        assert_eq!(said.matches("the keyring did not answer within 2 s").count(), 2, "{said}");
        assert!(taken >= LIMIT && taken < LIMIT + Duration::from_millis(1500), "{taken:?}");
    }

    #[test]
    fn where_there_is_no_bus_there_is_no_keyring() {
        let said = look("unix:path=/nonexistent/bus");
        assert_eq!(said.matches("the keyring cannot be used: there is none").count(), 2, "{said}");
    }
}
