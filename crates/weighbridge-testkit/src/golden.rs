//! Golden streams: what vendors send, byte by byte, and what is to be read from it.
//!
//! They lie in `fixtures/wire/WIRE/NAME.sse` with `NAME.json` beside it; `fixtures/wire/README.md`
//! says what the fields of the latter mean.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use weighbridge_core::{Backend, Completion, Event, Outcome, Request, Result, block_on};

/// The four protocols that there are golden streams of.
pub const WIRES: [&str; 4] = ["chat", "messages", "responses", "gemini"];

/// One stream, and what is to be read from it.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Name of its files.
    pub name: String,
    /// The stream, with line feeds only.
    pub stream: String,
    /// The expectation.
    pub expected: Value,
}

/// The golden streams of a wire, by name.
///
/// # Panics
/// If a file cannot be read, is not what it should be, or has no partner.
pub fn goldens(wire: &str) -> Vec<Golden> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire").join(wire);
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut streams: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sse"))
        .collect();
    streams.sort();
    let golden = |path: &PathBuf| {
        let expected = path.with_extension("json");
        Golden {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            stream: read(path),
            expected: serde_json::from_str(&read(&expected))
                .unwrap_or_else(|e| panic!("{}: {e}", expected.display())),
        }
    };
    streams.iter().map(golden).collect()
}

impl Golden {
    /// How many bytes of the stream are a whole answer: up to and with the event that holds the
    /// text `complete_at`. `None` if it never is one.
    ///
    /// # Panics
    /// If the stream has no such event.
    pub fn n_bytes_to_whole(&self) -> Option<usize> {
        let mark = self.expected["complete_at"].as_str()?;
        let at = self.stream.rfind(mark).unwrap_or_else(|| panic!("{}: no {mark}", self.name));
        let rest = self.stream[at..].find("\n\n").unwrap_or_else(|| panic!("{}: cut", self.name));
        Some(at + rest + 2)
    }

    /// The same events as other servers and proxies would frame them, by name.
    pub fn framings(&self) -> Vec<(&'static str, Vec<u8>)> {
        let comments = format!(
            ": OPENROUTER PROCESSING\n\n{}",
            self.stream.replace("\n\n", "\n\n: keep-alive\n\n")
        );
        let fields = format!("\u{FEFF}retry: 3000\n\n{}", self.stream)
            .replace("\ndata: ", "\nid: 7\ndata:")
            .replace("\n\n", "\n:\n\n");
        [
            ("lf", self.stream.clone()),
            ("crlf", self.stream.replace('\n', "\r\n")),
            ("cr", self.stream.replace('\n', "\r")),
            ("comments", comments),
            ("fields", fields),
        ]
        .map(|(name, text)| (name, text.into_bytes()))
        .into()
    }

    /// The request that the stream answers: log-probabilities or a seat for tools are asked for
    /// where `request` says so.
    pub fn request(&self) -> Request {
        let mut request = Request::user("Hi");
        if let Some(n) = self.expected["request"]["logprobs"].as_u64() {
            request = request.with_logprobs(u8::try_from(n).expect("a small number"));
        }
        request
    }

    /// What the expectation says and the transcript does not, in words; empty if all of it holds.
    pub fn differences(&self, transcript: &Transcript) -> Vec<String> {
        let mut differences = Vec::new();
        let expected = self.expected["reads"].as_object().expect("an expectation reads something");
        for (name, expected) in expected {
            let seen = transcript.reads.get(name).unwrap_or(&Value::Null);
            if !holds(expected, seen) {
                differences.push(format!("{name}: expected {expected}, read {seen}"));
            }
        }
        for kept in self.expected["keeps"].as_array().into_iter().flatten() {
            let kept = kept.as_str().expect("`keeps` lists texts");
            if !transcript.kept.contains(kept) {
                differences.push(format!("`{kept}` was not kept in {}", transcript.kept));
            }
        }
        differences
    }
}

