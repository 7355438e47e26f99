//! The preset `llama-server` against the real server. Runs where `WEIGHBRIDGE_LLAMA_SERVER` names
//! its binary.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{
    BackendExt, Constraint, EgressScope, EmbedRequest, Outcome, Placement, Prompt, Provider,
    Request, StopReason, TokenId, Weights, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use crate::support::{Ledger, context};

struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(binary: &std::ffi::OsStr, more: &[&str]) -> Server {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/parity/llama3/llama3-q8_0.gguf");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(binary)
        .arg("-m")
        .arg(model)
        .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--alias", "tiny"])
        .args(["-c", "256", "-t", "1"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Server { child, url: format!("http://127.0.0.1:{port}/v1") }
}

#[test]
fn the_real_llama_server_keeps_what_its_dialect_promises() {
    let Some(binary) = std::env::var_os("WEIGHBRIDGE_LLAMA_SERVER") else { return };
    let server = start(&binary, &["--embeddings", "--pooling", "mean"]);
    let options = json!({"base_url": server.url, "dimensions": 64, "verified": true});
    let context = context(options, EgressScope::Loopback, &Arc::<Ledger>::default());
    let provider = Remote::new(Vendor::LlamaServer);
    let deadline = Instant::now() + Duration::from_secs(60);
    let found = loop {
        match block_on(provider.list(&context)) {
            Ok(found) if !found.is_empty() => break found,
            _ => assert!(Instant::now() < deadline, "the server does not come up"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(found[0].model.to_string(), "llama-server:tiny");

    let backend = block_on(provider.open(&found[0].model, &context)).unwrap();
    let card = backend.card();
    assert_eq!(card.weights, Weights::Open);
    assert_eq!(card.placement, Placement::LocalServer { verified: true });
    assert_eq!((card.n_ctx, card.n_params), (Some(256), Some(82_248)));
    assert_eq!(card.quantization.as_deref(), Some("Q8_0"));
    assert_eq!(card.engine.as_ref().map(|engine| engine.name.as_str()), Some("llama.cpp"));

    let mut request = Request::user("Hi").with_max_tokens(8).with_logprobs(0);
    request.sampling.repetition_penalty = Some(1.1);
    request.sampling.min_p = Some(0.05);
    request.sampling.top_k = Some(40);
    request.sampling.logit_bias = vec![(TokenId(7), -1.0)];
    request.sampling.seed = Some(7);
    let completion = backend.complete_blocking(&request).unwrap();
    let usage = &completion.usage;
    assert_eq!(usage.n_generated_tokens, Some(8));
    assert_eq!(completion.stop_reason, StopReason::Length);
    let logprobs = completion.logprobs.unwrap();
    // This server joins halves of characters and loses the first half's; it is seen where it does.
    let is_noted = completion.warnings.iter().any(|w| w.starts_with("logprobs_partial"));
    assert_eq!(is_noted, logprobs.len() < 7, "{} {:?}", logprobs.len(), completion.warnings);
    assert!(logprobs.iter().all(|t| t.id.is_some() && t.logprob.is_some() && t.top.is_empty()));
    let counted = block_on(backend.count_tokens(&Prompt::user("Hi"))).unwrap();
    assert_eq!(usage.n_prompt_tokens, Some(counted));

    for constraint in [
        Constraint::Choice(vec!["yes".into(), "a \"b\"\\\n\u{fc}".into()]),
        Constraint::JsonSchema(json!({"type": "object", "required": ["n"],
            "additionalProperties": false, "properties": {"n": {"enum": ["x", "y"]}}})),
    ] {
        let request = Request::user("Hi").with_max_tokens(64).with_constraint(constraint);
        let result = backend.complete_blocking(&request);
        assert_eq!(Outcome::of(&result), Outcome::Ok, "{result:?}");
    }

    let texts = EmbedRequest::new(vec!["one".into(), "two".into(), "one".into()]);
    let vectors = block_on(backend.embed(&texts)).unwrap();
    assert_eq!(vectors.len(), 3);
    let dot = |a: usize, b: usize| -> f64 {
        let pairs = vectors[a].vector.iter().zip(&vectors[b].vector);
        pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    assert!((dot(0, 0) - 1.0).abs() < 1e-5);
    assert!((dot(0, 2) - 1.0).abs() < 1e-4 && dot(0, 1) < 0.9999, "{} {}", dot(0, 2), dot(0, 1));
}
