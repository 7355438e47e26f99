//! Charts as inline SVG. Horizontal places are percentages and text keeps its size, so that a
//! chart fits a telephone, a screen and a sheet of paper without a script.

use super::escape::{Element, Markup, el};
use crate::compare::Interval;

/// Space left free at both sides of a scale, in percent, so that marks and labels stay inside.
const PAD: f64 = 4.0;

/// Spread above which a scale of positive values is logarithmic.
const LOG_SPREAD: f64 = 20.0;

/// Height of a chart of curves, in pixels.
const CURVES: f64 = 240.0;

/// Series that can be told apart by colour and by dash.
const N_SERIES: usize = 6;

/// From values to places.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    lo: f64,
    hi: f64,
    is_log: bool,
    ticks: Vec<f64>,
}

impl Scale {
    /// A scale with about five round ticks that covers all values.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (lo, hi) = range(values);
        let span = if hi > lo { hi - lo } else { lo.abs().max(1.0) };
        let rough = span / 4.0;
        let unit = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * unit)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(10.0 * unit);
        let (first, last) = ((lo / step).floor(), (hi / step).ceil());
        let n = (last - first).max(1.0) as usize;
        let ticks: Vec<f64> = (0..=n).map(|i| (first + i as f64) * step).collect();
        Self { lo: first * step, hi: (first + n as f64) * step, is_log: false, ticks }
    }

    /// A scale for positive values, logarithmic if they spread widely.
    pub(super) fn positive(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().filter(|v| *v > 0.0).collect();
        let (lo, hi) = range(values.iter().copied());
        if lo <= 0.0 || hi / lo <= LOG_SPREAD {
            return Self::linear(values.into_iter().chain([0.0]));
        }
        let (first, last) = (lo.log10().floor() as i32, hi.log10().ceil() as i32);
        let steps: &[f64] = if hi / lo > 1_000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all: Vec<f64> =
            (first..=last).flat_map(|e| steps.iter().map(move |m| m * 10_f64.powi(e))).collect();
        let from = all.iter().rposition(|t| *t <= lo).unwrap_or(0);
        let to = all.iter().position(|t| *t >= hi).unwrap_or(all.len() - 1);
        let ticks = all[from..=to].to_vec();
        Self { lo: ticks[0], hi: ticks[ticks.len() - 1], is_log: true, ticks }
    }

    pub(super) fn is_log(&self) -> bool {
        self.is_log
    }

    /// The place of a value in percent of the chart's width.
    fn place(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value.max(self.lo) / self.lo).ln() / (self.hi / self.lo).ln(),
            false => (value - self.lo) / (self.hi - self.lo),
        };
        PAD + share.clamp(0.0, 1.0) * (100.0 - 2.0 * PAD)
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|v| v.is_finite());
    let (lo, hi) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi { (0.0, 1.0) } else { (lo, hi) }
}

/// A line that means something across all lanes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guide {
    /// No difference.
    Zero,
    /// The largest loss that is tolerated; what lies below is shaded.
    Limit(f64),
}

/// One row of a chart: a point with its interval, what it is, and the numbers beside it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) label: Markup,
    pub(super) point: Option<f64>,
    pub(super) interval: Option<(f64, f64)>,
    pub(super) value: Markup,
    /// The row for those who do not see it.
    pub(super) spoken: String,
}

/// The ends of an interval, multiplied.
pub(super) fn ends(interval: &Interval, factor: f64) -> (f64, f64) {
    (interval.lo * factor, interval.hi * factor)
}

/// Lanes over one axis.
pub(super) fn lanes(
    caption: &str,
    scale: &Scale,
    tick: impl Fn(f64) -> String,
    guides: &[Guide],
    lanes: Vec<Lane>,
) -> Element {
    let rows = lanes.into_iter().map(|lane| {
        // A lane is as high as its label; the marks stay in the middle of it.
        let mut marks = el("svg").attr("y", "50%").attr("overflow", "visible").class("marks");
        if let Some((lo, hi)) = lane.interval {
            let (lo, hi) = (scale.place(lo), scale.place(hi));
            marks = marks
                .with(line(lo, 0.0, hi, 0.0).class("whisker"))
                .with(line(lo, -5.0, lo, 5.0).class("whisker"))
                .with(line(hi, -5.0, hi, 5.0).class("whisker"));
        }
        if let Some(point) = lane.point {
            marks = marks.with(dot(scale.place(point), 0.0, 5.5).class("dot"));
        }
        let drawing = drawing(&lane.spoken).with(background(scale, guides)).with(marks);
        el("div")
            .class("lane")
            .with(el("div").class("lane-label").with(lane.label))
            .with(el("div").class("lane-plot").with(drawing))
            .with(el("div").class("lane-value").with(lane.value))
    });
    el("figure")
        .class("chart")
        .with(el("figcaption").with(caption))
        .with_all(rows)
        .with(el("div").class("lane axis").with(axis(scale, &tick, guides)))
}

