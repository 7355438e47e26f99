//! `cargo xtask bench`: makes what the harnesses in `bench/` need, builds and runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench_peers::{self, Peers};
use crate::native::Tools;
use crate::shell::{self, cargo, root};

/// Everything the bench makes lies here.
pub(crate) fn dir() -> PathBuf {
    root().join("target/bench")
}

/// Shapes and formats of the models; the shapes are described in `bench/models.py`.
const SHAPES: [&str; 3] = ["qwen2-896", "qwen2-1024", "smol-135m"];
/// Our name of a format, and that of llama-quantize.
const FORMATS: [(&str, &str); 3] = [("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("q4_k", "Q4_K_S")];

pub(crate) fn engines(args: &[&str]) -> Result<u8, String> {
    let (options, rest) = Options::parse(args)?;
    let peers = match (&options.peers_dir, options.with_peers) {
        (Some(dir), _) => Peers { dir: dir.clone(), source: "programs that were given".to_owned() },
        (None, true) => bench_peers::build(&bench_peers::ALL)?,
        // The models need one of the programs, too.
        (None, false) => bench_peers::build(&[bench_peers::QUANTIZE])?,
    };
    let models = make_models(&peers)?;
    let program = build("engines", Some(&Tools::provide()?))?;
    let mut command = Command::new(program);
    command.current_dir(root()).arg("--models").arg(models);
    command.arg("--out").arg(dir().join("engines.json"));
    if options.with_peers {
        command.arg("--peers").arg(&peers.dir).args(["--peers-source", &peers.source]);
    }
    shell::run(command.args(rest)).map(|()| 0)
}

/// What is not for the harness.
#[derive(Default)]
struct Options {
    with_peers: bool,
    peers_dir: Option<PathBuf>,
}

impl Options {
    fn parse<'a>(args: &[&'a str]) -> Result<(Self, Vec<&'a str>), String> {
        let (mut options, mut rest) = (Self::default(), Vec::new());
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--peers" => options.with_peers = true,
                "--peers-dir" => {
                    let dir = args.next().ok_or("--peers-dir needs the folder of the programs")?;
                    // The harness runs in the repository's root.
                    let dir = std::path::absolute(dir).map_err(|e| format!("{dir}: {e}"))?;
                    (options.with_peers, options.peers_dir) = (true, Some(dir));
                }
                _ => rest.push(arg),
            }
        }
        Ok((options, rest))
    }
}

/// Makes the models that are not there yet.
fn make_models(peers: &Peers) -> Result<PathBuf, String> {
    let models = dir().join("models");
    std::fs::create_dir_all(&models)
        .map_err(|e| format!("cannot make {}: {e}", models.display()))?;
    for shape in SHAPES {
        let missing: Vec<_> = FORMATS
            .iter()
            .map(|(name, format)| (models.join(format!("{shape}-{name}.gguf")), *format))
            .filter(|(file, _)| !file.is_file())
            .collect();
        if missing.is_empty() {
            continue;
        }
        let source = models.join(format!("{shape}.f16.part"));
        let mut write = Command::new(bench_peers::python()?);
        shell::run(write.arg(root().join("bench/models.py")).arg(shape).arg(&source))?;
        for (file, format) in missing {
            quantize(peers, &source, &file, format)?;
        }
        std::fs::remove_file(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    }
    Ok(models)
}

/// All matrices in one format. Where a width does not fit K-quants, llama-quantize takes the
/// nearest format that does.
fn quantize(peers: &Peers, source: &Path, file: &Path, format: &str) -> Result<(), String> {
    let part = file.with_extension("part");
    let mut command = Command::new(peers.program(bench_peers::QUANTIZE));
    shell::run_quietly(command.arg("--pure").arg(source).arg(&part).arg(format))?;
    std::fs::rename(&part, file).map_err(|e| format!("{}: {e}", file.display()))
}

/// Builds a harness for the CPU it will run on, as `cargo xtask eval` builds the program.
fn build(feature: &str, tools: Option<&Tools>) -> Result<PathBuf, String> {
    let target = root().join("target/native");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "weighbridge-bench", "--locked"]);
    command.args(["--no-default-features", "--features", feature]);
    command.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-cpu=native");
    if let Some(tools) = tools {
        tools.apply(&mut command);
    }
    shell::run(&mut command)?;
    let name = format!("bench-{feature}{}", std::env::consts::EXE_SUFFIX);
    Ok(target.join("release").join(name))
}

/// Cores that client and server share.
const N_REMOTE_CORES: usize = 2;

pub(crate) fn remote(args: &[&str]) -> Result<u8, String> {
    let [nginx, wrk] = ["nginx", "wrk"].map(|name| {
        find(name).ok_or_else(|| {
            format!("there is no `{name}`; on Debian and Ubuntu: apt-get install nginx-light wrk")
        })
    });
    let (nginx, wrk) = (nginx?, wrk?);
    let program = build("remote", None)?;
    std::fs::create_dir_all(dir()).map_err(|e| format!("cannot make {}: {e}", dir().display()))?;
    let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut command = if n_cores > N_REMOTE_CORES {
        // What it starts inherits the cores.
        let taskset = find("taskset").ok_or("there is no `taskset`; install util-linux")?;
        let mut command = Command::new(taskset);
        command.args(["--cpu-list", &format!("0-{}", N_REMOTE_CORES - 1)]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(root()).arg("--out").arg(dir().join("remote.json"));
    command.arg("--nginx").arg(nginx).arg("--wrk").arg(wrk);
    shell::run(command.args(args)).map(|()| 0)
}

/// A program in the search path, or where systems keep servers.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}
