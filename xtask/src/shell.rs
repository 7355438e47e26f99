//! Running other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask lies in the repository").to_owned()
}

/// Cargo, in the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // `cargo xtask` was started with a target directory of its own.
    command.env_remove("CARGO_TARGET_DIR");
    command
}

/// Says what is run, runs it, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    eprintln!("+ {}", shown(command));
    let status = command.status().map_err(|e| format!("cannot start `{}`: {e}", shown(command)))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("`{}` failed: {status}", shown(command))),
    }
}

/// As [`run`], but shows what the program printed only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<(), String> {
    eprintln!("+ {}", shown(command));
    let output = command.output().map_err(|e| format!("cannot start `{}`: {e}", shown(command)))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(format!(
        "`{}` failed: {}\n{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&printed)
    ))
}

/// Whether a program can be started with these arguments.
pub(crate) fn answers(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What a command prints, without the end of line.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("cannot start `{}`: {e}", shown(command)))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("`{}` failed: {}", shown(command), output.status)),
    }
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let mut words = vec![program.into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
