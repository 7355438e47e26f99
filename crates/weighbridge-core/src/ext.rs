//! Convenience over [`Backend`], apart from the contract.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use async_trait::async_trait;
use futures_core::Stream;
use futures_core::stream::FusedStream;

use crate::{
    Backend, Completion, Event, EventSink, Message, Prompt, Request, Result, Sampling, StopSink,
};

/// What callers want of every [`Backend`]. Implemented for all of them; never implement it.
#[async_trait]
pub trait BackendExt: Backend {
    /// Generates without looking at events.
    async fn complete(&self, request: &Request) -> Result<Completion> {
        self.generate(request, &mut StopSink::never()).await
    }

    /// Generates, blocking this thread. Needs no runtime; do not call it on an executor's thread.
    ///
    /// # Errors
    /// As [`Backend::generate`].
    fn complete_blocking(&self, request: &Request) -> Result<Completion> {
        block_on(self.complete(request))
    }

    /// The answer to these messages at temperature 0.
    async fn chat(&self, messages: Vec<Message>) -> Result<Completion> {
        let request = Request::new(Prompt::Chat(messages)).with_sampling(Sampling::greedy());
        self.complete(&request).await
    }

    /// The events of a generation, ending with the completion or the error.
    ///
    /// Nothing happens while nobody reads; dropping the stream cancels. For a `'static` stream
    /// see [`CompletionStream::owned`].
    fn stream(&self, request: Request) -> CompletionStream<'_> {
        CompletionStream::new(|sink| {
            Box::pin(async move {
                let mut sink = sink;
                self.generate(&request, &mut sink).await
            })
        })
    }
}

impl<B: Backend + ?Sized> BackendExt for B {}

/// An item of a [`CompletionStream`].
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamItem {
    /// Something happened.
    Event(Event<'static>),
    /// The one success terminal, always last.
    Completion(Box<Completion>),
}

type Queue = Arc<Mutex<VecDeque<Event<'static>>>>;
type Generation<'a> = Pin<Box<dyn Future<Output = Result<Completion>> + Send + 'a>>;

struct QueueSink(Queue);

impl EventSink for QueueSink {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        lock(&self.0).push_back(event.into_owned());
        ControlFlow::Continue(())
    }
}

fn lock(queue: &Queue) -> std::sync::MutexGuard<'_, VecDeque<Event<'static>>> {
    // A panic while the queue was held leaves a queue that is still whole.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A generation as a stream. Owns the future and drains what it pushed: no task, no channel.
pub struct CompletionStream<'a> {
    queue: Queue,
    generation: Option<Generation<'a>>,
    terminal: Option<Result<Completion>>,
    is_done: bool,
}

impl std::fmt::Debug for CompletionStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionStream").field("is_done", &self.is_done).finish_non_exhaustive()
    }
}

impl<'a> CompletionStream<'a> {
    fn new(start: impl FnOnce(QueueSink) -> Generation<'a>) -> Self {
        let queue = Queue::default();
        let generation = start(QueueSink(Arc::clone(&queue)));
        Self { queue, generation: Some(generation), terminal: None, is_done: false }
    }

    /// A stream that owns the backend.
    pub fn owned(backend: Arc<dyn Backend>, request: Request) -> CompletionStream<'static> {
        CompletionStream::new(|sink| {
            Box::pin(async move {
                let mut sink = sink;
                backend.generate(&request, &mut sink).await
            })
        })
    }

    /// The next item, blocking this thread; `None` after the terminal.
    pub fn next_blocking(&mut self) -> Option<Result<StreamItem>> {
        block_on(std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)))
    }
}

impl Stream for CompletionStream<'_> {
    type Item = Result<StreamItem>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let next = lock(&self.queue).pop_front();
            if let Some(event) = next {
                return Poll::Ready(Some(Ok(StreamItem::Event(event))));
            }
            if let Some(terminal) = self.terminal.take() {
                self.is_done = true;
                let item = terminal.map(|c| StreamItem::Completion(Box::new(c)));
                return Poll::Ready(Some(item));
            }
            let Some(generation) = &mut self.generation else { return Poll::Ready(None) };
            match generation.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    self.generation = None;
                    self.terminal = Some(result);
                }
                Poll::Pending if lock(&self.queue).is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

impl FusedStream for CompletionStream<'_> {
    fn is_terminated(&self) -> bool {
        self.is_done
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps while the future waits. Needs no runtime.
///
/// Do not call it on the thread of an async executor: it would stop that executor.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capabilities, ModelCard, Placement, StopReason, Weights};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug)]
    struct Echo {
        card: ModelCard,
        capabilities: Capabilities,
        dropped: Arc<AtomicBool>,
    }

    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl Backend for Echo {
        fn card(&self) -> &ModelCard {
            &self.card
        }
        fn capabilities(&self) -> &Capabilities {
            &self.capabilities
        }
        async fn generate(&self, _: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
            let _flag = Flag(Arc::clone(&self.dropped));
            for word in ["a", "b"] {
                let mut is_first = true;
                std::future::poll_fn(|cx| {
                    if std::mem::take(&mut is_first) {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                })
                .await;
                if sink.push(Event::Text(word.into())).is_break() {
                    return Ok(Completion::new("a", StopReason::Cancelled));
                }
            }
            Ok(Completion::new("ab", StopReason::Stop))
        }
    }

    fn echo() -> Echo {
        Echo {
            card: ModelCard::new("echo", "test", Weights::Open, Placement::InProcess),
            capabilities: Capabilities::none(),
            dropped: Arc::default(),
        }
    }

    #[test]
    fn a_stream_ends_with_the_completion_and_then_stays_ended() {
        let echo = echo();
        let mut stream = echo.stream(Request::user("hi"));
        let mut shown = Vec::new();
        while let Some(item) = stream.next_blocking() {
            shown.push(match item.unwrap() {
                StreamItem::Event(Event::Text(text)) => text.into_owned(),
                StreamItem::Completion(c) => format!("<{}>", c.text),
                other => format!("{other:?}"),
            });
        }
        assert_eq!(shown, ["a", "b", "<ab>"]);
        assert!(stream.is_terminated());
        assert!(stream.next_blocking().is_none());
    }

    #[test]
    fn dropping_a_stream_drops_the_generation() {
        let echo = echo();
        let mut stream = echo.stream(Request::user("hi"));
        stream.next_blocking().unwrap().unwrap();
        assert!(!echo.dropped.load(Ordering::Relaxed));
        drop(stream);
        assert!(echo.dropped.load(Ordering::Relaxed));
    }

    #[test]
    fn a_sink_can_ask_for_an_early_stop() {
        let backend: Arc<dyn Backend> = Arc::new(echo());
        let completion =
            block_on(backend.generate(&Request::user("hi"), &mut StopSink::after_texts(1)))
                .unwrap();
        assert_eq!(completion.stop_reason, StopReason::Cancelled);
        assert_eq!(backend.complete_blocking(&Request::user("hi")).unwrap().text, "ab");
    }
}
