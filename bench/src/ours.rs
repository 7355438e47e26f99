//! Our side: a model opened through its provider and asked through `Backend`, as any caller does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use weighbridge_core::{
    Backend, BackendExt, Completion, EngineInfo, Likelihood, LikelihoodItem, LikelihoodRequest,
    ModelRef, OpenContext, Prompt, Registry, Request, Sampling, TokenId,
};

use weighbridge_bench::Result;

/// Tokens of the prompt before a measured decode.
pub(crate) const N_SHORT_PROMPT: usize = 16;

/// An opened model.
#[derive(Debug)]
pub(crate) struct Ours {
    backend: Arc<dyn Backend>,
    runtime: Runtime,
}

impl Ours {
    /// Opens a file with a provider. The first feeds after this are slow: see [`warm_up`](Self::warm_up).
    pub(crate) fn open(
        registry: &Registry,
        provider: &str,
        file: &Path,
        options: Map<String, Value>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let file = std::path::absolute(file)?;
        let location = file.to_str().ok_or("the path of a model must be UTF-8")?;
        let context = OpenContext::new().with_options(options);
        let model = ModelRef::new(provider, location);
        let backend = runtime.block_on(registry.provider(provider)?.open(&model, &context))?;
        Ok(Self { backend, runtime })
    }

    /// Engine and build.
    pub(crate) fn engine(&self) -> Option<EngineInfo> {
        self.backend.card().engine.clone()
    }

    /// One uncounted pass, as llama-bench makes one.
    pub(crate) fn warm_up(&self, prompt: &[TokenId]) -> Result<()> {
        self.generate_all(&[prompt.to_vec()], 4).map(drop)
    }

    /// Prompt tokens per second, from the call to its end, with one generated token.
    pub(crate) fn prefill(&self, prompt: &[TokenId]) -> Result<f64> {
        let (wall, _) = self.generate_all(&[prompt.to_vec()], 1)?;
        Ok(prompt.len() as f64 / wall.as_secs_f64())
    }

    /// Generated tokens per second behind a short prompt, from the first row of logits to the end
    /// of the call.
    pub(crate) fn decode(&self, prompt: &[TokenId], n_generated: usize) -> Result<f64> {
        let prompt = prompt[..N_SHORT_PROMPT.min(prompt.len())].to_vec();
        let (_, completions) = self.generate_all(&[prompt], n_generated)?;
        let timings = &completions[0].timings;
        let before = timings.queue.unwrap_or_default() + timings.prefill.unwrap_or_default();
        Ok((n_generated - 1) as f64 / (timings.total - before).as_secs_f64())
    }

    /// Generates for all prompts at once and takes the time of the whole. Greedy, and always
    /// exactly `n_generated` tokens: an earlier end is an error.
    pub(crate) fn generate_all(
        &self,
        prompts: &[Vec<TokenId>],
        n_generated: usize,
    ) -> Result<(Duration, Vec<Completion>)> {
        let requests: Vec<_> = prompts.iter().map(|p| request(p, n_generated)).collect();
        let started = Instant::now();
        let calls = requests.iter().map(|request| self.backend.complete(request));
        let completions = self.runtime.block_on(try_join_all(calls))?;
        let wall = started.elapsed();
        for (prompt, completion) in prompts.iter().zip(&completions) {
            let (n_asked, n_given) = (n_generated as u64, completion.usage.n_generated_tokens);
            if n_given != Some(n_asked) {
                return Err(format!("asked for {n_asked} tokens, {n_given:?} came").into());
            }
            let (n_sent, n_read) = (prompt.len() as u64, completion.usage.n_prompt_tokens);
            if n_read != Some(n_sent) {
                return Err(format!("sent {n_sent} prompt tokens, {n_read:?} were read").into());
            }
        }
        Ok((wall, completions))
    }

    /// One deterministic generation with log-probabilities.
    pub(crate) fn generate_deterministic(
        &self,
        prompt: &[TokenId],
        n_generated: usize,
    ) -> Result<Completion> {
        let mut request = request(prompt, n_generated).with_logprobs(0);
        request.deterministic = true;
        Ok(self.runtime.block_on(self.backend.complete(&request))?)
    }

    /// Scores groups of items, one call per group, all at once, and takes the time of the whole.
    pub(crate) fn score_all(
        &self,
        groups: Vec<Vec<LikelihoodItem>>,
        deterministic: bool,
    ) -> Result<(Duration, Vec<Likelihood>)> {
        let requests: Vec<_> = groups
            .into_iter()
            .map(|items| {
                let mut request = LikelihoodRequest::new(items);
                request.deterministic = deterministic;
                request
            })
            .collect();
        let started = Instant::now();
        let calls = requests.iter().map(|request| self.backend.log_likelihood(request));
        let likelihoods = self.runtime.block_on(try_join_all(calls))?.concat();
        let wall = started.elapsed();
        for (item, likelihood) in requests.iter().flat_map(|r| &r.items).zip(&likelihoods) {
            // A digit is a token.
            if likelihood.tokens.len() != item.continuation.len() {
                let (asked, got) = (item.continuation.len(), likelihood.tokens.len());
                return Err(format!("{asked} tokens were to be scored, {got} were").into());
            }
        }
        Ok((wall, likelihoods))
    }

    /// Frees the model.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.runtime.block_on(self.backend.close())?)
    }
}

fn request(prompt: &[TokenId], n_generated: usize) -> Request {
    Request::new(Prompt::Tokens(prompt.to_vec()))
        .with_sampling(Sampling::greedy())
        .with_max_tokens(n_generated as u32)
}
