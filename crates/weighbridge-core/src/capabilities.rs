//! What a model can do, as data, and the check of a request against it.

use serde::{Deserialize, Serialize};

use crate::{Constraint, Error, ErrorKind, Part, Prompt, Request, Result, ToolChoice};

/// An option of a [`Request`] that a model may be unable to honour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RequestOption {
    /// `sampling.temperature`
    Temperature,
    /// `sampling.top_k`
    TopK,
    /// `sampling.top_p`
    TopP,
    /// `sampling.min_p`
    MinP,
    /// `sampling.repetition_penalty`
    RepetitionPenalty,
    /// `sampling.frequency_penalty`
    FrequencyPenalty,
    /// `sampling.presence_penalty`
    PresencePenalty,
    /// `sampling.logit_bias`
    LogitBias,
    /// `sampling.seed`
    Seed,
    /// `stop`
    Stop,
    /// `max_tokens`
    MaxTokens,
    /// `logprobs`
    Logprobs,
    /// `constraint`
    Constraint,
    /// `tools`
    Tools,
    /// `tool_choice`
    ToolChoice,
    /// `parallel_tool_calls`
    ParallelToolCalls,
    /// `reasoning`
    Reasoning,
    /// `deterministic`
    Deterministic,
    /// `prompt`: chat messages
    ChatPrompt,
    /// `prompt`: raw text
    TextPrompt,
    /// `prompt`: token ids
    TokenPrompt,
    /// `prompt`: an image part
    ImageInput,
}

impl RequestOption {
    /// The name used in errors, suites and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::RepetitionPenalty => "repetition_penalty",
            Self::FrequencyPenalty => "frequency_penalty",
            Self::PresencePenalty => "presence_penalty",
            Self::LogitBias => "logit_bias",
            Self::Seed => "seed",
            Self::Stop => "stop",
            Self::MaxTokens => "max_tokens",
            Self::Logprobs => "logprobs",
            Self::Constraint => "constraint",
            Self::Tools => "tools",
            Self::ToolChoice => "tool_choice",
            Self::ParallelToolCalls => "parallel_tool_calls",
            Self::Reasoning => "reasoning",
            Self::Deterministic => "deterministic",
            Self::ChatPrompt => "prompt.chat",
            Self::TextPrompt => "prompt.text",
            Self::TokenPrompt => "prompt.tokens",
            Self::ImageInput => "prompt.image",
        }
    }
}

/// A wish that was not honoured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dropped {
    /// Which option.
    pub option: RequestOption,
    /// Why.
    pub why: String,
}

impl Dropped {
    /// A lost wish.
    pub fn new(option: RequestOption, why: impl Into<String>) -> Self {
        Self { option, why: why.into() }
    }
}

/// A kind of [`Constraint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConstraintKind {
    /// JSON Schema.
    JsonSchema,
    /// Regular expression.
    Regex,
    /// Lark grammar.
    Lark,
    /// One of several texts.
    Choice,
}

impl Constraint {
    /// The kind of this constraint.
    pub fn kind(&self) -> ConstraintKind {
        match self {
            Self::JsonSchema(_) => ConstraintKind::JsonSchema,
            Self::Regex(_) => ConstraintKind::Regex,
            Self::Lark(_) => ConstraintKind::Lark,
            Self::Choice(_) => ConstraintKind::Choice,
        }
    }
}

/// What a model can do. Absent means unsupported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Request options that are honoured exactly.
    pub options: Vec<RequestOption>,
    /// Context length in tokens, prompt and completion together.
    pub n_ctx: Option<u32>,
    /// Calls that run at once; above it the backend queues. `None`: no known limit.
    pub max_concurrency: Option<u32>,
    /// Largest `logprobs` value.
    pub max_top_logprobs: u8,
    /// `log_likelihood` works.
    pub prompt_logprobs: bool,
    /// Kinds of constraint that are enforced.
    pub constraints: Vec<ConstraintKind>,
    /// `embed` works, with vectors of this size.
    pub embeddings: Option<u32>,
    /// `classify` works.
    pub classification: bool,
    /// `count_tokens` works.
    pub count_tokens: bool,
    /// `batch()` is there.
    pub batch: bool,
    /// The number of adapters that can be applied at once.
    pub n_adapters: u32,
    /// Largest number of stop texts.
    pub max_stops: Option<u32>,
    /// The smallest and largest temperature.
    pub temperature_range: Option<TemperatureRange>,
}

