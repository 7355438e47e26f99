//! The first screen: at most 24 lines, the same in the terminal and in HTML.

use serde::{Deserialize, Serialize};

use super::samples::{Relation, SampleLine, disagreements};
use super::{ControlResult, Report};
use crate::verdict::Bearing;

/// Lines at most.
pub(super) const MAX_LINES: usize = 24;

/// Characters at most of a line that shows an answer.
const WIDTH: usize = 96;

/// One line of the first screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Line {
    /// The notice of a demo.
    Notice {
        /// The text.
        text: String,
    },
    /// The sentence of action.
    Action {
        /// The text.
        text: String,
    },
    /// One axis.
    Axis {
        /// Its name.
        name: String,
        /// `decides`, `does not matter` or `unknown`.
        bearing: String,
        /// The text.
        text: String,
    },
    /// How alike two candidates answer that run the same weights.
    Agreement {
        /// The one that is held against the candidate in use.
        candidate: String,
        /// The text.
        text: String,
    },
    /// A control's result.
    Control {
        /// Whether it came out as it must.
        result: ControlResult,
        /// The text.
        text: String,
    },
    /// One of the worst disagreements.
    Disagreement {
        /// The sample.
        id: String,
        /// What each side said.
        text: String,
    },
    /// Something that was broken off.
    Warning {
        /// The text.
        text: String,
    },
    /// The next step.
    Next {
        /// The text.
        text: String,
    },
}

/// The first screen of a report.
pub fn first_screen(report: &Report, samples: &[SampleLine]) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(notice) = &report.notice {
        lines.push(Line::Notice { text: notice.clone() });
    }
    lines.push(Line::Action { text: report.verdict.sentence.clone() });
    for comparison in report.comparisons.iter().filter(|c| c.agreement.is_same_weights) {
        lines.push(Line::Agreement {
            candidate: comparison.candidate.clone(),
            text: comparison.agreement.in_words(),
        });
    }
    for axis in &report.verdict.axes {
        let bearing = match axis.bearing {
            Bearing::Decides => "decides",
            Bearing::DoesNotMatter => "does not matter",
            Bearing::Unknown => "unknown",
        };
        lines.push(Line::Axis {
            name: axis.name.clone(),
            bearing: bearing.to_owned(),
            text: axis.text.clone(),
        });
    }
    for candidate in &report.candidates {
        if let Some(why) = &candidate.stopped {
            lines.push(Line::Warning {
                text: format!(
                    "{}: {} calls were not made: {why}",
                    candidate.name, candidate.n_not_run
                ),
            });
        }
    }
    if !report.changed_since_start.is_empty() {
        let changes = report.changed_since_start.join("; ");
        lines.push(Line::Warning { text: format!("changed since the run began: {changes}") });
    }
    for control in &report.controls {
        lines.push(Line::Control {
            result: control.result,
            text: format!("{}: {}", control.name, control.finding),
        });
    }
    if let Some(challenger) = &report.verdict.challenger {
        for (sample, relation) in disagreements(samples, challenger).into_iter().take(3) {
            lines.push(Line::Disagreement {
                id: sample.id.clone(),
                text: clip(&disagreement(sample, relation, &report.verdict.current, challenger)),
            });
        }
    }
    lines.truncate(MAX_LINES - 1);
    lines.push(Line::Next { text: report.verdict.next.clone() });
    lines
}

fn disagreement(
    sample: &SampleLine,
    relation: Relation,
    current: &str,
    challenger: &str,
) -> String {
    let answer = |name: &str| {
        sample.answers.iter().find(|a| a.candidate == name && a.repeat == 0).map(|a| {
            match a.is_answered() {
                true => one_line(&a.text),
                false => format!("[{}]", a.outcome),
            }
        })
    };
    let note = |name: &str| {
        sample.answers.iter().find(|a| a.candidate == name && a.repeat == 0).and_then(|a| {
            match a.scores.first() {
                Some((_, crate::scoring::Judged::Score(score))) => score.note.clone(),
                _ => None,
            }
        })
    };
    match relation {
        Relation::CurrentBetter if note(challenger).is_some() => {
            format!("only {current} right; {challenger}: {}", note(challenger).unwrap_or_default())
        }
        Relation::ChallengerBetter if note(current).is_some() => {
            format!("only {challenger} right; {current}: {}", note(current).unwrap_or_default())
        }
        _ => format!(
            "{current}: {}; {challenger}: {}",
            answer(current).unwrap_or_default(),
            answer(challenger).unwrap_or_default()
        ),
    }
}

/// A text on one line, control characters shown as spaces.
pub(super) fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if is_unsafe(c) { ' ' } else { c }).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Characters that could move a cursor, colour a terminal, turn the reading direction or hide.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

fn clip(text: &str) -> String {
    let text = one_line(text);
    if text.chars().count() <= WIDTH {
        return text;
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_text_cannot_reach_the_terminal_raw() {
        assert_eq!(one_line("a\u{1b}[31mred\r\n\u{202e}evil"), "a [31mred evil");
        assert!(clip(&"x".repeat(500)).chars().count() <= WIDTH);
    }
}
