//! Our side: a model opened through its provider and asked through `Backend`, as any caller does.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::json;
use weighbridge_bench::Result;
use weighbridge_core::{
    Backend, BackendExt, Completion, Egress, EgressEntry, EgressLedger, EgressScope, ModelRef,
    OpenContext, Provider, Request, Secret, Secrets, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use crate::reply::{Reply, TEXT};

const KEY_NAME: &str = "BENCH_API_KEY";

/// An opened model.
#[derive(Debug)]
pub(crate) struct Ours {
    backend: Arc<dyn Backend>,
    request: Request,
}

/// What many calls took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) wall: Duration,
    /// Of this process, all threads, in user and kernel mode.
    pub(crate) cpu: Duration,
}

/// A key as real calls have one: it is sent, and looked for in what comes back.
#[derive(Debug)]
struct Key;

impl Secrets for Key {
    fn secret(&self, name: &str) -> Option<Secret> {
        (name == KEY_NAME).then(|| Secret::new("sk-bench-0123456789abcdefghijklmnopqrstuvwxyz"))
    }
}

#[derive(Debug)]
struct NoLedger;

impl EgressLedger for NoLedger {
    fn record(&self, _entry: EgressEntry) {}
}

impl Ours {
    pub(crate) fn open(url: &str, reply: Reply, n_at_once: usize) -> Result<Self> {
        let model: ModelRef = format!("openai-compatible:{url}/v1#m").parse()?;
        let options = json!({
            "api_key_env": KEY_NAME,
            "stream": reply == Reply::Stream,
            "max_concurrency": n_at_once,
        });
        let context = OpenContext::new()
            .with_options(options.as_object().cloned().unwrap_or_default())
            .with_egress(Egress::grant(EgressScope::Loopback, Arc::new(NoLedger)))
            .with_secrets(Arc::new(Key));
        let backend = block_on(Remote::new(Vendor::OpenAiCompatible).open(&model, &context))?;
        Ok(Self { backend, request: Request::user("Say ok.").with_max_tokens(1) })
    }

    /// One call.
    pub(crate) fn one(&self) -> Result<()> {
        Ok(check(&self.backend.complete_blocking(&self.request)?)?)
    }

    /// So many calls, so many at once, driven by so many threads.
    pub(crate) fn all(&self, n_calls: usize, n_at_once: usize, n_threads: usize) -> Result<Taken> {
        let (start, cpu) = (Instant::now(), cpu_time()?);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..n_threads)
                .map(|i| {
                    let share = move |n: usize| n / n_threads + usize::from(i < n % n_threads);
                    scope.spawn(move || self.share(share(n_calls), share(n_at_once)))
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
        })?;
        Ok(Taken { wall: start.elapsed(), cpu: cpu_time()?.saturating_sub(cpu) })
    }

    /// What one thread does.
    fn share(&self, n_calls: usize, n_at_once: usize) -> std::result::Result<(), String> {
        let calls = stream::iter(0..n_calls)
            .map(|_| async {
                let completion = self.backend.complete(&self.request).await;
                completion.map_err(|error| error.report()).and_then(|c| check(&c))
            })
            .buffer_unordered(n_at_once);
        block_on(calls.try_collect())
    }
}

fn check(completion: &Completion) -> std::result::Result<(), String> {
    match completion.text == TEXT {
        true => Ok(()),
        false => Err(format!("the answer was `{}`", completion.text)),
    }
}

fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(us.try_into()?))
}
