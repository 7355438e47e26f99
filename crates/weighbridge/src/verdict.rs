//! From evidence to action. The burden of proof lies on change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weighbridge_core::{Placement, Weights};

use crate::compare::{Cause, Comparison, EvidenceKind, SliceFinding};
use crate::report::{CandidateReport, ControlReport, ControlResult, Report};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Keep the candidate in use.
    Stay,
    /// Change to the challenger.
    Switch,
    /// Send some slices to the challenger, keep the others.
    Hybrid,
    /// Nothing is proven, and what was seen speaks for the challenger: try it beside the one in use.
    Pilot,
    /// No advice can be given.
    NotEnoughEvidence,
}

/// How an axis bears on the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Bearing {
    /// It decides.
    Decides,
    /// Known, and it does not change the decision.
    DoesNotMatter,
    /// Not known.
    Unknown,
}

/// One axis of the decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Axis {
    /// `quality`, `cost`, `latency`, `egress`, `licence` or `effort`.
    pub name: String,
    /// How it bears on the decision.
    pub bearing: Bearing,
    /// In words.
    pub text: String,
}

/// What follows from the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verdict {
    /// What to do.
    pub action: Action,
    /// The candidate in use.
    pub current: String,
    /// The challenger it is about, if there is one.
    pub challenger: Option<String>,
    /// For [`Action::Hybrid`]: slices to send to the challenger.
    pub slices: Vec<String>,
    /// In one sentence, or two.
    pub sentence: String,
    /// The axes.
    pub axes: Vec<Axis>,
    /// The next step.
    pub next: String,
}

/// Smallest share of the samples that makes a hybrid worth its effort.
const MIN_HYBRID_SHARE: f64 = 0.2;

/// A challenger that is this many times slower, in the median, is worth a word.
const LATENCY_RATIO: f64 = 1.5;

/// Draws the verdict. `report.verdict` is not read.
pub fn judge(report: &Report) -> Verdict {
    let current = report.candidates.iter().find(|c| c.is_current);
    let current_name = current.map_or(String::new(), |c| c.name.clone());
    if let Some(failed) = report.controls.iter().find(|c| c.result == ControlResult::Failed) {
        return broken_scale(&current_name, failed);
    }
    let verdicts = report.comparisons.iter().filter_map(|comparison| {
        let challenger = report.candidates.iter().find(|c| c.name == comparison.candidate)?;
        let gap = comparison.difference.as_ref().map_or(f64::NEG_INFINITY, |d| d.points);
        Some((decide(comparison, current?, challenger), gap))
    });
    // The most useful action; among equals the challenger that scored best.
    let best = verdicts.max_by(|(a, gap_a), (b, gap_b)| {
        rank(a.action).cmp(&rank(b.action)).then(gap_a.total_cmp(gap_b))
    });
    best.map(|(verdict, _)| verdict).unwrap_or_else(|| Verdict {
        action: Action::NotEnoughEvidence,
        current: current_name.clone(),
        challenger: None,
        slices: Vec::new(),
        sentence: format!(
            "Nothing to compare {current_name} with: the suite has no other candidate."
        ),
        axes: Vec::new(),
        next: "add a second [[candidate]] to the suite".to_owned(),
    })
}

fn rank(action: Action) -> u8 {
    match action {
        Action::Switch => 4,
        Action::Hybrid => 3,
        Action::Pilot => 2,
        Action::Stay => 1,
        Action::NotEnoughEvidence => 0,
    }
}

fn broken_scale(current: &str, failed: &ControlReport) -> Verdict {
    Verdict {
        action: Action::NotEnoughEvidence,
        current: current.to_owned(),
        challenger: None,
        slices: Vec::new(),
        sentence: format!(
            "No verdict: the control \u{201c}{}\u{201d} did not come out as it must ({}), so this \
             set-up cannot be trusted.",
            failed.name, failed.finding
        ),
        axes: Vec::new(),
        next: "look at the control's comparison in report.html".to_owned(),
    }
}

struct Gains {
    /// The challenger is cheaper, dearer, or it is not known.
    cheaper: Option<bool>,
    /// Prompts stay on this machine with the challenger and do not with the one in use.
    stays_here: bool,
}

fn gains(current: &CandidateReport, challenger: &CandidateReport) -> Gains {
    let fixed = |c: &CandidateReport| c.price.as_ref().map_or(0.0, |p| p.fixed_per_month);
    let cheaper = match (&current.cost, &challenger.cost) {
        (Some(a), Some(b)) => match (a.per_month_usd, b.per_month_usd) {
            (Some(a), Some(b)) => Some(b < a),
            // What is paid whatever is used cannot be shared out without a volume.
            _ if fixed(current) > 0.0 || fixed(challenger) > 0.0 => None,
            _ => Some(b.per_call_usd < a.per_call_usd),
        },
        _ => None,
    };
    Gains {
        cheaper,
        stays_here: leaves(current) == Some(true) && leaves(challenger) == Some(false),
    }
}

