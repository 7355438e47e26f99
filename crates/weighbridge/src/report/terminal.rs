//! The first screen in a terminal.

use super::first_screen::{Line, MAX_LINES, first_screen};
use super::samples::SampleLine;
use super::{ControlResult, Report};

/// The first screen as text of at most `width` columns; `color` adds ANSI colours.
///
/// Long lines are folded as long as the screen stays within its lines, and cut with an ellipsis
/// beyond that; `report.html` has them whole.
pub fn render(report: &Report, samples: &[SampleLine], width: usize, color: bool) -> String {
    let width = width.clamp(60, 140);
    let blocks: Vec<Block> = first_screen(report, samples).into_iter().map(block).collect();
    let mut folded: Vec<Vec<String>> =
        blocks.iter().map(|b| wrap(&b.head, &b.text, width)).collect();
    // What matters least is cut first: disagreements, then controls, then axes.
    for rank in (1..=3).rev() {
        for (block, lines) in blocks.iter().zip(&mut folded).rev() {
            let is_over = |n: usize| n > MAX_LINES;
            if block.rank == rank && lines.len() > 1 && is_over(n_lines(&blocks, width, rank)) {
                *lines = vec![clip(&format!("{}{}", block.head, block.text), width)];
            }
        }
    }
    let mut out = Vec::new();
    for (block, lines) in blocks.iter().zip(folded) {
        for line in lines {
            out.push(paint(block, &line, color));
        }
    }
    out.truncate(MAX_LINES);
    out.join("\n") + "\n"
}

/// Lines of the screen when blocks above `rank` are cut to one line each.
fn n_lines(blocks: &[Block], width: usize, rank: u8) -> usize {
    let lines = |b: &Block| if b.rank > rank { 1 } else { wrap(&b.head, &b.text, width).len() };
    blocks.iter().map(lines).sum()
}

/// A piece of the screen: a head that is not folded, and a text that is.
struct Block {
    head: String,
    text: String,
    /// ANSI code of the head, or of everything if there is no head.
    code: &'static str,
    /// 0 is never cut.
    rank: u8,
}

fn block(line: Line) -> Block {
    let block = |head: String, text, code, rank| Block { head, text, code, rank };
    match line {
        Line::Notice { text } => block(String::new(), text, "33", 0),
        Line::Action { text } => block(String::new(), text, "1", 0),
        Line::Next { text } => block("Next: ".to_owned(), text, "1", 0),
        Line::Warning { text } => block("  ! ".to_owned(), text, "33", 0),
        Line::Axis { name, bearing, text } => {
            let code = match bearing.as_str() {
                "decides" => "1",
                "unknown" => "33",
                _ => "2",
            };
            block(format!("  {name:<8} {bearing:<15} "), text, code, 1)
        }
        Line::Agreement { candidate, text } => {
            block(format!("  alike    {:<15} ", clip(&candidate, 15)), text, "1", 1)
        }
        Line::Control { result, text } => {
            let (word, code) = match result {
                ControlResult::AsExpected => ("as expected", "2"),
                ControlResult::Failed => ("FAILED", "31;1"),
                ControlResult::NotDecidable => ("not decidable", "33"),
            };
            block(format!("  control  {word:<15} "), text, code, 2)
        }
        Line::Disagreement { id, text } => {
            block(format!("  differs  {:<15} ", clip(&id, 15)), text, "2", 3)
        }
    }
}

fn paint(block: &Block, line: &str, color: bool) -> String {
    match line.strip_prefix(block.head.as_str()) {
        _ if !color => line.to_owned(),
        Some(text) if !block.head.is_empty() => {
            format!("\u{1b}[{}m{}\u{1b}[0m{text}", block.code, block.head)
        }
        Some(_) => format!("\u{1b}[{}m{line}\u{1b}[0m", block.code),
        None => line.to_owned(),
    }
}

/// At most `width` characters, the last one an ellipsis if something is cut.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
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
        assert_eq!(clip("head text", 7), "head t…");
    }
}
