//! What a run will do, before it does it: models opened, requests checked, price and power known.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use weighbridge_core::{
    Backend, Egress, EgressEntry, EgressLedger, EgressScope, Error, ErrorKind, Evaluator, Message,
    ModelCard, NoSecrets, OpenContext, Part, Placement, Prompt, Registry, Request, Result,
    Sampling, Secrets, Weights, block_on, check_options,
};

use crate::data::{Dataset, Row, load};
use crate::prompt::Prompter;
use crate::recorded::{self, EXTRA_KEY};
use crate::suite::{Candidate, DEFAULT_MAX_TOKENS, RequestSettings, Suite};

/// Calls at once where the suite does not say.
const DEFAULT_CONCURRENCY: u32 = 4;

/// What a program gives to a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Environment {
    /// The plugins there are.
    pub registry: Registry,
    /// Where keys come from.
    pub secrets: Arc<dyn Secrets>,
}

impl Environment {
    /// These plugins, the built-in evaluators, and no keys.
    pub fn new(mut registry: Registry) -> Self {
        let builtin = crate::evaluators::plugin();
        if !registry.plugins().iter().any(|plugin| plugin.id == builtin.id) {
            // It fails only where another plugin took one of its ids; then that one is meant.
            let _ = registry.add(builtin);
        }
        Self { registry, secrets: Arc::new(NoSecrets) }
    }

    /// Sets where keys come from.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Arc<dyn Secrets>) -> Self {
        self.secrets = secrets;
        self
    }
}

/// What left the process, per host.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Vec<LedgerLine>>);

/// One host's line of the [`Ledger`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LedgerLine {
    /// Host, with port.
    pub host: String,
    /// Whether its address was a loopback address.
    pub is_loopback: bool,
    /// Exchanges, failed ones included.
    pub n_exchanges: u64,
    /// Bytes of request bodies.
    pub n_bytes_sent: u64,
    /// Bytes of response bodies.
    pub n_bytes_received: u64,
}

impl Ledger {
    /// The lines so far, by host.
    pub fn lines(&self) -> Vec<LedgerLine> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lines.sort_by(|a, b| a.host.cmp(&b.host));
        lines
    }
}

impl EgressLedger for Ledger {
    fn record(&self, entry: EgressEntry) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lines
            .iter_mut()
            .find(|line| line.host == entry.host && line.is_loopback == entry.is_loopback);
        match found {
            Some(line) => {
                line.n_exchanges += 1;
                line.n_bytes_sent += entry.n_bytes_sent;
                line.n_bytes_received += entry.n_bytes_received;
            }
            None => lines.push(LedgerLine {
                host: entry.host,
                is_loopback: entry.is_loopback,
                n_exchanges: 1,
                n_bytes_sent: entry.n_bytes_sent,
                n_bytes_received: entry.n_bytes_received,
            }),
        }
    }
}

/// A candidate with its opened model.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arm {
    /// As the suite has it.
    pub candidate: Candidate,
    /// The opened model.
    pub backend: Arc<dyn Backend>,
    /// What it is, with the suite's labels applied.
    pub card: ModelCard,
    /// How it is asked, defaults filled in.
    pub settings: RequestSettings,
    /// It has a prompt of its own.
    pub is_tuned: bool,
    /// Calls at once.
    pub concurrency: u32,
    pub(crate) prompter: Prompter,
    /// SHA-256 of the file that recorded answers come from.
    pub(crate) recorded_sha256: Option<String>,
}

impl Arm {
    /// The request for one row.
    ///
    /// # Errors
    /// If the prompt template uses a column that the row does not have.
    pub fn request(&self, row: &Row) -> Result<Request> {
        let prompt = self.prompter.render(&row.sample)?;
        let s = &self.settings;
        let mut sampling = Sampling::default();
        sampling.temperature = s.temperature;
        sampling.top_p = s.top_p;
        sampling.top_k = s.top_k;
        sampling.seed = s.seed;
        let mut request = Request::new(prompt).with_sampling(sampling);
        request.max_tokens = s.max_tokens;
        request.stop = s.stop.clone().unwrap_or_default();
        request.logprobs = s.logprobs;
        if self.card.provider == EXTRA_KEY {
            let id = Map::from_iter([("sample_id".to_owned(), row.sample.id.clone().into())]);
            request.extra.insert(EXTRA_KEY.to_owned(), id);
        }
        Ok(request)
    }

    /// Whether a sensitive sample may be given to it.
    pub fn is_local(&self) -> bool {
        self.card.placement.is_local()
    }
}