/// Inclusive bounds of the temperature, in thousandths, so that capabilities can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemperatureRange {
    /// Smallest, in thousandths.
    pub min_milli: u32,
    /// Largest, in thousandths.
    pub max_milli: u32,
}

impl Capabilities {
    /// Nothing. Opt in from here.
    pub fn none() -> Self {
        Self {
            options: Vec::new(),
            n_ctx: None,
            max_concurrency: None,
            max_top_logprobs: 0,
            prompt_logprobs: false,
            constraints: Vec::new(),
            embeddings: None,
            classification: false,
            count_tokens: false,
            batch: false,
            n_adapters: 0,
            max_stops: None,
            temperature_range: None,
        }
    }

    /// Adds options.
    #[must_use]
    pub fn with_options(mut self, options: impl IntoIterator<Item = RequestOption>) -> Self {
        self.options.extend(options);
        self
    }

    /// Whether an option is honoured.
    pub fn supports(&self, option: RequestOption) -> bool {
        self.options.contains(&option)
    }

    /// Checks every set option of a request before anything is paid for.
    ///
    /// Returns the wishes that cannot be honoured; the caller leaves those options out.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] naming **all** offending options that are not wishes, or
    /// [`ErrorKind::InvalidRequest`] for values outside their range.
    pub fn check(&self, request: &Request) -> Result<Vec<Dropped>> {
        check_values(request)?;
        let (dropped, lost): (Vec<_>, Vec<_>) = self
            .offenders(request)
            .into_iter()
            .partition(|offender| request.wishes.contains(&offender.option));
        if lost.is_empty() {
            return Ok(dropped);
        }
        let names: Vec<_> = lost.iter().map(|o| o.option.as_str()).collect();
        let reasons: Vec<_> =
            lost.iter().map(|o| format!("`{}`: {}", o.option.as_str(), o.why)).collect();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("this model cannot honour {}", reasons.join("; ")),
        )
        .with("option", names.join(",")))
    }

    fn offenders(&self, request: &Request) -> Vec<Dropped> {
        let mut offenders = Vec::new();
        let mut need = |set: bool, option: RequestOption| {
            if set && !self.supports(option) {
                offenders.push(Dropped::new(option, "not offered by this model or engine"));
            }
        };
        let s = &request.sampling;
        need(s.temperature.is_some(), RequestOption::Temperature);
        need(s.top_k.is_some(), RequestOption::TopK);
        need(s.top_p.is_some(), RequestOption::TopP);
        need(s.min_p.is_some(), RequestOption::MinP);
        need(s.repetition_penalty.is_some(), RequestOption::RepetitionPenalty);
        need(s.frequency_penalty.is_some(), RequestOption::FrequencyPenalty);
        need(s.presence_penalty.is_some(), RequestOption::PresencePenalty);
        need(!s.logit_bias.is_empty(), RequestOption::LogitBias);
        need(s.seed.is_some(), RequestOption::Seed);
        need(!request.stop.is_empty(), RequestOption::Stop);
        need(request.max_tokens.is_some(), RequestOption::MaxTokens);
        need(request.logprobs.is_some(), RequestOption::Logprobs);
        need(request.constraint.is_some(), RequestOption::Constraint);
        need(!request.tools.is_empty(), RequestOption::Tools);
        need(request.tool_choice != ToolChoice::Auto, RequestOption::ToolChoice);
        need(request.parallel_tool_calls.is_some(), RequestOption::ParallelToolCalls);
        need(request.reasoning.is_some(), RequestOption::Reasoning);
        need(request.deterministic, RequestOption::Deterministic);
        match &request.prompt {
            Prompt::Chat(messages) => {
                need(true, RequestOption::ChatPrompt);
                let has_image = messages
                    .iter()
                    .flat_map(|m| &m.parts)
                    .any(|part| matches!(part, Part::Image { .. }));
                need(has_image, RequestOption::ImageInput);
            }
            Prompt::Text(_) => need(true, RequestOption::TextPrompt),
            Prompt::Tokens(_) => need(true, RequestOption::TokenPrompt),
        }

        if let Some(top) = request.logprobs
            && self.supports(RequestOption::Logprobs)
            && top > self.max_top_logprobs
        {
            offenders.push(Dropped::new(
                RequestOption::Logprobs,
                format!("{top} alternatives asked, at most {} given", self.max_top_logprobs),
            ));
        }
        if let Some(constraint) = &request.constraint
            && self.supports(RequestOption::Constraint)
            && !self.constraints.contains(&constraint.kind())
        {
            offenders.push(Dropped::new(
                RequestOption::Constraint,
                format!("{:?} is not enforced here", constraint.kind()),
            ));
        }
        if let Some(max) = self.max_stops
            && request.stop.len() > max as usize
        {
            offenders.push(Dropped::new(
                RequestOption::Stop,
                format!("{} stop texts asked, at most {max} taken", request.stop.len()),
            ));
        }
        if let (Some(t), Some(range)) = (s.temperature, self.temperature_range)
            && !(f64::from(range.min_milli)..=f64::from(range.max_milli)).contains(&(t * 1000.0))
        {
            offenders.push(Dropped::new(
                RequestOption::Temperature,
                format!(
                    "{t} is outside {} to {}",
                    f64::from(range.min_milli) / 1000.0,
                    f64::from(range.max_milli) / 1000.0
                ),
            ));
        }
        offenders
    }
}

