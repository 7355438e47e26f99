//! A local engine as a [`Backend`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use futures_channel::{mpsc, oneshot};
use weighbridge_core::{
    Backend, Capabilities, Completion, ConstraintKind, EffectiveParams, EmbedRequest, Embedding,
    Error, ErrorKind, Event, EventSink, Likelihood, LikelihoodRequest, ModelCard, OpenContext,
    Prompt, Request, RequestOption, Result, StopReason, Timings, TokenLogprob, Usage, Window,
};

use crate::constraint::ConstraintFactory;
use crate::generation::Generation;
use crate::job::{self, EVENT_BUFFER, Finished, Job, JobEvent, Sequence, Task};
use crate::loader::{EngineLoader, TextModel};
use crate::logits::EngineCaps;
use crate::options::{EngineOptions, TemplateChoice};
use crate::prompt::PromptEncoder;
use crate::sampler::{Sampler, SamplerParams};
use crate::scheduler::Tuning;
use crate::scoring::Scoring;
use crate::template::ChatTemplate;
use crate::tokens::TokenTable;
use crate::worker::{self, Death, Worker};

/// One model on its own thread.
///
/// - Calls overlap freely; up to [`Capabilities::max_concurrency`] are fed together, the others wait
///   in order. Prompts are rendered and tokenized on the caller's side.
/// - Dropping the future of a call ends its job after the feed that is running: at most one decode
///   step or one chunk of a prompt.
/// - A sink that answers `Break` gets a completion with
///   [`StopReason::Cancelled`], whose text and log-probabilities are what was pushed and whose usage
///   counts what the engine did.
/// - Without `max_tokens` a generation may fill the context.
/// - A panic of the engine fails all calls, those to come included, with
///   [`ErrorKind::EngineDied`] and the reason.
/// - Dropping the backend frees the engine on its thread without waiting;
///   [`close`](Backend::close) waits.
pub struct LocalBackend {
    card: ModelCard,
    capabilities: Capabilities,
    prompts: PromptEncoder,
    constraints: ConstraintFactory,
    table: Arc<TokenTable>,
    n_ctx: u32,
    n_vocab: u32,
    options: EngineOptions,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    death: Death,
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend").field("card", &self.card).finish_non_exhaustive()
    }
}

impl LocalBackend {
    /// Loads a model on a new thread and serves it.
    ///
    /// A loader that looks at [`OpenContext::is_cancelled`] can be stopped while it loads. Dropping
    /// this future frees the model as soon as it is loaded.
    ///
    /// # Errors
    /// Those of the loader; [`ErrorKind::EngineDied`] if it panics; [`ErrorKind::Template`] if the
    /// chat template does not compile (open with another one or with
    /// [`TemplateChoice::None`]); [`ErrorKind::Plugin`] for an engine without sequences or context.
    pub async fn open(
        loader: Box<dyn EngineLoader>,
        context: &OpenContext,
        options: EngineOptions,
    ) -> Result<Arc<dyn Backend>> {
        let tuning = Tuning {
            max_concurrency: options.max_concurrency.max(1),
            reuses_prefixes: options.reuses_prefixes,
            deterministic_chunk: options.deterministic_chunk.max(1) as usize,
            cancel_latency: options.cancel_latency,
            decode_latency: options.decode_latency,
        };
        let Worker { jobs, opened, ended, death } =
            worker::spawn(&options.name, loader, context, tuning)?;
        let opened = opened.await.map_err(|_| death.error(&options.name))??;
        let backend = Self::new(opened.text, &opened.caps, options, jobs, ended, death)?;
        Ok(Arc::new(backend))
    }

    fn new(
        text: TextModel,
        caps: &EngineCaps,
        options: EngineOptions,
        jobs: mpsc::Sender<Job>,
        ended: oneshot::Receiver<()>,
        death: Death,
    ) -> Result<Self> {
        check_engine(&text, caps)?;
        let source = match &options.template {
            TemplateChoice::Model => text.chat_template,
            TemplateChoice::Source(source) => Some(source.clone()),
            TemplateChoice::None => None,
        };
        let template =
            source.map(|s| ChatTemplate::new(&s, &options.template_options)).transpose()?;
        let mut card = text.card;
        card.template_sha256 = template.as_ref().map(|t| t.sha256().to_owned());
        let n_ctx = caps.ctx_per_seq.min(caps.ctx_total).min(options.n_ctx.unwrap_or(u32::MAX));
        card.n_ctx.get_or_insert(n_ctx);
        Ok(Self {
            capabilities: capabilities(caps, &options, n_ctx, template.is_some()),
            constraints: ConstraintFactory::new(Arc::clone(&text.table), Arc::clone(&text.encoder)),
            prompts: PromptEncoder::new(Arc::clone(&text.table), text.encoder, template),
            table: text.table,
            card,
            n_ctx,
            n_vocab: caps.n_vocab,
            options,
            jobs: Mutex::new(Some(jobs)),
            ended: Mutex::new(Some(ended)),
            death,
        })
    }

