//! cmake and libclang, which building llama.cpp needs: found on this machine, or installed under
//! `target/tools` from PyPI.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, answers, output, root};

/// What PyPI has where a machine has nothing. bindgen reads C headers with this libclang.
const WHEELS: [&str; 2] = ["cmake>=3.28,<5", "libclang==18.1.1"];
const MIN_CMAKE: (u32, u32) = (3, 14);
/// Folders below which distributions and installers put libclang.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/lib/llvm",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/opt/homebrew/opt/llvm/lib",
    "/usr/local/opt/llvm/lib",
    "/Library/Developer/CommandLineTools/usr/lib",
];
const REMEDY: &str = "llama.cpp is built with cmake 3.14 or newer, a C++ compiler and libclang. \
                      Install them (Debian, Ubuntu: apt install cmake g++ libclang-dev; Fedora: dnf \
                      install cmake gcc-c++ clang-devel; macOS: xcode-select --install and brew \
                      install cmake llvm), or Python 3 with venv, and this installs cmake and \
                      libclang below target/tools";

/// Environment variables for a cargo that builds llama.cpp.
#[derive(Debug, Default)]
pub(crate) struct Tools(Vec<(&'static str, OsString)>);

impl Tools {
    /// Finds or installs what is needed.
    pub(crate) fn provide() -> Result<Self, String> {
        if !answers(Command::new("c++").arg("--version"))
            && !answers(Command::new("g++").arg("--version"))
            && std::env::var_os("CXX").is_none()
        {
            return Err(format!("there is no C++ compiler. {REMEDY}"));
        }
        let mut tools = Self::default();
        let has_cmake = has_cmake(&std::env::var_os("CMAKE").unwrap_or_else(|| "cmake".into()));
        let libclang = find_libclang();
        let wheels = match has_cmake && libclang.is_some() {
            true => None,
            false => Some(install_wheels()?),
        };
        if !has_cmake {
            let cmake = wheel_file(wheels.as_deref(), "cmake/data/bin/cmake")?;
            tools.0.push(("CMAKE", cmake.into()));
        }
        match libclang {
            Some(Libclang::Named) => {}
            Some(Libclang::In(dir)) => tools.0.push(("LIBCLANG_PATH", dir.into())),
            None => {
                let library =
                    wheel_file(wheels.as_deref(), &format!("clang/native/{}", library()))?;
                let dir = library.parent().unwrap_or(&library).to_owned();
                tools.0.push(("LIBCLANG_PATH", dir.into()));
                tools.add_compiler_headers();
            }
        }
        tools.leave_out_half_arithmetic();
        Ok(tools)
    }

    /// On processors that compute with 16-bit floats, llama.cpp's attention takes that arithmetic and
    /// handles 128 values at a time; heads of fewer values, 64 for instance, fall to a loop over single
    /// values. Without it decoding behind 512 tokens is 1.3 to 2.5 times as fast
    /// (docs/benchmarks.md).
    fn leave_out_half_arithmetic(&mut self) {
        const FLAG: &str = "-mno-avx512fp16";
        if !cfg!(all(target_arch = "x86_64", unix)) {
            return;
        }
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        // An older compiler knows neither the arithmetic nor the flag.
        if answers(Command::new(compiler).args([FLAG, "-E", "-x", "c", "/dev/null"])) {
            for name in ["CMAKE_C_FLAGS_RELEASE", "CMAKE_CXX_FLAGS_RELEASE"] {
                self.0.push((name, format!("-O3 -DNDEBUG {FLAG}").into()));
            }
        }
    }

    /// The wheel has no headers of the compiler's own, such as `stddef.h`; those of gcc serve.
    fn add_compiler_headers(&mut self) {
        if std::env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some() {
            return;
        }
        let include = output(Command::new("gcc").arg("-print-file-name=include"));
        if let Some(include) = include.ok().filter(|include| Path::new(include).is_dir()) {
            self.0.push(("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{include}").into()));
        }
    }

    /// Sets the variables for a command.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.envs(self.0.iter().map(|(name, value)| (name, value)));
    }

    /// The cmake to call.
    pub(crate) fn cmake(&self) -> OsString {
        let found = self.0.iter().find(|(name, _)| *name == "CMAKE").map(|(_, path)| path.clone());
        found.or_else(|| std::env::var_os("CMAKE")).unwrap_or_else(|| "cmake".into())
    }

    /// The variables as lines for a POSIX shell.
    pub(crate) fn exports(&self) -> String {
        let line = |(name, value): &(&str, OsString)| {
            format!("export {name}='{}'\n", value.to_string_lossy().replace('\'', r"'\''"))
        };
        self.0.iter().map(line).collect()
    }
}

fn has_cmake(program: &OsString) -> bool {
    let printed = output(Command::new(program).arg("--version"));
    printed.is_ok_and(|text| cmake_version(&text).is_some_and(|version| version >= MIN_CMAKE))
}