/// SHA-256 over everything of a request that can change the answer.
pub(crate) fn request_digest(arm: &Arm, request: &Request) -> crate::runlog::Digest {
    let prompt = match &request.prompt {
        Prompt::Chat(messages) => Value::Array(messages.iter().map(message_json).collect()),
        Prompt::Text(text) => Value::from(text.clone()),
        other => Value::from(format!("{other:?}")),
    };
    let value = json!({
        "model": arm.candidate.model,
        "prompt": prompt,
        "settings": serde_json::to_value(&arm.settings).expect("settings are plain data"),
        "extra": request.extra,
    });
    crate::runlog::Digest::of(value.to_string().as_bytes())
}

fn message_json(message: &Message) -> Value {
    let parts: Vec<Value> = message
        .parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => json!({"text": text}),
            other => Value::from(format!("{other:?}")),
        })
        .collect();
    json!({"role": message.role.as_str(), "parts": parts})
}

/// A run that is ready to start.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The suite.
    pub suite: Suite,
    /// The samples.
    pub dataset: Dataset,
    /// The candidates, in suite order.
    pub arms: Vec<Arm>,
    /// The evaluators, in suite order; the first one decides.
    pub evaluators: Vec<(String, Box<dyn Evaluator>)>,
    /// The whole configuration, as kept in the run log. What may change an answer or its score
    /// stands under `identity`.
    pub configuration: Value,
    /// What left the process since the models were opened.
    pub ledger: Arc<Ledger>,
}

impl Plan {
    /// Loads the data, opens every model, and checks every request before any is sent.
    ///
    /// # Errors
    /// Whatever is wrong with suite, data, models or options, named with its place and remedy.
    pub fn prepare(suite: Suite, environment: &Environment) -> Result<Self> {
        let dataset = load(&suite)?;
        let evaluators = build_evaluators(&suite, &environment.registry, &dataset)?;
        check_controls(&suite, &dataset)?;
        let ledger = Arc::new(Ledger::default());
        let mut arms = Vec::new();
        for candidate in &suite.candidates {
            let arm = open_arm(&suite, &dataset, candidate, environment, &ledger).map_err(|e| {
                let kind = e.kind();
                Error::new(kind, format!("candidate `{}`: {}", candidate.name, e.report()))
                    .with_retry(e.retry())
            })?;
            arms.push(arm);
        }
        set_default_max_tokens(&mut arms);
        for arm in &arms {
            check_requests(arm, &dataset)?;
        }
        let configuration = configuration(&suite, &dataset, &arms, &evaluators);
        Ok(Self { suite, dataset, arms, evaluators, configuration, ledger })
    }

    /// Hash of everything that may change an answer or its score; a resume with another one is
    /// refused. Prices, limits of time and money, and the decision may change.
    pub fn configuration_hash(&self) -> crate::runlog::Digest {
        crate::runlog::Digest::of(self.configuration["identity"].to_string().as_bytes())
    }

    /// The arm of that candidate.
    pub fn arm_idx(&self, name: &str) -> Option<usize> {
        self.arms.iter().position(|arm| arm.candidate.name == name)
    }

    /// Calls that an undisturbed run makes.
    pub fn n_calls(&self) -> usize {
        let per_arm = self.dataset.rows.len() * self.suite.run.repeats as usize;
        let withheld: usize = self
            .arms
            .iter()
            .filter(|arm| !arm.is_local())
            .map(|_| self.dataset.rows.iter().filter(|row| row.is_sensitive).count())
            .sum();
        per_arm * self.arms.len() - withheld * self.suite.run.repeats as usize
    }