    /// Hands a job to the thread and gives the end where its events arrive.
    fn submit(&self, make: impl FnOnce(mpsc::Sender<JobEvent>) -> Job) -> Result<JobHandle> {
        let (events_tx, events) = mpsc::channel(EVENT_BUFFER);
        let job = make(events_tx);
        let stop = Arc::clone(&job.stop);
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut jobs = jobs.ok_or_else(|| self.death.error(&self.options.name))?;
        // A sender of its own always has a place, so the queue is as long as there are calls.
        jobs.try_send(job).map_err(|_| self.death.error(&self.options.name))?;
        Ok(JobHandle { events, stop })
    }

    /// The end of a job that shows nothing on its way.
    async fn result(&self, mut handle: JobHandle) -> Result<JobEvent> {
        loop {
            match handle.events.recv().await {
                Ok(JobEvent::Event(_)) => {}
                Ok(JobEvent::Failed(error)) => return Err(error.with("model", &self.card.id)),
                Ok(end) => return Ok(end),
                Err(_) => return Err(self.death.error(&self.options.name)),
            }
        }
    }

    fn overflow(&self, n_prompt: usize, max_tokens: Option<u32>) -> Error {
        let max_tokens = max_tokens.map_or_else(|| "none".to_owned(), |n| n.to_string());
        Error::new(
            ErrorKind::ContextOverflow,
            "prompt and completion do not fit into the context; shorten the prompt, lower \
             `max_tokens`, or open the model with a larger context",
        )
        .with("n_prompt_tokens", n_prompt)
        .with("max_tokens", max_tokens)
        .with("n_ctx", self.n_ctx)
    }

    fn effective(&self) -> EffectiveParams {
        let mut effective = EffectiveParams::new();
        if let Some(engine) = &self.card.engine {
            effective = effective.with("engine", format!("{} {}", engine.name, engine.version));
        }
        if let Some(device) = &self.card.device {
            effective = effective.with("device", device.as_str());
        }
        effective
    }

    fn effective_of_prompt(&self, prompt: &Prompt) -> EffectiveParams {
        match (prompt, self.prompts.template()) {
            (Prompt::Chat(_), Some(template)) => {
                self.effective().with("template_sha256", template.sha256())
            }
            _ => self.effective(),
        }
    }