/// Of a text such as `cmake version 3.28.3`.
fn cmake_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("cmake version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

enum Libclang {
    /// The environment names it.
    Named,
    In(PathBuf),
}

/// Where bindgen would find libclang by itself, or a folder that it has to be told.
fn find_libclang() -> Option<Libclang> {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return Some(Libclang::Named);
    }
    let of_config = output(Command::new("llvm-config").arg("--libdir")).ok().map(PathBuf::from);
    let mut folders: Vec<PathBuf> = of_config.into_iter().collect();
    for folder in LIBRARY_FOLDERS.map(PathBuf::from) {
        // Debian has a folder per version: /usr/lib/llvm-18/lib.
        let versions = folder.parent().and_then(|parent| std::fs::read_dir(parent).ok());
        let versions = versions.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let stem = format!("{}-", folder.display());
        let named = |path: &PathBuf| path.to_string_lossy().starts_with(&stem);
        let mut versions: Vec<_> = versions.filter(named).map(|path| path.join("lib")).collect();
        versions.sort();
        folders.extend(versions.into_iter().rev());
        folders.push(folder);
    }
    folders.into_iter().find(|folder| has_libclang(folder)).map(Libclang::In)
}

fn has_libclang(folder: &Path) -> bool {
    let is_library = |name: &str| {
        name == "libclang.dylib"
            || name == "libclang.so"
            || name.starts_with("libclang.so.")
            || name.starts_with("libclang-") && name.contains(".so") && !name.contains("cpp")
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()).any(|e| e.file_name().to_str().is_some_and(is_library))
}

fn library() -> &'static str {
    if cfg!(target_os = "macos") { "libclang.dylib" } else { "libclang.so" }
}

/// Installs the wheels if they are not there yet; returns the folder they lie in.
fn install_wheels() -> Result<PathBuf, String> {
    let dir = root().join("target/tools/native");
    let python = dir.join("bin/python");
    let with_remedy = |e: String| format!("{e}. {REMEDY}");
    let is_complete = |dir: &Path| {
        let packages = packages(dir)?;
        let has = |name: &str| packages.join(name).is_file();
        let has_all = has("cmake/data/bin/cmake") && has(&format!("clang/native/{}", library()));
        has_all.then_some(packages)
    };
    if let Some(packages) = is_complete(&dir) {
        return Ok(packages);
    }
    eprintln!("cmake or libclang is missing; both are installed from PyPI below target/tools");
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(&dir)).map_err(with_remedy)?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(WHEELS);
    shell::run(&mut install).map_err(with_remedy)?;
    is_complete(&dir)
        .ok_or_else(|| with_remedy("the wheels of cmake and libclang lack their files".to_owned()))
}

/// `lib/pythonX.Y/site-packages` of a virtual environment.
fn packages(venv: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(venv.join("lib")).ok()?;
    let mut packages = pythons.filter_map(|entry| Some(entry.ok()?.path().join("site-packages")));
    packages.find(|path| path.is_dir())
}

fn wheel_file(packages: Option<&Path>, name: &str) -> Result<PathBuf, String> {
    let path = packages.map(|packages| packages.join(name)).filter(|path| path.is_file());
    path.ok_or_else(|| format!("`{name}` is not in its wheel. {REMEDY}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmake_tells_its_version() {
        assert_eq!(cmake_version("cmake version 3.28.3\n\nCMake suite"), Some((3, 28)));
        assert_eq!(cmake_version("cmake version 4.1.0-rc1"), Some((4, 1)));
        assert!(cmake_version("cmake version 3.5.1") < Some(MIN_CMAKE));
        assert_eq!(cmake_version("ninja 1.11"), None);
    }

    #[test]
    fn variables_are_quoted_for_a_shell() {
        let tools = Tools(vec![("CMAKE", "/a b/it's".into()), ("LIBCLANG_PATH", "/c".into())]);
        assert_eq!(tools.exports(), "export CMAKE='/a b/it'\\''s'\nexport LIBCLANG_PATH='/c'\n");
        let mut command = Command::new("x");
        tools.apply(&mut command);
        assert_eq!(command.get_envs().count(), 2);
    }

    #[test]
    fn the_library_of_c_is_not_that_of_cpp() {
        let dir = std::env::temp_dir().join(format!("weighbridge-libclang-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for the test");
        let has = |name: &str| {
            let path = dir.join(name);
            std::fs::write(&path, "").expect("a file for the test");
            let has = has_libclang(&dir);
            std::fs::remove_file(path).expect("the file that was made");
            has
        };
        assert!(has("libclang.so") && has("libclang-14.so.1") && has("libclang.dylib"));
        assert!(!has("libclang-cpp.so.14") && !has("libclang_rt.so"));
        std::fs::remove_dir(dir).expect("the folder that was made");
    }
}
