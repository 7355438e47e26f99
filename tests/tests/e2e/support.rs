//! The built program, and a model served by it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program of the same build as this test.
pub(crate) fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile_dir = test.parent().unwrap().parent().unwrap();
    let program = profile_dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is not built; run `cargo xtask test`, or `cargo build --workspace` first",
        program.display()
    );
    program
}

/// The `weighbridge` program.
pub(crate) fn program() -> PathBuf {
    built("weighbridge")
}

/// Runs `weighbridge` with these arguments in this folder.
pub(crate) fn weighbridge(args: &[&str], dir: &Path) -> Output {
    Command::new(program())
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

/// What a run printed, both streams.
pub(crate) fn printed(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A model served from a process of its own, which ends with this value.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
}

impl Served {
    pub(crate) fn start(model: &str, name: &str) -> Self {
        let mut child = Command::new(program())
            .args(["serve", model, "--name", name, "--address", "127.0.0.1:0"])
            .arg("--until-stdin-closes")
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("serving ").expect("the server says where").to_owned();
        Self { child, url }
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> &str {
        self.url.trim_start_matches("http://").split('/').next().unwrap()
    }

    /// The server's own count of calls that it began.
    pub(crate) fn n_started(&self, name: &str) -> u64 {
        let stats = get(self.authority(), "/weighbridge/stats");
        let stats: Value = serde_json::from_str(&stats).unwrap();
        stats["models"][name]["started"].as_u64().unwrap_or_else(|| panic!("{stats}"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The body of a GET request, without a client of ours.
pub(crate) fn get(authority: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(authority).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").expect("an HTTP answer").1.to_owned()
}