/// Cumulative curves: how much of each series lies at or below a value. `series`: name and
/// deciles from 0 % to 100 %.
pub(super) fn curves(
    caption: &str,
    spoken: &str,
    scale: &Scale,
    tick: impl Fn(f64) -> String,
    series: &[(&str, &[f64])],
) -> Element {
    let (top, bottom) = (10.0, CURVES - 10.0);
    let y = |share: f64| bottom - share * (bottom - top);
    let mut drawing = drawing(spoken).attr("height", CURVES).with(background(scale, &[]));
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        drawing = drawing
            .with(line(PAD, y(share), 100.0 - PAD, y(share)).class("grid"))
            .with(text(0.0, y(share) - 3.0, "start", &format!("{:.0} %", share * 100.0)));
    }
    for (i, (_, deciles)) in series.iter().enumerate() {
        let last = (deciles.len().max(2) - 1) as f64;
        let at = |k: usize| (scale.place(deciles[k]), y(k as f64 / last));
        for k in 1..deciles.len() {
            let ((x0, y0), (x1, y1)) = (at(k - 1), at(k));
            drawing = drawing.with(line(x0, y0, x1, y1).class(SERIES[i % N_SERIES]));
        }
        for k in 0..deciles.len() {
            let (x, y) = at(k);
            drawing = drawing.with(dot(x, y, 3.0).class(SERIES[i % N_SERIES]));
        }
    }
    let legend = series.iter().enumerate().map(|(i, (name, _))| {
        let swatch = el("svg")
            .attr("width", 36)
            .attr("height", 12)
            .attr("aria-hidden", "true")
            .with(line(0.0, 6.0, 100.0, 6.0).class(SERIES[i % N_SERIES]))
            .with(dot(50.0, 6.0, 3.0).class(SERIES[i % N_SERIES]));
        el("li").with(swatch).with(*name)
    });
    el("figure")
        .class("chart curves")
        .with(el("figcaption").with(caption))
        .with(el("ul").class("legend").with_all(legend))
        .with(drawing)
        .with(axis(scale, &tick, &[]))
}

const SERIES: [&str; N_SERIES] = ["s0", "s1", "s2", "s3", "s4", "s5"];

fn drawing(spoken: &str) -> Element {
    el("svg").attr("role", "img").attr("aria-label", spoken)
}

fn background(scale: &Scale, guides: &[Guide]) -> Markup {
    let mut marks = Markup::default();
    for guide in guides {
        if let Guide::Limit(limit) = guide {
            marks.push(
                el("rect")
                    .attr("x", 0)
                    .attr("y", 0)
                    .attr("width", percent(scale.place(*limit)))
                    .attr("height", "100%")
                    .class("beyond"),
            );
        }
    }
    for tick in &scale.ticks {
        marks.push(upright(scale.place(*tick)).class("grid"));
    }
    for guide in guides {
        let (value, class) = match guide {
            Guide::Zero => (0.0, "zero"),
            Guide::Limit(limit) => (*limit, "limit"),
        };
        marks.push(upright(scale.place(value)).class(class));
    }
    marks
}

fn axis(scale: &Scale, tick: &impl Fn(f64) -> String, guides: &[Guide]) -> Element {
    // Above six ticks only every second one has room for its label.
    let every = scale.ticks.len().div_ceil(6);
    let limits = guides.iter().filter_map(|guide| match guide {
        Guide::Limit(limit) => Some(*limit),
        Guide::Zero => None,
    });
    let labels: Markup = scale
        .ticks
        .iter()
        .step_by(every)
        .map(|value| text(scale.place(*value), 15.0, "middle", &tick(*value)))
        .collect();
    let limits: Markup = limits
        .map(|value| text(scale.place(value), 31.0, "middle", "your limit").class("limit-label"))
        .collect();
    let height = if guides.is_empty() { 22 } else { 38 };
    el("svg")
        .attr("height", height)
        .attr("aria-hidden", "true")
        .class("ticks")
        .with(labels)
        .with(limits)
}

fn line(x0: f64, y0: f64, x1: f64, y1: f64) -> Element {
    el("line")
        .attr("x1", percent(x0))
        .attr("y1", pixels(y0))
        .attr("x2", percent(x1))
        .attr("y2", pixels(y1))
}

/// A line from top to bottom.
fn upright(x: f64) -> Element {
    let x = percent(x);
    el("line").attr("x1", &x).attr("y1", 0).attr("x2", &x).attr("y2", "100%")
}

fn dot(x: f64, y: f64, radius: f64) -> Element {
    el("circle").attr("cx", percent(x)).attr("cy", pixels(y)).attr("r", radius)
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> Element {
    el("text").attr("x", percent(x)).attr("y", pixels(y)).attr("text-anchor", anchor).with(content)
}

fn percent(place: f64) -> String {
    format!("{place:.2}%")
}

fn pixels(place: f64) -> String {
    format!("{place:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let scale = Scale::linear([-9.0, 2.3, -5.0]);
        assert_eq!(scale.ticks, [-10.0, -5.0, 0.0, 5.0]);
        assert_eq!((scale.place(-10.0), scale.place(5.0)), (PAD, 100.0 - PAD));
        assert!(Scale::linear([0.93, 0.93]).ticks.len() >= 2);
        assert!(Scale::linear([]).place(f64::NAN).is_nan());
    }

    #[test]
    fn a_wide_spread_is_logarithmic() {
        let scale = Scale::positive([12.0, 480.0]);
        assert!(scale.is_log());
        assert_eq!(scale.ticks, [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert!(!Scale::positive([12.0, 48.0]).is_log());
        assert!(!Scale::positive([]).is_log());
    }

    #[test]
    fn a_chart_speaks_and_marks_the_limit() {
        let lane = Lane {
            label: "open".into(),
            point: Some(-3.3),
            interval: Some((-9.0, 2.3)),
            value: "−3.3".into(),
            spoken: "open 3.3 worse".to_owned(),
        };
        let scale = Scale::linear([-9.0, 2.3, -5.0, 0.0]);
        let figure =
            lanes("c", &scale, |v| v.to_string(), &[Guide::Zero, Guide::Limit(-5.0)], vec![lane]);
        let html = Markup::from(figure).into_string();
        for part in
            ["aria-label=\"open 3.3 worse\"", "class=\"zero\"", "class=\"limit\"", "your limit"]
        {
            assert!(html.contains(part), "{part} in {html}");
        }
    }
}