    /// What will happen, with every default in force: to be shown before a run.
    pub fn describe(&self) -> String {
        let suite = &self.suite;
        let mut text = String::new();
        let n = self.dataset.rows.len();
        let mut line = |s: String| {
            let _ = writeln!(text, "{s}");
        };
        line(format!(
            "plan      {} samples × {} candidates × {} repeats = {} calls",
            n,
            self.arms.len(),
            suite.run.repeats,
            self.n_calls()
        ));
        for arm in &self.arms {
            let mut facts = vec![weights_text(arm.card.weights).to_owned()];
            facts.push(placement_text(&arm.card.placement));
            facts.push(match arm.candidate.batch {
                true => "in batch jobs".to_owned(),
                false => format!("{} at once", arm.concurrency),
            });
            if arm.is_tuned {
                facts.push("prompt of its own (tuned)".to_owned());
            }
            if arm.candidate.control_only {
                facts.push("control".to_owned());
            }
            if let Some((low, high)) = self.price_range(arm) {
                facts.push(format!("USD {low:.4} to {high:.4}"));
            }
            let current = if arm.candidate.name == suite.current { " (current)" } else { "" };
            line(format!("candidate {}{current}: {}", arm.candidate.name, facts.join(", ")));
        }
        let r = &suite.run;
        let s = RequestSettings::default().over(&suite.request);
        let omitted = s.omit.clone().unwrap_or_default();
        let shown = |name: &str, value: String| {
            if omitted.iter().any(|o| o == name) { "not sent".to_owned() } else { value }
        };
        let limits = self.arms.iter().filter_map(|arm| arm.settings.max_tokens);
        let max_tokens = match (limits.clone().min(), limits.max()) {
            (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
            (Some(limit), _) => limit.to_string(),
            _ => "not sent".to_owned(),
        };
        line(format!(
            "settings  temperature {}, max tokens {}, timeout {} s, attempts {}, spend cap USD {}, {}",
            shown("temperature", s.temperature.unwrap_or(0.0).to_string()),
            shown("max_tokens", max_tokens),
            r.timeout_s,
            r.max_attempts,
            r.spend_cap_usd,
            if r.offline { "offline" } else { "network allowed" },
        ));
        if self.arms.iter().any(|arm| arm.candidate.batch) {
            line(format!(
                "batch     answers may take a day; asked at least every {} s, for up to {} h. Stop \
                 and --resume at any time",
                r.batch_poll_s, r.batch_wait_h
            ));
        }
        let full_price = |arm: &&Arm| {
            let price = arm.candidate.price.as_ref();
            arm.candidate.batch && price.is_some_and(|price| price.batch_factor.is_none())
        };
        for arm in self.arms.iter().filter(full_price) {
            line(format!(
                "          {} is priced in full; if its vendor gives a discount on batch jobs, set \
                 price.batch_factor",
                arm.candidate.name
            ));
        }
        // A verified server on this machine costs nothing that a price could tell.
        let unpriced =
            self.arms.iter().filter(|arm| !arm.is_local() && arm.candidate.price.is_none());
        for arm in unpriced {
            line(format!("spend cap does not cover {}: no price", arm.candidate.name));
        }
        line(format!(
            "decision  at most {} points lost, confidence {} %",
            suite.decision.margin_points,
            suite.decision.confidence * 100.0
        ));
        line(crate::compare::power_line(n, &suite.decision));
        let n_sensitive = self.dataset.rows.iter().filter(|row| row.is_sensitive).count();
        if n_sensitive > 0 {
            line(format!(
                "privacy   {n_sensitive} samples are sensitive and stay on this machine: models \
                 elsewhere are not asked about them"
            ));
        }
        if suite.decision == crate::suite::Decision::default() {
            line(
                "          (margin and confidence are the defaults; set [decision] to change them)"
                    .to_owned(),
            );
        }
        text
    }

    /// Lower and upper bound of an arm's cost in USD, if it has a price. A token is at least one
    /// byte of the prompt, and on average fewer than eight; at least no and at most `max_tokens`
    /// tokens are generated.
    fn price_range(&self, arm: &Arm) -> Option<(f64, f64)> {
        arm.candidate.price.as_ref()?;
        let mut range = (0.0, 0.0);
        for row in &self.dataset.rows {
            if row.is_sensitive && !arm.is_local() {
                continue;
            }
            let request = arm.request(row).ok()?;
            let n_bytes = prompt_bytes(&request);
            let price = arm.candidate.price.as_ref()?;
            range.0 +=
                n_bytes as f64 / 8.0 * price.input_per_million / 1e6 * price_factor(&arm.candidate);
            range.1 += max_cost_usd(arm, &request)?;
        }
        let repeats = f64::from(self.suite.run.repeats);
        Some((range.0 * repeats, range.1 * repeats))
    }
}

fn prompt_bytes(request: &Request) -> usize {
    match &request.prompt {
        Prompt::Chat(messages) => messages.iter().map(|m| m.text().len() + 16).sum(),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.len(),
        _ => 0,
    }
}

/// The most that one attempt can cost in USD: every byte of the prompt a token, every token
/// generated that may be.
pub(crate) fn max_cost_usd(arm: &Arm, request: &Request) -> Option<f64> {
    let price = arm.candidate.price.as_ref()?;
    let n_out = request.max_tokens.unwrap_or(arm.card.n_ctx.unwrap_or(8192));
    let usd = prompt_bytes(request) as f64 * price.input_per_million
        + f64::from(n_out) * price.output_per_million;
    Some(usd / 1e6 * price_factor(&arm.candidate))
}

/// The share of its prices that a candidate pays for a token.
fn price_factor(candidate: &Candidate) -> f64 {
    let batch_factor = candidate.price.as_ref().and_then(|price| price.batch_factor);
    batch_factor.filter(|_| candidate.batch).unwrap_or(1.0)
}

/// What an answer with this usage cost in USD; `None` without a price or without counts.
pub(crate) fn cost_usd(candidate: &Candidate, usage: &weighbridge_core::Usage) -> Option<f64> {
    let price = candidate.price.as_ref()?;
    let n_prompt = usage.n_prompt_tokens? as f64;
    let n_out = usage.n_generated_tokens? as f64;
    let n_cached = (usage.n_cached_tokens.unwrap_or(0) as f64).min(n_prompt);
    let cached_price = price.cached_input_per_million.unwrap_or(price.input_per_million);
    let usd = (n_prompt - n_cached) * price.input_per_million
        + n_cached * cached_price
        + n_out * price.output_per_million;
    Some(usd / 1e6 * price_factor(candidate))
}

/// A short name for who holds the weights.
pub(crate) fn weights_text(weights: Weights) -> &'static str {
    match weights {
        Weights::Open => "open weights",
        Weights::Closed => "closed weights",
        Weights::Unknown => "weights not declared",
        Weights::StandIn => "stand-in for a closed model",
        _ => "unknown weights",
    }
}

