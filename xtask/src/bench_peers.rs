//! The peers of the bench: llama.cpp's own programs, built for this CPU from the llama.cpp tree in a
//! PyPI source package. Package and tools come through pip, wherever pip is set up to look.

use std::path::PathBuf;
use std::process::Command;

use crate::bench::dir;
use crate::native::Tools;
use crate::shell::{self, answers};

/// The source package and its version.
const PACKAGE: (&str, &str) = ("llama_cpp_python", "0.3.36");
/// What the scripts and the build need of PyPI.
const TOOLS: [&str; 2] = ["gguf==0.19.0", "ninja==1.13.2"];

/// The program that quantizes the models.
pub(crate) const QUANTIZE: &str = "llama-quantize";
/// All programs.
pub(crate) const ALL: [&str; 4] = [QUANTIZE, "llama-bench", "llama-batched-bench", "llama-server"];

/// Built programs.
pub(crate) struct Peers {
    pub(crate) dir: PathBuf,
    /// Package and version, for the report.
    pub(crate) source: String,
}

impl Peers {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }
}

/// Downloads the source if need be, and builds these programs.
pub(crate) fn build(programs: &[&str]) -> Result<Peers, String> {
    let (package, version) = PACKAGE;
    let python = python()?;
    let peers = dir().join("peers");
    let source = peers.join(format!("{package}-{version}"));
    let llama_cpp = source.join("vendor/llama.cpp");
    if !llama_cpp.join("CMakeLists.txt").is_file() {
        let mut download = Command::new(&python);
        download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
        download.args(["--no-deps", "--no-binary", package, "--dest"]).arg(&peers);
        shell::run(download.arg(format!("{package}=={version}")))?;
        let archive = peers.join(format!("{package}-{version}.tar.gz"));
        let mut unpack = Command::new(&python);
        shell::run(unpack.args(["-m", "tarfile", "-e"]).arg(archive).arg(&peers))?;
    }
    let (cmake, build) = (Tools::provide()?.cmake(), peers.join("build"));
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(llama_cpp).arg("-B").arg(&build).args(["-G", "Ninja"]);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tool("ninja").display()));
    configure.args([
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        // Fourteen thousand lines of them.
        "-DLLAMA_ALL_WARNINGS=OFF",
        // A download.
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
    ]);
    // With it ggml takes the CPU's newer instructions for not reproducible and leaves them out.
    shell::run_quietly(configure.env_remove("SOURCE_DATE_EPOCH"))?;
    let mut compile = Command::new(&cmake);
    shell::run(compile.arg("--build").arg(&build).arg("--target").args(programs))?;
    Ok(Peers { dir: build.join("bin"), source: format!("{package} {version}, built natively") })
}

/// A Python with the tools; made under `target/` if need be.
pub(crate) fn python() -> Result<PathBuf, String> {
    let python = tool("python");
    if !(answers(Command::new(&python).args(["-c", "import gguf, ninja"]))) {
        let with_remedy = |e| format!("{e}; the bench needs Python 3 with venv and pip");
        let mut make = Command::new("python3");
        shell::run(make.args(["-m", "venv"]).arg(venv())).map_err(with_remedy)?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        shell::run(install.args(TOOLS)).map_err(with_remedy)?;
    }
    Ok(python)
}

fn venv() -> PathBuf {
    crate::shell::root().join("target/tools/bench-venv")
}

fn tool(name: &str) -> PathBuf {
    venv().join("bin").join(name)
}
