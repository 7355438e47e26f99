//! The first screen in a terminal.

use super::Report;
use super::first_screen::{Line, first_screen};
use super::samples::SampleLine;

/// The first screen as text of at most `width` columns; `color` adds ANSI colours.
pub fn render(report: &Report, samples: &[SampleLine], width: usize, color: bool) -> String {
    let paint = |code: &str, text: &str| match color {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    let width = width.clamp(60, 120);
    let mut out = Vec::new();
    for line in first_screen(report, samples) {
        match line {
            Line::Notice { text } => {
                out.extend(wrap("", &text, width).iter().map(|l| paint("33", l)));
            }
            Line::Action { text } => {
                out.extend(wrap("", &text, width).iter().map(|l| paint("1", l)));
            }
            Line::Axis { name, bearing, text } => {
                let head = format!("  {name:<8} {bearing:<15} ");
                let code = match bearing.as_str() {
                    "decides" => "1",
                    "unknown" => "33",
                    _ => "2",
                };
                out.push(clip(&format!("{}{text}", paint(code, &head)), width, &head, &text));
            }
            Line::Control { passed, text } => {
                let head = if passed {
                    "  control  as expected     "
                } else {
                    "  control  FAILED          "
                };
                let code = if passed { "2" } else { "31;1" };
                out.push(clip(&format!("{}{text}", paint(code, head)), width, head, &text));
            }
            Line::Disagreement { id, text } => {
                let head = format!("  differs  {id:<15} ");
                out.push(clip(&format!("{}{text}", paint("2", &head)), width, &head, &text));
            }
            Line::Warning { text } => {
                out.extend(wrap("  ! ", &text, width).iter().map(|l| paint("33", l)));
            }
            Line::Next { text } => {
                out.extend(wrap("Next: ", &text, width).iter().map(|l| paint("1", l)));
            }
        }
    }
    out.truncate(super::first_screen::MAX_LINES);
    out.join("\n") + "\n"
}

/// A line whose plain form fits as it is, otherwise cut with an ellipsis.
fn clip(painted: &str, width: usize, head: &str, text: &str) -> String {
    let n_plain = head.chars().count() + text.chars().count();
    if n_plain <= width {
        return painted.to_owned();
    }
    let n_cut = n_plain - width + 1;
    let kept: String = painted.chars().take(painted.chars().count() - n_cut).collect();
    kept + "…"
}

fn wrap(head: &str, text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = head.to_owned();
    let indent = " ".repeat(head.chars().count());
    let mut is_fresh = true;
    for word in text.split_whitespace() {
        let length = line.chars().count() + word.chars().count() + 1;
        if !is_fresh && length > width {
            lines.push(std::mem::replace(&mut line, indent.clone()));
            is_fresh = true;
        }
        if !is_fresh {
            line.push(' ');
        }
        line.push_str(word);
        is_fresh = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_words_and_indented() {
        assert_eq!(wrap("Next: ", "aa bb cc", 11), ["Next: aa bb", "      cc"]);
        assert_eq!(clip("head text", 7, "head ", "text"), "head t…");
    }
}