    /// Contexts and continuations as tokens; a shared context is encoded once.
    fn encode_items(&self, request: &LikelihoodRequest) -> Result<Vec<(Vec<u32>, Vec<u32>)>> {
        let mut contexts: HashMap<*const Prompt, Vec<u32>> = HashMap::new();
        let mut items = Vec::new();
        for item in &request.items {
            let context = match contexts.entry(Arc::as_ptr(&item.context)) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => new.insert(self.prompts.encode(&item.context, &[])?).clone(),
            };
            let continuation = self.encode_continuation(&item.continuation)?;
            let n_longest = match request.window {
                Some(window) => window.check(self.n_ctx)?.n_tokens as usize,
                None => context.len() + continuation.len(),
            };
            if n_longest > self.n_ctx as usize {
                return Err(self.overflow(context.len(), Some(continuation.len() as u32)));
            }
            items.push((context, continuation));
        }
        Ok(items)
    }

    /// Tokens whose bytes are exactly the continuation's. A tokenizer that puts a space before every
    /// text (SentencePiece) is given the text without its own; where that does not do, there is an
    /// error rather than the log-probability of another text.
    fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let is_exact = |tokens: &[u32]| {
            tokens.iter().flat_map(|id| self.table.bytes_of(*id)).eq(text.as_bytes())
        };
        let tokens = self.prompts.encode_continuation(text)?;
        if is_exact(&tokens) {
            return Ok(tokens);
        }
        if let Some(rest) = text.strip_prefix(' ') {
            let tokens = self.prompts.encode_continuation(rest)?;
            if is_exact(&tokens) {
                return Ok(tokens);
            }
        }
        Err(Error::unsupported(
            "continuation",
            "this tokenizer cannot express it as a text of its own; one that begins with a space \
             can be scored by most",
        )
        .with("continuation", format!("{text:?}")))
    }

    fn check_bias(&self, params: &SamplerParams) -> Result<()> {
        for (id, bias) in &params.logit_bias {
            if *id >= self.n_vocab || bias.is_nan() || *bias == f32::INFINITY {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "`logit_bias` takes ids of the vocabulary, and finite values or minus infinity",
                )
                .with("token_id", id)
                .with("bias", bias));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        let submitted = Instant::now();
        let dropped = self.capabilities.check(request)?;
        let constraint =
            request.constraint.as_ref().map(|c| self.constraints.compile(c)).transpose()?;
        let params = SamplerParams::resolve(&request.sampling, &self.options.default_sampling);
        self.check_bias(&params)?;
        let prompt = self.prompts.encode(&request.prompt, &[])?;
        let n_prompt = prompt.len();
        if n_prompt == 0 {
            return Err(Error::new(ErrorKind::InvalidRequest, "the prompt has no tokens"));
        }
        let n_free = (self.n_ctx as usize).saturating_sub(n_prompt);
        if n_free < request.max_tokens.unwrap_or(1) as usize {
            return Err(self.overflow(n_prompt, request.max_tokens));
        }
        let max_tokens = request.max_tokens.unwrap_or(n_free as u32);

        let mut effective = params
            .record(self.effective_of_prompt(&request.prompt))
            .with("max_tokens", max_tokens)
            .with("deterministic", request.deterministic);
        effective.dropped = dropped;

        let mut shown = Shown::new(request.logprobs.is_some());
        if sink.push(Event::Started(std::borrow::Cow::Borrowed(&effective))).is_break() {
            let mut finished = Finished {
                stop_reason: StopReason::Cancelled,
                raw_stop_reason: None,
                usage: Usage::new(n_prompt as u64, 0),
                timings: Timings::total(submitted.elapsed()),
                warnings: Vec::new(),
            };
            finished.usage.n_cached_tokens = Some(0);
            return Ok(shown.complete(finished, effective, submitted));
        }

        let generation = Generation::new(
            Sampler::new(params, &prompt),
            &request.stop,
            n_prompt,
            max_tokens,
            request.logprobs,
            constraint,
            submitted,
        )?;
        let mut handle = self.submit(|events| Job {
            task: Task::Generate {
                generation: Box::new(generation),
                sequence: Sequence::new(prompt, n_prompt, n_prompt - 1),
                n_positions: n_prompt.saturating_add(max_tokens as usize),
            },
            is_deterministic: request.deterministic,
            is_watched: sink.is_watched(),
            stop: Arc::default(),
            events,
        })?;
        loop {
            match handle.events.recv().await {
                Ok(JobEvent::Event(event)) => {
                    if !shown.is_broken && shown.push(event, sink).is_break() {
                        shown.is_broken = true;
                        handle.stop.store(true, Ordering::Relaxed);
                    }
                }
                Ok(JobEvent::Generated(finished)) => {
                    return Ok(shown.complete(*finished, effective, submitted));
                }
                Ok(JobEvent::Failed(error)) => return Err(error.with("model", &self.card.id)),
                Ok(JobEvent::Scored(_) | JobEvent::Embedded(_)) | Err(_) => {
                    return Err(self.death.error(&self.options.name));
                }
            }
        }
    }

    async fn log_likelihood(&self, request: &LikelihoodRequest) -> Result<Vec<Likelihood>> {
        let submitted = Instant::now();
        if !self.capabilities.prompt_logprobs {
            return Err(Error::unsupported("log_likelihood", "this model only embeds texts"));
        }
        let encoded = self.encode_items(request)?;
        let mut pairs = Vec::new();
        for (context, continuation) in &encoded {
            pairs.extend(windows(context, continuation, request.window));
        }
        let mut scoring = Scoring::new(pairs, request.top, &self.table);
        let scored = if scoring.needs_nothing() {
            scoring.finish()?
        } else {
            let handle = self.submit(|events| Job {
                task: Task::Score(Box::new(scoring)),
                is_deterministic: request.deterministic,
                is_watched: false,
                stop: Arc::default(),
                events,
            })?;
            match self.result(handle).await? {
                JobEvent::Scored(scored) => scored,
                _ => return Err(self.death.error(&self.options.name)),
            }
        };
        let total = submitted.elapsed();
        let mut scored = scored.into_iter();
        let mut likelihoods = Vec::with_capacity(encoded.len());
        for (item, (context, continuation)) in request.items.iter().zip(&encoded) {
            let n_windows = windows(context, continuation, request.window).count();
            let (mut tokens, mut n_cached) = (Vec::new(), 0);
            for part in scored.by_ref().take(n_windows) {
                tokens.extend(part.tokens);
                n_cached += part.n_cached;
            }
            let mut likelihood = Likelihood::new(tokens);
            likelihood.usage = Usage::new((context.len() + continuation.len()) as u64, 0);
            likelihood.usage.n_cached_tokens = Some(n_cached as u64);
            likelihood.timings = Timings::total(total);
            likelihood.effective = self.effective_of_prompt(&item.context);
            likelihoods.push(likelihood);
        }
        Ok(likelihoods)
    }

    async fn embed(&self, request: &EmbedRequest) -> Result<Vec<Embedding>> {
        if self.capabilities.embeddings.is_none() {
            return Err(Error::unsupported("embed", "this model was not opened for embeddings"));
        }
        let mut texts = Vec::with_capacity(request.texts.len());
        for text in &request.texts {
            let tokens = self.prompts.encode(&Prompt::Text(text.clone()), &[])?;
            if tokens.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "an empty text has no embedding; leave it out",
                ));
            }
            if tokens.len() > self.n_ctx as usize {
                return Err(self.overflow(tokens.len(), None));
            }
            texts.push(tokens);
        }
        let n_tokens: Vec<u64> = texts.iter().map(|tokens| tokens.len() as u64).collect();
        let handle = self.submit(|events| Job {
            task: Task::Embed(job::Embedding { texts, vectors: Vec::new() }),
            is_deterministic: false,
            is_watched: false,
            stop: Arc::default(),
            events,
        })?;
        let JobEvent::Embedded(vectors) = self.result(handle).await? else {
            return Err(self.death.error(&self.options.name));
        };
        let embed = |(mut vector, n_tokens): (Vec<f32>, u64)| {
            if request.normalize {
                let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                if norm > 0.0 {
                    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
                }
            }
            let mut embedding = Embedding::new(vector);
            embedding.usage = Usage::new(n_tokens, 0);
            embedding
        };
        Ok(vectors.into_iter().zip(n_tokens).map(embed).collect())
    }

    async fn count_tokens(&self, prompt: &Prompt) -> Result<u64> {
        Ok(self.prompts.encode(prompt, &[])?.len() as u64)
    }

    async fn close(&self) -> Result<()> {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            // An error means that the thread is gone already.
            let _ = ended.await;
        }
        Ok(())
    }
}

