//! What the tests of several protocols need.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use weighbridge_core::{Completion, Event, Request, Result};

use crate::emitter::Emitter;
use crate::sse::SseParser;
use crate::text::Redactor;
use crate::wire::{Decode, Flow, Wire};

/// The completion that a decoder makes of an answer, and the events that it does not know.
fn decode(
    wire: &dyn Wire,
    request: &Request,
    feed: impl FnOnce(&mut dyn Decode, &mut Emitter<'_>) -> Result<()>,
) -> Result<(Completion, Vec<String>)> {
    let redactor = Redactor::default();
    let mut unknown = Vec::new();
    let mut text = String::new();
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Unknown(raw) => unknown.push(raw.into_owned()),
            Event::Text(more) => text.push_str(&more),
            _ => {}
        }
        std::ops::ControlFlow::Continue(())
    };
    let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
    let mut decoder = wire.decoder(request);
    feed(&mut *decoder, &mut out)?;
    let ending = decoder.close(&mut out)?;
    let mut completion = out.completion(ending, Duration::ZERO, true, request.logprobs.is_some());
    completion.timings = Default::default();
    assert_eq!(text, completion.text);
    Ok((completion, unknown))
}

/// Reads a stream that comes in these pieces.
pub(crate) fn stream(
    wire: &dyn Wire,
    request: &Request,
    chunks: &[&[u8]],
) -> Result<(Completion, Vec<String>)> {
    decode(wire, request, |decoder, out| {
        let mut parser = SseParser::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(frame) = parser.next(&mut input)? {
                if decoder.frame(&frame, out)? == Flow::End {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// Reads an answer that comes as one document.
pub(crate) fn document(
    wire: &dyn Wire,
    request: &Request,
    document: &Value,
) -> Result<(Completion, Vec<String>)> {
    decode(wire, request, |decoder, out| decoder.document(document, out))
}

/// A checked request's body, one field per line.
pub(crate) fn body(wire: &dyn Wire, model: &str, request: &Request) -> Result<String> {
    let dropped = wire.capabilities(model).check(request)?;
    Ok(lines(&wire.body(model, request, &dropped)?))
}

/// An object, one field per line.
pub(crate) fn lines(object: &Map<String, Value>) -> String {
    let lines: Vec<_> = object.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    lines.join("\n")
}
