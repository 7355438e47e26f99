//! Markup that text cannot break: names are fixed in the program, text is escaped on its way in.

use std::fmt::{Display, Write as _};

use serde::Serialize;

use crate::report::first_screen::is_unsafe;

/// Elements without a body and an end tag.
const VOID: [&str; 3] = ["br", "input", "meta"];

/// Finished markup. Made of elements and of text, which is escaped.
#[derive(Clone, Debug, Default)]
pub(super) struct Markup(String);

impl Markup {
    /// Appends an element or a text.
    pub(super) fn push(&mut self, child: impl Into<Self>) {
        self.0.push_str(&child.into().0);
    }

    /// The same with an element or a text behind it.
    pub(super) fn and(mut self, child: impl Into<Self>) -> Self {
        self.push(child);
        self
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl From<&str> for Markup {
    fn from(text: &str) -> Self {
        Self(escape(text))
    }
}

impl From<&String> for Markup {
    fn from(text: &String) -> Self {
        Self(escape(text))
    }
}

impl From<String> for Markup {
    fn from(text: String) -> Self {
        Self(escape(&text))
    }
}

impl From<Element> for Markup {
    fn from(element: Element) -> Self {
        Self(element.into_string())
    }
}

impl<T: Into<Self>> From<Option<T>> for Markup {
    fn from(child: Option<T>) -> Self {
        child.map(Into::into).unwrap_or_default()
    }
}

impl<T: Into<Self>> From<Vec<T>> for Markup {
    fn from(children: Vec<T>) -> Self {
        children.into_iter().collect()
    }
}

impl<T: Into<Self>> FromIterator<T> for Markup {
    fn from_iter<I: IntoIterator<Item = T>>(children: I) -> Self {
        let mut markup = Self::default();
        for child in children {
            markup.push(child);
        }
        markup
    }
}

/// One HTML or SVG element.
#[derive(Clone, Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: String,
    body: String,
}

/// An empty element.
pub(super) fn el(name: &'static str) -> Element {
    Element { name, attributes: String::new(), body: String::new() }
}

impl Element {
    /// Adds an attribute; the value is escaped.
    pub(super) fn attr(mut self, name: &'static str, value: impl Display) -> Self {
        let value = escape(&value.to_string());
        write!(self.attributes, " {name}=\"{value}\"").expect("strings take any text");
        self
    }

    /// Adds the attribute `class`.
    pub(super) fn class(self, names: &'static str) -> Self {
        self.attr("class", names)
    }

    /// Adds an attribute without a value.
    pub(super) fn flag(mut self, name: &'static str) -> Self {
        self.attributes.push(' ');
        self.attributes.push_str(name);
        self
    }

    /// Appends to the body.
    pub(super) fn with(mut self, child: impl Into<Markup>) -> Self {
        self.body.push_str(&child.into().0);
        self
    }

    /// Appends every item to the body.
    pub(super) fn with_all<T: Into<Markup>>(self, children: impl IntoIterator<Item = T>) -> Self {
        self.with(children.into_iter().collect::<Markup>())
    }

    /// Appends a style sheet or a script of this program, as it is.
    pub(super) fn asset(mut self, text: &'static str) -> Self {
        self.body.push_str(text);
        self
    }

    /// Appends data as JSON that no HTML parser can leave early.
    pub(super) fn json(mut self, value: &impl Serialize) -> Self {
        self.body.push_str(&json(value));
        self
    }

    fn into_string(self) -> String {
        let Self { name, attributes, body } = self;
        if VOID.contains(&name) {
            return format!("<{name}{attributes}>");
        }
        format!("<{name}{attributes}>{body}</{name}>")
    }
}

/// JSON in which `<`, `>`, `&` and the two separators that end a line in old JavaScript are
/// written as escapes. They occur in strings only, so the value stays the same.
pub(super) fn json(value: &impl Serialize) -> String {
    let plain = serde_json::to_string(value).expect("reports and samples are plain data");
    let mut out = String::with_capacity(plain.len() + plain.len() / 16);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("strings take any text");
            }
            c => out.push(c),
        }
    }
    out
}

/// Text for a body or a quoted attribute. Characters that hide, turn the reading direction or
/// drive a terminal become visible, as in `\u{202e}`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            c if is_hidden(c) => {
                write!(out, "\\u{{{:x}}}", u32::from(c)).expect("strings take any text");
            }
            c => out.push(c),
        }
    }
    out
}

/// Also what is invisible and separates lines; joiners stay, scripts and emoji need them.
fn is_hidden(c: char) -> bool {
    is_unsafe(c)
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2064}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_cannot_leave_their_place() {
        let element = el("a").attr("title", "\"><img src=x onerror=alert(1)>").with("</a><script>");
        assert_eq!(
            Markup::from(element).into_string(),
            "<a title=\"&quot;&gt;&lt;img src=x onerror=alert(1)&gt;\">&lt;/a&gt;&lt;script&gt;</a>"
        );
    }

    #[test]
    fn what_hides_is_shown() {
        assert_eq!(
            escape("a\u{1b}[31m\u{202e}b\u{200b}\r\nc\td\re\u{e0041}"),
            "a\\u{1b}[31m\\u{202e}b\\u{200b}\nc\td\\u{d}e\\u{e0041}"
        );
        assert_eq!(escape("کتاب\u{200c}ها 👩\u{200d}🔬"), "کتاب\u{200c}ها 👩\u{200d}🔬");
    }

    #[test]
    fn json_is_the_same_value_without_markup() {
        let value = serde_json::json!({"<k&>": "</script><!--\u{2028}\u{2029}\u{1b}"});
        let text = json(&value);
        assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\u{1b}']), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn void_elements_have_no_end() {
        let page = Markup::from(el("meta").attr("charset", "utf-8")).and(el("p").flag("hidden"));
        assert_eq!(page.into_string(), "<meta charset=\"utf-8\"><p hidden></p>");
    }
}
