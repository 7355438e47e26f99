//! Where this program takes keys from, and `weighbridge keys`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use weighbridge::keys::{EnvironmentKeys, KeyFile, Keys};
use weighbridge::{Error, ErrorKind, Result, Secret};

/// Keys of vendors, and the model name that would use them.
pub(crate) const VENDOR_KEYS: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "anthropic:MODEL"),
    ("OPENAI_API_KEY", "openai:MODEL"),
    ("GEMINI_API_KEY", "gemini:MODEL"),
    ("OPENROUTER_API_KEY", "openrouter:MODEL"),
];
/// No key is longer.
const MAX_VALUE_BYTES: u64 = 16 << 10;

#[derive(Args)]
pub(crate) struct KeyArgs {
    /// File of keys, NAME=VALUE in each line, asked after the environment; mode 0600, or it is
    /// refused. Default: weighbridge/keys in the folder of your settings ($XDG_CONFIG_HOME or
    /// ~/.config)
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

impl KeyArgs {
    fn file(&self) -> Option<KeyFile> {
        self.key_file.clone().or_else(KeyFile::usual_path).map(KeyFile::new)
    }

    /// The places that may hold keys, in the order in which they are asked.
    pub(crate) fn places(&self) -> Result<Arc<Keys>> {
        if let Some(path) = self.key_file.as_ref().filter(|path| !path.exists()) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "there is no key file {}; `weighbridge keys set NAME --key-file FILE` makes one",
                    path.display()
                ),
            ));
        }
        Ok(Arc::new(self.chain()))
    }

    fn chain(&self) -> Keys {
        let mut keys = Keys::new().with(EnvironmentKeys);
        if let Some(file) = self.file() {
            keys = keys.with(file);
        }
        #[cfg(feature = "keyring")]
        {
            keys = keys.with(weighbridge::keys::Keyring::new());
        }
        keys
    }
}

/// Says on standard error where keys were found, and what is wrong with the places.
pub(crate) fn tell(keys: &Keys) {
    let mut notes = BTreeSet::new();
    for looked in keys.looked() {
        if let Some(source) = looked.source {
            eprintln!("key       {} from {source}", looked.name);
        }
        notes.extend(looked.notes);
    }
    for note in notes {
        eprintln!("warning: {note}");
    }
}

#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

const AFTER_HELP: &str = "\
A key is looked for in the environment, then in the key file, then in the keyring if this program
was built with it. Values are never printed and never taken from the command line.";

#[derive(Subcommand)]
enum KeysCommand {
    /// Keep a key; asks for its value, or reads it from standard input
    Set {
        /// Its name, for instance OPENAI_API_KEY
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// List names of keys and where each would be taken from
    List {
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Remove a key
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args)]
struct Place {
    #[command(flatten)]
    keys: KeyArgs,
    /// The keyring of the desktop, instead of the key file
    #[cfg(feature = "keyring")]
    #[arg(long, conflicts_with = "key_file")]
    keyring: bool,
}

impl Place {
    fn file(&self) -> Result<KeyFile> {
        self.keys.file().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "there is no folder for your settings, for HOME is not set; name a file with \
                 --key-file",
            )
        })
    }

    #[cfg(feature = "keyring")]
    fn is_keyring(&self) -> bool {
        self.keyring
    }
}

pub(crate) fn run(args: &KeysArgs) -> Result<()> {
    match &args.command {
        KeysCommand::Set { name, place } => set(name, place),
        KeysCommand::List { keys } => list(keys),
        KeysCommand::Remove { name, place } => remove(name, place),
    }
}

fn set(name: &str, place: &Place) -> Result<()> {
    weighbridge::keys::check_name(name)?;
    let secret = read_value(name)?;
    #[cfg(feature = "keyring")]
    if place.is_keyring() {
        weighbridge::keys::Keyring::new().set(name, &secret)?;
        return crate::print(&format!("{name} is kept in the keyring\n"));
    }
    let file = place.file()?;
    file.set(name, &secret)?;
    if let Some(warning) = weighbridge::keys::KeySource::warning(&file) {
        eprintln!("warning: {warning}");
    }
    crate::print(&format!("{name} is kept in {}\n", file.path().display()))
}

fn remove(name: &str, place: &Place) -> Result<()> {
    weighbridge::keys::check_name(name)?;
    #[cfg(feature = "keyring")]
    if place.is_keyring() {
        let was_there = weighbridge::keys::Keyring::new().remove(name)?;
        return removed(name, "the keyring", was_there);
    }
    let file = place.file()?;
    let was_there = file.remove(name)?;
    removed(name, &file.path().display().to_string(), was_there)
}

fn removed(name: &str, place: &str, was_there: bool) -> Result<()> {
    match was_there {
        true => crate::print(&format!("{name} is removed from {place}\n")),
        false => {
            Err(Error::new(ErrorKind::NotFound, format!("{place} has no key of the name {name}")))
        }
    }
}

fn list(args: &KeyArgs) -> Result<()> {
    let keys = args.places()?;
    let mut names: BTreeSet<_> = VENDOR_KEYS.iter().map(|(name, _)| (*name).to_owned()).collect();
    // What is wrong with the file is told below.
    names.extend(args.file().and_then(|file| file.names().ok()).unwrap_or_default());
    let mut notes = BTreeSet::new();
    let mut out = String::new();
    for name in names {
        let (_, looked) = keys.look(&name);
        let source = looked.source.as_deref().unwrap_or("not set");
        let _ = writeln!(out, "{name:<24} {source}");
        notes.extend(looked.notes);
    }
    for note in notes {
        eprintln!("warning: {note}");
    }
    crate::print(&out)
}

/// From the terminal without echo, or all of standard input.
fn read_value(name: &str) -> Result<Secret> {
    let failed = |e| Error::new(ErrorKind::Io, "cannot read the value").with_source(e);
    if std::io::stdin().is_terminal() {
        eprint!("value of {name} (not shown): ");
        return console::Term::stderr().read_secure_line().map(Secret::new).map_err(failed);
    }
    let mut value = String::new();
    std::io::stdin().take(MAX_VALUE_BYTES).read_to_string(&mut value).map_err(failed)?;
    Ok(Secret::new(value))
}
