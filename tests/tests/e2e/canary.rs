//! A key that must not come back: whatever a server makes of it, nothing that the program prints
//! or writes holds it in any form.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::canary_scan::find;
use crate::canary_server::{Manner, Server};
use crate::support::{printed, program};

/// A key with what encoders change.
pub(crate) const KEY: &str = "sk-canary-9f86/d0+81&884\"c7<d6>59";
const NAME: &str = "CANARY_KEY";
const N_SAMPLES: usize = 40;

/// Where the program finds the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Environment,
    /// The usual key file, made by the program itself.
    File,
}

/// A folder with a suite, and a home for the program's settings.
struct Desk {
    dir: tempfile::TempDir,
    source: Source,
}

impl Desk {
    fn new(server: &Server, source: Source) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..N_SAMPLES)
            .map(|i| format!("{{\"id\":\"s{i}\",\"q\":\"q{i}\",\"a\":\"a{i}\"}}\n"))
            .collect();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        std::fs::write(dir.path().join("work/data.jsonl"), rows).unwrap();
        let suite = format!(
            "version = 1\nname = \"t\"\ncurrent = \"known\"\n\
             [data]\nfile = \"data.jsonl\"\nid = \"id\"\n\
             [prompt]\nuser = \"{{{{ q }}}}\"\n[request]\nmax_tokens = 4\n[run]\nmax_attempts = 1\n\
             [[candidate]]\nname = \"known\"\nmodel = \"recorded:data.jsonl#a\"\n\
             [[candidate]]\nname = \"other\"\nmodel = \"{}\"\n\
             options = {{ api_key_env = \"{NAME}\" }}\n\
             [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n",
            server.model()
        );
        std::fs::write(dir.path().join("work/suite.toml"), suite).unwrap();
        let desk = Self { dir, source };
        if source == Source::File {
            let output = desk.run_with_input(&["keys", "set", NAME], &format!("{KEY}\r\n"));
            assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
            desk.is_clean(&output);
        }
        desk
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn key_file(&self) -> PathBuf {
        self.dir.path().join("settings/weighbridge/keys")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.work())
            .env("XDG_CONFIG_HOME", self.dir.path().join("settings"))
            .env("APPDATA", self.dir.path().join("settings"))
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1")
            .env("RUST_LOG", "trace")
            .env_remove(NAME)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.source == Source::Environment {
            command.env(NAME, KEY);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run_with_input(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Neither what was printed nor any file holds the key, except the one that keeps it.
    #[track_caller]
    fn is_clean(&self, output: &Output) {
        for (what, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let found = find(bytes, KEY);
            assert!(found.is_empty(), "{what} holds the key: {found:?}\n{}", printed(output));
        }
        let files = files(&self.work());
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.starts_with("core"), "{name}");
            let found = find(&std::fs::read(&file).unwrap(), KEY);
            assert!(found.is_empty(), "{} holds the key: {found:?}", file.display());
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// What other users of the machine, and whatever the program starts, could see of it.
#[cfg(target_os = "linux")]
fn looks_harmless(child: &Child) {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let read = |name: &str| std::fs::read(proc.join(name)).unwrap_or_default();
    assert_eq!(find(&read("cmdline"), KEY), [""; 0]);
    for task in std::fs::read_dir(proc.join("task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        assert_eq!(children.trim(), "", "the program started another");
    }
    let limits = String::from_utf8(read("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    assert!(core.is_none_or(|line| line.split_whitespace().nth(4) == Some("0")), "{limits}");
}

#[cfg(not(target_os = "linux"))]
fn looks_harmless(_: &Child) {}

#[test]
fn a_whole_run_against_a_server_that_repeats_the_key() {
    for source in [Source::Environment, Source::File] {
        let server = Server::start(KEY, Manner::Echoes);
        let desk = Desk::new(&server, source);
        let output = desk.run(&["eval", "suite.toml", "--out", "run", "--quiet"]);
        assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
        desk.is_clean(&output);
        assert_eq!(server.n_with_key(), N_SAMPLES, "every call came with the key");
        // The server's words did arrive, and the source was named.
        for file in ["report.html", "report.json", "samples.jsonl"] {
            let text = std::fs::read_to_string(desk.work().join("run").join(file)).unwrap();
            assert!(text.contains("[redacted]"), "{source:?} {file}");
        }
        let named = match source {
            Source::Environment => format!("key       {NAME} from the environment"),
            Source::File => {
                format!("key       {NAME} from the key file {}", desk.key_file().display())
            }
        };
        assert!(printed(&output).contains(&named), "{}", printed(&output));

        let output = desk.run(&["try", &server.model(), "Hi"]);
        desk.is_clean(&output);
    }
}

#[test]
fn a_run_that_is_killed_in_the_middle_of_the_key_and_resumed() {
    let server = Server::start(KEY, Manner::Hangs);
    let desk = Desk::new(&server, Source::File);
    let args = ["eval", "suite.toml", "--out", "run", "--quiet"];
    let mut child = desk.command(&args).spawn().unwrap();
    let start = Instant::now();
    while server.n_with_key() < 8 {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not get on");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    looks_harmless(&child);
    child.kill().unwrap();
    desk.is_clean(&child.wait_with_output().unwrap());

    server.behave(Manner::Echoes);
    let output = desk.run(&["eval", "suite.toml", "--resume", "run", "--quiet"]);
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    desk.is_clean(&output);
}

#[test]
fn a_key_that_is_refused_or_missing() {
    let server = Server::start(KEY, Manner::Refuses);
    let desk = Desk::new(&server, Source::File);
    let output = desk.run(&["eval", "suite.toml", "--out", "run", "--quiet"]);
    desk.is_clean(&output);
    assert!(printed(&output).contains("answered 401: [redacted]"), "{}", printed(&output));
    assert_eq!(server.n_with_key(), 1, "a key that is refused is not sent again");

    let output = desk.run(&["keys", "list"]);
    assert!(printed(&output).contains("the key file"), "{}", printed(&output));
    desk.is_clean(&output);
    // The value in the place of the name.
    for args in [["keys", "set", KEY], ["keys", "remove", KEY]] {
        let output = desk.run(&args);
        assert_eq!(output.status.code(), Some(3));
        desk.is_clean(&output);
    }

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let path = desk.key_file();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let output = desk.run(&["eval", "suite.toml", "--out", "other", "--quiet"]);
        assert_eq!(output.status.code(), Some(3));
        let text = printed(&output);
        assert!(text.contains("mode 0644") && text.contains("chmod 600"), "{text}");
        desk.is_clean(&output);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    let output = desk.run(&["keys", "remove", NAME]);
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    let output = desk.run(&["eval", "suite.toml", "--out", "third", "--quiet"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(printed(&output).contains("is not in the environment"), "{}", printed(&output));
}