/// Whether all that is expected is there; an object may have more fields than are expected of it.
fn holds(expected: &Value, seen: &Value) -> bool {
    match (expected, seen) {
        (Value::Object(expected), Value::Object(seen)) => expected
            .iter()
            .all(|(name, expected)| seen.get(name).is_some_and(|seen| holds(expected, seen))),
        (Value::Array(expected), Value::Array(seen)) => {
            expected.len() == seen.len() && expected.iter().zip(seen).all(|(e, s)| holds(e, s))
        }
        _ => expected == seen,
    }
}

/// What a call showed and came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// The events but for `Started`, as text.
    pub events: Vec<String>,
    /// What can be told of the result, in the words of expectations.
    pub reads: Map<String, Value>,
    /// Everything of the wire that was kept as it came, as one text.
    pub kept: String,
}

/// Makes a call and writes down everything that it showed.
///
/// # Panics
/// If the text that was pushed is not the text that was returned.
pub fn transcribe(backend: &dyn Backend, request: &Request) -> (Transcript, Result<Completion>) {
    let mut scribe = Scribe::default();
    let mut sink = |event: Event<'_>| scribe.note(&event);
    let result = block_on(backend.generate(request, &mut sink));
    (scribe.transcript(&result), result)
}

/// Writes events down.
#[derive(Clone, Debug, Default)]
pub struct Scribe {
    events: Vec<String>,
    text: String,
    kept: String,
}

impl Scribe {
    /// Notes one event.
    pub fn note(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Started(_) => return ControlFlow::Continue(()),
            Event::Text(text) => self.text.push_str(text),
            Event::Unknown(raw) => self.kept.push_str(raw),
            Event::Opaque { data, .. } => self.kept.push_str(&data.to_string()),
            _ => {}
        }
        self.events.push(format!("{event:?}"));
        ControlFlow::Continue(())
    }

    /// The notes, and what the call came to.
    ///
    /// # Panics
    /// If the text that was pushed is not the text that was returned.
    pub fn transcript(self, result: &Result<Completion>) -> Transcript {
        let Self { events, text, mut kept } = self;
        let mut reads = Map::new();
        reads.insert("outcome".into(), Outcome::of(result).as_str().into());
        match result {
            Ok(completion) => {
                assert_eq!(completion.text, text, "pushed and returned text differ");
                kept.push_str(&json!(completion.effective.values).to_string());
                kept.push_str(&json!(completion.opaque).to_string());
                describe(completion, &mut reads);
            }
            Err(error) => {
                reads.insert("error".into(), error.kind().as_str().into());
                reads.insert("text".into(), text.into());
            }
        }
        Transcript { events, reads, kept }
    }
}

fn describe(completion: &Completion, reads: &mut Map<String, Value>) {
    let calls: Vec<Value> = completion
        .tool_calls
        .iter()
        .map(|call| {
            json!({"id": call.id, "name": call.name, "arguments": call.arguments,
                "args": serde_json::from_str::<Value>(&call.arguments).ok()})
        })
        .collect();
    let usage = &completion.usage;
    let logprobs = completion.logprobs.as_ref().map(|tokens| {
        let token = |t: &weighbridge_core::TokenLogprob| {
            json!({
                "token": String::from_utf8_lossy(&t.bytes),
                "logprob": t.logprob,
                "top": t.top.iter().map(|a| json!([String::from_utf8_lossy(&a.bytes), a.logprob]))
                    .collect::<Vec<_>>(),
            })
        };
        tokens.iter().map(token).collect::<Vec<_>>()
    });
    let entries = [
        ("text", json!(completion.text)),
        ("reasoning", json!(completion.reasoning)),
        ("tool_calls", json!(calls)),
        ("stop_reason", json!(completion.stop_reason.as_str())),
        ("raw_stop_reason", json!(completion.raw_stop_reason)),
        (
            "usage",
            json!({
                "prompt": usage.n_prompt_tokens,
                "cached": usage.n_cached_tokens,
                "cache_write": usage.n_cache_write_tokens,
                "generated": usage.n_generated_tokens,
                "reasoning": usage.n_reasoning_tokens,
            }),
        ),
        ("logprobs", json!(logprobs)),
        ("n_opaque", json!(completion.opaque.len())),
        ("warnings", json!(completion.warnings)),
    ];
    reads.extend(entries.map(|(name, value)| (name.to_owned(), value)));
}
