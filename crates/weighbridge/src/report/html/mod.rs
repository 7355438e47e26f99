//! `report.html`: the whole report in one file that loads nothing and sends nothing.
//!
//! Everything but the list of samples is drawn here and needs no script. Text of models and data
//! reaches the page through [`escape`] only: escaped as text, or as JSON that the script inserts
//! as text.

mod charts;
mod escape;
mod numbers;
mod page;
mod pairs;
mod provenance;
mod quality;
mod running;
mod samples;
#[cfg(test)]
mod tests;

use super::{Report, SampleLine, first_screen};

/// The report as one HTML file.
pub fn render(report: &Report, samples: &[SampleLine]) -> String {
    page::document(
        report,
        [
            page::first_screen(report, &first_screen(report, samples)),
            quality::quality(report),
            quality::controls(report),
            running::running(report),
            samples::samples(report, samples),
            provenance::provenance(report),
        ],
    )
}
