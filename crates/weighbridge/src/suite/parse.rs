//! Reading a suite: every mistake is named with its place and its remedy.

use std::collections::BTreeSet;
use std::path::Path;

use weighbridge_core::{Error, ErrorKind, ModelRef, Result};

use super::{Expect, RequestSettings, SUITE_VERSION, Suite};

/// Suites are written by hand; a larger file is a mistake.
const MAX_SUITE_BYTES: u64 = 4 << 20;

/// Options with a default that some models refuse.
const OMITTABLE: [&str; 2] = ["temperature", "max_tokens"];

/// Reads and checks a suite file.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] that names file, line, key and remedy.
pub fn read(path: &Path) -> Result<Suite> {
    let shown = path.display();
    let size = std::fs::metadata(path)
        .map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot read the suite {shown}"))
                .with_source(e)
        })?
        .len();
    if size > MAX_SUITE_BYTES {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{shown} is too large for a suite"),
        )
        .with("bytes", size)
        .with("limit", MAX_SUITE_BYTES));
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, format!("cannot read the suite {shown}")).with_source(e)
    })?;
    let base_dir = path.parent().unwrap_or(Path::new(""));
    read_str(&text, base_dir, &shown.to_string())
}

/// Reads and checks a suite from text; `shown` names it in messages.
///
/// # Errors
/// As [`read`].
pub fn read_str(text: &str, base_dir: &Path, shown: &str) -> Result<Suite> {
    let mut suite: Suite = toml::from_str(text).map_err(|error| describe(&error, text, shown))?;
    suite.base_dir = base_dir.to_owned();
    check(&suite)
        .map_err(|message| Error::new(ErrorKind::InvalidInput, format!("{shown}: {message}")))?;
    Ok(suite)
}

fn describe(error: &toml::de::Error, text: &str, shown: &str) -> Error {
    let place = match error.span() {
        Some(span) => {
            let before = &text[..span.start.min(text.len())];
            format!("{shown}:{}", before.matches('\n').count() + 1)
        }
        None => shown.to_owned(),
    };
    let message = error.message();
    let hint = unknown_field(message)
        .and_then(|(field, known)| nearest(field, known.iter().copied()).map(str::to_owned))
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default();
    let message = message.trim_end().replace('\n', " ");
    Error::new(ErrorKind::InvalidInput, format!("{place}: {message}{hint}"))
}

/// Takes "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let field = names.next()?;
    Some((field, names.collect()))
}

/// The known name nearest to `name`, if one is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.chars().count().div_ceil(3).max(1);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, k)| k)
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn check(suite: &Suite) -> Result<(), String> {
    if suite.version != SUITE_VERSION {
        return Err(format!(
            "`version` is {}, this build reads version {SUITE_VERSION}",
            suite.version
        ));
    }
    if !is_plain_name(&suite.name) {
        return Err(format!(
            "`name` is {:?}; use 1 to 64 letters, digits, `.`, `_`, `-`",
            suite.name
        ));
    }
    if suite.candidates.is_empty() {
        return Err("there is no [[candidate]]".to_owned());
    }
    let mut names = BTreeSet::new();
    for candidate in &suite.candidates {
        let name = candidate.name.as_str();
        if !is_plain_name(name) {
            return Err(format!(
                "candidate name {name:?}; use 1 to 64 letters, digits, `.`, `_`, `-`"
            ));
        }
        if !names.insert(name) {
            return Err(format!("two candidates are named `{name}`"));
        }
        if !candidate.model.contains("${") {
            candidate.model.parse::<ModelRef>().map_err(|e| format!("candidate `{name}`: {e}"))?;
        }
        if let Some(price) = &candidate.price {
            let numbers = [
                ("input_per_million", price.input_per_million),
                ("output_per_million", price.output_per_million),
                ("cached_input_per_million", price.cached_input_per_million.unwrap_or(0.0)),
                ("fixed_per_month", price.fixed_per_month),
            ];
            for (key, value) in numbers {
                if !(value.is_finite() && value >= 0.0) {
                    return Err(format!("candidate `{name}`: price.{key} is {value}"));
                }
            }
            if price.batch_factor.is_some_and(|factor| !(factor > 0.0 && factor <= 1.0)) {
                return Err(format!(
                    "candidate `{name}`: price.batch_factor must be above 0 and at most 1, such as \
                     0.5 for half the price"
                ));
            }
            if !is_date(&price.as_of) {
                return Err(format!(
                    "candidate `{name}`: price.as_of is {:?}; write YYYY-MM-DD",
                    price.as_of
                ));
            }
            if price.source.trim().is_empty() {
                return Err(format!("candidate `{name}`: price.source is empty"));
            }
        }
        check_omit(&format!("candidate `{name}`"), &candidate.request)?;
        if candidate.concurrency == Some(0) {
            return Err(format!("candidate `{name}`: concurrency must be at least 1"));
        }
    }
    let known = || suite.candidates.iter().map(|c| c.name.as_str());
    let find = |what: &str, name: &str| -> Result<(), String> {
        if suite.candidate(name).is_some() {
            return Ok(());
        }
        let hint = nearest(name, known()).map(|n| format!("; did you mean `{n}`?"));
        Err(format!(
            "{what} names the candidate `{name}`, which does not exist{}",
            hint.unwrap_or_else(|| format!(
                "; there are {}",
                known().collect::<Vec<_>>().join(", ")
            ))
        ))
    };
    find("`current`", &suite.current)?;
    if suite.candidate(&suite.current).is_some_and(|c| c.control_only) {
        return Err("`current` names a candidate that is control_only".to_owned());
    }
    let mut evaluator_names = BTreeSet::new();
    for evaluator in &suite.evaluators {
        if !evaluator_names.insert(evaluator.name()) {
            return Err(format!(
                "two evaluators are named `{}`; give one a `name`",
                evaluator.name()
            ));
        }
    }
    for control in &suite.controls {
        let what = format!("control `{}`", control.name);
        find(&what, &control.reference)?;
        find(&what, &control.candidate)?;
        let slice_ok = control.slice.as_deref().is_some_and(|s| s.contains('='));
        if control.expect == Expect::BadSlice && !slice_ok {
            return Err(format!("{what} needs `slice = \"column=value\"`"));
        }
    }
    check_omit("[request]", &suite.request)?;
    let d = &suite.decision;
    if !(d.margin_points > 0.0 && d.margin_points < 100.0) {
        return Err(format!(
            "decision.margin_points is {}; it must be above 0 and below 100",
            d.margin_points
        ));
    }
    if !(d.confidence > 0.5 && d.confidence < 1.0) {
        return Err(format!(
            "decision.confidence is {}; it must be above 0.5 and below 1, such as 0.95",
            d.confidence
        ));
    }
    let r = &suite.run;
    if !(1..=1000).contains(&r.repeats) {
        return Err(format!("run.repeats is {}; it must be 1 to 1000", r.repeats));
    }
    if !(1..=20).contains(&r.max_attempts) {
        return Err(format!("run.max_attempts is {}; it must be 1 to 20", r.max_attempts));
    }
    if !(r.timeout_s.is_finite() && r.timeout_s > 0.0 && r.timeout_s <= 86_400.0) {
        return Err(format!("run.timeout_s is {}; it must be above 0", r.timeout_s));
    }
    if !(r.batch_poll_s > 0.0 && r.batch_poll_s <= 3600.0) {
        return Err(format!(
            "run.batch_poll_s is {}; it must be above 0 and at most 3600",
            r.batch_poll_s
        ));
    }
    if !(r.batch_wait_h > 0.0 && r.batch_wait_h <= 24.0 * 30.0) {
        return Err(format!(
            "run.batch_wait_h is {}; it must be above 0 and at most 720",
            r.batch_wait_h
        ));
    }
    if !(r.spend_cap_usd.is_finite() && r.spend_cap_usd >= 0.0) {
        return Err(format!("run.spend_cap_usd is {}; it must be 0 or more", r.spend_cap_usd));
    }
    Ok(())
}

