//! The library example runs and stays short.

use std::process::Command;

use crate::support::{built, root};

#[test]
fn the_library_example_runs_in_under_sixty_lines() {
    let source = std::fs::read_to_string(root().join("examples/library/src/main.rs")).unwrap();
    assert!(source.lines().count() < 60, "{} lines", source.lines().count());
    let output = Command::new(built("example-library")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("[stop]"), "the chat was streamed: {text}");
    assert_eq!(text.matches("log-likelihood").count(), 2, "{text}");
    assert!(text.contains("3 pairs are a reading sheet"), "{text}");
}
