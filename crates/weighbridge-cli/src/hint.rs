//! Commands that are printed for the user to run.

use std::path::Path;

use crate::eval::EvalArgs;

/// The command that goes on with a run: everything that makes the run what it is, said again.
pub(crate) fn resume_command(args: &EvalArgs, suite: Option<&Path>, dir: &Path) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut text = match &args.resume_hint {
        // Whoever gave it knows what else the run needs.
        Some(hint) => hint.clone(),
        None => {
            words.push("eval".to_owned());
            words.extend(suite.map(|path| path.display().to_string()));
            for define in &args.defines {
                words.extend(["--define".to_owned(), define.clone()]);
            }
            args.called_as.clone().unwrap_or_else(|| quoted(&program()))
        }
    };
    if let Some(limit) = args.limit {
        words.extend(["--limit".to_owned(), limit.to_string()]);
    }
    if args.offline {
        words.push("--offline".to_owned());
    }
    if let Some(file) = &args.keys.key_file {
        words.extend(["--key-file".to_owned(), file.display().to_string()]);
    }
    if args.gate {
        words.push("--gate".to_owned());
    }
    words.extend(["--resume".to_owned(), dir.display().to_string()]);
    for word in words {
        text.push(' ');
        text += &quoted(&word);
    }
    text
}

/// This program as it was called.
fn program() -> String {
    std::env::args_os()
        .next()
        .map_or("weighbridge".into(), |name| name.to_string_lossy().into_owned())
}

/// A word as a shell reads it.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=,@%+\\".contains(c);
    // Backslashes are plain on Windows, where they separate folders.
    let is_plain = |c: char| is_plain(c) && (c != '\\' || cfg!(windows));
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false if cfg!(windows) => format!("\"{word}\""),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_survive_a_shell() {
        assert_eq!(super::quoted("runs/a-1.toml"), "runs/a-1.toml");
        assert_eq!(super::quoted("X=http://127.0.0.1:8080/v1"), "X=http://127.0.0.1:8080/v1");
        #[cfg(not(windows))]
        {
            assert_eq!(super::quoted("my suite.toml"), "'my suite.toml'");
            assert_eq!(super::quoted("it's"), "'it'\\''s'");
            assert_eq!(super::quoted("a#$b"), "'a#$b'");
        }
    }
}