/// A short name for where inference happens.
pub(crate) fn placement_text(placement: &Placement) -> String {
    match placement {
        Placement::InProcess => "in this process".to_owned(),
        Placement::LocalServer { verified: true } => "a server on this machine".to_owned(),
        Placement::LocalServer { verified: false } => {
            "a server on this machine, not verified to compute here".to_owned()
        }
        Placement::Network { host } => format!("network: {host}"),
        Placement::Recorded => "recorded answers".to_owned(),
        other => format!("{other:?}"),
    }
}

fn build_evaluators(
    suite: &Suite,
    registry: &Registry,
    dataset: &Dataset,
) -> Result<Vec<(String, Box<dyn Evaluator>)>> {
    let mut evaluators = Vec::new();
    for spec in &suite.evaluators {
        let factory = registry.evaluator(&spec.kind)?;
        check_options(&spec.kind, &factory.option_schema(), &spec.options).map_err(|e| {
            Error::new(
                e.kind(),
                e.message()
                    .replace("of provider", "of evaluator")
                    .replace("provider `", "evaluator `"),
            )
        })?;
        let evaluator = factory.build(&spec.options)?;
        let needs = evaluator.needs();
        for field in &needs.fields {
            if let Some(row) = dataset.rows.iter().find(|r| !r.sample.fields.contains_key(field)) {
                let names: Vec<_> = row.sample.fields.keys().map(|k| format!("`{k}`")).collect();
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "evaluator `{}` needs the column `{field}`, which sample `{}` of {} does \
                         not have; it has {}",
                        spec.name(),
                        row.sample.id,
                        suite.data.file.display(),
                        names.join(", ")
                    ),
                ));
            }
        }
        if let Some(top) = needs.logprobs
            && suite.request.logprobs.unwrap_or(0) < top
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("evaluator `{}` needs `logprobs = {top}` in [request]", spec.name()),
            ));
        }
        evaluators.push((spec.name().to_owned(), evaluator));
    }
    Ok(evaluators)
}

fn check_controls(suite: &Suite, dataset: &Dataset) -> Result<()> {
    for control in &suite.controls {
        if let Some(slice) = &control.slice
            && !dataset.rows.iter().any(|row| row.slices.contains(slice))
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "control `{}` names the slice `{slice}`, which no sample is in; its column \
                     must stand in data.slices",
                    control.name
                ),
            ));
        }
    }
    Ok(())
}