/// Whether prompts leave this machine; `None` where that is not known.
fn leaves(c: &CandidateReport) -> Option<bool> {
    match (&c.card.placement, c.card.weights) {
        // Whoever has closed weights ran them elsewhere.
        (Placement::Recorded, Weights::Closed) => Some(true),
        (Placement::Recorded, _) => None,
        (placement, _) => Some(!placement.is_local()),
    }
}

fn decide(
    comparison: &Comparison,
    current: &CandidateReport,
    challenger: &CandidateReport,
) -> Verdict {
    let gains = gains(current, challenger);
    let evidence = &comparison.evidence;
    let has_worse = comparison.slices.iter().any(|s| s.finding == SliceFinding::Worse);
    let (good, share) = routable(comparison);
    let (from, to) = (&current.name, &challenger.name);
    let has_gain = gains.stays_here || gains.cheaper == Some(true);
    let is_good_enough = matches!(evidence.kind, EvidenceKind::Better | EvidenceKind::NonInferior);
    let gains_quality = evidence.kind == EvidenceKind::Better
        || comparison
            .slices
            .iter()
            .any(|s| good.contains(&s.slice) && s.finding == SliceFinding::Better);
    // A hybrid sends only slices there that are proven good enough, where that is worth something.
    let can_split = share >= MIN_HYBRID_SHARE
        && (has_gain || gains_quality)
        && matches!(evidence.cause, None | Some(Cause::TooFewSamples));
    let looks_better = comparison.difference.as_ref().is_some_and(|d| d.points >= 0.0);
    let action = match (evidence.kind, evidence.cause) {
        (EvidenceKind::Better, _) if !has_worse => Action::Switch,
        (EvidenceKind::NonInferior, _) if !has_worse && has_gain => Action::Switch,
        (EvidenceKind::NonInferior, _) if !has_worse => Action::Stay,
        _ if can_split => Action::Hybrid,
        (EvidenceKind::NotProven, Some(Cause::TooFewSamples)) if looks_better => Action::Pilot,
        (EvidenceKind::NotProven, Some(Cause::TooFewSamples)) => Action::Stay,
        (EvidenceKind::NotProven, _) => Action::NotEnoughEvidence,
        _ => Action::Stay,
    };
    let seen = &evidence.sentence;
    let mut sentence = match action {
        Action::Switch => format!("Switch from {from} to {to}: {seen}."),
        Action::Hybrid => format!(
            "Run a hybrid: {to} for {}, {from} for the rest. Over all, {to} was {seen}. The slices \
             were chosen on these samples: confirm them on new ones.",
            good.join(", ")
        ),
        Action::Pilot => {
            format!("Pilot {to} beside {from}; not proven either way. {to} was {seen}.")
        }
        Action::Stay if evidence.kind == EvidenceKind::NotProven => {
            format!("Stay with {from} for now; not proven either way. {to} was {seen}.")
        }
        Action::Stay if is_good_enough && has_worse => {
            let worse = slices_of(comparison, SliceFinding::Worse).join(", ");
            format!("Stay with {from}: {to} was {seen}, but worse on {worse}.")
        }
        Action::Stay if is_good_enough => format!(
            "Stay with {from}: {to} is good enough ({seen}), but neither cheaper nor more private."
        ),
        Action::Stay => format!("Stay with {from}: {to} was {seen}."),
        Action::NotEnoughEvidence => format!("Not enough evidence to leave {from}: {seen}."),
    };
    if comparison.n_withheld > 0 {
        sentence += &format!(
            " {} sensitive samples that one side must not see are outside of this.",
            comparison.n_withheld
        );
    }
    if comparison.agreement.is_same_weights {
        sentence += &same_weights(comparison, current, challenger);
    }
    let slices = if action == Action::Hybrid { good } else { Vec::new() };
    Verdict {
        action,
        current: from.clone(),
        challenger: Some(to.clone()),
        slices,
        sentence,
        axes: axes(comparison, current, challenger, &gains, action),
        next: next_step(action, evidence.cause, comparison),
    }
}

