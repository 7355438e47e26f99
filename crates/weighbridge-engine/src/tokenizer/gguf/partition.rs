//! Splitting a text at control tokens and user-defined tokens.

use std::ops::Range;

/// A token that is found in a text before anything else is.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) id: u32,
    pub(super) text: String,
    /// Found only where control tokens are parsed.
    pub(super) is_control: bool,
    /// Takes in the white space after it.
    pub(super) rstrip: bool,
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

/// Splits `text` at every special token, in the order of `specials`: an earlier one wins over a later
/// one that overlaps it, wherever both stand. Control tokens do not count where they touch
/// `protected`.
pub(super) fn partition(
    text: &str,
    specials: &[Special],
    protected: &[Range<usize>],
) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    if !text.is_empty() {
        fragments.push(Fragment::Text(0..text.len()));
    }
    let is_all_protected = protected.contains(&(0..text.len()));
    for special in specials {
        if special.is_control && is_all_protected || !text.contains(special.text.as_str()) {
            continue;
        }
        fragments = fragments
            .into_iter()
            .flat_map(|fragment| match fragment {
                Fragment::Text(range) => split(text, range, special, protected),
                token => vec![token],
            })
            .collect();
    }
    fragments
}

fn split(
    text: &str,
    range: Range<usize>,
    special: &Special,
    protected: &[Range<usize>],
) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    let (mut start, mut from) = (range.start, range.start);
    while let Some(at) = text[from..range.end].find(&special.text).map(|n| from + n) {
        let end = at + special.text.len();
        if special.is_control && protected.iter().any(|p| p.start < end && at < p.end) {
            from = at + text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        if start < at {
            fragments.push(Fragment::Text(start..at));
        }
        fragments.push(Fragment::Token(special.id));
        start = end;
        if special.rstrip {
            let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
            start += text.as_bytes()[end..range.end].iter().take_while(|b| is_space(b)).count();
        }
        from = start;
    }
    if start < range.end {
        fragments.push(Fragment::Text(start..range.end));
    }
    fragments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(id: u32, text: &str, is_control: bool) -> Special {
        Special { id, text: text.to_owned(), is_control, rstrip: id == 9 }
    }

    #[test]
    fn earlier_tokens_win_and_protected_text_has_no_control_tokens() {
        let specials = [special(1, "<ab>", true), special(2, "b>c", false), special(9, "|", true)];
        let text = "x<ab>c<ab>| \ny";
        let parts = |protected: &[(usize, usize)]| -> Vec<String> {
            let part = |fragment| match fragment {
                Fragment::Token(id) => id.to_string(),
                Fragment::Text(range) => text[range].to_owned(),
            };
            let protected: Vec<_> = protected.iter().map(|(start, end)| *start..*end).collect();
            partition(text, &specials, &protected).into_iter().map(part).collect()
        };
        assert_eq!(parts(&[]), ["x", "1", "c", "1", "9", "y"]);
        assert_eq!(parts(&[(0, text.len())]), ["x<a", "2", "<ab>| \ny"]);
        assert_eq!(parts(&[(2, 3), (10, 11)]), ["x<a", "2", "1", "| \ny"]);
        assert_eq!(parts(&[(7, 7)]), ["x", "1", "c<ab>", "9", "y"], "not across an empty range");
        assert_eq!(partition("", &specials, &[]), []);
    }
}
