//! What was measured: told as it comes, and kept as JSON.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Result;
use crate::series::Series;

/// One quantity, of which more is better: ours, and beside it those of peers from the same rounds.
#[derive(Debug)]
pub struct Comparison {
    /// What is measured, with lengths.
    pub what: String,
    /// What is asked: the name of a model's file without ending, or the form of an answer.
    pub model: String,
    /// Unit of the rates.
    pub unit: &'static str,
    /// Name and rates of ours.
    pub ours: (String, Series),
    /// Those of the peers.
    pub peers: Vec<Peer>,
}

/// A peer's rates and what ours are to be over them.
#[derive(Debug)]
pub struct Peer {
    /// Name of the peer.
    pub name: String,
    /// Its rates, of the same rounds as ours.
    pub rates: Series,
    /// What our rate over its is to be at least.
    pub goal: Option<f64>,
}

impl Peer {
    /// A peer, with or without a goal.
    pub fn new(name: impl Into<String>, rates: Series, goal: impl Into<Option<f64>>) -> Self {
        Self { name: name.into(), rates, goal: goal.into() }
    }
}

/// Everything of a run. Written to its file whenever something is added, so that a run that was
/// broken off leaves what it had.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    about: Value,
    comparisons: Vec<Value>,
    findings: Vec<Value>,
    n_goals: usize,
    n_missed: usize,
}

impl Report {
    /// An empty report with the facts of the run.
    pub fn new(file: PathBuf, about: Value) -> Self {
        let (comparisons, findings) = (Vec::new(), Vec::new());
        Self { file, about, comparisons, findings, n_goals: 0, n_missed: 0 }
    }

    /// Adds a fact about the run.
    pub fn note(&mut self, name: &str, value: Value) -> Result<()> {
        self.about[name] = value;
        self.save()
    }

    /// Adds and prints a comparison.
    pub fn compare(&mut self, comparison: Comparison) -> Result<()> {
        let Comparison { what, model, unit, ours: (name, ours), peers } = comparison;
        println!("\n{model}  {what}, {unit}");
        println!("  {}", row(&name, &ours));
        let mut against = Vec::new();
        for Peer { name, rates, goal } in peers {
            let ratio = ours.over(&rates);
            let is_met = goal.map(|goal| ratio.median() >= goal);
            let verdict = match (goal, is_met) {
                (Some(goal), Some(true)) => format!("  goal {goal}: met"),
                (Some(goal), _) => format!("  goal {goal}: MISSED"),
                (None, _) => String::new(),
            };
            self.n_goals += usize::from(is_met.is_some());
            self.n_missed += usize::from(is_met == Some(false));
            let (median, min, max) = (ratio.median(), ratio.min(), ratio.max());
            println!(
                "  {}  ours is {median:.2} times it ({min:.2}–{max:.2}){verdict}",
                row(&name, &rates)
            );
            against.push(json!({
                "peer": name, "rates": rates.to_json(), "ratio": ratio.to_json(), "goal": goal,
                "met": is_met,
            }));
        }
        self.comparisons.push(json!({
            "model": model, "what": what, "unit": unit, "ours": name, "rates": ours.to_json(),
            "peers": against,
        }));
        self.save()
    }

    /// Adds and prints what is no comparison of rates. `met`: whether what must hold did.
    pub fn find(
        &mut self,
        model: &str,
        what: &str,
        values: &Value,
        met: Option<bool>,
    ) -> Result<()> {
        let verdict = met.map_or("", |met| if met { "  met" } else { "  MISSED" });
        println!("\n{model}  {what}{verdict}\n  {values}");
        self.n_goals += usize::from(met.is_some());
        self.n_missed += usize::from(met == Some(false));
        self.findings.push(json!({ "model": model, "what": what, "values": values, "met": met }));
        self.save()
    }

    /// Prints how many goals were met and where the report lies.
    pub fn finish(&self) {
        let n_met = self.n_goals - self.n_missed;
        println!("\n{n_met} of {} goals met; {}", self.n_goals, self.file.display());
    }

    fn save(&self) -> Result<()> {
        let report = json!({
            "about": self.about, "comparisons": self.comparisons, "findings": self.findings,
        });
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&self.file, text + "\n")
            .map_err(|e| format!("cannot write {}: {e}", self.file.display()).into())
    }
}

fn row(name: &str, rates: &Series) -> String {
    let range = format!("({:.1}–{:.1})", rates.min(), rates.max());
    format!("{name:<34} {:>9.1} {range:<19}", rates.median())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        values.iter().copied().collect()
    }

    #[test]
    fn a_goal_is_judged_by_the_median_of_the_ratios_and_all_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new(dir.path().join("report.json"), json!({ "run": 1 }));
        let peers = vec![
            Peer::new("slow", series(&[5.0, 5.0, 50.0]), 2.0),
            Peer::new("fast", series(&[20.0, 20.0, 20.0]), 2.0),
            Peer::new("other", series(&[20.0, 20.0, 20.0]), None),
        ];
        let ours = ("ours".to_owned(), series(&[10.0, 10.0, 10.0]));
        let (what, model) = ("prefill".to_owned(), "tiny".to_owned());
        report.compare(Comparison { what, model, unit: "tokens/s", ours, peers }).unwrap();
        assert_eq!((report.n_goals, report.n_missed), (2, 1));

        let text = fs::read_to_string(dir.path().join("report.json")).unwrap();
        let kept: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(kept["about"]["run"], 1);
        let peers = &kept["comparisons"][0]["peers"];
        assert_eq!(peers[0]["ratio"]["median"], 2.0);
        assert_eq!(peers[0]["ratio"]["min"], 0.2);
        assert_eq!((&peers[0]["met"], &peers[1]["met"]), (&json!(true), &json!(false)));
        assert_eq!(peers[2]["met"], Value::Null);
    }
}
