//! The page around the sections, the first screen, and the parts that all sections use.

use super::escape::{Element, Markup, el};
use super::numbers::{counted, level};
use crate::report::{CandidateReport, ControlResult, Line, Report};

/// Sections in order: id and name in the navigation.
pub(super) const SECTIONS: [(&str, &str); 6] = [
    ("verdict", "Verdict"),
    ("quality", "Quality"),
    ("controls", "Controls"),
    ("running", "Latency and cost"),
    ("samples", "Side by side"),
    ("provenance", "Provenance"),
];

/// Nothing is loaded, nothing is sent; what runs is what stands in the file.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'";

/// The whole file.
pub(super) fn document(report: &Report, sections: impl IntoIterator<Item = Element>) -> String {
    let meta =
        |name: &'static str, content: &str| el("meta").attr("name", name).attr("content", content);
    let head = el("head")
        .with(el("meta").attr("charset", "utf-8"))
        .with(el("meta").attr("http-equiv", "Content-Security-Policy").attr("content", POLICY))
        .with(meta("viewport", "width=device-width, initial-scale=1"))
        .with(meta("color-scheme", "light dark"))
        .with(meta("referrer", "no-referrer"))
        .with(meta("generator", &report.tool))
        .with(el("title").with(format!("{} \u{2013} Weighbridge report", report.suite.name)))
        .with(el("style").asset(include_str!("../assets/report.css")));
    let links = SECTIONS
        .iter()
        .map(|(id, name)| el("li").with(el("a").attr("href", format!("#{id}")).with(*name)));
    let top = el("div")
        .class("top")
        .with(
            report
                .notice
                .as_ref()
                .map(|text| el("p").class("notice").attr("role", "note").with(text)),
        )
        .with(el("nav").attr("aria-label", "Sections").with(el("ul").with_all(links)));
    let foot = el("footer").with(el("p").with(format!(
        "{}. Run created {}. This file loads nothing and sends nothing.",
        report.tool, report.created
    )));
    let body = el("body")
        .with(el("a").class("skip").attr("href", "#verdict").with("Skip to the verdict"))
        .with(top)
        .with(el("main").with_all(sections))
        .with(foot)
        .with(el("script").asset(include_str!("../assets/report.js")));
    let html = Markup::from(el("html").attr("lang", "en").with(head).with(body));
    format!("<!DOCTYPE html>\n{}\n", html.into_string())
}

/// The lines of the first screen, as every output has them.
pub(super) fn first_screen(report: &Report, lines: &[Line]) -> Element {
    let facts = format!(
        "{} \u{00b7} {} of {} \u{00b7} limit \u{2212}{} points at {} \u{00b7} {}",
        counted(report.candidates.iter().filter(|c| !c.is_control).count() as u64, "candidate"),
        counted(report.data.n_samples as u64, "sample"),
        report.data.file,
        report.decision.margin_points,
        level(report.decision.confidence),
        report.created
    );
    let mut action = Markup::default();
    let mut axes = Table::new("What bears on the decision", &["axis", "bearing", "what was found"]);
    let mut warnings = Vec::new();
    let mut agreements = Vec::new();
    let mut controls = Vec::new();
    let mut disagreements = Vec::new();
    let mut next = None;
    for line in lines {
        match line {
            Line::Notice { .. } => {} // the banner of the page
            Line::Action { text } => action.push(action_sentence(text)),
            Line::Axis { name, bearing, text } => {
                let kind = match bearing.as_str() {
                    "decides" => "decides",
                    "unknown" => "open",
                    _ => "plain",
                };
                axes.row(name, [Markup::from(badge(bearing, kind)), text.into()]);
            }
            Line::Warning { text } => {
                warnings.push(el("li").with(badge("! note", "bad")).with(" ").with(text));
            }
            Line::Agreement { candidate, text } => {
                agreements.push(el("li").with(el("strong").with(candidate)).with(" ").with(text));
            }
            Line::Control { result, text } => {
                controls.push(el("li").with(control_badge(*result)).with(" ").with(text));
            }
            Line::Disagreement { id, text } => {
                let link = el("a").attr("href", "#samples").attr("data-sample", id).with(id);
                disagreements.push(el("li").with(link).with(" ").with(text));
            }
            Line::Next { text } => next = Some(text),
        }
    }
    let list = |title: &'static str, items: Vec<Element>| {
        (!items.is_empty()).then(|| {
            let list = el("ul").class("lines").with_all(items);
            Markup::from(el("h2").class("minor").with(title)).and(list)
        })
    };
    let has_axes = !axes.rows.is_empty();
    el("section")
        .attr("id", "verdict")
        .attr("aria-labelledby", "verdict-title")
        .with(print_notice(report))
        .with(el("h1").attr("id", "verdict-title").with(&report.suite.name))
        .with(
            (!report.suite.description.is_empty())
                .then(|| el("p").class("description").with(&report.suite.description)),
        )
        .with(el("p").class("quiet").with(facts))
        .with(action)
        .with(list("The same weights as the candidate in use", agreements))
        .with(has_axes.then(|| axes.class("axes").finish()))
        .with(list("Broken off", warnings))
        .with(list("Controls", controls))
        .with(list("Worst disagreements", disagreements))
        .with(next.map(|text| {
            el("p").class("next").with(el("strong").with("Next:")).with(" ").with(text)
        }))
}

