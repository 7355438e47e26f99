//! llama.cpp's own state, of which a process has one.

use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use weighbridge_core::{EngineInfo, Error, ErrorKind, Result};

use crate::{cpu, native};

/// The version of llama-cpp-2 that the manifest asks for.
const BINDING_VERSION: &str = "0.1.160";

/// llama.cpp, initialised and never freed.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) backend: LlamaBackend,
    pub(crate) info: EngineInfo,
}

/// Initialises llama.cpp at the first call.
///
/// # Errors
/// [`Engine`](ErrorKind::Engine) if this machine lacks instructions that it was compiled for, or
/// another part of the program initialised it; the same one at each call.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime>> = OnceLock::new();
    RUNTIME.get_or_init(start).as_ref().map_err(|error| {
        let again = Error::new(error.kind(), error.message().to_owned());
        error.contexts().fold(again, |again, (name, value)| again.with(name.to_owned(), value))
    })
}

fn start() -> Result<Runtime> {
    cpu::check()?;
    native::install();
    #[cfg(feature = "dynamic-backends")]
    dynamic::load()?;
    let backend = LlamaBackend::init().map_err(|error| {
        Error::new(
            ErrorKind::Engine,
            "llama.cpp is in use by another part of this program, beside this plugin; only one may \
             initialise it",
        )
        .with_source(error)
    })?;
    let level = cpu_features(&native::system_info());
    Ok(Runtime { backend, info: engine_info(&level) })
}

/// Versions and CPU level. Safe before [`runtime`].
pub(crate) fn described() -> EngineInfo {
    engine_info(&cpu::compiled_for().join(" "))
}

fn engine_info(level: &str) -> EngineInfo {
    let (llama, ggml) = native::versions();
    let mut info = EngineInfo::new("llama.cpp", llama);
    let level = if level.is_empty() { "base instructions" } else { level };
    info.build = Some(format!(
        "ggml {ggml}, llama-cpp-2 {BINDING_VERSION}, {} with {level}",
        std::env::consts::ARCH
    ));
    info
}

/// The CPU features of a text such as `CPU : SSE3 = 1 | AVX512 = 0 | LLAMAFILE = 1 | CUDA : …`.
fn cpu_features(system_info: &str) -> String {
    let Some((_, features)) = system_info.split_once("CPU : ") else { return String::new() };
    // The next backend begins with its name and a colon.
    let pairs = features.split(" | ").map_while(|pair| pair.split_once(" = "));
    let pairs = pairs.take_while(|(name, _)| !name.contains(':'));
    let on = pairs.filter(|(_, value)| *value == "1").map(|(name, _)| name.to_lowercase());
    on.collect::<Vec<_>>().join(" ")
}

#[cfg(feature = "dynamic-backends")]
mod dynamic {
    use std::path::PathBuf;

    use llama_cpp_2::list_llama_ggml_backend_devices;
    use llama_cpp_2::llama_backend::load_backends_from_path;
    use weighbridge_core::{Error, ErrorKind, Result};

    /// Names the folder that has the libraries.
    const VARIABLE: &str = "WEIGHBRIDGE_GGML_BACKENDS";

    /// Loads the best library of each kind. The folder that the build baked in is a path of the
    /// build's machine, so it is not used.
    pub(super) fn load() -> Result<()> {
        let dir = folder()?;
        load_backends_from_path(&dir);
        if list_llama_ggml_backend_devices().is_empty() {
            return Err(Error::new(
                ErrorKind::Engine,
                format!(
                    "no library of ggml that fits this machine was found in `{}`; put the \
                     libggml-* files of the build there, or name their folder with {VARIABLE}",
                    dir.display()
                ),
            )
            .with("folder", dir.display()));
        }
        Ok(())
    }

    fn folder() -> Result<PathBuf> {
        if let Some(dir) = std::env::var_os(VARIABLE) {
            return Ok(dir.into());
        }
        let program = std::env::current_exe().map_err(|error| {
            Error::new(
                ErrorKind::Io,
                format!("the program's folder is unknown; name the folder of ggml's libraries with {VARIABLE}"),
            )
            .with_source(error)
        })?;
        Ok(program.parent().map(PathBuf::from).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_the_ones_that_are_linked() {
        let lock = include_str!("../../../Cargo.lock");
        let expected = format!("name = \"llama-cpp-2\"\nversion = \"{BINDING_VERSION}\"");
        assert!(lock.contains(&expected), "BINDING_VERSION is not what Cargo.lock has");
        let info = described();
        assert!(info.version.starts_with("0."), "{info:?}");
        assert!(info.build.unwrap().starts_with("ggml 0."));
    }

    #[test]
    fn the_cpu_level_is_read_from_what_the_backends_say() {
        let text = "CUDA : ARCHS = 900 | CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | OPENMP = 1 | ";
        assert_eq!(cpu_features(text), "sse3 avx2 openmp");
        assert_eq!(cpu_features("CPU : AVX = 1 | CUDA : F16 = 1 | X = 1 | "), "avx");
        assert_eq!(cpu_features(""), "");
    }

    #[test]
    fn it_starts_once() {
        let first: *const Runtime = runtime().unwrap();
        assert!(std::ptr::eq(first, runtime().unwrap()));
        assert!(LlamaBackend::init().is_err());
    }
}