fn check_values(request: &Request) -> Result<()> {
    let invalid = |name: &'static str, value: f64, range: &'static str| {
        Err(Error::new(ErrorKind::InvalidRequest, format!("`{name}` must be {range}"))
            .with(name, value))
    };
    let s = &request.sampling;
    if let Some(t) = s.temperature
        && !(t.is_finite() && t >= 0.0)
    {
        return invalid("temperature", t, "0 or more");
    }
    if let Some(p) = s.top_p
        && !(p > 0.0 && p <= 1.0)
    {
        return invalid("top_p", p, "above 0 and at most 1");
    }
    if let Some(p) = s.min_p
        && !(0.0..=1.0).contains(&p)
    {
        return invalid("min_p", p, "between 0 and 1");
    }
    if s.top_k == Some(0) {
        return invalid("top_k", 0.0, "at least 1");
    }
    if let Some(p) = s.repetition_penalty
        && !(p.is_finite() && p > 0.0)
    {
        return invalid("repetition_penalty", p, "above 0");
    }
    for (name, value) in
        [("frequency_penalty", s.frequency_penalty), ("presence_penalty", s.presence_penalty)]
    {
        if let Some(v) = value
            && !v.is_finite()
        {
            return invalid(name, v, "finite");
        }
    }
    if request.max_tokens == Some(0) {
        return invalid("max_tokens", 0.0, "at least 1");
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(Error::new(ErrorKind::InvalidRequest, "a stop text must not be empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sampling;

    fn capable() -> Capabilities {
        let mut caps = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::Temperature,
            RequestOption::Logprobs,
        ]);
        caps.max_top_logprobs = 5;
        caps
    }

    #[test]
    fn every_offender_is_named_at_once() {
        let mut request = Request::user("hi").with_logprobs(20).with_stop("x");
        request.sampling.seed = Some(1);
        let error = capable().check(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.context("option"), Some("seed,stop,logprobs"));
        assert!(error.to_string().contains("20 alternatives asked, at most 5 given"), "{error}");
    }

    #[test]
    fn a_wish_is_dropped_and_reported() {
        let mut request = Request::user("hi");
        request.sampling.seed = Some(1);
        request.wishes.push(RequestOption::Seed);
        let dropped = capable().check(&request).unwrap();
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].option, RequestOption::Seed);
    }

    #[test]
    fn values_out_of_range_are_refused_before_support_is_asked() {
        let request = Request::user("hi")
            .with_sampling(Sampling { temperature: Some(f64::NAN), ..Sampling::default() });
        assert_eq!(capable().check(&request).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