/// That two candidates are one model, so that nobody reads the verdict as one on two models.
fn same_weights(
    comparison: &Comparison,
    current: &CandidateReport,
    challenger: &CandidateReport,
) -> String {
    let engine = |c: &CandidateReport| match &c.card.engine {
        Some(engine) => engine.name.clone(),
        None => c.card.provider.clone(),
    };
    let shown = |c: &CandidateReport| match &c.card.quantization {
        Some(quantization) => format!("{} {quantization}", engine(c)),
        None => engine(c),
    };
    let place = match engine(current) == engine(challenger) {
        true => "two set-ups",
        false => "two engines",
    };
    let agreement = &comparison.agreement;
    let mut text = format!(
        " These are the same weights in {place} ({}; {})",
        shown(current),
        shown(challenger)
    );
    text += &match agreement.n_both_answered {
        0 => ".".to_owned(),
        n => format!(
            ": {} of {} answers are the same.",
            crate::compare::grouped(agreement.n_same_answer),
            crate::compare::grouped(n)
        ),
    };
    if matches!(comparison.evidence.kind, EvidenceKind::Better | EvidenceKind::Worse) {
        text += " Look first for what differs: precision, chat template, tokenizer, settings.";
    }
    text
}

fn slices_of(comparison: &Comparison, wanted: SliceFinding) -> Vec<String> {
    let slices = comparison.slices.iter().filter(|s| s.finding == wanted);
    slices.map(|s| s.slice.clone()).collect()
}

/// Slices proven good enough, of the one column in which they cover most, and the share of that
/// column's samples that they cover. Slices of different columns overlap and cannot be mixed.
fn routable(comparison: &Comparison) -> (Vec<String>, f64) {
    let mut columns: BTreeMap<&str, (Vec<String>, u64, u64)> = BTreeMap::new();
    for slice in &comparison.slices {
        let column = slice.slice.split('=').next().unwrap_or("");
        let (good, n_good, n_all) = columns.entry(column).or_default();
        *n_all += slice.n_pairs;
        if matches!(slice.finding, SliceFinding::NonInferior | SliceFinding::Better) {
            good.push(slice.slice.clone());
            *n_good += slice.n_pairs;
        }
    }
    let best = columns.into_values().max_by_key(|(_, n_good, _)| *n_good);
    best.map_or((Vec::new(), 0.0), |(good, n_good, n_all)| {
        (good, n_good as f64 / (n_all as f64).max(1.0))
    })
}

fn axes(
    comparison: &Comparison,
    current: &CandidateReport,
    challenger: &CandidateReport,
    gains: &Gains,
    action: Action,
) -> Vec<Axis> {
    let axis = |name: &str, bearing, text| Axis { name: name.to_owned(), bearing, text };
    let quality_decides = match comparison.evidence.kind {
        EvidenceKind::NotProven => Bearing::Unknown,
        EvidenceKind::NonInferior if action == Action::Switch => Bearing::DoesNotMatter,
        _ => Bearing::Decides,
    };
    let share = |c: &CandidateReport| match c.quality.first().and_then(|q| q.mean) {
        Some(mean) => format!("{} {:.1} %", c.name, mean * 100.0),
        None => format!("{} not scored", c.name),
    };
    let quality = format!("{}, {}", share(current), share(challenger));
    let switch = action == Action::Switch;
    vec![
        axis("quality", quality_decides, quality),
        cost_axis(current, challenger, gains, switch),
        latency_axis(current, challenger),
        egress_axis(current, challenger, gains, switch),
        licence_axis(challenger),
        effort_axis(challenger),
    ]
}

fn is_demo(c: &CandidateReport) -> bool {
    c.card.weights == Weights::StandIn
}

fn cost_axis(
    current: &CandidateReport,
    challenger: &CandidateReport,
    gains: &Gains,
    switch: bool,
) -> Axis {
    let (bearing, text) = if is_demo(current) || is_demo(challenger) {
        (Bearing::Unknown, "not meaningful: a stand-in has no price".to_owned())
    } else {
        match (&current.cost, &challenger.cost) {
            (Some(a), Some(b)) => {
                let month = |c: &crate::report::Cost| {
                    c.per_month_usd.map_or(String::new(), |m| format!(", USD {m:.2} a month"))
                };
                let text = format!(
                    "{} USD {:.6} a call{}; {} USD {:.6} a call{}",
                    current.name,
                    a.per_call_usd,
                    month(a),
                    challenger.name,
                    b.per_call_usd,
                    month(b)
                );
                let decides = switch && gains.cheaper == Some(true);
                (if decides { Bearing::Decides } else { Bearing::DoesNotMatter }, text)
            }
            _ => {
                let without: Vec<_> = [current, challenger]
                    .iter()
                    .filter(|c| c.cost.is_none())
                    .map(|c| c.name.as_str())
                    .collect();
                (
                    Bearing::Unknown,
                    format!("cost not compared: no price for {}", without.join(" and ")),
                )
            }
        }
    };
    Axis { name: "cost".to_owned(), bearing, text }
}