fn open_arm(
    suite: &Suite,
    dataset: &Dataset,
    candidate: &Candidate,
    environment: &Environment,
    ledger: &Arc<Ledger>,
) -> Result<Arm> {
    let model = suite.model(candidate)?;
    let provider = environment.registry.provider(&model.provider)?;
    let info = provider.describe();
    check_options(&model.provider, &info.option_schema, &candidate.options)?;
    if suite.run.offline && info.needs_egress {
        return Err(Error::new(
            ErrorKind::EgressDenied,
            "the run is offline and this provider reaches out; use a local model or set \
             run.offline = false",
        ));
    }
    let base_dir: PathBuf = suite.base_dir.clone();
    let is_recorded = model.provider == EXTRA_KEY;
    let options = match is_recorded {
        true => recorded::join_options(&suite.data, &candidate.options)?,
        false => candidate.options.clone(),
    };
    let mut context = OpenContext::new()
        .with_options(options)
        .with_base_dir(base_dir)
        .with_secrets(Arc::clone(&environment.secrets));
    // A provider that does not say it reaches out is never given the means to.
    if !suite.run.offline && info.needs_egress {
        let ledger: Arc<dyn EgressLedger> = Arc::clone(ledger) as _;
        context = context.with_egress(Egress::grant(EgressScope::Network, ledger));
    }
    let backend = block_on(provider.open(&model, &context))?;
    if candidate.batch && backend.batch().is_none() {
        return Err(Error::unsupported(
            "batch",
            format!(
                "provider `{}` has no batch jobs; remove `batch = true`, or name the model by its \
                 vendor's own provider",
                model.provider
            ),
        ));
    }
    let recorded_sha256 = match is_recorded {
        true => {
            let ids = dataset.rows.iter().map(|row| row.sample.id.as_str());
            Some(recorded::check_join(&model, &context, ids)?)
        }
        false => None,
    };
    let mut card = backend.card().clone();
    if let Some(weights) = candidate.weights {
        card.weights = weights;
    }
    if let Some(license) = &candidate.license {
        card.license = Some(license.clone());
    }
    let mut settings = candidate.request.over(&suite.request);
    settings.temperature = Some(settings.temperature.unwrap_or(0.0));
    for name in settings.omit.iter().flatten() {
        match name.as_str() {
            "temperature" => settings.temperature = None,
            "max_tokens" => settings.max_tokens = None,
            _ => {}
        }
    }
    let allowed = backend.capabilities().max_concurrency.unwrap_or(u32::MAX).max(1);
    let concurrency = candidate.concurrency.unwrap_or(DEFAULT_CONCURRENCY).min(allowed);
    let is_tuned = candidate.prompt.is_some();
    let prompter = Prompter::new(candidate.prompt.as_ref().unwrap_or(&suite.prompt))?;
    Ok(Arm {
        candidate: candidate.clone(),
        backend,
        card,
        settings,
        is_tuned,
        concurrency,
        prompter,
        recorded_sha256,
    })
}

/// Where the suite sets no limit, every candidate gets the same: the default, or half of the
/// smallest context, so that a prompt has room beside it.
fn set_default_max_tokens(arms: &mut [Arm]) {
    let contexts = arms.iter().filter_map(|arm| arm.backend.capabilities().n_ctx);
    let half = contexts.min().map_or(u32::MAX, |n_ctx| (n_ctx / 2).max(1));
    for arm in arms {
        let is_omitted = arm.settings.omit.iter().flatten().any(|name| name == "max_tokens");
        if arm.settings.max_tokens.is_none() && !is_omitted {
            arm.settings.max_tokens = Some(DEFAULT_MAX_TOKENS.min(half));
        }
    }
}

/// Fills every prompt and holds it against the capabilities, so that a mistake in sample 4,000 is
/// found before sample 1 is paid for.
fn check_requests(arm: &Arm, dataset: &Dataset) -> Result<()> {
    for row in &dataset.rows {
        let request = arm.request(row)?;
        arm.backend.capabilities().check(&request).map_err(|e| {
            Error::new(
                e.kind(),
                format!(
                    "candidate `{}`: {e}; change [candidate.request], or leave a default out with \
                     `omit = [\"temperature\"]`",
                    arm.candidate.name
                ),
            )
        })?;
    }
    Ok(())
}

fn configuration(
    suite: &Suite,
    dataset: &Dataset,
    arms: &[Arm],
    evaluators: &[(String, Box<dyn Evaluator>)],
) -> Value {
    let arms: Vec<Value> = arms
        .iter()
        .map(|arm| {
            let mut card = arm.card.clone();
            // Words to be shown.
            card.license = None;
            let mut identity = json!({
                "name": arm.candidate.name,
                "model": arm.candidate.model,
                "options": arm.candidate.options,
                "card": card,
                "settings": arm.settings,
                "prompt_sha256": arm.prompter.sha256,
                "recorded_sha256": arm.recorded_sha256,
            });
            if arm.candidate.batch {
                identity["batch"] = true.into();
            }
            identity
        })
        .collect();
    let evaluators: Vec<Value> = evaluators
        .iter()
        .zip(&suite.evaluators)
        .map(|((name, e), spec)| {
            json!({
                "name": name,
                "id": e.id(),
                "version": e.version(),
                "options": spec.options,
            })
        })
        .collect();
    json!({
        "identity": {
            "data": suite.data,
            "data_sha256": dataset.sha256,
            "arms": arms,
            "evaluators": evaluators,
            "repeats": suite.run.repeats,
            "offline": suite.run.offline,
        },
        "suite": suite,
        "weighbridge": env!("CARGO_PKG_VERSION"),
    })
}