/// The windows of a text as contexts and continuations; see [`Window`].
fn windows(
    context: &[u32],
    continuation: &[u32],
    window: Option<Window>,
) -> impl Iterator<Item = (Vec<u32>, Vec<u32>)> {
    let n_all = context.len() + continuation.len();
    let (n_window, stride) = match window {
        Some(window) => (window.n_tokens as usize, window.stride as usize),
        None => (n_all, 1),
    };
    let text = [context, continuation].concat();
    let n_context = context.len();
    let n_windows = 1 + n_all.saturating_sub(n_window).div_ceil(stride);
    (0..n_windows).filter_map(move |k| {
        let start = k * stride;
        let end = n_all.min(start + n_window);
        let first = if k == 0 { 0 } else { start - stride + n_window }.max(n_context);
        // A window that lies in the context scores nothing; the only one of an empty text does.
        (first < end || n_windows == 1)
            .then(|| (text[start..first].to_vec(), text[first..end].to_vec()))
    })
}

/// The caller's end of a job. Dropping it is the hard cancel.
struct JobHandle {
    events: mpsc::Receiver<JobEvent>,
    stop: Arc<AtomicBool>,
}

/// What the sink has seen; the completion is made of it, so the two agree.
struct Shown {
    text: String,
    logprobs: Option<Vec<TokenLogprob>>,
    is_broken: bool,
}