/// The sentence of action: what to do in bold, what was seen behind it.
fn action_sentence(text: &str) -> Element {
    // The action ends with the first sentence, or with the colon before what was seen.
    let end = [". ", ": "].iter().filter_map(|stop| text.find(stop)).min();
    let (action, seen) = text.split_at(end.map_or(text.len(), |at| at + 1));
    el("p").class("action").with(el("strong").with(action)).with(seen)
}

/// The notice once more for each printed section, where a banner cannot stay.
fn print_notice(report: &Report) -> Option<Element> {
    let text = report.notice.as_ref()?;
    Some(el("p").class("notice on-paper").attr("aria-hidden", "true").with(text))
}

/// A section with its heading.
pub(super) fn section(id: &'static str, title: &str, report: &Report) -> Element {
    let title_id = format!("{id}-title");
    el("section")
        .attr("id", id)
        .attr("aria-labelledby", &title_id)
        .with(print_notice(report))
        .with(el("h2").attr("id", title_id).with(title))
}

pub(super) fn subheading(text: &str) -> Element {
    el("h3").with(text)
}

/// A word in a frame. `kind` sets frame and colour; the word alone says everything.
pub(super) fn badge(text: &str, kind: &str) -> Element {
    el("span").attr("class", format!("badge {kind}")).with(text)
}

/// Text of unknown length in a table cell: it wraps where numbers do not.
pub(super) fn long(text: &str) -> Element {
    // A short text needs no more room than it has.
    let is_short = text.chars().count() <= 24;
    el("span").class(if is_short { "long" } else { "long wide" }).with(text)
}

/// A sentence that must not be missed.
pub(super) fn callout(text: &str) -> Element {
    el("p").class("callout").with(text)
}

/// A candidate's name with what a reader must know of it.
pub(super) fn candidate_label(candidate: &CandidateReport) -> Markup {
    let mut label = Markup::from(el("span").class("name").with(&candidate.name));
    let tags = [
        (candidate.is_current, "in use"),
        (candidate.is_tuned, "tuned"),
        (candidate.is_control, "control only"),
        (candidate.card.weights == weighbridge_core::Weights::StandIn, "stand-in"),
    ];
    for (_, tag) in tags.into_iter().filter(|(applies, _)| *applies) {
        label.push(" ");
        label.push(el("span").class("tag").with(tag));
    }
    label
}

/// A table with a caption and a head cell in each row.
#[derive(Debug)]
pub(super) struct Table {
    caption: String,
    head: Element,
    rows: Vec<Element>,
    class: &'static str,
}

impl Table {
    pub(super) fn new(caption: &str, heads: &[&str]) -> Self {
        let cells = heads.iter().map(|head| match *head {
            "" => el("td"),
            head => el("th").attr("scope", "col").with(head),
        });
        let head = el("thead").with(el("tr").with_all(cells));
        Self { caption: caption.to_owned(), head, rows: Vec::new(), class: "numbers" }
    }

    pub(super) fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    pub(super) fn row(&mut self, head: impl Into<Markup>, cells: impl IntoIterator<Item = Markup>) {
        let cells = cells.into_iter().map(|cell| el("td").with(cell));
        self.rows.push(el("tr").with(el("th").attr("scope", "row").with(head)).with_all(cells));
    }

    /// The table in a frame that scrolls on its own where there is no room.
    pub(super) fn finish(self) -> Element {
        let table = el("table")
            .class(self.class)
            .with(el("caption").with(&self.caption))
            .with(self.head)
            .with(el("tbody").with_all(self.rows));
        el("div")
            .class("scroll")
            .attr("role", "region")
            .attr("aria-label", &self.caption)
            .attr("tabindex", 0)
            .with(table)
    }
}

/// How a control came out.
pub(super) fn control_badge(result: ControlResult) -> Element {
    match result {
        ControlResult::AsExpected => badge("\u{2713} as expected", "good"),
        ControlResult::Failed => badge("\u{2717} FAILED", "bad"),
        ControlResult::NotDecidable => badge("? not decidable", "open"),
    }
}
