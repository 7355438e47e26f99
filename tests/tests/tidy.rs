//! Rules of the house that a program can check.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may import whom. A crate that is not here is new: give it a line, and an ADR if it is an
/// arrow that was not there before.
const ARROWS: [(&str, &[&str]); 15] = [
    ("weighbridge-core", &[]),
    ("weighbridge-engine", &["weighbridge-core"]),
    ("weighbridge-models", &["weighbridge-core"]),
    ("weighbridge-stats", &[]),
    ("weighbridge", &["weighbridge-core", "weighbridge-stats"]),
    ("weighbridge-server", &["weighbridge-core"]),
    ("weighbridge-testkit", &["weighbridge-core", "weighbridge-engine"]),
    (
        "weighbridge-cli",
        &[
            "weighbridge",
            "weighbridge-server",
            "weighbridge-candle",
            "weighbridge-llama-cpp",
            "weighbridge-remote",
        ],
    ),
    ("weighbridge-candle", &["weighbridge-core", "weighbridge-engine", "weighbridge-models"]),
    ("weighbridge-llama-cpp", &["weighbridge-core", "weighbridge-engine", "weighbridge-models"]),
    ("weighbridge-remote", &["weighbridge-core"]),
    ("xtask", &[]),
    (
        "weighbridge-bench",
        &["weighbridge-core", "weighbridge-candle", "weighbridge-llama-cpp", "weighbridge-remote"],
    ),
    ("weighbridge-tests", &[]),
    ("example-library", &["weighbridge", "weighbridge-candle"]),
];

/// The only foreign crates that the contracts may rest on.
const CORE_DEPENDENCIES: [&str; 5] =
    ["async-trait", "futures-core", "inventory", "serde", "serde_json"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Names of a package's dependencies that are used outside its tests.
fn dependencies(package: &Value) -> BTreeSet<String> {
    package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["kind"].as_str() != Some("dev"))
        .map(|d| d["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn crates_import_only_whom_they_may() {
    let rules: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let packages = packages();
    let ours: BTreeSet<String> =
        packages.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let allowed = rules.get(name).unwrap_or_else(|| panic!("{name} has no line in ARROWS"));
        for dependency in dependencies(package).intersection(&ours) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} imports {dependency}, which ARCHITECTURE.md does not allow; it may import \
                 {allowed:?}"
            );
        }
    }
    for name in rules.keys() {
        assert!(ours.contains(*name), "{name} has a line in ARROWS and is no crate");
    }
}

#[test]
fn the_contracts_rest_on_a_handful_of_small_crates() {
    let packages = packages();
    let core = packages.iter().find(|p| p["name"] == "weighbridge-core").unwrap();
    let found = dependencies(core);
    let allowed: BTreeSet<String> = CORE_DEPENDENCIES.iter().map(|s| (*s).to_owned()).collect();
    assert_eq!(found, allowed, "weighbridge-core has no runtime, no HTTP and no engine");
}

#[test]
fn folders_are_named_after_their_crates() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let manifest = package["manifest_path"].as_str().unwrap();
        let folder = Path::new(manifest).parent().unwrap().file_name().unwrap().to_str().unwrap();
        let expected = match name {
            "weighbridge-tests" => "tests",
            "weighbridge-bench" => "bench",
            "example-library" => "library",
            name => name,
        };
        assert_eq!(folder, expected, "{name} lies in {folder}");
    }
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    let mut files = Vec::new();
    for dir in ["crates", "plugins", "xtask", "tests", "examples", "bench"] {
        rust_files(&root().join(dir), &mut files);
    }
    assert!(files.len() > 40, "only {} files were found", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or("");
        assert!(
            first.starts_with("//!") || first.starts_with("#![doc"),
            "{} begins with {first:?}; begin with a `//!` line that says what the file is",
            file.display()
        );
    }
}
