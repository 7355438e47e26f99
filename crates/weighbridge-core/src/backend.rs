//! The contract of one opened model.

use std::fmt;

use async_trait::async_trait;

use crate::{
    BatchJobs, Capabilities, Classification, ClassifyRequest, Completion, EmbedRequest, Embedding,
    Error, EventSink, Likelihood, LikelihoodRequest, ModelCard, Prompt, Request, Result,
};

/// One opened model: completes prompts and, where it can, scores, embeds, classifies and counts.
///
/// # Contract
/// - `generate` pushes events in order and then returns: the [`Completion`] or the error is the one
///   terminal, by type. The pushed text equals [`Completion::text`]. A source that ends without its
///   own terminal is [`ErrorKind::Truncated`](crate::ErrorKind::Truncated), never a completion.
/// - Dropping the future cancels, promptly, also in the middle of prefill.
/// - A request that cannot be honoured exactly fails with
///   [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) and names every such option, before
///   anything is paid for. It is never approximated. [`Capabilities::check`] does that.
/// - [`Capabilities`] and behaviour agree both ways: a method whose capability is absent returns
///   `Unsupported`, which is what the provided bodies do.
/// - Calls may overlap; a backend queues above its own `max_concurrency`.
/// - No async runtime is assumed of the caller.
///
/// Callers use [`BackendExt`](crate::BackendExt) for convenience.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// What this model is: weights, digest, engine build, placement. Constant.
    fn card(&self) -> &ModelCard;

    /// What it can do. Constant and authoritative: absent means unsupported.
    fn capabilities(&self) -> &Capabilities;

    /// Prefills the prompt, then decodes until a stop condition.
    ///
    /// # Errors
    /// [`ContextOverflow`](crate::ErrorKind::ContextOverflow) if the prompt plus
    /// [`Request::max_tokens`] exceed the context; any kind of the failing layer otherwise.
    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion>;

    /// Log-probability of each token of each continuation, in nats, in request order.
    ///
    /// # Errors
    /// `Unsupported` unless [`Capabilities::prompt_logprobs`].
    async fn log_likelihood(&self, request: &LikelihoodRequest) -> Result<Vec<Likelihood>> {
        let _ = request;
        Err(Error::unsupported("log_likelihood", "this model gives no prompt log-probabilities"))
    }

    /// One vector per text, in request order.
    ///
    /// # Errors
    /// `Unsupported` unless [`Capabilities::embeddings`].
    async fn embed(&self, request: &EmbedRequest) -> Result<Vec<Embedding>> {
        let _ = request;
        Err(Error::unsupported("embed", "this model gives no embeddings"))
    }

    /// Labels per text, in request order.
    ///
    /// # Errors
    /// `Unsupported` unless [`Capabilities::classification`].
    async fn classify(&self, request: &ClassifyRequest) -> Result<Vec<Classification>> {
        let _ = request;
        Err(Error::unsupported("classify", "this model has no classification head"))
    }

    /// Number of tokens of the prompt as `generate` would feed it, template included.
    ///
    /// # Errors
    /// `Unsupported` unless [`Capabilities::count_tokens`].
    async fn count_tokens(&self, prompt: &Prompt) -> Result<u64> {
        let _ = prompt;
        Err(Error::unsupported("count_tokens", "this model does not count tokens"))
    }

    /// Vendor batch jobs that outlive the process, where the vendor has them.
    fn batch(&self) -> Option<&dyn BatchJobs> {
        None
    }

    /// Frees what can be freed early. Calls after it fail; dropping the backend does the same.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