impl Shown {
    fn new(has_logprobs: bool) -> Self {
        Self { text: String::new(), logprobs: has_logprobs.then(Vec::new), is_broken: false }
    }

    fn push(&mut self, event: Event<'_>, sink: &mut dyn EventSink) -> ControlFlow<()> {
        match &event {
            Event::Text(text) => self.text.push_str(text),
            Event::Tokens(tokens) => {
                if let Some(logprobs) = &mut self.logprobs {
                    logprobs.extend_from_slice(tokens);
                }
            }
            _ => {}
        }
        sink.push(event)
    }

    fn complete(
        self,
        finished: Finished,
        effective: EffectiveParams,
        submitted: Instant,
    ) -> Completion {
        let reason =
            if self.is_broken { StopReason::Cancelled } else { finished.stop_reason.clone() };
        let mut completion = Completion::new(self.text, reason);
        completion.raw_stop_reason = finished.raw_stop_reason.filter(|_| !self.is_broken);
        completion.usage = finished.usage;
        completion.timings = finished.timings;
        completion.timings.total = submitted.elapsed();
        completion.logprobs = self.logprobs;
        completion.effective = effective;
        completion.warnings = finished.warnings;
        completion
    }
}

fn check_engine(text: &TextModel, caps: &EngineCaps) -> Result<()> {
    let zero = [
        ("max_seqs", caps.max_seqs),
        ("ctx_total", caps.ctx_total),
        ("ctx_per_seq", caps.ctx_per_seq),
        ("max_feed", caps.max_feed),
        ("max_rows", caps.max_rows),
        ("n_vocab", caps.n_vocab),
    ];
    let only_embeds = caps.max_rows == 0 && caps.n_embd_output.is_some();
    let is_zero =
        |(name, value): &&(&str, u32)| *value == 0 && !(only_embeds && *name == "max_rows");
    if let Some((name, _)) = zero.iter().find(is_zero) {
        return Err(Error::new(
            ErrorKind::Plugin,
            format!("the engine says that its `{name}` is 0"),
        ));
    }
    let table = &text.table;
    if table.bytes.len() != table.kinds.len() {
        return Err(Error::new(ErrorKind::Plugin, "bytes and kinds of the token table differ")
            .with("n_bytes", table.bytes.len())
            .with("n_kinds", table.kinds.len()));
    }
    // More logits than tokens is padding; the other way round some tokens could not be fed.
    if table.len() > caps.n_vocab as usize {
        let beyond = table.kinds.iter().skip(caps.n_vocab as usize);
        if beyond.clone().any(|kind| *kind != crate::tokens::TokenKind::Unused) {
            return Err(Error::new(
                ErrorKind::ModelLoad,
                "the tokenizer has ids that the model has no logits for; they do not belong together",
            )
            .with("n_tokenizer", table.len())
            .with("n_vocab", caps.n_vocab));
        }
    }
    Ok(())
}

fn capabilities(
    caps: &EngineCaps,
    options: &EngineOptions,
    n_ctx: u32,
    has_template: bool,
) -> Capabilities {
    let mut capabilities = Capabilities::none();
    capabilities.n_ctx = Some(n_ctx);
    capabilities.max_concurrency = Some(caps.max_seqs.min(options.max_concurrency).max(1));
    capabilities.embeddings = caps.n_embd_output;
    capabilities.count_tokens = true;
    if caps.max_rows == 0 {
        return capabilities;
    }
    capabilities = capabilities.with_options([
        RequestOption::Temperature,
        RequestOption::TopK,
        RequestOption::TopP,
        RequestOption::MinP,
        RequestOption::RepetitionPenalty,
        RequestOption::FrequencyPenalty,
        RequestOption::PresencePenalty,
        RequestOption::LogitBias,
        RequestOption::Seed,
        RequestOption::Stop,
        RequestOption::MaxTokens,
        RequestOption::Logprobs,
        RequestOption::Constraint,
        RequestOption::Deterministic,
        RequestOption::TextPrompt,
        RequestOption::TokenPrompt,
    ]);
    if has_template {
        capabilities = capabilities.with_options([RequestOption::ChatPrompt]);
    }
    capabilities.max_top_logprobs = u8::MAX;
    capabilities.prompt_logprobs = true;
    capabilities.constraints = vec![
        ConstraintKind::JsonSchema,
        ConstraintKind::Regex,
        ConstraintKind::Lark,
        ConstraintKind::Choice,
    ];
    capabilities
}