fn latency_axis(current: &CandidateReport, challenger: &CandidateReport) -> Axis {
    let shown = |c: &CandidateReport| {
        c.latency.as_ref().map(|l| format!("{} p50 {} p95 {}", c.name, ms(l.p50_ms), ms(l.p95_ms)))
    };
    let (bearing, text) = match (shown(current), shown(challenger)) {
        (Some(a), Some(b)) => {
            let median = |c: &CandidateReport| c.latency.as_ref().map_or(0.0, |l| l.p50_ms);
            let ratio = median(challenger) / median(current).max(1e-9);
            let note = if ratio > LATENCY_RATIO {
                format!(" ({ratio:.1} times as slow)")
            } else if ratio < 1.0 / LATENCY_RATIO {
                format!(" ({:.1} times as fast)", 1.0 / ratio)
            } else {
                String::new()
            };
            (Bearing::DoesNotMatter, format!("{a}; {b}{note}"))
        }
        (a, b) => {
            let known = a.or(b).map(|s| format!("; {s}")).unwrap_or_default();
            (Bearing::Unknown, format!("not measured on both sides{known}"))
        }
    };
    Axis { name: "latency".to_owned(), bearing, text }
}

/// Milliseconds for a person: three significant digits, seconds from a thousand on.
pub(crate) fn ms(value: f64) -> String {
    if value >= 1000.0 {
        format!("{:.2} s", value / 1000.0)
    } else if value >= 100.0 {
        format!("{value:.0} ms")
    } else if value >= 10.0 {
        format!("{value:.1} ms")
    } else {
        format!("{value:.2} ms")
    }
}

fn egress_axis(
    current: &CandidateReport,
    challenger: &CandidateReport,
    gains: &Gains,
    switch: bool,
) -> Axis {
    let shown = |c: &CandidateReport| format!("{}: {}", c.name, c.egress.destination);
    let decides = switch && gains.stays_here;
    Axis {
        name: "egress".to_owned(),
        bearing: if decides { Bearing::Decides } else { Bearing::DoesNotMatter },
        text: format!("{}; {}", shown(current), shown(challenger)),
    }
}

fn licence_axis(challenger: &CandidateReport) -> Axis {
    let (bearing, text) = match &challenger.card.license {
        Some(licence) => (
            Bearing::DoesNotMatter,
            format!("{}: {licence} (as declared; read the text)", challenger.name),
        ),
        None => {
            (Bearing::Unknown, format!("{}: none declared; read it before use", challenger.name))
        }
    };
    Axis { name: "licence".to_owned(), bearing, text }
}

fn effort_axis(challenger: &CandidateReport) -> Axis {
    let text = match (&challenger.card.placement, challenger.card.weights) {
        (Placement::InProcess, _) => "you run the model: hardware, updates, on-call are yours",
        (Placement::LocalServer { .. }, _) => "you run a model server beside your program",
        (Placement::Network { .. }, Weights::Open) => "somebody else runs an open model for you",
        (Placement::Network { .. }, _) => "an API: no hardware, the vendor may change the model",
        _ => "not known for recorded answers",
    };
    let bearing = match challenger.card.placement {
        Placement::Recorded => Bearing::Unknown,
        _ => Bearing::DoesNotMatter,
    };
    Axis { name: "effort".to_owned(), bearing, text: format!("{}: {text}", challenger.name) }
}

fn next_step(action: Action, cause: Option<Cause>, comparison: &Comparison) -> String {
    let more = |n: Option<u64>| match n {
        Some(n) => format!("collect about {} samples and run again", crate::compare::count(n)),
        None => "collect more samples and run again".to_owned(),
    };
    match (action, cause) {
        (_, Some(Cause::NoGoldAnswers)) => {
            "read the disagreements in report.html, mark who is right, add an [[evaluator]]"
                .to_owned()
        }
        (_, Some(Cause::MissingAnswers | Cause::NoPairs)) => {
            "mend what failed (report.html lists it) and continue with --resume".to_owned()
        }
        (_, Some(Cause::NobodyRight)) => {
            "read some answers in report.html, then mend prompt, max_tokens or evaluator".to_owned()
        }
        (_, Some(Cause::TooFewClusters)) => {
            "collect samples of more clusters, and run again".to_owned()
        }
        (_, Some(Cause::ReadingSheet)) => "collect at least 30 samples and run again".to_owned(),
        (Action::Stay | Action::Pilot, Some(Cause::TooFewSamples)) => {
            more(comparison.power.n_if_zero.max(comparison.power.n_if_real))
        }
        (Action::Switch, _) => "read the disagreements in report.html, then switch".to_owned(),
        (Action::Hybrid, _) => "confirm the slices on samples that were not in this run".to_owned(),
        _ => "read the disagreements in report.html".to_owned(),
    }
}