fn check_omit(place: &str, settings: &RequestSettings) -> Result<(), String> {
    for name in settings.omit.iter().flatten() {
        if !OMITTABLE.contains(&name.as_str()) {
            return Err(format!(
                "{place}: `omit` names `{name}`; it can name {}",
                OMITTABLE.join(", ")
            ));
        }
    }
    Ok(())
}

fn is_date(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    let number = |s: &str, n: usize| (s.len() == n).then(|| s.parse::<u32>().ok()).flatten();
    number(year, 4).is_some()
        && number(month, 2).is_some_and(|m| (1..=12).contains(&m))
        && number(day, 2).is_some_and(|d| (1..=31).contains(&d))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
version = 1
name = "triage"
current = "closed"
[data]
file = "emails.jsonl"
[prompt]
user = "{{ email }}"
[[candidate]]
name = "closed"
model = "openai:gpt"
[[candidate]]
name = "open"
model = "candle:models/open"
[[evaluator]]
kind = "exact_match"
target = "answer"
"#;

    fn parse(text: &str) -> Result<Suite, String> {
        read_str(text, Path::new("/x"), "suite.toml").map_err(|e| e.to_string())
    }

    #[test]
    fn a_small_suite_gets_the_documented_defaults() {
        let suite = parse(GOOD).unwrap();
        assert_eq!(suite.decision, Decision::default());
        assert_eq!(suite.run, RunSettings::default());
        assert_eq!(suite.evaluators[0].options["target"], "answer");
    }

    use super::super::{Decision, RunSettings};

    #[test]
    fn mistakes_name_the_line_and_what_was_meant() {
        let cases = [
            (GOOD.replace("current =", "curent ="), "suite.toml:4", "did you mean `current`?"),
            (GOOD.replace("file =", "flie ="), "suite.toml:6", "did you mean `file`?"),
            (
                GOOD.replace("current = \"closed\"", "current = \"close\""),
                "",
                "did you mean `closed`?",
            ),
            (GOOD.replace("version = 1", "version = 2"), "", "this build reads version 1"),
            (GOOD.replace("openai:gpt", "gpt"), "candidate `closed`", "PROVIDER:LOCATION"),
            (GOOD.replace("name = \"open\"", "name = \"closed\""), "", "two candidates are named"),
            (GOOD.replace("[prompt]\nuser = \"{{ email }}\"", ""), "", "missing field `prompt`"),
            (format!("{GOOD}\n[decision]\nmargin_points = 0"), "", "above 0 and below 100"),
        ];
        for (text, place, remedy) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(place) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn the_suite_of_engines_holds_one_model_in_all_of_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/suites/engines.toml");
        let suite = read(&path).unwrap();
        assert_eq!(suite.candidates.len(), 4);
        for candidate in &suite.candidates {
            assert_eq!(candidate.weights_of.as_deref(), Some("triage-open"), "{}", candidate.name);
            let file = suite.resolve(Path::new(&suite.model(candidate).unwrap().location));
            assert!(file.exists(), "{}", file.display());
        }
    }

    #[test]
    fn nearest_does_not_guess_wildly() {
        assert_eq!(nearest("promt", ["prompt", "data"]), Some("prompt"));
        assert_eq!(nearest("zzz", ["prompt", "data"]), None);
    }
}
